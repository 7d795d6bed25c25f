//! Projects, and which release of each is active. A preview is a project that shows a release of its parent and ends by itself.

use karta_types::{OrgId, ProjectId, Timestamp};

use crate::activations::fitness;
use crate::releases::lock;
use crate::row::{Reader, big};
use crate::sql::{Connection, Row, query};
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
    /// The release that a part of the new sessions run on.
    pub canary: Option<CanaryRow>,
    /// The project whose releases a preview shows.
    pub parent: Option<ProjectId>,
    /// When a preview goes.
    pub expires_at: Option<Timestamp>,
    /// The folder it is made from, on the machine of `karta dev`.
    pub source: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A release that a part of the new sessions run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CanaryRow {
    /// The release.
    pub version: u64,
    /// How many of a hundred.
    pub percent: u8,
    /// Sessions made from then on count as new.
    pub since: Timestamp,
}

impl ProjectRow {
    /// The project whose releases this one runs: itself, or a preview's parent.
    pub fn home(&self) -> ProjectId {
        self.parent.unwrap_or(self.id)
    }
}

/// How a project is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProjectKey {
    /// By id.
    Id(ProjectId),
    /// By slug.
    Slug(String),
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, org, slug, name, active_version, canary_version, canary_percent, canary_since, parent, expires_at, ",
            "source, created_at FROM project ",
            $rest
        )
    };
}

fn read(row: &Row) -> Result<ProjectRow> {
    let mut row = Reader::new(row);
    let (id, org, slug, name) = (row.parsed("id")?, row.parsed("org")?, row.text("slug")?, row.text("name")?);
    let active_version = row.maybe_count("active_version")?;
    let (version, percent) = (row.maybe_count("canary_version")?, row.maybe_count("canary_percent")?);
    let since = row.maybe_time("canary_since")?;
    let canary = match (version, percent.map(u8::try_from), since) {
        (Some(version), Some(Ok(percent)), Some(since)) => Some(CanaryRow { version, percent, since }),
        (None, None, None) => None,
        _ => return Err(Error::Corrupt("canary_version")),
    };
    Ok(ProjectRow {
        id,
        org,
        slug,
        name,
        active_version,
        canary,
        parent: row.maybe_parsed("parent")?,
        expires_at: row.maybe_time("expires_at")?,
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
                Box::pin(async move { insert(db, &project).await })
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
            ProjectKey::Id(id) => (select!("WHERE org = $1 AND id = $2"), id.to_string()),
            ProjectKey::Slug(slug) => (select!("WHERE org = $1 AND slug = $2"), slug.clone()),
        };
        let row = query(sql)
            .bind(org.to_string())
            .bind(key)
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading a project"))?;
        row.as_ref().map(read).transpose()
    }

    /// The organisation's projects, oldest first, without previews.
    ///
    /// # Errors
    /// The database failed.
    pub async fn project_list(
        &self,
        org: OrgId,
        after: Option<ProjectId>,
        limit: u32,
    ) -> Result<Vec<ProjectRow>> {
        let rows = query(select!("WHERE org = $1 AND id > $2 AND parent IS NULL ORDER BY id LIMIT $3"))
            .bind(org.to_string())
            .bind(after.map(|id| id.to_string()).unwrap_or_default())
            .bind(i64::from(limit))
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing projects"))?;
        rows.iter().map(read).collect()
    }

    /// The project's previews, oldest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn preview_list(
        &self,
        org: OrgId,
        parent: ProjectId,
        after: Option<ProjectId>,
        limit: u32,
    ) -> Result<Vec<ProjectRow>> {
        let rows = query(select!("WHERE org = $1 AND parent = $2 AND id > $3 ORDER BY id LIMIT $4"))
            .bind(org.to_string())
            .bind(parent.to_string())
            .bind(after.map(|id| id.to_string()).unwrap_or_default())
            .bind(i64::from(limit))
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing previews"))?;
        rows.iter().map(read).collect()
    }

    /// Every preview that is past its time, of all organisations.
    ///
    /// # Errors
    /// The database failed.
    pub async fn previews_expired(&self, now: Timestamp) -> Result<Vec<ProjectRow>> {
        let rows = query(select!("WHERE parent IS NOT NULL AND expires_at <= $1"))
            .bind(now.as_micros())
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing previews"))?;
        rows.iter().map(read).collect()
    }

    /// Every project that has releases of its own, of all organisations, after this one: for what the platform keeps in order.
    ///
    /// # Errors
    /// The database failed.
    pub async fn projects_all(&self, after: Option<ProjectId>, limit: u32) -> Result<Vec<ProjectRow>> {
        let rows = query(select!("WHERE parent IS NULL AND id > $1 ORDER BY id LIMIT $2"))
            .bind(after.map(|id| id.to_string()).unwrap_or_default())
            .bind(i64::from(limit))
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing projects"))?;
        rows.iter().map(read).collect()
    }

    /// Makes a preview, or lets the one of this slug show another release and live longer. Answers the row as it is then; none if turns
    /// can't run on the release, or its project is gone.
    ///
    /// # Errors
    /// `Conflict` when a project that is no preview of this parent has the slug.
    pub async fn preview_put(&self, preview: &ProjectRow, told: AuditEntry) -> Result<Option<ProjectRow>> {
        let preview = preview.clone();
        self.write_told(
            told,
            Option::is_some,
            move |db| {
                let preview = preview.clone();
                Box::pin(async move {
                    // As by a flip and a deletion: none can pass another.
                    let home = preview.home();
                    let shown = preview.active_version.unwrap_or_default();
                    if !lock(db, preview.org, home).await?
                        || fitness(db, preview.org, home, shown).await? != Some(true)
                    {
                        return Ok(None);
                    }
                    let fail = || Error::database("making a preview");
                    let moved = query(
                        "UPDATE project SET active_version = $1, expires_at = $2 WHERE org = $3 AND slug = $4 AND parent = $5",
                    )
                    .bind(preview.active_version.map(big))
                    .bind(preview.expires_at.map(Timestamp::as_micros))
                    .bind(preview.org.to_string())
                    .bind(preview.slug.clone())
                    .bind(preview.parent.map(|id| id.to_string()))
                    .execute(&mut *db)
                    .await
                    .map_err(fail())?;
                    if moved.rows_affected() == 0 {
                        insert(db, &preview).await?;
                    }
                    let row = query(select!("WHERE org = $1 AND slug = $2"))
                        .bind(preview.org.to_string())
                        .bind(preview.slug.clone())
                        .fetch_optional(db)
                        .await
                        .map_err(fail())?;
                    read(&row.ok_or(Error::NotFound)?).map(Some)
                })
            },
        )
        .await
    }

    /// Gives a project another name for people. Answers whether it is there.
    ///
    /// # Errors
    /// The database failed.
    pub async fn project_rename(
        &self,
        org: OrgId,
        id: ProjectId,
        name: String,
        told: AuditEntry,
    ) -> Result<bool> {
        self.write_told(
            told,
            |found| *found,
            move |db| {
                let name = name.clone();
                Box::pin(async move {
                    let done = query("UPDATE project SET name = $1 WHERE org = $2 AND id = $3")
                        .bind(name)
                        .bind(org.to_string())
                        .bind(id.to_string())
                        .execute(db)
                        .await
                        .map_err(Error::database("renaming a project"))?;
                    Ok(done.rows_affected() > 0)
                })
            },
        )
        .await
    }

    /// Removes a project or preview with its releases, their history and what builds printed. Its sessions and previews must be gone
    /// already: while there is one, nothing is removed and the answer is no.
    ///
    /// # Errors
    /// The database failed.
    pub async fn project_remove(&self, org: OrgId, id: ProjectId, told: AuditEntry) -> Result<bool> {
        self.write_told(
            told,
            |removed| *removed,
            move |db| Box::pin(async move { remove(db, &org.to_string(), &id.to_string()).await }),
        )
        .await
    }
}

async fn insert(db: &mut Connection, project: &ProjectRow) -> Result<()> {
    query(
        "INSERT INTO project (id, org, slug, name, active_version, parent, expires_at, source, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(project.id.to_string())
    .bind(project.org.to_string())
    .bind(project.slug.clone())
    .bind(project.name.clone())
    .bind(project.active_version.map(big))
    .bind(project.parent.map(|id| id.to_string()))
    .bind(project.expires_at.map(Timestamp::as_micros))
    .bind(project.source.clone())
    .bind(project.created_at.as_micros())
    .execute(db)
    .await
    .map_err(Error::unique("adding a project", "the project's slug"))?;
    Ok(())
}

async fn remove(db: &mut Connection, org: &str, id: &str) -> Result<bool> {
    let fail = || Error::database("removing a project");
    let held = query(
        "SELECT id FROM session WHERE org = $1 AND project = $2 UNION ALL SELECT id FROM project WHERE org = $1 AND parent = $2 \
         LIMIT 1",
    )
    .bind(org.to_owned())
    .bind(id.to_owned())
    .fetch_optional(&mut *db)
    .await
    .map_err(fail())?;
    if held.is_some() {
        return Ok(false);
    }
    for statement in [
        "DELETE FROM build_line WHERE org = $1 AND project = $2",
        "DELETE FROM layer WHERE org = $1 AND project = $2",
        "DELETE FROM content WHERE org = $1 AND project = $2",
        "DELETE FROM release_activation WHERE org = $1 AND project = $2",
        "DELETE FROM project_release WHERE org = $1 AND project = $2",
    ] {
        query(statement).bind(org.to_owned()).bind(id.to_owned()).execute(&mut *db).await.map_err(fail())?;
    }
    let gone = query("DELETE FROM project WHERE org = $1 AND id = $2")
        .bind(org.to_owned())
        .bind(id.to_owned())
        .execute(db)
        .await
        .map_err(fail())?;
    Ok(gone.rows_affected() > 0)
}
