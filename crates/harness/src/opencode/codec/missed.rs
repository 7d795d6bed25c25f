//! What the event stream did not tell: the sandbox was saved and goes on, and between the last event that was heard and the first of the
//! new stream the server may have said more. It repeats no event, so it is asked how things stand.
//!
//! The answers come beside the new stream, before or after what it tells. So they may only add: what the stream has told of is newer, a
//! text that may have a hole takes no pieces until the stream tells it whole, and only what was open when the stream was opened can turn
//! out to be closed.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::wire::{self, ToolRef};
use super::{Purpose, ServeCodec, notice, words};
use crate::codec::{Out, Said};

/// How many messages are asked for. While a question is open an agent begins none, so the newest is most likely the only one concerned.
const MESSAGES: usize = 10;
/// Sub-agents that are asked about.
const MAX_CHILDREN: usize = 32;
/// Messages that are known to be newer.
const MAX_HEARD: usize = 1024;

/// What is known while the server is asked.
#[derive(Debug)]
pub(super) struct Missed {
    permissions: Vec<String>,
    questions: Vec<String>,
    heard: BTreeSet<String>,
}

/// What it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Messages,
    MessagesOfChild,
    Permissions,
    Questions,
}

impl Missed {
    /// The new stream told of this message.
    pub(super) fn heard(&mut self, message: &str) {
        if self.heard.len() < MAX_HEARD {
            self.heard.insert(message.to_owned());
        }
    }
}

impl ServeCodec {
    /// The event stream was opened again, and nothing was said about the end of the one before.
    pub(super) fn ask_what_was_missed(&mut self, out: &mut Out) {
        if self.turn.is_none() {
            return;
        }
        self.parts.lose_place();
        self.missed = Some(Missed {
            permissions: self.asks.open(true).cloned().collect(),
            questions: self.asks.open(false).cloned().collect(),
            heard: BTreeSet::new(),
        });
        let path = self.about_session(&format!("/message?limit={MESSAGES}"));
        self.ask(What::Messages, path, out);
    }

    fn ask(&mut self, what: What, path: String, out: &mut Out) {
        self.request(Purpose::Missed(self.turns, what), "GET", path, Value::Null, out);
    }

    /// The server says how things stand.
    pub(super) fn missed(&mut self, what: What, answer: Result<(u16, Value), String>, out: &mut Out) {
        let told = match answer {
            Ok((200..=299, Value::Array(told))) => Some(told),
            Ok((status, body)) => {
                notice("missed", Value::String(format!("answered {status}: {}", words(&body))), out);
                None
            }
            Err(error) => {
                notice("missed", Value::String(error), out);
                None
            }
        };
        match what {
            What::Messages => {
                told.into_iter().flatten().for_each(|entry| self.missed_message(&entry, out));
                self.ask_about_the_rest(out);
            }
            What::MessagesOfChild => {
                told.into_iter().flatten().for_each(|entry| self.missed_message(&entry, out));
            }
            What::Permissions | What::Questions => {
                if let Some(told) = told {
                    self.missed_questions(what == What::Permissions, &told, out);
                }
            }
        }
    }

    /// Who asks is known now.
    fn ask_about_the_rest(&mut self, out: &mut Out) {
        let plain = |id: &&String| id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let children: Vec<String> = self.parts.children().filter(plain).take(MAX_CHILDREN).cloned().collect();
        for child in children {
            let path = format!("/session/{child}/message?limit={MESSAGES}");
            self.ask(What::MessagesOfChild, path, out);
        }
        self.ask(What::Permissions, "/permission".to_owned(), out);
        self.ask(What::Questions, "/question".to_owned(), out);
        self.poll(out);
    }

    /// Whether a message is of the turn that runs: ids rise.
    fn is_of_turn(&self, message: &str) -> bool {
        let first = self.turn.as_ref().and_then(|turn| turn.first.as_deref());
        first.is_some_and(|first| message > first)
    }

    fn missed_message(&mut self, entry: &Value, out: &mut Out) {
        let Some(info) = wire::message(entry.get("info")) else { return };
        if !self.concerns(&info.session) || !self.is_of_turn(&info.id) {
            return;
        }
        if self.missed.as_ref().is_some_and(|missed| !missed.heard.contains(&info.id)) {
            self.message_event(&info, None, out);
        }
        let parts = entry.get("parts").and_then(Value::as_array);
        for part in parts.into_iter().flatten().filter_map(|part| wire::part(Some(part))) {
            if part.message == info.id && part.session == info.session {
                self.parts.missed(part, &mut |said| out.say(said));
            }
        }
    }

    /// Whether a question is for us: of our session or a sub-agent's, about a call of this turn.
    fn is_for_us(&self, session: &str, tool: Option<&ToolRef>) -> bool {
        let of_turn = |tool: &ToolRef| tool.message.is_empty() || self.is_of_turn(&tool.message);
        self.concerns(session) && tool.is_none_or(of_turn)
    }

    fn missed_questions(&mut self, permissions: bool, told: &[Value], out: &mut Out) {
        let mut open = BTreeSet::new();
        for value in told {
            let asked = if permissions {
                let Some(asked) = wire::permission(value) else { continue };
                open.insert(asked.id.clone());
                let ours = self.is_for_us(&asked.session, asked.tool.as_ref());
                ours.then(|| self.asks.permission(asked, self.mode, &self.parts)).flatten()
            } else {
                let Some(asked) = wire::question(value) else { continue };
                open.insert(asked.id.clone());
                let ours = self.is_for_us(&asked.session, asked.tool.as_ref());
                ours.then(|| self.asks.question(asked, self.mode, &self.parts)).flatten()
            };
            if let Some(asked) = asked {
                self.asked(asked, None, out);
            }
        }
        let Some(missed) = &mut self.missed else { return };
        let before =
            std::mem::take(if permissions { &mut missed.permissions } else { &mut missed.questions });
        for request in before.into_iter().filter(|request| !open.contains(request)) {
            if self.asks.closed(&request) {
                out.say(Said::Withdrawn { request });
            }
        }
        // What waited for its call to be said: it may be by now.
        for said in self.asks.release(&self.parts, false) {
            out.say(said);
        }
    }
}
