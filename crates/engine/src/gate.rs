//! The seam between the planes: what the data plane asks the control plane, and nothing else.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use karta_store::{Spender, UsageRow, Want};
use karta_types::org_policy::OrgPolicy;
use karta_types::provider_key::KeyProvider;
use karta_types::scope::Scopes;
use karta_types::{
    KeyId, Micros, ModelCallId, OrgId, Permission, Problem, ProjectId, ProviderKeyId, Role, Secret,
    SessionId, SessionTokenId, TurnId, Usage, UserId,
};
use serde::{Deserialize, Serialize};

use crate::Result;

/// What somebody acts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

    /// The session token whose cap this draws on.
    pub const fn token(self) -> Option<SessionTokenId> {
        match self {
            Self::Token { id, .. } => Some(id),
            Self::Key(_) | Self::User(_) | Self::System => None,
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
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Origin {
    /// The request's id.
    pub request: Option<String>,
    /// The address it came from.
    pub address: Option<String>,
}

/// Who asks: the result of authentication. Every call of the application takes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// The organisation. Nothing outside it can be seen.
    pub org: OrgId,
    /// What they act as.
    pub actor: Actor,
    /// What a key or token may do; of a person, the most that a key made by them can do.
    pub scopes: Scopes,
    /// What a person is in the organisation.
    pub role: Option<Role>,
    /// The one project they may touch, if they are restricted.
    pub project: Option<ProjectId>,
    /// What an end user's browser is held to.
    pub restriction: Option<Arc<Restriction>>,
    /// The request they act by.
    pub origin: Origin,
}

/// What a session token is held to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restriction {
    /// The end user: every session is theirs.
    pub end_user: String,
    /// The one session.
    pub session: Option<SessionId>,
    /// Where its pages come from.
    pub origins: Vec<String>,
}

impl Principal {
    /// The platform itself, acting in an organisation.
    pub fn system(org: OrgId) -> Self {
        Self {
            org,
            actor: Actor::System,
            scopes: Scopes::all(),
            role: None,
            project: None,
            restriction: None,
            origin: Origin::default(),
        }
    }

    /// Whether they have a permission: people by their role, keys and tokens by their scopes, the platform always. Whoever is for one
    /// project has none about the whole organisation.
    pub fn may(&self, what: Permission) -> bool {
        if self.project.is_some() && what.whole {
            return false;
        }
        match (self.role, self.actor) {
            (Some(role), _) => what.is_of(role),
            (None, Actor::System) => true,
            (None, _) => what.scope.is_some_and(|scope| self.scopes.has(scope)),
        }
    }
}

/// Money and tokens set aside for one model call. Whoever has it settles it or gives it back; what is dropped is swept when it expires.
#[must_use = "a hold that is neither settled nor given back blocks money until it expires"]
#[derive(Debug, PartialEq, Eq)]
pub struct Hold(ModelCallId);

impl Hold {
    /// The hold of this call.
    pub const fn of(call: ModelCallId) -> Self {
        Self(call)
    }

    /// The call it is for.
    pub const fn call(&self) -> ModelCallId {
        self.0
    }
}

/// An organisation's own key for a model provider.
#[derive(Debug, Clone)]
pub struct Credential {
    /// Its id.
    pub id: ProviderKeyId,
    /// The provider.
    pub provider: KeyProvider,
    /// Its text: put into one request, and nowhere else.
    pub key: Secret,
}

/// What the data plane asks.
#[async_trait]
pub trait Gate: Send + Sync {
    /// Whose token this is. Answered from memory once the key is known.
    async fn authenticate(&self, token: &str) -> Result<Principal>;

    /// May this spender begin something? Asked before every turn, answered from the record, never from a flag.
    ///
    /// # Errors
    /// `budget_exhausted` with the level, the cap, what was used, what is set aside and what is short.
    async fn admit(&self, spender: &Spender) -> Result<(), Box<Problem>>;

    /// Sets a call's bound aside at every level. Answers how much output there is room for.
    ///
    /// # Errors
    /// As [`Gate::admit`], and whether the input was what there is no room for.
    async fn reserve(&self, want: Want) -> Result<(Hold, u64), (Box<Problem>, bool)>;

    /// What the provider has said so far: a hold that is never settled is settled to that.
    async fn note(&self, hold: &Hold, usage: Usage, cost: Micros, priced: bool) -> Result<()>;

    /// Puts what was used in the place of the hold. The same call again is a no-op.
    async fn settle(&self, hold: Hold, used: UsageRow) -> Result<()>;

    /// Gives a hold back: the call used nothing.
    async fn release(&self, hold: Hold) -> Result<()>;

    /// The organisation's own key for the first of these providers that it has one for, and which.
    async fn credential(&self, org: OrgId, providers: &[KeyProvider]) -> Result<Option<Credential>>;

    /// The values of a project's secrets of these names; those that nobody has set are left out.
    async fn secrets(
        &self,
        org: OrgId,
        project: ProjectId,
        names: &[String],
    ) -> Result<Vec<(String, Secret)>>;

    /// What the organisation demands of all its sessions.
    async fn policy(&self, org: OrgId) -> Result<OrgPolicy>;

    /// Tells the audit log what the platform did for an organisation.
    async fn told(&self, org: OrgId, action: &str, resource: String, turn: Option<TurnId>) -> Result<()>;

    /// What a turn used, by the record: its tokens, their cost, the models.
    async fn used_in(&self, org: OrgId, turn: TurnId) -> Result<(Usage, Micros, Vec<String>)>;

    /// Whether a browser on a page from here may read our answers: some session token that is good is for it.
    fn allows_origin(&self, origin: &str) -> bool;

    /// Whether it can be asked at all.
    async fn ready(&self) -> Result<()>;

    /// Counts what was used without a hold: by harnesses whose models pass no gateway. The same id again is a no-op.
    async fn record(&self, used: UsageRow) -> Result<()>;
}
