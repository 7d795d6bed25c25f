//! The host's side of a jail: a child process, the launcher, that makes it and that lives as long as it.
//!
//! The launcher is the program `karta-guest`, which is a part of this one and is run from sealed memory: it needs no file, and
//! nothing in a jail can change it. A [`Jail`] holds the stream that keeps the jail alive. Dropping it ends everything in there,
//! and so does the end of the server, however it ends.

use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream as Stream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use karta_guest::jail::{DESCRIPTORS, LINE, News, Plan};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::watch;

use crate::cgroup::Group;
use crate::{Error, Exit};

/// The program for the inside, and for the launcher.
const PROGRAM: &[u8] = include_bytes!(env!("KARTA_GUEST"));

/// How long making a jail may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Starts jails.
#[derive(Debug)]
pub(crate) struct Launcher {
    program: OwnedFd,
}

/// What goes into a jail besides its plan.
#[derive(Default)]
pub(crate) struct Given {
    /// The descriptors that the plan speaks of.
    descriptors: Vec<OwnedFd>,
    /// The group that the plan joins. It is removed when the jail has ended.
    group: Option<Group>,
    /// What is to be done on the host when everything in the jail has ended. It may block.
    afterwards: Option<Box<dyn FnOnce() + Send>>,
}

impl Given {
    /// All of it.
    pub(crate) fn new(
        descriptors: Vec<OwnedFd>,
        group: Option<Group>,
        afterwards: Option<Box<dyn FnOnce() + Send>>,
    ) -> Self {
        Self { descriptors, group, afterwards }
    }
}

impl Drop for Given {
    /// What no jail has taken, or whose jail has ended, goes.
    fn drop(&mut self) {
        if self.group.take().is_some_and(|group| !group.remove()) {
            tracing::warn!("a control group of a sandbox could not be removed; it is tried again later");
        }
        if let Some(afterwards) = self.afterwards.take() {
            afterwards();
        }
    }
}

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Given").field("group", &self.group).finish_non_exhaustive()
    }
}

/// A jail that runs. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Jail {
    lifeline: Mutex<Option<UnixStream>>,
    pid: u32,
    landlock: u32,
    end: watch::Receiver<Option<Exit>>,
}

/// What the program in a jail writes, until it ends.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) stdout: ChildStdout,
    pub(crate) stderr: ChildStderr,
}

impl Launcher {
    /// Prepares the program.
    pub(crate) fn new() -> Result<Self, Error> {
        let prepare = || -> io::Result<OwnedFd> {
            let open = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            // Older kernels don't know the flag and need none.
            let file = match rustix::fs::memfd_create("karta-guest", open | MemfdFlags::EXEC) {
                Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create("karta-guest", open)?,
                other => other?,
            };
            let mut file = std::fs::File::from(file);
            file.write_all(PROGRAM)?;
            let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
            rustix::fs::fcntl_add_seals(&file, seals)?;
            Ok(file.into())
        };
        prepare().map(|program| Self { program }).map_err(|error| {
            Error::Unavailable(format!("the program that makes jails can't be run from memory ({error})"))
        })
    }

    /// Makes a jail and starts its program. What was given is gone if that fails, the group too.
    pub(crate) async fn start(&self, plan: &Plan, given: Given) -> Result<(Jail, Output), Error> {
        let mut given = given;
        let descriptors = std::mem::take(&mut given.descriptors);
        let started = self.spawn(plan, &descriptors);
        // The launcher has its own now.
        drop(descriptors);
        let (stream, child, output) = match started {
            Ok(started) => started,
            Err(source) => {
                discard(given).await;
                return Err(Error::Spawn { program: "karta-guest".to_owned(), source });
            }
        };
        let (tell, end) = watch::channel(None);
        watch_end(child, given, tell);
        let mut jail = Jail { lifeline: Mutex::default(), pid: 0, landlock: 0, end };
        let mut lifeline = stream;
        let news = tokio::time::timeout(PATIENCE, hear(&mut lifeline)).await;
        let failed = match news {
            Ok(Ok(News::Running { pid, landlock })) => {
                tracing::debug!(pid, landlock, name = plan.name, "a jail runs");
                (jail.pid, jail.landlock) = (pid, landlock);
                jail.lifeline = Mutex::new(Some(lifeline));
                return Ok((jail, output));
            }
            Ok(Ok(News::Failed { error, doing })) => {
                format!("{doing} failed ({})", io::Error::from_raw_os_error(error))
            }
            Ok(Err(error)) => format!("its launcher ended without a word ({error})"),
            Err(_) => format!("it was not made within {} seconds", PATIENCE.as_secs()),
        };
        drop(lifeline);
        jail.wait().await;
        Err(Error::Unavailable(format!("the jail could not be made: {failed}")))
    }

    fn spawn(&self, plan: &Plan, descriptors: &[OwnedFd]) -> io::Result<(UnixStream, Child, Output)> {
        let plan = plan.encode().ok_or_else(|| io::Error::other("the plan of the jail is too big"))?;
        let (mut host, launcher) = Stream::pair()?;
        // All of it fits into the stream before anybody reads.
        let length = u32::try_from(plan.len()).map_err(io::Error::other)?.to_le_bytes();
        let borrowed: Vec<_> = descriptors.iter().map(|one| one.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
            return Err(io::Error::other("too many descriptors for a jail"));
        }
        host.set_nonblocking(true)?;
        rustix::net::sendmsg(&host, &[IoSlice::new(&length)], &mut ancillary, SendFlags::NOSIGNAL)?;
        host.write_all(&plan)?;
        let mut child = Command::new(format!("/proc/self/fd/{}", self.program.as_raw_fd()))
            .arg0("karta-guest")
            .arg("jail")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(launcher)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(io::Error::other("a pipe is missing"));
        };
        Ok((UnixStream::from_std(host)?, child, Output { stdout, stderr }))
    }
}

impl Jail {
    /// The first process in it, as the host counts.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The version of Landlock that holds it; 0 if none does.
    #[cfg(test)]
    pub(crate) fn landlock(&self) -> u32 {
        self.landlock
    }

    /// Ends everything in it.
    pub(crate) fn kill(&self) {
        drop(self.lifeline.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Whether everything in it has ended.
    pub(crate) fn ended(&self) -> bool {
        self.end.borrow().is_some()
    }

    /// Waits for the end of everything in it, and of its control group. A program that a signal has ended counts as one that ended
    /// with 128 and the signal's number.
    pub(crate) async fn wait(&self) -> Exit {
        let gone = Exit { status: None, signal: None };
        self.end.clone().wait_for(Option::is_some).await.ok().and_then(|exit| *exit).unwrap_or(gone)
    }
}

/// The launcher's first line.
async fn hear(stream: &mut UnixStream) -> io::Result<News> {
    let mut line = Vec::new();
    loop {
        let byte = stream.read_u8().await?;
        if byte == b'\n' {
            break;
        }
        line.push(byte);
        if line.len() > LINE {
            break;
        }
    }
    let line = String::from_utf8_lossy(&line);
    News::read(&line).ok_or_else(|| io::Error::other("it said something else than a launcher does"))
}

/// Waits for the launcher, which removes the group itself unless it was killed.
#[expect(
    clippy::disallowed_methods,
    reason = "it ends with the jail, which ends with the server: nothing has to wait for it"
)]
fn watch_end(mut child: Child, given: Given, tell: watch::Sender<Option<Exit>>) {
    tokio::spawn(async move {
        let status = child.wait().await.ok();
        discard(given).await;
        let signal = status.and_then(|status| status.signal());
        tell.send_replace(Some(Exit { status: status.and_then(|status| status.code()), signal }));
    });
}

async fn discard(given: Given) {
    // What it does when it is dropped may block.
    let _ = tokio::task::spawn_blocking(move || drop(given)).await;
}

#[cfg(test)]
mod tests;
