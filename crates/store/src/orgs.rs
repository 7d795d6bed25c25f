//! Organisations.

use karta_types::{OrgId, Timestamp};

use crate::row::Reader;
use crate::sql::{Row, query};
use crate::{Error, Result, Store};

/// An organisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrgRow {
    /// Its id.
    pub id: OrgId,
    /// Its readable name.
    pub slug: String,
    /// Its name for people.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
}

fn read(row: &Row) -> Result<OrgRow> {
    let mut row = Reader::new(row);
    Ok(OrgRow {
        id: row.parsed("id")?,
        slug: row.text("slug")?,
        name: row.text("name")?,
        created_at: row.time("created_at")?,
    })
}

impl Store {
    /// Adds an organisation.
    ///
    /// # Errors
    /// `Conflict` when the slug is taken.
    pub async fn org_insert(&self, org: &OrgRow) -> Result<()> {
        let org = org.clone();
        self.write(move |db| {
            let org = org.clone();
            Box::pin(async move {
                query("INSERT INTO org (id, slug, name, created_at) VALUES ($1, $2, $3, $4)")
                    .bind(org.id.to_string())
                    .bind(org.slug)
                    .bind(org.name)
                    .bind(org.created_at.as_micros())
                    .execute(db)
                    .await
                    .map_err(Error::unique("adding an organisation", "the organisation's slug"))?;
                Ok(())
            })
        })
        .await
    }

    /// An organisation by id.
    ///
    /// # Errors
    /// The database failed.
    pub async fn org_get(&self, id: OrgId) -> Result<Option<OrgRow>> {
        let row = query("SELECT id, slug, name, created_at FROM org WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading an organisation"))?;
        row.as_ref().map(read).transpose()
    }

    /// An organisation by slug. Has no organisation of its own to filter by: used at start only.
    ///
    /// # Errors
    /// The database failed.
    pub async fn org_by_slug(&self, slug: &str) -> Result<Option<OrgRow>> {
        let row = query("SELECT id, slug, name, created_at FROM org WHERE slug = $1")
            .bind(slug.to_owned())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading an organisation"))?;
        row.as_ref().map(read).transpose()
    }
}
