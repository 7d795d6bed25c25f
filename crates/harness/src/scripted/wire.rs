//! The lines between player and codec: JSON, one object a line.

use std::borrow::Cow;

use karta_types::event::AskKind;
use karta_types::message::{Answer, Decision};
use karta_types::{ErrorCode, Usage};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// From the player.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line<'a> {
    /// It is up; its session.
    Ready(#[serde(borrow)] Cow<'a, str>),
    /// Words.
    #[serde(borrow)]
    Text(Piece<'a>),
    /// Thoughts.
    #[serde(borrow)]
    Think(Piece<'a>),
    /// A tool call.
    ToolUse {
        #[serde(borrow)]
        call: Cow<'a, str>,
        tool: Cow<'a, str>,
        input: Value,
    },
    /// A tool's answer.
    ToolResult {
        #[serde(borrow)]
        call: Cow<'a, str>,
        output: Value,
        is_error: bool,
    },
    /// A question.
    Ask {
        #[serde(borrow)]
        request: Cow<'a, str>,
        kind: AskKind,
        tool: Cow<'a, str>,
        input: Value,
        message: Cow<'a, str>,
    },
    /// Usage.
    Use {
        #[serde(borrow)]
        model: Cow<'a, str>,
        usage: Usage,
        cost_micros: i64,
    },
    /// A model call began.
    Step(u32),
    /// A notice.
    Notice(#[serde(borrow)] Cow<'a, str>),
    /// The turn is over.
    End(End<'a>),
}

/// A piece of a part.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Piece<'a> {
    #[serde(borrow)]
    pub(super) part: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) text: Cow<'a, str>,
}

/// How a turn ended.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End<'a> {
    Completed,
    Interrupted,
    Failed {
        code: ErrorCode,
        #[serde(borrow)]
        message: Cow<'a, str>,
    },
}

/// To the player.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    Message(String),
    Answer { request: String, answer: Answer },
    Interrupt,
}

/// A line of the kept conversation.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Said {
    pub(super) user: bool,
    pub(super) text: String,
}

/// Whether an answer is a yes.
pub(super) fn yes(answer: &Answer) -> bool {
    answer.decision != Decision::Deny
}

/// What can be read of a line.
pub(super) fn parse(line: &[u8]) -> Option<Line<'_>> {
    serde_json::from_slice(line).ok()
}

/// Whether a line is JSON at all.
pub(super) fn is_json(line: &[u8]) -> bool {
    serde_json::from_slice::<&RawValue>(line).is_ok()
}
