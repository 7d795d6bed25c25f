//! Events: the one thing that flows. Everything a caller sees is a reading of a session's events.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::code::Problem;
use crate::id::{RequestId, SessionId, TurnId};
use crate::message::Decision;
use crate::session::{Isolation, Participant, ReleaseRef, TurnState};
use crate::time::Timestamp;
use crate::usage::{Metered, Usage};

/// Types of events that can be hidden from readers who don't ask for them: `system` always is, the others where a release says so. What a
/// client can't do without is not among them.
pub const HIDEABLE: [&str; 7] =
    ["system", "reasoning", "tool_use", "tool_result", "step_start", "step_finish", "agent_changed"];

/// The position of an event in its session: rises by one, for ever. Zero is before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first event.
    pub const START: Self = Self(0);

    /// The next position.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A piece of text or thought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Chunk {
    /// The part this belongs to; parts follow one another.
    pub id: String,
    /// What to append to the part.
    pub text: String,
    /// The whole part is taken back (its model call broke off and is tried again): drop what was shown of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub discarded: bool,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum AskKind {
    /// May this tool run with this input?
    ToolUse,
    /// A question with choices.
    Question,
    /// Is this plan right?
    Plan,
}

/// A question for a person. The turn waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct InputRequired {
    /// The id to answer under.
    pub request_id: RequestId,
    /// What is asked.
    pub kind: AskKind,
    /// The tool that asks.
    pub tool: String,
    /// What it would run with; for questions, the questions.
    #[cfg_attr(feature = "schema", schema(value_type = Object))]
    pub tool_input: Value,
    /// One line for people.
    pub message: String,
    /// The decisions that are open.
    pub options: Vec<Decision>,
    /// When it is refused by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// Who answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Answerer {
    /// `key`, `end_user`, or `karta` when nobody did in time.
    pub kind: String,
    /// Which one.
    pub id: String,
}

/// What happened. One closed list, tagged by `type`, the rest in `data`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Body {
    /// A turn began.
    TurnStart {
        /// The release it runs on, to its end.
        release: ReleaseRef,
        /// The agent asked for.
        agent: Option<String>,
        /// Who asked.
        participant: Option<Participant>,
        /// How it is kept apart.
        isolation: Isolation,
        /// How long it waited for the turn before it, in milliseconds.
        queued_ms: u64,
    },
    /// Words of the agent.
    Text {
        /// The piece.
        part: Chunk,
        /// The tool call that a sub-agent speaks in.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent_tool_use_id: Option<String>,
    },
    /// Thoughts of the agent.
    Reasoning {
        /// The piece.
        part: Chunk,
        /// The tool call that a sub-agent thinks in.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent_tool_use_id: Option<String>,
    },
    /// A tool is called.
    ToolUse {
        /// The call.
        tool_use_id: String,
        /// The tool.
        tool_name: String,
        /// Its input.
        #[cfg_attr(feature = "schema", schema(value_type = Object))]
        tool_input: Value,
        /// The tool call that a sub-agent calls from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent_tool_use_id: Option<String>,
    },
    /// A tool answered.
    ToolResult {
        /// The call.
        tool_use_id: String,
        /// What it said.
        #[cfg_attr(feature = "schema", schema(value_type = Object))]
        output: Value,
        /// Whether it failed.
        is_error: bool,
        /// Whether the output was cut to fit the journal.
        truncated: bool,
    },
    /// A model call began.
    StepStart {
        /// From 0 within the turn.
        step_index: u32,
        /// For people.
        description: String,
    },
    /// A model call ended.
    StepFinish {
        /// From 0 within the turn.
        step_index: u32,
        /// What the harness says it used.
        usage: Usage,
    },
    /// A person must answer.
    InputRequired(InputRequired),
    /// Somebody answered, or the question was withdrawn.
    InputResolved {
        /// The question.
        request_id: RequestId,
        /// The decision.
        decision: Decision,
        /// Who.
        by: Answerer,
    },
    /// Another agent takes over.
    AgentChanged {
        /// Who had it.
        from: Option<String>,
        /// Who has it.
        to: Option<String>,
    },
    /// Something only the curious want; hidden unless asked for.
    System {
        /// What kind of notice.
        subtype: String,
        /// Its content.
        #[cfg_attr(feature = "schema", schema(value_type = Object))]
        detail: Value,
    },
    /// Something went wrong. The turn's `done` follows.
    Error(Problem),
    /// Events that can no longer be replayed.
    Gap {
        /// The first that is missing.
        from_seq: Seq,
        /// The last that is missing.
        to_seq: Seq,
    },
    /// The turn ended. Exactly one per turn, always its last event.
    Done {
        /// How.
        status: TurnState,
        /// The text of the turn, put together.
        text: String,
        /// Tokens and cost.
        usage: Metered,
        /// The cost in micro-dollars.
        cost_micros: crate::Micros,
        /// Why, in the harness's words.
        stop_reason: Option<String>,
        /// From start to end, in milliseconds.
        duration_ms: u64,
    },
}

impl Body {
    /// The `type` on the wire.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::TurnStart { .. } => "turn_start",
            Self::Text { .. } => "text",
            Self::Reasoning { .. } => "reasoning",
            Self::ToolUse { .. } => "tool_use",
            Self::ToolResult { .. } => "tool_result",
            Self::StepStart { .. } => "step_start",
            Self::StepFinish { .. } => "step_finish",
            Self::InputRequired(_) => "input_required",
            Self::InputResolved { .. } => "input_resolved",
            Self::AgentChanged { .. } => "agent_changed",
            Self::System { .. } => "system",
            Self::Error(_) => "error",
            Self::Gap { .. } => "gap",
            Self::Done { .. } => "done",
        }
    }
}

/// An event with its place in the session.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Event {
    /// Its position.
    pub seq: Seq,
    /// The session.
    pub session_id: SessionId,
    /// The turn, if it is part of one.
    pub turn_id: Option<TurnId>,
    /// When, in milliseconds since 1970.
    pub timestamp: i64,
    /// Who said it: a harness's id, or `karta`.
    pub source: String,
    /// What happened.
    #[serde(flatten)]
    pub body: Body,
    /// The harness's own line, when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Object>))]
    pub raw: Option<Box<RawValue>>,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
            && self.session_id == other.session_id
            && self.turn_id == other.turn_id
            && self.timestamp == other.timestamp
            && self.source == other.source
            && self.body == other.body
            && self.raw.as_ref().map(|raw| raw.get()) == other.raw.as_ref().map(|raw| raw.get())
    }
}
