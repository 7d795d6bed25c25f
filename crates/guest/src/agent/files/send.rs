//! Things and their content, on their way to the host.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use karta_guest::beneath::{Folder, kind};
use karta_guest::proto::CHUNK;
use karta_guest::proto::record::{Entry, Item, Kind};
use rustix::fs::Stat;

use super::{Done, Out, Stop};

/// The bits of a mode that say who may do what.
const RIGHTS: u32 = 0o777;
/// The attribute by which an overlay's folder hides what the release has under it.
const OPAQUE: &str = "user.overlay.opaque";

/// An entry with what a stat says.
pub(super) fn entry(path: &Path, stat: &Stat, kind: Kind) -> Entry {
    let nanos = |seconds: i64, nanos: u64| {
        seconds.saturating_mul(1_000_000_000).saturating_add(i64::try_from(nanos).unwrap_or(0))
    };
    let changed = nanos(stat.st_ctime, stat.st_ctime_nsec);
    Entry {
        path: path.as_os_str().as_bytes().to_vec(),
        kind,
        mode: stat.st_mode & RIGHTS,
        stamp: stamp([
            u64::from_ne_bytes(changed.to_ne_bytes()),
            stat.st_ino,
            u64::from_ne_bytes(stat.st_size.to_ne_bytes()),
        ]),
        modified: nanos(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// The numbers as one, each bit of which depends on all of them.
fn stamp(numbers: [u64; 3]) -> u64 {
    numbers.into_iter().fold(0x6b61_7274_6100_0001, |sum: u64, number| {
        let mut mixed = (sum.rotate_left(23) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^= mixed >> 29;
        mixed = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 32)
    })
}

/// Whether the overlay's mark is on a folder.
pub(super) fn opaque(folder: &Folder) -> bool {
    let mut value = [0; 4];
    matches!(rustix::fs::fgetxattr(folder, OPAQUE, &mut value), Ok(1) if value[0] == b'y')
}

/// Whether this is how an overlay says that a thing of the release was removed.
pub(super) fn whiteout(stat: &Stat) -> bool {
    rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice
        && stat.st_rdev == 0
}

/// Sends a file, at most `limit` bytes of it.
pub(super) fn file(out: &mut Out, path: &Path, stat: &Stat, file: File, limit: u64) -> Done {
    let size = u64::try_from(stat.st_size).unwrap_or(0).min(limit);
    out.item(&Item::Entry(entry(path, stat, Kind::File { size })))?;
    content(out, file, size)
}

/// Sends the bytes of a file, at most so many: it may grow while it is read.
fn content(out: &mut Out, file: File, size: u64) -> Done {
    let mut file = file.take(size);
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => out.item(&Item::Data(buffer[..length].to_vec()))?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(super::super::core::failure(&error, "reading a file").into());
            }
        }
    }
}

/// Sends what lies under a name with its content; nothing if it is gone, or is what can't be sent.
pub(super) fn thing(
    out: &mut Out,
    holder: &Folder,
    name: &std::ffi::OsStr,
    path: &Path,
    marks: bool,
) -> Done {
    use karta_guest::beneath::Kind as Is;
    let Ok(stat) = holder.stat(name) else { return Ok(()) };
    match kind(&stat) {
        Is::File => match holder.read(name) {
            Ok((opened, stat)) => file(out, path, &stat, opened, u64::MAX),
            Err(_) => Ok(()),
        },
        _ => match plain(holder, name, path, &stat, marks) {
            Some(entry) => out.item(&Item::Entry(entry)),
            None => Ok(()),
        },
    }
}

/// What lies under a name; none if it is gone, or is what can't be sent: pipes, sockets, devices. With `marks`, those of an overlay
/// are understood.
pub(super) fn plain(
    holder: &Folder,
    name: &std::ffi::OsStr,
    path: &Path,
    stat: &Stat,
    marks: bool,
) -> Option<Entry> {
    use karta_guest::beneath::Kind as Is;
    Some(match kind(stat) {
        Is::File => {
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            entry(path, stat, Kind::File { size })
        }
        Is::Folder => {
            let opaque = marks && holder.child(name).is_ok_and(|folder| opaque(&folder));
            entry(path, stat, Kind::Folder { opaque })
        }
        Is::Link => {
            let target = holder.target(name).ok()?.as_bytes().to_vec();
            entry(path, stat, Kind::Link { target })
        }
        Is::Other if marks && whiteout(stat) => Entry { mode: 0, ..entry(path, stat, Kind::Removed) },
        Is::Other => return None,
    })
}

/// The release has it, the workspace does not.
pub(super) fn removed(path: &Path) -> Entry {
    let path = path.as_os_str().as_bytes().to_vec();
    Entry { path, kind: Kind::Removed, mode: 0, stamp: 0, modified: 0 }
}

impl Out {
    /// Sends an entry alone.
    pub(super) fn entry(&mut self, entry: Entry) -> Result<(), Stop> {
        self.item(&Item::Entry(entry))
    }
}
