//! Putting what was unpacked on the disk, for certain.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::thread;

use super::Error;
use crate::beneath::Beneath;
use crate::files::{Entry, Files};

/// How many files are synchronised at once: the disk then writes its own journal once for many of them.
const AT_ONCE: usize = 8;
/// Fewer files than this are not worth a thread.
const WORTH_A_THREAD: usize = 16;

/// Synchronises all files, then all folders from the innermost outwards, so that no name is there before what it names.
pub(super) fn all(root: &Path, files: &Files) -> Result<(), Error> {
    let plain: Vec<&str> =
        files.iter().filter(|(_, entry)| matches!(entry, Entry::File { .. })).map(|(path, _)| path).collect();
    let share = plain.len().div_ceil(AT_ONCE).max(WORTH_A_THREAD);
    thread::scope(|scope| {
        let shares: Vec<_> = plain.chunks(share).map(|paths| scope.spawn(|| some(root, paths))).collect();
        shares.into_iter().try_for_each(|share| {
            share.join().unwrap_or_else(|_| Err(at(root, "", io::Error::other("a thread died"))))
        })
    })?;
    let folders: BTreeSet<&str> =
        files.iter().flat_map(|(path, _)| path.match_indices('/').map(|(at, _)| &path[..at])).collect();
    let mut innermost_first: Vec<&str> = folders.into_iter().collect();
    innermost_first.sort_by_key(|folder| std::cmp::Reverse(folder.matches('/').count()));
    innermost_first.push("");
    let mut folder = Beneath::open(root).map_err(|error| at(root, "", error))?;
    innermost_first
        .into_iter()
        .try_for_each(|path| folder.sync_folder(path).map_err(|error| at(root, path, error)))
}

fn some(root: &Path, paths: &[&str]) -> Result<(), Error> {
    let mut folder = Beneath::open(root).map_err(|error| at(root, "", error))?;
    paths.iter().try_for_each(|path| {
        folder.read(path).and_then(|(file, _)| file.sync_all()).map_err(|error| at(root, path, error))
    })
}

fn at(root: &Path, path: &str, source: io::Error) -> Error {
    Error::File { doing: "putting on the disk", path: root.join(path), source }
}
