//! What a session made, out of one sandbox and into another; and sessions that lie in wait.

use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use futures_util::{StreamExt as _, stream};
use karta_sandbox::state::{Entry, Kind, Record};
use karta_sandbox::{Error, Sandbox};

use super::{sandbox, sandbox_in};
use crate::support::{World, acquire, line, run, script, tree};

async fn taken(sandbox: &dyn Sandbox, paths: Vec<PathBuf>) -> Vec<Record> {
    sandbox.take(paths).await.unwrap().map(Result::unwrap).collect().await
}

fn entry(path: &str, kind: Kind) -> Record {
    Record::Entry(Entry { path: path.into(), kind, mode: 0o600, stamp: 0, modified: 1_000_000_007 })
}

const CHANGES: &str = r"
    umask 022
    cd $HOME && mkdir -p a/empty .cache && echo one > a/one && ln -s /nowhere/at/all a/link && chmod 500 a
    printf 'x' > 'new
line' && printf y > $(printf 'bad\377name') && head -c 300000 /dev/zero > big && mkfifo pipe && ln big hard
    cd $WORK && echo changed > CLAUDE.md && rm agents/one.md && mkdir more && echo m > more/m && chmod 755 more/m
    touch -d @12345 more/m
";

/// The home and the workspace in a shell's variables.
fn with_places(sandbox: &dyn Sandbox, text: &str) -> karta_sandbox::Command {
    let mut command = script(sandbox, text);
    let text = |path: &Path| path.display().to_string();
    command.env.push(("HOME".to_owned(), text(&sandbox.place().home)));
    command.env.push(("WORK".to_owned(), text(&sandbox.place().workspace)));
    command
}

/// Everything in the home and the workspace, as a program inside sees it.
const SHOW: &str = r#"
    for top in "$HOME" "$WORK"; do
        cd "$top"
        find . -mindepth 1 ! -name pipe ! -type l -exec stat -c '%n %a %F' {} + | sort
        find . -type f -exec stat -c '%n %Y' {} + | sort
        find . -type f -exec cksum {} + | sort
        find . -type l | while read -r link; do echo "$link $(readlink "$link")"; done
    done | LC_ALL=C tr '\377' '?'
"#;

/// What a session made in one sandbox is what it finds in another.
pub(crate) async fn moves(first: &dyn Sandbox, other: &dyn Sandbox) {
    assert_eq!(first.survey().await.unwrap(), [], "nothing was changed yet");
    let (_, exit) = run(first, &with_places(first, &format!("set -e; {CHANGES}")), "").await;
    assert_eq!(exit.status, Some(0));
    let survey = first.survey().await.unwrap();
    let shown: Vec<String> = survey.iter().map(|entry| entry.path.to_string_lossy().into_owned()).collect();
    let expected = [
        "home/.cache",
        "home/a",
        "home/a/empty",
        "home/a/link",
        "home/a/one",
        "home/bad\u{fffd}name",
        "home/big",
        "home/hard",
        "home/new\nline",
        "work/CLAUDE.md",
        "work/agents",
        "work/agents/one.md",
        "work/more",
        "work/more/m",
    ];
    assert_eq!(shown, expected);
    assert_eq!(survey[11].kind, Kind::Removed);
    assert_eq!(survey, first.survey().await.unwrap(), "what did not change has the same stamps");
    let paths: Vec<PathBuf> = survey.iter().map(|entry| entry.path.clone()).collect();
    let records = taken(first, paths.clone()).await;
    let told: Vec<&Entry> = records
        .iter()
        .filter_map(|record| if let Record::Entry(entry) = record { Some(entry) } else { None })
        .collect();
    assert_eq!(told, survey.iter().collect::<Vec<_>>());
    other.restore(stream::iter(records.into_iter().map(Ok)).boxed()).await.unwrap();
    let (was, _) = run(first, &with_places(first, SHOW), "").await;
    let (is, _) = run(other, &with_places(other, SHOW), "").await;
    assert!(was.contains("./more/m 755 regular file") && was.contains("./more/m 12345"), "{was}");
    assert_eq!(was, is);
    let again: Vec<PathBuf> = other.survey().await.unwrap().into_iter().map(|entry| entry.path).collect();
    assert_eq!(again, paths);
}

/// A folder of the release that was replaced by one of the session's.
pub(crate) async fn replaces(first: &dyn Sandbox, other: &dyn Sandbox) {
    let text = "set -e; cd $WORK; rm -r agents; mkdir agents; echo n > agents/new; rm CLAUDE.md; mkdir CLAUDE.md; ln -s x CLAUDE.md/y";
    let (_, exit) = run(first, &with_places(first, text), "").await;
    assert_eq!(exit.status, Some(0));
    let paths: Vec<PathBuf> = first.survey().await.unwrap().into_iter().map(|entry| entry.path).collect();
    let records = taken(first, paths.clone()).await;
    other.restore(stream::iter(records.into_iter().map(Ok)).boxed()).await.unwrap();
    let (was, _) = run(first, &with_places(first, SHOW), "").await;
    let (is, _) = run(other, &with_places(other, SHOW), "").await;
    assert!(
        was.contains("./agents/new") && !was.contains("one.md") && was.contains("./CLAUDE.md/y x"),
        "{was}"
    );
    assert_eq!(was, is);
    let again: Vec<PathBuf> = other.survey().await.unwrap().into_iter().map(|entry| entry.path).collect();
    assert_eq!(again, paths);
}

#[tokio::test]
async fn a_replaced_folder_stays_replaced() {
    let (world, second) = (World::new(), World::new());
    replaces(&sandbox(&world).await, &sandbox(&second).await).await;
}

/// The same where the workspace is an overlay.
#[tokio::test]
async fn sessions_move_between_namespaces() {
    let world = World::new();
    let driver = crate::isolated::namespace(&world);
    let [one, two, three, four] = [1, 2, 3, 4].map(|number| world.spec(number, "a"));
    moves(&*acquire(&driver, &one).await, &*acquire(&driver, &two).await).await;
    replaces(&*acquire(&driver, &three).await, &*acquire(&driver, &four).await).await;
}

#[tokio::test]
#[ignore = "needs an image and QEMU"]
async fn sessions_move_between_machines() {
    let world = World::new();
    let driver = crate::machines::microvm(&world).await;
    let [one, two, three, four] = [1, 2, 3, 4].map(|number| world.spec(number, "a"));
    let (first, second) = (acquire(&driver, &one).await, acquire(&driver, &two).await);
    moves(&*first, &*second).await;
    drop((first, second));
    replaces(&*acquire(&driver, &three).await, &*acquire(&driver, &four).await).await;
}

#[tokio::test]
async fn a_full_disk_is_told_as_that() {
    let world = World::new();
    let driver = crate::isolated::namespace(&world);
    let sandbox = acquire(&driver, &world.spec(1, "a")).await;
    let big = vec![b'x'; 80 << 20];
    assert!(sandbox.put(Path::new("big"), &big).await.unwrap_err().is_full());
    let file = Kind::File { size: big.len() as u64 };
    let mut records = vec![entry("home/big", file)];
    records.extend(big.chunks(64 << 10).map(|piece| Record::Data(bytes::Bytes::copy_from_slice(piece))));
    let error = sandbox.restore(stream::iter(records.into_iter().map(Ok)).boxed()).await.unwrap_err();
    assert!(error.is_full(), "{error:?}");
    // What did not fit was taken away again.
    assert_eq!(sandbox.survey().await.unwrap(), []);
    sandbox.put(Path::new("small"), &big[..1 << 20]).await.unwrap();
}

#[tokio::test]
async fn a_session_moves_whole() {
    let (world, second) = (World::new(), World::new());
    moves(&sandbox(&world).await, &sandbox(&second).await).await;
}

#[tokio::test]
async fn only_what_is_asked_for_is_taken_and_what_is_gone_is_left_out() {
    let world = World::new();
    let sandbox = sandbox(&world).await;
    sandbox.put(Path::new("one"), b"1").await.unwrap();
    sandbox.put(Path::new("two"), b"2").await.unwrap();
    let paths = ["home/two", "home/gone", "work/gone"].map(PathBuf::from).to_vec();
    let records = taken(&sandbox, paths).await;
    assert_eq!(records.len(), 2, "{records:?}");
    assert!(matches!(&records[1], Record::Data(bytes) if &bytes[..] == b"2"));
    for bad in ["/etc/passwd", "home/../../x", "other/x", "home"] {
        let refused = match sandbox.take(vec![bad.into()]).await {
            Err(_) => true,
            Ok(mut records) => records.next().await.is_none_or(|record| record.is_err()),
        };
        assert!(refused, "{bad}");
    }
    assert_eq!(sandbox.find("t*", 9).await.unwrap().len(), 1, "a refusal ends nothing else");
}

#[tokio::test]
async fn restoring_follows_nothing_and_replaces_what_is_in_the_way() {
    let world = World::new();
    let sandbox = sandbox(&world).await;
    let place = sandbox.place().clone();
    let outside = world.folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("f"), "mine").unwrap();
    symlink(&outside, place.home.join("way")).unwrap();
    symlink(outside.join("f"), place.home.join("file")).unwrap();
    std::fs::create_dir(place.home.join("folder")).unwrap();
    std::fs::write(place.home.join("folder/x"), "").unwrap();
    let file = || Kind::File { size: 3 };
    let restore =
        async |records: Vec<Record>| sandbox.restore(stream::iter(records.into_iter().map(Ok)).boxed()).await;
    let data = || Record::Data(bytes::Bytes::from_static(b"new"));
    let error = restore(vec![entry("home/way/f", file()), data()]).await.unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error:?}");
    restore(vec![
        entry("home/file", file()),
        data(),
        entry("home/folder", file()),
        data(),
        entry("home/way", Kind::Folder { opaque: false }),
        entry("home/way/f", file()),
        data(),
        entry("work/agents", Kind::Folder { opaque: true }),
        entry("work/CLAUDE.md", Kind::Removed),
        entry("work/none/at/all", Kind::Removed),
    ])
    .await
    .unwrap();
    for path in ["file", "folder", "way/f"] {
        assert_eq!(std::fs::read(place.home.join(path)).unwrap(), b"new", "{path}");
    }
    assert_eq!(std::fs::read(outside.join("f")).unwrap(), b"mine");
    assert_eq!(tree(&place.workspace), [(PathBuf::from("agents"), "folder".to_owned())]);
    for bad in ["../x", "/etc/x", "home/../x", "etc/x", "home"] {
        let error = restore(vec![entry(bad, file()), data()]).await.unwrap_err();
        assert!(error.to_string().contains("putting back"), "{bad}: {error}");
    }
    let long = vec![entry("home/long", Kind::File { size: 1 }), data()];
    restore(long).await.unwrap_err();
    assert!(!place.home.join("long").exists());
    let left: Vec<_> =
        tree(&place.home).into_iter().filter(|(path, _)| path.to_string_lossy().contains(".karta")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_session_that_lies_in_wait_catches_nobody() {
    let world = World::new();
    let sandbox = sandbox(&world).await;
    let place = sandbox.place().clone();
    std::fs::write(world.folder.path().join("secret"), "secret").unwrap();
    let text = r"
        set -e; cd $HOME; mkdir h; cd h
        ln -s ../../../secret link; mkfifo fifo; ln -s ../../.. up; truncate -s 1T endless; mkdir dir
        ln -s /proc/self/environ environ; echo real > real
        i=0; deep=$HOME; while [ $i -lt 40 ]; do deep=$deep/d; i=$((i+1)); done; mkdir -p $deep
    ";
    let (_, exit) = run(&sandbox, &with_places(&sandbox, text), "").await;
    assert_eq!(exit.status, Some(0));
    let mut found = sandbox.find("h/*", 10).await.unwrap();
    found.sort();
    let names: Vec<_> = found
        .iter()
        .map(|(path, content)| (path.file_name().unwrap().to_str().unwrap(), content.len()))
        .collect();
    assert_eq!(names, [("endless", 10), ("real", 5)]);
    assert!(sandbox.find("h/up/secret", 10).await.unwrap().is_empty());
    let error = sandbox.put(Path::new("h/up/x"), b"x").await.unwrap_err();
    assert!(matches!(error, Error::Escape(_)), "{error}");
    sandbox.put(Path::new("h/fifo"), b"x").await.unwrap();
    assert_eq!(std::fs::read(place.home.join("h/fifo")).unwrap(), b"x");
    let records = taken(&sandbox, vec!["home/h/link".into(), "home/h/up/secret".into()]).await;
    assert_eq!(records.len(), 1);
    assert!(matches!(&records[0], Record::Entry(Entry { kind: Kind::Link { .. }, .. })));
    // An endless file can be taken as long as somebody wants it, and no longer.
    let mut endless = sandbox.take(vec!["home/h/endless".into()]).await.unwrap();
    for _ in 0..50 {
        endless.next().await.unwrap().unwrap();
    }
    drop(endless);
    assert_eq!(sandbox.survey().await.unwrap().len(), 48);
    let text = "i=0; while [ $i -lt 80 ]; do mkdir e && cd e; i=$((i+1)); done";
    run(&sandbox, &with_places(&sandbox, text), "").await;
    let error = sandbox.survey().await.unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("levels deep"), "{error:?}");
}

#[tokio::test]
async fn an_export_is_the_workspace_and_nothing_else() {
    let world = World::new();
    let sandbox = sandbox(&world).await;
    std::fs::write(world.folder.path().join("secret"), "secret").unwrap();
    let text = "set -e; cd $WORK; ln -s ../secret out; ln -s CLAUDE.md in; mkfifo pipe; mkdir -p x/y; echo z > x/y/z; chmod 700 x/y/z";
    let (_, exit) = run(&sandbox, &with_places(&sandbox, text), "").await;
    assert_eq!(exit.status, Some(0));
    let into = tempfile::tempdir().unwrap();
    sandbox.export(into.path()).await.unwrap();
    let shown: Vec<_> =
        tree(into.path()).into_iter().map(|(path, is)| (path.display().to_string(), is)).collect();
    let expected = [
        ("CLAUDE.md", "be brief\n"),
        ("agents", "folder"),
        ("agents/one.md", "first\n"),
        ("in", "-> CLAUDE.md"),
        ("x", "folder"),
        ("x/y", "folder"),
        ("x/y/z", "z\n"),
    ];
    assert_eq!(shown, expected.map(|(path, is)| (path.to_owned(), is.to_owned())));
    assert!(std::fs::metadata(into.path().join("x/y/z")).unwrap().mode() & 0o100 != 0);
    let error = sandbox.export(into.path()).await.unwrap_err();
    assert!(error.to_string().contains("copying the workspace"), "into a folder that is not empty: {error}");
}

#[tokio::test]
async fn what_is_frozen_stands_still() {
    let world = World::new();
    let sandbox = sandbox(&world).await;
    let text = "echo start; while read x; do echo $x; done";
    let mut process = sandbox.spawn(&script(&sandbox, text)).await.unwrap();
    assert_eq!(line(&mut process).await, "start");
    sandbox.freeze().await.unwrap();
    sandbox.freeze().await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut process.stdin, b"one\n").await.unwrap();
    // Work on files goes on meanwhile.
    sandbox.put(Path::new("f"), b"x").await.unwrap();
    assert_eq!(sandbox.survey().await.unwrap().len(), 1);
    tokio::select! {
        biased;
        line = line(&mut process) => panic!("it goes on: {line}"),
        put = sandbox.put(Path::new("g"), b"x") => put.unwrap(),
    }
    sandbox.thaw().await.unwrap();
    assert_eq!(line(&mut process).await, "one");
    sandbox.freeze().await.unwrap();
    process.control.kill();
    assert_eq!(process.control.wait().await.signal, Some(9), "a kill reaches what stands still");
    sandbox.thaw().await.unwrap();
}

#[tokio::test]
async fn a_fork_bomb_ends_with_its_leader() {
    let world = World::new();
    let sandbox = sandbox_in(world.folder.path(), std::sync::Arc::new(karta_sandbox::uplink::Nowhere)).await;
    // It renews itself without end, in sessions of its own, but stays small: this machine is shared.
    let text = r"cat > b <<'END'
[ $1 -gt 0 ] && { setsid sh ./b $(($1-1)) & setsid sh ./b $(($1-1)) & } || echo deep
while :; do setsid sh -c 'sleep 0.01' & wait $!; done
END
setsid sh ./b 4 & sleep 1000";
    let mut process = sandbox.spawn(&script(&sandbox, text)).await.unwrap();
    for _ in 0..16 {
        assert_eq!(line(&mut process).await, "deep");
    }
    process.control.kill();
    assert_eq!(process.control.wait().await.signal, Some(9));
    let place = sandbox.place().workspace.display().to_string();
    let left = std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&place))
    });
    assert_eq!(left.count(), 0);
}
