//! A folder held open, and what lies beneath it, reached without following a symbolic link.
//!
//! A session may change its place at any moment, so a path that was looked at means nothing when it is used. Here each level is
//! opened from the one above, `..` and links are refused, and the last step works on the open folder.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

/// A folder that is open.
#[derive(Debug)]
pub struct Folder(OwnedFd);

/// What lies under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
    /// Pipes, sockets and devices.
    Other,
}

/// How a folder is opened: never through a link.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How a file is opened: a pipe in its place must not block.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

impl Folder {
    /// Opens a folder the platform itself named.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Opens the folder of this name.
    pub fn child(&self, name: &OsStr) -> io::Result<Self> {
        Ok(Self(rustix::fs::openat(&self.0, name, FOLDER, Mode::empty())?))
    }

    /// Opens the folder of this name; makes it, for its owner only, if there is none.
    pub fn make(&self, name: &OsStr) -> io::Result<Self> {
        match rustix::fs::mkdirat(&self.0, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => self.child(name),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the folder a relative path leads to; an empty path leads to this one.
    pub fn walk(&self, path: &Path, make: bool) -> io::Result<Self> {
        let mut here = Self(self.0.try_clone()?);
        for part in path.components() {
            let Component::Normal(name) = part else { return Err(Errno::XDEV.into()) };
            here = if make { here.make(name)? } else { here.child(name)? };
        }
        Ok(here)
    }

    /// Opens the folder that holds the path's last name, and gives that name.
    pub fn holder<'a>(&self, path: &'a Path, make: bool) -> io::Result<(Self, &'a OsStr)> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        Ok((self.walk(path.parent().unwrap_or_else(|| Path::new("")), make)?, name))
    }

    /// What lies under this name, itself, not what a link points to.
    pub fn stat(&self, name: &OsStr) -> io::Result<Stat> {
        Ok(rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Opens the regular file of this name for reading.
    pub fn read(&self, name: &OsStr) -> io::Result<(File, Stat)> {
        let file = File::from(rustix::fs::openat(&self.0, name, FILE, Mode::empty())?);
        let stat = rustix::fs::fstat(&file)?;
        if kind(&stat) == Kind::File { Ok((file, stat)) } else { Err(io::Error::other("not a regular file")) }
    }

    /// Makes a file that was not there, for its owner only.
    pub fn create(&self, name: &OsStr, executable: bool) -> io::Result<File> {
        let mode = if executable { Mode::RWXU } else { Mode::RUSR | Mode::WUSR };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&self.0, name, flags, mode)?))
    }

    /// Makes a symbolic link.
    pub fn link(&self, name: &OsStr, target: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, &self.0, name)?)
    }

    /// What the symbolic link of this name points to.
    pub fn target(&self, name: &OsStr) -> io::Result<OsString> {
        Ok(OsString::from_vec(rustix::fs::readlinkat(&self.0, name, Vec::new())?.into_bytes()))
    }

    /// Removes a file or a link.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// Removes an empty folder.
    pub fn remove_folder(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR)?)
    }

    /// Moves a name to another folder, over what is there.
    pub fn rename(&self, name: &OsStr, to: &Self, as_name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, name, &to.0, as_name)?)
    }

    /// Lets two names change places.
    pub fn exchange(&self, name: &OsStr, with: &Self, other: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::renameat_with(&self.0, name, &with.0, other, RenameFlags::EXCHANGE)?)
    }

    /// Lets the owner read and write the folder of this name again.
    pub fn unlock(&self, name: &OsStr) -> io::Result<()> {
        if kind(&self.stat(name)?) == Kind::Folder {
            rustix::fs::chmodat(&self.0, name, Mode::RWXU, AtFlags::empty())?;
        }
        Ok(())
    }

    /// The names in the folder, sorted; an error beyond `most`.
    pub fn list(&self, most: usize) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            let entry = entry?;
            let name: &CStr = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if names.len() == most {
                return Err(io::Error::other(format!("a folder holds more than {most} names")));
            }
            names.push(OsStr::from_bytes(name.to_bytes()).to_owned());
        }
        names.sort_unstable();
        Ok(names)
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a stat is of.
pub fn kind(stat: &Stat) -> Kind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Folder,
        FileType::RegularFile => Kind::File,
        FileType::Symlink => Kind::Link,
        _ => Kind::Other,
    }
}

/// Whether a failure on the way to a path says that the session put something else there.
pub fn blocked(error: &io::Error) -> bool {
    let code = Errno::from_io_error(error);
    matches!(code, Some(Errno::LOOP | Errno::NOTDIR | Errno::ACCESS | Errno::PERM | Errno::XDEV))
}
