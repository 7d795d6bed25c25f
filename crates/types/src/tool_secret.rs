//! Secrets for the tools of a project's sessions.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// A secret of a project, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ToolSecret {
    /// The variable that stands for it: `SHOP_KEY`.
    pub name: String,
    /// Who set it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
}
