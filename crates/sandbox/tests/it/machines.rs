//! Virtual machines for real: they need an image and QEMU, see `karta image build`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use karta_sandbox::image::{Image, Images, Recipe};
use karta_sandbox::limits::Machines;
use karta_sandbox::{Command, Driver, Exit, Sandbox, microvm};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{World, rng};

/// The image of `KARTA_TEST_IMAGE`; if the guest has changed since it was built, one with the same base beside it.
async fn image() -> PathBuf {
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

/// The driver with the limits that attacks are tried against.
pub(crate) async fn small(world: &World) -> microvm::Driver {
    driver(Machines {
        image: Some(image().await),
        memory_bytes: 512 << 20,
        warm: 0,
        ..crate::isolated::machines(world)
    })
}

fn driver(limits: Machines) -> microvm::Driver {
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
    let mut found = BTreeSet::new();
    let parents: Vec<(u32, u32, String)> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            Some((pid, field("PPid:")?.parse().ok()?, field("Name:")?.to_owned()))
        })
        .collect();
    let of = |pid: u32| parents.iter().find(|(other, ..)| *other == pid).map(|(_, parent, _)| *parent);
    for (pid, _, name) in &parents {
        let mut above = Some(*pid);
        while let Some(one) = above.filter(|one| *one > 1) {
            if one == std::process::id() && name.starts_with("qemu-system") {
                found.insert(*pid);
            }
            above = of(one);
        }
    }
    found
}

#[tokio::test]
#[ignore = "needs an image and QEMU"]
async fn a_session_runs_in_a_machine_and_nothing_is_left_of_it() {
    let world = World::new();
    let driver = driver(limits(world.folder.path()).await);
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
    assert_eq!(exit.status, Some(0), "{said}");
    let version = folder.file_name().unwrap().to_str().unwrap();
    assert!(said.contains(version), "{said}");
    sandbox.close().await.unwrap();
}
