//! What the driver `namespace` holds besides the laws of all drivers.

use std::path::PathBuf;
use std::time::Duration;

use karta_sandbox::limits::Machines;
use karta_sandbox::{Driver, Error, Sandbox, Spec, namespace};

use crate::support::{World, acquire, clock, line, programs, rng, run, script, session};

/// Long enough that only what hangs takes longer.
const PATIENCE: Duration = Duration::from_mins(1);

/// Small limits, so that tests reach them soon.
pub(crate) fn machines(world: &World) -> Machines {
    Machines {
        memory_bytes: 256 << 20,
        processes: 64,
        disk_bytes: 64 << 20,
        temp_bytes: 16 << 20,
        open_files: 256,
        ..Machines::new(world.folder.path().join("machines"))
    }
}

pub(crate) fn namespace(world: &World) -> namespace::Driver {
    namespace::Driver::new(machines(world), programs(), clock(), rng()).unwrap()
}

async fn said(sandbox: &dyn Sandbox, text: &str) -> String {
    run(sandbox, &script(sandbox, &format!("exec 2>&1\n{text}")), "").await.0
}

#[tokio::test]
async fn a_trial_says_that_it_works_here() {
    let world = World::new();
    let driver = namespace(&world);
    driver.check().await.unwrap();
    let notes = driver.notes().await.join("\n");
    assert!(notes.contains("share the host's kernel"), "{notes}");
    assert_eq!(driver.reap(&|_| false).await.unwrap(), 0, "the trial left nothing");
}

#[tokio::test]
async fn reaping_takes_nothing_that_is_in_use() {
    let world = World::new();
    crate::support::reaped_meanwhile(&namespace(&world), &world, 12).await;
}

#[tokio::test]
async fn a_trial_is_not_swept_by_the_server_of_the_same_place() {
    let world = World::new();
    let (server, other) = (namespace(&world), namespace(&world));
    let over = std::sync::atomic::AtomicBool::new(false);
    let tried = async {
        for _ in 0..3 {
            other.check().await.unwrap();
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let reaped = async {
        while !over.load(std::sync::atomic::Ordering::Relaxed) {
            assert_eq!(server.reap(&|_| false).await.unwrap(), 0);
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(tried, reaped);
}

#[tokio::test]
async fn a_session_has_its_own_place() {
    let world = World::new();
    let driver = namespace(&world);
    let spec = Spec { harness: Some(world.folder.path().join("release/agents")), ..world.spec(1, "a") };
    let sandbox = acquire(&driver, &spec).await;
    assert!(sandbox.fresh());
    let place = sandbox.place().clone();
    assert_eq!(place.harness.as_deref(), Some(std::path::Path::new("/opt/harness")));
    let text = "id -un; pwd; cat CLAUDE.md /opt/harness/one.md; echo more >> CLAUDE.md; cat CLAUDE.md; cat /proc/sys/kernel/hostname; \
                cat /etc/hosts | grep -c karta-; wc -c < /etc/machine-id; touch /home/agent/x /tmp/x; stat -c %U agents";
    let output = said(&*sandbox, text).await;
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(&lines[..6], ["agent", "/workspace", "be brief", "first", "be brief", "more"], "{output}");
    assert!(lines[6].starts_with("karta-"), "{output}");
    assert_eq!(&lines[7..], ["1", "33", "agent"], "{output}");
    // The next machine of the session has nothing of this one.
    drop(sandbox);
    let again = acquire(&driver, &spec).await;
    assert!(again.fresh());
    assert_eq!(said(&*again, "cat CLAUDE.md; ls /home/agent").await, "be brief\n");
}

#[tokio::test]
async fn two_sandboxes_have_nothing_in_common() {
    let world = World::new();
    let driver = namespace(&world);
    let text = "cat /etc/machine-id /proc/sys/kernel/hostname; for n in mnt pid net ipc uts user cgroup; do readlink /proc/self/ns/$n; done; \
                tail -1 /proc/self/uid_map";
    let mut seen = std::collections::BTreeSet::new();
    let mut kept = Vec::new();
    for number in 1..=3 {
        let sandbox = acquire(&driver, &world.spec(number, "a")).await;
        let output = said(&*sandbox, text).await;
        assert_eq!(output.lines().count(), 10, "{output}");
        // Without root's powers there is but one user to be.
        let distinct = if rustix::process::geteuid().is_root() { 10 } else { 9 };
        for line in output.lines().take(distinct) {
            assert!(seen.insert(line.to_owned()), "{line}");
        }
        kept.push(sandbox);
    }
    for name in ["mnt", "pid", "net", "ipc", "uts", "user", "cgroup"] {
        let own = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert!(!seen.contains(own.to_str().unwrap()), "{name} is the host's");
    }
}

#[tokio::test]
async fn a_sandbox_in_use_is_not_exchanged_for_another_release() {
    let world = World::new();
    let driver = namespace(&world);
    let sandbox = acquire(&driver, &world.spec(1, "a")).await;
    let error = driver.acquire(&world.spec(1, "b")).await.err().unwrap();
    assert!(matches!(&error, Error::Unavailable(text) if text.contains("close it first")), "{error}");
    sandbox.close().await.unwrap();
    let other = acquire(&driver, &world.spec(1, "b")).await;
    assert_ne!(other.id(), sandbox.id());
    assert!(sandbox.spawn(&script(&*sandbox, "true")).await.is_err(), "the closed one stays closed");
    assert_eq!(said(&*other, "echo alive").await, "alive\n");
}

/// The processes of a session that are alive, as this host sees them, with what each does; none of those that keep it.
fn seen(id: &str) -> Vec<(String, String)> {
    let read = |process: &std::path::Path, file: &str| std::fs::read_to_string(process.join(file)).ok();
    let entries = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let here = entries.filter(|process| read(process, "cgroup").is_some_and(|groups| groups.contains(id)));
    let mut found: Vec<_> = here
        .filter_map(|process| {
            let status = read(&process, "status")?;
            let field =
                |name: &str| Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned());
            let user: u32 = field("Uid:")?.split_whitespace().next()?.parse().ok()?;
            // The agent is the thousandth user of its sandbox, what keeps it the first.
            let state = field("State:").filter(|state| !state.starts_with(['Z', 'X']))?;
            (user % karta_sandbox::limits::SPAN == 1000).then_some((field("Pid:")?, state))
        })
        .collect();
    found.sort();
    found
}

#[tokio::test]
async fn nobody_flees_from_a_pause() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let world = World::new();
    let driver = namespace(&world);
    let sandbox = acquire(&driver, &world.spec(1, "a")).await;
    let mut fleeing = sandbox.spawn(&script(&*sandbox, &crate::attacks::fleeing(""))).await.unwrap();
    assert_eq!(line(&mut fleeing).await, "up");
    let id = sandbox.id().to_string();
    for _ in 0..3 {
        sandbox.pause().await.unwrap();
        let all = seen(&id);
        // Stopped, or in a wait that ends in that.
        assert!(all.len() > 1 && all.iter().all(|(_, state)| state.starts_with(['T', 'D'])), "{all:?}");
        assert_eq!(seen(&id), all, "nobody moves");
        sandbox.wake().await.unwrap();
        while seen(&id) == all {
            tokio::task::yield_now().await;
        }
    }
    sandbox.close().await.unwrap();
    assert_eq!(seen(&id), []);
}

#[tokio::test]
async fn what_is_paused_does_nothing_until_it_is_woken() {
    let world = World::new();
    let driver = namespace(&world);
    let sandbox = acquire(&driver, &world.spec(1, "a")).await;
    let mut process = sandbox.spawn(&script(&*sandbox, "echo up; read word; echo $word")).await.unwrap();
    assert_eq!(line(&mut process).await, "up");
    match sandbox.pause().await {
        Err(Error::Unavailable(reason)) if !rustix::process::geteuid().is_root() => {
            assert!(reason.contains("control group"), "{reason}");
            return;
        }
        paused => paused.unwrap(),
    }
    sandbox.pause().await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut process.stdin, b"word\n").await.unwrap();
    // Nothing in there can answer; a moment shows that it doesn't, and no longer moment would show more.
    let heard = tokio::time::timeout(Duration::from_millis(100), line(&mut process)).await;
    assert!(heard.is_err(), "{heard:?}");
    sandbox.wake().await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, line(&mut process)).await.unwrap(), "word");
    sandbox.pause().await.unwrap();
    tokio::time::timeout(PATIENCE, sandbox.close()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_release_that_is_not_there_is_told_and_leaves_nothing() {
    let world = World::new();
    let driver = namespace(&world);
    let spec = Spec::new(session(1), world.folder.path().join("nowhere"), "a".to_owned());
    let error = driver.acquire(&spec).await.err().unwrap();
    assert!(error.to_string().contains("nowhere"), "{error}");
    assert_eq!(driver.reap(&|_| false).await.unwrap(), 0);
}

/// The folder of an installed harness, and its program in it.
fn harness(id: &str, package: &str) -> (PathBuf, String) {
    let root = PathBuf::from(
        std::env::var_os("KARTA_TEST_HARNESSES").expect("`./test` says where the harnesses are"),
    );
    let mut versions = std::fs::read_dir(root.join(id)).unwrap().flatten().map(|entry| entry.path());
    let folder = versions.find(|folder| folder.join("installed.json").exists()).unwrap();
    (folder, format!("/opt/harness/node_modules/{package}"))
}

async fn version(id: &str, package: &str) -> String {
    let (harness, program) = harness(id, package);
    let world = World::new();
    let limits = Machines::new(world.folder.path().join("machines"));
    let driver = namespace::Driver::new(limits, programs(), clock(), rng()).unwrap();
    let spec = Spec { harness: Some(harness), ..world.spec(1, "a") };
    let sandbox = acquire(&driver, &spec).await;
    said(&*sandbox, &format!("HOME=/home/agent {program} --version")).await
}

#[tokio::test]
#[ignore = "needs the real harnesses"]
async fn the_real_claude_code_starts() {
    let output = version("claude-code", "@anthropic-ai/claude-code-linux-x64/claude").await;
    assert!(output.contains("(Claude Code)"), "{output}");
}

#[tokio::test]
#[ignore = "needs the real harnesses"]
async fn the_real_opencode_starts() {
    let output = version("opencode", "opencode-linux-x64-baseline/bin/opencode").await;
    assert!(
        output.starts_with(|first: char| first.is_ascii_digit()) && output.trim().split('.').count() == 3,
        "{output}"
    );
}

#[tokio::test]
#[ignore = "needs an image"]
async fn an_image_can_be_the_root() {
    let world = World::new();
    let image = std::env::var_os("KARTA_TEST_IMAGE").expect("`./test` says where the image is");
    let limits = Machines { image: Some(image.into()), ..machines(&world) };
    let driver = namespace::Driver::new(limits, programs(), clock(), rng()).unwrap();
    driver.check().await.unwrap();
    assert!(!driver.notes().await.join("").contains("programs of this host"));
    let sandbox = acquire(&driver, &world.spec(1, "a")).await;
    let text = "git --version; node --version; id -un; cat /proc/sys/kernel/hostname; grep -c karta /etc/hosts; wc -c < /etc/machine-id; \
                stat -c %A /; echo x > /etc/x; echo x > /usr/x; git init -q . && git add -A && git status --short | head -1";
    let output = said(&*sandbox, text).await;
    assert!(output.contains("git version") && output.contains("\nagent\nkarta-"), "{output}");
    assert_eq!(output.matches("Read-only file system").count(), 2, "{output}");
    assert!(output.contains("\n1\n33\n") && output.ends_with("A  CLAUDE.md\n"), "{output}");
}
