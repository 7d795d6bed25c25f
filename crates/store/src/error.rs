//! What the store can't do.

use crate::sql::DatabaseError;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The row is not there, or belongs to another organisation.
    #[error("no such row")]
    NotFound,
    /// Somebody else owns the session now: the write was refused.
    #[error("another owner took the session")]
    Fenced,
    /// Something that must be unique exists already.
    #[error("{0} exists already")]
    Conflict(&'static str),
    /// Nobody would own the organisation any more.
    #[error("the organisation would be left without an owner")]
    LastOwner,
    /// Others changed the same rows meanwhile, again and again.
    #[error("others changed the same rows at the same time")]
    Raced,
    /// The disk is full.
    #[error("the disk is full")]
    Full,
    /// Sealed bytes do not open: the key is another one, or they were moved or changed.
    #[error("{0} does not open with the key at hand")]
    Sealed(&'static str),
    /// A key file can't be read or made.
    #[error("the key file `{path}`: {reason}")]
    Key {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A row holds what no version of the store has written.
    #[error("the row holds an unreadable {0}")]
    Corrupt(&'static str),
    /// The database failed.
    #[error("{doing}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: DatabaseError,
    },
    /// A newer Karta wrote the database.
    #[error(
        "the database has version {found}, this program knows versions up to {known}: run the newer program"
    )]
    Newer {
        /// What it has.
        found: i64,
        /// What is known.
        known: i64,
    },
    /// The control plane has not brought the database up yet.
    #[error(
        "the database has version {found}, this program needs version {known}: start the control plane of this version first"
    )]
    Older {
        /// What it has.
        found: i64,
        /// What is needed.
        known: i64,
    },
    /// A data plane was pointed at a database that only one process can open.
    #[error("a data plane of its own needs PostgreSQL: set `database = \"postgres://…\"`")]
    NeedsPostgres,
    /// The text of a change that was run is another one now.
    #[error(
        "the database's change {version} (`{name}`) was run with another text: this program was built from an edited file"
    )]
    Edited {
        /// Which.
        version: i64,
        /// Its name.
        name: &'static str,
    },
    /// The thread that writes can't be started.
    #[error("starting the thread that writes")]
    Thread(#[source] std::io::Error),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl Error {
    pub(crate) fn database(doing: &'static str) -> impl FnOnce(DatabaseError) -> Self {
        move |source| if source.is_full() { Self::Full } else { Self::Database { doing, source } }
    }

    /// As [`Error::database`], but a unique violation is a conflict about `what`.
    pub(crate) fn unique(doing: &'static str, what: &'static str) -> impl FnOnce(DatabaseError) -> Self {
        move |source| {
            if source.is_unique_violation() { Self::Conflict(what) } else { Self::database(doing)(source) }
        }
    }
}
