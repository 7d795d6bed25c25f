//! A server that is killed, and the one that comes after.
//!
//! The server is this test program itself, started again for one ignored test that does nothing without its variable.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use karta_sandbox::{Driver as _, process};

use crate::support::{Watched, World, acquire, clock, line, rng, script, session};

/// Tells the server to be where its root is.
const ROOT: &str = "KARTA_TEST_ROOT";

#[tokio::test]
#[ignore = "started by the test below, as the server that is killed"]
async fn server() {
    let Some(folder) = std::env::var_os(ROOT) else { return };
    let folder = std::path::PathBuf::from(folder);
    let driver =
        process::Driver::new(folder.join("sessions"), std::collections::HashMap::new(), clock(), rng())
            .unwrap();
    let mut running = Vec::new();
    for number in [1, 2] {
        let spec = karta_sandbox::Spec::new(session(number), folder.join("release"), "a".to_owned());
        let sandbox = acquire(&driver, &spec).await;
        let text = "setsid sleep 1000 & echo $!; echo $$; exec sleep 1001";
        let mut process = sandbox.spawn(&script(&*sandbox, text)).await.unwrap();
        println!("\npid {}", line(&mut process).await);
        println!("\npid {}", line(&mut process).await);
        running.push(process);
    }
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn what_a_killed_server_left_is_ended_by_the_next() {
    let world = World::new();
    let other = World::new();
    let mut server = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::server", "--ignored", "--nocapture"])
        .env(ROOT, world.folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(server.stdout.take().unwrap());
    let pids =
        output.lines().map_while(Result::ok).filter_map(|line| line.strip_prefix("pid ").map(Watched::new));
    let all: Vec<_> = pids.take(4).collect();
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(all.len(), 4);
    let (strays, children) = ([&all[0], &all[2]], [&all[1], &all[3]]);
    for child in children {
        child.wait();
    }

    // A server on another data directory leaves them alone.
    other.process().reap(&|_| false).await.unwrap();
    assert!(strays.iter().all(|stray| !stray.ended()));

    let driver = world.process();
    assert_eq!(driver.reap(&|known| *known == session(1)).await.unwrap(), 1);
    assert!(
        strays.iter().all(|stray| stray.ended()),
        "those of the kept session as well: their server is gone"
    );
    assert!(world.place(1).exists() && !world.place(2).exists());
    drop(acquire(&driver, &world.spec(1, "a")).await);
}
