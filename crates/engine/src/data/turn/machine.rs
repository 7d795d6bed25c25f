//! The pure heart of a turn: what came in, and what is to be done about it.
//!
//! The machine owns the codec of one harness process and lives as long as the process. It knows no IO and no clock: every step is
//! (state, stimulus, now) → effects. The loop in [`super::run`] performs the effects.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use karta_harness::{Codec, End, Input, Out, Said};
use karta_types::event::{Answerer, AskKind, Chunk, InputRequired};
use karta_types::message::{Answer, Decision, Message};
use karta_types::session::{PermissionMode, TurnState};
use karta_types::{Body, ErrorCode, Micros, Problem, RequestId, Timestamp, Usage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::tape::Tape;

/// How long a harness may take to obey an interrupt before it is killed.
const OBEY: Duration = Duration::from_secs(10);
/// Questions open at once; a harness that asks more is refused.
const MAX_OPEN: usize = 64;

/// Deadlines and sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// From start to the first sign of life.
    pub start: Duration,
    /// Without a word.
    pub silence: Duration,
    /// Retries of one model call, all together.
    pub retry: Duration,
    /// A question without an answer.
    pub approval: Duration,
    /// A whole turn, waiting for people apart.
    pub turn: Duration,
    /// Bytes of one tool's output that are kept.
    pub output: usize,
}

/// What comes in.
#[derive(Debug)]
pub enum Stimulus<'a> {
    /// A turn begins with this message.
    Begin(Input),
    /// A message joins the running turn.
    Steer(Input),
    /// Somebody answered a question.
    Answer {
        /// The question.
        request: RequestId,
        /// The answer.
        answer: Answer,
        /// Who.
        by: Answerer,
    },
    /// A caller stops the turn.
    Interrupt,
    /// The permission mode changed.
    Mode(PermissionMode),
    /// Say the conversation so far.
    History,
    /// The process wrote this.
    Output(&'a [u8]),
    /// The process is gone.
    Exited {
        /// Its status; none when a signal ended it.
        status: Option<i32>,
        /// What it wrote last to its standard error.
        stderr: &'a str,
    },
    /// [`Machine::deadline`] has passed.
    Tick,
    /// Other limits hold from now on, also for questions that are open.
    Limits(Limits),
    /// Nothing is left to spend.
    BudgetExhausted(Box<Problem>),
    /// What the harness needs can't be written any more.
    Broken(Box<Problem>),
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Put this into the journal; with the harness's own line.
    Emit(Body, Option<Bytes>),
    /// Write this to the process.
    Write(Bytes),
    /// End the process at once.
    Kill,
    /// The harness's own id of the session.
    Native(String),
    /// Count this: the harness's models pass no gateway.
    Used {
        /// The model.
        model: String,
        /// Tokens.
        usage: Usage,
        /// The cost.
        cost: Micros,
    },
    /// The conversation so far.
    History(Vec<Message>),
    /// The turn is over: write its `done`.
    Ended(Ending),
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// How.
    pub status: TurnState,
    /// Why, in the harness's words.
    pub stop_reason: Option<String>,
    /// The text, put together.
    pub text: String,
    /// What went wrong, if something did; it was emitted as an `error`.
    pub error: Option<Problem>,
}

/// Why a running turn is being stopped.
#[derive(Debug)]
enum Stop {
    Caller,
    Because(Box<Problem>),
}

/// The most text of one turn, in bytes; a harness that says more is stopped.
const MAX_TEXT: usize = 32 << 20;
/// Tool calls that were approved for the session; more are asked about again.
const MAX_APPROVED: usize = 1000;

#[derive(Debug)]
struct Open {
    native: String,
    /// The tool and its input, for calls that can be approved for the session.
    call: Option<(String, String)>,
    expires: Timestamp,
}

#[derive(Debug)]
struct Turn {
    started: Timestamp,
    heard: Timestamp,
    /// When something last came of what was heard or told. Signs of life alone are none.
    stirred: Timestamp,
    /// Time spent waiting for people, which no limit counts.
    waited: Duration,
    waiting_since: Option<Timestamp>,
    retrying_since: Option<Timestamp>,
    last_trouble: Option<(Option<u16>, String)>,
    stop: Option<(Stop, Timestamp)>,
    open: BTreeMap<RequestId, Open>,
    steps: u32,
    parts: Vec<(String, String)>,
    /// Bytes of text said, also of parts that were taken back.
    length: usize,
}

/// The machine.
pub struct Machine {
    codec: Box<dyn Codec>,
    limits: Limits,
    mode: PermissionMode,
    new_request: Box<dyn FnMut() -> RequestId + Send>,
    started: Timestamp,
    ready: bool,
    gone: bool,
    /// Calls approved for the session. Harnesses have rules of their own for what is the same; the very same call is never
    /// asked about again, whatever they hold of it.
    approved: BTreeSet<(String, String)>,
    /// What waits for the process to be ready.
    held: Vec<Input>,
    turn: Option<Turn>,
    out: Out,
    /// What it was told, where its process can be saved.
    tape: Option<Tape>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("ready", &self.ready)
            .field("turn", &self.turn)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// For a process that was just started.
    pub fn new(
        codec: Box<dyn Codec>,
        limits: Limits,
        mode: PermissionMode,
        new_request: Box<dyn FnMut() -> RequestId + Send>,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) -> Self {
        let mut machine = Self {
            codec,
            limits,
            mode,
            new_request,
            started: now,
            ready: false,
            gone: false,
            approved: BTreeSet::new(),
            held: Vec::new(),
            turn: None,
            out: Out::default(),
            tape: None,
        };
        machine.codec.start(&mut machine.out);
        machine.drain(now, effects);
        machine
    }

    /// Notes from now on what it is told. Before the first step, so that nothing is missing.
    pub(super) fn record(&mut self, tape: Tape) {
        self.tape = Some(tape);
    }

    /// Everything that it was told; none if that was not noted, or was too much.
    pub(super) const fn tape(&self) -> Option<&Tape> {
        self.tape.as_ref()
    }

    /// Since when the turn waits for people, and the harness has said nothing and was told nothing.
    pub(super) fn still_since(&self) -> Option<Timestamp> {
        let turn = self.turn.as_ref()?;
        turn.waiting_since.map(|since| since.max(turn.stirred))
    }

    /// The questions that are open.
    pub(super) fn open(&self) -> impl Iterator<Item = RequestId> {
        self.turn.iter().flat_map(|turn| turn.open.keys().copied())
    }

    /// The permission mode that holds.
    pub(super) const fn mode(&self) -> PermissionMode {
        self.mode
    }

    /// Whether a turn runs.
    pub const fn busy(&self) -> bool {
        self.turn.is_some()
    }

    /// Whether the process is not ready yet.
    pub const fn starting(&self) -> bool {
        !self.ready && !self.gone
    }

    /// Whether the turn waits for a person.
    pub fn waiting(&self) -> bool {
        self.turn.as_ref().is_some_and(|turn| !turn.open.is_empty())
    }

    /// Whether the process is gone.
    pub const fn gone(&self) -> bool {
        self.gone
    }

    /// Whether this question is open.
    pub fn asks(&self, request: RequestId) -> bool {
        self.turn.as_ref().is_some_and(|turn| turn.open.contains_key(&request))
    }

    /// When to come back with [`Stimulus::Tick`] if nothing else happens.
    pub fn deadline(&self) -> Option<Timestamp> {
        let start = (!self.ready && !self.gone).then(|| self.started.plus(self.limits.start));
        let Some(turn) = &self.turn else { return start };
        let mut deadlines = vec![];
        deadlines.extend(start);
        if let Some((_, since)) = &turn.stop {
            deadlines.push(since.plus(OBEY));
        } else if turn.open.is_empty() {
            if self.ready {
                deadlines.push(turn.heard.plus(self.limits.silence));
            }
            deadlines.push(turn.started.plus(self.limits.turn).plus(turn.waited));
            deadlines.extend(turn.retrying_since.map(|since| since.plus(self.limits.retry)));
        } else {
            deadlines.extend(turn.open.values().map(|open| open.expires));
        }
        deadlines.into_iter().min()
    }

    /// One step.
    pub fn step(&mut self, now: Timestamp, stimulus: Stimulus<'_>, effects: &mut Vec<Effect>) {
        if self.tape.as_mut().is_some_and(|tape| !tape.note(now, &stimulus)) {
            self.tape = None;
        }
        match stimulus {
            Stimulus::Begin(input) => self.begin(now, input, effects),
            Stimulus::Steer(input) => self.feed(input),
            Stimulus::Answer { request, answer, by } => self.answer(now, request, answer, by, effects),
            Stimulus::Interrupt => self.stop(now, Stop::Caller, effects),
            Stimulus::Mode(mode) => {
                self.mode = mode;
                self.feed(Input::Mode(mode));
            }
            Stimulus::History => self.feed(Input::History),
            Stimulus::Output(bytes) => {
                if let Some(turn) = &mut self.turn {
                    turn.heard = now;
                }
                self.codec.output(bytes, &mut self.out);
            }
            Stimulus::Exited { status, stderr } => self.exited(now, status, stderr, effects),
            Stimulus::Tick => self.tick(now, effects),
            Stimulus::Limits(limits) => self.limit(limits),
            Stimulus::BudgetExhausted(problem) | Stimulus::Broken(problem) => {
                self.stop(now, Stop::Because(problem), effects);
            }
        }
        self.drain(now, effects);
    }

    fn begin(&mut self, now: Timestamp, input: Input, effects: &mut Vec<Effect>) {
        debug_assert!(self.turn.is_none(), "one turn at a time");
        self.turn = Some(Turn {
            started: now,
            heard: now,
            stirred: now,
            waited: Duration::ZERO,
            waiting_since: None,
            retrying_since: None,
            last_trouble: None,
            stop: None,
            open: BTreeMap::new(),
            steps: 0,
            parts: Vec::new(),
            length: 0,
        });
        if self.gone {
            let problem = Problem::new(ErrorCode::HarnessFailed, "the harness is gone");
            self.end(Some(problem), TurnState::Failed, None, effects);
        } else {
            self.feed(input);
        }
    }

    /// A question expires as long after it was asked as the new limits allow.
    fn limit(&mut self, limits: Limits) {
        let before = std::mem::replace(&mut self.limits, limits).approval;
        for open in self.turn.iter_mut().flat_map(|turn| turn.open.values_mut()) {
            open.expires = open.expires.minus(before).plus(limits.approval);
        }
    }

    /// To the codec now, or once the process is ready.
    fn feed(&mut self, input: Input) {
        if self.ready {
            self.codec.input(input, &mut self.out);
        } else if !self.gone && self.held.len() < MAX_OPEN {
            self.held.push(input);
        }
    }

    fn answer(
        &mut self,
        now: Timestamp,
        request: RequestId,
        answer: Answer,
        by: Answerer,
        effects: &mut Vec<Effect>,
    ) {
        let Some(turn) = &mut self.turn else { return };
        let Some(open) = turn.open.remove(&request) else { return };
        turn.heard = now;
        if let Some(call) = open.call
            && answer.decision == Decision::ApproveSession
            && self.approved.len() < MAX_APPROVED
        {
            self.approved.insert(call);
        }
        if turn.open.is_empty()
            && let Some(since) = turn.waiting_since.take()
        {
            turn.waited += now.since(since);
        }
        effects.push(Effect::Emit(
            Body::InputResolved { request_id: request, decision: answer.decision, by },
            None,
        ));
        self.codec.input(Input::Answer { request: open.native, answer }, &mut self.out);
    }

    /// Stops the running turn: asks first; kills when the process isn't up yet.
    fn stop(&mut self, now: Timestamp, why: Stop, effects: &mut Vec<Effect>) {
        let Some(turn) = &mut self.turn else { return };
        if turn.stop.is_some() {
            return;
        }
        turn.stop = Some((why, now));
        if self.ready {
            self.codec.input(Input::Interrupt, &mut self.out);
        } else {
            effects.push(Effect::Kill);
            self.stopped(effects);
        }
    }

    /// The turn was stopped on purpose and is over.
    fn stopped(&mut self, effects: &mut Vec<Effect>) {
        let why = self.turn.as_mut().and_then(|turn| turn.stop.take()).map(|(why, _)| why);
        match why {
            None | Some(Stop::Caller) => {
                self.end(None, TurnState::Interrupted, Some("interrupted".into()), effects);
            }
            Some(Stop::Because(problem)) => {
                let status = if problem.error == ErrorCode::BudgetExhausted {
                    TurnState::BudgetExhausted
                } else {
                    TurnState::Failed
                };
                self.end(Some(*problem), status, None, effects);
            }
        }
    }

    fn exited(&mut self, now: Timestamp, status: Option<i32>, stderr: &str, effects: &mut Vec<Effect>) {
        self.gone = true;
        let was_ready = std::mem::replace(&mut self.ready, false);
        self.held.clear();
        self.codec.exited(status, stderr, &mut self.out);
        self.drain(now, effects);
        if self.turn.is_none() {
            return;
        }
        if self.turn.as_ref().is_some_and(|turn| turn.stop.is_some()) {
            return self.stopped(effects);
        }
        let how =
            status.map_or_else(|| "was killed".to_owned(), |status| format!("ended with status {status}"));
        let tail = if stderr.is_empty() { String::new() } else { format!("; it wrote: {stderr}") };
        let (code, when) = if was_ready {
            (ErrorCode::HarnessFailed, "during the turn")
        } else {
            (ErrorCode::HarnessStartFailed, "before it was ready")
        };
        let problem = Problem::new(code, format!("the harness {how} {when}{tail}"));
        self.end(Some(problem), TurnState::Failed, None, effects);
    }

    fn tick(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if !self.ready && !self.gone && now >= self.started.plus(self.limits.start) {
            effects.push(Effect::Kill);
            let detail = format!("it was not ready after {} s", self.limits.start.as_secs());
            if self.turn.is_some() {
                let problem = Problem::new(ErrorCode::HarnessStartFailed, detail);
                self.end(Some(problem), TurnState::Failed, None, effects);
            }
            return;
        }
        let Some(turn) = &self.turn else { return };
        if let Some((_, since)) = &turn.stop {
            if now >= since.plus(OBEY) {
                effects.push(Effect::Kill);
                self.stopped(effects);
            }
            return;
        }
        let expired: Vec<_> =
            turn.open.iter().filter(|(_, open)| now >= open.expires).map(|(request, _)| *request).collect();
        if !expired.is_empty() {
            for request in expired {
                let answer = Answer {
                    decision: Decision::Deny,
                    message: Some("Nobody answered in time.".to_owned()),
                    updated_input: None,
                    answers: None,
                };
                let by = Answerer { kind: "karta".to_owned(), id: "expired".to_owned() };
                self.answer(now, request, answer, by, effects);
            }
            return;
        }
        if !turn.open.is_empty() {
            return;
        }
        let problem = if turn.retrying_since.is_some_and(|since| now >= since.plus(self.limits.retry)) {
            let (status, message) = turn.last_trouble.clone().unwrap_or_default();
            Problem::new(
                provider_code(status),
                format!("the model call was retried without success: {message}"),
            )
        } else if self.ready && now >= turn.heard.plus(self.limits.silence) {
            let seconds = self.limits.silence.as_secs();
            Problem::new(ErrorCode::HarnessSilent, format!("the harness said nothing for {seconds} s"))
        } else if now >= turn.started.plus(self.limits.turn).plus(turn.waited) {
            let seconds = self.limits.turn.as_secs();
            Problem::new(ErrorCode::TurnTimeout, format!("the turn ran for {seconds} s"))
        } else {
            return;
        };
        self.stop(now, Stop::Because(Box::new(problem)), effects);
    }

    /// Performs what the codec handed out, until it hands out nothing more.
    fn drain(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        loop {
            let out = std::mem::take(&mut self.out);
            if out.said.is_empty() && out.writes.is_empty() && out.native_session.is_none() {
                return;
            }
            if let Some(turn) = &mut self.turn {
                turn.stirred = now;
            }
            effects.extend(out.writes.into_iter().map(Effect::Write));
            effects.extend(out.native_session.map(Effect::Native));
            for (said, raw) in out.said {
                self.said(now, said, raw, effects);
            }
        }
    }

    fn said(&mut self, now: Timestamp, said: Said, raw: Option<Bytes>, effects: &mut Vec<Effect>) {
        match said {
            Said::Ready => {
                self.ready = true;
                if let Some(turn) = &mut self.turn {
                    turn.heard = now;
                }
                for input in std::mem::take(&mut self.held) {
                    self.codec.input(input, &mut self.out);
                }
                return;
            }
            Said::History(messages) => return effects.push(Effect::History(messages)),
            Said::Used { model, usage, cost } => return effects.push(Effect::Used { model, usage, cost }),
            _ => {}
        }
        if let (Said::Text { text, .. }, Some(turn)) = (&said, &mut self.turn) {
            turn.length += text.len();
            if turn.length > MAX_TEXT {
                let detail = format!("the harness said more than {} MiB in one turn", MAX_TEXT >> 20);
                let problem = Problem::new(ErrorCode::HarnessOutputInvalid, detail);
                return self.stop(now, Stop::Because(Box::new(problem)), effects);
            }
        }
        // What a harness says between turns (helpers that end late) belongs to none: it is kept as a notice only.
        let Some(turn) = &mut self.turn else {
            if let Said::Notice { subtype, detail } = said {
                effects.push(Effect::Emit(Body::System { subtype, detail }, raw));
            }
            return;
        };
        let body = match said {
            Said::Text { part, text, parent } => {
                turn.retrying_since = None;
                if parent.is_none() {
                    match turn.parts.last_mut().filter(|(id, _)| *id == part) {
                        Some((_, whole)) => whole.push_str(&text),
                        None => turn.parts.push((part.clone(), text.clone())),
                    }
                }
                Body::Text { part: Chunk { id: part, text, discarded: false }, parent_tool_use_id: parent }
            }
            Said::Reasoning { part, text, parent } => {
                turn.retrying_since = None;
                Body::Reasoning {
                    part: Chunk { id: part, text, discarded: false },
                    parent_tool_use_id: parent,
                }
            }
            Said::Discarded { part, reasoning } => {
                turn.parts.retain(|(id, _)| *id != part);
                let part = Chunk { id: part, text: String::new(), discarded: true };
                if reasoning {
                    Body::Reasoning { part, parent_tool_use_id: None }
                } else {
                    Body::Text { part, parent_tool_use_id: None }
                }
            }
            Said::ToolUse { call, tool, input, parent } => Body::ToolUse {
                tool_use_id: call,
                tool_name: tool,
                tool_input: cut(input, self.limits.output).0,
                parent_tool_use_id: parent,
            },
            Said::ToolResult { call, output, is_error } => {
                let (output, truncated) = cut(output, self.limits.output);
                Body::ToolResult { tool_use_id: call, output, is_error, truncated }
            }
            Said::StepStart { description } => {
                turn.retrying_since = None;
                turn.steps += 1;
                Body::StepStart { step_index: turn.steps - 1, description }
            }
            Said::StepFinish { usage } => {
                Body::StepFinish { step_index: turn.steps.saturating_sub(1), usage }
            }
            Said::Asked { request, ask } => return self.asked(now, request, ask, raw, effects),
            Said::Withdrawn { request } => return self.withdrawn(now, &request, effects),
            Said::Retrying { attempt, status, message, wait_ms } => {
                turn.retrying_since.get_or_insert(now);
                turn.last_trouble = Some((status, message.clone()));
                Body::System {
                    subtype: "retrying".to_owned(),
                    detail: json!({"attempt": attempt, "status": status, "message": message, "wait_ms": wait_ms}),
                }
            }
            Said::AgentChanged { from, to } => Body::AgentChanged { from, to },
            Said::Notice { subtype, detail } => {
                Body::System { subtype, detail: cut(detail, self.limits.output).0 }
            }
            Said::Ended(end) => return self.ended(end, effects),
            Said::Ready | Said::History(_) | Said::Used { .. } => return,
        };
        effects.push(Effect::Emit(body, raw));
    }

    fn asked(
        &mut self,
        now: Timestamp,
        native: String,
        ask: karta_harness::Ask,
        raw: Option<Bytes>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(turn) = &mut self.turn else { return };
        let call = (ask.kind == AskKind::ToolUse).then(|| (ask.tool.clone(), ask.tool_input.to_string()));
        let known = call.as_ref().is_some_and(|call| self.approved.contains(call));
        let decided = match self.mode {
            _ if turn.stop.is_some() || turn.open.len() >= MAX_OPEN => Some(Decision::Deny),
            _ if known => Some(Decision::ApproveOnce),
            PermissionMode::AllowAll if ask.kind == AskKind::ToolUse => Some(Decision::ApproveOnce),
            PermissionMode::DenyAll => Some(Decision::Deny),
            _ => None,
        };
        if let Some(decision) = decided {
            let message = (decision == Decision::Deny).then(|| "Not allowed in this session.".to_owned());
            let answer = Answer { decision, message, updated_input: None, answers: None };
            return self.codec.input(Input::Answer { request: native, answer }, &mut self.out);
        }
        let expires = now.plus(self.limits.approval);
        let request_id = (self.new_request)();
        if let Some(tape) = &mut self.tape {
            tape.request(request_id);
        }
        let options = match ask.kind {
            AskKind::ToolUse => vec![Decision::ApproveOnce, Decision::ApproveSession, Decision::Deny],
            AskKind::Question | AskKind::Plan => vec![Decision::ApproveOnce, Decision::Deny],
        };
        turn.open.insert(request_id, Open { native, call, expires });
        turn.waiting_since.get_or_insert(now);
        effects.push(Effect::Emit(
            Body::InputRequired(InputRequired {
                request_id,
                kind: ask.kind,
                tool: ask.tool,
                tool_input: cut(ask.tool_input, self.limits.output).0,
                message: ask.message,
                options,
                expires_at: Some(expires),
            }),
            raw,
        ));
    }

    fn withdrawn(&mut self, now: Timestamp, native: &str, effects: &mut Vec<Effect>) {
        let Some(turn) = &mut self.turn else { return };
        let Some(request) =
            turn.open.iter().find(|(_, open)| open.native == native).map(|(request, _)| *request)
        else {
            return;
        };
        turn.open.remove(&request);
        if turn.open.is_empty()
            && let Some(since) = turn.waiting_since.take()
        {
            turn.waited += now.since(since);
        }
        effects.push(Effect::Emit(withdrawn_by_harness(request), None));
    }

    fn ended(&mut self, end: End, effects: &mut Vec<Effect>) {
        let stopping = self.turn.as_ref().is_some_and(|turn| turn.stop.is_some());
        match end {
            End::Completed { stop_reason } if !stopping => {
                self.end(None, TurnState::Completed, stop_reason, effects);
            }
            // A turn that ends well while it is being stopped for a reason still ends with that reason.
            End::Completed { stop_reason } => {
                if matches!(self.turn.as_ref().and_then(|turn| turn.stop.as_ref()), Some((Stop::Caller, _))) {
                    self.end(None, TurnState::Completed, stop_reason, effects);
                } else {
                    self.stopped(effects);
                }
            }
            End::Interrupted => self.stopped(effects),
            End::Failed { .. } if stopping => self.stopped(effects),
            End::Failed { code, message } => {
                // What can't be read now may not be readable later: the next turn gets a process that is new.
                if code == ErrorCode::HarnessOutputInvalid {
                    effects.push(Effect::Kill);
                }
                let status = if code == ErrorCode::BudgetExhausted {
                    TurnState::BudgetExhausted
                } else {
                    TurnState::Failed
                };
                self.end(Some(Problem::new(code, message)), status, None, effects);
            }
        }
    }

    /// The one place where a turn ends.
    fn end(
        &mut self,
        error: Option<Problem>,
        status: TurnState,
        stop_reason: Option<String>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(turn) = self.turn.take() else { return };
        for request in turn.open.into_keys() {
            effects.push(Effect::Emit(withdrawn_by_harness(request), None));
        }
        if let Some(problem) = &error {
            effects.push(Effect::Emit(Body::Error(problem.clone()), None));
        }
        let text = turn.parts.into_iter().map(|(_, text)| text).collect();
        effects.push(Effect::Ended(Ending { status, stop_reason, text, error }));
    }
}

fn withdrawn_by_harness(request_id: RequestId) -> Body {
    let by = Answerer { kind: "karta".to_owned(), id: "withdrawn".to_owned() };
    Body::InputResolved { request_id, decision: Decision::Deny, by }
}

/// The code for a provider's HTTP status.
const fn provider_code(status: Option<u16>) -> ErrorCode {
    match status {
        Some(401 | 403) => ErrorCode::ProviderKeyRejected,
        Some(402) => ErrorCode::BudgetExhausted,
        Some(429) => ErrorCode::ProviderRateLimited,
        Some(400..=499) => ErrorCode::ProviderRejected,
        Some(_) => ErrorCode::ProviderOverloaded,
        None => ErrorCode::ProviderUnreachable,
    }
}

/// A value that fits: long strings are cut at a character, anything else too long becomes its own cut text.
fn cut(value: Value, limit: usize) -> (Value, bool) {
    match value {
        Value::String(text) if text.len() > limit => (Value::String(cut_text(&text, limit)), true),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => (value, false),
        other => {
            let text = other.to_string();
            if text.len() > limit { (Value::String(cut_text(&text, limit)), true) } else { (other, false) }
        }
    }
}

fn cut_text(text: &str, limit: usize) -> String {
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
