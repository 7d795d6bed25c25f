//! Session tokens, by what is in them; the token itself is nowhere. And the keys that sign them.

use std::time::Duration;

use karta_types::budget::{Level, Period};
use karta_types::{KeyId, OrgId, ProjectId, SessionId, SessionTokenId, Timestamp};

use crate::row::{Reader, json};
use crate::sql::{Connection, query};
use crate::{AuditEntry, Error, Result, Store};

/// A session token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionTokenRow {
    /// Its id.
    pub id: SessionTokenId,
    /// The organisation.
    pub org: OrgId,
    /// The project it is for.
    pub project: ProjectId,
    /// The key that minted it.
    pub key: KeyId,
    /// The end user.
    pub end_user: String,
    /// The one session it is for.
    pub session: Option<SessionId>,
    /// Where pages that use it come from.
    pub origins: Vec<String>,
    /// The most that what it does may cost, in micro-dollars.
    pub cap: Option<i64>,
    /// When it was minted.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// A key that signs session tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenKeyRow {
    /// Its `kid`.
    pub id: String,
    /// The public half.
    pub public: Vec<u8>,
    /// The key-encryption key.
    pub kek: String,
    /// The wrapped data key.
    pub wrapped: Vec<u8>,
    /// The private half, sealed.
    pub sealed: Vec<u8>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// How long a token's cap is kept after it was minted: longer than any turn that it began.
const CAP_KEPT: Duration = Duration::from_hours(24 * 7);

async fn cap_token(
    db: &mut Connection,
    org: OrgId,
    token: SessionTokenId,
    cap: i64,
    at: Timestamp,
) -> Result<()> {
    query(
        "INSERT INTO budget (org, level, subject, period, span, cap_cost, settled_input, settled_output, settled_cost, \
         reserved_input, reserved_output, reserved_cost, source, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, 0, 0, 0, 0, 0, 0, 'token', $7)",
    )
    .bind(org.to_string())
    .bind(Level::Token.as_str())
    .bind(token.to_string())
    .bind(Period::Total.as_str())
    .bind(Period::Total.span(at))
    .bind(cap)
    .bind(at.as_micros())
    .execute(db)
    .await
    .map_err(Error::database("capping a session token"))?;
    Ok(())
}

impl Store {
    /// Adds a key that signs.
    ///
    /// # Errors
    /// The database failed.
    pub async fn token_key_insert(&self, row: TokenKeyRow) -> Result<()> {
        self.write(move |db| {
            let row = row.clone();
            Box::pin(async move {
                query(
                    "INSERT INTO token_key (id, public, kek, wrapped, sealed, created_at) VALUES ($1, $2, $3, $4, $5, $6)",
                )
                .bind(row.id)
                .bind(row.public)
                .bind(row.kek)
                .bind(row.wrapped)
                .bind(row.sealed)
                .bind(row.created_at.as_micros())
                .execute(db)
                .await
                .map_err(Error::unique("adding a key that signs", "the key"))?;
                Ok(())
            })
        })
        .await
    }

    /// Keys that sign, newest first. They are the installation's, not an organisation's.
    ///
    /// # Errors
    /// The database failed.
    pub async fn token_keys(&self) -> Result<Vec<TokenKeyRow>> {
        let rows = query(
            "SELECT id, public, kek, wrapped, sealed, created_at FROM token_key ORDER BY created_at DESC, id",
        )
        .fetch_all(self.readers())
        .await
        .map_err(Error::database("reading keys that sign"))?;
        rows.iter()
            .map(|row| {
                let mut row = Reader::new(row);
                Ok(TokenKeyRow {
                    id: row.text("id")?,
                    public: row.bytes("public")?.to_vec(),
                    kek: row.text("kek")?,
                    wrapped: row.bytes("wrapped")?.to_vec(),
                    sealed: row.bytes("sealed")?.to_vec(),
                    created_at: row.time("created_at")?,
                })
            })
            .collect()
    }

    /// Forgets keys that were made before and can have signed nothing that is still good.
    ///
    /// # Errors
    /// The database failed.
    pub async fn token_keys_forget(&self, ids: Vec<String>) -> Result<()> {
        self.write(move |db| {
            let ids = ids.clone();
            Box::pin(async move {
                for id in ids {
                    query("DELETE FROM token_key WHERE id = $1")
                        .bind(id)
                        .execute(&mut *db)
                        .await
                        .map_err(Error::database("forgetting a key that signs"))?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Keeps what is in a token.
    ///
    /// # Errors
    /// The database failed.
    pub async fn session_token_insert(&self, row: SessionTokenRow, told: AuditEntry) -> Result<()> {
        self.write_told(told, |()| true, move |db| {
            let row = row.clone();
            Box::pin(async move {
                query(
                    "INSERT INTO session_token (id, org, project, key, end_user, session, origins, created_at, expires_at) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                )
                .bind(row.id.to_string())
                .bind(row.org.to_string())
                .bind(row.project.to_string())
                .bind(row.key.to_string())
                .bind(row.end_user)
                .bind(row.session.map(|id| id.to_string()))
                .bind(json(&row.origins))
                .bind(row.created_at.as_micros())
                .bind(row.expires_at.as_micros())
                .execute(&mut *db)
                .await
                .map_err(Error::database("minting a session token"))?;
                match row.cap {
                    Some(cap) => cap_token(db, row.org, row.id, cap, row.created_at).await,
                    None => Ok(()),
                }
            })
        })
        .await
    }

    /// Revokes a token. Answers whether it was good until now.
    ///
    /// # Errors
    /// The database failed.
    pub async fn session_token_revoke(
        &self,
        org: OrgId,
        id: SessionTokenId,
        at: Timestamp,
        told: AuditEntry,
    ) -> Result<bool> {
        self.write_told(told, |revoked| *revoked, move |db| {
            Box::pin(async move {
                let done = query(
                    "UPDATE session_token SET revoked_at = $1 WHERE org = $2 AND id = $3 AND revoked_at IS NULL \
                     AND expires_at > $1",
                )
                .bind(at.as_micros())
                .bind(org.to_string())
                .bind(id.to_string())
                .execute(db)
                .await
                .map_err(Error::database("revoking a session token"))?;
                Ok(done.rows_affected() > 0)
            })
        })
        .await
    }

    /// Tokens that are not past their time and yet no longer good, of all organisations: they or their keys were revoked.
    ///
    /// # Errors
    /// The database failed.
    pub async fn session_tokens_revoked(&self, at: Timestamp) -> Result<Vec<SessionTokenId>> {
        let rows = query(
            "SELECT t.id FROM session_token t LEFT JOIN api_key k ON k.id = t.key WHERE t.expires_at > $1 \
             AND (t.revoked_at IS NOT NULL OR k.id IS NULL OR k.revoked_at IS NOT NULL \
             OR (k.expires_at IS NOT NULL AND k.expires_at <= $1))",
        )
        .bind(at.as_micros())
        .fetch_all(self.readers())
        .await
        .map_err(Error::database("listing revoked session tokens"))?;
        rows.iter().map(|row| Reader::new(row).parsed("id")).collect()
    }

    /// Where pages come from that have a token which is good, of all organisations: what a browser is let read.
    ///
    /// # Errors
    /// The database failed.
    pub async fn session_token_origins(&self, at: Timestamp) -> Result<Vec<String>> {
        let rows =
            query("SELECT DISTINCT origins FROM session_token WHERE expires_at > $1 AND revoked_at IS NULL")
                .bind(at.as_micros())
                .fetch_all(self.readers())
                .await
                .map_err(Error::database("listing allowed origins"))?;
        let mut origins: Vec<String> = Vec::new();
        for row in &rows {
            origins.append(&mut Reader::new(row).json("origins")?);
        }
        Ok(origins)
    }

    /// Erases tokens past their time, of all organisations.
    ///
    /// # Errors
    /// The database failed.
    pub async fn session_tokens_expire(&self, at: Timestamp) -> Result<u64> {
        self.write(move |db| {
            Box::pin(async move {
                let gone = query("DELETE FROM session_token WHERE expires_at <= $1")
                    .bind(at.as_micros())
                    .execute(&mut *db)
                    .await
                    .map_err(Error::database("expiring session tokens"))?;
                // A turn may outlive the token that began it, and is held to its cap.
                query("DELETE FROM budget WHERE level = 'token' AND updated_at <= $1")
                    .bind(at.minus(CAP_KEPT).as_micros())
                    .execute(db)
                    .await
                    .map_err(Error::database("expiring session tokens' caps"))?;
                Ok(gone.rows_affected())
            })
        })
        .await
    }
}
