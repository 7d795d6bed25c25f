//! Everything that a machine was told, so that another one can be told it again and come to the same state.
//!
//! A harness that waits for a person can be saved with its whole sandbox. What the platform knows about it is in the machine and its
//! codec, which know no clock and no chance: the same stimuli lead to the same state, so these are what is kept.

use bytes::Bytes;
use karta_harness::{Codec, Input};
use karta_types::event::Answerer;
use karta_types::message::{Answer, Content};
use karta_types::session::PermissionMode;
use karta_types::{Problem, RequestId, Timestamp};
use serde::{Deserialize, Serialize};

use super::machine::{Limits, Machine, Stimulus};

/// The most that is kept, in bytes; a process that was told and said more can't be saved any more.
const MOST: usize = 8 << 20;

/// The room that a process which is about to be saved must have left.
const ROOM: usize = 2 << 20;

/// What was told, and when.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Tape {
    started: Timestamp,
    mode: PermissionMode,
    notes: Vec<(Timestamp, Note)>,
    requests: Vec<RequestId>,
    #[serde(skip)]
    length: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Note {
    Begin(Input),
    Steer(Input),
    Answer(RequestId, Answer, Answerer),
    Interrupt,
    Mode(PermissionMode),
    History,
    Output(#[serde(with = "base64_text")] Bytes),
    Tick,
    BudgetExhausted(Box<Problem>),
    Broken(Box<Problem>),
}

impl Tape {
    /// Of a process that was just started.
    pub(super) const fn new(started: Timestamp, mode: PermissionMode) -> Self {
        Self { started, mode, notes: Vec::new(), requests: Vec::new(), length: 0 }
    }

    /// Whether what a process may still say while it is being saved has room.
    pub(super) const fn has_room(&self) -> bool {
        self.length <= MOST - ROOM
    }

    /// The permission mode that the process was started with.
    pub(super) const fn mode(&self) -> PermissionMode {
        self.mode
    }

    /// Notes a stimulus. False when nothing more fits, and the tape is of no more use: also at the end of the process.
    pub(super) fn note(&mut self, now: Timestamp, stimulus: &Stimulus<'_>) -> bool {
        let note = match stimulus {
            Stimulus::Begin(input) => Note::Begin(bare(input)),
            Stimulus::Steer(input) => Note::Steer(bare(input)),
            Stimulus::Answer { request, answer, by } => Note::Answer(*request, answer.clone(), by.clone()),
            Stimulus::Interrupt => Note::Interrupt,
            Stimulus::Mode(mode) => Note::Mode(*mode),
            Stimulus::History => Note::History,
            Stimulus::Output(bytes) => {
                self.length += bytes.len();
                Note::Output(Bytes::copy_from_slice(bytes))
            }
            Stimulus::Exited { .. } => return false,
            Stimulus::Tick => Note::Tick,
            Stimulus::BudgetExhausted(problem) => Note::BudgetExhausted(problem.clone()),
            Stimulus::Broken(problem) => Note::Broken(problem.clone()),
        };
        // The other notes are small, or as large as what a caller may send.
        self.length += 256;
        self.notes.push((now, note));
        self.length <= MOST
    }

    /// Notes the id that a question was given.
    pub(super) fn request(&mut self, id: RequestId) {
        self.requests.push(id);
    }

    /// A machine that was told all of this. What it wanted done was done then.
    pub(super) fn play(
        self,
        codec: Box<dyn Codec>,
        limits: Limits,
        mut new_request: Box<dyn FnMut() -> RequestId + Send>,
    ) -> Machine {
        let mut given = self.requests.into_iter();
        let requests = Box::new(move || given.next().unwrap_or_else(&mut new_request));
        let mut effects = Vec::new();
        let mut machine = Machine::new(codec, limits, self.mode, requests, self.started, &mut effects);
        machine.record(Self::new(self.started, self.mode));
        for (now, note) in self.notes {
            let bytes;
            let stimulus = match note {
                Note::Begin(input) => Stimulus::Begin(input),
                Note::Steer(input) => Stimulus::Steer(input),
                Note::Answer(request, answer, by) => Stimulus::Answer { request, answer, by },
                Note::Interrupt => Stimulus::Interrupt,
                Note::Mode(mode) => Stimulus::Mode(mode),
                Note::History => Stimulus::History,
                Note::Output(output) => {
                    bytes = output;
                    Stimulus::Output(&bytes)
                }
                Note::Tick => Stimulus::Tick,
                Note::BudgetExhausted(problem) => Stimulus::BudgetExhausted(problem),
                Note::Broken(problem) => Stimulus::Broken(problem),
            };
            machine.step(now, stimulus, &mut effects);
            effects.clear();
        }
        machine
    }
}

/// The input without what can be large and changes no state: the bytes that were sent then.
fn bare(input: &Input) -> Input {
    match input {
        Input::Message { id, content, agent, thinking } => {
            let text = |part: &&Content| matches!(part, Content::Text { .. });
            let content = content.iter().filter(text).cloned().collect();
            Input::Message { id: id.clone(), content, agent: agent.clone(), thinking: *thinking }
        }
        other => other.clone(),
    }
}

mod base64_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map(Bytes::from).map_err(serde::de::Error::custom)
    }
}
