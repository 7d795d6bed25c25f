//! Releases and what is found in them.

use serde::{Deserialize, Serialize};

use crate::id::{ProjectId, ReleaseId};
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
    /// Built, not active.
    Ready,
    /// Takes new turns.
    Active,
    /// Was active.
    Superseded,
    /// Can't be run.
    Failed,
    /// Has its own address and ends by itself.
    Preview,
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
    /// How it stands.
    pub state: ReleaseState,
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
