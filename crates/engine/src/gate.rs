//! The seam between the planes: what the data plane asks the control plane, and nothing else.

use std::fmt;

use async_trait::async_trait;
use karta_store::UsageRow;
use karta_types::scope::Scopes;
use karta_types::{KeyId, OrgId, Problem, ProjectId, SessionTokenId, UserId};

use crate::Result;

/// What somebody acts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Actor {
    /// An API key.
    Key(KeyId),
    /// A person who signed in.
    User(UserId),
    /// An end user's browser, with a session token that a key minted.
    Token {
        /// The token.
        id: SessionTokenId,
        /// The key that minted it.
        key: KeyId,
    },
    /// The platform itself, or whoever runs it.
    System,
}

impl Actor {
    /// The API key whose budget this draws on.
    pub const fn key(self) -> Option<KeyId> {
        match self {
            Self::Key(key) | Self::Token { key, .. } => Some(key),
            Self::User(_) | Self::System => None,
        }
    }

    /// What kind of actor it is.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::User(_) => "user",
            Self::Token { .. } => "session_token",
            Self::System => "system",
        }
    }

    /// Its id.
    pub fn id(self) -> String {
        match self {
            Self::Key(id) => id.to_string(),
            Self::User(id) => id.to_string(),
            Self::Token { id, .. } => id.to_string(),
            Self::System => "karta".to_owned(),
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind(), self.id())
    }
}

/// The request that somebody acts by, for the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// The request's id.
    pub request: Option<String>,
    /// The address it came from.
    pub address: Option<String>,
}

/// Who asks: the result of authentication. Every call of the application takes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The organisation. Nothing outside it can be seen.
    pub org: OrgId,
    /// What they act as.
    pub actor: Actor,
    /// What they may do.
    pub scopes: Scopes,
    /// The one project they may touch, if they are restricted.
    pub project: Option<ProjectId>,
    /// The request they act by.
    pub origin: Origin,
}

impl Principal {
    /// The platform itself, acting in an organisation.
    pub fn system(org: OrgId) -> Self {
        Self { org, actor: Actor::System, scopes: Scopes::all(), project: None, origin: Origin::default() }
    }
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
