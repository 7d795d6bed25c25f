//! Projects, and which release of each is active.

use karta_types::{OrgId, ProjectId, Timestamp};

use crate::row::{Reader, big};
use crate::sql::{Row, query};
use crate::{AuditEntry, Error, Result, Store};

/// A project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectRow {
    /// Its id.
    pub id: ProjectId,
    /// Whose it is.
    pub org: OrgId,
    /// Its readable name.
    pub slug: String,
    /// Its name for people.
    pub name: String,
    /// The release that takes new turns.
    pub active_version: Option<u64>,
    /// The folder it is made from, on the machine of `karta dev`.
    pub source: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// How a project is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProjectKey {
    /// By id.
    Id(ProjectId),
    /// By slug.
    Slug(String),
}

fn read(row: &Row) -> Result<ProjectRow> {
    let mut row = Reader::new(row);
    Ok(ProjectRow {
        id: row.parsed("id")?,
        org: row.parsed("org")?,
        slug: row.text("slug")?,
        name: row.text("name")?,
        active_version: row.maybe_count("active_version")?,
        source: row.maybe_text("source")?,
        created_at: row.time("created_at")?,
    })
}

impl Store {
    /// Adds a project.
    ///
    /// # Errors
    /// `Conflict` when the organisation has one with this slug.
    pub async fn project_insert(&self, project: &ProjectRow, told: AuditEntry) -> Result<()> {
        let project = project.clone();
        self.write_told(
            told,
            |()| true,
            move |db| {
                let project = project.clone();
                Box::pin(async move {
                    query(
                        "INSERT INTO project (id, org, slug, name, active_version, source, created_at) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7)",
                    )
                    .bind(project.id.to_string())
                    .bind(project.org.to_string())
                    .bind(project.slug)
                    .bind(project.name)
                    .bind(project.active_version.map(big))
                    .bind(project.source)
                    .bind(project.created_at.as_micros())
                    .execute(db)
                    .await
                    .map_err(Error::unique("adding a project", "the project's slug"))?;
                    Ok(())
                })
            },
        )
        .await
    }

    /// A project.
    ///
    /// # Errors
    /// The database failed.
    pub async fn project_get(&self, org: OrgId, key: &ProjectKey) -> Result<Option<ProjectRow>> {
        let (sql, key) = match key {
            ProjectKey::Id(id) => (
                "SELECT id, org, slug, name, active_version, source, created_at FROM project \
                 WHERE org = $1 AND id = $2",
                id.to_string(),
            ),
            ProjectKey::Slug(slug) => (
                "SELECT id, org, slug, name, active_version, source, created_at FROM project \
                 WHERE org = $1 AND slug = $2",
                slug.clone(),
            ),
        };
        let row = query(sql)
            .bind(org.to_string())
            .bind(key)
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading a project"))?;
        row.as_ref().map(read).transpose()
    }

    /// The organisation's projects, oldest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn project_list(
        &self,
        org: OrgId,
        after: Option<ProjectId>,
        limit: u32,
    ) -> Result<Vec<ProjectRow>> {
        let rows = query(
            "SELECT id, org, slug, name, active_version, source, created_at FROM project \
             WHERE org = $1 AND id > $2 ORDER BY id LIMIT $3",
        )
        .bind(org.to_string())
        .bind(after.map(|id| id.to_string()).unwrap_or_default())
        .bind(i64::from(limit))
        .fetch_all(self.readers())
        .await
        .map_err(Error::database("listing projects"))?;
        rows.iter().map(read).collect()
    }
}
