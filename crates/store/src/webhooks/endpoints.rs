//! Endpoints, and the secrets that sign what they are told.

use karta_types::webhook::Happened;
use karta_types::{EndpointId, OrgId, Timestamp};

use crate::row::{Reader, big, json};
use crate::sql::{Connection, Row, query};
use crate::{AuditEntry, Error, Result, Store};

/// Where webhooks go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointRow {
    /// Its id.
    pub id: EndpointId,
    /// Whose it is.
    pub org: OrgId,
    /// Its address.
    pub url: String,
    /// What it is told; empty is everything.
    pub events: Vec<Happened>,
    /// For people.
    pub description: String,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// Since when nothing is sent there.
    pub disabled_at: Option<Timestamp>,
    /// Why.
    pub disabled_why: Option<String>,
    /// Since when every delivery failed.
    pub failing_since: Option<Timestamp>,
}

/// What changes of an endpoint.
#[derive(Debug, Clone, Default)]
pub struct EndpointPatch {
    /// Its address.
    pub url: Option<String>,
    /// What it is told.
    pub events: Option<Vec<Happened>>,
    /// For people.
    pub description: Option<String>,
    /// Whether anything is sent there.
    pub enabled: Option<bool>,
}

/// A secret, sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSecretRow {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Its organisation.
    pub org: OrgId,
    /// Which of the endpoint's, from 1.
    pub number: u64,
    /// The key-encryption key.
    pub kek: String,
    /// The wrapped data key.
    pub wrapped: Vec<u8>,
    /// The sealed text.
    pub sealed: Vec<u8>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops signing.
    pub expires_at: Option<Timestamp>,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, org, url, events, description, created_by, created_at, disabled_at, disabled_why, failing_since ",
            "FROM endpoint ",
            $rest
        )
    };
}

macro_rules! select_secret {
    ($rest:literal) => {
        concat!(
            "SELECT endpoint, org, number, kek, wrapped, sealed, created_at, expires_at FROM endpoint_secret ",
            $rest
        )
    };
}

fn read(row: &Row) -> Result<EndpointRow> {
    let mut row = Reader::new(row);
    Ok(EndpointRow {
        id: row.parsed("id")?,
        org: row.parsed("org")?,
        url: row.text("url")?,
        events: row.json("events")?,
        description: row.text("description")?,
        created_by: row.text("created_by")?,
        created_at: row.time("created_at")?,
        disabled_at: row.maybe_time("disabled_at")?,
        disabled_why: row.maybe_text("disabled_why")?,
        failing_since: row.maybe_time("failing_since")?,
    })
}

fn read_secret(row: &Row) -> Result<EndpointSecretRow> {
    let mut row = Reader::new(row);
    Ok(EndpointSecretRow {
        endpoint: row.parsed("endpoint")?,
        org: row.parsed("org")?,
        number: row.count("number")?,
        kek: row.text("kek")?,
        wrapped: row.bytes("wrapped")?.to_vec(),
        sealed: row.bytes("sealed")?.to_vec(),
        created_at: row.time("created_at")?,
        expires_at: row.maybe_time("expires_at")?,
    })
}

async fn insert_secret(db: &mut Connection, secret: EndpointSecretRow) -> Result<()> {
    query(
        "INSERT INTO endpoint_secret (endpoint, org, number, kek, wrapped, sealed, created_at, expires_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(secret.endpoint.to_string())
    .bind(secret.org.to_string())
    .bind(big(secret.number))
    .bind(secret.kek)
    .bind(secret.wrapped)
    .bind(secret.sealed)
    .bind(secret.created_at.as_micros())
    .bind(secret.expires_at.map(Timestamp::as_micros))
    .execute(db)
    .await
    .map_err(Error::unique("adding a signing secret", "the signing secret"))?;
    Ok(())
}

impl Store {
    /// Adds an endpoint with its first secret.
    ///
    /// # Errors
    /// The database failed.
    pub async fn endpoint_insert(
        &self,
        row: EndpointRow,
        secret: EndpointSecretRow,
        told: AuditEntry,
    ) -> Result<()> {
        self.write_told(
            told,
            |()| true,
            move |db| {
                let (row, secret) = (row.clone(), secret.clone());
                Box::pin(async move {
                    query(
                        "INSERT INTO endpoint (id, org, url, events, description, created_by, created_at) \
                         VALUES ($1, $2, $3, $4, $5, $6, $7)",
                    )
                    .bind(row.id.to_string())
                    .bind(row.org.to_string())
                    .bind(row.url)
                    .bind(json(&row.events))
                    .bind(row.description)
                    .bind(row.created_by)
                    .bind(row.created_at.as_micros())
                    .execute(&mut *db)
                    .await
                    .map_err(Error::database("adding an endpoint"))?;
                    insert_secret(db, secret).await
                })
            },
        )
        .await
    }

    /// The organisation's endpoints.
    ///
    /// # Errors
    /// The database failed.
    pub async fn endpoint_list(&self, org: OrgId) -> Result<Vec<EndpointRow>> {
        let rows = query(select!("WHERE org = $1 ORDER BY id"))
            .bind(org.to_string())
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing endpoints"))?;
        rows.iter().map(read).collect()
    }

    /// An endpoint.
    ///
    /// # Errors
    /// The database failed.
    pub async fn endpoint_get(&self, org: OrgId, id: EndpointId) -> Result<Option<EndpointRow>> {
        let row = query(select!("WHERE org = $1 AND id = $2"))
            .bind(org.to_string())
            .bind(id.to_string())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading an endpoint"))?;
        row.as_ref().map(read).transpose()
    }

    /// Changes an endpoint. One that is enabled again starts with a clean slate.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn endpoint_patch(
        &self,
        org: OrgId,
        id: EndpointId,
        patch: EndpointPatch,
        at: Timestamp,
        told: AuditEntry,
    ) -> Result<()> {
        self.write_told(
            told,
            |()| true,
            move |db| {
                let patch = patch.clone();
                Box::pin(async move {
                    let done = query(
                        "UPDATE endpoint SET url = COALESCE($1, url), events = COALESCE($2, events), \
                         description = COALESCE($3, description), \
                         disabled_at = CASE $4 WHEN 'on' THEN NULL WHEN 'off' THEN COALESCE(disabled_at, $5) ELSE disabled_at END, \
                         disabled_why = CASE $4 WHEN 'on' THEN NULL WHEN 'off' THEN COALESCE(disabled_why, 'by hand') \
                         ELSE disabled_why END, \
                         failing_since = CASE $4 WHEN 'on' THEN NULL ELSE failing_since END WHERE org = $6 AND id = $7",
                    )
                    .bind(patch.url)
                    .bind(patch.events.as_ref().map(json))
                    .bind(patch.description)
                    .bind(match patch.enabled {
                        None => "",
                        Some(true) => "on",
                        Some(false) => "off",
                    })
                    .bind(at.as_micros())
                    .bind(org.to_string())
                    .bind(id.to_string())
                    .execute(db)
                    .await
                    .map_err(Error::database("changing an endpoint"))?;
                    if done.rows_affected() == 0 { Err(Error::NotFound) } else { Ok(()) }
                })
            },
        )
        .await
    }

    /// Removes an endpoint with its secrets and deliveries. Answers whether it was there.
    ///
    /// # Errors
    /// The database failed.
    pub async fn endpoint_remove(&self, org: OrgId, id: EndpointId, told: AuditEntry) -> Result<bool> {
        self.write_told(
            told,
            |gone| *gone,
            move |db| {
                Box::pin(async move {
                    let mut gone = 0;
                    for statement in [
                        "DELETE FROM delivery WHERE org = $1 AND endpoint = $2",
                        "DELETE FROM endpoint_secret WHERE org = $1 AND endpoint = $2",
                        "DELETE FROM endpoint WHERE org = $1 AND id = $2",
                    ] {
                        gone = query(statement)
                            .bind(org.to_string())
                            .bind(id.to_string())
                            .execute(&mut *db)
                            .await
                            .map_err(Error::database("removing an endpoint"))?
                            .rows_affected();
                    }
                    Ok(gone > 0)
                })
            },
        )
        .await
    }

    /// Adds a secret; those before it stop signing at `until`.
    ///
    /// # Errors
    /// `Conflict` when somebody else added one meanwhile.
    pub async fn endpoint_secret_rotate(
        &self,
        secret: EndpointSecretRow,
        until: Timestamp,
        told: AuditEntry,
    ) -> Result<()> {
        self.write_told(
            told,
            |()| true,
            move |db| {
                let secret = secret.clone();
                Box::pin(async move {
                    query(
                        "UPDATE endpoint_secret SET expires_at = $1 WHERE org = $2 AND endpoint = $3 \
                         AND (expires_at IS NULL OR expires_at > $1)",
                    )
                    .bind(until.as_micros())
                    .bind(secret.org.to_string())
                    .bind(secret.endpoint.to_string())
                    .execute(&mut *db)
                    .await
                    .map_err(Error::database("ending a signing secret"))?;
                    insert_secret(db, secret).await
                })
            },
        )
        .await
    }

    /// The endpoint's secrets, newest first, those that no longer sign included.
    ///
    /// # Errors
    /// The database failed.
    pub async fn endpoint_secrets(&self, org: OrgId, id: EndpointId) -> Result<Vec<EndpointSecretRow>> {
        let rows = query(select_secret!("WHERE org = $1 AND endpoint = $2 ORDER BY number DESC"))
            .bind(org.to_string())
            .bind(id.to_string())
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("reading signing secrets"))?;
        rows.iter().map(read_secret).collect()
    }

    /// Secrets of all organisations that are wrapped by another key-encryption key than this one.
    ///
    /// # Errors
    /// The database failed.
    pub async fn endpoint_secrets_not_under(&self, kek: &str, limit: u32) -> Result<Vec<EndpointSecretRow>> {
        let rows = query(select_secret!("WHERE kek <> $1 ORDER BY endpoint, number LIMIT $2"))
            .bind(kek)
            .bind(i64::from(limit))
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing signing secrets to be wrapped anew"))?;
        rows.iter().map(read_secret).collect()
    }

    /// Puts a data key that was wrapped anew in the place of the old wrapping, if that is still the one.
    ///
    /// # Errors
    /// The database failed.
    pub async fn endpoint_secret_rewrap(
        &self,
        row: &EndpointSecretRow,
        kek: String,
        wrapped: Vec<u8>,
    ) -> Result<()> {
        let (org, endpoint, number, old) = (row.org, row.endpoint, row.number, row.kek.clone());
        self.write(move |db| {
            let (kek, wrapped, old) = (kek.clone(), wrapped.clone(), old.clone());
            Box::pin(async move {
                query(
                    "UPDATE endpoint_secret SET kek = $1, wrapped = $2 WHERE org = $3 AND endpoint = $4 AND number = $5 \
                     AND kek = $6",
                )
                .bind(kek)
                .bind(wrapped)
                .bind(org.to_string())
                .bind(endpoint.to_string())
                .bind(big(number))
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
