//! Releases are kept while something refers to them, then as many as the settings say, never by age alone; what no release needs goes.

use std::collections::BTreeSet;
use std::fs;

use karta_release::archive::{self, Limits};
use karta_release::{Files, Hash};
use karta_store::{Deleted, ProjectRow, ReleaseRow};
use karta_types::ProjectId;

use super::shelf::{off_runtime, unpacked};
use crate::{Engine, Principal, Result};

/// Activations that one may want to go back to: their releases are kept.
const WAYS_BACK: u32 = 10;
/// Rows read at once.
const STEP: u32 = 200;

impl Engine {
    /// Keeps the releases of all projects in order. Runs by itself every hour.
    ///
    /// # Errors
    /// Store or blob store failed; it is done again.
    pub async fn keep_all_releases(&self) -> Result<()> {
        let mut after: Option<ProjectId> = None;
        loop {
            let projects = self.store().projects_all(after, STEP).await?;
            let Some(last) = projects.last() else { return Ok(()) };
            after = Some(last.id);
            for project in &projects {
                // Somebody publishes: the next time will do. What can't be kept in order keeps no other from being.
                let Some(turn) = self.publishing().try_turn(project.org, &project.slug) else { continue };
                self.keep_releases_of(project).await;
                if let Err(error) = self.sweep(project).await {
                    tracing::error!(project = %project.id, error = error.chain(), "sweeping what no release needs");
                }
                drop(turn);
            }
        }
    }

    /// Deletes the project's releases that are more than are kept. What fails is tried again later.
    pub(super) async fn keep_releases_of(&self, project: &ProjectRow) {
        if let Err(error) = self.delete_surplus(project).await {
            tracing::error!(project = %project.id, error = error.chain(), "keeping releases in order");
        }
    }

    async fn delete_surplus(&self, project: &ProjectRow) -> Result<()> {
        let rows = self.all_releases(project).await?;
        let there: Vec<&ReleaseRow> = rows
            .iter()
            .filter(|row| row.can_run() || row.state == karta_types::release::ReleaseState::Failed)
            .collect();
        let keep = self.settings().releases.keep as usize;
        if there.len() <= keep {
            return Ok(());
        }
        let back = self.store().activation_list(project.org, project.id, None, WAYS_BACK).await?;
        let back: BTreeSet<u64> = back.iter().map(|activation| activation.version).collect();
        // Newest first.
        for row in there.into_iter().skip(keep).filter(|row| !back.contains(&row.version)) {
            let who = Principal::system(project.org);
            let mut told = self.told(&who, "release.delete", format!("{}/{}", project.id, row.version));
            told.reason = Some(format!("the newest {keep} are kept"));
            let deleted = self.store().release_delete(project.org, project.id, row.version, told).await?;
            if deleted == Deleted::Gone {
                self.catalogue().forget_release(project.id, row.version);
            }
        }
        Ok(())
    }

    async fn all_releases(&self, project: &ProjectRow) -> Result<Vec<ReleaseRow>> {
        let (mut all, mut before) = (Vec::new(), None);
        loop {
            let rows = self.store().release_list(project.org, project.id, before, STEP).await?;
            before = rows.last().map(|row| row.version);
            let more = rows.len() == STEP as usize;
            all.extend(rows);
            if !more {
                return Ok(all);
            }
        }
    }

    /// Removes packs and files on the shelf that no release of the project needs.
    pub(super) async fn sweep(&self, project: &ProjectRow) -> Result<()> {
        let rows = self.all_releases(project).await?;
        let alive = || rows.iter().filter(|row| row.state != karta_types::release::ReleaseState::Deleted);
        // The packs whose lists are releases'.
        let lists: BTreeSet<String> =
            alive().flat_map(|row| [row.files.clone(), row.built.clone()]).flatten().collect();
        let packs = self.packs().list(project.id).await?;
        if packs.iter().any(|pack| !lists.contains(pack)) {
            let needed = self.needed(project, &lists).await?;
            for pack in packs.iter().filter(|pack| !lists.contains(*pack) && !needed.contains(*pack)) {
                // First nobody relies on it any more, then it goes.
                self.store().pack_forget(project.org, project.id, pack).await?;
                self.packs().remove(project.id, pack).await?;
            }
        }
        let copies = self.data_dir().join("releases").join(project.id.to_string());
        off_runtime("clearing the shelf", move || {
            let Ok(there) = fs::read_dir(&copies) else { return Ok(()) };
            for entry in there {
                let entry = entry?;
                let name = entry.file_name();
                if name.to_str().is_some_and(|name| !lists.contains(name)) {
                    fs::remove_dir_all(entry.path())?;
                }
            }
            Ok(())
        })
        .await
    }

    /// The packs that hold contents of these lists.
    async fn needed(&self, project: &ProjectRow, lists: &BTreeSet<String>) -> Result<BTreeSet<String>> {
        let mut needed = BTreeSet::new();
        for list in lists {
            let pack = self.packs().get(project.id, list).await?;
            let files: Files = off_runtime("reading a release", move || {
                Ok(archive::listing(pack, &Limits::own()).map_err(|error| unpacked(&error))?)
            })
            .await?;
            let hashes: Vec<String> = files.hashes().iter().map(Hash::to_string).collect();
            needed.extend(self.store().contents_find(project.org, project.id, &hashes).await?.into_values());
        }
        Ok(needed)
    }

    /// Removes everything of a project that is gone.
    pub(crate) async fn forget_contents(&self, project: ProjectId) -> Result<()> {
        for pack in self.packs().list(project).await? {
            self.packs().remove(project, &pack).await?;
        }
        let copies = self.data_dir().join("releases").join(project.to_string());
        off_runtime("clearing the shelf", move || match fs::remove_dir_all(copies) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        })
        .await
    }
}
