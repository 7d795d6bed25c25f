//! What an adapter is told about a session, and the command it makes of it.

use karta_types::Secret;
use karta_types::session::PermissionMode;

use crate::tree::Tree;

/// The harness's own session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Native {
    /// A new one; the harness takes this UUID for it if it can, else it says its own in [`crate::Out::native_session`].
    New(String),
    /// The one with this id.
    Resume(String),
}

/// Where the harness reaches models. The token is good for this session only; no provider key is ever given to a harness.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// Base URL of the Anthropic shape: the client appends `/v1/messages`.
    pub anthropic: String,
    /// Base URL of the OpenAI shape: the client appends `/chat/completions` or `/responses`.
    pub openai: String,
    /// The session's own token.
    pub token: Secret,
    /// The provider to use where the folder names none: `anthropic` or `openai`.
    pub provider: String,
    /// The model to use where neither the folder nor the message names one.
    pub model: String,
    /// The small model for helper calls.
    pub small_model: String,
}

/// What a folder may start by itself, and what it may not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FolderPolicy<'a> {
    /// Hook commands.
    pub hooks: bool,
    /// MCP servers.
    pub mcp: bool,
    /// Tools that are never used, in the harness's own names.
    pub denied_tools: &'a [String],
}

impl Default for FolderPolicy<'_> {
    fn default() -> Self {
        Self { hooks: true, mcp: true, denied_tools: &[] }
    }
}

/// Everything about one session's process that an adapter needs. Paths are as the process sees them.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The harness's program.
    pub program: &'a str,
    /// The version of the program.
    pub version: &'a str,
    /// The session's private copy of the release: the working directory.
    pub workspace: &'a str,
    /// The session's home.
    pub home: &'a str,
    /// The session's temporary folder.
    pub temp: &'a str,
    /// The release's files, for what the adapter must know of them.
    pub tree: &'a Tree,
    /// The session's title, for harnesses that want one.
    pub title: &'a str,
    /// New or resumed.
    pub native: Native,
    /// Where models are.
    pub gateway: &'a Gateway,
    /// The agent that takes the session, where it is chosen per process.
    pub agent: Option<&'a str>,
    /// When tools ask.
    pub permission_mode: PermissionMode,
    /// How many tokens of thinking to allow, if the folder or caller says so.
    pub thinking_budget: Option<u32>,
    /// What the folder may start.
    pub policy: FolderPolicy<'a>,
    /// Variables that the operator lets through, beyond the adapter's own.
    pub env: &'a [(String, String)],
}

/// How bytes get to the codec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// The process's standard input and output.
    Stdio,
    /// The process serves HTTP on a loopback port of its sandbox. The platform speaks it and hands the codec lines of JSON instead:
    /// see [`crate::frame::http`].
    Http(HttpTransport),
}

/// How to reach a process that serves HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpTransport {
    /// A line of standard output that starts so is followed by the URL: `opencode server listening on `.
    pub announced_by: String,
    /// The event stream to open first: `/event`.
    pub events: String,
    /// User and password for basic authentication.
    pub basic_auth: Option<(String, String)>,
}

/// A file to write before the process starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// The path, absolute, under the session's home, temp or workspace.
    pub path: String,
    /// Its content.
    pub content: Vec<u8>,
}

/// A command to run in a sandbox. The environment is complete: nothing is inherited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The program.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Its working directory.
    pub cwd: String,
    /// Files to write first.
    pub seeds: Vec<Seed>,
    /// How its bytes reach the codec.
    pub transport: Transport,
}
