//! Sans-IO adapters between harnesses and the platform.
//!
//! An adapter turns a folder into what it declares ([`Harness::discover`]), a session into a command line ([`Harness::command`])
//! and bytes into things said, and back ([`Codec`]). It opens nothing, awaits nothing and knows no clock, so its tests are
//! recorded sessions and its laws (`tests/it/laws.rs`) hold for every adapter. To add a harness: a folder here and one line in
//! [`registry`].

pub mod claude_code;
pub mod codec;
mod fault;
pub mod frame;
pub mod frontmatter;
pub mod jsonc;
pub mod launch;
pub mod nearest;
pub mod opencode;
pub mod package;
mod recent;
pub mod registry;
mod schema;
pub mod scripted;
pub mod transcript;
pub mod tree;
mod yaml;

pub use codec::{Ask, Codec, End, Input, Out, Said};
pub use fault::Fault;
pub use launch::{Command, Launch, Native, Transport};
pub use package::{Package, Pinned};
pub use tree::Tree;

use karta_types::message::Message;
use karta_types::release::Discovery;

/// What went wrong while reading a folder or preparing a launch.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the harness can't be read as what it should be; the harness would refuse it too.
    #[error("reading `{file}`: {reason}")]
    File {
        /// The file, from the folder's root.
        file: String,
        /// What is wrong and where.
        reason: String,
    },
    /// The folder's declaration and its files disagree, or nothing is recognised.
    #[error("{0}")]
    Detect(String),
    /// An agent was asked for that the folder doesn't define.
    #[error("there is no agent `{name}` in this release; it has: {known}")]
    UnknownAgent {
        /// What was asked for.
        name: String,
        /// What there is, comma-separated.
        known: String,
    },
    /// The harness's own store can't be read.
    #[error("reading the harness's own history: {0}")]
    History(String),
}

/// What a harness can do beyond a plain turn.
#[expect(clippy::struct_excessive_bools, reason = "each is a capability of its own")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Goes on in a new process with its own session.
    pub resume: bool,
    /// Asks before tools run, and takes answers.
    pub approvals: bool,
    /// An answer may change the tool's input.
    pub edited_input: bool,
    /// Stops a turn on request and stays usable.
    pub interrupt: bool,
    /// Takes a message into the running turn.
    pub steer: bool,
    /// The agent is chosen per message; otherwise a change of agent needs a new process.
    pub agent_per_message: bool,
    /// Thinking can be asked for per message.
    pub thinking: bool,
    /// Takes images.
    pub images: bool,
    /// Its model calls pass the model gateway, which then is the only meter. Otherwise what it says itself is counted.
    pub gateway_metered: bool,
}

/// Where a session's history is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HistorySource {
    /// Files that match a pattern under the session's home: `folder/*/name`, one `*` for one folder level.
    File(String),
    /// The live process answers [`Input::History`] with [`Said::History`].
    Ask,
}

/// A coding-agent harness.
pub trait Harness: Send + Sync {
    /// Its stable id: `claude-code`.
    fn id(&self) -> &'static str;
    /// What it can do.
    fn capabilities(&self) -> Capabilities;
    /// How it is installed; `None` if it needs no installation.
    fn package(&self) -> Option<&'static Package>;
    /// The files that mark a folder as this harness's, strongest first.
    fn signals(&self) -> &'static [&'static str];
    /// Reads what the folder declares, from the harness's own files.
    fn discover(&self, tree: &Tree) -> Result<Discovery, Error>;
    /// What the harness, in its default version, would refuse in the folder's files or leave out without a word; not what
    /// [`Harness::discover`] can't read at all.
    fn refusals(&self, _tree: &Tree) -> Vec<Fault> {
        Vec::new()
    }
    /// The command that runs one session.
    fn command(&self, launch: &Launch<'_>) -> Result<Command, Error>;
    /// The codec for a process started by [`Harness::command`] with the same launch.
    fn codec(&self, launch: &Launch<'_>) -> Result<Box<dyn Codec>, Error>;
    /// Where the history of the session with this native id lies.
    fn history_source(&self, native: &str) -> HistorySource;
    /// Reads a history file found by [`HistorySource::File`].
    fn read_history(&self, bytes: &[u8]) -> Result<Vec<Message>, Error>;
}
