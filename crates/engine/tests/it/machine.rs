//! The turn machine under arbitrary orders of events: whatever comes, a turn ends once.

use std::time::Duration;

use bytes::Bytes;
use karta_engine::data::turn::machine::{Effect, Limits, Machine, Stimulus};
use karta_harness::registry::find;
use karta_harness::{Ask, Codec, End, Input, Out, Said};
use karta_types::event::{Answerer, AskKind};
use karta_types::message::{Answer, Content, Decision};
use karta_types::session::{PermissionMode, TurnState};
use karta_types::{Body, ErrorCode, Problem, RequestId, Timestamp};
use proptest::prelude::*;
use serde_json::json;

const LIMITS: Limits = Limits {
    start: Duration::from_secs(10),
    silence: Duration::from_secs(20),
    retry: Duration::from_secs(30),
    approval: Duration::from_secs(40),
    turn: Duration::from_secs(100),
    output: 1000,
};

/// A codec that says what the bytes tell it to: one letter, one word.
#[derive(Default)]
struct Letters {
    open: bool,
    asked: u32,
    obeys: bool,
}

impl Codec for Letters {
    fn start(&mut self, _out: &mut Out) {}

    fn input(&mut self, input: Input, out: &mut Out) {
        match input {
            Input::Message { .. } => self.open = true,
            Input::Interrupt if self.obeys && std::mem::take(&mut self.open) => {
                out.say(Said::Ended(End::Interrupted));
            }
            _ => out.writes.push(Bytes::from_static(b"?")),
        }
    }

    fn output(&mut self, bytes: &[u8], out: &mut Out) {
        for byte in bytes {
            match byte {
                b'r' => out.say(Said::Ready),
                b't' => out.say(Said::Text { part: "p".into(), text: "t".into(), parent: None }),
                b's' => out.say(Said::StepStart { description: String::new() }),
                b'y' => out.say(Said::Retrying {
                    attempt: 1,
                    status: Some(529),
                    message: "busy".into(),
                    wait_ms: 1,
                }),
                b'a' => {
                    self.asked += 1;
                    let ask = Ask {
                        kind: AskKind::ToolUse,
                        tool: "T".into(),
                        tool_input: json!(self.asked),
                        message: String::new(),
                    };
                    out.say(Said::Asked { request: self.asked.to_string(), ask });
                }
                b'w' => out.say(Said::Withdrawn { request: self.asked.to_string() }),
                b'e' if std::mem::take(&mut self.open) => {
                    out.say(Said::Ended(End::Completed { stop_reason: None }));
                }
                b'f' if std::mem::take(&mut self.open) => {
                    out.say(Said::Ended(End::Failed {
                        code: ErrorCode::ProviderOverloaded,
                        message: String::new(),
                    }));
                }
                _ => {}
            }
        }
    }

    fn exited(&mut self, _status: Option<i32>, _stderr: &str, out: &mut Out) {
        if std::mem::take(&mut self.open) {
            out.say(Said::Ended(End::Failed { code: ErrorCode::HarnessFailed, message: String::new() }));
        }
    }
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_micros(0).plus(Duration::from_secs(seconds))
}

fn machine(codec: Letters) -> Machine {
    let mut next = 0;
    let ids = Box::new(move || {
        next += 1;
        RequestId::from_u128(next)
    });
    Machine::new(Box::new(codec), LIMITS, PermissionMode::Default, ids, at(0), &mut Vec::new())
}

fn message() -> Input {
    Input::Message {
        id: "m".into(),
        content: vec![Content::Text { text: "x".into() }],
        agent: None,
        thinking: false,
    }
}

fn endings(effects: &[Effect]) -> Vec<(TurnState, Option<ErrorCode>)> {
    let ending = |effect: &Effect| match effect {
        Effect::Ended(ending) => Some((ending.status, ending.error.as_ref().map(|problem| problem.error))),
        _ => None,
    };
    effects.iter().filter_map(ending).collect()
}

#[derive(Debug, Clone)]
enum Move {
    Output(Vec<u8>),
    Answer(u128, Decision),
    Interrupt,
    Exhausted,
    Exit,
    Later(u64),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let letters = proptest::collection::vec(
        prop_oneof![
            Just(b'r'),
            Just(b't'),
            Just(b's'),
            Just(b'y'),
            Just(b'a'),
            Just(b'w'),
            Just(b'e'),
            Just(b'f')
        ],
        1..4,
    );
    let decision =
        prop_oneof![Just(Decision::ApproveOnce), Just(Decision::ApproveSession), Just(Decision::Deny)];
    let one = prop_oneof![
        6 => letters.prop_map(Move::Output),
        2 => (1u128..5, decision).prop_map(|(id, decision)| Move::Answer(id, decision)),
        1 => Just(Move::Interrupt),
        1 => Just(Move::Exhausted),
        1 => Just(Move::Exit),
        3 => (1u64..60).prop_map(Move::Later),
    ];
    proptest::collection::vec(one, 0..30)
}

proptest! {
    /// Whatever happens in whatever order, and then nothing for ever: exactly one end, every question resolved, nothing after it.
    #[test]
    fn a_turn_ends_exactly_once(moves in moves(), obeys: bool) {
        let mut machine = machine(Letters { obeys, ..Letters::default() });
        let (mut now, mut effects) = (1, Vec::new());
        machine.step(at(now), Stimulus::Begin(message()), &mut effects);
        for one in moves {
            let answer = |decision| Answer { decision, message: None, updated_input: None, answers: None };
            let by = Answerer { kind: "key".into(), id: "k".into() };
            match one {
                Move::Output(bytes) => machine.step(at(now), Stimulus::Output(&bytes), &mut effects),
                Move::Answer(id, decision) => {
                    let stimulus = Stimulus::Answer { request: RequestId::from_u128(id), answer: answer(decision), by };
                    machine.step(at(now), stimulus, &mut effects);
                }
                Move::Interrupt => machine.step(at(now), Stimulus::Interrupt, &mut effects),
                Move::Exhausted => {
                    let problem = Box::new(Problem::new(ErrorCode::BudgetExhausted, ""));
                    machine.step(at(now), Stimulus::BudgetExhausted(problem), &mut effects);
                }
                Move::Exit => machine.step(at(now), Stimulus::Exited { status: None, stderr: "" }, &mut effects),
                Move::Later(seconds) => now += seconds,
            }
            prop_assert!(endings(&effects).len() <= 1);
        }
        for _ in 0..50 {
            let Some(deadline) = machine.deadline() else { break };
            prop_assert!(machine.busy() || machine.starting());
            machine.step(deadline, Stimulus::Tick, &mut effects);
            if !machine.busy() { break }
        }
        prop_assert_eq!(endings(&effects).len(), 1, "{:#?}", effects);
        let (mut open, mut ended) = (0, false);
        for effect in &effects {
            match effect {
                Effect::Emit(Body::InputRequired(_), _) => open += 1,
                Effect::Emit(Body::InputResolved { .. }, _) => open -= 1,
                Effect::Ended(_) => { prop_assert_eq!(open, 0); ended = true; }
                Effect::Emit(body, _) => prop_assert!(!ended, "after the end: {:?}", body),
                _ => {}
            }
        }
    }
}

/// Runs the given output at the given seconds, then lets time pass; gives the end.
fn play(script: &[(u64, &[u8])], obeys: bool) -> (u64, TurnState, Option<ErrorCode>) {
    let mut machine = machine(Letters { obeys, ..Letters::default() });
    let mut effects = Vec::new();
    machine.step(at(0), Stimulus::Begin(message()), &mut effects);
    for (second, bytes) in script {
        machine.step(at(*second), Stimulus::Output(bytes), &mut effects);
    }
    let mut now = at(0);
    while machine.busy() {
        now = machine.deadline().expect("a turn always has a deadline");
        machine.step(now, Stimulus::Tick, &mut effects);
    }
    let (state, code) = endings(&effects).remove(0);
    (now.since(at(0)).as_secs(), state, code)
}

#[test]
fn each_deadline_has_its_name() {
    let failed = |code| Some(code);
    assert_eq!(play(&[], true), (10, TurnState::Failed, failed(ErrorCode::HarnessStartFailed)));
    assert_eq!(play(&[(1, b"r")], true), (21, TurnState::Failed, failed(ErrorCode::HarnessSilent)));
    // One that does not obey is killed ten seconds later, for the same reason.
    assert_eq!(play(&[(1, b"r")], false), (31, TurnState::Failed, failed(ErrorCode::HarnessSilent)));
    let retries: &[(u64, &[u8])] = &[(1, b"ry"), (15, b"y"), (29, b"y")];
    assert_eq!(play(retries, true), (31, TurnState::Failed, failed(ErrorCode::ProviderOverloaded)));
    // A question is refused after its time; then the silence counts anew.
    assert_eq!(play(&[(1, b"ra")], true), (61, TurnState::Failed, failed(ErrorCode::HarnessSilent)));
    let chatter: Vec<(u64, &[u8])> = (1..100).step_by(10).map(|second| (second, &b"rt"[..])).collect();
    assert_eq!(play(&chatter, true), (100, TurnState::Failed, failed(ErrorCode::TurnTimeout)));
}

#[test]
fn waiting_for_people_is_not_counted() {
    let mut machine = machine(Letters::default());
    let mut effects = Vec::new();
    machine.step(at(0), Stimulus::Begin(message()), &mut effects);
    machine.step(at(1), Stimulus::Output(b"ra"), &mut effects);
    assert!(machine.waiting());
    let answer =
        Answer { decision: Decision::ApproveOnce, message: None, updated_input: None, answers: None };
    let by = Answerer { kind: "key".into(), id: "k".into() };
    let stimulus = Stimulus::Answer { request: RequestId::from_u128(1), answer, by };
    machine.step(at(31), stimulus, &mut effects);
    for second in (31..125).step_by(10) {
        machine.step(at(second), Stimulus::Output(b"t"), &mut effects);
        machine.step(at(second), Stimulus::Tick, &mut effects);
    }
    assert!(machine.busy(), "30 s of waiting are not part of the 100 s");
    machine.step(at(131), Stimulus::Tick, &mut effects);
    machine.step(at(142), Stimulus::Tick, &mut effects);
    assert_eq!(endings(&effects), [(TurnState::Failed, Some(ErrorCode::TurnTimeout))]);
}

#[test]
fn every_known_harness_can_be_found() {
    for id in ["claude-code", "opencode", "scripted"] {
        assert_eq!(find(id).map(karta_harness::Harness::id), Some(id));
    }
}
