//! Links by which somebody signs in once, and the personal access that signing in gives.

use std::str::FromStr;

use karta_types::{OrgId, PersonalAccessId, Role, Timestamp, UserId};

use crate::row::Reader;
use crate::sql::{Connection, query};
use crate::{AuditEntry, Error, Result, Store};

/// What a personal access is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessKind {
    /// A browser's cookie.
    Browser,
    /// A command line's token.
    Cli,
}

impl AccessKind {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Browser => "browser",
            Self::Cli => "cli",
        }
    }
}

impl FromStr for AccessKind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Browser, Self::Cli].into_iter().find(|kind| kind.as_str() == text).ok_or(())
    }
}

/// A personal access; its text is nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRow {
    /// Its id.
    pub id: PersonalAccessId,
    /// The organisation it is for.
    pub org: OrgId,
    /// Whose it is.
    pub person: UserId,
    /// What for.
    pub kind: AccessKind,
    /// The keyed hash of its text.
    pub digest: [u8; 32],
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// What a personal access stands for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessHolder {
    /// Its id.
    pub id: PersonalAccessId,
    /// The organisation.
    pub org: OrgId,
    /// Who.
    pub person: UserId,
    /// What they are there.
    pub role: Role,
    /// What the access is for.
    pub kind: AccessKind,
    /// When it ends.
    pub expires_at: Timestamp,
}

pub(crate) async fn insert(db: &mut Connection, row: &AccessRow) -> Result<()> {
    query(
        "INSERT INTO personal_access (id, org, person, kind, digest, created_at, expires_at, changed_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $6)",
    )
    .bind(row.id.to_string())
    .bind(row.org.to_string())
    .bind(row.person.to_string())
    .bind(row.kind.as_str())
    .bind(row.digest.to_vec())
    .bind(row.created_at.as_micros())
    .bind(row.expires_at.as_micros())
    .execute(db)
    .await
    .map_err(Error::unique("adding a personal access", "the personal access"))?;
    Ok(())
}

impl Store {
    /// Adds a link that signs a member in, once.
    ///
    /// # Errors
    /// The database failed.
    pub async fn link_insert(
        &self,
        digest: [u8; 32],
        org: OrgId,
        person: UserId,
        at: Timestamp,
        until: Timestamp,
        told: AuditEntry,
    ) -> Result<()> {
        self.write_told(told, |()| true, move |db| {
            Box::pin(async move {
                query(
                    "INSERT INTO sign_in_link (digest, org, person, created_at, expires_at) VALUES ($1, $2, $3, $4, $5)",
                )
                .bind(digest.to_vec())
                .bind(org.to_string())
                .bind(person.to_string())
                .bind(at.as_micros())
                .bind(until.as_micros())
                .execute(db)
                .await
                .map_err(Error::database("adding a link"))?;
                Ok(())
            })
        })
        .await
    }

    /// Whom a link signs in where, if it still does. The hash names the organisation.
    ///
    /// # Errors
    /// The database failed.
    pub async fn link_get(&self, digest: [u8; 32], at: Timestamp) -> Result<Option<(OrgId, UserId)>> {
        let row = query(
            "SELECT org, person FROM sign_in_link WHERE digest = $1 AND used_at IS NULL AND expires_at > $2",
        )
        .bind(digest.to_vec())
        .bind(at.as_micros())
        .fetch_optional(self.readers())
        .await
        .map_err(Error::database("reading a link"))?;
        row.map(|row| {
            let mut row = Reader::new(&row);
            Ok((row.parsed("org")?, row.parsed("person")?))
        })
        .transpose()
    }

    /// Uses a link up and adds the personal access it gives, in one step. Answers whether the link was still good.
    ///
    /// # Errors
    /// The database failed.
    pub async fn link_use(&self, digest: [u8; 32], access: AccessRow, told: AuditEntry) -> Result<bool> {
        self.write_told(
            told,
            |used| *used,
            move |db| {
                let access = access.clone();
                Box::pin(async move {
                    let done = query(
                        "UPDATE sign_in_link SET used_at = $1 WHERE digest = $2 AND org = $3 AND used_at IS NULL \
                         AND expires_at > $1",
                    )
                    .bind(access.created_at.as_micros())
                    .bind(digest.to_vec())
                    .bind(access.org.to_string())
                    .execute(&mut *db)
                    .await
                    .map_err(Error::database("using a link"))?;
                    if done.rows_affected() == 0 {
                        return Ok(false);
                    }
                    insert(db, &access).await?;
                    Ok(true)
                })
            },
        )
        .await
    }

    /// Adds a personal access.
    ///
    /// # Errors
    /// The database failed.
    pub async fn access_insert(&self, access: AccessRow, told: AuditEntry) -> Result<()> {
        self.write_told(
            told,
            |()| true,
            move |db| {
                let access = access.clone();
                Box::pin(async move { insert(db, &access).await })
            },
        )
        .await
    }

    /// What a personal access stands for, by its keyed hash; nothing when it was ended or its holder is no member any more. The hash
    /// names the organisation.
    ///
    /// # Errors
    /// The database failed.
    pub async fn access_by_digest(&self, digest: &[u8; 32]) -> Result<Option<AccessHolder>> {
        let row = query(
            "SELECT a.id, a.org, a.person, m.role, a.kind, a.expires_at FROM personal_access a \
             JOIN member m ON m.org = a.org AND m.person = a.person WHERE a.digest = $1 AND a.revoked_at IS NULL",
        )
        .bind(digest.to_vec())
        .fetch_optional(self.readers())
        .await
        .map_err(Error::database("reading a personal access"))?;
        row.map(|row| {
            let mut row = Reader::new(&row);
            Ok(AccessHolder {
                id: row.parsed("id")?,
                org: row.parsed("org")?,
                person: row.parsed("person")?,
                role: row.parsed("role")?,
                kind: row.parsed("kind")?,
                expires_at: row.time("expires_at")?,
            })
        })
        .transpose()
    }

    /// Ends a personal access. Answers whether it was good until now.
    ///
    /// # Errors
    /// The database failed.
    pub async fn access_revoke(
        &self,
        org: OrgId,
        digest: [u8; 32],
        at: Timestamp,
        told: AuditEntry,
    ) -> Result<bool> {
        self.write_told(
            told,
            |ended| *ended,
            move |db| {
                Box::pin(async move {
                    let done = query(
                        "UPDATE personal_access SET revoked_at = $1, changed_at = $1 WHERE org = $2 AND digest = $3 \
                         AND revoked_at IS NULL",
                    )
                    .bind(at.as_micros())
                    .bind(org.to_string())
                    .bind(digest.to_vec())
                    .execute(db)
                    .await
                    .map_err(Error::database("ending a personal access"))?;
                    Ok(done.rows_affected() > 0)
                })
            },
        )
        .await
    }

    /// Erases what is past its time, of all organisations: links, codes, personal accesses, invitations.
    ///
    /// # Errors
    /// The database failed.
    pub async fn sign_ins_expire(&self, at: Timestamp) -> Result<()> {
        self.write(move |db| {
            Box::pin(async move {
                for statement in [
                    "DELETE FROM sign_in_link WHERE expires_at <= $1",
                    "DELETE FROM device_grant WHERE expires_at <= $1",
                    "DELETE FROM personal_access WHERE expires_at <= $1",
                    "DELETE FROM invitation WHERE expires_at <= $1",
                ] {
                    query(statement)
                        .bind(at.as_micros())
                        .execute(&mut *db)
                        .await
                        .map_err(Error::database("erasing old sign-ins"))?;
                }
                Ok(())
            })
        })
        .await
    }
}
