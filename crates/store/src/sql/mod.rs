//! One SQL text for two databases: statements, values and rows that both understand.
//!
//! SQLite is called in place, PostgreSQL over its connection; nothing above this folder knows which. What a statement may be is in the
//! crate's rules; its text is always known at compile time, so that no value can become a part of it.

mod error;
mod postgres;
mod sqlite;
mod value;

use std::borrow::Cow;

pub use error::DatabaseError;
pub(crate) use value::{Row, Value};

use crate::db::Durability;

/// A statement and what is bound to it.
#[derive(Debug)]
pub(crate) struct Query {
    sql: Cow<'static, str>,
    values: Vec<Value>,
    /// Whether it is answered by a few rows of an index.
    quick: bool,
}

/// A statement. `$1` is the first value bound.
pub(crate) const fn query(sql: &'static str) -> Query {
    Query { sql: Cow::Borrowed(sql), values: Vec::new(), quick: false }
}

impl Query {
    /// Binds the next value.
    pub(crate) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Runs it.
    pub(crate) async fn execute(self, on: impl Executor) -> Result<Done, DatabaseError> {
        let answer = on.run(self).await?;
        Ok(Done(answer.affected))
    }

    /// Its rows.
    pub(crate) async fn fetch_all(self, on: impl Executor) -> Result<Vec<Row>, DatabaseError> {
        Ok(on.run(self).await?.rows)
    }

    /// It is answered by a few rows of an index, and need not wait behind what is not.
    pub(crate) const fn quick(mut self) -> Self {
        self.quick = true;
        self
    }

    /// Its first row, if there is one.
    pub(crate) async fn fetch_optional(self, on: impl Executor) -> Result<Option<Row>, DatabaseError> {
        Ok(on.run(self.quick()).await?.rows.into_iter().next())
    }

    /// Its first row.
    pub(crate) async fn fetch_one(self, on: impl Executor) -> Result<Row, DatabaseError> {
        self.fetch_optional(on).await?.ok_or(DatabaseError::NoRow)
    }
}

/// A statement whose conditions vary in number. Its parts are texts of the program; values are bound.
#[derive(Debug)]
pub(crate) struct Builder {
    sql: String,
    values: Vec<Value>,
}

impl Builder {
    pub(crate) fn new(start: &'static str) -> Self {
        Self { sql: start.to_owned(), values: Vec::new() }
    }

    pub(crate) fn push(&mut self, part: &'static str) -> &mut Self {
        self.sql.push_str(part);
        self
    }

    pub(crate) fn push_bind(&mut self, value: impl Into<Value>) -> &mut Self {
        self.values.push(value.into());
        self.sql.push('$');
        self.sql.push_str(&self.values.len().to_string());
        self
    }

    pub(crate) fn build(self) -> Query {
        Query { sql: Cow::Owned(self.sql), values: self.values, quick: false }
    }
}

/// What a statement did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done(u64);

impl Done {
    pub(crate) const fn rows_affected(self) -> u64 {
        self.0
    }
}

/// What a database answers.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    rows: Vec<Row>,
    affected: u64,
}

/// Something that runs statements.
pub(crate) trait Executor {
    fn run(self, query: Query) -> impl Future<Output = Result<Answer, DatabaseError>> + Send;
}

/// The connection that writes.
pub(crate) enum Connection {
    Sqlite(sqlite::Writer),
    Postgres {
        connection: Box<sqlx::PgConnection>,
        /// Whether it is a data plane's, which has no right on what is the control plane's.
        hands_over: bool,
    },
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sqlite(_) => "Connection::Sqlite",
            Self::Postgres { .. } => "Connection::Postgres",
        })
    }
}

impl Executor for &mut Connection {
    async fn run(self, query: Query) -> Result<Answer, DatabaseError> {
        match self {
            Connection::Sqlite(writer) => sqlite::run(&writer.connection, &query),
            Connection::Postgres { connection, .. } => postgres::run(connection, query).await,
        }
    }
}

impl Connection {
    /// Whether what is the control plane's is handed over rather than written.
    pub(crate) const fn hands_over(&self) -> bool {
        matches!(self, Self::Postgres { hands_over: true, .. })
    }

    /// Begins a transaction that writes.
    pub(crate) async fn begin(&mut self) -> Result<(), DatabaseError> {
        let begin = match self {
            Self::Sqlite(_) => "BEGIN IMMEDIATE",
            Self::Postgres { .. } => "BEGIN",
        };
        query(begin).execute(self).await.map(drop)
    }

    /// Several statements that bind nothing.
    pub(crate) async fn batch(&mut self, sql: &'static str) -> Result<(), DatabaseError> {
        match self {
            Self::Sqlite(writer) => Ok(writer.connection.execute_batch(sql)?),
            Self::Postgres { connection, .. } => postgres::batch(connection, sql).await,
        }
    }

    /// So many operations were committed.
    pub(crate) fn committed(&mut self, operations: usize) {
        if let Self::Sqlite(writer) = self {
            writer.committed(operations);
        }
    }

    pub(crate) async fn close(self) {
        match self {
            Self::Sqlite(writer) => drop(writer),
            Self::Postgres { connection, .. } => postgres::close(*connection).await,
        }
    }
}

/// Where a database is.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Sqlite { path: std::path::PathBuf, durability: Durability },
    Postgres { options: Box<sqlx::postgres::PgConnectOptions>, hands_over: bool },
}

impl Place {
    /// Reads `sqlite:PATH` or `postgres://…`.
    pub(crate) fn parse(url: &str, durability: Durability, hands_over: bool) -> Result<Self, DatabaseError> {
        if let Some(path) = url.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            let path = path.split('?').next().unwrap_or(path);
            return Ok(Self::Sqlite { path: path.into(), durability });
        }
        Ok(Self::Postgres { options: Box::new(url.parse()?), hands_over })
    }

    /// Opens the connection that writes.
    pub(crate) async fn connect(&self) -> Result<Connection, DatabaseError> {
        match self {
            Self::Sqlite { path, durability } => {
                Ok(Connection::Sqlite(sqlite::Writer::open(path, *durability)?))
            }
            Self::Postgres { options, hands_over } => Ok(Connection::Postgres {
                connection: Box::new(postgres::connect(options).await?),
                hands_over: *hands_over,
            }),
        }
    }

    /// Opens up to `count` connections for reading, when they are needed.
    pub(crate) async fn readers(&self, count: u32) -> Result<Readers, DatabaseError> {
        match self {
            Self::Sqlite { path, durability } => {
                Ok(Readers::Sqlite(sqlite::Readers::new(path, *durability, count)?))
            }
            Self::Postgres { options, .. } => Ok(Readers::Postgres(postgres::readers(options, count).await?)),
        }
    }
}

/// Connections for reading.
pub(crate) enum Readers {
    Sqlite(sqlite::Readers),
    Postgres(sqlx::PgPool),
}

impl Readers {
    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite(readers) => readers.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

impl Executor for &Readers {
    async fn run(self, query: Query) -> Result<Answer, DatabaseError> {
        match self {
            Readers::Sqlite(readers) => readers.run(query).await,
            Readers::Postgres(pool) => {
                let mut connection = pool.acquire().await?;
                postgres::run(&mut connection, query).await
            }
        }
    }
}
