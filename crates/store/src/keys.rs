//! API keys, by their keyed hash.

use karta_types::scope::Scopes;
use karta_types::{KeyId, OrgId, ProjectId, Timestamp};

use crate::row::Reader;
use crate::sql::{Connection, Row, query};
use crate::{AuditEntry, Error, Result, Store};

/// A key; its text is nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// Its id.
    pub id: KeyId,
    /// Whose it is.
    pub org: OrgId,
    /// For people.
    pub name: String,
    /// Its first characters, to know it by.
    pub prefix: String,
    /// Its last four characters.
    pub last4: String,
    /// The keyed hash of its text.
    pub digest: [u8; 32],
    /// What it may do.
    pub scopes: Scopes,
    /// The one project it is for.
    pub project: Option<ProjectId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// Who made it; absent for the first of an installation.
    pub created_by: Option<String>,
    /// The key it was made to replace.
    pub replaces: Option<KeyId>,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, org, name, prefix, last4, digest, scopes, project, created_at, expires_at, revoked_at, ",
            "last_used_at, created_by, replaces FROM api_key ",
            $rest
        )
    };
}

fn read(row: &Row) -> Result<KeyRow> {
    let mut row = Reader::new(row);
    Ok(KeyRow {
        id: row.parsed("id")?,
        org: row.parsed("org")?,
        name: row.text("name")?,
        prefix: row.text("prefix")?,
        last4: row.text("last4")?,
        digest: row.bytes("digest")?.as_ref().try_into().map_err(|_| Error::Corrupt("digest"))?,
        scopes: row.parsed("scopes")?,
        project: row.maybe_parsed("project")?,
        created_at: row.time("created_at")?,
        expires_at: row.maybe_time("expires_at")?,
        revoked_at: row.maybe_time("revoked_at")?,
        last_used_at: row.maybe_time("last_used_at")?,
        created_by: row.maybe_text("created_by")?,
        replaces: row.maybe_parsed("replaces")?,
    })
}

impl Store {
    /// Adds a key.
    ///
    /// # Errors
    /// The database failed.
    pub async fn key_insert(&self, key: &KeyRow, told: AuditEntry) -> Result<()> {
        let key = key.clone();
        self.write_told(
            told,
            |()| true,
            move |db| {
                let key = key.clone();
                Box::pin(async move { insert(db, key).await })
            },
        )
        .await
    }

    /// A key by its keyed hash. The hash names the organisation; there is none to filter by yet.
    ///
    /// # Errors
    /// The database failed.
    pub async fn key_by_digest(&self, digest: &[u8; 32]) -> Result<Option<KeyRow>> {
        let row = query(select!("WHERE digest = $1"))
            .bind(digest.to_vec())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading a key"))?;
        row.as_ref().map(read).transpose()
    }

    /// The organisation's keys, oldest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn key_list(&self, org: OrgId, after: Option<KeyId>, limit: u32) -> Result<Vec<KeyRow>> {
        let rows = query(select!("WHERE org = $1 AND id > $2 ORDER BY id LIMIT $3"))
            .bind(org.to_string())
            .bind(after.map(|id| id.to_string()).unwrap_or_default())
            .bind(i64::from(limit))
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing keys"))?;
        rows.iter().map(read).collect()
    }

    /// A key.
    ///
    /// # Errors
    /// The database failed.
    pub async fn key_get(&self, org: OrgId, id: KeyId) -> Result<Option<KeyRow>> {
        let row = query(select!("WHERE org = $1 AND id = $2"))
            .bind(org.to_string())
            .bind(id.to_string())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading a key"))?;
        row.as_ref().map(read).transpose()
    }

    /// Adds a key and lets the one that it replaces end at `until`, in one step.
    ///
    /// # Errors
    /// `NotFound` when the old key is not there or no longer valid.
    pub async fn key_replace(&self, key: &KeyRow, until: Timestamp, told: AuditEntry) -> Result<()> {
        let key = key.clone();
        self.write_told(told, |()| true, move |db| {
            let key = key.clone();
            Box::pin(async move {
                // Never later than it would have ended anyway.
                let ended = query(
                    "UPDATE api_key SET expires_at = CASE WHEN expires_at IS NULL OR expires_at > $1 THEN $1 ELSE expires_at END, \
                     changed_at = $2 WHERE org = $3 AND id = $4 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)",
                )
                .bind(until.as_micros())
                .bind(key.created_at.as_micros())
                .bind(key.org.to_string())
                .bind(key.replaces.map(|id| id.to_string()))
                .execute(&mut *db)
                .await
                .map_err(Error::database("ending a key"))?;
                if ended.rows_affected() == 0 {
                    return Err(Error::NotFound);
                }
                insert(db, key).await
            })
        })
        .await
    }

    /// Keyed hashes of keys and personal accesses that changed since `since`, of all organisations: what a node has to forget.
    ///
    /// # Errors
    /// The database failed.
    pub async fn keys_changed(&self, since: Timestamp) -> Result<Vec<[u8; 32]>> {
        let rows = query(
            "SELECT digest FROM api_key WHERE changed_at >= $1 \
             UNION ALL SELECT digest FROM personal_access WHERE changed_at >= $1",
        )
        .bind(since.as_micros())
        .fetch_all(self.readers())
        .await
        .map_err(Error::database("looking for changed keys"))?;
        rows.iter()
            .map(|row| {
                let bytes = Reader::new(row).bytes("digest")?;
                bytes.as_ref().try_into().map_err(|_| Error::Corrupt("digest"))
            })
            .collect()
    }

    /// Notes that keys were used. Each carries its organisation.
    ///
    /// # Errors
    /// The database failed.
    pub async fn keys_used(&self, used: Vec<(OrgId, KeyId, Timestamp)>) -> Result<()> {
        self.write(move |db| {
            let used = used.clone();
            Box::pin(async move {
                for (org, id, at) in used {
                    query("UPDATE api_key SET last_used_at = $1 WHERE org = $2 AND id = $3")
                        .bind(at.as_micros())
                        .bind(org.to_string())
                        .bind(id.to_string())
                        .execute(&mut *db)
                        .await
                        .map_err(Error::database("noting the use of a key"))?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Revokes a key. Answers whether it was valid until now.
    ///
    /// # Errors
    /// The database failed.
    pub async fn key_revoke(&self, org: OrgId, id: KeyId, at: Timestamp, told: AuditEntry) -> Result<bool> {
        self.write_told(
            told,
            |revoked| *revoked,
            move |db| {
                Box::pin(async move {
                    let done = query(
                    "UPDATE api_key SET revoked_at = $1, changed_at = $1 WHERE id = $2 AND org = $3 AND revoked_at IS NULL",
                )
                .bind(at.as_micros())
                .bind(id.to_string())
                .bind(org.to_string())
                .execute(db)
                .await
                .map_err(Error::database("revoking a key"))?;
                    Ok(done.rows_affected() > 0)
                })
            },
        )
        .await
    }
}

async fn insert(db: &mut Connection, key: KeyRow) -> Result<()> {
    query(
        "INSERT INTO api_key (id, org, name, prefix, last4, digest, scopes, project, created_at, expires_at, changed_at, \
         created_by, replaces) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $9, $11, $12)",
    )
    .bind(key.id.to_string())
    .bind(key.org.to_string())
    .bind(key.name)
    .bind(key.prefix)
    .bind(key.last4)
    .bind(key.digest.to_vec())
    .bind(key.scopes.to_string())
    .bind(key.project.map(|id| id.to_string()))
    .bind(key.created_at.as_micros())
    .bind(key.expires_at.map(Timestamp::as_micros))
    .bind(key.created_by)
    .bind(key.replaces.map(|id| id.to_string()))
    .execute(db)
    .await
    .map_err(Error::unique("adding a key", "the key"))?;
    Ok(())
}
