//! A session's folder: `<root>/<session>/{home,tmp,work}` and beside them the record of what the platform put there.
//!
//! The record is written last and by one rename: a place without it is not finished, was never used, and is made anew. (This
//! holds for a crash of the server. The record is also synced; the files of a release are not, so after a power cut a file may
//! read as changed by the session.)

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use karta_types::{SandboxId, SessionId};

use super::manifest::Record;
use super::{copy, update};
use crate::{Error, Place};
use karta_guest::beneath::Folder;
use karta_guest::remove;

/// The home, in the place.
pub(super) const HOME: &str = "home";
/// The temporary folder, in the place.
pub(super) const TEMP: &str = "tmp";
/// The private copy of the release, in the place.
pub(super) const WORK: &str = "work";
/// The record, in the place.
const RECORD: &str = "place";
/// How a place that is being removed is called, in the root: it is no session any more.
const GONE: &str = ".gone-";
/// Most bytes of a record.
const RECORD_BYTES: u64 = 256 << 20;
/// Most names looked at in the root and in a place.
const NAMES: usize = 5_000_000;

/// The folder of all places.
#[derive(Debug, Clone)]
pub(super) struct Root(pub(super) PathBuf);

/// A file error told with what was being done and where.
pub(super) fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File { doing, path: path.to_owned(), source }
}

impl Root {
    /// Makes the folder if it is missing, for its owner only.
    pub(super) fn open(&self) -> Result<Folder, Error> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        made.and_then(|()| Folder::open(&self.0))
            .map_err(at("opening the folder of the sessions' places", &self.0))
    }

    /// What tells this folder from every other on the machine: its device and inode. None if there is none.
    pub(super) fn identity(&self) -> Option<String> {
        fs::metadata(&self.0).ok().map(|meta| format!("{:x}-{:x}", meta.dev(), meta.ino()))
    }

    /// Whether files can be made here.
    pub(super) fn check(&self) -> Result<(), Error> {
        let path = &self.0;
        let tried = self.open().map_err(|error| match error {
            Error::File { source, .. } => source,
            other => io::Error::other(other),
        });
        let name = OsString::from(format!(".check-{}", std::process::id()));
        tried
            .and_then(|root| {
                root.create(&name, false)?.write_all(b"ok")?;
                root.remove(&name)
            })
            .map_err(|error| {
                Error::Unavailable(format!(
                    "the sessions' places can't be written in `{}` ({error}): let the user that runs the server write there, or \
                     set another data directory",
                    path.display()
                ))
            })
    }

    /// Whether two files here can share their blocks, so that a thousand sessions of a release cost one copy of it.
    pub(super) fn shares_blocks(&self) -> bool {
        let name = |end: &str| OsString::from(format!(".share-{}-{end}", std::process::id()));
        let (one, other) = (name("1"), name("2"));
        let Ok(root) = self.open() else { return false };
        let tried = || {
            let mut source = root.create(&one, false)?;
            source.write_all(&[7; 4096])?;
            rustix::fs::ioctl_ficlone(root.create(&other, false)?, source).map_err(io::Error::from)
        };
        let shared = tried().is_ok();
        for name in [one, other] {
            // There is none where making it failed.
            let _ = root.remove(&name);
        }
        shared
    }

    /// The path of a session's place.
    pub(super) fn path(&self, session: SessionId) -> PathBuf {
        self.0.join(session.to_string())
    }

    /// A session's place, opened.
    pub(super) fn folder(&self, session: SessionId) -> io::Result<Folder> {
        Folder::open(&self.0)?.child(OsStr::new(&session.to_string()))
    }

    /// The place as its processes see it.
    pub(super) fn place(&self, session: SessionId) -> Place {
        let path = self.path(session);
        Place { workspace: path.join(WORK), home: path.join(HOME), temp: path.join(TEMP), harness: None }
    }

    /// Makes the place, or finds it, and brings it to this release.
    pub(super) fn prepare(
        &self,
        session: SessionId,
        release: &Path,
        digest: &str,
        fresh: SandboxId,
    ) -> Result<Record, Error> {
        let root = self.open()?;
        let path = self.path(session);
        let name = OsString::from(session.to_string());
        let place = root.make(&name).map_err(at("making the place", &path))?;
        let Some(record) = load(&place, &path)? else {
            // Left half made by a crash: nothing ever ran in it.
            drop(place);
            discard(&root, &name).map_err(at("removing the unfinished place", &path))?;
            let place = root.make(&name).map_err(at("making the place", &path))?;
            let made = fill(&place, &path, release, digest, fresh);
            if made.is_err() {
                // A full disk should not be kept full by half a copy.
                let _ = discard(&root, &name);
            }
            return made;
        };
        tidy(&place).map_err(at("tidying the place", &path))?;
        let [_, _, work] = folders(&place).map_err(at("opening the folders of the place", &path))?;
        if record.digest == digest {
            return Ok(record);
        }
        let source = Folder::open(release).map_err(at("opening the release", release))?;
        let manifest = copy::release(&source, None).map_err(at("reading the release", release))?;
        let kept = update::update(&place, &work, &source, &record.manifest, &manifest)
            .map_err(at("bringing the new release to", &path))?;
        let record = Record { sandbox: record.sandbox, digest: digest.to_owned(), kept, manifest };
        save(&place, &record).map_err(at("writing the record of", &path))?;
        Ok(record)
    }

    /// Removes a session's place. Answers whether there was one.
    pub(super) fn remove(&self, session: SessionId) -> Result<bool, Error> {
        let root = match Folder::open(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(at("opening the folder of the sessions' places", &self.0))?,
        };
        discard(&root, OsStr::new(&session.to_string())).map_err(at("removing", &self.path(session)))
    }

    /// Removes what a removal that was cut off left, and answers the sessions that have a place.
    pub(super) fn sessions(&self) -> Result<Vec<SessionId>, Error> {
        let root = self.open()?;
        let mut sessions = Vec::new();
        for name in root.list(NAMES).map_err(at("listing", &self.0))? {
            let Some(text) = name.to_str() else { continue };
            if text.starts_with(GONE) {
                remove::remove(&root, &name).map_err(at("removing", &self.0.join(&name)))?;
            } else if let Ok(session) = text.parse() {
                sessions.push(session);
            }
        }
        Ok(sessions)
    }
}

/// Makes the content of a new place.
fn fill(
    place: &Folder,
    path: &Path,
    release: &Path,
    digest: &str,
    fresh: SandboxId,
) -> Result<Record, Error> {
    let [_, _, work] = folders(place).map_err(at("making the folders of the place", path))?;
    let source = Folder::open(release).map_err(at("opening the release", release))?;
    let manifest = copy::release(&source, Some(&work)).map_err(at("copying the release to", path))?;
    let record = Record { sandbox: fresh, digest: digest.to_owned(), kept: Vec::new(), manifest };
    save(place, &record).map_err(at("writing the record of", path))?;
    Ok(record)
}

fn folders(place: &Folder) -> io::Result<[Folder; 3]> {
    let make = |name: &str| place.make(OsStr::new(name));
    Ok([make(HOME)?, make(TEMP)?, make(WORK)?])
}

/// Removes what a change that was cut off left beside the session's folders.
fn tidy(place: &Folder) -> io::Result<()> {
    for name in place.list(NAMES)? {
        if ![HOME, TEMP, WORK, RECORD].iter().any(|own| name == OsStr::new(own)) {
            remove::remove(place, &name)?;
        }
    }
    Ok(())
}

/// The place's record; none if it was never finished.
fn load(place: &Folder, path: &Path) -> Result<Option<Record>, Error> {
    let wrong = || {
        at("reading the record of", path)(io::Error::other(
            "it is damaged: delete the session, or restore the file `place` in its folder",
        ))
    };
    let (file, _) = match place.read(OsStr::new(RECORD)) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at("reading the record of", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(RECORD_BYTES).read_to_end(&mut bytes).map_err(at("reading the record of", path))?;
    Record::decode(&bytes).map(Some).ok_or_else(wrong)
}

fn save(place: &Folder, record: &Record) -> io::Result<()> {
    let part = OsStr::new("record");
    let mut file = place.create(part, false)?;
    file.write_all(&record.encode())?;
    file.sync_all()?;
    place.rename(part, place, OsStr::new(RECORD))
}

/// Removes a place in two steps: once it has the other name, no crash can leave half of it for a session to find.
fn discard(root: &Folder, name: &OsStr) -> io::Result<bool> {
    for attempt in 0..1000 {
        let gone = OsString::from(format!("{GONE}{}-{attempt}", name.display()));
        remove::remove(root, &gone)?;
        match root.rename(name, root, &gone) {
            Ok(()) => return remove::remove(root, &gone).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("another process is writing here: run one server on one data directory"))
}
