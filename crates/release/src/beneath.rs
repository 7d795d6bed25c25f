//! A folder held open, and what lies beneath it, reached without following a symbolic link.
//!
//! The rules of [`crate::names`] already keep every path inside. This is the second lock: even with a hole in the rules nothing outside
//! of the folder can be opened, made or changed, because each level is opened from the one above and no link is ever followed.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// A pipe in a file's place must not block.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);
/// Read too: what was written is read again to be sure of it.
const NEW: OFlags =
    OFlags::RDWR.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A folder of ours that is open. Paths are relative, with `/`.
pub(crate) struct Beneath {
    root: OwnedFd,
    /// The folder that was used last: files mostly come folder by folder.
    last: Option<(String, OwnedFd)>,
}

impl Beneath {
    /// Opens a folder that the caller named.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: rustix::fs::open(path, flags, Mode::empty())?, last: None })
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> io::Result<bool> {
        for entry in Dir::read_from(&self.root)? {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Opens a regular file for reading.
    pub(crate) fn read(&mut self, path: &str) -> io::Result<(File, Stat)> {
        let (folder, name) = self.holder(path, false)?;
        let file = File::from(rustix::fs::openat(folder, name, FILE, Mode::empty())?);
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            Ok((file, stat))
        } else {
            Err(io::Error::other("it is no file any more"))
        }
    }

    /// Makes a file that was not there, and the folders above it.
    pub(crate) fn create(&mut self, path: &str, executable: bool) -> io::Result<File> {
        let (folder, name) = self.holder(path, true)?;
        let mode = Mode::from_raw_mode(if executable { 0o755 } else { 0o644 });
        let file = File::from(rustix::fs::openat(folder, name, NEW, mode)?);
        // The process's own mask may have taken something.
        rustix::fs::fchmod(&file, mode)?;
        Ok(file)
    }

    /// Makes a symbolic link that was not there, and the folders above it.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        let (folder, name) = self.holder(path, true)?;
        Ok(rustix::fs::symlinkat(target, folder, name)?)
    }

    /// Where a symbolic link leads.
    pub(crate) fn target(&mut self, path: &str) -> io::Result<Vec<u8>> {
        let (folder, name) = self.holder(path, false)?;
        Ok(rustix::fs::readlinkat(folder, name, Vec::new())?.into_bytes())
    }

    /// Puts a folder's own list of names on the disk; the root's for an empty path.
    pub(crate) fn sync_folder(&mut self, path: &str) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.folder(path, false)?)?)
    }

    /// The open folder that holds the last part of a path, and that part.
    fn holder<'a>(&mut self, path: &'a str, make: bool) -> io::Result<(&OwnedFd, &'a str)> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.folder(folder, make)?, name))
    }

    fn folder(&mut self, path: &str, make: bool) -> io::Result<&OwnedFd> {
        if path.is_empty() {
            return Ok(&self.root);
        }
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let mut here: Option<OwnedFd> = None;
            for part in path.split('/') {
                if matches!(part, "" | "." | "..") {
                    return Err(Errno::XDEV.into());
                }
                let at = here.as_ref().unwrap_or(&self.root);
                if make {
                    match rustix::fs::mkdirat(at, part, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                here = Some(rustix::fs::openat(at, part, FOLDER, Mode::empty())?);
            }
            self.last = here.map(|folder| (path.to_owned(), folder));
        }
        Ok(self.last.as_ref().map_or(&self.root, |(_, folder)| folder))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn no_link_is_followed() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("l")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("new"), root.path().join("f")).unwrap();
        let mut beneath = Beneath::open(root.path()).unwrap();
        assert!(beneath.read("l/secret").is_err());
        assert!(beneath.create("l/x", false).is_err());
        assert!(beneath.create("f", false).is_err());
        assert!(beneath.link("l/x", "y").is_err());
        assert!(beneath.create("../x", false).is_err());
        assert!(beneath.create("..", false).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
        beneath.create("a/b/c", true).unwrap().write_all(b"x").unwrap();
        assert!(beneath.create("a/b/c", true).is_err());
        assert_eq!(std::fs::read(root.path().join("a/b/c")).unwrap(), b"x");
    }
}
