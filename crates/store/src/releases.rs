//! Releases: numbered within their project; their content never changes, how they stand does.

use karta_types::policy::Recipe;
use karta_types::release::{Discovery, HarnessPin, ReleaseState};
use karta_types::session::{ReleasePin, ReleaseRef};
use karta_types::{OrgId, ProjectId, ReleaseId, Timestamp};

use crate::contents::{self, PackRow};
use crate::row::{Reader, big, json};
use crate::sql::{Connection, Row, Value, query};
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
    /// What its own files of the platform say.
    pub recipe: Recipe,
    /// The hash of the list of its files, by which they are found; none for releases from before files were kept by their content.
    pub files: Option<String>,
    /// The same after its setup, if it has one that has run.
    pub built: Option<String>,
    /// The commit it was made of.
    pub commit: Option<String>,
    /// What the publisher said of it.
    pub message: Option<String>,
    /// Who published it.
    pub actor: String,
    /// How many bytes its files are.
    pub bytes: u64,
    /// How many files it has.
    pub file_count: u64,
    /// The preview it was published for.
    pub preview: Option<String>,
    /// How it stands.
    pub state: ReleaseState,
    /// Why it failed.
    pub error: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl ReleaseRow {
    /// Whether turns can run on it.
    pub const fn can_run(&self) -> bool {
        !matches!(self.state, ReleaseState::Failed | ReleaseState::Deleted | ReleaseState::Building)
    }

    /// Number and id.
    pub const fn reference(&self) -> ReleaseRef {
        ReleaseRef { version: self.version, id: self.id }
    }

    /// The list of the files that its sessions get.
    pub fn served(&self) -> Option<&str> {
        self.built.as_deref().or(self.files.as_deref())
    }
}

/// A release to add.
#[derive(Debug, Clone)]
pub struct NewRelease {
    /// It, without a number yet.
    pub row: ReleaseRow,
    /// What its pack adds to the contents that are kept.
    pub pack: PackRow,
}

/// What became of a release that was to be added.
#[derive(Debug, Clone, PartialEq)]
pub enum Added {
    /// It is new, or there was one like it that had failed or was deleted and begins anew under its old number.
    New(ReleaseRow),
    /// There is one with the same content, which stays as it is.
    Known(ReleaseRow),
}

/// How a build ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Built {
    /// Well.
    Well {
        /// The pack that lists its files now, and what it adds to the contents that are kept.
        pack: PackRow,
        /// What its inputs were: the next release with the same takes over what the setup made.
        layer: String,
        /// How it stands now.
        state: ReleaseState,
    },
    /// Not: why.
    Failed(String),
}

/// What became of a wish to delete a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It is deleted, now or before.
    Gone,
    /// There is no such release.
    Missing,
    /// Something runs on it: what.
    Used(&'static str),
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, org, project, version, digest, harness, found, settings, files, built, commit_id, message, actor, ",
            "bytes, file_count, preview, state, error, created_at FROM project_release ",
            $rest
        )
    };
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
        // Releases from before there were recipes have none.
        recipe: row.json::<Option<Recipe>>("settings")?.unwrap_or_default(),
        files: row.maybe_text("files")?,
        built: row.maybe_text("built")?,
        commit: row.maybe_text("commit_id")?,
        message: row.maybe_text("message")?,
        actor: row.text("actor")?,
        bytes: row.count("bytes")?,
        file_count: row.count("file_count")?,
        preview: row.maybe_text("preview")?,
        state: state(&row.text("state")?)?,
        error: row.maybe_text("error")?,
        created_at: row.time("created_at")?,
    })
}

fn state(text: &str) -> Result<ReleaseState> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|_| Error::Corrupt("state"))
}

impl Store {
    /// Adds a release under the next number. The same digest again is the release that has it, unless that can't run: then it begins
    /// anew. The entry's resource is set here, as project and version.
    ///
    /// # Errors
    /// The database failed.
    pub async fn release_insert(&self, new: NewRelease, told: AuditEntry) -> Result<Added> {
        let told = std::sync::Arc::new((new, told));
        self.write(move |db| {
            let told = told.clone();
            Box::pin(async move {
                let (new, told) = &*told;
                let added = insert(db, new.row.clone()).await?;
                let (Added::New(row) | Added::Known(row)) = &added;
                // Of two publishers at once, the second one's pack is not the release's and holds nothing that is needed.
                if row.files.as_ref() == Some(&new.pack.pack) {
                    contents::add(db, row.org, row.project, &new.pack).await?;
                }
                // The same content again is no change.
                if let Added::New(row) = &added {
                    let resource = format!("{}/{}", row.project, row.version);
                    crate::audit::append(db, &AuditEntry { resource, ..told.clone() }).await?;
                }
                Ok(added)
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
        let row = query(select!("WHERE org = $1 AND project = $2 AND version = $3"))
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
        let rows =
            query(select!("WHERE org = $1 AND project = $2 AND version < $3 ORDER BY version DESC LIMIT $4"))
                .bind(org.to_string())
                .bind(project.to_string())
                .bind(before.map_or(i64::MAX, big))
                .bind(i64::from(limit))
                .fetch_all(self.readers())
                .await
                .map_err(Error::database("listing releases"))?;
        rows.iter().map(read).collect()
    }

    /// Every release that is being built, of all organisations: what a crash left.
    ///
    /// # Errors
    /// The database failed.
    pub async fn releases_building(&self) -> Result<Vec<ReleaseRow>> {
        let rows = query(select!("WHERE state = 'building'"))
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing what is being built"))?;
        rows.iter().map(read).collect()
    }

    /// Ends a build. Answers the release as it is then; none if it was not being built any more.
    ///
    /// # Errors
    /// The database failed.
    pub async fn release_built(
        &self,
        row: &ReleaseRow,
        built: Built,
        told: Option<AuditEntry>,
    ) -> Result<Option<ReleaseRow>> {
        let made = match &built {
            Built::Well { pack, state, .. } => {
                ReleaseRow { built: Some(pack.pack.clone()), state: *state, error: None, ..row.clone() }
            }
            Built::Failed(why) => {
                ReleaseRow { state: ReleaseState::Failed, error: Some(why.clone()), ..row.clone() }
            }
        };
        let made = std::sync::Arc::new((made, built, told));
        self.write(move |db| {
            let made = made.clone();
            Box::pin(async move {
                let (row, built, told) = &*made;
                let done = query(
                    "UPDATE project_release SET state = $1, built = $2, error = $3 \
                     WHERE org = $4 AND project = $5 AND version = $6 AND state = 'building'",
                )
                .bind(row.state.as_str())
                .bind(row.built.clone())
                .bind(row.error.clone())
                .bind(row.org.to_string())
                .bind(row.project.to_string())
                .bind(big(row.version))
                .execute(&mut *db)
                .await
                .map_err(Error::database("ending a build"))?;
                if done.rows_affected() == 0 {
                    return Ok(None);
                }
                if let Built::Well { pack, layer, .. } = built {
                    contents::add(db, row.org, row.project, pack).await?;
                    contents::set_layer(db, row.org, row.project, layer, row.version).await?;
                }
                if let Some(told) = told {
                    crate::audit::append(db, told).await?;
                }
                Ok(Some(row.clone()))
            })
        })
        .await
    }

    /// The release with this digest.
    ///
    /// # Errors
    /// The database failed.
    pub async fn release_by_digest(
        &self,
        org: OrgId,
        project: ProjectId,
        digest: &str,
    ) -> Result<Option<ReleaseRow>> {
        let row = query(select!("WHERE org = $1 AND project = $2 AND digest = $3"))
            .bind(org.to_string())
            .bind(project.to_string())
            .bind(digest.to_owned())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading a release"))?;
        row.as_ref().map(read).transpose()
    }

    /// Deletes a release: the record stays, nothing can run on it any more. Refused while anything does.
    ///
    /// # Errors
    /// The database failed.
    pub async fn release_delete(
        &self,
        org: OrgId,
        project: ProjectId,
        version: u64,
        told: AuditEntry,
    ) -> Result<Deleted> {
        self.write(move |db| {
            let told = told.clone();
            Box::pin(async move { delete(db, org, project, version, &told).await })
        })
        .await
    }
}

async fn insert(db: &mut Connection, new: ReleaseRow) -> Result<Added> {
    let fail = || Error::database("adding a release");
    // Of two at once the second sees what the first added.
    if !lock(db, new.org, new.project).await? {
        return Err(Error::NotFound);
    }
    let known = query(select!("WHERE org = $1 AND project = $2 AND digest = $3"))
        .bind(new.org.to_string())
        .bind(new.project.to_string())
        .bind(new.digest.clone())
        .fetch_optional(&mut *db)
        .await
        .map_err(fail())?;
    let Some(known) = known.as_ref().map(read).transpose()? else {
        let last = query(
            "SELECT CAST(COALESCE(MAX(version), 0) AS BIGINT) FROM project_release WHERE org = $1 AND project = $2",
        )
        .bind(new.org.to_string())
        .bind(new.project.to_string())
        .fetch_one(&mut *db)
        .await
        .map_err(fail())?;
        let row = ReleaseRow { version: Reader::new(&last).count("version")? + 1, ..new };
        query(
            "INSERT INTO project_release (project, version, id, org, digest, harness, found, settings, state, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(row.project.to_string())
        .bind(big(row.version))
        .bind(row.id.to_string())
        .bind(row.org.to_string())
        .bind(row.digest.clone())
        .bind(json(&row.harness))
        .bind(json(&row.found))
        .bind(json(&row.recipe))
        .bind(row.state.as_str())
        .bind(row.created_at.as_micros())
        .execute(&mut *db)
        .await
        .map_err(fail())?;
        return complete(db, row).await.map(Added::New);
    };
    let can_run = known.can_run();
    if can_run && known.files.is_some() {
        return Ok(Added::Known(known));
    }
    // One that can't run begins anew. One from before files were kept by their content only gets them.
    let state = if can_run { known.state } else { new.state };
    let row = complete(db, ReleaseRow { id: known.id, version: known.version, state, ..new }).await?;
    query("DELETE FROM build_line WHERE org = $1 AND project = $2 AND version = $3")
        .bind(row.org.to_string())
        .bind(row.project.to_string())
        .bind(big(row.version))
        .execute(db)
        .await
        .map_err(fail())?;
    Ok(if can_run { Added::Known(row) } else { Added::New(row) })
}

/// Locks a project's row for the rest of the transaction. Answers whether there is one.
pub(crate) async fn lock(db: &mut Connection, org: OrgId, project: ProjectId) -> Result<bool> {
    let locked = query("UPDATE project SET active_version = active_version WHERE org = $1 AND id = $2")
        .bind(org.to_string())
        .bind(project.to_string())
        .execute(db)
        .await
        .map_err(Error::database("locking a project"))?;
    Ok(locked.rows_affected() > 0)
}

/// Writes what a release records of how it was made.
async fn complete(db: &mut Connection, row: ReleaseRow) -> Result<ReleaseRow> {
    query(
        "UPDATE project_release SET files = $1, built = $2, commit_id = $3, message = $4, actor = $5, bytes = $6, \
         file_count = $7, preview = $8, state = $9, error = NULL WHERE org = $10 AND project = $11 AND version = $12",
    )
    .bind(row.files.clone())
    .bind(row.built.clone())
    .bind(row.commit.clone())
    .bind(row.message.clone())
    .bind(row.actor.clone())
    .bind(big(row.bytes))
    .bind(big(row.file_count))
    .bind(row.preview.clone())
    .bind(row.state.as_str())
    .bind(row.org.to_string())
    .bind(row.project.to_string())
    .bind(big(row.version))
    .execute(&mut *db)
    .await
    .map_err(Error::database("adding a release"))?;
    Ok(row)
}

async fn delete(
    db: &mut Connection,
    org: OrgId,
    project: ProjectId,
    version: u64,
    told: &AuditEntry,
) -> Result<Deleted> {
    // As by a flip: neither can pass the other.
    lock(db, org, project).await?;
    let (number, pin) = (big(version), json(&ReleasePin::Version(version)));
    for (what, used, which) in [
        (
            "it is active",
            "SELECT id FROM project WHERE org = $1 AND id = $2 AND active_version = $3",
            Value::from(number),
        ),
        (
            "it is a canary",
            "SELECT id FROM project WHERE org = $1 AND id = $2 AND canary_version = $3",
            Value::from(number),
        ),
        (
            "a preview shows it",
            "SELECT id FROM project WHERE org = $1 AND parent = $2 AND active_version = $3",
            Value::from(number),
        ),
        (
            "sessions are pinned to it",
            "SELECT id FROM session WHERE org = $1 AND project = $2 AND status <> 'closed' AND release_pin = '\"session\"' \
             AND pinned_version = $3 LIMIT 1",
            Value::from(number),
        ),
        (
            "sessions are pinned to it",
            "SELECT id FROM session WHERE org = $1 AND project = $2 AND status <> 'closed' AND release_pin = $3 LIMIT 1",
            Value::from(pin),
        ),
    ] {
        let found = query(used)
            .bind(org.to_string())
            .bind(project.to_string())
            .bind(which)
            .fetch_optional(&mut *db)
            .await
            .map_err(Error::database("looking who uses a release"))?;
        if found.is_some() {
            return Ok(Deleted::Used(what));
        }
    }
    let done = query(
        "UPDATE project_release SET state = 'deleted' WHERE org = $1 AND project = $2 AND version = $3 \
         AND state NOT IN ('deleted', 'building')",
    )
    .bind(org.to_string())
    .bind(project.to_string())
    .bind(big(version))
    .execute(&mut *db)
    .await
    .map_err(Error::database("deleting a release"))?;
    if done.rows_affected() > 0 {
        crate::audit::append(db, told).await?;
        return Ok(Deleted::Gone);
    }
    let known = query("SELECT state FROM project_release WHERE org = $1 AND project = $2 AND version = $3")
        .bind(org.to_string())
        .bind(project.to_string())
        .bind(big(version))
        .fetch_optional(&mut *db)
        .await
        .map_err(Error::database("deleting a release"))?;
    Ok(match known {
        None => Deleted::Missing,
        Some(row) if Reader::new(&row).text("state")? == "building" => Deleted::Used("it is being built"),
        Some(_) => Deleted::Gone,
    })
}
