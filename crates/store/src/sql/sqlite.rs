//! SQLite, called in place: by the writer on its own thread, by readers on threads that may block.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use bytes::Bytes;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ToSql};
use tokio::sync::Semaphore;

use super::value::Kind;
use super::{Answer, DatabaseError, Query, Row, Value};
use crate::db::Durability;

/// Statements kept ready on each connection: more than the store has.
const STATEMENTS: usize = 256;
/// Operations between two moves of the log.
const CHECKPOINT: usize = 512;

pub(super) fn open(path: &Path, durability: Durability) -> Result<Connection, DatabaseError> {
    let connection = Connection::open(path)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.execute_batch(
        "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -4096; \
         PRAGMA wal_autocheckpoint = 16000",
    )?;
    connection.execute_batch(match durability {
        Durability::Process => "PRAGMA synchronous = NORMAL",
        Durability::Power => "PRAGMA synchronous = FULL",
    })?;
    Ok(connection)
}

/// The connection that writes, and the thread that moves what it wrote from the log into the database meanwhile.
pub(crate) struct Writer {
    pub(super) connection: Connection,
    checkpoints: Option<mpsc::SyncSender<()>>,
    behind: Option<JoinHandle<()>>,
    since: usize,
}

impl Writer {
    pub(super) fn open(path: &Path, durability: Durability) -> Result<Self, DatabaseError> {
        let connection = open(path, durability)?;
        let behind = open(path, durability)?;
        let (checkpoints, wanted) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("store-checkpoint".to_owned());
        let behind = thread
            .spawn(move || {
                for () in wanted {
                    let moved = behind.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
                    if let Err(error) = moved {
                        // The writer moves it itself when the log has grown.
                        tracing::warn!(%error, "moving the log into the database");
                    }
                }
            })
            .map_err(DatabaseError::Thread)?;
        Ok(Self { connection, checkpoints: Some(checkpoints), behind: Some(behind), since: 0 })
    }

    pub(super) fn committed(&mut self, operations: usize) {
        self.since += operations;
        if self.since >= CHECKPOINT {
            self.since = 0;
            // Full: one is wanted already.
            let _ = self.checkpoints.as_ref().map(|wanted| wanted.try_send(()));
        }
    }
}

impl Drop for Writer {
    /// Nothing holds the files when it is gone.
    fn drop(&mut self) {
        self.checkpoints = None;
        if let Some(behind) = self.behind.take() {
            // It panics nowhere; and if it did, there is nothing to do about it here.
            let _ = behind.join();
        }
    }
}

pub(super) fn run(connection: &Connection, query: &Query) -> Result<Answer, DatabaseError> {
    let mut statement = connection.prepare_cached(&query.sql)?;
    for at in 1..=statement.parameter_count() {
        // SQLite numbers `$7` by where it stands, not by its name.
        let name = statement.parameter_name(at).and_then(|name| name.strip_prefix('$'));
        let number = name.and_then(|name| name.parse().ok()).unwrap_or(at);
        let Some(value) = query.values.get(number - 1) else {
            return Err(DatabaseError::Unbound { wanted: number, bound: query.values.len() });
        };
        statement.raw_bind_parameter(at, value)?;
    }
    let columns = statement.column_count();
    if columns == 0 {
        let affected = statement.raw_execute()?;
        return Ok(Answer { rows: Vec::new(), affected: affected as u64 });
    }
    let mut answer = Answer::default();
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        let mut values = Vec::with_capacity(columns);
        for column in 0..columns {
            values.push(match row.get_ref(column)? {
                ValueRef::Null => Value::Null(Kind::Text),
                ValueRef::Integer(number) => Value::Int(number),
                ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
                ValueRef::Blob(bytes) => Value::Bytes(Bytes::copy_from_slice(bytes)),
                ValueRef::Real(_) => return Err(DatabaseError::Type("REAL".to_owned())),
            });
        }
        answer.rows.push(Row(values));
    }
    answer.affected = answer.rows.len() as u64;
    Ok(answer)
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null(_) => ValueRef::Null,
            Self::Int(number) => ValueRef::Integer(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// Connections for reading, opened when they are needed.
pub(crate) struct Readers {
    path: PathBuf,
    durability: Durability,
    permits: Semaphore,
    idle: Arc<Mutex<Vec<Connection>>>,
}

impl Readers {
    pub(super) fn new(path: &Path, durability: Durability, count: u32) -> Self {
        Self {
            path: path.to_owned(),
            durability,
            permits: Semaphore::new(count as usize),
            idle: Arc::default(),
        }
    }

    pub(super) async fn run(&self, query: Query) -> Result<Answer, DatabaseError> {
        let _permit = self.permits.acquire().await.map_err(|_| DatabaseError::Closed)?;
        let idle = self.idle.clone();
        let (path, durability) = (self.path.clone(), self.durability);
        let answered = tokio::task::spawn_blocking(move || {
            let ready = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = if let Some(connection) = ready {
                connection
            } else {
                let connection = open(&path, durability)?;
                connection.execute_batch("PRAGMA query_only = ON")?;
                connection
            };
            let answer = run(&connection, &query);
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            answer
        });
        answered.await.map_err(|_| DatabaseError::Cut)?
    }

    pub(super) fn close(&self) {
        self.permits.close();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
