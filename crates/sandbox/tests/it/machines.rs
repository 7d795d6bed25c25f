//! Virtual machines for real: they need an image and QEMU, see `karta image build`.

mod parked;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use karta_sandbox::image::{Image, Images, Recipe};
use karta_sandbox::limits::Machines;
use karta_sandbox::{Command, Driver, Exit, Sandbox, Spec, microvm};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{World, rng};

/// The image of `KARTA_TEST_IMAGE`; if the guest has changed since it was built, one with the same base beside it.
pub(crate) async fn image() -> PathBuf {
    let folder = PathBuf::from(
        std::env::var_os("KARTA_TEST_IMAGE").expect("KARTA_TEST_IMAGE names an image's folder"),
    );
    if Image::open(&folder).unwrap().is_current() {
        return folder;
    }
    let images = Images::new(folder.parent().unwrap().to_owned());
    images.build(&Recipe::default(), &|_| {}).await.unwrap().folder
}

/// Small machines under this folder.
async fn limits(folder: &Path) -> Machines {
    Machines {
        image: Some(image().await),
        memory_bytes: 512 << 20,
        disk_bytes: 512 << 20,
        temp_bytes: 64 << 20,
        warm: 0,
        ..Machines::new(folder.join("machines"))
    }
}

/// Where all tests that don't look at it keep what machines begin from.
fn common() -> PathBuf {
    let image = PathBuf::from(std::env::var_os("KARTA_TEST_IMAGE").unwrap_or_default());
    image.with_file_name("test-machines")
}

/// A driver for the tests that all drivers have.
pub(crate) async fn microvm(world: &World) -> microvm::Driver {
    let limits = limits(world.folder.path()).await;
    driver(Machines {
        processes: 64,
        disk_bytes: 64 << 20,
        temp_bytes: 16 << 20,
        open_files: 256,
        root: common(),
        ..limits
    })
}

pub(crate) fn driver(limits: Machines) -> microvm::Driver {
    microvm::Driver::new(limits, Arc::new(karta_types::time::System), rng())
}

fn shell(text: &str) -> Command {
    Command {
        program: "sh".to_owned(),
        args: vec!["-c".to_owned(), text.to_owned()],
        env: vec![
            ("PATH".to_owned(), "/usr/bin:/bin".to_owned()),
            ("HOME".to_owned(), "/home/agent".to_owned()),
        ],
        cwd: "/workspace".into(),
    }
}

async fn run(sandbox: &dyn Sandbox, command: &Command) -> (Exit, String) {
    let mut process = sandbox.spawn(command).await.unwrap();
    process.stdin.shutdown().await.unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (one, other) =
        tokio::join!(process.stdout.read_to_end(&mut out), process.stderr.read_to_end(&mut err));
    one.unwrap();
    other.unwrap();
    out.extend(err);
    (process.control.wait().await, String::from_utf8_lossy(&out).into_owned())
}

async fn say(sandbox: &dyn Sandbox, text: &str) -> String {
    let (exit, said) = run(sandbox, &shell(text)).await;
    assert_eq!(exit.status, Some(0), "{text}: {said}");
    said
}

/// Processes of QEMU that were started by this process's jails.
fn machines() -> BTreeSet<u32> {
    below(std::process::id(), "qemu-system")
}

/// Processes below another whose names begin so.
fn below(top: u32, start: &str) -> BTreeSet<u32> {
    let all: Vec<(u32, u32, String)> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            Some((pid, field("PPid:")?.parse().ok()?, field("Name:")?.to_owned()))
        })
        .collect();
    let of = |pid: u32| all.iter().find(|(other, ..)| *other == pid).map(|(_, parent, _)| *parent);
    let under = |pid: u32| {
        let mut above = of(pid);
        while let Some(one) = above.filter(|one| *one > 1 && *one != top) {
            above = of(one);
        }
        above == Some(top)
    };
    all.iter().filter(|(pid, _, name)| name.starts_with(start) && under(*pid)).map(|(pid, ..)| *pid).collect()
}

#[tokio::test]
#[ignore = "needs an image and QEMU"]
async fn a_session_runs_in_a_machine_and_nothing_is_left_of_it() {
    let world = World::new();
    let driver = driver(Machines { root: common(), ..limits(world.folder.path()).await });
    driver.check().await.unwrap();
    assert!(machines().is_empty());
    let sandbox = driver.acquire(&world.spec(1, "one")).await.unwrap();
    assert_eq!(machines().len(), 1);
    assert!(sandbox.fresh());
    let said = say(&*sandbox, "id -u; pwd; cat CLAUDE.md; echo mine > mine; echo changed >> CLAUDE.md; uname -r; ls /sys/class/net 2>&1; grep -c : /proc/net/dev").await;
    println!("{said}");
    assert!(said.starts_with("1000\n/workspace\nbe brief\n"), "{said}");
    assert_eq!(say(&*sandbox, "cat mine CLAUDE.md").await, "mine\nbe brief\nchanged\n");
    assert_eq!(std::fs::read_to_string(world.release().join("CLAUDE.md")).unwrap(), "be brief\n");
    // Another handle of the same machine.
    let again = driver.acquire(&world.spec(1, "one")).await.unwrap();
    assert!(!again.fresh());
    assert_eq!(again.id(), sandbox.id());
    assert!(driver.acquire(&world.spec(1, "other")).await.is_err(), "it is in use on another release");
    sandbox.close().await.unwrap();
    assert!(machines().is_empty());
}

/// The folder of an installed harness and its program in it.
fn harness(id: &str) -> (PathBuf, PathBuf) {
    let root = PathBuf::from(std::env::var_os("KARTA_TEST_HARNESSES").expect("KARTA_TEST_HARNESSES is set"));
    let versions = std::fs::read_dir(root.join(id)).unwrap().flatten().map(|entry| entry.path());
    let version = versions.into_iter().find(|path| path.join("installed.json").exists()).unwrap();
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(version.join("installed.json")).unwrap()).unwrap();
    let program = record["program"].as_str().unwrap().into();
    (version, program)
}

#[tokio::test]
#[ignore = "needs an image, QEMU and the real harnesses"]
async fn the_real_claude_code_starts_in_a_machine() {
    let world = World::new();
    let limits = Machines { memory_bytes: 2 << 30, ..limits(world.folder.path()).await };
    let driver = driver(limits);
    let (folder, program) = harness("claude-code");
    let mut spec = world.spec(1, "one");
    spec.harness = Some(folder.clone());
    let sandbox = driver.acquire(&spec).await.unwrap();
    let inside = sandbox.place().harness.clone().unwrap().join(program);
    let command =
        Command { program: inside.display().to_string(), args: vec!["--version".to_owned()], ..shell("") };
    let (exit, said) = run(&*sandbox, &command).await;
    println!("{said}");
    assert_eq!(exit, Exit { status: Some(0), signal: None }, "{said}");
    let version = folder.file_name().unwrap().to_str().unwrap();
    assert!(said.contains(version), "{said}");
    sandbox.close().await.unwrap();
}

/// What must never be the same in two machines.
const WHO: &str = "cat /etc/machine-id; hostname; cat /proc/sys/kernel/random/boot_id; head -c 32 /dev/urandom | od -An -tx1; \
                   cat /proc/sys/kernel/random/uuid; od -An -tx1 -N16 /dev/random";

#[tokio::test]
#[ignore = "needs an image and QEMU"]
async fn two_copies_of_one_snapshot_have_no_secret_in_common_and_know_the_time() {
    let world = World::new();
    let driver = driver(Machines { root: common(), ..limits(world.folder.path()).await });
    let mut seen = BTreeSet::new();
    for number in 0..3 {
        let sandbox = driver.acquire(&world.spec(number, "one")).await.unwrap();
        let said = say(&*sandbox, WHO).await;
        let lines: Vec<_> = said.lines().map(|line| line.trim().to_owned()).collect();
        assert!(lines.len() >= 6, "{said}");
        for line in lines {
            assert!(seen.insert(line.clone()), "`{line}` is in two machines");
        }
        let before = karta_types::Clock::now(&karta_types::time::System).as_millis() / 1000;
        let inside: i64 = say(&*sandbox, "date +%s").await.trim().parse().unwrap();
        let after = karta_types::Clock::now(&karta_types::time::System).as_millis() / 1000;
        assert!((before - 1..=after + 1).contains(&inside), "{before} {inside} {after}");
        sandbox.close().await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs an image and QEMU"]
async fn machines_wait_and_are_given_and_made_again() {
    let world = World::new();
    let limits = Machines { warm: 2, warm_ceiling: 2, ..limits(world.folder.path()).await };
    let driver = driver(limits);
    let first = driver.acquire(&world.spec(1, "one")).await.unwrap();
    let full = async {
        while driver.waiting() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_mins(1), full).await.unwrap();
    assert_eq!(machines().len(), 3);
    // Its release is one that no machine was made for.
    world.write("late.txt", "after the machine was made\n");
    let second = driver.acquire(&world.spec(2, "two")).await.unwrap();
    assert_eq!(say(&*second, "cat late.txt").await, "after the machine was made\n");
    // One that dies while it waits is not given to anybody.
    let full = async {
        while driver.waiting() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_mins(1), full).await.unwrap();
    for pid in machines() {
        kill(pid);
    }
    let third = driver.acquire(&world.spec(3, "one")).await.unwrap();
    assert_eq!(say(&*third, "echo here").await, "here\n");
    drop((first, second, third, driver));
    gone().await;
}

/// Waits until no machine is left.
async fn gone() {
    let none = async {
        while !machines().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), none)
        .await
        .expect("machines end with their handles");
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    // It may have ended just now.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

#[tokio::test]
#[ignore = "needs an image and QEMU"]
async fn a_machine_stands_still_and_goes_on_and_a_killed_one_is_replaced() {
    let world = World::new();
    let driver = driver(Machines { root: common(), ..limits(world.folder.path()).await });
    let sandbox = driver.acquire(&world.spec(1, "one")).await.unwrap();
    let mut counting =
        sandbox.spawn(&shell("i=0; while read -r line; do i=$((i+1)); echo $line $i; done")).await.unwrap();
    let mut answer = vec![0; 4];
    counting.stdin.write_all(b"a\n").await.unwrap();
    counting.stdout.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"a 1\n");
    sandbox.pause().await.unwrap();
    sandbox.pause().await.unwrap();
    counting.stdin.write_all(b"b\n").await.unwrap();
    let cpu = ticks();
    // Nothing inside can answer. Some time has to go by for that to mean something.
    let silent = tokio::time::timeout(std::time::Duration::from_millis(300), counting.stdout.read_u8()).await;
    assert!(silent.is_err());
    assert!(ticks() - cpu < 5, "a machine that stands still takes no time of the processor");
    sandbox.wake().await.unwrap();
    counting.stdout.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"b 2\n");

    for pid in machines() {
        kill(pid);
    }
    let ended = counting.control.wait().await;
    assert_eq!(ended, Exit { status: None, signal: Some(9) });
    assert!(sandbox.spawn(&shell("true")).await.is_err());
    sandbox.close().await.unwrap();
    let next = driver.acquire(&world.spec(1, "one")).await.unwrap();
    assert!(next.fresh());
    assert_ne!(next.id(), sandbox.id());
    assert_eq!(say(&*next, "ls").await, "CLAUDE.md\nagents\n");
    driver.erase(crate::support::session(1)).await.unwrap();
    assert!(machines().is_empty());
}

#[tokio::test]
#[ignore = "needs an image and QEMU"]
async fn reaping_takes_no_machine_that_is_in_use_or_waits() {
    let world = World::new();
    let driver = driver(Machines { root: common(), warm: 1, ..limits(world.folder.path()).await });
    crate::support::reaped_meanwhile(&driver, &world, 4).await;
    drop(driver);
    gone().await;
}

#[tokio::test]
#[ignore = "needs an image and QEMU"]
async fn an_image_may_be_removed_while_machines_are_made_from_it() {
    let world = World::new();
    let limits = limits(world.folder.path()).await;
    let copy = world.folder.path().join("image");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(limits.image.as_ref().unwrap()).unwrap().flatten() {
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
    }
    let root = limits.root.clone();
    let driver = driver(Machines { image: Some(copy.clone()), ..limits });
    driver.acquire(&world.spec(1, "one")).await.unwrap().close().await.unwrap();
    std::fs::remove_dir_all(&copy).unwrap();
    // And the disks that it would keep, and the snapshot: a harness that is new here boots a machine.
    std::fs::remove_dir_all(&root).unwrap();
    let harness = world.release().join("agents");
    for spec in [world.spec(1, "one"), Spec { harness: Some(harness), ..world.spec(2, "one") }] {
        let sandbox = driver.acquire(&spec).await.unwrap();
        assert_eq!(say(&*sandbox, "cat CLAUDE.md").await, "be brief\n");
        sandbox.close().await.unwrap();
    }
    assert!(machines().is_empty());
}

/// The processor time of all machines, in the kernel's ticks.
fn ticks() -> u64 {
    let of = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    machines().into_iter().filter_map(of).sum()
}

#[tokio::test]
#[ignore = "needs an image and QEMU"]
async fn a_damaged_snapshot_is_made_again_and_a_whole_one_is_used() {
    let world = World::new();
    let limits = limits(world.folder.path()).await;
    driver(limits.clone()).check().await.unwrap();
    let snapshots = limits.root.join("snapshots");
    let memory = |folder: &Path| {
        let home = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
        home.join("memory")
    };
    let written = std::fs::metadata(memory(&snapshots)).unwrap().modified().unwrap();
    driver(limits.clone()).check().await.unwrap();
    assert_eq!(
        std::fs::metadata(memory(&snapshots)).unwrap().modified().unwrap(),
        written,
        "it was used as it is"
    );
    let file = std::fs::File::options().write(true).open(memory(&snapshots)).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"damage", 32 << 20).unwrap();
    let driver = driver(limits);
    let sandbox = driver.acquire(&world.spec(1, "one")).await.unwrap();
    assert_eq!(say(&*sandbox, "echo well").await, "well\n");
    sandbox.close().await.unwrap();
}

#[tokio::test]
#[ignore = "needs an image and QEMU"]
async fn a_session_s_disk_has_an_end_and_nothing_else_is_written() {
    let world = World::new();
    let driver = driver(Machines { root: common(), ..limits(world.folder.path()).await });
    let sandbox = driver.acquire(&world.spec(1, "one")).await.unwrap();
    let (exit, said) = run(&*sandbox, &shell("dd if=/dev/zero of=big bs=1M count=600 2>&1")).await;
    assert_ne!(exit.status, Some(0));
    assert!(said.contains("No space left"), "{said}");
    assert_eq!(say(&*sandbox, "rm big; echo room > small; cat small").await, "room\n");
    for place in ["/usr/x", "/opt/harness/x", "/release/x", "/etc/x"] {
        let (exit, _) = run(&*sandbox, &shell(&format!("echo x > {place}"))).await;
        assert_ne!(exit.status, Some(0), "{place} can be written");
    }
    sandbox.close().await.unwrap();
    assert!(machines().is_empty());
}

/// Tells the server below where its folder is.
const ROOT: &str = "KARTA_TEST_MACHINES";

/// The control groups of machines of this server.
fn groups(server: u32) -> usize {
    let trees = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
    trees
        .filter_map(|tree| std::fs::read_dir(tree.path().join("karta")).ok())
        .flatten()
        .flatten()
        .filter(|group| group.file_name().to_string_lossy().starts_with("machine-"))
        .filter(|group| group.file_name().to_string_lossy().contains(&format!("-{server}-")))
        .count()
}

#[tokio::test]
#[ignore = "started by the test below, as the server that is killed"]
async fn server() {
    let Some(folder) = std::env::var_os(ROOT) else { return };
    let folder = PathBuf::from(folder);
    let driver = driver(Machines { root: folder.join("machines"), warm: 1, ..limits(&folder).await });
    let mut held = Vec::new();
    for number in [1, 2] {
        let spec = Spec::new(crate::support::session(number), folder.join("release"), "one".to_owned());
        let sandbox = driver.acquire(&spec).await.unwrap();
        held.push(sandbox.spawn(&shell("sleep 1000")).await.unwrap());
        held.push(sandbox.spawn(&shell("while :; do :; done")).await.unwrap());
        std::mem::forget(sandbox);
        println!("\nup");
    }
    std::future::pending::<()>().await;
}

#[tokio::test]
#[ignore = "needs an image and QEMU"]
async fn nothing_is_left_of_a_killed_server_s_machines() {
    use std::io::BufRead as _;
    let world = World::new();
    // The first one is killed with machines that run, the second while it makes one.
    for lines in [2, 0] {
        let mut server = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "machines::server", "--ignored", "--nocapture"])
            .env(ROOT, world.folder.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // Open to the end: the server writes to it.
        let mut output = std::io::BufReader::new(server.stdout.take().unwrap()).lines();
        let said = output.by_ref().map_while(Result::ok);
        let up = said.filter(|line| line == "up").take(lines).count();
        assert_eq!(up, lines);
        if lines == 0 {
            let some = async {
                while below(server.id(), "").is_empty() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(std::time::Duration::from_mins(1), some).await.unwrap();
        }
        let processes = below(server.id(), "");
        assert!(!processes.is_empty());
        server.kill().unwrap();
        server.wait().unwrap();
        let left = || processes.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists());
        let none = async {
            while left() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), none)
            .await
            .expect("machines end with their server");
        let driver = driver(Machines {
            root: world.folder.path().join("machines"),
            ..limits(world.folder.path()).await
        });
        driver.reap(&|_| false).await.unwrap();
        assert_eq!(groups(server.id()), 0);
    }
    // Of disks only those are left that machines begin from.
    let disks: Vec<_> = std::fs::read_dir(world.folder.path().join("machines/disks"))
        .unwrap()
        .map(|one| one.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(
        disks.iter().all(|name| name.starts_with("release-") || name.starts_with("session-")),
        "{disks:?}"
    );
}
