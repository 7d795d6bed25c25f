//! Releases: numbered within their project, never changed.

use karta_types::release::{Discovery, HarnessPin, ReleaseState};
use karta_types::{OrgId, ProjectId, ReleaseId, Timestamp};
use serde_json::Value;

use crate::row::{Reader, big, json};
use crate::sql::{Connection, Row, query};
use crate::{AuditEntry, Error, Result, Store};

/// A release.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleaseRow {
    /// Its id.
    pub id: ReleaseId,
    /// Whose it is.
    pub org: OrgId,
    /// Its project.
    pub project: ProjectId,
    /// Its number within the project, from 1.
    pub version: u64,
    /// What its files and its harness are, as one hash.
    pub digest: String,
    /// What it runs on.
    pub harness: HarnessPin,
    /// What was found in its files.
    pub found: Discovery,
    /// What its own settings file says.
    pub settings: Value,
    /// How it stands.
    pub state: ReleaseState,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A release to add.
#[derive(Debug, Clone)]
pub struct NewRelease {
    /// Its id.
    pub id: ReleaseId,
    /// What its files and its harness are, as one hash.
    pub digest: String,
    /// What it runs on.
    pub harness: HarnessPin,
    /// What was found in its files.
    pub found: Discovery,
    /// What its own settings file says.
    pub settings: Value,
    /// When it was made.
    pub created_at: Timestamp,
}

fn read(row: &Row) -> Result<ReleaseRow> {
    let mut row = Reader::new(row);
    Ok(ReleaseRow {
        id: row.parsed("id")?,
        org: row.parsed("org")?,
        project: row.parsed("project")?,
        version: row.count("version")?,
        digest: row.text("digest")?,
        harness: row.json("harness")?,
        found: row.json("found")?,
        settings: row.json("settings")?,
        state: state(&row.text("state")?)?,
        created_at: row.time("created_at")?,
    })
}

fn state(text: &str) -> Result<ReleaseState> {
    serde_json::from_value(Value::String(text.to_owned())).map_err(|_| Error::Corrupt("state"))
}

impl Store {
    /// Adds a release under the next number. The same digest again is the release that has it.
    ///
    /// # Errors
    /// The database failed.
    pub async fn release_insert(
        &self,
        org: OrgId,
        project: ProjectId,
        new: NewRelease,
        told: AuditEntry,
    ) -> Result<ReleaseRow> {
        let told = std::sync::Arc::new(told);
        self.write(move |db| {
            let (new, told) = (new.clone(), told.clone());
            Box::pin(async move {
                let id = new.id;
                let row = insert(db, org, project, new).await?;
                // The same content again is no change.
                if row.id == id {
                    crate::audit::append(db, &told).await?;
                }
                Ok(row)
            })
        })
        .await
    }

    /// A release by number.
    ///
    /// # Errors
    /// The database failed.
    pub async fn release_get(
        &self,
        org: OrgId,
        project: ProjectId,
        version: u64,
    ) -> Result<Option<ReleaseRow>> {
        let row = query(
            "SELECT id, org, project, version, digest, harness, found, settings, state, created_at \
             FROM project_release WHERE org = $1 AND project = $2 AND version = $3",
        )
        .bind(org.to_string())
        .bind(project.to_string())
        .bind(big(version))
        .fetch_optional(self.readers())
        .await
        .map_err(Error::database("reading a release"))?;
        row.as_ref().map(read).transpose()
    }

    /// The project's releases, newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn release_list(
        &self,
        org: OrgId,
        project: ProjectId,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<ReleaseRow>> {
        let rows = query(
            "SELECT id, org, project, version, digest, harness, found, settings, state, created_at \
             FROM project_release WHERE org = $1 AND project = $2 AND version < $3 ORDER BY version DESC LIMIT $4",
        )
        .bind(org.to_string())
        .bind(project.to_string())
        .bind(before.map_or(i64::MAX, big))
        .bind(i64::from(limit))
        .fetch_all(self.readers())
        .await
        .map_err(Error::database("listing releases"))?;
        rows.iter().map(read).collect()
    }
}

async fn insert(db: &mut Connection, org: OrgId, project: ProjectId, new: NewRelease) -> Result<ReleaseRow> {
    let fail = || Error::database("adding a release");
    let known = query(
        "SELECT id, org, project, version, digest, harness, found, settings, state, created_at \
         FROM project_release WHERE org = $1 AND project = $2 AND digest = $3",
    )
    .bind(org.to_string())
    .bind(project.to_string())
    .bind(new.digest.clone())
    .fetch_optional(&mut *db)
    .await
    .map_err(fail())?;
    if let Some(row) = known {
        return read(&row);
    }
    let last = query(
        "SELECT CAST(COALESCE(MAX(version), 0) AS BIGINT) FROM project_release WHERE org = $1 AND project = $2",
    )
    .bind(org.to_string())
    .bind(project.to_string())
    .fetch_one(&mut *db)
    .await
    .map_err(fail())?;
    let version = Reader::new(&last).count("version")? + 1;
    query(
        "INSERT INTO project_release \
         (project, version, id, org, digest, harness, found, settings, state, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'ready', $9)",
    )
    .bind(project.to_string())
    .bind(big(version))
    .bind(new.id.to_string())
    .bind(org.to_string())
    .bind(new.digest.clone())
    .bind(json(&new.harness))
    .bind(json(&new.found))
    .bind(json(&new.settings))
    .bind(new.created_at.as_micros())
    .execute(&mut *db)
    .await
    .map_err(fail())?;
    Ok(ReleaseRow {
        id: new.id,
        org,
        project,
        version,
        digest: new.digest,
        harness: new.harness,
        found: new.found,
        settings: new.settings,
        state: ReleaseState::Ready,
        created_at: new.created_at,
    })
}
