//! Session tokens as callers see them.

use serde::{Deserialize, Serialize};

use crate::id::{ProjectId, SessionId, SessionTokenId};
use crate::time::Timestamp;

/// A token just minted: the only time it is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NewSessionToken {
    /// Its id.
    pub id: SessionTokenId,
    /// The token: a JWT signed with `EdDSA`.
    pub token: String,
    /// The project it is for.
    pub project: ProjectId,
    /// The end user.
    pub end_user_id: String,
    /// The one session it is for.
    pub session_id: Option<SessionId>,
    /// Where pages that use it come from; none is anywhere but in browsers.
    pub origins: Vec<String>,
    /// When it ends.
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for NewSessionToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewSessionToken").field("id", &self.id).finish_non_exhaustive()
    }
}
