//! Recorded sessions of real harnesses: what the adapters are tested with.
//!
//! A transcript is a text file, one JSON object a line, in the order things happened:
//!
//! ```text
//! {"dir":"do","do":"message","id":"…","content":[{"type":"text","text":"hi"}]}    an input given to the codec
//! {"dir":"in","line":"…"}                                                         a line that the codec wrote to the process
//! {"dir":"out","line":"…"}                                                        a line of the process, as it was
//! {"dir":"exit","status":0}                                                       the process ended
//! ```
//!
//! They hold the protocol only: a recorder drops prose that belongs to others (tool descriptions, prompts, lists of models).

use bytes::Bytes;
use karta_types::message::{Answer, Content};
use karta_types::session::PermissionMode;
use serde::{Deserialize, Serialize};

use crate::codec::{Codec, Input, Out, Said};

/// One step of a recorded session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "dir", rename_all = "snake_case")]
pub enum Step {
    /// An input was given to the codec.
    Do(Do),
    /// The codec wrote this line.
    In {
        /// The line, without its end.
        line: String,
    },
    /// The process wrote this line.
    Out {
        /// The line, without its end.
        line: String,
    },
    /// The process ended.
    Exit {
        /// Its status; absent when a signal killed it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<i32>,
        /// What it had written last to its standard error.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        stderr: String,
    },
}

/// An [`Input`] in the form that transcripts hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Do {
    /// [`Input::Message`].
    Message {
        /// Our id for it.
        id: String,
        /// The parts.
        content: Vec<Content>,
        /// The agent to take it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent: Option<String>,
        /// Whether thinking was asked for.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        thinking: bool,
    },
    /// [`Input::Answer`].
    Answer {
        /// The harness's own id of the question.
        request: String,
        /// The answer.
        answer: Answer,
    },
    /// [`Input::Interrupt`].
    Interrupt,
    /// [`Input::Mode`].
    Mode {
        /// The mode.
        mode: PermissionMode,
    },
    /// [`Input::History`].
    History,
    /// [`Input::Close`].
    Close,
}

impl From<Do> for Input {
    fn from(step: Do) -> Self {
        match step {
            Do::Message { id, content, agent, thinking } => Self::Message { id, content, agent, thinking },
            Do::Answer { request, answer } => Self::Answer { request, answer },
            Do::Interrupt => Self::Interrupt,
            Do::Mode { mode } => Self::Mode(mode),
            Do::History => Self::History,
            Do::Close => Self::Close,
        }
    }
}

/// Reads a transcript.
///
/// # Errors
/// The first line that is not a step, with its number.
pub fn parse(text: &str) -> Result<Vec<Step>, String> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(at, line)| serde_json::from_str(line).map_err(|error| format!("line {}: {error}", at + 1)))
        .collect()
}

/// What a codec did with a transcript.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Played {
    /// What it said, in order.
    pub said: Vec<Said>,
    /// What it wrote, in order, put together.
    pub wrote: Vec<u8>,
    /// The last native session it named.
    pub native_session: Option<String>,
}

impl Played {
    /// Takes what the codec handed out.
    pub fn take(&mut self, out: &mut Out) {
        self.said.extend(out.said.drain(..).map(|(said, _)| said));
        self.wrote.extend(out.writes.drain(..).flat_map(Bytes::into_iter));
        if let Some(native) = out.native_session.take() {
            self.native_session = Some(native);
        }
    }
}

/// Plays a session to a codec, which must be new. Lines of the process are put together as they came, and `cut` says how a run of
/// them is handed over: it gets the bytes and calls its second argument with each piece.
pub fn play(
    codec: &mut dyn Codec,
    steps: &[Step],
    mut cut: impl FnMut(&[u8], &mut dyn FnMut(&[u8])),
) -> Played {
    let mut played = Played::default();
    let mut out = Out::default();
    codec.start(&mut out);
    played.take(&mut out);
    let mut pending = Vec::new();
    for step in steps {
        if !matches!(step, Step::Out { .. } | Step::In { .. }) && !pending.is_empty() {
            cut(&pending, &mut |piece| {
                codec.output(piece, &mut out);
                played.take(&mut out);
            });
            pending.clear();
        }
        match step {
            Step::Do(input) => codec.input(input.clone().into(), &mut out),
            Step::In { .. } => {}
            Step::Out { line } => {
                pending.extend_from_slice(line.as_bytes());
                pending.push(b'\n');
            }
            Step::Exit { status, stderr } => codec.exited(*status, stderr, &mut out),
        }
        played.take(&mut out);
    }
    if !pending.is_empty() {
        cut(&pending, &mut |piece| {
            codec.output(piece, &mut out);
            played.take(&mut out);
        });
    }
    played
}
