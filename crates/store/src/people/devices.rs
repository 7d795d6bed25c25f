//! A command line that waits for somebody to sign it in (RFC 8628).

use karta_types::{OrgId, Timestamp, UserId};

use super::AccessRow;
use crate::row::Reader;
use crate::sql::query;
use crate::{AuditEntry, Error, Result, Store};

/// A command line that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRow {
    /// The keyed hash of what it asks with.
    pub device: [u8; 32],
    /// What the person compares.
    pub code: String,
    /// When it began.
    pub created_at: Timestamp,
    /// Until when it waits.
    pub expires_at: Timestamp,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceState {
    /// Nobody has decided.
    Waiting {
        /// When it last asked.
        polled_at: Option<Timestamp>,
    },
    /// Somebody said no.
    Denied,
    /// Somebody said yes.
    Approved {
        /// For which organisation.
        org: OrgId,
        /// Who.
        person: UserId,
    },
}

impl Store {
    /// Adds a command line that waits.
    ///
    /// # Errors
    /// `Conflict` when the code is in use.
    pub async fn device_insert(&self, row: DeviceRow) -> Result<()> {
        self.write(move |db| {
            let row = row.clone();
            Box::pin(async move {
                query(
                    "INSERT INTO device_grant (device, code, created_at, expires_at) VALUES ($1, $2, $3, $4)",
                )
                .bind(row.device.to_vec())
                .bind(row.code)
                .bind(row.created_at.as_micros())
                .bind(row.expires_at.as_micros())
                .execute(db)
                .await
                .map_err(Error::unique("adding a code", "the code"))?;
                Ok(())
            })
        })
        .await
    }

    /// Whether a command line waits with this code.
    ///
    /// # Errors
    /// The database failed.
    pub async fn device_waits(&self, code: &str, at: Timestamp) -> Result<bool> {
        let row =
            query("SELECT code FROM device_grant WHERE code = $1 AND expires_at > $2 AND decision IS NULL")
                .bind(code)
                .bind(at.as_micros())
                .fetch_optional(self.readers())
                .await
                .map_err(Error::database("reading a code"))?;
        Ok(row.is_some())
    }

    /// Notes what somebody decided. Answers whether the code still waited.
    ///
    /// # Errors
    /// The database failed.
    pub async fn device_decide(
        &self,
        code: String,
        org: OrgId,
        person: UserId,
        yes: bool,
        at: Timestamp,
        told: AuditEntry,
    ) -> Result<bool> {
        self.write_told(
            told,
            |decided| *decided,
            move |db| {
                let code = code.clone();
                Box::pin(async move {
                    let done = query(
                        "UPDATE device_grant SET org = $1, person = $2, decision = $3 WHERE code = $4 \
                         AND expires_at > $5 AND decision IS NULL",
                    )
                    .bind(org.to_string())
                    .bind(person.to_string())
                    .bind(if yes { "yes" } else { "no" })
                    .bind(code)
                    .bind(at.as_micros())
                    .execute(db)
                    .await
                    .map_err(Error::database("deciding about a code"))?;
                    Ok(done.rows_affected() > 0)
                })
            },
        )
        .await
    }

    /// How far it is, and notes that it asked. The hash names the organisation.
    ///
    /// # Errors
    /// The database failed.
    pub async fn device_poll(&self, device: [u8; 32], at: Timestamp) -> Result<Option<DeviceState>> {
        self.write(move |db| {
            Box::pin(async move {
                let fail = || Error::database("asking about a code");
                let row = query(
                    "SELECT decision, org, person, polled_at FROM device_grant WHERE device = $1 AND expires_at > $2",
                )
                .bind(device.to_vec())
                .bind(at.as_micros())
                .fetch_optional(&mut *db)
                .await
                .map_err(fail())?;
                let Some(row) = row else { return Ok(None) };
                let mut row = Reader::new(&row);
                let decision = row.maybe_text("decision")?;
                let (org, person) = (row.maybe_parsed("org")?, row.maybe_parsed("person")?);
                let polled_at = row.maybe_time("polled_at")?;
                query("UPDATE device_grant SET polled_at = $1 WHERE device = $2")
                    .bind(at.as_micros())
                    .bind(device.to_vec())
                    .execute(db)
                    .await
                    .map_err(fail())?;
                Ok(Some(match (decision.as_deref(), org, person) {
                    (Some("yes"), Some(org), Some(person)) => DeviceState::Approved { org, person },
                    (None, ..) => DeviceState::Waiting { polled_at },
                    _ => DeviceState::Denied,
                }))
            })
        })
        .await
    }

    /// Uses an approved code up and adds the personal access it gives. Answers whether it was still there.
    ///
    /// # Errors
    /// The database failed.
    pub async fn device_take(&self, device: [u8; 32], access: AccessRow, told: AuditEntry) -> Result<bool> {
        self.write_told(
            told,
            |taken| *taken,
            move |db| {
                let access = access.clone();
                Box::pin(async move {
                    let gone =
                        query("DELETE FROM device_grant WHERE device = $1 AND decision = 'yes' AND org = $2")
                            .bind(device.to_vec())
                            .bind(access.org.to_string())
                            .execute(&mut *db)
                            .await
                            .map_err(Error::database("using a code"))?;
                    if gone.rows_affected() == 0 {
                        return Ok(false);
                    }
                    super::access::insert(db, &access).await?;
                    Ok(true)
                })
            },
        )
        .await
    }
}
