//! Files of the home that match a pattern.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use karta_guest::beneath::{Folder, Kind, kind};
use karta_guest::paths::{Level, Pattern};
use karta_guest::proto::message::Failure;

use super::super::core::failure;
use super::{Done, Folders, Out, send};

/// Most names a search looks at.
const SEEN: usize = 100_000;
/// Most files a search answers.
const FOUND: usize = 256;

/// Sends the newest files that match, each at most `limit` bytes.
pub(super) fn find(folders: &Folders, pattern: &[u8], limit: u64, out: &mut Out) -> Done {
    let text = Path::new(OsStr::from_bytes(pattern));
    let Some(pattern) = Pattern::parse(text) else {
        return Err(Failure { errno: libc::EXDEV, text: "this is no pattern".to_owned() }.into());
    };
    let mut search = Search { found: Vec::new(), seen: 0 };
    search
        .level(&folders.home, Path::new(""), &pattern.0)
        .map_err(|error| failure(&error, "searching the home"))?;
    search.found.sort_unstable_by(|one, other| other.cmp(one));
    search.found.truncate(FOUND);
    for (_, path) in search.found {
        let opened = folders.home.holder(&path, false).and_then(|(holder, name)| holder.read(name));
        // A file that went away since it was seen is no failure.
        if let Ok((file, stat)) = opened {
            send::file(out, &path, &stat, file, limit)?;
        }
    }
    Ok(())
}

/// A search through the levels of a home. What can't be opened, the session's own links above all, is passed over.
struct Search {
    found: Vec<((i64, u64), PathBuf)>,
    seen: usize,
}

impl Search {
    fn level(&mut self, folder: &Folder, at: &Path, levels: &[Level]) -> io::Result<()> {
        let Some((level, rest)) = levels.split_first() else { return Ok(()) };
        let names = match level {
            Level::Name(name) => vec![name.clone()],
            Level::Star(..) => folder.list(SEEN)?,
        };
        self.seen += names.len();
        if self.seen > SEEN {
            return Err(io::Error::other(format!("more than {SEEN} names to look at")));
        }
        for name in names.into_iter().filter(|name| level.matches(name)) {
            let path = at.join(&name);
            if rest.is_empty() {
                let Ok(stat) = folder.stat(&name) else { continue };
                if kind(&stat) == Kind::File {
                    self.found.push(((stat.st_mtime, stat.st_mtime_nsec), path));
                }
            } else if let Ok(child) = folder.child(&name) {
                self.level(&child, &path, rest)?;
            }
        }
        Ok(())
    }
}
