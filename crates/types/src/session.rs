//! Sessions, turns, participants and inputs, as callers see them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event::InputRequired;
use crate::id::{ProjectId, ReleaseId, SessionId, TurnId};
use crate::time::Timestamp;
use crate::usage::Metered;

/// How strongly a session is kept apart from its host and its neighbours, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Isolation {
    /// Nothing runs outside the server: the scripted harness.
    None,
    /// A child process with its own place and environment. For folders you trust as you trust your own code.
    #[default]
    Process,
    /// Kernel namespaces: a shared kernel.
    Namespace,
    /// A virtual machine of its own.
    Microvm,
}

impl Isolation {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Process => "process",
            Self::Namespace => "namespace",
            Self::Microvm => "microvm",
        }
    }
}

/// When a tool call needs a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum PermissionMode {
    /// Ask for whatever the harness's rules don't allow.
    #[default]
    Default,
    /// Edits inside the workspace go through; the rest asks.
    AcceptEdits,
    /// Look and plan, change nothing.
    Plan,
    /// Never ask: what would ask is refused.
    DenyAll,
    /// Never ask: everything is allowed. For sandboxes that hold nothing of worth.
    AllowAll,
}

/// Which release a session's turns run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReleasePin {
    /// Each turn on the release that is active when it starts.
    #[default]
    Turn,
    /// Every turn on the release that was active at the session's first turn.
    Session,
    /// Every turn on this version.
    Version(u64),
}

impl Serialize for ReleasePin {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Turn => serializer.serialize_str("turn"),
            Self::Session => serializer.serialize_str("session"),
            Self::Version(version) => serializer.serialize_u64(*version),
        }
    }
}

impl<'de> Deserialize<'de> for ReleasePin {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        match &value {
            Value::String(word) if word == "turn" => Ok(Self::Turn),
            Value::String(word) if word == "session" => Ok(Self::Session),
            Value::String(word) => {
                let version = word.strip_prefix('v').unwrap_or(word).parse().ok();
                version.map(Self::Version)
            }
            .ok_or_else(|| serde::de::Error::custom("must be `turn`, `session` or a version number")),
            other => other
                .as_u64()
                .map(Self::Version)
                .ok_or_else(|| serde::de::Error::custom("must be `turn`, `session` or a version number")),
        }
    }
}

#[cfg(feature = "schema")]
impl utoipa::PartialSchema for ReleasePin {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some("`turn` (default), `session`, or a version number."))
            .into()
    }
}
#[cfg(feature = "schema")]
impl utoipa::ToSchema for ReleasePin {}

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum SessionStatus {
    /// Nothing; send a message.
    #[default]
    Idle,
    /// A turn runs.
    Running,
    /// A turn waits for a person.
    Waiting,
    /// Over; takes no more messages.
    Closed,
}

impl SessionStatus {
    /// The name on the wire and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Closed => "closed",
        }
    }
}

impl std::str::FromStr for SessionStatus {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Idle, Self::Running, Self::Waiting, Self::Closed]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not a status; they are idle, running, waiting, closed"))
    }
}

/// A person or a program that speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum ParticipantKind {
    /// A person.
    #[default]
    Human,
    /// Another agent or program.
    Ai,
}

/// Someone who takes part in a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Participant {
    /// The name messages are attributed to.
    pub name: String,
    /// Person or program.
    #[serde(rename = "type", default)]
    pub kind: ParticipantKind,
}

/// The project a session belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SessionProject {
    /// The project.
    pub id: ProjectId,
    /// Its readable name in URLs.
    pub slug: String,
    /// The release version the last turn ran on, or the one the next will.
    pub version: Option<u64>,
}

/// A session: a handle, never a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Session {
    /// The session.
    pub id: SessionId,
    /// Its project.
    pub project: SessionProject,
    /// What it is doing.
    pub status: SessionStatus,
    /// A name people gave it.
    pub title: Option<String>,
    /// The caller's own labels: at most 50, at most 10,000 characters a value.
    #[cfg_attr(feature = "schema", schema(value_type = std::collections::HashMap<String, Object>))]
    pub metadata: BTreeMap<String, Value>,
    /// The agent that takes the next message; null is the harness's default.
    pub current_agent: Option<String>,
    /// Who takes part.
    pub participants: Vec<Participant>,
    /// Questions that wait for a person.
    pub pending_inputs: Vec<InputRequired>,
    /// The first of them.
    pub pending_input: Option<InputRequired>,
    /// When a tool call needs a person.
    pub permission_mode: PermissionMode,
    /// Which release its turns run on.
    pub release_pin: ReleasePin,
    /// How it is kept apart.
    pub isolation: Isolation,
    /// The caller's own user this session is for. Opaque.
    pub end_user_id: Option<String>,
    /// The session this one came from.
    pub parent_id: Option<SessionId>,
    /// All turns together.
    pub usage: Metered,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it will be closed and erased, if ever.
    pub expires_at: Option<Timestamp>,
}

/// How a turn stands or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum TurnState {
    /// Waits for the turn before it.
    Queued,
    /// Runs.
    Running,
    /// Ended well.
    Completed,
    /// Stopped by a caller.
    Interrupted,
    /// Ended with an error.
    Failed,
    /// Stopped because the budget was used up.
    BudgetExhausted,
}

impl TurnState {
    /// The name on the wire and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
            Self::BudgetExhausted => "budget_exhausted",
        }
    }

    /// Whether the turn is over.
    pub const fn ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

impl std::str::FromStr for TurnState {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Queued, Self::Running, Self::Completed, Self::Interrupted, Self::Failed, Self::BudgetExhausted]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not the state of a turn"))
    }
}

/// The record of a turn: what ran, what it used. No message text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Turn {
    /// The turn.
    pub id: TurnId,
    /// Its session.
    pub session_id: SessionId,
    /// The release it ran on.
    pub release: Option<ReleaseRef>,
    /// The agent that was asked for.
    pub agent: Option<String>,
    /// Who asked.
    pub participant: Option<Participant>,
    /// How it stands.
    pub state: TurnState,
    /// Why it ended, in the harness's words: `end_turn`, `max_tokens` …
    pub stop_reason: Option<String>,
    /// The code of its error, if it failed.
    pub error: Option<crate::ErrorCode>,
    /// Tokens and cost.
    pub usage: Metered,
    /// The models it called.
    pub models: Vec<String>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it began to run.
    pub started_at: Option<Timestamp>,
    /// When its first text came.
    pub first_text_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

/// A release by number and id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ReleaseRef {
    /// Its number within the project, from 1.
    pub version: u64,
    /// Its id.
    pub id: ReleaseId,
}
