//! Projects and their releases, made here from a folder on this machine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use karta_harness::registry::{Declared, detect, find};
use karta_harness::{Harness, Tree};
use karta_store::{Flip, NewRelease, ProjectKey, ProjectRow, ReleaseRow, Wanted};
use karta_types::page::Page;
use karta_types::release::{Activation, ActiveRelease, HarnessPin, Project, Release, ReleaseState};
use karta_types::session::{ReleasePin, ReleaseRef};
use karta_types::{ErrorCode, OrgId, ProjectId, ReleaseId};
use serde::Deserialize;

use crate::data::files::Folder;
use crate::{Engine, Error, Principal, Result};

/// A release as this node runs it.
pub struct Loaded {
    /// Its record.
    pub row: ReleaseRow,
    /// Its files.
    pub path: PathBuf,
    /// What adapters read of them.
    pub tree: Tree,
    /// Its harness.
    pub harness: &'static dyn Harness,
    /// What `karta.toml` says.
    pub manifest: Manifest,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("version", &self.row.version).finish_non_exhaustive()
    }
}

impl Loaded {
    /// Number and id.
    pub const fn release_ref(&self) -> ReleaseRef {
        ReleaseRef { version: self.row.version, id: self.row.id }
    }

    /// An agent by its name.
    ///
    /// # Errors
    /// `invalid_request` that lists those there are.
    pub fn check_agent(&self, name: Option<&str>) -> Result<()> {
        let Some(name) = name else { return Ok(()) };
        if self.row.found.agents.iter().any(|agent| agent.name == name) {
            return Ok(());
        }
        let known: Vec<_> = self.row.found.agents.iter().map(|agent| agent.name.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Err(Error::invalid("/agent", format!("there is no agent `{name}` in this release; it has: {known}")))
    }
}

/// `karta.toml`: what the platform reads of a folder. Everything else belongs to the harness.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Manifest {
    /// Which harness, and which version of it.
    pub harness: Declared,
    /// What the folder may start by itself.
    pub policy: FolderPolicy,
}

/// What the folder may start by itself.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FolderPolicy {
    /// Hook commands.
    pub hooks: bool,
    /// MCP servers.
    pub mcp: bool,
}

impl Default for FolderPolicy {
    fn default() -> Self {
        Self { hooks: true, mcp: true }
    }
}

impl Manifest {
    fn read(tree: &Tree) -> Result<Self> {
        let Some(text) = tree.text("karta.toml") else { return Ok(Self::default()) };
        toml::from_str(text)
            .map_err(|error| Error::told(ErrorCode::ReleaseNotReady, format!("karta.toml: {error}")))
    }
}

/// Releases that were loaded, and projects that were looked up: both only change through this process.
#[derive(Debug, Default)]
pub struct Catalogue {
    releases: RwLock<HashMap<(ProjectId, u64), Arc<Loaded>>>,
    projects: RwLock<Projects>,
}

/// Projects that were looked up.
#[derive(Debug, Default)]
struct Projects {
    known: HashMap<ProjectId, Arc<ProjectRow>>,
    /// Rises with every change: what was read before a change is not kept after it.
    changes: u64,
}

impl Engine {
    /// Makes a release of a folder and activates it; makes the project at the first. The same content again is the same release, and is
    /// left as it stands: the answer's state says whether it is active.
    ///
    /// # Errors
    /// The folder can't be read, no harness is recognised, or a file is one that the harness would refuse.
    pub async fn publish_folder(&self, org: OrgId, slug: &str, folder: &Path) -> Result<Release> {
        check_slug(slug)?;
        let source = folder.to_owned();
        let (walked, tree) = blocking(move || {
            let walked = Folder::walk(&source)?;
            let tree = walked.tree()?;
            Ok::<_, crate::data::files::Error>((walked, tree))
        })
        .await?;
        let manifest = Manifest::read(&tree)?;
        let harness = detect(&tree, &manifest.harness)?;
        let found = harness.discover(&tree)?;
        let version = match (manifest.harness.version.clone(), harness.package()) {
            (Some(version), _) => version,
            (None, Some(package)) => package.default_version.to_owned(),
            (None, None) => env!("CARGO_PKG_VERSION").to_owned(),
        };
        let pin = HarnessPin { kind: harness.id().to_owned(), version };
        let releases = self.data_dir().join("releases");
        let extra = format!("{}@{}", pin.kind, pin.version);
        let id = ReleaseId::new(self.clock(), self.rng());
        let digest = blocking(move || {
            std::fs::create_dir_all(&releases).map_err(|source| crate::data::files::Error::File {
                doing: "making",
                path: releases.clone(),
                source,
            })?;
            let digest = walked.digest(&extra)?;
            let target = releases.join(&digest);
            if !target.is_dir() {
                walked.copy_to(&target, &format!("{id}.tmp"))?;
            }
            Ok(digest)
        })
        .await?;
        let project = self.project_for(org, slug, folder).await?;
        let new = NewRelease {
            id,
            digest,
            harness: pin,
            found,
            settings: serde_json::Value::Null,
            created_at: self.clock().now(),
        };
        let who = Principal::system(org);
        let told = self.told(&who, "release.publish", format!("{}/{}", project.id, new.id));
        let mut row = self.store().release_insert(org, project.id, new, told).await?;
        // What this folder was when it was last made active: a rollback since then is not undone by a restart.
        let last = self.store().activation_last_by(org, project.id, &who.actor.to_string()).await?;
        if project.active_version.is_none() || last != Some(row.version) {
            self.flip(&who, project.id, Wanted::Version(row.version), None).await?;
            row.state = ReleaseState::Active;
        }
        Ok(show_release(row))
    }

    /// Makes a release of the project the active one: turns that start from now on run on it, those that run end as they are. The
    /// same again changes nothing.
    ///
    /// # Errors
    /// `not_found`; `release_not_ready` for a release that can't run.
    pub async fn activate(
        &self,
        who: &Principal,
        reference: &str,
        version: u64,
        reason: Option<String>,
    ) -> Result<Activation> {
        let project = self.project_row(who, reference).await?;
        self.flip(who, project.id, Wanted::Version(version), reason).await
    }

    /// Goes back to the release that was active before, or to an earlier active one.
    ///
    /// # Errors
    /// `not_found`; `nothing_to_roll_back` when no release, or not this one, was active before.
    pub async fn roll_back(
        &self,
        who: &Principal,
        reference: &str,
        to: Option<u64>,
        reason: Option<String>,
    ) -> Result<Activation> {
        let project = self.project_row(who, reference).await?;
        self.flip(who, project.id, to.map_or(Wanted::Previous, Wanted::Back), reason).await
    }

    /// The project's activations, newest first: which release, when, by whom, why.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn activations(
        &self,
        who: &Principal,
        reference: &str,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Page<Activation>> {
        let project = self.project_row(who, reference).await?;
        let mut data = self.store().activation_list(who.org, project.id, before, limit + 1).await?;
        let more = data.len() > limit as usize;
        data.truncate(limit as usize);
        let next_cursor = data.last().filter(|_| more).map(|last| last.seq.to_string());
        Ok(Page { data, next_cursor })
    }

    async fn flip(
        &self,
        who: &Principal,
        project: ProjectId,
        wanted: Wanted,
        reason: Option<String>,
    ) -> Result<Activation> {
        let action =
            if matches!(wanted, Wanted::Version(_)) { "release.activate" } else { "release.rollback" };
        let mut told = self.told(who, action, project);
        told.reason = reason;
        let flipped = self.store().project_activate(who.org, project, wanted, told).await;
        // Whether it was done or only seems to have failed: what is remembered may be old.
        self.catalogue().forget(project);
        match flipped? {
            Flip::Made(activation) | Flip::Already(activation) => Ok(activation),
            Flip::Missing => Err(Error::not_found("release")),
            Flip::Unfit => Err(Error::told(
                ErrorCode::ReleaseNotReady,
                "the release is no candidate for turns: look at its state",
            )),
            Flip::Nothing => Err(Error::told(
                ErrorCode::NothingToRollBack,
                match wanted {
                    Wanted::Back(version) => format!("v{version} was never active in this project"),
                    _ => "no other release was active before this one".to_owned(),
                },
            )),
        }
    }

    async fn project_for(&self, org: OrgId, slug: &str, folder: &Path) -> Result<ProjectRow> {
        if let Some(row) = self.store().project_get(org, &ProjectKey::Slug(slug.to_owned())).await? {
            return Ok(row);
        }
        let row = ProjectRow {
            id: ProjectId::new(self.clock(), self.rng()),
            org,
            slug: slug.to_owned(),
            name: slug.to_owned(),
            active_version: None,
            source: Some(folder.display().to_string()),
            created_at: self.clock().now(),
        };
        let told = self.told(&Principal::system(org), "project.create", row.id);
        match self.store().project_insert(&row, told).await {
            Ok(()) => Ok(row),
            // Two at once: the other was first.
            Err(karta_store::Error::Conflict(_)) => self
                .store()
                .project_get(org, &ProjectKey::Slug(slug.to_owned()))
                .await?
                .ok_or_else(|| Error::not_found("project")),
            Err(error) => Err(error.into()),
        }
    }

    /// A project by id or slug.
    ///
    /// # Errors
    /// `not_found`, also for another organisation's and for one that the key is not for.
    pub async fn project_row(&self, who: &Principal, reference: &str) -> Result<Arc<ProjectRow>> {
        let key = reference
            .parse::<ProjectId>()
            .map_or_else(|_| ProjectKey::Slug(reference.to_owned()), ProjectKey::Id);
        let row = self
            .store()
            .project_get(who.org, &key)
            .await?
            .filter(|row| who.project.is_none_or(|only| only == row.id))
            .ok_or_else(|| Error::not_found("project"))?;
        Ok(Arc::new(row))
    }

    /// A project as callers see it.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn project(&self, who: &Principal, reference: &str) -> Result<Project> {
        let row = self.project_row(who, reference).await?;
        self.show_project(&row).await
    }

    /// The organisation's projects, oldest first.
    ///
    /// # Errors
    /// A cursor that is none.
    pub async fn projects(
        &self,
        who: &Principal,
        cursor: Option<ProjectId>,
        limit: u32,
    ) -> Result<Page<Project>> {
        let mut rows = self.store().project_list(who.org, cursor, limit + 1).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next_cursor = rows.last().filter(|_| more).map(|row| row.id.to_string());
        let mut data = Vec::with_capacity(rows.len());
        for row in rows.iter().filter(|row| who.project.is_none_or(|only| only == row.id)) {
            data.push(self.show_project(row).await?);
        }
        Ok(Page { data, next_cursor })
    }

    async fn show_project(&self, row: &ProjectRow) -> Result<Project> {
        let active = match row.active_version {
            Some(version) => Some(self.load(row, version).await?),
            None => None,
        };
        Ok(Project {
            id: row.id,
            slug: row.slug.clone(),
            name: row.name.clone(),
            active_release: active.as_ref().map(|loaded| ActiveRelease {
                release: loaded.release_ref(),
                digest: loaded.row.digest.clone(),
            }),
            agents: active.map(|loaded| loaded.row.found.agents.clone()).unwrap_or_default(),
            created_at: row.created_at,
        })
    }

    /// The project's releases, newest first.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn releases(
        &self,
        who: &Principal,
        reference: &str,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Page<Release>> {
        let project = self.project_row(who, reference).await?;
        let mut rows = self.store().release_list(who.org, project.id, before, limit + 1).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next_cursor = rows.last().filter(|_| more).map(|row| row.version.to_string());
        Ok(Page { data: rows.into_iter().map(show_release).collect(), next_cursor })
    }

    /// One release.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn release(&self, who: &Principal, reference: &str, version: u64) -> Result<Release> {
        let project = self.project_row(who, reference).await?;
        let row = self.store().release_get(who.org, project.id, version).await?;
        row.map(show_release).ok_or_else(|| Error::not_found("release"))
    }

    /// The project behind an id that is known to be right, from memory when it was seen before.
    pub(crate) async fn project_known(&self, org: OrgId, id: ProjectId) -> Result<Arc<ProjectRow>> {
        if let Some(row) = self.catalogue().project(id).filter(|row| row.org == org) {
            return Ok(row);
        }
        let changes = self.catalogue().changes();
        let row = self.store().project_get(org, &ProjectKey::Id(id)).await?;
        let row = Arc::new(row.ok_or_else(|| Error::not_found("project"))?);
        self.catalogue().keep_project(row.clone(), changes);
        Ok(row)
    }

    /// The release that a turn of a session with this pin runs on.
    pub(crate) async fn release_for(
        &self,
        org: OrgId,
        project: ProjectId,
        pin: ReleasePin,
        pinned: Option<u64>,
    ) -> Result<Arc<Loaded>> {
        let project = self.project_known(org, project).await?;
        let version = match (pin, pinned) {
            (ReleasePin::Version(version), _) | (ReleasePin::Session, Some(version)) => version,
            _ => project.active_version.ok_or_else(|| {
                Error::told(
                    ErrorCode::NoActiveRelease,
                    format!("project `{}` has no active release", project.slug),
                )
            })?,
        };
        self.load(&project, version).await
    }

    /// A release, read from disk once.
    pub(crate) async fn load(&self, project: &ProjectRow, version: u64) -> Result<Arc<Loaded>> {
        if let Some(loaded) = self.catalogue().release(project.id, version) {
            return Ok(loaded);
        }
        let row = self
            .store()
            .release_get(project.org, project.id, version)
            .await?
            .ok_or_else(|| Error::not_found("release"))?;
        let harness = find(&row.harness.kind).ok_or_else(|| {
            Error::told(
                ErrorCode::ReleaseNotReady,
                format!("this server knows no harness `{}`", row.harness.kind),
            )
        })?;
        let path = self.data_dir().join("releases").join(&row.digest);
        let from = path.clone();
        let tree = blocking(move || Folder::walk(&from)?.tree()).await?;
        let manifest = Manifest::read(&tree)?;
        let loaded = Arc::new(Loaded { row, path, tree, harness, manifest });
        self.catalogue().keep_release(project.id, loaded.clone());
        Ok(loaded)
    }
}

impl Catalogue {
    fn release(&self, project: ProjectId, version: u64) -> Option<Arc<Loaded>> {
        self.releases.read().unwrap_or_else(PoisonError::into_inner).get(&(project, version)).cloned()
    }

    fn keep_release(&self, project: ProjectId, loaded: Arc<Loaded>) {
        let mut releases = self.releases.write().unwrap_or_else(PoisonError::into_inner);
        if releases.len() >= 1024 {
            releases.clear();
        }
        releases.insert((project, loaded.row.version), loaded);
    }

    fn project(&self, id: ProjectId) -> Option<Arc<ProjectRow>> {
        self.projects.read().unwrap_or_else(PoisonError::into_inner).known.get(&id).cloned()
    }

    fn changes(&self) -> u64 {
        self.projects.read().unwrap_or_else(PoisonError::into_inner).changes
    }

    /// Keeps a row that was read when there had been so many changes; not if there were more since.
    fn keep_project(&self, row: Arc<ProjectRow>, changes: u64) {
        let mut projects = self.projects.write().unwrap_or_else(PoisonError::into_inner);
        if projects.changes == changes {
            projects.known.insert(row.id, row);
        }
    }

    fn forget(&self, id: ProjectId) {
        let mut projects = self.projects.write().unwrap_or_else(PoisonError::into_inner);
        projects.changes += 1;
        projects.known.remove(&id);
    }
}

/// A release as callers see it.
fn show_release(row: ReleaseRow) -> Release {
    Release {
        version: row.version,
        id: row.id,
        digest: row.digest,
        harness: row.harness,
        found: row.found,
        state: row.state,
        created_at: row.created_at,
    }
}

fn check_slug(slug: &str) -> Result<()> {
    let fine = (1..=63).contains(&slug.len())
        && slug.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !slug.starts_with('-')
        && !slug.starts_with("proj_");
    if fine {
        return Ok(());
    }
    Err(Error::invalid("/slug", format!("`{slug}` must be 1 to 63 of a-z, 0-9 and -, not beginning with -")))
}

/// Runs file work off the runtime.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, crate::data::files::Error> + Send + 'static,
{
    let done = tokio::task::spawn_blocking(work).await;
    match done {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(crate::data::files::Error::File { source, .. }))
            if source.kind() == std::io::ErrorKind::StorageFull =>
        {
            Err(Error::told(ErrorCode::StorageFull, "the disk under the data directory is full"))
        }
        Ok(Err(error)) => Err(Error::told(ErrorCode::ReleaseNotReady, crate::error::chain(&error))),
        Err(panicked) => Err(Error::internal("working on files", panicked)),
    }
}

#[cfg(test)]
mod tests {
    use karta_types::Timestamp;

    use super::*;

    #[test]
    fn what_was_read_before_an_activation_is_not_kept_after_it() {
        let row = Arc::new(ProjectRow {
            id: ProjectId::from_u128(1),
            org: OrgId::from_u128(1),
            slug: "app".to_owned(),
            name: "app".to_owned(),
            active_version: Some(1),
            source: None,
            created_at: Timestamp::from_micros(1),
        });
        let catalogue = Catalogue::default();
        let before = catalogue.changes();
        catalogue.forget(row.id);
        catalogue.keep_project(row.clone(), before);
        assert_eq!(catalogue.project(row.id), None);
        catalogue.keep_project(row.clone(), catalogue.changes());
        assert_eq!(catalogue.project(row.id), Some(row));
    }
}
