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
    migration!(12, "0012_activations"),
    migration!(13, "0013_publishing"),
    migration!(14, "0014_policy"),
    migration!(15, "0015_checkpoints"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Durability;
    use crate::sql::Place;

    /// A database of its own, on the server that the tests are given or in a file.
    fn place(folder: &std::path::Path, name: &str) -> Place {
        let url = match std::env::var("KARTA_TEST_POSTGRES") {
            Ok(server) => {
                let folder = folder.file_name().unwrap().as_encoded_bytes().iter();
                let folder = folder.fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
                format!("{server}/migrate_{folder}_{name}")
            }
            Err(_) => format!("sqlite:{}", folder.join(name).display()),
        };
        Place::parse(&url, Durability::Process, false).unwrap()
    }

    const TABLE: &str =
        "CREATE TABLE migration (version BIGINT PRIMARY KEY, name TEXT NOT NULL, digest BYTEA NOT NULL)";

    /// Something in the tables that every version has.
    const ROWS: &str = "INSERT INTO org (id, slug, name, created_at) VALUES ('org_1', 'one', 'One', 1); \
        INSERT INTO api_key (id, org, name, prefix, last4, digest, scopes, created_at) \
        VALUES ('key_1', 'org_1', 'k', 'kt_live_abcd', 'wxyz', 'd', 'read', 1); \
        INSERT INTO project (id, org, slug, name, created_at) VALUES ('proj_1', 'org_1', 'app', 'App', 1)";

    async fn reached(db: &mut Connection) -> (i64, i64) {
        let row = query("SELECT MAX(version), COUNT(*) FROM migration").fetch_one(&mut *db).await.unwrap();
        let mut row = Reader::new(&row);
        (row.int("version").unwrap(), row.int("count").unwrap())
    }

    #[tokio::test]
    async fn every_earlier_state_comes_up_with_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let last = ALL.last().unwrap().version;
        for version in 0..=ALL.len() {
            let mut db = place(folder.path(), &format!("from{version}")).connect().await.unwrap();
            db.batch(TABLE).await.unwrap();
            for migration in &ALL[..version] {
                apply(&mut db, migration).await.unwrap();
            }
            if version > 0 {
                db.batch(ROWS).await.unwrap();
            }
            run(&mut db).await.unwrap();
            // The second time there is nothing to do.
            run(&mut db).await.unwrap();
            assert_eq!(reached(&mut db).await, (last, i64::try_from(ALL.len()).unwrap()), "from {version}");
            check(&mut db).await.unwrap();
            let kept = query("SELECT COUNT(*) FROM api_key k JOIN project p ON p.org = k.org");
            let kept = kept.fetch_one(&mut db).await.unwrap();
            assert_eq!(Reader::new(&kept).int("kept").unwrap(), i64::from(version > 0), "from {version}");
            db.close().await;
        }
    }

    #[tokio::test]
    async fn a_database_of_the_first_weeks_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let mut db = place(folder.path(), "first").connect().await.unwrap();
        db.batch("CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY)").await.unwrap();
        db.batch(ALL[0].sql).await.unwrap();
        db.batch(ROWS).await.unwrap();
        run(&mut db).await.unwrap();
        let last = ALL.last().unwrap().version;
        assert_eq!(reached(&mut db).await, (last, i64::try_from(ALL.len()).unwrap()));
        db.close().await;
    }

    #[tokio::test]
    async fn what_fits_no_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut db = place(folder.path(), "odd").connect().await.unwrap();
        run(&mut db).await.unwrap();
        let last = ALL.last().unwrap().version;
        db.batch("INSERT INTO migration (version, name, digest) VALUES (9999, 'later', 'x')").await.unwrap();
        assert!(matches!(run(&mut db).await, Err(Error::Newer { found: 9999, .. })));
        assert!(matches!(check(&mut db).await, Err(Error::Newer { found: 9999, .. })));
        db.batch("DELETE FROM migration WHERE version = 9999").await.unwrap();
        query("DELETE FROM migration WHERE version = $1").bind(last).execute(&mut db).await.unwrap();
        assert!(matches!(check(&mut db).await, Err(Error::Older { .. })));
        let edit = query("UPDATE migration SET digest = $1 WHERE version = 1").bind(vec![0u8; 32]);
        edit.execute(&mut db).await.unwrap();
        assert!(matches!(run(&mut db).await, Err(Error::Edited { version: 1, .. })));
        db.close().await;
    }
}
