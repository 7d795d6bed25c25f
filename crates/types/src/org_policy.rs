//! What an organisation demands of all its sessions.

use serde::{Deserialize, Serialize};

use crate::session::Isolation;

/// What an organisation demands of all its sessions, whatever their releases say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct OrgPolicy {
    /// The least isolation that sessions run in; none is what each release asks for.
    pub isolation: Option<Isolation>,
    /// What releases may let their sessions reach, as rules: what both name is reached. None is whatever releases ask for; an empty list
    /// is nothing.
    pub egress_allow: Option<Vec<String>>,
    /// What no session reaches, as rules.
    pub egress_deny: Vec<String>,
}
