//! The codec: requests to the server and their answers; its events are read in `events`.

mod events;
mod missed;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use karta_types::ErrorCode;
use karta_types::message::Content;
use karta_types::session::PermissionMode;
use serde_json::{Value, json};

use super::asks::{Asks, Reply};
use super::command::THINKING;
use super::history;
use super::parts::Parts;
use super::turn::{Interrupt, Next, Turn};
use super::wire::{shortened, text};
use crate::codec::{Codec, End, Input, Out, Said};
use crate::frame::http::{Request, ToCodec};
use crate::frame::lines::{Line, Lines};
use crate::launch::{Launch, Native};
use missed::{Missed, What};

/// Requests without an answer that are remembered.
const MAX_REQUESTS: usize = 4096;
/// Inputs that wait for the session to open.
const MAX_WAITING: usize = 256;
/// The pause before each question what the server does, in milliseconds.
const POLL_MS: u64 = 100;
/// How often the answer to a question is told to the server whose connections break off.
const REPLIES: u8 = 4;
/// The pause before it is told again, in milliseconds.
const REPLY_AGAIN_MS: u64 = 250;
/// How many messages of history are asked for: fewer after a body that was too large.
const HISTORY_LIMITS: &[u32] = &[1000, 100, 10];

/// One `opencode serve`.
#[derive(Debug)]
pub(super) struct ServeCodec {
    lines: Lines,
    title: String,
    native: Native,
    /// The slash commands that the folder defines.
    commands: BTreeSet<String>,
    mode: PermissionMode,
    phase: Phase,
    session: String,
    said_ready: bool,
    next_id: u64,
    requests: BTreeMap<u64, Purpose>,
    waiting: VecDeque<Waiting>,
    turn: Option<Turn>,
    /// How many turns there were.
    turns: u64,
    parts: Parts,
    asks: Asks,
    /// The server is asked what was missed.
    missed: Option<Missed>,
    /// The newest prompt that the server took. Its ids rise.
    newest_prompt: String,
    agent: Option<String>,
    /// Whether the session holds rules of ours that forbid changes.
    planned: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// The server is not reached (yet, or any more).
    Away,
    /// It is asked for the session.
    Opening,
    /// It takes messages.
    Open,
    /// It has no session for us.
    Broken(ErrorCode, String),
}

/// What an answer is for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Purpose {
    Open,
    Prompt,
    Command,
    /// Of the turn with this number.
    Abort(u64),
    /// For the turn with this number.
    Poll(u64),
    /// To a question of the turn with this number; so many times it was told.
    Reply(u64, Reply, u8),
    /// The rules of the permission mode.
    Rules,
    History(usize),
    /// For the turn with this number: what of it may have been missed.
    Missed(u64, What),
}

#[derive(Debug)]
enum Waiting {
    Prompt { content: Vec<Content>, agent: Option<String>, thinking: bool },
    History,
}

impl ServeCodec {
    pub(super) fn new(launch: &Launch<'_>, commands: BTreeSet<String>) -> Self {
        let session = match &launch.native {
            Native::New(_) => String::new(),
            Native::Resume(id) => id.clone(),
        };
        Self {
            lines: Lines::default(),
            title: launch.title.to_owned(),
            native: launch.native.clone(),
            commands,
            mode: launch.permission_mode,
            phase: Phase::Away,
            session,
            said_ready: false,
            next_id: 1,
            requests: BTreeMap::new(),
            waiting: VecDeque::new(),
            turn: None,
            turns: 0,
            parts: Parts::new(),
            asks: Asks::new(),
            missed: None,
            newest_prompt: String::new(),
            agent: None,
            planned: false,
        }
    }

    fn request(&mut self, purpose: Purpose, method: &str, path: String, body: Value, out: &mut Out) {
        let id = self.next_id;
        self.next_id += 1;
        let delay_ms = match purpose {
            // The server needs a moment to close what it stops.
            Purpose::Poll(_) => POLL_MS,
            Purpose::Reply(_, _, 2..) => REPLY_AGAIN_MS,
            _ => 0,
        };
        let long = purpose == Purpose::Command;
        self.requests.insert(id, purpose);
        if self.requests.len() > MAX_REQUESTS {
            self.requests.pop_first();
        }
        let request = Request { id, method: method.to_owned(), path, body, delay_ms, long };
        if let Ok(value) = serde_json::to_value(&request) {
            out.write_json(&value);
        }
    }

    fn about_session(&self, what: &str) -> String {
        format!("/session/{}{what}", self.session)
    }

    fn reply(&mut self, reply: Reply, out: &mut Out) {
        self.reply_once_more(reply, 1, out);
    }

    fn reply_once_more(&mut self, reply: Reply, times: u8, out: &mut Out) {
        let (path, body) = (reply.path.clone(), reply.body.clone());
        self.request(Purpose::Reply(self.turns, reply, times), "POST", path, body, out);
    }

    /// The server says that this question was answered: nothing more has to be told about it.
    fn reply_arrived(&mut self, request: &str) {
        self.requests
            .retain(|_, purpose| !matches!(purpose, Purpose::Reply(_, reply, _) if reply.is_to(request)));
    }

    fn abort(&mut self, out: &mut Out) {
        let path = self.about_session("/abort");
        self.request(Purpose::Abort(self.turns), "POST", path, Value::Null, out);
    }

    fn poll(&mut self, out: &mut Out) {
        let Some(turn) = &mut self.turn else { return };
        if !std::mem::replace(&mut turn.polling, true) {
            self.request(Purpose::Poll(self.turns), "GET", "/session/status".to_owned(), Value::Null, out);
        }
    }

    fn go_on(&mut self, next: &Next, out: &mut Out) {
        match next {
            Next::Wait => {}
            Next::Poll => self.poll(out),
            Next::Abort => self.stop(out),
            Next::End => self.end_turn(out),
        }
    }

    /// Ends the turn in the way that it went.
    fn end_turn(&mut self, out: &mut Out) {
        if let Some(turn) = self.turn.take() {
            self.close_turn(turn.end(), out);
        }
    }

    /// Ends the turn because nothing more can be learned of it.
    fn fail_turn(&mut self, code: ErrorCode, message: String, out: &mut Out) {
        if self.turn.take().is_some() {
            self.close_turn(End::Failed { code, message }, out);
        }
    }

    fn close_turn(&mut self, end: End, out: &mut Out) {
        self.parts.end_turn(&mut |said| out.say(said));
        for request in self.asks.end_turn() {
            out.say(Said::Withdrawn { request });
        }
        self.missed = None;
        self.waiting.retain(|waiting| matches!(waiting, Waiting::History));
        out.say(Said::Ended(end));
    }

    /// A turn that can't be followed any more: the server must not go on with it unseen.
    fn lose_turn(&mut self, code: ErrorCode, message: String, out: &mut Out) {
        if self.turn.is_some() {
            if self.phase == Phase::Open {
                self.abort(out);
            }
            self.fail_turn(code, message, out);
        }
    }

    /// Tells the server to stop, or notes that it must as soon as it works.
    fn stop(&mut self, out: &mut Out) {
        let Some(turn) = &mut self.turn else { return };
        turn.interrupt = match turn.interrupt {
            _ if self.phase != Phase::Open => {
                turn.interrupt = Interrupt::Wanted;
                self.end_turn(out);
                return;
            }
            _ if !turn.busy => Interrupt::Wanted,
            Interrupt::Sent(times) => Interrupt::Sent(times.saturating_add(1)),
            Interrupt::None | Interrupt::Wanted => Interrupt::Sent(1),
        };
        if turn.interrupt != Interrupt::Wanted {
            self.abort(out);
        }
    }

    fn message(&mut self, content: Vec<Content>, agent: Option<String>, thinking: bool, out: &mut Out) {
        if self.turn.is_none() {
            self.turns += 1;
        }
        let turn = self.turn.get_or_insert_default();
        turn.prompts = turn.prompts.saturating_add(1);
        match &self.phase {
            Phase::Broken(code, reason) => {
                let (code, reason) = (*code, reason.clone());
                self.fail_turn(code, reason, out);
            }
            Phase::Open => self.prompt(&content, agent, thinking, out),
            Phase::Away | Phase::Opening => {
                self.wait(Waiting::Prompt { content, agent, thinking }, out);
            }
        }
    }

    fn wait(&mut self, waiting: Waiting, out: &mut Out) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(waiting);
        } else {
            notice("waiting_full", Value::Null, out);
        }
    }

    fn prompt(&mut self, content: &[Content], agent: Option<String>, thinking: bool, out: &mut Out) {
        let planning = self.mode == PermissionMode::Plan;
        if let Some((command, arguments)) = self.slash(content) {
            if planning != self.planned {
                let action = if planning { "deny" } else { "ask" };
                let rule =
                    |permission: &str| json!({"permission": permission, "pattern": "*", "action": action});
                let path = self.about_session("");
                let body = json!({"permission": [rule("edit"), rule("bash")]});
                self.request(Purpose::Rules, "PATCH", path, body, out);
                self.planned = planning;
            }
            let mut body = json!({"command": command, "arguments": arguments});
            let files: Vec<Value> = content.iter().filter_map(file).collect();
            if !files.is_empty() {
                body["parts"] = files.into();
            }
            if let Some(agent) = agent {
                body["agent"] = agent.into();
            }
            let path = self.about_session("/command");
            self.request(Purpose::Command, "POST", path, body, out);
            return;
        }
        let mut body = json!({"parts": content.iter().map(part).collect::<Vec<_>>()});
        if let Some(agent) = agent {
            body["agent"] = agent.into();
        }
        if thinking {
            body["variant"] = THINKING.into();
        }
        // The rules given with a prompt take the place of those the session had: one for a tool that does not exist clears them.
        if planning {
            body["tools"] = json!({"edit": false, "bash": false});
        } else if self.planned {
            body["tools"] = json!({"none": false});
        }
        self.planned = planning;
        let path = self.about_session("/prompt_async");
        self.request(Purpose::Prompt, "POST", path, body, out);
    }

    /// The slash command in a message and what follows it, if the folder defines it.
    fn slash(&self, content: &[Content]) -> Option<(String, String)> {
        let Some(Content::Text { text }) = content.first() else { return None };
        let line = text.strip_prefix('/')?;
        let (name, arguments) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        self.commands.contains(name).then(|| (name.to_owned(), arguments.trim().to_owned()))
    }

    fn history(&mut self, attempt: usize, out: &mut Out) {
        match HISTORY_LIMITS.get(attempt) {
            Some(limit) => {
                let path = self.about_session(&format!("/message?limit={limit}"));
                self.request(Purpose::History(attempt), "GET", path, Value::Null, out);
            }
            None => out.say(Said::History(Vec::new())),
        }
    }

    fn line(&mut self, line: Line, out: &mut Out) {
        let line = match line {
            Line::Whole(line) if line.is_empty() => return,
            Line::Whole(line) => line,
            Line::TooLong(bytes) => {
                let reason = format!("a line of {bytes} bytes is over the limit");
                notice("line_too_long", json!({"bytes": bytes}), out);
                return self.lose_turn(ErrorCode::HarnessOutputInvalid, reason, out);
            }
        };
        match serde_json::from_slice::<ToCodec>(&line) {
            Ok(ToCodec::Event { event }) => self.event(event, &line, out),
            Ok(ToCodec::Answer { id, status, body }) => self.answer(id, Ok((status, body)), out),
            Ok(ToCodec::Failed { id, error }) => self.answer(id, Err(shortened(&error)), out),
            Ok(ToCodec::Ready { .. }) => self.reached(out),
            Ok(ToCodec::Closed { closed }) => {
                let reason = format!("the event stream of the server ended: {}", shortened(&closed));
                self.lose_turn(ErrorCode::HarnessFailed, reason, out);
                if self.phase == Phase::Open || self.phase == Phase::Opening {
                    self.phase = Phase::Away;
                }
            }
            Ok(ToCodec::Log { log }) => notice("log", Value::String(shortened(&log)), out),
            Err(error) => {
                let start = shortened(&String::from_utf8_lossy(&line[..line.len().min(200)]));
                let reason = format!("a line can't be read ({error}); it starts with: {start}");
                notice("unreadable_line", Value::String(reason.clone()), out);
                self.lose_turn(ErrorCode::HarnessOutputInvalid, reason, out);
            }
        }
    }

    /// The server can be talked to.
    fn reached(&mut self, out: &mut Out) {
        if self.phase == Phase::Open {
            return self.ask_what_was_missed(out);
        }
        if self.phase != Phase::Away {
            return;
        }
        if self.said_ready {
            self.phase = Phase::Open;
            return self.open_up(out);
        }
        self.phase = Phase::Opening;
        match &self.native {
            Native::New(_) => {
                let body = json!({"title": self.title});
                self.request(Purpose::Open, "POST", "/session".to_owned(), body, out);
            }
            Native::Resume(_) => {
                let path = self.about_session("");
                self.request(Purpose::Open, "GET", path, Value::Null, out);
            }
        }
    }

    /// The session is there, or can't be had.
    fn opened(&mut self, answer: Result<(u16, Value), String>, out: &mut Out) {
        if self.phase != Phase::Opening {
            return;
        }
        let id = answer.as_ref().ok().map(|(_, body)| text(body.get("id"))).unwrap_or_default();
        let plain =
            !id.is_empty() && id.len() <= 200 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        match answer {
            Ok((200..=299, body)) if plain => {
                let rules = body.get("permission").and_then(Value::as_array);
                self.planned = rules.is_some_and(|rules| !rules.is_empty());
                self.session.clone_from(&id);
                out.native_session = Some(id);
                self.phase = Phase::Open;
            }
            Ok((404, _)) => {
                let reason = format!("the harness has no session `{}` any more", self.session);
                self.phase = Phase::Broken(ErrorCode::HarnessFailed, reason);
            }
            Ok((status, body)) => {
                let reason = format!("opening a session was answered {status}: {}", words(&body));
                self.phase = Phase::Broken(ErrorCode::HarnessStartFailed, reason);
            }
            Err(error) => {
                let reason = format!("opening a session failed: {error}");
                self.phase = Phase::Broken(ErrorCode::HarnessStartFailed, reason);
            }
        }
        if !std::mem::replace(&mut self.said_ready, true) {
            out.say(Said::Ready);
        }
        self.open_up(out);
    }

    /// What waited goes on.
    fn open_up(&mut self, out: &mut Out) {
        let broken = match &self.phase {
            Phase::Broken(code, reason) => Some((*code, reason.clone())),
            _ => None,
        };
        if let Some((code, reason)) = broken.clone() {
            self.fail_turn(code, reason, out);
        }
        for waiting in std::mem::take(&mut self.waiting) {
            match waiting {
                Waiting::History if broken.is_some() => out.say(Said::History(Vec::new())),
                Waiting::History => self.history(0, out),
                Waiting::Prompt { content, agent, thinking } => self.prompt(&content, agent, thinking, out),
            }
        }
    }

    fn answer(&mut self, id: u64, answer: Result<(u16, Value), String>, out: &mut Out) {
        let Some(purpose) = self.requests.remove(&id) else { return };
        match purpose {
            Purpose::Open => self.opened(answer, out),
            Purpose::Prompt | Purpose::Command => {
                let reason = match answer {
                    Ok((200..=299, _)) => return,
                    // A command is answered when its turn is over; the events tell how that went.
                    _ if purpose == Purpose::Command && self.turn.as_ref().is_none_or(|turn| turn.busy) => {
                        return;
                    }
                    Ok((status, body)) => format!("the message was answered {status}: {}", words(&body)),
                    Err(error) => format!("the message could not be sent: {error}"),
                };
                let Some(turn) = &mut self.turn else { return };
                turn.prompts = turn.prompts.saturating_sub(1);
                if turn.busy {
                    notice("message_refused", Value::String(reason), out);
                } else {
                    self.fail_turn(ErrorCode::HarnessFailed, reason, out);
                }
            }
            Purpose::Abort(turn) | Purpose::Poll(turn) | Purpose::Missed(turn, _) if turn != self.turns => {}
            Purpose::Missed(_, what) => self.missed(what, answer, out),
            Purpose::Abort(_) => self.poll(out),
            Purpose::Poll(_) => {
                let works = match &answer {
                    Ok((_, body)) => {
                        let kind = text(body.get(&self.session).and_then(|status| status.get("type")));
                        !kind.is_empty() && kind != "idle"
                    }
                    Err(_) => false,
                };
                if let Some(turn) = &mut self.turn {
                    let next = turn.polled(works);
                    self.go_on(&next, out);
                }
            }
            Purpose::Reply(turn, reply, times) => match answer {
                Ok((400.., body)) => notice("reply_refused", Value::String(words(&body)), out),
                Ok(_) => {}
                Err(_) if turn != self.turns || self.turn.is_none() => {}
                // Whether the server took it is not known. One that did takes it for nothing new, or refuses it.
                Err(_) if times < REPLIES => self.reply_once_more(reply, times + 1, out),
                Err(error) => {
                    let reason = format!("the answer to a question could not be sent: {error}");
                    self.lose_turn(ErrorCode::HarnessFailed, reason, out);
                }
            },
            Purpose::Rules => match answer {
                Ok((400.., body)) => notice("reply_refused", Value::String(words(&body)), out),
                Ok(_) => {}
                // The server must not go on under rules that don't hold any more.
                Err(error) => {
                    let reason = format!("the rules of the permission mode could not be sent: {error}");
                    self.lose_turn(ErrorCode::HarnessFailed, reason, out);
                }
            },
            Purpose::History(attempt) => match answer {
                Ok((200..=299, body)) => out.say(Said::History(history::read(body))),
                Ok((status, body)) => {
                    let reason = format!("reading the history was answered {status}: {}", words(&body));
                    notice("history_failed", Value::String(reason), out);
                    out.say(Said::History(Vec::new()));
                }
                Err(error) => {
                    notice("history_failed", Value::String(error), out);
                    self.history(attempt + 1, out);
                }
            },
        }
    }
}

impl Codec for ServeCodec {
    /// Nothing: the platform says when the server is reached.
    fn start(&mut self, _out: &mut Out) {}

    fn input(&mut self, input: Input, out: &mut Out) {
        match input {
            Input::Message { id: _, content, agent, thinking } => self.message(content, agent, thinking, out),
            Input::Answer { request, answer } => {
                if let Some(reply) = self.asks.answer(&request, &answer) {
                    self.reply(reply, out);
                }
            }
            // A server ends by itself when it is told to (SIGTERM): on closing, only a running turn is stopped.
            Input::Interrupt | Input::Close => self.stop(out),
            Input::Mode(mode) => self.mode = mode,
            Input::History => match &self.phase {
                Phase::Open => self.history(0, out),
                Phase::Broken(..) => out.say(Said::History(Vec::new())),
                Phase::Away | Phase::Opening => self.wait(Waiting::History, out),
            },
        }
    }

    fn output(&mut self, bytes: &[u8], out: &mut Out) {
        let mut lines = std::mem::take(&mut self.lines);
        lines.feed(bytes, |line| self.line(line, out));
        self.lines = lines;
    }

    fn exited(&mut self, status: Option<i32>, stderr_tail: &str, out: &mut Out) {
        let how =
            status.map_or_else(|| "was killed".to_owned(), |status| format!("ended with status {status}"));
        let tail = stderr_tail.trim();
        let reason = shortened(&if tail.is_empty() {
            format!("OpenCode {how}")
        } else {
            format!("OpenCode {how}; it printed last: {tail}")
        });
        let code = if self.said_ready { ErrorCode::HarnessFailed } else { ErrorCode::HarnessStartFailed };
        self.fail_turn(code, reason.clone(), out);
        self.waiting.clear();
        self.requests.clear();
        self.phase = Phase::Broken(code, reason);
    }
}

fn notice(subtype: &str, detail: Value, out: &mut Out) {
    out.say(Said::Notice { subtype: subtype.to_owned(), detail });
}

/// What an error's body says.
fn words(body: &Value) -> String {
    let inner = body.pointer("/data/message").or_else(|| body.get("message")).and_then(Value::as_str);
    shortened(&inner.map_or_else(|| body.to_string(), str::to_owned))
}

fn part(content: &Content) -> Value {
    match content {
        Content::Text { text } => json!({"type": "text", "text": text}),
        Content::Image { .. } => file(content).unwrap_or_default(),
        Content::File { name, .. } => {
            json!({"type": "text", "text": format!("The attached file is `{name}`.")})
        }
    }
}

fn file(content: &Content) -> Option<Value> {
    let Content::Image { media_type, data } = content else { return None };
    Some(json!({"type": "file", "mime": media_type, "url": format!("data:{media_type};base64,{data}")}))
}
