//! Model providers' keys, as sealed bytes. What is in them is not this crate's to know.

use karta_types::provider_key::KeyProvider;
use karta_types::{OrgId, ProviderKeyId, Timestamp};

use crate::row::Reader;
use crate::sql::{Row, query};
use crate::{AuditEntry, Error, Result, Store};

/// A provider's key, sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderKeyRow {
    /// Its id.
    pub id: ProviderKeyId,
    /// Whose it is.
    pub org: OrgId,
    /// The provider.
    pub provider: KeyProvider,
    /// Its last four characters.
    pub last4: String,
    /// The key-encryption key that its data key is wrapped by.
    pub kek: String,
    /// The wrapped data key.
    pub wrapped: Vec<u8>,
    /// The key's text, sealed with the data key.
    pub sealed: Vec<u8>,
    /// Who set it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, org, provider, last4, kek, wrapped, sealed, created_by, created_at FROM provider_key ",
            $rest
        )
    };
}

fn read(row: &Row) -> Result<ProviderKeyRow> {
    let mut row = Reader::new(row);
    Ok(ProviderKeyRow {
        id: row.parsed("id")?,
        org: row.parsed("org")?,
        provider: row.parsed("provider")?,
        last4: row.text("last4")?,
        kek: row.text("kek")?,
        wrapped: row.bytes("wrapped")?.to_vec(),
        sealed: row.bytes("sealed")?.to_vec(),
        created_by: row.text("created_by")?,
        created_at: row.time("created_at")?,
    })
}

/// A revoked key's bytes are gone: nobody can open what is not there.
const ERASE: &str = "UPDATE provider_key SET revoked_at = $1, wrapped = $2, sealed = $2 WHERE org = $3 AND provider = $4 \
                     AND revoked_at IS NULL";

impl Store {
    /// Sets the organisation's key for a provider. The one before it is erased in the same step.
    ///
    /// # Errors
    /// The database failed.
    pub async fn provider_key_set(&self, row: ProviderKeyRow, told: AuditEntry) -> Result<()> {
        self.write_told(told, |()| true, move |db| {
            let row = row.clone();
            Box::pin(async move {
                query(ERASE)
                    .bind(row.created_at.as_micros())
                    .bind(Vec::new())
                    .bind(row.org.to_string())
                    .bind(row.provider.as_str())
                    .execute(&mut *db)
                    .await
                    .map_err(Error::database("replacing a provider key"))?;
                query(
                    "INSERT INTO provider_key (id, org, provider, last4, kek, wrapped, sealed, created_by, created_at) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                )
                .bind(row.id.to_string())
                .bind(row.org.to_string())
                .bind(row.provider.as_str())
                .bind(row.last4)
                .bind(row.kek)
                .bind(row.wrapped)
                .bind(row.sealed)
                .bind(row.created_by)
                .bind(row.created_at.as_micros())
                .execute(db)
                .await
                .map_err(Error::unique("setting a provider key", "the provider key"))?;
                Ok(())
            })
        })
        .await
    }

    /// The organisation's active keys.
    ///
    /// # Errors
    /// The database failed.
    pub async fn provider_key_list(&self, org: OrgId) -> Result<Vec<ProviderKeyRow>> {
        let rows = query(select!("WHERE org = $1 AND revoked_at IS NULL ORDER BY provider"))
            .bind(org.to_string())
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing provider keys"))?;
        rows.iter().map(read).collect()
    }

    /// The organisation's active key for a provider.
    ///
    /// # Errors
    /// The database failed.
    pub async fn provider_key_get(
        &self,
        org: OrgId,
        provider: KeyProvider,
    ) -> Result<Option<ProviderKeyRow>> {
        let row = query(select!("WHERE org = $1 AND provider = $2 AND revoked_at IS NULL"))
            .bind(org.to_string())
            .bind(provider.as_str())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading a provider key"))?;
        row.as_ref().map(read).transpose()
    }

    /// Erases the organisation's key for a provider. Answers whether there was one.
    ///
    /// # Errors
    /// The database failed.
    pub async fn provider_key_erase(
        &self,
        org: OrgId,
        provider: KeyProvider,
        at: Timestamp,
        told: AuditEntry,
    ) -> Result<bool> {
        self.write_told(
            told,
            |erased| *erased,
            move |db| {
                Box::pin(async move {
                    let gone = query(ERASE)
                        .bind(at.as_micros())
                        .bind(Vec::new())
                        .bind(org.to_string())
                        .bind(provider.as_str())
                        .execute(db)
                        .await
                        .map_err(Error::database("erasing a provider key"))?;
                    Ok(gone.rows_affected() > 0)
                })
            },
        )
        .await
    }

    /// Active keys of all organisations that are wrapped by another key-encryption key than this one.
    ///
    /// # Errors
    /// The database failed.
    pub async fn provider_keys_not_under(&self, kek: &str, limit: u32) -> Result<Vec<ProviderKeyRow>> {
        let rows = query(select!("WHERE kek <> $1 AND revoked_at IS NULL ORDER BY id LIMIT $2"))
            .bind(kek)
            .bind(i64::from(limit))
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing provider keys to be wrapped anew"))?;
        rows.iter().map(read).collect()
    }

    /// Puts a data key that was wrapped anew in the place of the old wrapping, if that is still the one.
    ///
    /// # Errors
    /// The database failed.
    pub async fn provider_key_rewrap(
        &self,
        row: &ProviderKeyRow,
        kek: String,
        wrapped: Vec<u8>,
    ) -> Result<()> {
        let (org, id, old) = (row.org, row.id, row.kek.clone());
        self.write(move |db| {
            let (kek, wrapped, old) = (kek.clone(), wrapped.clone(), old.clone());
            Box::pin(async move {
                query(
                    "UPDATE provider_key SET kek = $1, wrapped = $2 WHERE org = $3 AND id = $4 AND kek = $5 \
                     AND revoked_at IS NULL",
                )
                .bind(kek)
                .bind(wrapped)
                .bind(org.to_string())
                .bind(id.to_string())
                .bind(old)
                .execute(db)
                .await
                .map_err(Error::database("wrapping a data key anew"))?;
                Ok(())
            })
        })
        .await
    }
}
