//! Sandboxes in namespaces leave nothing behind, whoever is killed when.
//!
//! The server is this test program itself, started again for one ignored test; so is what starts and kills servers, because it takes
//! over the processes that those leave and counts them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use karta_sandbox::{Driver as _, namespace};
use karta_types::Rng;
use karta_types::rng::Seeded;
use rustix::process::{Pid, Signal, WaitOptions};

use crate::isolated::machines;
use crate::support::{World, clock, line, rng, script, session};

/// Tells a server where its place is.
const ROOT: &str = "KARTA_TEST_ROOT";
/// Tells a server the seed of its deeds, and that it is one.
const SEED: &str = "KARTA_TEST_SEED";
/// How many sandboxes are made; a longer test has more.
const CYCLES: &str = "KARTA_TEST_CYCLES";

fn random(rng: &dyn Rng, below: u64) -> u64 {
    let mut bytes = [0; 8];
    rng.fill(&mut bytes);
    u64::from_le_bytes(bytes) % below
}

/// The children of a process, those that nobody has waited for among them.
fn children(of: u32) -> Vec<u32> {
    let parent = |stat: &str| -> Option<u32> {
        stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    let pids =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| parent(&stat) == Some(of))
    })
    .collect()
}

fn kill(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

fn driver(folder: &Path) -> namespace::Driver {
    let mut limits = karta_sandbox::limits::Machines::new(folder.join("machines"));
    (limits.memory_bytes, limits.disk_bytes) = (128 << 20, 32 << 20);
    namespace::Driver::new(limits, std::collections::HashMap::new(), clock(), rng()).unwrap()
}

/// Makes a sandbox, and ends it in one of many ways.
async fn cycle(driver: &namespace::Driver, folder: &Path, number: u64, rng: &dyn Rng) {
    let spec =
        karta_sandbox::Spec::new(session(u128::from(number % 3)), folder.join("release"), "a".to_owned());
    let deed = random(rng, 8);
    if deed == 0 {
        // Whoever asks for it goes away while it is made.
        let moment = Duration::from_micros(random(rng, 60_000));
        drop(tokio::time::timeout(moment, driver.acquire(&spec)).await);
        return;
    }
    let Ok(sandbox) = driver.acquire(&spec).await else { return };
    let text =
        "(setsid sh -c 'trap \"\" TERM; sleep 1000' &); echo x > /home/agent/x; echo up; exec sleep 1000";
    let mut process = sandbox.spawn(&script(&*sandbox, text)).await.unwrap();
    assert_eq!(line(&mut process).await, "up");
    let launchers = children(std::process::id());
    let firsts: Vec<u32> = launchers.iter().flat_map(|launcher| children(*launcher)).collect();
    if deed >= 6 && rustix::process::geteuid().is_root() {
        sandbox.pause().await.unwrap();
    }
    match deed {
        1 => drop(sandbox),
        2 => driver.erase(spec.session).await.unwrap(),
        3 | 7 => launchers.into_iter().for_each(kill),
        4 => firsts.into_iter().for_each(kill),
        5 => {
            driver.reap(&|_| false).await.unwrap();
        }
        _ => sandbox.close().await.unwrap(),
    }
}

#[tokio::test]
#[ignore = "started by the test below, as the server that is killed"]
async fn server() {
    let (Some(folder), Ok(seed)) = (std::env::var_os(ROOT), std::env::var(SEED)) else { return };
    let folder = PathBuf::from(folder);
    let rng: Arc<dyn Rng> = Arc::new(Seeded::new(seed.parse().unwrap()));
    let driver = driver(&folder);
    for number in 0.. {
        cycle(&driver, &folder, number, &*rng).await;
        // Whoever reads it may have gone: then this server is killed in a moment.
        let _ = std::io::Write::write_all(&mut std::io::stdout(), format!("\ncycle {number}\n").as_bytes());
    }
}

/// Starts a server, and kills it at some moment after some cycles. Answers how many there were.
fn killed(server: &mut Child, rng: &dyn Rng) -> u64 {
    let most = 1 + random(rng, 12);
    let output = BufReader::new(server.stdout.take().unwrap());
    let mut done = 0;
    for line in output.lines().map_while(Result::ok).filter(|line| line.starts_with("cycle ")) {
        done += 1;
        if done == most {
            assert!(line.ends_with(&format!(" {}", most - 1)), "{line}");
            break;
        }
    }
    // Some moment of the next cycle.
    std::thread::sleep(Duration::from_micros(random(rng, 80_000)));
    assert!(server.try_wait().unwrap().is_none(), "the server ended before it was killed");
    server.kill().unwrap();
    server.wait().unwrap();
    done
}

/// Waits until no process is left of the servers that were killed. Answers those that are left after a while.
fn left() -> Vec<u32> {
    for _ in 0..5_000 {
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
async fn all_ended(folder: &Path) -> bool {
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
    driver(folder).reap(&|_| false).await.unwrap();
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
                if entry.file_name().to_string_lossy().starts_with(&tag) {
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

#[tokio::test]
#[ignore = "started alone by the test below"]
async fn alone() {
    let Some(folder) = std::env::var_os(ROOT).filter(|_| std::env::var_os(SEED).is_none()) else { return };
    let folder = PathBuf::from(folder);
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let wanted: u64 = std::env::var(CYCLES).map_or(40, |cycles| cycles.parse().unwrap());
    let rng = Seeded::new(7);
    let (mut done, mut servers, mut helped) = (0, 0, 0);
    while done < wanted {
        servers += 1;
        let mut server = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "leftovers::server", "--ignored", "--nocapture"])
            .env(ROOT, &folder)
            .env(SEED, servers.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        done += killed(&mut server, &rng);
        helped += u32::from(all_ended(&folder).await);
        assert_eq!(disks(&folder), Vec::<String>::new());
    }
    // Where the launcher lived on, it has removed the groups; what else a crash has left goes with the next start.
    let groups_left = groups(&folder).len();
    let reaped = driver(&folder).reap(&|_| false).await.unwrap();
    println!(
        "\n{done} sandboxes, {servers} servers killed, {groups_left} groups left and {reaped} reaped, \
         {helped} times something was held that the next server let go"
    );
    assert_eq!(groups(&folder), BTreeSet::new());
    let names: Vec<_> =
        fs::read_dir(folder.join("machines")).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(names.iter().all(|name| name == "templates"), "{names:?}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(folder.to_str().unwrap()), "{mounts}");
    assert_eq!(left(), Vec::<u32>::new());
}

#[test]
fn sandboxes_leave_nothing_whoever_is_killed() {
    let world = World::new();
    // The folder as the server sees it.
    assert_eq!(machines(&world).root, world.folder.path().join("machines"));
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "leftovers::alone", "--ignored", "--nocapture"])
        .env(ROOT, world.folder.path())
        .env_remove(SEED)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{output}{}", String::from_utf8_lossy(&done.stderr));
    assert!(output.contains("1 passed"), "{output}");
    println!("{output}");
}

/// Descriptors, processes and groups of one server that lives on.
#[tokio::test]
#[ignore = "counts what its own process holds, so it is started alone by the test below"]
async fn steady() {
    if std::env::var_os(ROOT).is_none() {
        return;
    }
    let folder = PathBuf::from(std::env::var_os(ROOT).unwrap());
    let driver = driver(&folder);
    let rng = Seeded::new(3);
    let descriptors = || -> Vec<PathBuf> {
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
    };
    cycle(&driver, &folder, 0, &rng).await;
    driver.reap(&|_| false).await.unwrap();
    let before = descriptors();
    for number in 0..30 {
        cycle(&driver, &folder, number, &rng).await;
    }
    for number in 0..3 {
        driver.erase(session(number)).await.unwrap();
    }
    driver.reap(&|_| false).await.unwrap();
    let mut looks = 0;
    while (!children(std::process::id()).is_empty()
        || descriptors().len() > before.len()
        || !groups(&folder).is_empty())
        && looks < 20_000
    {
        looks += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(children(std::process::id()), Vec::<u32>::new());
    assert_eq!(groups(&folder), BTreeSet::new());
    assert_eq!(disks(&folder), Vec::<String>::new());
    let after = descriptors();
    assert!(after.len() <= before.len(), "{before:?} were open, now {after:?}");
}

#[test]
fn a_server_that_lives_on_holds_nothing_of_ended_sandboxes() {
    let world = World::new();
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "leftovers::steady", "--ignored", "--nocapture"])
        .env(ROOT, world.folder.path())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{output}{}", String::from_utf8_lossy(&done.stderr));
    assert!(output.contains("1 passed"), "{output}");
}
