//! Who is what in an organisation.

use karta_types::{OrgId, Role, Timestamp, UserId};

use super::PersonRow;
use crate::row::Reader;
use crate::sql::{Connection, Row, query};
use crate::{AuditEntry, Error, OrgRow, Result, Store};

/// Somebody in an organisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRow {
    /// Who.
    pub person: PersonRow,
    /// What they are.
    pub role: Role,
    /// Since when.
    pub since: Timestamp,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT p.id, p.email, p.name, p.created_at, m.role, m.created_at FROM member m ",
            "JOIN person p ON p.id = m.person WHERE m.org = $1 AND ",
            $rest
        )
    };
}

fn read(row: &Row) -> Result<MemberRow> {
    let mut row = Reader::new(row);
    Ok(MemberRow {
        person: PersonRow {
            id: row.parsed("id")?,
            email: row.text("email")?,
            name: row.text("name")?,
            created_at: row.time("created_at")?,
        },
        role: row.parsed("role")?,
        since: row.time("since")?,
    })
}

/// Whether the organisation would be left without an owner if this one were none. Holds the organisation's row, so that two owners
/// who leave at once don't both see the other.
async fn is_last_owner(db: &mut Connection, org: OrgId, person: UserId) -> Result<bool> {
    let fail = || Error::database("counting owners");
    query("UPDATE org SET name = name WHERE id = $1")
        .bind(org.to_string())
        .execute(&mut *db)
        .await
        .map_err(fail())?;
    let row = query(
        "SELECT COUNT(*) FROM member WHERE org = $1 AND role = 'owner' AND EXISTS \
         (SELECT 1 FROM member WHERE org = $1 AND person = $2 AND role = 'owner')",
    )
    .bind(org.to_string())
    .bind(person.to_string())
    .fetch_one(db)
    .await
    .map_err(fail())?;
    Ok(Reader::new(&row).int("owners")? == 1)
}

/// Adds somebody, or gives them another role if they are there.
pub(crate) async fn put(
    db: &mut Connection,
    org: OrgId,
    person: UserId,
    role: Role,
    at: Timestamp,
) -> Result<()> {
    query(
        "INSERT INTO member (org, person, role, created_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (org, person) DO UPDATE SET role = excluded.role",
    )
    .bind(org.to_string())
    .bind(person.to_string())
    .bind(role.as_str())
    .bind(at.as_micros())
    .execute(&mut *db)
    .await
    .map_err(Error::database("adding a member"))?;
    // Nodes that know the person's tokens look again.
    query("UPDATE personal_access SET changed_at = $1 WHERE org = $2 AND person = $3")
        .bind(at.as_micros())
        .bind(org.to_string())
        .bind(person.to_string())
        .execute(db)
        .await
        .map_err(Error::database("adding a member"))?;
    Ok(())
}

impl Store {
    /// The organisation's people, by id.
    ///
    /// # Errors
    /// The database failed.
    pub async fn member_list(&self, org: OrgId, after: Option<UserId>, limit: u32) -> Result<Vec<MemberRow>> {
        let rows = query(select!("m.person > $2 ORDER BY m.person LIMIT $3"))
            .bind(org.to_string())
            .bind(after.map(|id| id.to_string()).unwrap_or_default())
            .bind(i64::from(limit))
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing members"))?;
        rows.iter().map(read).collect()
    }

    /// Somebody in the organisation.
    ///
    /// # Errors
    /// The database failed.
    pub async fn member_get(&self, org: OrgId, person: UserId) -> Result<Option<MemberRow>> {
        let row = query(select!("m.person = $2"))
            .bind(org.to_string())
            .bind(person.to_string())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading a member"))?;
        row.as_ref().map(read).transpose()
    }

    /// The organisations that somebody is in, by slug, with what they are there.
    ///
    /// # Errors
    /// The database failed.
    pub async fn memberships(&self, person: UserId) -> Result<Vec<(OrgRow, Role)>> {
        let rows = query(
            "SELECT o.id, o.slug, o.name, o.created_at, m.role FROM member m JOIN org o ON o.id = m.org \
             WHERE m.person = $1 ORDER BY o.slug",
        )
        .bind(person.to_string())
        .fetch_all(self.readers())
        .await
        .map_err(Error::database("listing somebody's organisations"))?;
        rows.iter()
            .map(|row| {
                let mut row = Reader::new(row);
                let org = OrgRow {
                    id: row.parsed("id")?,
                    slug: row.text("slug")?,
                    name: row.text("name")?,
                    created_at: row.time("created_at")?,
                };
                Ok((org, row.parsed("role")?))
            })
            .collect()
    }

    /// Adds somebody, or gives them another role.
    ///
    /// # Errors
    /// `LastOwner` when nobody would own the organisation.
    pub async fn member_put(
        &self,
        org: OrgId,
        person: UserId,
        role: Role,
        at: Timestamp,
        told: AuditEntry,
    ) -> Result<()> {
        self.write_told(
            told,
            |()| true,
            move |db| {
                Box::pin(async move {
                    if role != Role::Owner && is_last_owner(db, org, person).await? {
                        return Err(Error::LastOwner);
                    }
                    put(db, org, person, role, at).await
                })
            },
        )
        .await
    }

    /// Removes somebody, and ends their tokens for the organisation. Answers whether they were there.
    ///
    /// # Errors
    /// `LastOwner` when nobody would own the organisation.
    pub async fn member_remove(
        &self,
        org: OrgId,
        person: UserId,
        at: Timestamp,
        told: AuditEntry,
    ) -> Result<bool> {
        self.write_told(
            told,
            |gone| *gone,
            move |db| {
                Box::pin(async move {
                    if is_last_owner(db, org, person).await? {
                        return Err(Error::LastOwner);
                    }
                    let gone = query("DELETE FROM member WHERE org = $1 AND person = $2")
                        .bind(org.to_string())
                        .bind(person.to_string())
                        .execute(&mut *db)
                        .await
                        .map_err(Error::database("removing a member"))?;
                    query(
                        "UPDATE personal_access SET revoked_at = $1, changed_at = $1 WHERE org = $2 AND person = $3 \
                         AND revoked_at IS NULL",
                    )
                    .bind(at.as_micros())
                    .bind(org.to_string())
                    .bind(person.to_string())
                    .execute(db)
                    .await
                    .map_err(Error::database("ending a member's tokens"))?;
                    Ok(gone.rows_affected() > 0)
                })
            },
        )
        .await
    }
}
