//! For whoever embeds the engine: one workspace for each user of each tenant.

use karta_types::session::Session;

use crate::data::sessions::{Filter, NewSession};
use crate::{Engine, Error, Principal, Result};

impl Engine {
    /// The user's workspace in a project: their newest session, or a new one. A tenant is an organisation
    /// ([`Engine::ensure_org`]); what a session makes is seen by no other, and lasts until it is deleted.
    ///
    /// # Errors
    /// As [`Engine::create_session`]; `invalid_request` for a user without a name.
    pub async fn workspace(&self, who: &Principal, project: &str, user: &str) -> Result<Session> {
        if user.is_empty() {
            return Err(Error::invalid("/end_user_id", "a workspace is somebody's: name the user"));
        }
        let slug = self.project_row(who, project).await?.slug.clone();
        // Two that come at once get the same one. No project's name has a space, so nobody else waits in this queue.
        let _turn = self.publishing().turn(who.org, &format!("{slug} {user}")).await;
        let filter =
            Filter { project: Some(slug.clone()), end_user_id: Some(user.to_owned()), ..Filter::default() };
        if let Some(known) = self.sessions(who, filter, None, 1).await?.data.into_iter().next() {
            return Ok(known);
        }
        let new = NewSession { end_user_id: Some(user.to_owned()), ..NewSession::default() };
        self.create_session(who, &slug, new).await
    }
}
