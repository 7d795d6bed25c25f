//! What a release says about how its sessions run: the part of `karta.toml` and `karta.jsonc` that is kept with it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::money::Micros;
use crate::session::{Isolation, PermissionMode};

/// Everything that a release's own files of the platform say, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Recipe {
    /// What its sessions may do.
    pub policy: Policy,
    /// How its sessions are unless they say otherwise.
    pub defaults: Defaults,
    /// What is done once before it can run.
    pub build: Build,
    /// Variables that its processes see, by name.
    pub env: BTreeMap<String, String>,
    /// Variables that stand for a secret of the project, by name, each with the hosts that it may go to.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, Vec<String>>,
}

/// What a release's sessions may do: `[policy]` of `karta.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Policy {
    /// Whether hooks of the folder run.
    pub hooks: bool,
    /// Whether MCP servers of the folder run.
    pub mcp: bool,
    /// Tools.
    pub tools: Tools,
    /// The least isolation its sessions run in.
    pub isolation: Option<Isolation>,
    /// What its sessions may reach, as [rules](crate::egress::Rule): `host`, `GET host/path/*`; none is nothing.
    pub egress: Vec<String>,
    /// How much its sessions may use.
    pub caps: Caps,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            hooks: true,
            mcp: true,
            tools: Tools::default(),
            isolation: None,
            egress: Vec::new(),
            caps: Caps::default(),
        }
    }
}

/// Which tools there are: `[policy.tools]` of `karta.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Tools {
    /// Tools that are never used, in the harness's own names.
    pub deny: Vec<String>,
}

/// How much one session may use: `[policy.caps]` of `karta.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Caps {
    /// The longest turn, in seconds; the server's own limit stays above it.
    pub turn_seconds: Option<u64>,
    /// The most that a session costs in all.
    pub session_cost_micros: Option<Micros>,
    /// The most tokens that a session uses in all.
    pub session_total_tokens: Option<u64>,
}

/// How a release's sessions are unless they say otherwise: `karta.jsonc`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Defaults {
    /// When tools ask.
    pub permission_mode: Option<PermissionMode>,
    /// Types of events that are told to nobody who does not ask for them, as `system` is: `reasoning`, `step_start` …
    pub hidden_events: Vec<String>,
    /// How long a process without a turn is kept, in seconds; the server's own limit stays above it.
    pub idle_seconds: Option<u64>,
    /// How many tokens of thinking are allowed.
    pub thinking_budget_tokens: Option<u32>,
}

/// What is done once before a release can run: `[build]` of `karta.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Build {
    /// A shell script, run in the release's files.
    pub setup: Option<String>,
    /// The files that its result depends on, as patterns of `.gitignore`; none is all of them.
    pub inputs: Vec<String>,
    /// What it may reach, as [rules](crate::egress::Rule).
    pub egress: Vec<String>,
}
