//! Files on their way: tar, packed with zstd or gzip, written the same way every time and read with nothing taken on trust.
//!
//! A **whole** archive holds the files. A **partial** one begins with `.karta/files.json`, the list of all files, and goes on with the
//! contents that the other side lacks, each once, as `.karta/content/<hash>`.

mod header;
mod kept;
mod members;
mod pack;
mod press;
mod stream;
mod sync;
mod unpack;

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::hash::Hash;
use crate::names::Rule;

pub use kept::{contents, listing};
pub use pack::{pack, pack_gzip};
pub use unpack::unpack;

/// The member of a partial archive that lists the files.
pub const LISTING: &str = ".karta/files.json";
/// The folder of a partial archive that holds the contents.
pub const CONTENT: &str = ".karta/content/";

/// How much an archive may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Members, folders too; also entries of a listing.
    pub members: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes of one file.
    pub file: u64,
    /// Unpacked bytes for each packed one. Judged once there is a mebibyte.
    pub ratio: u64,
    /// Bytes of the listing of a partial archive.
    pub listing: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { members: 100_000, bytes: 2 << 30, file: 1 << 30, ratio: 200, listing: 32 << 20 }
    }
}

impl Limits {
    /// For archives that this platform wrote itself: what was let in comes back, however it can be packed.
    pub const fn own() -> Self {
        Self { members: u64::MAX, bytes: u64::MAX, file: u64::MAX, ratio: u64::MAX, listing: 1 << 30 }
    }
}

/// Contents that are there already.
pub trait Known {
    /// Writes the content into the empty file; `false` if it is not here.
    ///
    /// # Errors
    /// Reading or writing failed.
    fn fetch(&self, hash: &Hash, to: &mut fs::File) -> io::Result<bool>;
}

/// Nothing is there yet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nothing;

impl Known for Nothing {
    fn fetch(&self, _hash: &Hash, _to: &mut fs::File) -> io::Result<bool> {
        Ok(false)
    }
}

/// Why an archive was not unpacked. What was unpacked before is left in the folder, for the caller to remove with it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A member breaks a rule.
    #[error("the archive's member `{member}` is refused: {rule}")]
    Refused {
        /// The member's name, made printable.
        member: String,
        /// What it breaks.
        rule: Rule,
    },
    /// It holds nothing.
    #[error("the archive holds no files")]
    Empty,
    /// It is cut off.
    #[error("the archive ends before its end: it was cut off on its way, or where it was made")]
    Truncated,
    /// It is no archive, or is damaged.
    #[error("the archive can't be read: {0}")]
    Broken(String),
    /// Contents that were not sent, and are not here.
    #[error("{} contents were not sent and are not here", .0.len())]
    Lacking(Vec<Hash>),
    /// It stopped coming.
    #[error("reading the archive")]
    Reading(#[source] io::Error),
    /// A file operation failed.
    #[error("{doing} `{path}`", path = path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether there is no room left on the disk, or for this user on it.
    pub fn is_full(&self) -> bool {
        let full = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        };
        matches!(self, Self::File { source, .. } if full(source))
    }

    fn refused(member: &[u8], rule: Rule) -> Self {
        Self::Refused { member: printable(member), rule }
    }
}

/// A name as it can be shown: whatever it holds, it is one line, and not a long one.
fn printable(name: &[u8]) -> String {
    const SHOWN: usize = 200;
    let text = String::from_utf8_lossy(name);
    let mut shown = String::new();
    for letter in text.chars().take(SHOWN) {
        if letter.is_control() { shown.extend(letter.escape_default()) } else { shown.push(letter) }
    }
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}
