//! SQLite, called in place: by the writer on its own thread, by readers on threads that may block.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use bytes::Bytes;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ToSql};
use tokio::sync::oneshot;

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

/// Reads that may wait for one thread.
const WAITING: usize = 1024;
/// Quick reads on one thread before another helps.
const SHARED: usize = 32;

/// Threads that read, each with a connection of its own: under load one wake-up answers many.
pub(crate) struct Readers {
    threads: Mutex<Vec<Reader>>,
}

struct Reader {
    asked: tokio::sync::mpsc::Sender<Asked>,
    /// Reads that were given to it and not answered yet.
    busy: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

struct Asked {
    query: Query,
    answer: oneshot::Sender<Result<Answer, DatabaseError>>,
}

impl Readers {
    pub(super) fn new(path: &Path, durability: Durability, count: u32) -> Result<Self, DatabaseError> {
        let threads = (0..count).map(|_| Reader::start(path, durability)).collect::<Result<_, _>>()?;
        Ok(Self { threads: Mutex::new(threads) })
    }

    pub(super) async fn run(&self, query: Query) -> Result<Answer, DatabaseError> {
        let (answer, answered) = oneshot::channel();
        let (asked, busy) = {
            let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
            let busy = |reader: &&Reader| reader.busy.load(Ordering::Relaxed);
            let Some((quick, others)) = threads.split_first() else { return Err(DatabaseError::Closed) };
            // What is quick shares a thread, so that one wake-up answers many; a long list has another and holds none of it up.
            let least =
                if query.quick { threads.iter().min_by_key(busy) } else { others.iter().min_by_key(busy) };
            let reader = if query.quick && busy(&quick) < SHARED { quick } else { least.unwrap_or(quick) };
            reader.busy.fetch_add(1, Ordering::Relaxed);
            (reader.asked.clone(), reader.busy.clone())
        };
        if asked.send(Asked { query, answer }).await.is_err() {
            busy.fetch_sub(1, Ordering::Relaxed);
            return Err(DatabaseError::Closed);
        }
        answered.await.map_err(|_| DatabaseError::Cut)?
    }

    /// Waits for what is being read, and closes.
    pub(super) async fn close(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let ended = tokio::task::spawn_blocking(move || {
            for Reader { asked, thread, .. } in threads {
                drop(asked);
                // It panics nowhere; and if it did, there is nothing to do about it here.
                let _ = thread.join();
            }
        });
        // It fails only when the runtime is going down, which ends the threads too.
        let _ = ended.await;
    }
}

impl Reader {
    fn start(path: &Path, durability: Durability) -> Result<Self, DatabaseError> {
        let connection = open(path, durability)?;
        connection.execute_batch("PRAGMA query_only = ON")?;
        let (asked, mut waiting) = tokio::sync::mpsc::channel::<Asked>(WAITING);
        let busy = Arc::new(AtomicUsize::new(0));
        let answered = busy.clone();
        let thread = std::thread::Builder::new().name("store-reader".to_owned());
        let thread = thread
            .spawn(move || {
                while let Some(Asked { query, answer }) = waiting.blocking_recv() {
                    // Whoever asked may have gone.
                    if !answer.is_closed() {
                        let _ = answer.send(run(&connection, &query));
                    }
                    answered.fetch_sub(1, Ordering::Relaxed);
                }
            })
            .map_err(DatabaseError::Thread)?;
        Ok(Self { asked, busy, thread })
    }
}
