//! The sandbox that a guest and its machine make together.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use karta_guest::proto::message::{Base, Request, Spawn};
use karta_types::SandboxId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::link::{Program, io_error};
use super::{Link, Machine, files};
use crate::paths::plain;
use crate::state;
use crate::uplink::{Service, Uplink};
use crate::{Command, Control, Duplex, Error, Exit, ParkKey, Place, Process};

/// How long a guest may take to answer: software emulation is slow, and a guest that takes longer is lost.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// What a sandbox is made of.
pub struct Setup {
    /// Its id.
    pub id: SandboxId,
    /// The place as its processes see it.
    pub place: Place,
    /// The link to its guest, which was configured.
    pub link: Link,
    /// What holds the guest.
    pub machine: Box<dyn Machine>,
    /// Files of the session that differ from the release it was brought up to.
    pub kept: Vec<String>,
    /// Whether nothing of the session is in it yet.
    pub fresh: bool,
    /// The loopback address of the services inside.
    pub services: Ipv4Addr,
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup").field("id", &self.id).field("place", &self.place).finish_non_exhaustive()
    }
}

/// One session's sandbox with a guest inside. Clones are handles of the same one.
#[derive(Debug, Clone)]
pub struct GuestSandbox {
    inner: Arc<Setup>,
    fresh: bool,
}

impl GuestSandbox {
    /// The first handle.
    pub fn new(setup: Setup) -> Self {
        let fresh = setup.fresh;
        Self { inner: Arc::new(setup), fresh }
    }

    /// A further handle, for which nothing is fresh.
    #[must_use]
    pub fn another(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), fresh: false }
    }

    /// A handle that keeps nothing alive.
    pub fn downgrade(&self) -> WeakSandbox {
        WeakSandbox(Arc::downgrade(&self.inner))
    }

    /// The link to the guest.
    pub fn link(&self) -> &Link {
        &self.inner.link
    }

    /// Stops every process of the session, while the guest itself goes on: for a survey of a place in which nothing moves.
    pub async fn freeze(&self) -> Result<(), Error> {
        self.inner.link.request(&Request::Freeze, PATIENCE).await.map(|_| ())
    }

    /// Lets them go on.
    pub async fn thaw(&self) -> Result<(), Error> {
        self.inner.link.request(&Request::Thaw, PATIENCE).await.map(|_| ())
    }

    /// What holds the guest.
    pub fn machine(&self) -> &dyn Machine {
        &*self.inner.machine
    }

    /// How many handles there are.
    pub fn handles(&self) -> usize {
        Arc::strong_count(&self.inner)
    }

    /// Where a path of the caller lies: a relative one is under the home; none if it is elsewhere.
    fn resolve(&self, path: &Path) -> Option<(Base, PathBuf)> {
        if path.is_relative() {
            return Some((Base::Home, plain(path)?));
        }
        let place = &self.inner.place;
        [(Base::Home, &place.home), (Base::Temp, &place.temp), (Base::Work, &place.workspace)]
            .into_iter()
            .find_map(|(base, folder)| Some((base, plain(path.strip_prefix(folder).ok()?)?)))
    }
}

/// A handle of a sandbox that keeps nothing alive.
#[derive(Debug, Clone)]
pub struct WeakSandbox(std::sync::Weak<Setup>);

impl WeakSandbox {
    /// A further handle, if any is left.
    pub fn upgrade(&self) -> Option<GuestSandbox> {
        Some(GuestSandbox { inner: self.0.upgrade()?, fresh: false })
    }
}

#[async_trait]
impl crate::Sandbox for GuestSandbox {
    fn id(&self) -> SandboxId {
        self.inner.id
    }

    fn place(&self) -> &Place {
        &self.inner.place
    }

    fn kept(&self) -> &[String] {
        &self.inner.kept
    }

    fn fresh(&self) -> bool {
        self.fresh
    }

    fn service(&self, service: Service) -> Option<SocketAddr> {
        Some(SocketAddr::new(IpAddr::V4(self.inner.services), service.port()))
    }

    async fn pause(&self) -> Result<(), Error> {
        self.inner.machine.pause().await
    }

    fn pauses(&self) -> bool {
        true
    }

    async fn wake(&self) -> Result<(), Error> {
        self.inner.machine.wake().await
    }

    fn parks(&self) -> bool {
        self.inner.machine.saves()
    }

    fn park_bytes(&self) -> u64 {
        self.inner.machine.save_bytes()
    }

    async fn park(&self, into: &Path, key: &ParkKey) -> Result<(), Error> {
        let link = &self.inner.link;
        link.park(PATIENCE).await?;
        if let Err(error) = self.inner.machine.save(into, key).await {
            // If the machine has ended by it, so does the link; what it says then is no better than this.
            link.unpark(PATIENCE).await;
            return Err(error);
        }
        link.close("the sandbox was saved");
        Ok(())
    }

    async fn close(&self) -> Result<(), Error> {
        self.inner.link.close("the sandbox was closed");
        self.inner.machine.close().await
    }

    async fn spawn(&self, command: &Command) -> Result<Process, Error> {
        let failed = |source| Error::Spawn { program: command.program.clone(), source };
        let texts = command.args.iter().chain(command.env.iter().flat_map(|(name, value)| [name, value]));
        if texts.chain([&command.program]).any(|text| text.contains('\0'))
            || command.env.iter().any(|(name, _)| name.is_empty() || name.contains('='))
        {
            let text = "an argument or a variable can't be given to a program";
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        let request = Request::Spawn(Spawn {
            program: command.program.as_bytes().to_vec(),
            args: command.args.iter().map(|one| one.as_bytes().to_vec()).collect(),
            env: command.env.iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect(),
            cwd: command.cwd.as_os_str().as_bytes().to_vec(),
        });
        let program = self.inner.link.spawn(&request, PATIENCE).await?;
        let program = program.map_err(|failure| failed(io_error(failure)))?;
        Ok(process(&self.inner.link, program))
    }

    async fn connect(&self, port: u16) -> Result<Box<dyn Duplex>, Error> {
        let stream = self.inner.link.stream(&Request::Connect { port }, PATIENCE).await?;
        let stream = stream.map_err(|failure| Error::Connect { port, source: io_error(failure) })?;
        Ok(Box::new(stream))
    }

    /// A relative path is under the home.
    async fn put(&self, path: &Path, content: &[u8]) -> Result<(), Error> {
        let escape = || Error::Escape(path.display().to_string());
        let (base, relative) = self.resolve(path).ok_or_else(escape)?;
        files::put(&self.inner.link, base, &relative, path, content).await
    }

    /// The answers are absolute paths; a longer file is cut at `limit`. At most the 256 newest files are read.
    async fn find(&self, pattern: &str, limit: u64) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
        files::find(&self.inner.link, &self.inner.place.home, pattern, limit).await
    }

    async fn export(&self, into: &Path) -> Result<(), Error> {
        files::export(&self.inner.link, into).await
    }

    async fn survey(&self) -> Result<Vec<state::Entry>, Error> {
        files::survey(&self.inner.link).await
    }

    async fn take(&self, paths: Vec<PathBuf>) -> Result<state::Records, Error> {
        files::take(&self.inner.link, paths).await
    }

    async fn restore(&self, records: state::Records) -> Result<(), Error> {
        files::restore(&self.inner.link, records).await
    }
}

/// A saved guest's link, on the channel of its machine that goes on, and its processes in the order of their start. `generation` must be
/// higher than any that the guest has had; `clock` is in nanoseconds since 1970.
///
/// # Errors
/// It does not go on; the error says what it was doing.
pub async fn adopt<C>(
    channel: C,
    generation: u64,
    uplink: Arc<dyn Uplink>,
    clock: i64,
) -> Result<(Link, Vec<Process>), Error>
where
    C: AsyncRead + AsyncWrite + Send + 'static,
{
    let (link, programs) = Link::adopt(channel, generation, uplink, clock, PATIENCE).await?;
    let processes = programs.into_iter().map(|program| process(&link, program)).collect();
    Ok((link, processes))
}

fn process(link: &Link, program: Program) -> Process {
    Process {
        stdin: Box::new(program.stdin),
        stdout: Box::new(program.stdout),
        stderr: Box::new(program.stderr),
        control: Box::new(Running { link: link.clone(), id: program.id, exit: program.exit }),
    }
}

/// The handle on a running process.
struct Running {
    link: Link,
    id: u32,
    exit: watch::Receiver<Option<Exit>>,
}

#[async_trait]
impl Control for Running {
    async fn wait(&mut self) -> Exit {
        // Where the sender is gone without a word, the sandbox is: everything in it was killed.
        let killed = Exit { status: None, signal: Some(9) };
        self.exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit).unwrap_or(killed)
    }

    fn terminate(&self) {
        self.link.signal(self.id, 15);
    }

    fn kill(&self) {
        self.link.signal(self.id, 9);
    }

    fn pid(&self) -> Option<u32> {
        None
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
