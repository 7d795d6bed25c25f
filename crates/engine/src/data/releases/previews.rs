//! Previews: a release with an address of its own, which ends by itself. To sessions, keys and usage a preview is a project; its
//! releases are its parent's.

use std::time::Duration;

use karta_store::{ProjectKey, ProjectRow, SessionFilter};
use karta_types::page::Page;
use karta_types::release::Preview;
use karta_types::session::ReleaseRef;
use karta_types::{ErrorCode, ProjectId, SessionId};

use crate::{Engine, Error, Principal, Result};

/// Sessions ended in one step.
const STEP: u32 = 100;
/// The most characters of a preview's name.
const NAME: usize = 63;

/// Checks a preview's name: 1 to 63 of a-z, 0-9 and -.
///
/// # Errors
/// `invalid_request`.
pub(super) fn check_name(name: &str) -> Result<()> {
    let fine = (1..=NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-');
    if fine {
        return Ok(());
    }
    Err(Error::invalid(
        "/preview",
        format!("`{name}` must be 1 to {NAME} of a-z, 0-9 and -, not beginning with -"),
    ))
}

impl Engine {
    /// Shows a release under an address of its own, from now on for the time that previews live.
    pub(crate) async fn show_preview(
        &self,
        who: &Principal,
        parent: &ProjectRow,
        name: &str,
        version: u64,
    ) -> Result<Preview> {
        let now = self.clock().now();
        let slug = format!("{}@{name}", parent.slug);
        let row = ProjectRow {
            id: ProjectId::new(self.clock(), self.rng()),
            org: parent.org,
            name: slug.clone(),
            slug,
            active_version: Some(version),
            canary: None,
            parent: Some(parent.id),
            expires_at: Some(now.plus(Duration::from_secs(self.settings().releases.preview_seconds))),
            source: None,
            created_at: now,
        };
        let mut told = self.told(who, "preview.publish", format!("{}/{name}", parent.id));
        told.reason = Some(format!("it shows v{version}"));
        let row = self.store().preview_put(&row, told).await?.ok_or_else(|| {
            Error::told(
                ErrorCode::ReleaseNotReady,
                format!("v{version} can't be shown: it was deleted meanwhile"),
            )
        })?;
        self.catalogue().forget(row.id);
        self.preview_of(&row).await
    }

    async fn preview_of(&self, row: &ProjectRow) -> Result<Preview> {
        let version = row.active_version.ok_or_else(|| Error::not_found("preview"))?;
        let release = self.store().release_get(row.org, row.home(), version).await?;
        let id = release.ok_or_else(|| Error::not_found("release"))?.id;
        let name = row.slug.split_once('@').map_or(row.slug.as_str(), |(_, name)| name);
        Ok(Preview {
            id: row.id,
            name: name.to_owned(),
            slug: row.slug.clone(),
            release: ReleaseRef { version, id },
            created_at: row.created_at,
            expires_at: row.expires_at.unwrap_or(row.created_at),
        })
    }

    /// The project's previews, oldest first.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn previews(
        &self,
        who: &Principal,
        reference: &str,
        cursor: Option<ProjectId>,
        limit: u32,
    ) -> Result<Page<Preview>> {
        let project = self.project_row(who, reference).await?;
        let mut rows = self.store().preview_list(who.org, project.id, cursor, limit + 1).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next_cursor = rows.last().filter(|_| more).map(|row| row.id.to_string());
        let mut data = Vec::with_capacity(rows.len());
        for row in &rows {
            data.push(self.preview_of(row).await?);
        }
        Ok(Page { data, next_cursor })
    }

    /// Tears a preview down with its sessions. Its release stays.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn remove_preview(&self, who: &Principal, reference: &str, name: &str) -> Result<()> {
        let parent = self.project_row(who, reference).await?;
        let key = ProjectKey::Slug(format!("{}@{name}", parent.slug));
        let row = self.store().project_get(who.org, &key).await?;
        let row =
            row.filter(|row| row.parent == Some(parent.id)).ok_or_else(|| Error::not_found("preview"))?;
        self.tear_down(who, &row).await
    }

    /// Tears down every preview that is past its time. Runs by itself every minute.
    ///
    /// # Errors
    /// The store failed; it is done again.
    pub async fn end_previews(&self) -> Result<()> {
        for row in self.store().previews_expired(self.clock().now()).await? {
            // What can't be ended keeps no other from ending.
            if let Err(error) = self.end_preview(&row).await {
                tracing::error!(preview = %row.id, error = error.chain(), "ending a preview");
            }
        }
        Ok(())
    }

    async fn end_preview(&self, row: &ProjectRow) -> Result<()> {
        let slug = row.slug.split_once('@').map_or(row.slug.as_str(), |(slug, _)| slug);
        // Somebody publishes, perhaps for it: the next time will do.
        let Some(_turn) = self.publishing().try_turn(row.org, slug) else { return Ok(()) };
        let row = self.store().project_get(row.org, &ProjectKey::Id(row.id)).await?;
        let over = |row: &ProjectRow| row.expires_at.is_some_and(|at| at <= self.clock().now());
        match row.filter(over) {
            Some(row) => self.tear_down(&Principal::system(row.org), &row).await,
            None => Ok(()),
        }
    }

    /// Ends a project's or preview's sessions and removes it.
    pub(crate) async fn tear_down(&self, who: &Principal, row: &ProjectRow) -> Result<()> {
        let name = row.slug.split_once('@').map(|(_, name)| name);
        loop {
            self.end_sessions(who, row.id).await?;
            let told = match (row.parent, name) {
                (Some(parent), Some(name)) => self.told(who, "preview.remove", format!("{parent}/{name}")),
                _ => self.told(who, "project.delete", row.id),
            };
            let removed = self.store().project_remove(row.org, row.id, told).await?;
            self.catalogue().forget(row.id);
            // Not removed: a session was made meanwhile, or somebody else removed it.
            if removed || self.store().project_get(row.org, &ProjectKey::Id(row.id)).await?.is_none() {
                return Ok(());
            }
        }
    }

    async fn end_sessions(&self, who: &Principal, project: ProjectId) -> Result<()> {
        let filter = SessionFilter { project: Some(project), ..SessionFilter::default() };
        // Whoever may remove the project may end its sessions, also those that its key is not for.
        let whole = Principal { project: None, restriction: None, ..who.clone() };
        loop {
            let rows = self.store().session_list(who.org, &filter, None, STEP).await?;
            let ids: Vec<SessionId> = rows.iter().map(|row| row.id).collect();
            if ids.is_empty() {
                return Ok(());
            }
            for id in ids {
                match self.delete_session(&whole, id).await {
                    Err(error) if error.code() == ErrorCode::NotFound => {}
                    ended => ended?,
                }
            }
        }
    }
}
