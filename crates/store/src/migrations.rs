//! The changes of the database, in order. Each is one portable file, embedded; a file that was run is never edited.

use crate::row::Reader;
use crate::sql::{Connection, DatabaseError, query};
use crate::{Error, Result};

struct Migration {
    version: i64,
    name: &'static str,
    sql: &'static str,
    /// What only one of the databases understands: its triggers.
    sqlite: &'static str,
    postgres: &'static str,
}

macro_rules! migration {
    ($version:literal, $name:literal) => {
        Migration {
            version: $version,
            name: $name,
            sql: include_str!(concat!("../../../migrations/", $name, ".sql")),
            sqlite: "",
            postgres: "",
        }
    };
    ($version:literal, $name:literal, dialects) => {
        Migration {
            sqlite: include_str!(concat!("../../../migrations/", $name, ".sqlite.sql")),
            postgres: include_str!(concat!("../../../migrations/", $name, ".postgres.sql")),
            ..migration!($version, $name)
        }
    };
}

const ALL: &[Migration] = &[
    migration!(1, "0001_start"),
    migration!(2, "0002_audit", dialects),
    migration!(3, "0003_keys"),
    migration!(4, "0004_budgets"),
    migration!(5, "0005_provider_keys"),
    migration!(6, "0006_session_tokens"),
    migration!(7, "0007_people"),
    migration!(8, "0008_webhooks"),
    migration!(9, "0009_handover"),
    migration!(10, "0010_billing"),
    migration!(11, "0011_token_caps"),
];

/// What keeps two servers from changing one PostgreSQL database at once: a number nobody else has a reason to lock.
const LOCK: &str = "SELECT pg_advisory_lock(5287112763290101)";
const UNLOCK: &str = "SELECT pg_advisory_unlock(5287112763290101)";

/// Brings the database up to this version.
pub(crate) async fn run(db: &mut Connection) -> Result<()> {
    let postgres = matches!(db, Connection::Postgres { .. });
    if postgres {
        db.batch(LOCK).await.map_err(Error::database("locking the database's version"))?;
    }
    let done = steps(db).await;
    if postgres {
        db.batch(UNLOCK).await.map_err(Error::database("unlocking the database's version"))?;
    }
    done
}

/// Whether the database has this version. A data plane changes nothing of it.
pub(crate) async fn check(db: &mut Connection) -> Result<()> {
    let row = query("SELECT MAX(version) FROM migration")
        .fetch_one(db)
        .await
        .map_err(Error::database("reading the database's version"))?;
    let found = Reader::new(&row).maybe_int("version")?.unwrap_or_default();
    match (found, ALL.last().map_or(0, |last| last.version)) {
        (found, known) if found > known => Err(Error::Newer { found, known }),
        (found, known) if found < known => Err(Error::Older { found, known }),
        _ => Ok(()),
    }
}

async fn steps(db: &mut Connection) -> Result<()> {
    db.batch(
        "CREATE TABLE IF NOT EXISTS migration (version BIGINT PRIMARY KEY, name TEXT NOT NULL, digest BYTEA NOT NULL)",
    )
    .await
    .map_err(Error::database("reading the database's version"))?;
    adopt(db).await?;
    let known = query("SELECT version, digest FROM migration ORDER BY version")
        .fetch_all(&mut *db)
        .await
        .map_err(Error::database("reading the database's version"))?;
    let mut reached = 0;
    for row in &known {
        let mut row = Reader::new(row);
        let version = row.int("version")?;
        let Some(migration) = ALL.iter().find(|migration| migration.version == version) else {
            return Err(Error::Newer { found: version, known: ALL.last().map_or(0, |last| last.version) });
        };
        if *row.bytes("digest")? != digest(migration) {
            return Err(Error::Edited { version, name: migration.name });
        }
        reached = version;
    }
    for migration in ALL.iter().filter(|migration| migration.version > reached) {
        let applied = apply(db, migration).await;
        if let Err(error) = applied {
            // When the database has rolled back by itself this fails, which is as good.
            let _ = query("ROLLBACK").execute(&mut *db).await;
            return Err(Error::database("bringing the database up to this version")(error));
        }
    }
    Ok(())
}

async fn apply(db: &mut Connection, migration: &Migration) -> Result<(), DatabaseError> {
    db.begin().await?;
    db.batch(migration.sql).await?;
    let more = if matches!(db, Connection::Postgres { .. }) { migration.postgres } else { migration.sqlite };
    if !more.is_empty() {
        db.batch(more).await?;
    }
    record(db, migration).await?;
    query("COMMIT").execute(db).await.map(drop)
}

async fn record(db: &mut Connection, migration: &Migration) -> Result<(), DatabaseError> {
    query(
        "INSERT INTO migration (version, name, digest) VALUES ($1, $2, $3) ON CONFLICT (version) DO NOTHING",
    )
    .bind(migration.version)
    .bind(migration.name)
    .bind(digest(migration).to_vec())
    .execute(db)
    .await
    .map(drop)
}

/// A database of the first weeks has its version in another table.
async fn adopt(db: &mut Connection) -> Result<()> {
    let fail = || Error::database("reading the database's earlier version");
    let table = match db {
        Connection::Sqlite(_) => {
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name = '_sqlx_migrations'"
        }
        Connection::Postgres { .. } => {
            "SELECT CAST(table_name AS TEXT) FROM information_schema.tables \
             WHERE table_schema = current_schema() AND table_name = '_sqlx_migrations'"
        }
    };
    if query(table).fetch_optional(&mut *db).await.map_err(fail())?.is_none() {
        return Ok(());
    }
    record(db, &ALL[0]).await.map_err(fail())
}

fn digest(migration: &Migration) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, migration.sql.as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}
