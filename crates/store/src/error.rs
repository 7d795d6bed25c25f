//! What the store can't do.

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
        source: sqlx::Error,
    },
    /// The migrations can't be run.
    #[error("bringing the database up to this version")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl Error {
    pub(crate) fn database(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| if is_full(&source) { Self::Full } else { Self::Database { doing, source } }
    }

    /// As [`Error::database`], but a unique violation is a conflict about `what`.
    pub(crate) fn unique(doing: &'static str, what: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| {
            let unique =
                source.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation);
            if unique { Self::Conflict(what) } else { Self::database(doing)(source) }
        }
    }
}

/// `SQLITE_FULL` is 13; a full disk under the write-ahead log shows as an I/O error; `PostgreSQL`'s `disk_full` is 53100.
fn is_full(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    match error.code().as_deref() {
        Some("13" | "53100") => true,
        Some(code) if code == "10" || code == "778" || code == "1034" || code == "4874" => true,
        _ => error.message().contains("disk is full"),
    }
}
