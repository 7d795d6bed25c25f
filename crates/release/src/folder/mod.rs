//! A folder on disk: what of it becomes a release, and how it is read back.

mod ignored;
mod links;
mod pick;
mod read;
mod suspects;
mod tokens;
mod walk;

use std::io;
use std::path::{Path, PathBuf};

use crate::names::Rule;

pub(crate) use ignored::matcher;
pub use pick::{Choice, LeftOut, Picked, fingerprint, pick};
pub(crate) use read::EXECUTE;
pub use suspects::Suspect;

/// Why a folder can't become a release, or can't be read as one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    /// It is something else.
    #[error("`{path}` is not a folder", path = .0.display())]
    NoFolder(PathBuf),
    /// A name or a link that a release can't carry.
    #[error("`{path}` can't be part of a release: {rule}")]
    Refused {
        /// Its path in the folder.
        path: String,
        /// What it breaks.
        rule: Rule,
    },
    /// More than a release may hold.
    #[error(
        "the folder is too large for a release: {0}; leave out what the harness does not need, in `.kartaignore`"
    )]
    TooLarge(Rule),
    /// A line of an ignore file, or of the choice, that is no pattern.
    #[error("{place}: `{pattern}` is no pattern: {reason}")]
    Pattern {
        /// Where it stands.
        place: String,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
}

fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::File { doing, path: path.to_owned(), source }
}
