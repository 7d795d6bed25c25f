//! The file that is played.

use karta_types::ErrorCode;
use karta_types::Usage;
use karta_types::event::AskKind;
use serde::Deserialize;
use serde_json::Value;

/// A script.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// Agents that messages can be routed to.
    pub agents: Vec<String>,
    /// Whether the conversation is kept in the session's home, for `history` and resuming.
    pub history: bool,
    /// Milliseconds before the process is ready.
    pub start_ms: u64,
    /// What is played: the first turn whose `match` is in the message, else the next one without a `match`, the last one over again.
    pub turns: Vec<Turn>,
}

/// What is played for one message.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Turn {
    /// Words that the message must hold.
    #[serde(rename = "match")]
    pub pattern: Option<String>,
    /// The steps.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Step {
    /// Words.
    Say(String),
    /// Thoughts.
    Think(String),
    /// The same words many times, each an event of its own.
    Repeat {
        /// How often.
        times: u32,
        /// The words.
        say: String,
    },
    /// The message that was sent, said back.
    Echo(bool),
    /// A tool call and its answer.
    Tool {
        /// The tool.
        name: String,
        /// Its input.
        #[serde(default)]
        input: Value,
        /// Its answer.
        #[serde(default)]
        output: Value,
        /// Whether it failed.
        #[serde(default)]
        is_error: bool,
    },
    /// A question; the steps that follow depend on the answer.
    Ask {
        /// What is asked.
        #[serde(default = "tool_use")]
        kind: AskKind,
        /// The tool that asks.
        tool: String,
        /// Its input.
        #[serde(default)]
        input: Value,
        /// One line for people.
        #[serde(default)]
        message: String,
        /// After a yes.
        #[serde(default)]
        approved: Vec<Self>,
        /// After a no.
        #[serde(default)]
        denied: Vec<Self>,
    },
    /// Usage, as no gateway sees it.
    Use {
        /// The model.
        #[serde(default = "scripted")]
        model: String,
        /// Tokens.
        #[serde(flatten)]
        usage: Usage,
        /// The cost.
        #[serde(default)]
        cost_micros: i64,
    },
    /// A pause.
    WaitMs(u64),
    /// A notice.
    Notice(String),
    /// Bytes to standard output, as they are.
    Raw(String),
    /// So many bytes of one line to standard output.
    Flood(usize),
    /// Words to standard error.
    Stderr(String),
    /// The turn ends with this error.
    Fail {
        /// The code.
        code: ErrorCode,
        /// For people.
        #[serde(default)]
        message: String,
    },
    /// The process ends with this status.
    Exit(i32),
    /// Nothing more is said; an interrupt is obeyed if this is false.
    Hang(bool),
}

const fn tool_use() -> AskKind {
    AskKind::ToolUse
}

fn scripted() -> String {
    "scripted-1".to_owned()
}
