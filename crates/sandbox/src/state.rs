//! What a session has made or changed: the part of its place that outlives the machine.

use std::path::PathBuf;

use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::Error;

/// The top folder of [`Entry::path`] for the home.
pub const HOME: &str = "home";
/// The top folder of [`Entry::path`] for what differs from the release in the workspace.
pub const WORK: &str = "work";

/// One thing that a session has made or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where: `home/…` or `work/…`; no `..`, not absolute, no empty names.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// The permission bits, 0 to 0o777.
    pub mode: u32,
    /// Tells one state of a file from another on the same machine: change time in nanoseconds, inode, size, mixed. Two surveys of
    /// one machine with the same stamp mean the same content; between machines it means nothing.
    pub stamp: u64,
    /// When it was last modified, in nanoseconds since 1970.
    pub modified: i64,
}

/// What an [`Entry`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file of so many bytes.
    File {
        /// How many bytes.
        size: u64,
    },
    /// A folder. In the workspace an opaque one hides the release's folder of that name.
    Folder {
        /// Whether the release's content below it is hidden.
        opaque: bool,
    },
    /// A symbolic link.
    Link {
        /// Where it points. Any text: it is never followed by the host.
        target: PathBuf,
    },
    /// A thing of the release that the session removed.
    Removed,
}

/// A part of a stream of things with their content: each file's [`Record::Entry`] is followed by its bytes in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The next thing. Folders come before what they hold.
    Entry(Entry),
    /// Bytes of the file that was named last, at most 64 KiB each.
    Data(Bytes),
}

/// A stream of things with their content.
pub type Records = BoxStream<'static, Result<Record, Error>>;
