//! Writes one file.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use karta_guest::beneath::blocked;
use karta_guest::paths::plain;
use karta_guest::proto::message::{Base, Failure};

use super::super::core::failure;
use super::{Done, Folders};

/// The number that says "the session put something else in the way of the path".
const ESCAPE: i32 = libc::EXDEV;

/// Writes the bytes of `input` to a file. Whoever reads it meanwhile sees the old or the new one, whole.
pub(super) fn put(folders: &Folders, base: Base, path: &[u8], size: u64, input: &mut File) -> Done {
    let path = Path::new(OsStr::from_bytes(path));
    let doing = || format!("writing `{}`", path.display());
    let Some(path) = plain(path) else {
        return Err(Failure { errno: ESCAPE, text: doing() }.into());
    };
    let refused = |error: io::Error| {
        let errno = if blocked(&error) { ESCAPE } else { error.raw_os_error().unwrap_or(0) };
        Failure { errno, ..failure(&error, &doing()) }
    };
    let (holder, name) = folders.base(base).holder(&path, true).map_err(refused)?;
    let part = unused();
    let written = holder.create(&part, false).and_then(|mut file| {
        // One byte more is asked for, so that too many are seen as well as too few.
        if io::copy(&mut input.take(size.saturating_add(1)), &mut file)? != size {
            return Err(io::Error::other("not as many bytes came as were announced"));
        }
        holder.rename(&part, &holder, name)
    });
    if written.is_err() {
        let _ = holder.remove(&part);
    }
    Ok(written.map_err(|error| failure(&error, &doing()))?)
}

/// A name that nobody uses.
pub(super) fn unused() -> OsString {
    let mut bytes = [0; 8];
    // Without randomness the name may be taken, and making the file fails: it is never opened when it is there.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    OsString::from(format!(".karta-{:016x}", u64::from_ne_bytes(bytes)))
}
