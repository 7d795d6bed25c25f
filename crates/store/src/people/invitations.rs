//! Invitations, by the keyed hash of their codes.

use karta_types::{InvitationId, OrgId, Role, Timestamp, UserId};

use super::PersonRow;
use crate::row::Reader;
use crate::sql::{Row, query};
use crate::{AuditEntry, Error, Result, Store};

/// An invitation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvitationRow {
    /// Its id.
    pub id: InvitationId,
    /// Into which organisation.
    pub org: OrgId,
    /// Whom, in lower case.
    pub email: String,
    /// As what.
    pub role: Role,
    /// Who invited.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// Until when it can be taken up.
    pub expires_at: Timestamp,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, org, email, role, created_by, created_at, expires_at FROM invitation \
             WHERE accepted_at IS NULL AND revoked_at IS NULL AND ",
            $rest
        )
    };
}

fn read(row: &Row) -> Result<InvitationRow> {
    let mut row = Reader::new(row);
    Ok(InvitationRow {
        id: row.parsed("id")?,
        org: row.parsed("org")?,
        email: row.text("email")?,
        role: row.parsed("role")?,
        created_by: row.text("created_by")?,
        created_at: row.time("created_at")?,
        expires_at: row.time("expires_at")?,
    })
}

impl Store {
    /// Adds an invitation.
    ///
    /// # Errors
    /// The database failed.
    pub async fn invitation_insert(
        &self,
        row: InvitationRow,
        digest: [u8; 32],
        told: AuditEntry,
    ) -> Result<()> {
        self.write_told(
            told,
            |()| true,
            move |db| {
                let row = row.clone();
                Box::pin(async move {
                    query(
                        "INSERT INTO invitation (id, org, email, role, digest, created_by, created_at, expires_at) \
                         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                    )
                    .bind(row.id.to_string())
                    .bind(row.org.to_string())
                    .bind(row.email)
                    .bind(row.role.as_str())
                    .bind(digest.to_vec())
                    .bind(row.created_by)
                    .bind(row.created_at.as_micros())
                    .bind(row.expires_at.as_micros())
                    .execute(db)
                    .await
                    .map_err(Error::unique("adding an invitation", "the invitation"))?;
                    Ok(())
                })
            },
        )
        .await
    }

    /// The organisation's invitations that can be taken up.
    ///
    /// # Errors
    /// The database failed.
    pub async fn invitation_list(&self, org: OrgId, at: Timestamp) -> Result<Vec<InvitationRow>> {
        let rows = query(select!("org = $1 AND expires_at > $2 ORDER BY id"))
            .bind(org.to_string())
            .bind(at.as_micros())
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing invitations"))?;
        rows.iter().map(read).collect()
    }

    /// An invitation that can be taken up, by the keyed hash of its code. The hash names the organisation.
    ///
    /// # Errors
    /// The database failed.
    pub async fn invitation_by_digest(
        &self,
        digest: &[u8; 32],
        at: Timestamp,
    ) -> Result<Option<InvitationRow>> {
        let row = query(select!("digest = $1 AND expires_at > $2"))
            .bind(digest.to_vec())
            .bind(at.as_micros())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading an invitation"))?;
        row.as_ref().map(read).transpose()
    }

    /// Invitations for an address that can be taken up, of all organisations.
    ///
    /// # Errors
    /// The database failed.
    pub async fn invitations_for(&self, email: &str, at: Timestamp) -> Result<Vec<InvitationRow>> {
        let rows = query(select!("email = $1 AND expires_at > $2 ORDER BY id"))
            .bind(email)
            .bind(at.as_micros())
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing invitations"))?;
        rows.iter().map(read).collect()
    }

    /// Takes an invitation back. Answers whether it could be taken up until now.
    ///
    /// # Errors
    /// The database failed.
    pub async fn invitation_revoke(
        &self,
        org: OrgId,
        id: InvitationId,
        at: Timestamp,
        told: AuditEntry,
    ) -> Result<bool> {
        self.write_told(
            told,
            |revoked| *revoked,
            move |db| {
                Box::pin(async move {
                    let done = query(
                        "UPDATE invitation SET revoked_at = $1 WHERE org = $2 AND id = $3 AND revoked_at IS NULL \
                         AND accepted_at IS NULL",
                    )
                    .bind(at.as_micros())
                    .bind(org.to_string())
                    .bind(id.to_string())
                    .execute(db)
                    .await
                    .map_err(Error::database("taking an invitation back"))?;
                    Ok(done.rows_affected() > 0)
                })
            },
        )
        .await
    }

    /// Takes an invitation up: for somebody who is `known`, else for the person with its address, who is made if there is none.
    /// Somebody who is a member already keeps their role. Answers who, or nothing when the invitation can't be taken up any more.
    ///
    /// # Errors
    /// The database failed.
    pub async fn invitation_accept(
        &self,
        row: &InvitationRow,
        known: Option<UserId>,
        person: PersonRow,
        at: Timestamp,
        told: AuditEntry,
    ) -> Result<Option<UserId>> {
        let (id, org, role) = (row.id, row.org, row.role);
        self.write_told(told, Option::is_some, move |db| {
            let person = person.clone();
            Box::pin(async move {
                let done = query(
                    "UPDATE invitation SET accepted_at = $1 WHERE org = $2 AND id = $3 AND accepted_at IS NULL \
                     AND revoked_at IS NULL AND expires_at > $1",
                )
                .bind(at.as_micros())
                .bind(org.to_string())
                .bind(id.to_string())
                .execute(&mut *db)
                .await
                .map_err(Error::database("taking an invitation up"))?;
                if done.rows_affected() == 0 {
                    return Ok(None);
                }
                let who = match known {
                    Some(who) => who,
                    None => super::ensure(db, &person).await?,
                };
                query(
                    "INSERT INTO member (org, person, role, created_at) VALUES ($1, $2, $3, $4) \
                     ON CONFLICT (org, person) DO NOTHING",
                )
                .bind(org.to_string())
                .bind(who.to_string())
                .bind(role.as_str())
                .bind(at.as_micros())
                .execute(db)
                .await
                .map_err(Error::database("adding a member"))?;
                Ok(Some(who))
            })
        })
        .await
    }
}
