//! Machines that are put aside: sealed, whole or refused, and none the worse when there is no room for it.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use karta_sandbox::ParkKey;

use super::*;

/// How often these bytes are anywhere in the files of a folder.
fn count(folder: &Path, wanted: &[u8]) -> usize {
    let mut found = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found += count(&path, wanted);
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let first = |rest: &[u8]| rest.windows(wanted.len()).position(|window| window == wanted);
        let mut rest = &bytes[..];
        while let Some(at) = first(rest) {
            found += 1;
            rest = &rest[at + wanted.len()..];
        }
    }
    found
}

/// The bytes that a folder takes.
fn taken(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries.map(|entry| entry.metadata().unwrap().blocks() * 512).sum()
}

/// Bytes that are nowhere in this program, nor in a command line, in one piece.
fn marker() -> Vec<u8> {
    [&b"kar"[..], b"ta-pla", b"nted-", b"mark", b"er-4711"].concat()
}

/// Puts a machine aside as soon as nothing is on its way into it, which is for a moment only.
async fn park(sandbox: &dyn Sandbox, into: &Path, key: &ParkKey) -> Result<(), karta_sandbox::Error> {
    loop {
        match sandbox.park(into, key).await {
            Err(error) if error.to_string().contains("on its way") => tokio::task::yield_now().await,
            other => return other,
        }
    }
}

/// A program that has the marker in its memory, and has written it to the session's disk; it says a word for each line.
async fn marked(sandbox: &dyn Sandbox) -> karta_sandbox::Process {
    let text = r#"a=kar; b=ta-pla; c=nted-; m="$a$b${c}mark""er-4711"; echo "$m" > marked; sync marked
        echo begun; while read -r line; do echo "$m $line"; done"#;
    let mut process = sandbox.spawn(&shell(text)).await.unwrap();
    assert_eq!(crate::support::line(&mut process).await, "begun");
    process
}

#[tokio::test]
#[ignore = "needs an image and QEMU"]
async fn a_machine_is_put_aside_and_goes_on_under_another_server() {
    let world = World::new();
    let limits = limits(world.folder.path()).await;
    let first = driver(limits.clone());
    let spec = world.spec(1, "one");
    let sandbox = first.acquire(&spec).await.unwrap();
    say(&*sandbox, "echo kept > note").await;
    let text =
        "i=0; echo begun >&2; while read -r line; do i=$((i+1)); echo $line $i; done; echo over; exit 3";
    let mut counting = sandbox.spawn(&shell(text)).await.unwrap();
    // A connection from inside to a service, which is cut, and a program that has written what nobody reads.
    let flood = sandbox
        .spawn(&shell("trap '' PIPE; while echo xxxxxxxxxxxxxxxxxxxxxxxx; do :; done; sleep 1000"))
        .await
        .unwrap();
    let mut answer = vec![0; 4];
    counting.stdin.write_all(b"a\n").await.unwrap();
    counting.stdout.read_exact(&mut answer).await.unwrap();
    let who = say(&*sandbox, "cat /etc/machine-id").await;
    let folder = world.folder.path().join("parked");
    let key = ParkKey::random(&*rng());
    counting.stdin.write_all(b"b\n").await.unwrap();
    assert!(sandbox.parks());
    park(&*sandbox, &folder, &key).await.unwrap();
    assert!(machines().is_empty());
    assert!(sandbox.spawn(&shell("true")).await.is_err());
    // What was written before is read to its end.
    let (mut before, mut errors) = (Vec::new(), String::new());
    counting.stdout.read_to_end(&mut before).await.unwrap();
    counting.stderr.read_to_string(&mut errors).await.unwrap();
    assert_eq!(errors, "begun\n");
    drop((counting, flood));
    drop((sandbox, first));

    let second = driver(limits);
    let karta_sandbox::Revived { sandbox, processes: mut running } =
        second.revive(&spec, &folder, &key).await.unwrap();
    assert!(!folder.exists(), "what was saved is used up");
    assert!(!sandbox.fresh());
    assert_eq!(running.len(), 2);
    let mut counting = running.remove(0);
    while before.len() < 4 {
        before.push(counting.stdout.read_u8().await.unwrap());
    }
    assert_eq!(before, b"b 2\n");
    counting.stdin.write_all(b"c\n").await.unwrap();
    counting.stdout.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"c 3\n");
    counting.stdin.shutdown().await.unwrap();
    let mut rest = String::new();
    counting.stdout.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "over\n");
    rest.clear();
    counting.stderr.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "");
    assert_eq!(counting.control.wait().await, Exit { status: Some(3), signal: None });
    // The other one goes on with what was not read.
    let mut piece = vec![0; 100_000];
    running[0].stdout.read_exact(&mut piece).await.unwrap();
    assert!(piece.chunks(25).all(|line| line.iter().all(|byte| matches!(byte, b'x' | b'\n'))));
    assert_eq!(say(&*sandbox, "cat note; cat /etc/machine-id").await, format!("kept\n{who}"));
    let inside: i64 = say(&*sandbox, "date +%s").await.trim().parse().unwrap();
    let now = karta_types::Clock::now(&karta_types::time::System).as_millis() / 1000;
    assert!((inside - now).abs() <= 2);
    sandbox.close().await.unwrap();
    assert!(machines().is_empty());

    // On another release it is refused and used up.
    let sandbox = second.acquire(&spec).await.unwrap();
    park(&*sandbox, &folder, &key).await.unwrap();
    let spec = Spec { digest: "two".to_owned(), ..spec.clone() };
    assert!(second.revive(&spec, &folder, &key).await.is_err());
    assert!(!folder.exists());
    assert!(machines().is_empty());
}

#[tokio::test]
#[ignore = "needs an image and QEMU"]
async fn nothing_of_a_parked_machine_is_in_plain() {
    let world = World::new();
    let driver = driver(limits(world.folder.path()).await);
    let spec = world.spec(1, "one");
    let sandbox = driver.acquire(&spec).await.unwrap();
    let mut process = marked(&*sandbox).await;
    let (folder, key) = (world.folder.path().join("parked"), ParkKey::random(&*rng()));
    assert!(sandbox.park_bytes() > 512 << 20);
    let most = sandbox.park_bytes();
    park(&*sandbox, &folder, &key).await.unwrap();
    println!("parked: {} bytes of at most {most}", taken(&folder));
    assert!(taken(&folder) <= most);
    drop((process, sandbox));
    assert_eq!(count(&folder, &marker()), 0);
    for text in [&b"CLAUDE.md"[..], b"virtio", b"QEVM", &spec.digest.as_bytes().repeat(2), b"\"digest\""] {
        assert_eq!(count(&folder, text), 0, "{}", String::from_utf8_lossy(text));
    }
    let revived = driver.revive(&spec, &folder, &key).await.unwrap();
    process = revived.processes.into_iter().next().unwrap();
    process.stdin.write_all(b"word\n").await.unwrap();
    let said = format!("{} word", String::from_utf8(marker()).unwrap());
    assert_eq!(crate::support::line(&mut process).await, said);
    assert_eq!(say(&*revived.sandbox, "cat marked").await.trim().as_bytes(), marker());
    revived.sandbox.close().await.unwrap();
}

fn turned(path: &Path, at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// What is before the first chunk of a sealed file, and how long a chunk is.
const HEAD: usize = 48;
const PIECE: usize = (1 << 20) + 16;

fn swapped(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let (one, other) = bytes[HEAD..].split_at_mut(PIECE);
    one.swap_with_slice(&mut other[..PIECE]);
    std::fs::write(path, bytes).unwrap();
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

fn replace(from: &Path, path: &Path) {
    std::fs::copy(from, path).unwrap();
}

fn resize(path: &Path, length: u64) {
    std::fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
}

/// Does something to what was kept of a machine.
type Damage = Box<dyn Fn(&Path)>;

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test]
#[ignore = "needs an image and QEMU"]
async fn a_machine_that_is_not_as_it_was_written_is_refused() {
    let world = World::new();
    let driver = driver(Machines { root: common(), ..limits(world.folder.path()).await });
    let at = |name: &str| world.folder.path().join(name);
    let spec = world.spec(1, "one");
    let mut keys = Vec::new();
    for (number, name) in [(1, "mine"), (2, "other")] {
        let spec = world.spec(number, "one");
        let sandbox = driver.acquire(&spec).await.unwrap();
        let process = marked(&*sandbox).await;
        let key = ParkKey::random(&*rng());
        park(&*sandbox, &at(name), &key).await.unwrap();
        drop(process);
        keys.push(key);
    }
    let key = &keys[0];
    let mut damages: Vec<(String, Damage)> = Vec::new();
    for name in ["state", "disk", "machine"] {
        let (other, twin) = (at("other").join(name), if name == "disk" { "state" } else { "disk" });
        let mut add = |what: &str, damage: Damage| damages.push((format!("{name} {what}"), damage));
        add("gone", Box::new(move |dir| std::fs::remove_file(dir.join(name)).unwrap()));
        add("empty", Box::new(move |dir| resize(&dir.join(name), 0)));
        add("cut", Box::new(move |dir| resize(&dir.join(name), length(&dir.join(name)) - 1)));
        add("longer", Box::new(move |dir| resize(&dir.join(name), length(&dir.join(name)) + 1)));
        add("huge", Box::new(move |dir| resize(&dir.join(name), 1 << 40)));
        add("turned", Box::new(move |dir| turned(&dir.join(name), length(&dir.join(name)) - 1)));
        add("another session's", Box::new(move |dir| replace(&other, &dir.join(name))));
        add("another file", Box::new(move |dir| replace(&dir.join(twin), &dir.join(name))));
        add(
            "a pipe",
            Box::new(move |dir| {
                std::fs::remove_file(dir.join(name)).unwrap();
                let mode = rustix::fs::Mode::from_raw_mode(0o600);
                let fifo = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(rustix::fs::CWD, dir.join(name), fifo, mode, 0).unwrap();
            }),
        );
    }
    damages.push(("state swapped".to_owned(), Box::new(|dir| swapped(&dir.join("state")))));
    damages.push((
        "state cut at a chunk".to_owned(),
        Box::new(|dir| resize(&dir.join("state"), (HEAD + 3 * PIECE) as u64)),
    ));
    let folder = at("parked");
    for (what, damage) in damages {
        copy(&at("mine"), &folder);
        damage(&folder);
        let Err(error) = driver.revive(&spec, &folder, key).await else { panic!("{what} was taken") };
        assert!(!folder.exists(), "{what}: it is used up");
        let told = error.to_string();
        let gone = what.ends_with("gone");
        assert!(gone || told.contains("not as it was written"), "{what}: {told}");
        // It was killed, and nobody waited for that.
        let gone = async {
            while !machines().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), gone).await.expect(&what);
    }
    copy(&at("mine"), &folder);
    assert!(driver.revive(&spec, &folder, &keys[1]).await.is_err(), "another key");
    // Nothing was wrong with what was damaged.
    copy(&at("mine"), &folder);
    let revived = driver.revive(&spec, &folder, key).await.unwrap();
    assert_eq!(say(&*revived.sandbox, "cat marked").await.trim().as_bytes(), marker());
    revived.sandbox.close().await.unwrap();
}

/// A file system in memory that is gone with this.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, bytes: u64) -> Self {
        std::fs::create_dir(&at).unwrap();
        let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        rustix::mount::mount("none", &at, "tmpfs", rustix::mount::MountFlags::empty(), &*options).unwrap();
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test]
#[ignore = "needs an image, QEMU and root"]
async fn where_there_is_no_room_a_machine_goes_on() {
    let world = World::new();
    let driver = driver(Machines { root: common(), ..limits(world.folder.path()).await });
    let spec = world.spec(1, "one");
    let sandbox = driver.acquire(&spec).await.unwrap();
    say(&*sandbox, "head -c 40M /dev/urandom > big; sync big").await;
    let process = marked(&*sandbox).await;
    let (folder, key) = (world.folder.path().join("parked"), ParkKey::random(&*rng()));
    park(&*sandbox, &folder, &key).await.unwrap();
    drop((process, sandbox));
    let state = std::fs::metadata(folder.join("state")).unwrap().len();
    let mut sandbox = driver.revive(&spec, &folder, &key).await.unwrap();
    // Where its memory finds no room, and where its disk doesn't.
    for (number, room) in [16 << 20, state + (20 << 20)].into_iter().enumerate() {
        let small = Small::mount(world.folder.path().join(format!("small-{number}")), room);
        let into = small.0.join("machine");
        let error = park(&*sandbox.sandbox, &into, &ParkKey::random(&*rng())).await.unwrap_err();
        assert!(error.is_full(), "{error:?}");
        assert!(!into.exists(), "nothing is left of it");
        let mut process = sandbox.processes.remove(0);
        process.stdin.write_all(b"still\n").await.unwrap();
        let said = format!("{} still", String::from_utf8(marker()).unwrap());
        assert_eq!(crate::support::line(&mut process).await, said);
        sandbox.processes.push(process);
    }
    // And it is saved when there is.
    park(&*sandbox.sandbox, &folder, &key).await.unwrap();
    let revived = driver.revive(&spec, &folder, &key).await.unwrap();
    assert_eq!(say(&*revived.sandbox, "wc -c < big").await.trim(), (40 << 20).to_string());
    revived.sandbox.close().await.unwrap();
}

#[tokio::test]
#[ignore = "needs an image and QEMU"]
async fn a_machine_whose_monitor_answers_no_more_is_ended() {
    let world = World::new();
    let driver = driver(Machines { root: common(), ..limits(world.folder.path()).await });
    let sandbox = driver.acquire(&world.spec(1, "one")).await.unwrap();
    let mut process = marked(&*sandbox).await;
    let monitor = rustix::process::Pid::from_raw(machines().first().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(monitor, rustix::process::Signal::STOP).unwrap();
    assert!(sandbox.pause().await.is_err());
    assert!(machines().is_empty(), "nobody knows what it does");
    assert_eq!(process.control.wait().await.signal, Some(9));
    assert!(sandbox.wake().await.is_err());
}
