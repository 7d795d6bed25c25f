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
    limits: Limits,
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
    Limits(Limits),
    BudgetExhausted(Box<Problem>),
    Broken(Box<Problem>),
}

impl Tape {
    /// Of a process that was just started.
    pub(super) const fn new(started: Timestamp, mode: PermissionMode, limits: Limits) -> Self {
        Self { started, mode, limits, notes: Vec::new(), requests: Vec::new(), length: 0 }
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
            Stimulus::Limits(limits) => Note::Limits(*limits),
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

    /// A machine that was told all of this, under the limits that held then. What it wanted done was done then.
    pub(super) fn play(
        self,
        codec: Box<dyn Codec>,
        mut new_request: Box<dyn FnMut() -> RequestId + Send>,
    ) -> Machine {
        let mut given = self.requests.into_iter();
        let requests = Box::new(move || given.next().unwrap_or_else(&mut new_request));
        let mut effects = Vec::new();
        let mut machine = Machine::new(codec, self.limits, self.mode, requests, self.started, &mut effects);
        machine.record(Self::new(self.started, self.mode, self.limits));
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
                Note::Limits(limits) => Stimulus::Limits(limits),
                Note::BudgetExhausted(problem) => Stimulus::BudgetExhausted(problem),
                Note::Broken(problem) => Stimulus::Broken(problem),
            };
            machine.step(now, stimulus, &mut effects);
            effects.clear();
        }
        machine
    }
}

/// The input without what can be large and changes no state: the bytes that were sent then. What was sent beside words stays in its place,
/// empty: that there is something, and where, may decide what a codec does.
fn bare(input: &Input) -> Input {
    match input {
        Input::Message { id, content, agent, thinking } => {
            let content = content.iter().map(|part| match part {
                Content::Text { .. } => part.clone(),
                Content::Image { media_type, .. } => {
                    Content::Image { media_type: media_type.clone(), data: String::new() }
                }
                Content::File { name, media_type, .. } => {
                    let (name, media_type) = (name.clone(), media_type.clone());
                    Content::File { name, media_type, data: String::new() }
                }
            });
            let content = content.collect();
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use karta_harness::Out;
    use karta_harness::Said;
    use serde_json::json;

    use super::*;
    use crate::data::turn::machine::Effect;

    /// Says how the first part of a message begins, and asks about it.
    struct First;

    impl Codec for First {
        fn start(&mut self, out: &mut Out) {
            out.say(Said::Ready);
        }

        fn input(&mut self, input: Input, out: &mut Out) {
            if let Input::Message { content, .. } = input {
                let asks = matches!(content.first(), Some(Content::Image { .. })) && content.len() == 3;
                let ask = karta_harness::Ask {
                    kind: karta_types::event::AskKind::ToolUse,
                    tool: "T".to_owned(),
                    tool_input: json!({}),
                    message: String::new(),
                };
                if asks {
                    out.say(Said::Asked { request: "1".to_owned(), ask });
                }
            }
        }

        fn output(&mut self, _bytes: &[u8], _out: &mut Out) {}

        fn exited(&mut self, _status: Option<i32>, _stderr_tail: &str, _out: &mut Out) {}
    }

    fn limits(approval: u64) -> Limits {
        Limits {
            start: Duration::from_secs(10),
            silence: Duration::from_secs(20),
            retry: Duration::from_secs(30),
            approval: Duration::from_secs(approval),
            turn: Duration::from_secs(1000),
            output: 1000,
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn ids() -> Box<dyn FnMut() -> RequestId + Send> {
        let mut next = 0;
        Box::new(move || {
            next += 1;
            RequestId::from_u128(next)
        })
    }

    /// A machine that asked at second 1.
    fn asked(approval: u64) -> Machine {
        let (mut effects, limits) = (Vec::new(), limits(approval));
        let mut machine =
            Machine::new(Box::new(First), limits, PermissionMode::Default, ids(), at(0), &mut effects);
        machine.record(Tape::new(at(0), PermissionMode::Default, limits));
        let data = "x".repeat(1000);
        let content = vec![
            Content::Image { media_type: "image/png".to_owned(), data: data.clone() },
            Content::Text { text: "/deploy".to_owned() },
            Content::File { name: "f".to_owned(), media_type: None, data },
        ];
        let input = Input::Message { id: "m".to_owned(), content, agent: None, thinking: false };
        machine.step(at(1), Stimulus::Begin(input), &mut effects);
        assert!(machine.waiting());
        machine
    }

    /// What is kept, as it is read back.
    fn kept(machine: &Machine) -> Tape {
        let text = serde_json::to_string(machine.tape().unwrap()).unwrap();
        assert!(!text.contains("xxx"), "{text}");
        serde_json::from_str(&text).unwrap()
    }

    fn open(machine: &Machine) -> Vec<RequestId> {
        machine.open().collect()
    }

    #[test]
    fn what_was_sent_beside_words_keeps_its_place_and_not_its_bytes() {
        let machine = asked(40);
        let again = kept(&machine).play(Box::new(First), ids());
        assert_eq!(open(&again), open(&machine));
        assert!(again.waiting());
    }

    #[test]
    fn other_limits_change_what_comes_and_not_what_was() {
        let mut effects = Vec::new();
        let mut machine = asked(40);
        // The question is open still: a tape that was played under shorter limits would have let it expire here.
        machine.step(at(20), Stimulus::Tick, &mut effects);
        for approval in [5, 60, 30] {
            machine = kept(&machine).play(Box::new(First), ids());
            assert!(machine.waiting());
            machine.step(at(21), Stimulus::Limits(limits(approval)), &mut effects);
            assert_eq!(machine.deadline(), Some(at(1 + i64::try_from(approval).unwrap())));
        }
        effects.clear();
        machine.step(at(31), Stimulus::Tick, &mut effects);
        assert!(
            matches!(&effects[..], [Effect::Emit(karta_types::Body::InputResolved { .. }, _)]),
            "{effects:?}"
        );
    }
}
