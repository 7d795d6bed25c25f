//! PostgreSQL, over its connection.

use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{
    AssertSqlSafe, Column as _, Connection as _, Either, Executor as _, PgConnection, PgPool, Row as _,
    TypeInfo as _,
};

use super::value::Kind;
use super::{Answer, DatabaseError, Query, Row, Value};

/// How long a read waits for a connection.
const PATIENCE: Duration = Duration::from_secs(30);
/// `invalid_catalog_name`: the database is not there.
const NO_DATABASE: &str = "3D000";

/// Connects; a database that is not there yet is made.
pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, DatabaseError> {
    match PgConnection::connect_with(options).await {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(NO_DATABASE) => {
            create(options).await?;
            Ok(PgConnection::connect_with(options).await?)
        }
        connection => Ok(connection?),
    }
}

async fn create(options: &PgConnectOptions) -> Result<(), DatabaseError> {
    let name = options.get_database().unwrap_or_default();
    // A name can't be bound; one that needs no quoting can't be anything but a name.
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if name.is_empty() || !plain {
        return Err(DatabaseError::Name(name.to_owned()));
    }
    let mut connection = PgConnection::connect_with(&options.clone().database("postgres")).await?;
    let made = connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await;
    close(connection).await;
    match made {
        // Another server was first.
        Err(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("42P04" | "23505")) => {
            Ok(())
        }
        made => Ok(made.map(drop)?),
    }
}

pub(super) async fn readers(options: &PgConnectOptions, count: u32) -> Result<PgPool, DatabaseError> {
    let pool = PgPoolOptions::new().max_connections(count).acquire_timeout(PATIENCE);
    Ok(pool.connect_with(options.clone()).await?)
}

pub(super) async fn run(connection: &mut PgConnection, query: Query) -> Result<Answer, DatabaseError> {
    // Only texts of the program come this far: `query` takes nothing else, and `Builder` joins nothing else.
    let mut statement = sqlx::query::<sqlx::Postgres>(AssertSqlSafe(query.sql.into_owned()));
    for value in query.values {
        statement = bind(statement, value);
    }
    let mut answer = Answer::default();
    let mut results = connection.fetch_many(statement);
    while let Some(result) = results.try_next().await? {
        match result {
            Either::Left(done) => answer.affected += done.rows_affected(),
            Either::Right(row) => answer.rows.push(read(&row)?),
        }
    }
    Ok(answer)
}

pub(super) async fn batch(connection: &mut PgConnection, sql: &'static str) -> Result<(), DatabaseError> {
    sqlx::raw_sql(sql).execute(connection).await?;
    Ok(())
}

pub(super) async fn close(connection: PgConnection) {
    // The server notices either way.
    let _ = connection.close().await;
}

type Statement<'q> = sqlx::query::Query<'q, sqlx::Postgres, PgArguments>;

fn bind(statement: Statement<'_>, value: Value) -> Statement<'_> {
    match value {
        Value::Null(Kind::Int) => statement.bind(None::<i64>),
        Value::Null(Kind::Text) => statement.bind(None::<String>),
        Value::Null(Kind::Bytes) => statement.bind(None::<Vec<u8>>),
        Value::Int(number) => statement.bind(number),
        Value::Text(text) => statement.bind(text),
        Value::Bytes(bytes) => statement.bind(Vec::from(bytes)),
    }
}

fn read(row: &PgRow) -> Result<Row, DatabaseError> {
    let mut values = Vec::with_capacity(row.len());
    for (at, column) in row.columns().iter().enumerate() {
        values.push(match column.type_info().name() {
            "INT8" => row.try_get::<Option<i64>, _>(at)?.map_or(Value::Null(Kind::Int), Value::Int),
            "INT4" => {
                row.try_get::<Option<i32>, _>(at)?.map_or(Value::Null(Kind::Int), |it| Value::Int(it.into()))
            }
            "TEXT" => row.try_get::<Option<String>, _>(at)?.map_or(Value::Null(Kind::Text), Value::Text),
            "BYTEA" => row
                .try_get::<Option<Vec<u8>>, _>(at)?
                .map_or(Value::Null(Kind::Bytes), |bytes| Value::Bytes(Bytes::from(bytes))),
            other => return Err(DatabaseError::Type(other.to_owned())),
        });
    }
    Ok(Row(values))
}
