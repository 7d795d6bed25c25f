//! Releases and what is found in them.

use serde::{Deserialize, Serialize};

use crate::id::{ProjectId, ReleaseId};
use crate::policy::Policy;
use crate::session::ReleaseRef;
use crate::time::Timestamp;

/// A harness and its exact version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HarnessPin {
    /// `claude-code`, `opencode`, `scripted`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The exact version.
    pub version: String,
}

/// An agent that a folder defines, in the harness's own terms.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Agent {
    /// The name messages are routed by.
    pub name: String,
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// The model it asks for.
    #[serde(default)]
    pub model: Option<String>,
    /// The tools it may use; empty is all.
    #[serde(default)]
    pub tools: Vec<String>,
    /// `primary` takes messages, `subagent` is only called by others; the harness's own word, if it has one.
    #[serde(default)]
    pub mode: Option<String>,
    /// The file that defines it.
    pub file: String,
}

/// A skill or a slash command that a folder defines.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Named {
    /// Its name.
    pub name: String,
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// The file that defines it.
    pub file: String,
}

/// Something that a folder starts by itself: a hook's command or an MCP server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Started {
    /// The hook's event, or the server's name.
    pub name: String,
    /// The command line, or the URL.
    pub command: String,
    /// The file that declares it.
    pub file: String,
}

/// What was found in a folder by reading the harness's native files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Discovery {
    /// Agents.
    pub agents: Vec<Agent>,
    /// Skills.
    pub skills: Vec<Named>,
    /// Slash commands.
    pub commands: Vec<Named>,
    /// Hooks: commands that the harness runs by itself.
    pub hooks: Vec<Started>,
    /// MCP servers: programs that the harness starts, or URLs it opens.
    pub mcp_servers: Vec<Started>,
    /// Files that were there but could not be read as what they should be.
    pub warnings: Vec<String>,
}

/// How a release stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum ReleaseState {
    /// Its setup runs.
    Building,
    /// Built, not active.
    Ready,
    /// Takes new turns.
    Active,
    /// Was active.
    Superseded,
    /// Its setup failed: it can't be run.
    Failed,
    /// Has its own address and ends by itself.
    Preview,
    /// Its files are gone; the record stays.
    Deleted,
}

impl ReleaseState {
    /// The name on the wire and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Active => "active",
            Self::Superseded => "superseded",
            Self::Failed => "failed",
            Self::Preview => "preview",
            Self::Deleted => "deleted",
        }
    }
}

/// An immutable snapshot of a project's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Release {
    /// Its number within the project, from 1.
    pub version: u64,
    /// Its id.
    pub id: ReleaseId,
    /// SHA-256 over the canonical tree and what it runs on.
    pub digest: String,
    /// The harness.
    pub harness: HarnessPin,
    /// What was found in the folder.
    #[serde(flatten)]
    pub found: Discovery,
    /// What its sessions may do.
    pub policy: Policy,
    /// The commit it was made of, in the publisher's words.
    pub commit: Option<String>,
    /// What the publisher said of it.
    pub message: Option<String>,
    /// Who published it: `key:key_…`, `user:usr_…`, `system:karta`.
    pub created_by: String,
    /// How many bytes its files are.
    pub size_bytes: u64,
    /// How many files it has.
    pub file_count: u64,
    /// The preview it was published for.
    pub preview: Option<String>,
    /// How it stands.
    pub state: ReleaseState,
    /// Why it failed.
    pub error: Option<String>,
    /// Where what its setup printed can be read, if it has one.
    pub build_log_url: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// How a release came to be active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum ActivationKind {
    /// It was chosen.
    Activate,
    /// Somebody went back to it.
    Rollback,
    /// It was a canary and took all sessions.
    Promote,
}

/// One flip of a project's active release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Activation {
    /// Its place in the project's history, from 1.
    pub seq: u64,
    /// The release that is active from here on.
    pub version: u64,
    /// How it came to that.
    pub kind: ActivationKind,
    /// Who did it: `key:key_…`, `user:usr_…`, `system:karta`.
    pub by: String,
    /// Why, in their words.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// A project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Project {
    /// The project.
    pub id: ProjectId,
    /// Its readable name in URLs.
    pub slug: String,
    /// Its name for people.
    pub name: String,
    /// The release that takes new turns.
    pub active_release: Option<ActiveRelease>,
    /// The release that a part of the new sessions run on.
    pub canary: Option<Canary>,
    /// The agents of the active release.
    pub agents: Vec<Agent>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// The release that takes new turns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ActiveRelease {
    /// Number and id.
    #[serde(flatten)]
    pub release: ReleaseRef,
    /// Its digest.
    pub digest: String,
}

/// A release that a part of the new sessions run on, to see how it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Canary {
    /// Number and id.
    #[serde(flatten)]
    pub release: ReleaseRef,
    /// Its digest.
    pub digest: String,
    /// How many of a hundred new sessions, 1 to 99; which ones depends on their ids alone.
    pub percent: u8,
    /// Sessions made from this moment on count as new.
    pub since: Timestamp,
}

/// A release with an address of its own, which ends by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Preview {
    /// Its id: it is a project of its own, for keys, sessions and usage.
    pub id: ProjectId,
    /// What it is called within its project.
    pub name: String,
    /// Where it is reached: `{project}@{name}` in the place of a project.
    pub slug: String,
    /// The release it shows.
    pub release: ReleaseRef,
    /// When it was first made.
    pub created_at: Timestamp,
    /// When it goes, with its sessions.
    pub expires_at: Timestamp,
}

/// What was asked of the server before content is sent: which of it is not there yet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Hashes {
    /// SHA-256 of contents, in hexadecimal.
    pub hashes: Vec<String>,
}

/// How two releases differ.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ReleaseDiff {
    /// The files.
    pub files: Changed,
    /// The agents, by name.
    pub agents: Changed,
    /// The skills, by name.
    pub skills: Changed,
    /// The slash commands, by name.
    pub commands: Changed,
    /// The hooks: `event: command`.
    pub hooks: Changed,
    /// The MCP servers: `name: command`.
    pub mcp_servers: Changed,
    /// The policy's keys: `key: value`.
    pub policy: Changed,
    /// The harness, if it is another or another version: before and after.
    pub harness: Option<(HarnessPin, HarnessPin)>,
}

/// What is in one of two and not, or otherwise, in the other.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Changed {
    /// Only in the second.
    pub added: Vec<String>,
    /// Only in the first.
    pub removed: Vec<String>,
    /// In both, not the same.
    pub changed: Vec<String>,
}

impl Changed {
    /// Whether there is no difference.
    pub const fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// One line of what a project did: of a build, or of a turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LogLine {
    /// Where it stands; `?after=` goes on behind it.
    pub cursor: String,
    /// When.
    pub at: Timestamp,
    /// The release it is about.
    pub version: Option<u64>,
    /// What it says.
    #[serde(flatten)]
    pub line: Line,
}

/// What a line of the log says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Line {
    /// What a release's setup printed, or what the platform says of the build.
    Build {
        /// The line.
        text: String,
    },
    /// A turn ended.
    Turn {
        /// The turn, as `GET …/turns/{id}` has it.
        turn: Box<crate::session::Turn>,
    },
}
