//! One session's sandbox: its processes and its files.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use async_trait::async_trait;
use karta_types::{SandboxId, SessionId};
use rustix::process::Signal;
use tokio::net::TcpStream;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::RwLockReadGuard;

use super::keeper::{Running, Started};
use super::manifest::Record;
use super::place::{HOME, TEMP, WORK, at};
use super::sweep::{Mark, VARIABLE};
use super::{Lane, Shared, blocking, child, copy};
use crate::paths::{self, plain};
use crate::{Command, Control, Duplex, Error, Exit, Place, Process};
use karta_guest::beneath::{Folder, blocked};
use karta_guest::find::search;

/// One session's sandbox.
pub(super) struct Sandbox {
    shared: Arc<Shared>,
    lane: Arc<Lane>,
    session: SessionId,
    id: SandboxId,
    place: Place,
    kept: Vec<String>,
}

impl Sandbox {
    pub(super) fn new(
        shared: Arc<Shared>,
        lane: Arc<Lane>,
        session: SessionId,
        record: Record,
        harness: Option<PathBuf>,
    ) -> Self {
        let place = Place { harness, ..shared.root.place(session) };
        Self { shared, lane, session, id: record.sandbox, place, kept: record.kept }
    }

    /// Holds the place as it is; an error once it is erased.
    async fn hold(&self) -> Result<RwLockReadGuard<'_, bool>, Error> {
        let held = self.lane.read().await;
        if *held {
            return Err(Error::Unavailable(format!("the session `{}` was erased", self.session)));
        }
        Ok(held)
    }
}

#[async_trait]
impl crate::Sandbox for Sandbox {
    fn id(&self) -> SandboxId {
        self.id
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn kept(&self) -> &[String] {
        &self.kept
    }

    async fn spawn(&self, command: &Command) -> Result<Process, Error> {
        let _held = self.hold().await?;
        let failed = |source| Error::Spawn { program: command.program.clone(), source };
        let mapped = self.shared.programs.get(&command.program);
        let (program, leading) =
            mapped.map_or_else(|| (Path::new(&command.program), &[][..]), |(path, args)| (path, args));
        let mut bytes = [0; 8];
        self.shared.rng.fill(&mut bytes);
        let mark = Mark {
            root: self.shared.root.identity().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?,
            session: self.session.to_string(),
            sandbox: self.id.to_string(),
            birth: u64::from_le_bytes(bytes) | 1,
        };
        let mut native = std::process::Command::new(program);
        native
            .args(leading)
            .args(&command.args)
            .env_clear()
            .envs(command.env.iter().map(|(name, value)| (name, value)))
            .env(VARIABLE, mark.value())
            .current_dir(&command.cwd)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        child::confine(&mut native);
        let started = self.shared.keeper.start(native, mark).await;
        let Started { stdin, stdout, stderr, running } =
            started.map_err(|error| failed(explain(error, &command.cwd)))?;
        Ok(Process {
            stdin: Box::new(ChildStdin::from_std(stdin).map_err(failed)?),
            stdout: Box::new(ChildStdout::from_std(stdout).map_err(failed)?),
            stderr: Box::new(ChildStderr::from_std(stderr).map_err(failed)?),
            control: Box::new(Handle(running)),
        })
    }

    async fn connect(&self, port: u16) -> Result<Box<dyn Duplex>, Error> {
        let stream = TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).await;
        let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        Ok(Box::new(stream.map_err(|source| Error::Connect { port, source })?))
    }

    /// A relative path is under the home.
    async fn put(&self, path: &Path, content: &[u8]) -> Result<(), Error> {
        let _held = self.hold().await?;
        let place = self.shared.root.path(self.session);
        let escape = || Error::Escape(path.display().to_string());
        let relative = inside(&place, path).ok_or_else(escape)?;
        let mut bytes = [0; 8];
        self.shared.rng.fill(&mut bytes);
        let part = OsString::from(format!("put-{:016x}", u64::from_le_bytes(bytes)));
        let (content, path) = (content.to_vec(), path.to_owned());
        let (root, session) = (self.shared.root.clone(), self.session);
        blocking("writing a file of the place", move || {
            let folder = root.folder(session).map_err(at("opening the place", &place))?;
            let (holder, name) = folder.holder(&relative, true).map_err(|error| {
                if blocked(&error) {
                    Error::Escape(path.display().to_string())
                } else {
                    at("writing", &path)(error)
                }
            })?;
            let written = folder.create(&part, false).and_then(|mut file| {
                file.write_all(&content)?;
                folder.rename(&part, &holder, name)
            });
            if written.is_err() {
                let _ = folder.remove(&part);
            }
            written.map_err(at("writing", &path))
        })
        .await
    }

    /// The answers are absolute paths; a longer file is cut at `limit`. At most the 256 newest files are read.
    async fn find(&self, pattern: &str, limit: u64) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
        let _held = self.hold().await?;
        let pattern = paths::pattern(pattern)?;
        let home = self.place.home.clone();
        let (root, session) = (self.shared.root.clone(), self.session);
        blocking("searching the home", move || {
            let folder = root.folder(session).and_then(|place| place.child(OsStr::new(HOME)));
            let folder = folder.map_err(at("opening the home", &home))?;
            let mut files = Vec::new();
            for path in search(&folder, &pattern).map_err(at("searching", &home))? {
                let read = folder.holder(&path, false).and_then(|(holder, name)| {
                    let mut content = Vec::new();
                    holder.read(name)?.0.take(limit).read_to_end(&mut content)?;
                    Ok(content)
                });
                // A file that went away since it was seen is no failure.
                if let Ok(content) = read {
                    files.push((home.join(path), content));
                }
            }
            Ok(files)
        })
        .await
    }

    async fn export(&self, into: &Path) -> Result<(), Error> {
        let _held = self.hold().await?;
        let (root, session, into) = (self.shared.root.clone(), self.session, into.to_owned());
        let work = self.place.workspace.clone();
        blocking("copying the workspace", move || {
            let from = root.folder(session).and_then(|place| place.child(OsStr::new(WORK)));
            let from = from.map_err(at("opening the workspace", &work))?;
            let to = Folder::open(&into).map_err(at("opening", &into))?;
            copy::release(&from, Some(&to)).map(|_| ()).map_err(at("copying the workspace to", &into))
        })
        .await
    }
}

/// A path of the caller as one under the place; none if it is elsewhere.
fn inside(place: &Path, path: &Path) -> Option<PathBuf> {
    let under = if path.is_absolute() {
        path.strip_prefix(place).ok()?.to_owned()
    } else {
        Path::new(HOME).join(path)
    };
    let under = plain(&under)?;
    let mut names = under.iter();
    let first = names.next()?;
    names.next()?;
    [HOME, TEMP, WORK].iter().any(|own| first == OsStr::new(own)).then_some(under)
}

/// A program that is missing and a folder that is missing give the same error: tell them apart.
fn explain(error: io::Error, cwd: &Path) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound if !cwd.is_dir() => {
            io::Error::new(error.kind(), format!("its working directory `{}` does not exist", cwd.display()))
        }
        io::ErrorKind::NotFound => io::Error::new(error.kind(), "the program does not exist: install it"),
        io::ErrorKind::PermissionDenied => io::Error::new(
            error.kind(),
            "it may not be executed: check the mode of the file and of the folders above it",
        ),
        _ => error,
    }
}

/// The handle on a running process.
struct Handle(Running);

#[async_trait]
impl Control for Handle {
    async fn wait(&mut self) -> Exit {
        self.0.wait().await
    }

    fn terminate(&self) {
        self.0.signal(Signal::TERM);
    }

    fn kill(&self) {
        self.0.signal(Signal::KILL);
    }

    fn pid(&self) -> Option<u32> {
        Some(self.0.pid())
    }
}
