//! Releases on this machine: each once, read by all its sessions, made from the blob store when it is first asked for.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use karta_harness::Tree;
use karta_release::archive::{self, Known, Limits};
use karta_release::{Files, Hash, Rule, folder};
use karta_store::ReleaseRow;
use karta_types::{ErrorCode, OrgId, ProjectId};
use tokio::runtime::Handle;

use crate::{Engine, Error, Result};

/// Where what is not yet whole lies; what a crash left there is removed at the next start.
const INCOMING: &str = "incoming";
/// Where releases lie.
const SHELF: &str = "releases";

/// A folder for something that is being made, gone with everything in it when this is dropped.
#[derive(Debug)]
pub(super) struct Incoming(PathBuf);

impl Incoming {
    /// A new one in the data directory.
    pub(super) fn make(data: &Path) -> io::Result<Self> {
        /// Told apart within this process; other processes don't share a data directory.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = data.join(INCOMING).join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A new folder in it.
    pub(super) fn folder(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        fs::create_dir(&path)?;
        Ok(path)
    }
}

impl Incoming {
    /// Removes it now, for those who may block: whoever is told of a failure finds the room free again.
    pub(super) fn remove(mut self) {
        // What can't be removed now is at the next start.
        let _ = fs::remove_dir_all(std::mem::take(&mut self.0));
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.0);
        if path.as_os_str().is_empty() {
            return;
        }
        let remove = move || {
            let _ = fs::remove_dir_all(path);
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// Removes what a crash left half made.
pub(crate) fn clear_incoming(data: &Path) -> io::Result<()> {
    match fs::remove_dir_all(data.join(INCOMING)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Where the files of a release lie on this machine.
pub(super) fn place(data: &Path, row: &ReleaseRow) -> PathBuf {
    let shelf = data.join(SHELF);
    match row.served() {
        Some(pack) => shelf.join(row.project.to_string()).join(pack),
        // From before there were packs.
        None => shelf.join(&row.digest),
    }
}

/// Puts a whole folder in its place on the shelf: it is there, whole and for good, or not at all.
pub(super) fn settle(from: &Path, place: &Path) -> io::Result<()> {
    let shelf = place.parent().unwrap_or(place);
    fs::create_dir_all(shelf)?;
    match fs::rename(from, place) {
        // Somebody else made the same one: theirs is as good.
        Err(_) if place.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => fs::File::open(shelf)?.sync_all(),
    }
}

/// Contents of a project that are kept: first those that lie open on this machine, then those in packs. Blocking.
pub(super) struct Library {
    engine: Engine,
    runtime: Handle,
    org: OrgId,
    project: ProjectId,
    /// Where contents of packs are laid open, by their hashes.
    open: PathBuf,
    /// Contents in releases on the shelf.
    near: HashMap<Hash, PathBuf>,
    opened: Mutex<HashSet<String>>,
}

impl Library {
    /// Of a project; contents of packs are laid open in `open`, a folder of the caller's.
    pub(super) fn new(engine: &Engine, org: OrgId, project: ProjectId, open: PathBuf) -> Self {
        Self {
            engine: engine.clone(),
            runtime: Handle::current(),
            org,
            project,
            open,
            near: HashMap::new(),
            opened: Mutex::default(),
        }
    }

    /// With what a release on the shelf has.
    pub(super) fn with(mut self, path: &Path, files: &Files) -> Self {
        for (name, entry) in files.iter() {
            if let karta_release::Entry::File { hash, .. } = entry {
                self.near.entry(*hash).or_insert_with(|| path.join(name));
            }
        }
        self
    }

    /// Lays the contents of the pack open that has this one. False if none has it.
    fn lay_open(&self, hash: &Hash) -> Result<bool> {
        let (org, project) = (self.org, self.project);
        let text = hash.to_string();
        let pack = self.runtime.block_on(async {
            let found = self.engine.store().contents_find(org, project, std::slice::from_ref(&text)).await?;
            let Some(name) = found.get(&text) else { return Ok::<_, Error>(None) };
            Ok(Some((name.clone(), self.engine.packs().get(project, name).await?)))
        })?;
        let Some((name, pack)) = pack else { return Ok(false) };
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.insert(name) {
            fs::create_dir_all(&self.open).map_err(|error| Error::internal("laying a pack open", error))?;
            archive::contents(pack, &self.open, &Limits::own()).map_err(|error| unpacked(&error))?;
        }
        Ok(true)
    }
}

impl Known for Library {
    fn fetch(&self, hash: &Hash, to: &mut fs::File) -> io::Result<bool> {
        if let Some(path) = self.near.get(hash)
            && let Ok(mut near) = fs::File::open(path)
        {
            io::copy(&mut near, to)?;
            return Ok(true);
        }
        let path = self.open.join(hash.to_string());
        if !path.exists() && !self.lay_open(hash).map_err(|error| io::Error::other(error.chain()))? {
            return Ok(false);
        }
        let mut content = fs::File::open(path)?;
        io::copy(&mut content, to)?;
        Ok(true)
    }
}

/// The problem of an archive that was not unpacked.
pub(super) fn unpacked(error: &archive::Error) -> Error {
    if error.is_full() {
        return Error::storage_full();
    }
    match error {
        archive::Error::Lacking(lacking) => Error::told(
            ErrorCode::ContentMissing,
            format!("{} contents that the archive relies on are not here", lacking.len()),
        ),
        archive::Error::Refused {
            rule: Rule::TooMany(_) | Rule::TooLarge(_) | Rule::LargeFile(_), ..
        } => Error::told(ErrorCode::PayloadTooLarge, crate::error::chain(error)),
        archive::Error::File { .. } => Error::internal("unpacking an archive", crate::error::chain(error)),
        _ => Error::told(ErrorCode::InvalidRelease, crate::error::chain(error)),
    }
}

/// The problem of a folder that can't be read.
pub(super) fn unread(error: &folder::Error) -> Error {
    Error::told(ErrorCode::InvalidRelease, crate::error::chain(error))
}

impl Engine {
    /// The files of a release on this machine, with their list and what adapters read of them; brought from the blob store if they
    /// are not here.
    pub(super) async fn shelve(&self, row: &ReleaseRow) -> Result<(PathBuf, Files, Tree)> {
        let path = place(self.data_dir(), row);
        let listed = match row.served() {
            Some(pack) => {
                if !tokio::fs::try_exists(&path).await.unwrap_or(false) {
                    self.bring(row, pack, path.clone()).await?;
                }
                Some(self.packs().get(row.project, pack).await?)
            }
            None => None,
        };
        let root = path.clone();
        let (files, tree) = off_runtime("reading a release", move || {
            let files = match listed {
                Some(pack) => archive::listing(pack, &Limits::own()).map_err(|error| unpacked(&error))?,
                None => Files::read(&root).map_err(|error| unread(&error))?,
            };
            let tree = files.tree(&root).map_err(|error| unread(&error))?;
            Ok((files, tree))
        })
        .await?;
        Ok((path, files, tree))
    }

    async fn bring(&self, row: &ReleaseRow, pack: &str, place: PathBuf) -> Result<()> {
        let pack = self.packs().get(row.project, pack).await?;
        let (engine, org, project) = (self.clone(), row.org, row.project);
        off_runtime("bringing a release from the blob store", move || {
            let incoming = Incoming::make(engine.data_dir())?;
            let tree = incoming.folder("tree")?;
            let library = Library::new(&engine, org, project, incoming.join("contents"));
            archive::unpack(pack, &tree, &Limits::own(), &library).map_err(|error| unpacked(&error))?;
            settle(&tree, &place)?;
            Ok(())
        })
        .await
    }
}

/// Runs file work off the runtime.
pub(super) async fn off_runtime<T, F>(doing: &'static str, work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Failed> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Failed::Told(error))) => Err(error),
        Ok(Err(Failed::File(error))) if crate::error::is_full(&error) => Err(Error::storage_full()),
        Ok(Err(Failed::File(error))) => Err(Error::internal(doing, error)),
        Err(panicked) => Err(Error::internal(doing, panicked)),
    }
}

/// Why file work failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// For a reason that has its problem.
    Told(Error),
    /// A file of the platform's own.
    File(io::Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Told(error)
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}
