//! Files of the home that match a pattern.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use karta_guest::find::search;
use karta_guest::paths::Pattern;
use karta_guest::proto::message::Failure;

use super::super::core::failure;
use super::{Done, Folders, Out, send};

/// Sends the newest files that match, each at most `limit` bytes.
pub(super) fn find(folders: &Folders, pattern: &[u8], limit: u64, out: &mut Out) -> Done {
    let text = Path::new(OsStr::from_bytes(pattern));
    let Some(pattern) = Pattern::parse(text) else {
        return Err(Failure { errno: libc::EXDEV, text: "this is no pattern".to_owned() }.into());
    };
    let found = search(&folders.home, &pattern).map_err(|error| failure(&error, "searching the home"))?;
    for path in found {
        let opened = folders.home.holder(&path, false).and_then(|(holder, name)| holder.read(name));
        // A file that went away since it was seen is no failure.
        if let Ok((file, stat)) = opened {
            send::file(out, &path, &stat, file, limit)?;
        }
    }
    Ok(())
}
