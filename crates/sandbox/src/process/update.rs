//! Brings a place from one release to another: what the session changed stays, all else becomes as the new release says.
//!
//! For each path there are three states: as the old release had it, as the new one has it, as it is now. What is now as in the old
//! becomes as in the new; what is neither was changed by the session. Each single change is one rename, so a run that was cut
//! off can be run again from the start.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use super::copy;
use super::manifest::{Entry, Manifest};
use karta_guest::beneath::{Folder, Kind, blocked, kind};

/// Where a change is prepared: a name in the place beside the session's folders.
const PART: &str = "part";

/// How a path is now.
#[derive(PartialEq, Eq)]
enum Now<'a> {
    /// As a release has it, or absent.
    As(Option<&'a Entry>),
    /// In no way a release knows.
    Own,
    /// Not to be reached: something else is where a folder above it was.
    Behind,
}

/// Changes `work`; `place` is the folder that holds it. Answers the files that stay different.
pub(super) fn update(
    place: &Folder,
    work: &Folder,
    release: &Folder,
    old: &Manifest,
    new: &Manifest,
) -> io::Result<Vec<String>> {
    let mut kept = Vec::new();
    // What is in a folder goes before the folder.
    for (path, entry) in old.iter().rev().filter(|(path, _)| !new.contains_key(*path)) {
        match now(work, path, Some(entry), None)? {
            // Nobody has it any more.
            Now::As(None) | Now::Behind => {}
            Now::As(Some(Entry::Folder)) => {
                let (holder, name) = work.holder(path, false)?;
                // Files of the session in it keep it.
                let _ = holder.remove_folder(name);
            }
            Now::As(Some(_)) => {
                let (holder, name) = work.holder(path, false)?;
                holder.remove(name)?;
            }
            Now::Own => keep(&mut kept, path, entry),
        }
    }
    for (path, entry) in new {
        let before = old.get(path);
        let is = now(work, path, before, Some(entry))?;
        if is == Now::As(Some(entry)) {
            continue;
        }
        let untouched = is == Now::As(before);
        if !untouched || !put(place, work, release, path, before, entry)? {
            keep(&mut kept, path, entry);
        }
    }
    kept.sort_unstable();
    Ok(kept)
}

/// Folders are not listed: what is in them is.
fn keep(kept: &mut Vec<String>, path: &Path, entry: &Entry) {
    if *entry != Entry::Folder {
        kept.push(path.to_string_lossy().into_owned());
    }
}

/// How the path is now, compared with what the two releases have there.
fn now<'a>(
    work: &Folder,
    path: &Path,
    old: Option<&'a Entry>,
    new: Option<&'a Entry>,
) -> io::Result<Now<'a>> {
    let known = [old, new];
    match look(work, path, known) {
        Ok(is) => {
            let same = known.into_iter().flatten().find(|entry| is.as_ref() == Some(*entry));
            Ok(same.map_or(Now::Own, |entry| Now::As(Some(entry))))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Now::As(None)),
        Err(error) if blocked(&error) => Ok(Now::Behind),
        Err(error) => Err(error),
    }
}

/// What is there; none for what no release could have put there.
fn look(work: &Folder, path: &Path, known: [Option<&Entry>; 2]) -> io::Result<Option<Entry>> {
    let (holder, name) = work.holder(path, false)?;
    let stat = holder.stat(name)?;
    Ok(match kind(&stat) {
        Kind::Folder => Some(Entry::Folder),
        Kind::Link => Some(Entry::Link { target: holder.target(name)? }),
        Kind::File => {
            let length = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
            let possible = known
                .into_iter()
                .flatten()
                .any(|entry| matches!(entry, Entry::File { size, .. } if *size == length));
            // A session's huge file is not worth reading to learn that it is the session's.
            if possible { Some(copy::file(&holder, name, None)?) } else { None }
        }
        Kind::Other => None,
    })
}

/// Makes the path as the new release has it. False if something of the session is in the way.
fn put(
    place: &Folder,
    work: &Folder,
    release: &Folder,
    path: &Path,
    before: Option<&Entry>,
    entry: &Entry,
) -> io::Result<bool> {
    let part = OsStr::new(PART);
    let (holder, name) = match work.holder(path, true) {
        Ok(found) => found,
        Err(error) if blocked(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    match entry {
        Entry::Folder => drop(place.make(part)?),
        Entry::Link { target } => place.link(part, target)?,
        Entry::File { .. } => {
            let (source, source_name) = release.holder(path, false)?;
            copy::file(&source, source_name, Some((place, part)))?;
        }
    }
    match (before, entry) {
        // A folder and a file can't be renamed over each other, but they can change places.
        (Some(Entry::Folder), _) | (Some(_), Entry::Folder) => {
            place.exchange(part, &holder, name)?;
            let gone =
                if before == Some(&Entry::Folder) { place.remove_folder(part) } else { place.remove(part) };
            if gone.is_err() {
                // Files of the session are in the folder: it stays.
                place.exchange(part, &holder, name)?;
                if *entry == Entry::Folder {
                    place.remove_folder(part)?;
                } else {
                    place.remove(part)?;
                }
                return Ok(false);
            }
        }
        _ => place.rename(part, &holder, name)?,
    }
    Ok(true)
}
