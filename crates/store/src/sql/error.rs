//! What a database refuses.

/// An error of the database, of either kind.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// SQLite's.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// PostgreSQL's, or of the way to it.
    #[error(transparent)]
    Postgres(#[from] sqlx::Error),
    /// A statement that always answers a row answered none.
    #[error("the statement answered no row")]
    NoRow,
    /// A statement names a value that was not bound.
    #[error("the statement has {wanted} values, {bound} were bound")]
    Unbound {
        /// The highest number in the statement.
        wanted: usize,
        /// How many were bound.
        bound: usize,
    },
    /// A column of a type that only one of the databases has.
    #[error("a column of the type {0}, which is not portable")]
    Type(String),
    /// A database that is not there, with a name this program does not make one by.
    #[error("the database `{0}` is not there: create it, or choose a name of a-z, 0-9 and _")]
    Name(String),
    /// A thread of the database can't be started.
    #[error("starting a thread: {0}")]
    Thread(std::io::Error),
    /// The connections for reading are closed.
    #[error("the database is closed")]
    Closed,
    /// The thread that asked the database panicked.
    #[error("asking the database was cut short")]
    Cut,
}

impl DatabaseError {
    /// Whether something that must be unique exists already.
    pub(crate) fn is_unique_violation(&self) -> bool {
        match self {
            Self::Sqlite(rusqlite::Error::SqliteFailure(error, _)) => {
                matches!(
                    error.extended_code,
                    rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE | rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY
                )
            }
            Self::Postgres(error) => {
                error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
            }
            _ => false,
        }
    }

    /// Whether the disk is full. Under SQLite's write-ahead log that shows as an I/O error; PostgreSQL's `disk_full` is 53100.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Sqlite(rusqlite::Error::SqliteFailure(error, _)) => matches!(
                error.extended_code,
                rusqlite::ffi::SQLITE_FULL
                    | rusqlite::ffi::SQLITE_IOERR
                    | rusqlite::ffi::SQLITE_IOERR_WRITE
                    | rusqlite::ffi::SQLITE_IOERR_FSYNC
                    | rusqlite::ffi::SQLITE_IOERR_SHMSIZE
            ),
            Self::Postgres(error) => {
                error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("53100"))
            }
            _ => false,
        }
    }
}
