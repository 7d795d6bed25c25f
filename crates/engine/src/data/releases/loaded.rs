//! Releases as this node runs them, and as callers see them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use karta_harness::registry::find;
use karta_harness::{Harness, Tree};
use karta_release::Files;
use karta_store::{Deleted, ProjectRow, ReleaseRow};
use karta_types::page::Page;
use karta_types::policy::Recipe;
use karta_types::release::Release;
use karta_types::session::{ReleasePin, ReleaseRef};
use karta_types::{ErrorCode, OrgId, ProjectId, SessionId, Timestamp};

use crate::{Engine, Error, Principal, Result};

/// A release as this node runs it.
pub struct Loaded {
    /// Its record.
    pub row: ReleaseRow,
    /// Its files on this machine: read, never written.
    pub path: PathBuf,
    /// The list of them.
    pub files: Files,
    /// What adapters read of them.
    pub tree: Tree,
    /// Its harness.
    pub harness: &'static dyn Harness,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("version", &self.row.version).finish_non_exhaustive()
    }
}

impl Loaded {
    /// Number and id.
    pub const fn release_ref(&self) -> ReleaseRef {
        self.row.reference()
    }

    /// What its own files of the platform say.
    pub const fn recipe(&self) -> &Recipe {
        &self.row.recipe
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

/// Releases that were loaded, and projects that were looked up: both only change through this process.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
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

/// Which release a turn of a session runs on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pinning {
    /// What the session was made with.
    pub(crate) pin: ReleasePin,
    /// The release that its first turn ran on, where that counts.
    pub(crate) pinned: Option<u64>,
    /// The session.
    pub(crate) session: SessionId,
    /// When it was made.
    pub(crate) made: Timestamp,
}

impl From<&karta_store::SessionRow> for Pinning {
    fn from(row: &karta_store::SessionRow) -> Self {
        Self { pin: row.release_pin, pinned: row.pinned_version, session: row.id, made: row.created_at }
    }
}

impl Pinning {
    /// The version.
    pub(crate) fn version(&self, project: &ProjectRow) -> Option<u64> {
        match (self.pin, self.pinned) {
            (ReleasePin::Version(version), _) | (ReleasePin::Session, Some(version)) => Some(version),
            _ => {
                let canary = project.canary.filter(|canary| {
                    self.made >= canary.since && bucket(self.session) < u64::from(canary.percent)
                });
                canary.map(|canary| canary.version).or(project.active_version)
            }
        }
    }
}

/// A number from 0 to 99 that a session has for ever: ids are no random numbers, their hashes are.
fn bucket(session: SessionId) -> u64 {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &session.as_u128().to_be_bytes());
    let (first, _) = digest.as_ref().split_at(8);
    first.iter().fold(0_u64, |number, byte| (number << 8) | u64::from(*byte)) % 100
}

impl Engine {
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
        let mut rows = self.store().release_list(who.org, project.home(), before, limit + 1).await?;
        if project.parent.is_some() {
            // Of its parent's releases a preview has the one that it shows.
            rows.retain(|row| project.active_version == Some(row.version));
        }
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
        Ok(show_release(self.release_row(who, reference, version).await?.1))
    }

    pub(super) async fn release_row(
        &self,
        who: &Principal,
        reference: &str,
        version: u64,
    ) -> Result<(Arc<ProjectRow>, ReleaseRow)> {
        let project = self.project_row(who, reference).await?;
        let row = self.store().release_get(who.org, project.home(), version).await?;
        let row = row.filter(|_| project.parent.is_none() || project.active_version == Some(version));
        Ok((project, row.ok_or_else(|| Error::not_found("release"))?))
    }

    /// Deletes a release: its record stays, its files go. Deleting it again changes nothing.
    ///
    /// # Errors
    /// `not_found`; `release_in_use`.
    pub async fn delete_release(&self, who: &Principal, reference: &str, version: u64) -> Result<()> {
        let project = self.own_project(who, reference).await?;
        let told = self.told(who, "release.delete", format!("{project}/{version}"));
        match self.store().release_delete(who.org, project, version, told).await? {
            Deleted::Gone => {
                self.catalogue().forget_release(project, version);
                Ok(())
            }
            Deleted::Missing => Err(Error::not_found("release")),
            Deleted::Used(why) => {
                Err(Error::told(ErrorCode::ReleaseInUse, format!("v{version} stays: {why}")))
            }
        }
    }

    /// The release that a turn of this session runs on.
    pub(crate) async fn release_for(
        &self,
        org: OrgId,
        project: ProjectId,
        of: impl Into<Pinning> + Send,
    ) -> Result<Arc<Loaded>> {
        let project = self.project_known(org, project).await?;
        if project.expires_at.is_some_and(|at| at <= self.clock().now()) {
            return Err(Error::not_found("project"));
        }
        let version = of.into().version(&project).ok_or_else(|| {
            Error::told(
                ErrorCode::NoActiveRelease,
                format!("project `{}` has no active release", project.slug),
            )
        })?;
        self.load(&project, version).await
    }

    /// A release, read from disk once.
    pub(crate) async fn load(&self, project: &ProjectRow, version: u64) -> Result<Arc<Loaded>> {
        if let Some(loaded) = self.catalogue().release(project.home(), version) {
            return Ok(loaded);
        }
        let changes = self.catalogue().changes();
        let row = self
            .store()
            .release_get(project.org, project.home(), version)
            .await?
            .ok_or_else(|| Error::not_found("release"))?;
        if !row.can_run() {
            return Err(Error::told(
                ErrorCode::ReleaseNotReady,
                format!("v{version} of `{}` is {}", project.slug, row.state.as_str()),
            ));
        }
        let harness = find(&row.harness.kind).ok_or_else(|| {
            Error::told(
                ErrorCode::ReleaseNotReady,
                format!("this server knows no harness `{}`", row.harness.kind),
            )
        })?;
        let (path, files, tree) = self.shelve(&row).await?;
        let loaded = Arc::new(Loaded { row, path, files, tree, harness });
        self.catalogue().keep_release(project.home(), loaded.clone(), changes);
        Ok(loaded)
    }
}

impl Catalogue {
    fn release(&self, project: ProjectId, version: u64) -> Option<Arc<Loaded>> {
        self.releases.read().unwrap_or_else(PoisonError::into_inner).get(&(project, version)).cloned()
    }

    /// Keeps a release that was read when there had been so many changes; not if there were more since.
    fn keep_release(&self, project: ProjectId, loaded: Arc<Loaded>, changes: u64) {
        let mut releases = self.releases.write().unwrap_or_else(PoisonError::into_inner);
        if self.changes() != changes {
            return;
        }
        if releases.len() >= 1024 {
            releases.clear();
        }
        releases.insert((project, loaded.row.version), loaded);
    }

    pub(crate) fn forget_release(&self, project: ProjectId, version: u64) {
        let mut releases = self.releases.write().unwrap_or_else(PoisonError::into_inner);
        self.projects.write().unwrap_or_else(PoisonError::into_inner).changes += 1;
        releases.remove(&(project, version));
    }

    pub(crate) fn project(&self, id: ProjectId) -> Option<Arc<ProjectRow>> {
        self.projects.read().unwrap_or_else(PoisonError::into_inner).known.get(&id).cloned()
    }

    pub(crate) fn changes(&self) -> u64 {
        self.projects.read().unwrap_or_else(PoisonError::into_inner).changes
    }

    /// Keeps a row that was read when there had been so many changes; not if there were more since.
    pub(crate) fn keep_project(&self, row: Arc<ProjectRow>, changes: u64) {
        let mut projects = self.projects.write().unwrap_or_else(PoisonError::into_inner);
        if projects.changes == changes {
            projects.known.insert(row.id, row);
        }
    }

    pub(crate) fn forget(&self, id: ProjectId) {
        let mut projects = self.projects.write().unwrap_or_else(PoisonError::into_inner);
        projects.changes += 1;
        projects.known.remove(&id);
    }
}

/// A release as callers see it.
pub(super) fn show_release(row: ReleaseRow) -> Release {
    let has_log = row.recipe.build.setup.is_some();
    Release {
        build_log_url: has_log
            .then(|| format!("/v1/projects/{}/logs?kind=build&version={}", row.project, row.version)),
        version: row.version,
        id: row.id,
        digest: row.digest,
        harness: row.harness,
        found: row.found,
        policy: row.recipe.policy,
        commit: row.commit,
        message: row.message,
        created_by: row.actor,
        size_bytes: row.bytes,
        file_count: row.file_count,
        preview: row.preview,
        state: row.state,
        error: row.error,
        created_at: row.created_at,
    }
}

#[cfg(test)]
mod tests {
    use karta_store::CanaryRow;

    use super::*;

    fn project() -> ProjectRow {
        ProjectRow {
            id: ProjectId::from_u128(1),
            org: OrgId::from_u128(1),
            slug: "app".to_owned(),
            name: "app".to_owned(),
            active_version: Some(1),
            canary: None,
            parent: None,
            expires_at: None,
            source: None,
            created_at: Timestamp::from_micros(1),
        }
    }

    #[test]
    fn what_was_read_before_an_activation_is_not_kept_after_it() {
        let row = Arc::new(project());
        let catalogue = Catalogue::default();
        let before = catalogue.changes();
        catalogue.forget(row.id);
        catalogue.keep_project(row.clone(), before);
        assert_eq!(catalogue.project(row.id), None);
        catalogue.keep_project(row.clone(), catalogue.changes());
        assert_eq!(catalogue.project(row.id), Some(row));
    }

    #[test]
    fn a_canary_gets_its_share_of_new_sessions_and_raising_it_takes_none_away() {
        let since = Timestamp::from_micros(100);
        let with =
            |percent| ProjectRow { canary: Some(CanaryRow { version: 2, percent, since }), ..project() };
        let of = |number: u128, made: i64| Pinning {
            pin: ReleasePin::Turn,
            pinned: None,
            session: SessionId::from_u128(number << 70),
            made: Timestamp::from_micros(made),
        };
        let on_canary = |percent| {
            (0..10_000_u128)
                .filter(|number| of(*number, 100).version(&with(percent)) == Some(2))
                .collect::<std::collections::BTreeSet<_>>()
        };
        let (ten, half) = (on_canary(10), on_canary(50));
        assert!((900..1100).contains(&ten.len()) && (4800..5200).contains(&half.len()));
        assert!(ten.is_subset(&half));
        let old = (0..1000).filter(|number| of(*number, 99).version(&with(99)) == Some(2)).count();
        assert_eq!(old, 0, "sessions from before the canary stay where they are");
        let pinned = Pinning { pin: ReleasePin::Version(7), ..of(1, 100) };
        assert_eq!(pinned.version(&with(99)), Some(7));
        let first = Pinning { pin: ReleasePin::Session, pinned: Some(3), ..of(1, 100) };
        assert_eq!(first.version(&with(99)), Some(3));
    }
}
