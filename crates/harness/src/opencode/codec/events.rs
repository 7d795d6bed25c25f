//! What the event stream tells.

use bytes::Bytes;
use serde_json::Value;

use super::super::asks::Asked;
use super::super::turn::{Interrupt, Turn};
use super::super::wire::{Event, Fault, Info, Status, shortened};
use super::super::{failure, wire};
use super::ServeCodec;
use crate::codec::{Out, Said};

/// A notice with more detail than this, in bytes of its line, goes without.
const MAX_DETAIL: usize = 64 << 10;

impl ServeCodec {
    /// Reads one event, which came in this line.
    pub(super) fn event(&mut self, event: Value, line: &Bytes, out: &mut Out) {
        let raw = own_line(line);
        let mut say = |said: Said| out.say_raw(said, &raw);
        match wire::read(event) {
            Event::Quiet => {}
            Event::Delta(delta) => self.parts.delta(&delta, &mut say),
            Event::Part(part) => {
                if self.turn.is_some() && self.concerns(&part.session) {
                    self.parts.part(*part, &mut say);
                    self.ask_held(false, &raw, out);
                }
            }
            Event::Heartbeat => self.ask_held(true, &raw, out),
            Event::PartRemoved { session, part } => {
                if self.concerns(&session) {
                    self.parts.removed(&part, &mut say);
                }
            }
            Event::Message(info) => {
                if let Some(missed) = &mut self.missed {
                    missed.heard(&info.id);
                }
                self.message_event(&info, Some(&raw), out);
            }
            Event::Session { id, parent } => {
                if let Some(parent) = parent
                    && self.turn.is_some()
                    && self.concerns(&parent)
                {
                    self.parts.child(&id, &parent);
                }
            }
            Event::Status { session, status } => {
                if session == self.session {
                    self.status(&status, &raw, out);
                }
            }
            Event::Idle { session } => {
                if session == self.session {
                    self.rests(out);
                }
            }
            Event::Error { session, fault } => self.error_event(session, &fault, out),
            Event::Permission(asked) => {
                if self.turn.is_some()
                    && self.concerns(&asked.session)
                    && let Some(asked) = self.asks.permission(*asked, self.mode, &self.parts)
                {
                    self.asked(asked, Some(&raw), out);
                }
            }
            Event::Question(asked) => {
                if self.turn.is_some()
                    && self.concerns(&asked.session)
                    && let Some(asked) = self.asks.question(*asked, self.mode, &self.parts)
                {
                    self.asked(asked, Some(&raw), out);
                }
            }
            Event::Answered { request } => {
                self.reply_arrived(&request);
                if self.asks.closed(&request) {
                    say(Said::Withdrawn { request });
                }
            }
            Event::Other { kind, properties } => {
                let detail = if line.len() <= MAX_DETAIL { properties } else { Value::Null };
                say(Said::Notice { subtype: kind, detail });
            }
        }
    }

    /// Whether this is our session or one of its sub-agents.
    pub(super) fn concerns(&self, session: &str) -> bool {
        session == self.session || self.parts.is_child(session)
    }

    pub(super) fn asked(&mut self, asked: Asked, raw: Option<&Bytes>, out: &mut Out) {
        match asked {
            Asked::Person(said) => out.said.push((said, raw.cloned())),
            Asked::Mode(reply) => self.reply(reply, out),
        }
    }

    /// Asks what waited for its call to be said.
    fn ask_held(&mut self, all: bool, raw: &Bytes, out: &mut Out) {
        for said in self.asks.release(&self.parts, all) {
            out.say_raw(said, raw);
        }
    }

    pub(super) fn message_event(&mut self, info: &Info, raw: Option<&Bytes>, out: &mut Out) {
        let own = info.session == self.session;
        if !own && !self.parts.is_child(&info.session) {
            return;
        }
        let Some(turn) = &mut self.turn else { return };
        if info.role == "assistant" {
            if !info.is_digest() {
                self.parts.message(info);
            }
            if own {
                turn.message(info, info.parent.as_ref() == Some(&self.newest_prompt));
                if let Some(fault) = &info.error {
                    note(turn, fault);
                }
                if let Some(agent) = info.agent.as_ref().filter(|_| !info.is_digest())
                    && self.agent.as_ref() != Some(agent)
                {
                    let from = self.agent.replace(shortened(agent));
                    if from.is_some() {
                        let changed = Said::AgentChanged { from, to: self.agent.clone() };
                        out.said.push((changed, raw.cloned()));
                    }
                }
            }
        } else if own && info.id > self.newest_prompt {
            self.newest_prompt.clone_from(&info.id);
            turn.taken(&info.id);
        }
    }

    fn status(&mut self, status: &Status, raw: &Bytes, out: &mut Out) {
        let Some(turn) = &mut self.turn else { return };
        match status.kind.as_str() {
            "idle" => self.rests(out),
            "retry" => {
                turn.works();
                let message = shortened(status.message.as_deref().unwrap_or("the model call failed"));
                let retrying = Said::Retrying {
                    attempt: status.attempt.unwrap_or(1).max(1),
                    status: failure::status_of_retry(&message),
                    message,
                    wait_ms: status.wait_ms,
                };
                out.say_raw(retrying, raw);
            }
            _ => {
                turn.works();
                if turn.interrupt == Interrupt::Wanted {
                    self.stop(out);
                }
            }
        }
    }

    fn rests(&mut self, out: &mut Out) {
        if let Some(turn) = &mut self.turn {
            let next = turn.rests();
            self.go_on(&next, out);
        }
    }

    fn error_event(&mut self, session: Option<String>, fault: &Fault, out: &mut Out) {
        if session.is_some_and(|session| session != self.session) {
            return;
        }
        let Some(turn) = &mut self.turn else { return };
        note(turn, fault);
        // A prompt that the server could not even take is followed by nothing; a run that breaks off, by idle.
        if !fault.is_abort() && !turn.busy {
            self.poll(out);
        }
    }
}

fn note(turn: &mut Turn, fault: &Fault) {
    if fault.is_abort() {
        turn.aborted();
    } else {
        let (code, message) = failure::of(fault);
        turn.fails(code, message);
    }
}

/// The server's own line within the platform's.
fn own_line(line: &Bytes) -> Bytes {
    const AROUND: (&[u8], &[u8]) = (b"{\"event\":", b"}");
    if line.starts_with(AROUND.0) && line.ends_with(AROUND.1) {
        line.slice(AROUND.0.len()..line.len() - AROUND.1.len())
    } else {
        line.clone()
    }
}
