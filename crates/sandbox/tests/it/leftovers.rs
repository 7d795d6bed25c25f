//! Sandboxes in namespaces and in machines leave nothing behind, whoever is killed when.
//!
//! The server is this test program itself, started again for one ignored test; so is what starts and kills servers, because it takes
//! over the processes that those leave and counts them. `KARTA_TEST_CYCLES=1000` makes it a long test.

mod deeds;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use karta_types::Rng;
use karta_types::rng::Seeded;
use rustix::process::WaitOptions;

use crate::support::{World, session};
use deeds::{KIND, Kind, PLACES, children, cycle, random, spec, take_up};

/// Tells a server where its place is.
const ROOT: &str = "KARTA_TEST_ROOT";
/// Tells a server the seed of its deeds, and that it is one.
const SEED: &str = "KARTA_TEST_SEED";

#[tokio::test]
#[ignore = "started by the test below, as the server that is killed"]
async fn server() {
    let (Some(folder), Ok(seed), Some(kind)) = (std::env::var_os(ROOT), std::env::var(SEED), Kind::told())
    else {
        return;
    };
    let folder = PathBuf::from(folder);
    let rng: Arc<dyn Rng> = Arc::new(Seeded::new(seed.parse().unwrap()));
    let driver = kind.driver(&folder, 1).await;
    println!("\nwent on {}", take_up(&*driver, &folder).await);
    // Each begins with another deed.
    let first = random(&*rng, 1000);
    for number in 0.. {
        let deed = cycle(kind, &*driver, &folder, first + number, &*rng).await.unwrap();
        // Whoever reads it may have gone: then this server is killed in a moment.
        let told = format!("\ncycle {number} {deed}\n");
        let _ = std::io::Write::write_all(&mut std::io::stdout(), told.as_bytes());
    }
}

/// How often what was done.
type Deeds = BTreeMap<String, u64>;

/// Starts a server, and kills it at some moment after some cycles. Answers how many there were.
fn killed(kind: Kind, server: &mut Child, rng: &dyn Rng, deeds: &mut Deeds) -> u64 {
    let most = 1 + random(rng, 12);
    let output = BufReader::new(server.stdout.take().unwrap());
    let mut done = 0;
    for line in output.lines().map_while(Result::ok) {
        if let Some(number) = line.strip_prefix("went on ") {
            *deeds.entry("(went on under the next server)".to_owned()).or_default() +=
                number.parse::<u64>().unwrap();
        } else if let Some(rest) = line.strip_prefix("cycle ") {
            let (number, deed) = rest.split_once(' ').unwrap();
            assert_eq!(number, done.to_string());
            *deeds.entry(deed.to_owned()).or_default() += 1;
            done += 1;
            if done == most {
                break;
            }
        }
    }
    assert_eq!(done, most, "the server ended by itself");
    // Some moment of the next cycle.
    std::thread::sleep(kind.moment(rng));
    assert!(server.try_wait().unwrap().is_none(), "the server ended before it was killed");
    server.kill().unwrap();
    server.wait().unwrap();
    done
}

/// Waits until no process is left of the servers that were killed. Answers those that are left after a while.
fn left() -> Vec<u32> {
    for _ in 0..20_000 {
        while matches!(rustix::process::wait(WaitOptions::NOHANG), Ok(Some(_))) {}
        if children(std::process::id()).is_empty() {
            return Vec::new();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    children(std::process::id())
}

/// Waits until no process is left. Where a sandbox was paused and its launcher was killed, and then the server before it could go
/// on, control groups of the first version hold processes that can't even be killed: the next server lets them go. Answers whether
/// it had to.
async fn all_ended(kind: Kind, folder: &Path) -> bool {
    let first = left();
    if first.is_empty() {
        return false;
    }
    let states = first.iter().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    let states: Vec<_> = states.collect();
    assert!(
        states.iter().all(|stat| stat.contains(") D ") || stat.contains(") Z ")),
        "these were left: {states:?}"
    );
    assert!(states.iter().any(|stat| stat.contains(") D ")), "these were left: {states:?}");
    assert!(kind == Kind::Namespace, "machines are not held by their group: {states:?}");
    kind.driver(folder, 0).await.reap(&|_| false).await.unwrap();
    assert_eq!(left(), Vec::<u32>::new());
    true
}

/// The control groups of this data directory's server.
fn groups(folder: &Path) -> BTreeSet<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;
    let machines = folder.join("machines");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, machines.as_os_str().as_bytes());
    let tag = format!("{:010x}-", u64::from_be_bytes(*digest.as_ref().first_chunk().unwrap()) >> 24);
    let mut found = BTreeSet::new();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().contains(&tag) {
                    found.insert(entry.path());
                }
                folders.push(entry.path());
            }
        }
    }
    found
}

/// The disks that have a file of this folder behind them.
fn disks(folder: &Path) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let files = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    files.filter(|file| file.contains(folder.to_str().unwrap())).collect()
}

/// All that has a name below a folder.
fn names(folder: &Path) -> Vec<String> {
    let tree = crate::support::paths(folder);
    tree.into_iter().map(|path| path.into_os_string().into_string().unwrap()).collect()
}

/// What has a name and should have none when nothing runs.
fn strange(kind: Kind, folder: &Path) -> Vec<String> {
    names(&folder.join("machines")).into_iter().filter(|name| !kind.stays(name)).collect()
}

#[tokio::test]
#[ignore = "started alone by the tests below"]
async fn alone() {
    let Some(folder) = std::env::var_os(ROOT).filter(|_| std::env::var_os(SEED).is_none()) else { return };
    let (folder, kind) = (PathBuf::from(folder), Kind::told().unwrap());
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let rng = Seeded::new(7);
    let (mut done, mut servers, mut helped, mut deeds) = (0, 0, 0, BTreeMap::new());
    while done < kind.cycles() {
        servers += 1;
        let mut server = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "leftovers::server", "--ignored", "--nocapture"])
            .env(ROOT, &folder)
            .env(SEED, servers.to_string())
            .env("TMPDIR", folder.join("tmp"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        done += killed(kind, &mut server, &rng, &mut deeds);
        helped += u32::from(all_ended(kind, &folder).await);
        assert_eq!(disks(&folder), Vec::<String>::new());
        println!("server {servers} was killed after {done} sandboxes in all, and nothing runs");
    }
    // Where the launcher lived on, it has removed the groups; what else a crash has left goes with the next start.
    let groups_left = groups(&folder).len();
    let driver = kind.driver(&folder, 0).await;
    let reaped = driver.reap(&|_| false).await.unwrap();
    let went_on = take_up(&*driver, &folder).await;
    drop(driver);
    println!(
        "\n{done} sandboxes, {servers} servers killed, {groups_left} groups left and {reaped} reaped, {went_on} went on at the end, \
         {helped} times something was held that the next server let go; {deeds:?}"
    );
    assert_eq!(left(), Vec::<u32>::new());
    assert_eq!(groups(&folder), BTreeSet::new());
    assert_eq!(strange(kind, &folder), Vec::<String>::new());
    for name in ["parked", "tmp"] {
        assert_eq!(names(&folder.join(name)), Vec::<String>::new());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(folder.to_str().unwrap()), "{mounts}");
}

/// Starts this program for one of its tests, which counts in a process of its own, and answers what it says.
fn counted(test: &str, kind: Kind) -> String {
    let world = World::new();
    for name in ["parked", "tmp"] {
        fs::create_dir(world.folder.path().join(name)).unwrap();
    }
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(ROOT, world.folder.path())
        .env(KIND, kind.name())
        .env_remove(SEED)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{output}{}", String::from_utf8_lossy(&done.stderr));
    assert!(output.contains("1 passed"), "{output}");
    output.into_owned()
}

#[test]
fn sandboxes_leave_nothing_whoever_is_killed() {
    println!("{}", counted("leftovers::alone", Kind::Namespace));
}

#[test]
#[ignore = "needs an image and QEMU"]
fn machines_leave_nothing_whoever_is_killed() {
    println!("{}", counted("leftovers::alone", Kind::Microvm));
}

/// Descriptors, processes, groups, mounts and leases of one server that lives on.
#[tokio::test]
#[ignore = "counts what its own process holds, so it is started alone by the tests below"]
async fn steady() {
    let (Some(folder), Some(kind)) = (std::env::var_os(ROOT), Kind::told()) else { return };
    let folder = PathBuf::from(folder);
    let rng = Seeded::new(3);
    let descriptors = || -> Vec<PathBuf> {
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
    };
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let mounted = mounts();
    // What is needed once for all is there after the first round.
    let mut before: Option<Vec<PathBuf>> = None;
    for cycles in [1, kind.cycles()] {
        let driver = kind.driver(&folder, 0).await;
        for number in 0..cycles {
            cycle(kind, &*driver, &folder, number, &rng).await.unwrap();
        }
        for number in 0..3 {
            driver.erase(session(number)).await.unwrap();
        }
        driver.reap(&|_| false).await.unwrap();
        // Every place is free again.
        let mut held = Vec::new();
        for number in 0..u64::from(PLACES) {
            held.push(driver.acquire(&spec(&folder, 10 + number)).await.unwrap());
        }
        if rustix::process::geteuid().is_root() {
            // Others have no ids to give, and so no end of them.
            assert!(driver.acquire(&spec(&folder, 10 + u64::from(PLACES))).await.is_err());
        }
        drop((held, driver));
        let mut looks = 0;
        while (!children(std::process::id()).is_empty()
            || before.as_ref().is_some_and(|before| descriptors().len() > before.len())
            || !groups(&folder).is_empty())
            && looks < 20_000
        {
            looks += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(children(std::process::id()), Vec::<u32>::new());
        assert_eq!(groups(&folder), BTreeSet::new());
        assert_eq!(disks(&folder), Vec::<String>::new());
        assert_eq!(strange(kind, &folder), Vec::<String>::new());
        let after = descriptors();
        if let Some(before) = &before {
            assert!(after.len() <= before.len(), "{before:?} were open, now {after:?}");
        }
        assert_eq!(mounts(), mounted);
        before = Some(after);
    }
}

#[test]
fn a_server_that_lives_on_holds_nothing_of_ended_sandboxes() {
    println!("{}", counted("leftovers::steady", Kind::Namespace));
}

#[test]
#[ignore = "needs an image and QEMU"]
fn a_server_that_lives_on_holds_nothing_of_ended_machines() {
    println!("{}", counted("leftovers::steady", Kind::Microvm));
}
