//! Removes a whole tree, whatever a session made of it: read-only folders, links, any depth.

use std::ffi::{OsStr, OsString};
use std::io;

use rustix::io::Errno;

use crate::beneath::{Folder, Kind, kind};

/// How deep folders are held open; deeper ones are moved to the top first.
const DEPTH: usize = 32;
/// How often names that come back, or were moved up, are looked at again.
const ROUNDS: usize = 100_000;
/// Names looked at in one go.
const NAMES: usize = 5_000_000;

/// Removes what lies under this name. No error if there is nothing.
pub fn remove(holder: &Folder, name: &OsStr) -> io::Result<()> {
    match holder.stat(name) {
        Ok(stat) if kind(&stat) == Kind::Folder => {}
        Ok(_) => return holder.remove(name),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    holder.unlock(name)?;
    let top = holder.child(name)?;
    let mut moved = 0;
    for _ in 0..ROUNDS {
        if top.list(NAMES)?.is_empty() {
            return missing_is_fine(holder.remove_folder(name));
        }
        empty(&top, &top, DEPTH, &mut moved)?;
    }
    Err(io::Error::other("files come back as fast as they are removed: end what writes there and try again"))
}

fn empty(top: &Folder, folder: &Folder, depth: usize, moved: &mut u64) -> io::Result<()> {
    for name in folder.list(NAMES)? {
        let stat = match folder.stat(&name) {
            Ok(stat) => stat,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if kind(&stat) != Kind::Folder {
            missing_is_fine(folder.remove(&name))?;
            continue;
        }
        folder.unlock(&name)?;
        if depth == 0 {
            // The session may have taken such a name: then the next one.
            loop {
                *moved += 1;
                match folder.rename(&name, top, &OsString::from(format!("deep-{moved}"))) {
                    Ok(()) => break,
                    Err(error) if taken(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            continue;
        }
        empty(top, &folder.child(&name)?, depth - 1, moved)?;
        missing_is_fine(folder.remove_folder(&name))?;
    }
    Ok(())
}

fn taken(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR | Errno::ISDIR))
}

/// Another removal may be at work on the same tree.
fn missing_is_fine(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
