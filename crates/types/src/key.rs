//! API keys as callers see them.

use serde::{Deserialize, Serialize};

use crate::id::{KeyId, ProjectId};
use crate::scope::Scope;
use crate::time::Timestamp;

/// An API key, without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ApiKey {
    /// Its id.
    pub id: KeyId,
    /// For people.
    pub name: String,
    /// Its first characters.
    pub prefix: String,
    /// Its last four characters.
    pub last4: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// The one project it is for, if it is restricted.
    pub project: Option<ProjectId>,
    /// Who made it.
    pub created_by: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// The key it was made to replace.
    pub replaces: Option<KeyId>,
}

/// A key just made: the only time its text is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NewApiKey {
    /// The key's record.
    #[serde(flatten)]
    pub record: ApiKey,
    /// Its text. It is kept nowhere.
    pub key: String,
}

impl std::fmt::Debug for NewApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewApiKey").field("record", &self.record).finish_non_exhaustive()
    }
}
