//! A search for files that match a pattern, without following anything: for a home inside a sandbox, and for one of a child process.

use std::io;
use std::path::{Path, PathBuf};

use crate::beneath::{Folder, Kind, kind};
use crate::paths::{Level, Pattern};

/// Most names a search looks at.
const SEEN: usize = 100_000;
/// Most files a search answers.
const FOUND: usize = 256;

/// The files below a folder that match, newest first, at most 256.
///
/// # Errors
/// There are more than 100,000 names to look at; a folder that matches can't be listed.
pub fn search(home: &Folder, pattern: &Pattern) -> io::Result<Vec<PathBuf>> {
    let mut search = Search { found: Vec::new(), seen: 0 };
    search.level(home, Path::new(""), &pattern.0)?;
    search.found.sort_unstable_by(|one, other| other.cmp(one));
    search.found.truncate(FOUND);
    Ok(search.found.into_iter().map(|(_, path)| path).collect())
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
