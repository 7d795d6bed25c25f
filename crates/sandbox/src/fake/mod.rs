//! The driver `fake`: programs are functions, pipes and files are in memory, nothing touches the disk.
//!
//! For tests, for faults on request, and for measuring the platform alone: a process is one task, a pipe one lock.

mod control;
mod faults;
mod files;
mod freezer;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use karta_types::session::Isolation;
use karta_types::{Clock, Rng, SandboxId, SessionId};
use tokio::io::{AsyncWrite, DuplexStream};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

pub use faults::Faults;
pub use files::Files;
pub use freezer::Freezer;

use crate::uplink::Service;
use crate::{Command, Duplex, Error, Exit, ParkKey, Place, Process, Revived, Spec, state};
use control::Task;

/// How many bytes a pipe holds. The memory is taken only as it is used.
const PIPE: usize = 256 << 10;
/// Where the places seem to be. Nothing is there.
const ROOT: &str = "/karta";

/// What a program is called with.
pub struct Call {
    /// The command, its environment and arguments as given.
    pub command: Command,
    /// What the platform writes. Ends when it drops its end.
    pub stdin: DuplexStream,
    /// What the platform reads. Dropping it ends the stream.
    pub stdout: Box<dyn AsyncWrite + Send + Unpin>,
    /// What the platform reads as errors.
    pub stderr: DuplexStream,
    /// The files of the session's place.
    pub files: Files,
}

/// A program: a function that plays a process. Its end is the process's end; a kill drops its future.
pub type Program = Arc<dyn Fn(Call) -> BoxFuture<'static, Exit> + Send + Sync>;

/// Runs functions as if they were processes.
pub struct Driver {
    programs: Arc<HashMap<String, Program>>,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    faults: Faults,
    keeps: bool,
    confines: bool,
    freezer: Option<Freezer>,
    spaces: Mutex<HashMap<SessionId, Held>>,
}

/// A session's space: where places are kept, by the driver too; else by its sandboxes alone.
struct Held {
    space: Weak<Space>,
    _kept: Option<Arc<Space>>,
}

/// What a session has.
struct Space {
    id: SandboxId,
    files: Files,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Space {
    fn end(&self) {
        for task in lock(&self.tasks).drain(..) {
            task.abort();
        }
        self.files.close();
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.end();
    }
}

impl Driver {
    /// A driver with these programs.
    pub fn new(programs: HashMap<String, Program>, clock: Arc<dyn Clock>, rng: Arc<dyn Rng>) -> Self {
        Self {
            programs: Arc::new(programs),
            clock,
            rng,
            faults: Faults::default(),
            keeps: true,
            confines: false,
            freezer: None,
            spaces: Mutex::default(),
        }
    }

    /// As drivers with machines are: a place ends with the last handle of its sandbox, and everything in it.
    #[must_use]
    pub const fn forgetful(mut self) -> Self {
        self.keeps = false;
        self
    }

    /// As drivers are that keep sessions from the network: its sandboxes say that they have a way out. Nothing comes by it.
    #[must_use]
    pub const fn confining(mut self) -> Self {
        self.confines = true;
        self
    }

    /// As drivers are that can save what runs: it goes into this freezer.
    #[must_use]
    pub fn freezing(mut self, freezer: Freezer) -> Self {
        self.freezer = Some(freezer);
        self
    }

    /// The handle by which a test makes things go wrong.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    fn remove(&self, session: SessionId) -> bool {
        let held = lock(&self.spaces).remove(&session);
        let Some(space) = held.and_then(|held| held.space.upgrade()) else { return false };
        space.end();
        true
    }
}

#[async_trait]
impl crate::Driver for Driver {
    fn id(&self) -> &'static str {
        "fake"
    }

    fn isolation(&self) -> Isolation {
        if self.confines { Isolation::Namespace } else { Isolation::None }
    }

    async fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    fn keeps(&self) -> bool {
        self.keeps
    }

    async fn acquire(&self, spec: &Spec) -> Result<Box<dyn crate::Sandbox>, Error> {
        let home = PathBuf::from(format!("{ROOT}/{}/home", spec.session));
        let temp = home.with_file_name("tmp");
        self.faults.acquire().map_err(|source| Error::File {
            doing: "preparing the place",
            path: home.clone(),
            source,
        })?;
        let place = Place { workspace: spec.release.clone(), home, temp, harness: spec.harness.clone() };
        let bases = [&place.home, &place.temp, &place.workspace].map(Clone::clone);
        let (space, fresh) = {
            let mut spaces = lock(&self.spaces);
            spaces.retain(|_, held| held.space.strong_count() > 0);
            let known = spaces.get(&spec.session).and_then(|held| held.space.upgrade());
            if let Some(space) = known.filter(|space| !space.files.closed()) {
                (space, false)
            } else {
                let space = Arc::new(Space {
                    id: SandboxId::new(&*self.clock, &*self.rng),
                    files: Files::new(bases, Arc::clone(&self.clock)),
                    tasks: Mutex::default(),
                });
                let kept = self.keeps.then(|| Arc::clone(&space));
                spaces.insert(spec.session, Held { space: Arc::downgrade(&space), _kept: kept });
                (space, true)
            }
        };
        Ok(Box::new(Sandbox {
            programs: Arc::clone(&self.programs),
            faults: self.faults.clone(),
            space,
            place,
            fresh,
            keeps: self.keeps,
            confines: self.confines,
            freezer: self.freezer.clone(),
            held: Mutex::default(),
        }))
    }

    async fn revive(&self, spec: &Spec, from: &Path, key: &ParkKey) -> Result<Revived, Error> {
        let frozen = self.freezer.as_ref().and_then(|freezer| freezer.take(from, key));
        let freezer::Thawed { space, programs } = frozen.ok_or_else(|| {
            Error::Unavailable(
                "nothing is saved there under this key: the server that had it in its memory is gone"
                    .to_owned(),
            )
        })?;
        let home = PathBuf::from(format!("{ROOT}/{}/home", spec.session));
        let temp = home.with_file_name("tmp");
        let place = Place { workspace: spec.release.clone(), home, temp, harness: spec.harness.clone() };
        let kept = self.keeps.then(|| Arc::clone(&space));
        lock(&self.spaces).insert(spec.session, Held { space: Arc::downgrade(&space), _kept: kept });
        let (held, processes) = programs.into_iter().unzip();
        let sandbox = Sandbox {
            programs: Arc::clone(&self.programs),
            faults: self.faults.clone(),
            space,
            place,
            fresh: false,
            keeps: self.keeps,
            confines: self.confines,
            freezer: self.freezer.clone(),
            held: Mutex::new(held),
        };
        Ok(Revived { sandbox: Box::new(sandbox), processes })
    }

    async fn erase(&self, session: SessionId) -> Result<(), Error> {
        self.remove(session);
        Ok(())
    }

    async fn reap(
        &self,
        keep: &(dyn for<'a> Fn(&'a SessionId) -> bool + Send + Sync),
    ) -> Result<usize, Error> {
        let lost: Vec<SessionId> =
            lock(&self.spaces).keys().filter(|session| !keep(session)).copied().collect();
        Ok(lost.into_iter().filter(|session| self.remove(*session)).count())
    }
}

struct Sandbox {
    programs: Arc<HashMap<String, Program>>,
    faults: Faults,
    space: Arc<Space>,
    place: Place,
    fresh: bool,
    keeps: bool,
    confines: bool,
    freezer: Option<Freezer>,
    held: Mutex<Vec<freezer::Held>>,
}

#[async_trait]
impl crate::Sandbox for Sandbox {
    fn id(&self) -> SandboxId {
        self.space.id
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn kept(&self) -> &[String] {
        &[]
    }

    fn fresh(&self) -> bool {
        self.fresh
    }

    fn service(&self, service: Service) -> Option<SocketAddr> {
        let out = self.confines && matches!(service, Service::Egress);
        out.then(|| (Ipv4Addr::LOCALHOST, service.port()).into())
    }

    async fn survey(&self) -> Result<Vec<state::Entry>, Error> {
        self.faults.survey().map_err(|source| Error::File {
            doing: "surveying",
            path: self.place.home.clone(),
            source,
        })?;
        self.space.files.survey()
    }

    async fn take(&self, paths: Vec<PathBuf>) -> Result<state::Records, Error> {
        Ok(Box::pin(futures_util::stream::iter(self.space.files.take(&paths)?.into_iter().map(Ok))))
    }

    async fn restore(&self, records: state::Records) -> Result<(), Error> {
        self.space.files.restore(records).await
    }

    fn parks(&self) -> bool {
        self.freezer.is_some()
    }

    fn park_bytes(&self) -> u64 {
        self.freezer.as_ref().map_or(0, Freezer::weight)
    }

    async fn park(&self, into: &Path, key: &ParkKey) -> Result<(), Error> {
        let Some(freezer) = &self.freezer else {
            return Err(Error::Unavailable("this driver has no freezer".to_owned()));
        };
        let held = std::mem::take(&mut *lock(&self.held));
        let saved = freezer.put(into, key, Arc::clone(&self.space), held).await;
        saved.map_err(|source| Error::File { doing: "saving under", path: into.to_owned(), source })
    }

    async fn close(&self) -> Result<(), Error> {
        if !self.keeps {
            self.space.end();
        }
        Ok(())
    }

    async fn spawn(&self, command: &Command) -> Result<Process, Error> {
        let failed = |source| Error::Spawn { program: command.program.clone(), source };
        self.faults.spawn().map_err(failed)?;
        let program = self.programs.get(&command.program).ok_or_else(|| {
            failed(io::Error::new(
                io::ErrorKind::NotFound,
                "no function plays this program: register it with the driver",
            ))
        })?;
        let (stdin, stdin_inside) = tokio::io::duplex(PIPE);
        let (stdout, stdout_inside) = tokio::io::duplex(PIPE);
        let (stderr, stderr_inside) = tokio::io::duplex(PIPE);
        let stdout_inside: Box<dyn AsyncWrite + Send + Unpin> = match self.faults.death() {
            None => Box::new(stdout_inside),
            Some(after) => Box::new(faults::Dying::new(stdout_inside, after)),
        };
        let task = Task::start(program(Call {
            command: command.clone(),
            stdin: stdin_inside,
            stdout: stdout_inside,
            stderr: stderr_inside,
            files: self.space.files.clone(),
        }));
        let mut tasks = lock(&self.space.tasks);
        tasks.retain(|task| !task.is_finished());
        if self.space.files.closed() {
            // Erased meanwhile; dropping the task ends it.
            return Err(failed(io::Error::other("the session was erased")));
        }
        tasks.push(task.abort_handle());
        drop(tasks);
        if self.freezer.is_some() {
            let (held, process) = freezer::hold(task.into(), freezer::Pipes { stdin, stdout, stderr });
            lock(&self.held).push(held);
            return Ok(process);
        }
        Ok(Process {
            stdin: Box::new(stdin),
            stdout: Box::new(stdout),
            stderr: Box::new(stderr),
            control: Box::new(task),
        })
    }

    async fn connect(&self, port: u16) -> Result<Box<dyn Duplex>, Error> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
        Ok(Box::new(stream.map_err(|source| Error::Connect { port, source })?))
    }

    /// A relative path is under the home.
    async fn put(&self, path: &Path, content: &[u8]) -> Result<(), Error> {
        self.faults.put().map_err(|source| Error::File {
            doing: "writing",
            path: path.to_owned(),
            source,
        })?;
        self.space.files.put(path, content)
    }

    /// The answers are absolute paths; a longer file is cut at `limit`.
    async fn find(&self, pattern: &str, limit: u64) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
        self.space.files.find(pattern, limit)
    }

    async fn export(&self, _into: &Path) -> Result<(), Error> {
        Err(Error::Unavailable("the driver in memory has no workspace of its own to copy".to_owned()))
    }
}

/// A panic elsewhere leaves these plain tables whole, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
