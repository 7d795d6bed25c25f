//! Where harness processes run.
//!
//! A [`Driver`] makes [`Sandbox`]es; a sandbox holds one session's place (home, temporary folder, a private copy of the release)
//! and runs its processes. All `unsafe` code of the platform lives in this crate (and in the guest). To add a driver: a folder
//! here and one line in [`registry`].

mod cgroup;
pub mod fake;
pub mod guest;
mod ids;
pub mod image;
mod jail;
pub mod limits;
mod live;
pub mod microvm;
pub mod namespace;
pub mod paths;
pub mod process;
pub mod registry;
mod sealed;
mod seccomp;
pub mod state;
pub mod uplink;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use karta_types::session::Isolation;
use karta_types::{SandboxId, SessionId};
use tokio::io::{AsyncRead, AsyncWrite};

pub use sealed::ParkKey;

/// What went wrong with a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host can't give what was asked for.
    #[error("this isolation is not available here: {0}")]
    Unavailable(String),
    /// A file operation of the platform itself failed.
    #[error("{doing} `{path}`", path = path.display())]
    File {
        /// What was being done: "copying the release to".
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A program did not start.
    #[error("starting `{program}`")]
    Spawn {
        /// The program.
        program: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A port inside the sandbox did not answer.
    #[error("connecting to port {port} inside the sandbox")]
    Connect {
        /// The port.
        port: u16,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A path leads out of the session's place.
    #[error("`{0}` leads out of the session's place")]
    Escape(String),
}

impl Error {
    /// Whether the disk is full (or the quota reached).
    pub fn is_full(&self) -> bool {
        let (Self::File { source, .. } | Self::Spawn { source, .. }) = self else { return false };
        matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What a session needs of a sandbox.
#[derive(Clone)]
pub struct Spec {
    /// The session.
    pub session: SessionId,
    /// The release's files on the host: read, never written.
    pub release: PathBuf,
    /// The release's digest. When the place holds another release, its files are brought up to this one: what the session
    /// changed itself stays.
    pub digest: String,
    /// The folder of the installed harness on the host: read, never written. None where the program needs none.
    pub harness: Option<PathBuf>,
    /// Where the streams that come out of the sandbox go.
    pub uplink: Arc<dyn uplink::Uplink>,
}

impl Spec {
    /// One for a session on a release, without a harness and without a way out.
    pub fn new(session: SessionId, release: PathBuf, digest: String) -> Self {
        Self { session, release, digest, harness: None, uplink: Arc::new(uplink::Nowhere) }
    }
}

impl std::fmt::Debug for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spec")
            .field("session", &self.session)
            .field("release", &self.release)
            .field("digest", &self.digest)
            .field("harness", &self.harness)
            .finish_non_exhaustive()
    }
}

/// The session's place as its processes see it: absolute paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The private copy of the release; the working directory.
    pub workspace: PathBuf,
    /// The home; the harness keeps its history here.
    pub home: PathBuf,
    /// Temporary files.
    pub temp: PathBuf,
    /// The folder of the installed harness; none if [`Spec::harness`] was none.
    pub harness: Option<PathBuf>,
}

/// A program to run. The environment is complete: nothing is inherited.
#[derive(Debug, Clone)]
pub struct Command {
    /// The program.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Its working directory.
    pub cwd: PathBuf,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit status; none when a signal ended it.
    pub status: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// A running process. Dropping it kills its whole group.
pub struct Process {
    /// Its standard input. Dropping it closes it.
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    /// Its standard output.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Its standard error.
    pub stderr: Box<dyn AsyncRead + Send + Unpin>,
    /// Its end and its death.
    pub control: Box<dyn Control>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process").finish_non_exhaustive()
    }
}

/// The handle that ends a process. Dropping it kills the process and everything it started.
#[async_trait]
pub trait Control: Send + Sync {
    /// Waits for the end. May be called again after it was cancelled or had answered.
    async fn wait(&mut self) -> Exit;
    /// Asks the whole group to end (SIGTERM). No error if it is gone.
    fn terminate(&self);
    /// Ends the whole group at once (SIGKILL). No error if it is gone.
    fn kill(&self);
    /// The process id on the host, where there is one.
    fn pid(&self) -> Option<u32>;
}

/// A stream to a port inside a sandbox.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A sandbox that goes on, with the processes that ran in it, in the order of their start.
pub struct Revived {
    /// The sandbox.
    pub sandbox: Box<dyn Sandbox>,
    /// Its processes.
    pub processes: Vec<Process>,
}

/// Makes sandboxes.
#[async_trait]
pub trait Driver: Send + Sync {
    /// Its name in the configuration: `process`.
    fn id(&self) -> &'static str;
    /// How strongly its sandboxes are kept apart.
    fn isolation(&self) -> Isolation;
    /// Whether it works here, with the reason if it doesn't.
    async fn check(&self) -> Result<(), Error>;
    /// What whoever runs the server should know of how it works here: nothing is wrong, but something could be better.
    async fn notes(&self) -> Vec<String> {
        Vec::new()
    }
    /// Whether a place is kept on this host when nothing runs in it. If not, it ends with the last handle of its sandbox, and what
    /// should outlive it must be taken out before, see [`Sandbox::survey`].
    fn keeps(&self) -> bool {
        true
    }
    /// The session's sandbox: its place made, or found and brought up to the release. Where it runs already on the same release,
    /// another handle of the same.
    async fn acquire(&self, spec: &Spec) -> Result<Box<dyn Sandbox>, Error>;
    /// Goes on where [`Sandbox::park`] stopped, also on another start of the server, if it is as it was written and the key is the same.
    /// What was saved is used up, also on failure.
    async fn revive(&self, _spec: &Spec, _from: &Path, _key: &ParkKey) -> Result<Revived, Error> {
        Err(Error::Unavailable("this driver can't save what runs".to_owned()))
    }
    /// Removes every place of a session for good. No error if there is none.
    async fn erase(&self, session: SessionId) -> Result<(), Error>;
    /// Ends what a crash left behind: every place whose session `keep` does not know. Answers how many.
    ///
    /// It may be called at any time, while sandboxes are made, used and ended. `keep` has to know every session that had a sandbox
    /// when the call was made: those of sandboxes made later are left alone.
    async fn reap(
        &self,
        keep: &(dyn for<'a> Fn(&'a SessionId) -> bool + Send + Sync),
    ) -> Result<usize, Error>;
}

/// One session's sandbox.
#[async_trait]
pub trait Sandbox: Send + Sync {
    /// Its id.
    fn id(&self) -> SandboxId;
    /// Its place.
    fn place(&self) -> &Place;
    /// Files of the session that differ from the release it was brought up to, because the session had changed them.
    fn kept(&self) -> &[String];
    /// Whether this handle made the place: nothing of the session is in it yet.
    fn fresh(&self) -> bool {
        false
    }
    /// Where a program inside reaches a service of the host; none where it is simply on the host.
    fn service(&self, _service: uplink::Service) -> Option<SocketAddr> {
        None
    }
    /// Everything that the session has made or changed, folders before what they hold, sorted by path.
    async fn survey(&self) -> Result<Vec<state::Entry>, Error> {
        Err(Error::Unavailable("this driver keeps the place itself".to_owned()))
    }
    /// These things (paths of a survey) with their content. What is gone meanwhile is left out; what changed meanwhile is as it is
    /// then, never more bytes than its entry says.
    async fn take(&self, _paths: Vec<PathBuf>) -> Result<state::Records, Error> {
        Err(Error::Unavailable("this driver keeps the place itself".to_owned()))
    }
    /// Puts things where they were.
    async fn restore(&self, _records: state::Records) -> Result<(), Error> {
        Err(Error::Unavailable("this driver keeps the place itself".to_owned()))
    }
    /// Whether [`Sandbox::pause`] works.
    fn pauses(&self) -> bool {
        false
    }
    /// Stops everything inside until [`Sandbox::wake`]: no instruction runs. No error if it is stopped already.
    async fn pause(&self) -> Result<(), Error> {
        Err(Error::Unavailable("this driver can't pause".to_owned()))
    }
    /// Whether [`Sandbox::park`] works.
    fn parks(&self) -> bool {
        false
    }
    /// The most bytes that [`Sandbox::park`] writes now.
    fn park_bytes(&self) -> u64 {
        0
    }
    /// Saves everything inside, its processes and their memory too, into this folder (made; must not exist), sealed with a key that
    /// nothing else was sealed with, and ends the sandbox: what the processes had written before is read to its end as always, and
    /// nothing more comes. On failure the folder is gone again and everything goes on, or the sandbox has ended too, which shows as the
    /// end of its processes.
    async fn park(&self, _into: &Path, _key: &ParkKey) -> Result<(), Error> {
        Err(Error::Unavailable("this driver can't save what runs".to_owned()))
    }
    /// Lets everything inside go on.
    async fn wake(&self) -> Result<(), Error> {
        Ok(())
    }
    /// Ends everything inside and waits until nothing of it is left on the host. Dropping the last handle does the same without
    /// waiting. A driver that [keeps](Driver::keeps) places keeps the files.
    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
    /// Starts a process. Everything it starts ends with it, and with the server.
    async fn spawn(&self, command: &Command) -> Result<Process, Error>;
    /// Connects to a loopback port inside the sandbox.
    async fn connect(&self, port: u16) -> Result<Box<dyn Duplex>, Error>;
    /// Writes a file under the place (folders are made; an existing file is replaced).
    async fn put(&self, path: &Path, content: &[u8]) -> Result<(), Error>;
    /// Reads the files under the place that match `pattern` (relative to the home, one `*` for one folder level), newest first,
    /// each at most `limit` bytes.
    async fn find(&self, pattern: &str, limit: u64) -> Result<Vec<(PathBuf, Vec<u8>)>, Error>;
    /// Copies the workspace as it is now into an empty folder of the host. Links that lead out of it stay behind.
    async fn export(&self, into: &Path) -> Result<(), Error>;
}
