//! API keys, by their keyed hash.

use karta_types::scope::Scopes;
use karta_types::{KeyId, OrgId, ProjectId, Timestamp};

use crate::row::Reader;
use crate::sql::{Row, query};
use crate::{Error, Result, Store};

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
    /// When it was last used.
    pub last_used_at: Option<Timestamp>,
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
    })
}

impl Store {
    /// Adds a key.
    ///
    /// # Errors
    /// The database failed.
    pub async fn key_insert(&self, key: &KeyRow) -> Result<()> {
        let key = key.clone();
        self.write(move |db| {
            let key = key.clone();
            Box::pin(async move {
                query(
                    "INSERT INTO api_key (id, org, name, prefix, last4, digest, scopes, project, created_at, expires_at) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
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
                .execute(db)
                .await
                .map_err(Error::unique("adding a key", "the key"))?;
                Ok(())
            })
        })
        .await
    }

    /// A key by its keyed hash. The hash names the organisation; there is none to filter by yet.
    ///
    /// # Errors
    /// The database failed.
    pub async fn key_by_digest(&self, digest: &[u8; 32]) -> Result<Option<KeyRow>> {
        let row = query(
            "SELECT id, org, name, prefix, last4, digest, scopes, project, created_at, expires_at, revoked_at, \
             last_used_at FROM api_key WHERE digest = $1",
        )
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
    pub async fn key_list(&self, org: OrgId) -> Result<Vec<KeyRow>> {
        let rows = query(
            "SELECT id, org, name, prefix, last4, digest, scopes, project, created_at, expires_at, revoked_at, \
             last_used_at FROM api_key WHERE org = $1 ORDER BY id",
        )
        .bind(org.to_string())
        .fetch_all(self.readers())
        .await
        .map_err(Error::database("listing keys"))?;
        rows.iter().map(read).collect()
    }

    /// Revokes a key. Answers whether it was valid until now.
    ///
    /// # Errors
    /// The database failed.
    pub async fn key_revoke(&self, org: OrgId, id: KeyId, at: Timestamp) -> Result<bool> {
        self.write(move |db| {
            Box::pin(async move {
                let done = query(
                    "UPDATE api_key SET revoked_at = $1 WHERE id = $2 AND org = $3 AND revoked_at IS NULL",
                )
                .bind(at.as_micros())
                .bind(id.to_string())
                .bind(org.to_string())
                .execute(db)
                .await
                .map_err(Error::database("revoking a key"))?;
                Ok(done.rows_affected() > 0)
            })
        })
        .await
    }
}
