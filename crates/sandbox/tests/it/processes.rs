//! What the process driver holds about processes.

use std::os::unix::fs::PermissionsExt as _;

use karta_sandbox::{Command, Sandbox, process::VARIABLE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Watched, World, acquire, command, line, run, script};

/// A script whose descendants leave the group in every usual way; prints their pids, then stays.
const TREE: &str = "sleep 1000 & echo $!; \
    setsid sleep 1001 & echo $!; \
    setsid sh -c 'sleep 1002 & echo $!; exec sleep 1003' & echo $!; \
    sh -c 'setsid sleep 1004 & echo $!'; \
    read line; exec sleep 1005";

async fn tree(sandbox: &dyn Sandbox) -> (karta_sandbox::Process, Vec<Watched>) {
    let mut process = sandbox.spawn(&script(sandbox, TREE)).await.unwrap();
    let mut all = vec![Watched::new(&process.control.pid().unwrap().to_string())];
    for _ in 0..5 {
        all.push(Watched::new(&line(&mut process).await));
    }
    (process, all)
}

#[tokio::test]
async fn a_signal_is_told() {
    let world = World::new();
    let sandbox = acquire(&world.process(), &world.spec(1, "a")).await;
    let (_, exit) = run(&*sandbox, &script(&*sandbox, "kill -ABRT $$"), "").await;
    assert_eq!((exit.status, exit.signal), (None, Some(6)));
}

#[tokio::test]
async fn the_environment_is_what_was_given() {
    let world = World::new();
    let sandbox = acquire(&world.process(), &world.spec(1, "a")).await;
    let env = vec![("A".to_owned(), "1 2".to_owned()), ("Z".to_owned(), String::new())];
    let (output, _) = run(&*sandbox, &Command { env, ..command(&*sandbox, "/usr/bin/env") }, "").await;
    let lines: Vec<_> = output.lines().filter(|line| !line.starts_with(VARIABLE)).collect();
    assert_eq!(lines, ["A=1 2", "Z="]);
    assert_eq!(output.lines().count(), 3, "the mark, and nothing else, comes on top: {output}");
}

#[tokio::test]
async fn a_process_is_confined() {
    let world = World::new();
    let sandbox = acquire(&world.process(), &world.spec(1, "a")).await;
    // A descriptor that does not close at exec, as a careless library would leave it.
    let careless = std::fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).unwrap();
    let text = "umask; ulimit -c; pwd; ls -m /proc/$$/fd; \
                cut -d' ' -f1,5,6 /proc/$$/stat; echo $$";
    let (output, _) = run(&*sandbox, &script(&*sandbox, text), "").await;
    drop(careless);
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines[0], "0077");
    assert_eq!(lines[1], "0");
    assert_eq!(lines[2], sandbox.place().workspace.to_str().unwrap());
    assert_eq!(lines[3], "0, 1, 2");
    let own = lines[5];
    assert_eq!(lines[4], format!("{own} {own} {own}"), "it leads its own group and session");
}

#[tokio::test]
async fn a_kill_ends_the_descendants() {
    let world = World::new();
    let sandbox = acquire(&world.process(), &world.spec(1, "a")).await;
    let (mut process, all) = tree(&*sandbox).await;
    assert!(all.iter().all(|one| !one.ended()));
    process.control.kill();
    assert_eq!(process.control.wait().await.signal, Some(9));
    assert!(all.iter().all(Watched::ended));
}

#[tokio::test]
async fn an_end_of_its_own_ends_the_descendants() {
    let world = World::new();
    let sandbox = acquire(&world.process(), &world.spec(1, "a")).await;
    let text = "setsid sleep 1000 & echo $!; sleep 1001 & echo $!; read line; exit 3";
    let mut process = sandbox.spawn(&script(&*sandbox, text)).await.unwrap();
    let all = [Watched::new(&line(&mut process).await), Watched::new(&line(&mut process).await)];
    process.stdin.write_all(b"\n").await.unwrap();
    assert_eq!(process.control.wait().await.status, Some(3));
    assert!(all.iter().all(Watched::ended));
    let mut rest = String::new();
    process.stdout.read_to_string(&mut rest).await.unwrap();
}

#[tokio::test]
async fn a_drop_ends_the_descendants() {
    let world = World::new();
    let sandbox = acquire(&world.process(), &world.spec(1, "a")).await;
    let (process, all) = tree(&*sandbox).await;
    drop(process);
    all.iter().for_each(Watched::wait);
}

#[tokio::test]
async fn dropping_everything_ends_everything() {
    let world = World::new();
    let driver = world.process();
    let sandbox = acquire(&driver, &world.spec(1, "a")).await;
    let (process, all) = tree(&*sandbox).await;
    drop(driver);
    drop(sandbox);
    assert!(!all[0].ended(), "a process lives as long as its handle");
    drop(process);
    assert!(all.iter().all(Watched::ended), "the last handle waits for all of them");
}

#[tokio::test]
async fn one_process_ends_without_the_others() {
    let world = World::new();
    let sandbox = acquire(&world.process(), &world.spec(1, "a")).await;
    let (mut first, _) = tree(&*sandbox).await;
    let (_second, others) = tree(&*sandbox).await;
    first.control.kill();
    first.control.wait().await;
    assert!(others.iter().all(|one| !one.ended()));
}

#[tokio::test]
async fn erasing_ends_the_descendants() {
    let world = World::new();
    let driver = world.process();
    let sandbox = acquire(&driver, &world.spec(1, "a")).await;
    let (_process, mut all) = tree(&*sandbox).await;
    // This one has neither the group nor the mark, but its parents live.
    let text = "setsid env -i /bin/sh -c 'echo $$; exec sleep 1000'; read line";
    let mut other = sandbox.spawn(&script(&*sandbox, text)).await.unwrap();
    all.push(Watched::new(&line(&mut other).await));
    karta_sandbox::Driver::erase(&driver, crate::support::session(1)).await.unwrap();
    let ended = all.iter().all(Watched::ended);
    all.iter().for_each(Watched::kill);
    assert!(ended);
    assert!(!world.place(1).exists());
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_nothing() {
    let world = World::new();
    let sandbox = acquire(&world.process(), &world.spec(1, "a")).await;
    let file = sandbox.place().temp.join("pid");
    let command =
        script(&*sandbox, &format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000", file.display()));
    tokio::select! {
        biased;
        started = sandbox.spawn(&command) => drop(started.unwrap()),
        () = std::future::ready(()) => {}
    }
    // The end of a later process, all ends being seen in one place, comes after the other was asked to end.
    run(&*sandbox, &script(&*sandbox, "true"), "").await;
    if let Ok(pid) = std::fs::read_to_string(file) {
        Watched::new(&pid).wait();
    }
}

#[tokio::test]
async fn a_missing_folder_is_told_from_a_missing_program() {
    let world = World::new();
    let sandbox = acquire(&world.process(), &world.spec(1, "a")).await;
    let cwd = sandbox.place().workspace.join("none");
    let error = sandbox.spawn(&Command { cwd, ..command(&*sandbox, "copy") }).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("working directory"), "{source}");
}

#[tokio::test]
async fn a_port_can_be_reached() {
    let world = World::new();
    let sandbox = acquire(&world.process(), &world.spec(1, "a")).await;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut stream = sandbox.connect(port).await.unwrap();
    let (mut inside, _) = listener.accept().await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut bytes = [0; 5];
    inside.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"hello");
    drop((listener, inside));
    assert!(sandbox.connect(port).await.is_err());
}

#[tokio::test]
async fn a_root_that_is_no_folder_is_named() {
    let world = World::new();
    std::fs::write(world.root(), "").unwrap();
    let error = karta_sandbox::Driver::check(&world.process()).await.unwrap_err().to_string();
    assert!(
        error.contains(world.root().to_str().unwrap()) && error.contains("another data directory"),
        "{error}"
    );
    std::fs::remove_file(world.root()).unwrap();
    karta_sandbox::Driver::check(&world.process()).await.unwrap();
    let mode = std::fs::metadata(world.root()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(std::fs::read_dir(world.root()).unwrap().count(), 0, "the check leaves nothing");
}
