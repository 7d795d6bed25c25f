//! The seam between the planes: what the data plane asks the control plane, and nothing else.

use async_trait::async_trait;
use karta_store::UsageRow;
use karta_types::scope::Scopes;
use karta_types::{KeyId, OrgId, Problem, ProjectId};

use crate::Result;

/// Who asks: the result of authentication. Every call of the application takes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The organisation. Nothing outside it can be seen.
    pub org: OrgId,
    /// The key.
    pub key: KeyId,
    /// What the key may do.
    pub scopes: Scopes,
    /// The one project the key is for, if it is restricted.
    pub project: Option<ProjectId>,
}

/// What the data plane asks.
#[async_trait]
pub trait Gate: Send + Sync {
    /// Whose token this is. Answered from memory once the key is known.
    async fn authenticate(&self, token: &str) -> Result<Principal>;

    /// May this organisation spend more? Asked before every turn and every model call, answered from the record, never from a flag.
    ///
    /// # Errors
    /// `budget_exhausted` with the level, the cap and what is left.
    async fn admit(&self, org: OrgId) -> Result<(), Box<Problem>>;

    /// Counts what was used. The same id again is a no-op.
    async fn record(&self, used: UsageRow) -> Result<()>;
}
