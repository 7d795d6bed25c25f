//! The changes of the database, in order. Each is one portable file, embedded; a file that was run is never edited.

use sqlx::SqlStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

const ALL: &[(i64, &str, &str)] = &[(1, "start", include_str!("../../../migrations/0001_start.sql"))];

/// Every change, ready to run under the database's own lock.
pub(crate) fn migrator() -> Migrator {
    let migrations = ALL.iter().map(|(version, name, sql)| {
        Migration::new(*version, (*name).into(), MigrationType::Simple, SqlStr::from_static(sql), false)
    });
    Migrator::with_migrations(migrations.collect())
}
