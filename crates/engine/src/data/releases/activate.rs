//! Which release runs: activation, canary, rollback. Each is one flip in one transaction.

use karta_store::{Flip, Wanted};
use karta_types::page::Page;
use karta_types::release::{Activation, Project};
use karta_types::{ErrorCode, ProjectId};

use crate::{Engine, Error, Principal, Result};

impl Engine {
    /// Makes a release of the project the active one: turns that start from now on run on it, those that run end as they are. The
    /// same again changes nothing. A canary is over.
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
        let project = self.own_project(who, reference).await?;
        made(self.flip(who, project, Wanted::Version(version), reason).await?)
    }

    /// Lets so many of a hundred new sessions run on a release. The same release again only changes the share.
    ///
    /// # Errors
    /// `not_found`; `release_not_ready` for a release that can't run; `invalid_request` for a share that is none, or where the release
    /// is active or nothing is.
    pub async fn start_canary(
        &self,
        who: &Principal,
        reference: &str,
        version: u64,
        percent: u8,
        reason: Option<String>,
    ) -> Result<Project> {
        if !(1..=99).contains(&percent) {
            return Err(Error::invalid("/percent", "a canary gets 1 to 99 of a hundred new sessions"));
        }
        let project = self.own_project(who, reference).await?;
        self.flip(who, project, Wanted::Canary { version, percent }, reason).await?;
        self.project(who, reference).await
    }

    /// Makes the canary the active release.
    ///
    /// # Errors
    /// `not_found`, also without a canary.
    pub async fn promote_canary(
        &self,
        who: &Principal,
        reference: &str,
        reason: Option<String>,
    ) -> Result<Activation> {
        let project = self.own_project(who, reference).await?;
        made(self.flip(who, project, Wanted::Promote, reason).await?)
    }

    /// Ends the canary: its sessions run on the active release from their next turn on.
    ///
    /// # Errors
    /// `not_found`, also without a canary.
    pub async fn abort_canary(
        &self,
        who: &Principal,
        reference: &str,
        reason: Option<String>,
    ) -> Result<Project> {
        let project = self.own_project(who, reference).await?;
        self.flip(who, project, Wanted::Abort, reason).await?;
        self.project(who, reference).await
    }

    /// Goes back to the release that was active before, or to an earlier active one. A canary is over.
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
        let project = self.own_project(who, reference).await?;
        made(self.flip(who, project, to.map_or(Wanted::Previous, Wanted::Back), reason).await?)
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

    /// A project whose releases are its own.
    pub(super) async fn own_project(&self, who: &Principal, reference: &str) -> Result<ProjectId> {
        let project = self.project_row(who, reference).await?;
        if project.parent.is_some() {
            return Err(Error::told(
                ErrorCode::InvalidRequest,
                "a preview shows what was published for it: publish for it again, or activate the release in its project",
            ));
        }
        Ok(project.id)
    }

    /// The activation that stands afterwards; none where only the canary changed.
    pub(super) async fn flip(
        &self,
        who: &Principal,
        project: ProjectId,
        wanted: Wanted,
        reason: Option<String>,
    ) -> Result<Option<Activation>> {
        let action = match wanted {
            Wanted::Version(_) => "release.activate",
            Wanted::Previous | Wanted::Back(_) => "release.rollback",
            Wanted::Promote => "release.promote",
            Wanted::Canary { .. } => "canary.start",
            Wanted::Abort => "canary.abort",
        };
        let mut told = self.told(who, action, project);
        told.reason = match (wanted, reason) {
            (Wanted::Canary { percent, .. }, None) => Some(format!("{percent} of 100 new sessions")),
            (Wanted::Canary { percent, .. }, Some(why)) => {
                Some(format!("{percent} of 100 new sessions: {why}"))
            }
            (_, reason) => reason,
        };
        let flipped = self.store().project_activate(who.org, project, wanted, told).await;
        // Whether it was done or only seems to have failed: what is remembered may be old.
        self.catalogue().forget(project);
        match flipped? {
            Flip::Made(activation) | Flip::Already(activation) => Ok(Some(activation)),
            Flip::Canary => Ok(None),
            Flip::Missing => Err(Error::not_found("release")),
            Flip::Unfit => Err(Error::told(
                ErrorCode::ReleaseNotReady,
                "the release is no candidate for turns: look at its state",
            )),
            Flip::Nothing => Err(match wanted {
                Wanted::Back(version) => Error::told(
                    ErrorCode::NothingToRollBack,
                    format!("v{version} was never active in this project"),
                ),
                Wanted::Promote | Wanted::Abort => Error::not_found("canary"),
                Wanted::Canary { .. } => Error::invalid(
                    "/percent",
                    "a canary takes a share from another release that is active: activate this one without `percent`",
                ),
                _ => Error::told(ErrorCode::NothingToRollBack, "no other release was active before this one"),
            }),
        }
    }
}

/// An activation that there always is but for canaries.
fn made(activation: Option<Activation>) -> Result<Activation> {
    activation.ok_or_else(|| Error::not_found("release"))
}
