//! Puts things where they were, through the workspace and the home as the session sees them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use karta_guest::beneath::{Folder, Kind as Is, kind};
use karta_guest::proto::message::Failure;
use karta_guest::proto::record::{Entry, Item, Kind};
use karta_guest::remove::remove;
use rustix::fs::{AtFlags, Mode, Timespec, Timestamps};
use rustix::io::Errno;

use super::super::core::failure;
use super::put::unused;
use super::survey::{Items, split};
use super::{Done, Folders, Stop};

/// A file that is being written.
struct Open {
    holder: Folder,
    part: std::ffi::OsString,
    name: std::ffi::OsString,
    file: File,
    entry: Entry,
    left: u64,
}

/// Does what the records say.
pub(super) fn restore(folders: &Folders, input: &mut File) -> Done {
    let mut items = Items::new(input);
    let mut open: Option<Open> = None;
    // What folders are like is said last: one that may not be written could not be filled.
    let mut made: Vec<(bool, PathBuf, u32, i64)> = Vec::new();
    let done = loop {
        let item = match items.next() {
            Ok(item) => item,
            Err(stop) => break Err(stop),
        };
        let step = match item {
            Item::Data(bytes) => match &mut open {
                Some(open) => open.write(&bytes),
                None => Err(refused("bytes belong to no file")),
            },
            item => match (open.take().map_or(Ok(()), Open::finish), item) {
                (Err(stop), _) => Err(stop),
                (Ok(()), Item::Entry(entry)) => one(folders, &entry, &mut made).map(|now| open = now),
                (Ok(()), Item::End) => break Ok(()),
                (Ok(()), _) => Err(refused("this is no record")),
            },
        };
        if let Err(stop) = step {
            break Err(stop);
        }
    };
    if let Some(open) = open {
        let _ = open.holder.remove(&open.part);
    }
    done?;
    for (home, path, mode, modified) in made.into_iter().rev() {
        let base = if home { &folders.home } else { &folders.work };
        let set = base.holder(&path, false).and_then(|(holder, name)| {
            let folder = holder.child(name)?;
            rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode))?;
            Ok(rustix::fs::futimens(&folder, &times(modified))?)
        });
        set.map_err(|error| failure(&error, &format!("setting the rights of `{}`", path.display())))?;
    }
    Ok(())
}

fn refused(what: &str) -> Stop {
    Failure { errno: libc::EINVAL, text: what.to_owned() }.into()
}

fn times(modified: i64) -> Timestamps {
    let second = 1_000_000_000;
    let time = Timespec { tv_sec: modified.div_euclid(second), tv_nsec: modified.rem_euclid(second) };
    Timestamps { last_access: time, last_modification: time }
}

/// Puts one thing back; a file stays open for its bytes.
fn one(
    folders: &Folders,
    entry: &Entry,
    made: &mut Vec<(bool, PathBuf, u32, i64)>,
) -> Result<Option<Open>, Stop> {
    let path = PathBuf::from(OsStr::from_bytes(&entry.path));
    let Some((home, below)) = split(&path) else { return Err(refused("a path leads nowhere")) };
    let base = if home { &folders.home } else { &folders.work };
    let mut put = || -> io::Result<Option<Open>> {
        if entry.kind == Kind::Removed {
            return match base.holder(&below, false) {
                Ok((holder, name)) => remove(&holder, name).map(|()| None),
                // What held it is gone: so is it.
                Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NOTDIR)) => {
                    Ok(None)
                }
                Err(error) => Err(error),
            };
        }
        let (holder, name) = base.holder(&below, true)?;
        let there = holder.stat(name).ok().map(|stat| kind(&stat));
        match &entry.kind {
            Kind::Folder { opaque } => {
                if there.is_some_and(|there| there != Is::Folder || *opaque) {
                    remove(&holder, name)?;
                }
                holder.make(name)?;
                made.push((home, below.clone(), entry.mode & 0o777, entry.modified));
                Ok(None)
            }
            Kind::Link { target } => {
                let part = unused();
                holder.link(&part, OsStr::from_bytes(target))?;
                let times = times(entry.modified);
                let set = rustix::fs::utimensat(&holder, &part, &times, AtFlags::SYMLINK_NOFOLLOW);
                set.map_err(io::Error::from)
                    .and_then(|()| replace(&holder, &part, name, there))
                    .map(|()| None)
            }
            Kind::File { size } => {
                let part = unused();
                let file = holder.create(&part, false)?;
                let left = *size;
                if there == Some(Is::Folder) {
                    remove(&holder, name)?;
                }
                Ok(Some(Open { holder, part, name: name.to_owned(), file, entry: entry.clone(), left }))
            }
            Kind::Removed => Ok(None),
        }
    };
    put().map_err(|error| about(&error, &path))
}

fn about(error: &io::Error, path: &Path) -> Stop {
    failure(error, &format!("putting `{}` back", path.display())).into()
}

/// Moves what was made aside to its name.
fn replace(holder: &Folder, part: &OsStr, name: &OsStr, there: Option<Is>) -> io::Result<()> {
    if there == Some(Is::Folder) {
        remove(holder, name)?;
    }
    let done = holder.rename(part, holder, name);
    if done.is_err() {
        let _ = holder.remove(part);
    }
    done
}

impl Open {
    fn path(&self) -> PathBuf {
        PathBuf::from(OsStr::from_bytes(&self.entry.path))
    }

    fn write(&mut self, bytes: &[u8]) -> Done {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            return Err(refused("a file has more bytes than its record says"));
        };
        self.left = left;
        self.file.write_all(bytes).map_err(|error| about(&error, &self.path()))
    }

    fn finish(self) -> Done {
        let done = || -> io::Result<()> {
            rustix::fs::fchmod(&self.file, Mode::from_raw_mode(self.entry.mode & 0o777))?;
            rustix::fs::futimens(&self.file, &times(self.entry.modified))?;
            replace(&self.holder, &self.part, &self.name, None)
        };
        done().map_err(|error| {
            let _ = self.holder.remove(&self.part);
            about(&error, &self.path())
        })
    }
}
