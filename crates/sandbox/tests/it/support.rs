//! Drivers, releases and processes to try.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use karta_sandbox::{Command, Driver, Exit, Process, Sandbox, Spec, fake, process};
use karta_types::rng::Seeded;
use karta_types::time::{Fixed, Timestamp};
use karta_types::{Clock, Rng, SessionId};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub(crate) fn clock() -> Arc<dyn Clock> {
    Arc::new(Fixed::new(Timestamp::from_micros(1_000_000)))
}

pub(crate) fn rng() -> Arc<dyn Rng> {
    Arc::new(karta_types::rng::System)
}

pub(crate) fn session(number: u128) -> SessionId {
    SessionId::from_u128(number)
}

/// A folder with a release and a folder for the places.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = Self { folder };
        fs::create_dir(world.release()).unwrap();
        world.write("CLAUDE.md", "be brief\n");
        world.write("agents/one.md", "first\n");
        world
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("sessions")
    }

    pub(crate) fn release(&self) -> PathBuf {
        self.folder.path().join("release")
    }

    pub(crate) fn write(&self, path: &str, content: &str) {
        let path = self.release().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn spec(&self, number: u128, digest: &str) -> Spec {
        Spec::new(session(number), self.release(), digest.to_owned())
    }

    pub(crate) fn place(&self, number: u128) -> PathBuf {
        self.root().join(session(number).to_string())
    }

    pub(crate) fn process(&self) -> process::Driver {
        process::Driver::new(self.root(), programs(), clock(), rng()).unwrap()
    }
}

/// Programs by name.
pub(crate) fn programs() -> HashMap<String, (PathBuf, Vec<String>)> {
    let sh =
        |script: &str| (PathBuf::from("/bin/sh"), vec!["-c".to_owned(), script.to_owned(), "sh".to_owned()]);
    HashMap::from([
        ("copy".to_owned(), sh("exec cat")),
        ("seven".to_owned(), sh("exit 7")),
        ("forever".to_owned(), sh("exec sleep 1000")),
    ])
}

/// The same programs as functions.
pub(crate) fn fake() -> fake::Driver {
    let copy: fake::Program = Arc::new(|mut call| {
        Box::pin(async move {
            let _ = tokio::io::copy(&mut call.stdin, &mut call.stdout).await;
            Exit { status: Some(0), signal: None }
        })
    });
    let seven: fake::Program = Arc::new(|_| Box::pin(async { Exit { status: Some(7), signal: None } }));
    let forever: fake::Program = Arc::new(|call| {
        Box::pin(async move {
            let _call = call;
            std::future::pending().await
        })
    });
    let programs = HashMap::from(
        [("copy", copy), ("seven", seven), ("forever", forever)].map(|(name, f)| (name.to_owned(), f)),
    );
    fake::Driver::new(programs, clock(), Arc::new(Seeded::new(1)))
}

pub(crate) async fn acquire(driver: &dyn Driver, spec: &Spec) -> Box<dyn Sandbox> {
    driver.acquire(spec).await.unwrap()
}

/// A command by the name of a program.
pub(crate) fn command(sandbox: &dyn Sandbox, program: &str) -> Command {
    Command {
        program: program.to_owned(),
        args: Vec::new(),
        env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
        cwd: sandbox.place().workspace.clone(),
    }
}

/// A shell script.
pub(crate) fn script(sandbox: &dyn Sandbox, text: &str) -> Command {
    let args = vec!["-c".to_owned(), text.to_owned()];
    Command { args, ..command(sandbox, "/bin/sh") }
}

/// Runs a program to its end.
pub(crate) async fn run(sandbox: &dyn Sandbox, command: &Command, input: &str) -> (String, Exit) {
    let mut process = sandbox.spawn(command).await.unwrap();
    process.stdin.write_all(input.as_bytes()).await.unwrap();
    process.stdin.shutdown().await.unwrap();
    drop(process.stdin);
    let mut output = String::new();
    process.stdout.read_to_string(&mut output).await.unwrap();
    (output, process.control.wait().await)
}

/// Reads one line of output.
pub(crate) async fn line(process: &mut Process) -> String {
    let mut line = Vec::new();
    loop {
        let byte = process.stdout.read_u8().await.expect("a line");
        if byte == b'\n' {
            return String::from_utf8(line).unwrap();
        }
        line.push(byte);
    }
}

/// A process watched from outside.
pub(crate) struct Watched(Option<OwnedFd>);

impl Watched {
    pub(crate) fn new(pid: &str) -> Self {
        let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        Self(rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok())
    }

    fn ended_within(&self, seconds: i64) -> bool {
        let Some(process) = &self.0 else { return true };
        let mut poll = [PollFd::new(process, PollFlags::IN)];
        rustix::event::poll(&mut poll, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).unwrap() == 1
    }

    /// Whether it has ended.
    pub(crate) fn ended(&self) -> bool {
        self.ended_within(0)
    }

    /// Ends it, where the driver can't.
    pub(crate) fn kill(&self) {
        if let Some(process) = &self.0 {
            let _ = rustix::process::pidfd_send_signal(process, rustix::process::Signal::KILL);
        }
    }

    /// Waits for its end; fails the test if it doesn't come.
    pub(crate) fn wait(&self) {
        assert!(self.ended_within(30), "the process did not end");
    }
}

/// All paths under a folder with what they are and hold.
pub(crate) fn tree(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder_now) = folders.pop() {
        for entry in fs::read_dir(folder_now).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(folder).unwrap().to_owned();
            if meta.is_dir() {
                folders.push(path);
                found.push((name, "folder".to_owned()));
            } else if meta.is_symlink() {
                found.push((name, format!("-> {}", fs::read_link(&path).unwrap().display())));
            } else {
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// All paths under a folder, from it.
pub(crate) fn paths(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(now) = folders.pop() {
        for entry in fs::read_dir(now).unwrap().map(Result::unwrap) {
            found.push(entry.path().strip_prefix(folder).unwrap().to_owned());
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    found
}

/// Sandboxes come and go in every way while the driver is reaped again and again: none that is in use is touched, and nothing that
/// is on its way out counts as left behind.
pub(crate) async fn reaped_meanwhile(driver: &dyn Driver, world: &World, rounds: u128) {
    let over = std::sync::atomic::AtomicBool::new(false);
    let order = std::sync::atomic::Ordering::Relaxed;
    let come_and_go = |number: u128| async move {
        let parked = world.folder.path().join(format!("parked-{number}"));
        let key = karta_sandbox::ParkKey::random(&*rng());
        for round in 0..rounds {
            let spec = world.spec(number, "a");
            let sandbox = acquire(driver, &spec).await;
            sandbox.put(Path::new("note"), b"kept").await.unwrap();
            tokio::task::yield_now().await;
            let text = "cat \"$HOME/note\" || cat /home/agent/note";
            let (said, exit) = run(&*sandbox, &script(&*sandbox, text), "").await;
            assert!(exit.status == Some(0) && said.contains("kept"), "{exit:?} {said}");
            match round % 4 {
                0 if sandbox.parks() => {
                    sandbox.park(&parked, &key).await.unwrap();
                    drop(sandbox);
                    let revived = driver.revive(&spec, &parked, &key).await.unwrap().sandbox;
                    assert_eq!(revived.find("note", 9).await.unwrap().len(), 1);
                    revived.close().await.unwrap();
                }
                0 | 1 => sandbox.close().await.unwrap(),
                2 => drop(sandbox),
                _ => driver.erase(spec.session).await.unwrap(),
            }
        }
    };
    let reap = async {
        let mut times = 0;
        while !over.load(order) {
            assert_eq!(driver.reap(&|_| true).await.unwrap(), 0);
            times += 1;
            tokio::task::yield_now().await;
        }
        times
    };
    let work = async {
        tokio::join!(come_and_go(1), come_and_go(2));
        over.store(true, order);
    };
    let (times, ()) = tokio::join!(reap, work);
    assert!(times > 0, "it was never reaped");
}
