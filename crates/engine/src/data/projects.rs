//! Projects: made, found, shown, removed.

use std::sync::Arc;

use karta_store::{ProjectKey, ProjectRow};
use karta_types::page::Page;
use karta_types::release::{ActiveRelease, Canary, Project};
use karta_types::{ErrorCode, OrgId, ProjectId};

use crate::{Engine, Error, Principal, Result};

/// The most characters of a project's name for people.
const NAME: usize = 200;

/// Checks a project's name in URLs.
///
/// # Errors
/// `invalid_request`.
pub(super) fn check_slug(slug: &str) -> Result<()> {
    let fine = (1..=63).contains(&slug.len())
        && slug.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !slug.starts_with('-')
        && !slug.starts_with("proj_");
    if fine {
        return Ok(());
    }
    Err(Error::invalid("/slug", format!("`{slug}` must be 1 to 63 of a-z, 0-9 and -, not beginning with -")))
}

fn check_name(name: &str) -> Result<()> {
    if (1..=NAME).contains(&name.chars().count()) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::invalid(
        "/name",
        format!("a name has 1 to {NAME} characters, none of them a control character"),
    ))
}

impl Engine {
    /// Makes a project, which has no release yet. Its name for people is its slug unless another is given.
    ///
    /// # Errors
    /// `invalid_request`, also where the organisation has one with this slug; `forbidden` for a key that is for one project.
    pub async fn create_project(&self, who: &Principal, slug: &str, name: Option<String>) -> Result<Project> {
        if who.project.is_some() || who.restriction.is_some() {
            return Err(Error::told(ErrorCode::Forbidden, "a key for one project makes no other"));
        }
        check_slug(slug)?;
        if let Some(name) = &name {
            check_name(name)?;
        }
        if self.store().project_get(who.org, &ProjectKey::Slug(slug.to_owned())).await?.is_some() {
            return Err(Error::invalid("/slug", format!("there is a project `{slug}` already")));
        }
        let row = self.make_project(who, slug, name).await?;
        self.show_project(&row).await
    }

    /// Makes a project, or finds the one that somebody else made at the same moment.
    pub(super) async fn make_project(
        &self,
        who: &Principal,
        slug: &str,
        name: Option<String>,
    ) -> Result<ProjectRow> {
        let row = ProjectRow {
            id: ProjectId::new(self.clock(), self.rng()),
            org: who.org,
            slug: slug.to_owned(),
            name: name.unwrap_or_else(|| slug.to_owned()),
            active_version: None,
            canary: None,
            parent: None,
            expires_at: None,
            source: None,
            created_at: self.clock().now(),
        };
        match self.store().project_insert(&row, self.told(who, "project.create", row.id)).await {
            Ok(()) => Ok(row),
            // Two at once: the other was first.
            Err(karta_store::Error::Conflict(_)) => self
                .store()
                .project_get(who.org, &ProjectKey::Slug(slug.to_owned()))
                .await?
                .ok_or_else(|| Error::not_found("project")),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a project another name for people.
    ///
    /// # Errors
    /// `not_found`, `invalid_request`.
    pub async fn rename_project(&self, who: &Principal, reference: &str, name: String) -> Result<Project> {
        check_name(&name)?;
        let row = self.project_row(who, reference).await?;
        let told = self.told(who, "project.rename", row.id);
        self.store().project_rename(who.org, row.id, name, told).await?;
        self.catalogue().forget(row.id);
        self.project(who, reference).await
    }

    /// Removes a project with its sessions, previews, releases and everything that is kept of them. Usage records stay.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn delete_project(&self, who: &Principal, reference: &str) -> Result<()> {
        let row = self.project_row(who, reference).await?;
        if row.parent.is_some() {
            return self.tear_down(who, &row).await;
        }
        // Nothing is published to it meanwhile.
        let _turn = self.publishing().turn(who.org, &row.slug).await;
        loop {
            let previews = self.store().preview_list(who.org, row.id, None, 100).await?;
            if previews.is_empty() {
                break;
            }
            for preview in &previews {
                self.tear_down(who, preview).await?;
            }
        }
        self.tear_down(who, &row).await?;
        self.forget_contents(row.id).await?;
        self.repositories().forget(row.id).await
    }

    /// A project by id or slug; a preview by `{slug}@{name}`.
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
            // One that is past its time is as good as gone.
            .filter(|row| row.expires_at.is_none_or(|at| self.clock().now() < at))
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
        if let Some(only) = who.project {
            let row = self.store().project_get(who.org, &ProjectKey::Id(only)).await?;
            let row = row.filter(|row| cursor.is_none_or(|after| row.id > after));
            let mut data = Vec::new();
            for row in row.as_slice() {
                data.push(self.show_project(row).await?);
            }
            return Ok(Page { data, next_cursor: None });
        }
        let mut rows = self.store().project_list(who.org, cursor, limit + 1).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next_cursor = rows.last().filter(|_| more).map(|row| row.id.to_string());
        let mut data = Vec::with_capacity(rows.len());
        for row in &rows {
            data.push(self.show_project(row).await?);
        }
        Ok(Page { data, next_cursor })
    }

    /// From records alone: one release whose files can't be read hides no project.
    async fn show_project(&self, row: &ProjectRow) -> Result<Project> {
        let release = async |version: Option<u64>| match version {
            Some(version) => self.store().release_get(row.org, row.home(), version).await,
            None => Ok(None),
        };
        let active = release(row.active_version).await?;
        let canary = match (row.canary, release(row.canary.map(|canary| canary.version)).await?) {
            (Some(canary), Some(release)) => Some(Canary {
                release: release.reference(),
                digest: release.digest,
                percent: canary.percent,
                since: canary.since,
            }),
            _ => None,
        };
        Ok(Project {
            id: row.id,
            slug: row.slug.clone(),
            name: row.name.clone(),
            active_release: active.as_ref().map(|release| ActiveRelease {
                release: release.reference(),
                digest: release.digest.clone(),
            }),
            canary,
            agents: active.map(|release| release.found.agents).unwrap_or_default(),
            created_at: row.created_at,
        })
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
}
