//! Many processes leave nothing behind.
//!
//! Counting needs a process without other tests in it: this test program itself, started again for one ignored test.

use std::fs;
use std::process::Command;

use crate::support::{World, acquire, run, script};

const ALONE: &str = "KARTA_TEST_ALONE";

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Children of this process, zombies included.
fn children() -> usize {
    let own = std::process::id().to_string();
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
        .filter(|stat| {
            stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1))
                == Some(own.as_str())
        })
        .count()
}

#[tokio::test]
#[ignore = "started alone by the test below"]
async fn alone() {
    if std::env::var_os(ALONE).is_none() {
        return;
    }
    let world = World::new();
    let driver = world.process();
    let sandbox = acquire(&driver, &world.spec(1, "a")).await;
    let forever = script(&*sandbox, "setsid sleep 1000 & echo; exec sleep 1001");
    // The runtime's own descriptors come with the first use.
    run(&*sandbox, &script(&*sandbox, "true"), "").await;
    let before = descriptors();
    for round in 0..200 {
        match round % 4 {
            0 => drop(run(&*sandbox, &script(&*sandbox, "echo x"), "").await),
            1 => drop(sandbox.spawn(&forever).await.unwrap()),
            2 => {
                let missing = crate::support::command(&*sandbox, "no-such-program");
                assert!(sandbox.spawn(&missing).await.is_err());
            }
            _ => {
                let mut process = sandbox.spawn(&forever).await.unwrap();
                crate::support::line(&mut process).await;
                process.control.kill();
                process.control.wait().await;
            }
        }
    }
    // Dropped processes are reaped by another thread: it is done when it has let go of what it held.
    let mut looks = 0;
    while (children() > 0 || descriptors() > before) && looks < 20_000 {
        looks += 1;
        tokio::task::yield_now().await;
    }
    assert_eq!(children(), 0);
    assert!(descriptors() <= before, "{} descriptors were open, now {}", before, descriptors());
}

#[test]
fn many_processes_leave_nothing() {
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "leak::alone", "--ignored", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(String::from_utf8_lossy(&done.stdout).contains("1 passed"));
}
