//! The codec: bytes of one harness process in, things said out; inputs in, bytes out.

use bytes::Bytes;
use karta_types::event::AskKind;
use karta_types::message::{Answer, Content, Message};
use karta_types::session::PermissionMode;
use karta_types::{ErrorCode, Usage};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What the platform tells a harness.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// A message: begins a turn, or steers the one that runs.
    Message {
        /// Our id for it, a UUID text; harnesses that take one carry it through.
        id: String,
        /// The parts.
        content: Vec<Content>,
        /// The agent to take it, where the harness chooses per message.
        agent: Option<String>,
        /// Whether the model should show its thinking.
        thinking: bool,
    },
    /// An answer to [`Said::Asked`].
    Answer {
        /// The harness's own id of the question.
        request: String,
        /// The answer.
        answer: Answer,
    },
    /// Stop the running turn, keep the process.
    Interrupt,
    /// Change when tools ask, from now on.
    Mode(PermissionMode),
    /// Say the conversation so far: answered by [`Said::History`].
    History,
    /// End the process in good order.
    Close,
}

/// A question to a person, in the harness's words.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// What is asked.
    pub kind: AskKind,
    /// The tool that asks.
    pub tool: String,
    /// Its input, or the questions.
    pub tool_input: Value,
    /// One line for people.
    pub message: String,
}

/// How the harness's turn ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// Well.
    Completed {
        /// In the harness's words: `end_turn`.
        stop_reason: Option<String>,
    },
    /// By an interrupt.
    Interrupted,
    /// Badly.
    Failed {
        /// Our code for it.
        code: ErrorCode,
        /// For people; from the harness or provider, shortened.
        message: String,
    },
}

/// What a harness says.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// The process is up and takes messages. Said once per process.
    Ready,
    /// A piece of text. Parts with a parent belong to a sub-agent.
    Text {
        /// The part.
        part: String,
        /// The piece.
        text: String,
        /// The tool call a sub-agent speaks in.
        parent: Option<String>,
    },
    /// A piece of thought.
    Reasoning {
        /// The part.
        part: String,
        /// The piece.
        text: String,
        /// The tool call a sub-agent thinks in.
        parent: Option<String>,
    },
    /// The whole part is taken back: its model call broke off and is tried again.
    Discarded {
        /// The part.
        part: String,
        /// Whether it was a part of thought.
        reasoning: bool,
    },
    /// A tool is called. Said once per call, with its full input.
    ToolUse {
        /// The call.
        call: String,
        /// The tool.
        tool: String,
        /// The input.
        input: Value,
        /// The tool call a sub-agent calls from.
        parent: Option<String>,
    },
    /// A tool answered. At most once per call.
    ToolResult {
        /// The call.
        call: String,
        /// What it said.
        output: Value,
        /// Whether it failed.
        is_error: bool,
    },
    /// A model call began.
    StepStart {
        /// For people.
        description: String,
    },
    /// A model call ended.
    StepFinish {
        /// What it used, by the harness's count.
        usage: Usage,
    },
    /// The harness waits for a person. Never twice for the same request.
    Asked {
        /// The harness's own id of the question.
        request: String,
        /// The question.
        ask: Ask,
    },
    /// A question is no longer open.
    Withdrawn {
        /// The harness's own id of the question.
        request: String,
    },
    /// A model call failed and is tried again.
    Retrying {
        /// Which try, from 1.
        attempt: u32,
        /// The provider's HTTP status, if there was one.
        status: Option<u16>,
        /// For people.
        message: String,
        /// How long the harness waits, in milliseconds.
        wait_ms: u64,
    },
    /// The harness's agent changed.
    AgentChanged {
        /// Who had it.
        from: Option<String>,
        /// Who has it.
        to: Option<String>,
    },
    /// Usage that no gateway sees; only from harnesses that are not `gateway_metered`.
    Used {
        /// The model's name.
        model: String,
        /// Tokens.
        usage: Usage,
        /// The cost, as the harness states it.
        cost: karta_types::Micros,
    },
    /// Something else, kept for the curious.
    Notice {
        /// The harness's word for it.
        subtype: String,
        /// Its content.
        detail: Value,
    },
    /// The conversation so far.
    History(Vec<Message>),
    /// The turn is over. Exactly one per turn; after [`Codec::exited`] an open turn has ended.
    Ended(End),
}

/// What a codec hands out. The caller empties it after every call.
#[derive(Debug, Default)]
pub struct Out {
    /// What was said, in order, each with the harness's own line where there is one.
    pub said: Vec<(Said, Option<Bytes>)>,
    /// Bytes for the process, in order.
    pub writes: Vec<Bytes>,
    /// The harness's own id of the session, once it is known.
    pub native_session: Option<String>,
}

impl Out {
    /// Says something without a line behind it.
    pub fn say(&mut self, said: Said) {
        self.said.push((said, None));
    }

    /// Says something that `raw` said.
    pub fn say_raw(&mut self, said: Said, raw: &Bytes) {
        self.said.push((said, Some(raw.clone())));
    }

    /// Writes one line of JSON.
    pub fn write_json(&mut self, value: &Value) {
        let mut line = value.to_string().into_bytes();
        line.push(b'\n');
        self.writes.push(line.into());
    }
}

/// One process of a harness, as bytes.
///
/// Laws (held for every adapter by one suite): splitting the bytes anywhere changes nothing; no input makes it panic; every turn
/// that [`Input::Message`] began ends in one [`Said::Ended`], at the latest in [`Codec::exited`]; a call has at most one result; an
/// answered request is never asked again; memory is bounded whatever comes.
pub trait Codec: Send {
    /// The process was started: the handshake.
    fn start(&mut self, out: &mut Out);
    /// The platform says something.
    fn input(&mut self, input: Input, out: &mut Out);
    /// The process wrote these bytes; any chunking, hostile bytes.
    fn output(&mut self, bytes: &[u8], out: &mut Out);
    /// The process is gone, with this exit status (none: killed by a signal), having written this last to its standard error.
    fn exited(&mut self, status: Option<i32>, stderr_tail: &str, out: &mut Out);
}
