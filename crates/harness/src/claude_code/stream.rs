//! Parts of text and thought, put together from two tellings of the same: deltas as they come, and whole blocks afterwards.
//!
//! A model call that breaks off is tried again under another message id. What its deltas said stays unconfirmed until the whole
//! block comes; unconfirmed parts of a dead attempt are taken back.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use karta_types::Usage;
use serde_json::Value;

use super::wire::{SYNTHETIC, count, id, number, text};
use crate::codec::{Out, Said};

/// So many speakers at once: the main one and its sub-agents.
const MAX_SPEAKERS: usize = 64;
/// So many blocks in one message.
const MAX_BLOCKS: usize = 512;

/// One block of the message that is being said.
#[derive(Debug)]
struct Block {
    reasoning: bool,
    /// Bytes of text said so far.
    said: usize,
    /// The whole block has come: it stays, whatever happens to the call.
    confirmed: bool,
}

/// One attempt of a model call.
#[derive(Debug, Default)]
struct Attempt {
    message: String,
    blocks: BTreeMap<u64, Block>,
    usage: Usage,
    /// Its step was announced and not ended.
    step_open: bool,
    /// It ended well enough to keep what it said.
    done: bool,
}

/// What is being said, by speaker: the main one, and sub-agents by the tool call they run in.
#[derive(Debug, Default)]
pub(super) struct Streams(HashMap<Option<String>, Attempt>);

/// Where a thing was said: by whom, and the line that said it.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) parent: Option<&'a str>,
    pub(super) raw: &'a Bytes,
}

impl At<'_> {
    fn parent(&self) -> Option<String> {
        self.parent.map(str::to_owned)
    }
}

impl Attempt {
    fn part(&self, index: u64) -> String {
        format!("{}.{index}", self.message)
    }

    /// Says a piece of a block, which is made if it is new.
    fn piece(&mut self, index: u64, reasoning: bool, text: &str, at: At<'_>, out: &mut Out) {
        if self.blocks.len() >= MAX_BLOCKS && !self.blocks.contains_key(&index) {
            return;
        }
        let block = self.blocks.entry(index).or_insert(Block { reasoning, said: 0, confirmed: false });
        // Once whole, a block takes nothing more; and it can't change its kind.
        if text.is_empty() || block.confirmed || block.reasoning != reasoning {
            return;
        }
        block.said += text.len();
        let (part, text, parent) = (self.part(index), text.to_owned(), at.parent());
        let said = if reasoning {
            Said::Reasoning { part, text, parent }
        } else {
            Said::Text { part, text, parent }
        };
        out.say_raw(said, at.raw);
    }

    /// Takes back what no whole block has confirmed.
    fn discard(&mut self, out: &mut Out) {
        let message = &self.message;
        self.blocks.retain(|index, block| {
            if !block.confirmed && block.said > 0 {
                let part = format!("{message}.{index}");
                out.say(Said::Discarded { part, reasoning: block.reasoning });
            }
            block.confirmed
        });
        self.step_open = false;
        self.done = true;
    }
}

impl Streams {
    /// A raw event of the model's stream.
    pub(super) fn event(&mut self, event: &Value, at: At<'_>, out: &mut Out) {
        let kind = text(event, "type").unwrap_or_default();
        if kind == "message_start" {
            let message = event.get("message").unwrap_or(&Value::Null);
            if let Some(message_id) = id(message, "id") {
                self.begin(message_id, message, at, out);
            }
            return;
        }
        let Some(attempt) = self.0.get_mut(&at.parent()) else { return };
        if attempt.done {
            return;
        }
        let index = number(event, "index").unwrap_or(0);
        match kind {
            "content_block_start" => {
                let block = event.get("content_block").unwrap_or(&Value::Null);
                match text(block, "type") {
                    Some("text") => {
                        attempt.piece(index, false, text(block, "text").unwrap_or_default(), at, out);
                    }
                    Some("thinking") => {
                        attempt.piece(index, true, text(block, "thinking").unwrap_or_default(), at, out);
                    }
                    _ => {}
                }
            }
            "content_block_delta" => {
                let delta = event.get("delta").unwrap_or(&Value::Null);
                match text(delta, "type") {
                    Some("text_delta") => {
                        attempt.piece(index, false, text(delta, "text").unwrap_or_default(), at, out);
                    }
                    Some("thinking_delta") => {
                        attempt.piece(index, true, text(delta, "thinking").unwrap_or_default(), at, out);
                    }
                    _ => {}
                }
            }
            "message_delta" => {
                count(&mut attempt.usage, event.get("usage").unwrap_or(&Value::Null));
                attempt.done = true;
                if std::mem::take(&mut attempt.step_open) {
                    out.say_raw(Said::StepFinish { usage: attempt.usage }, at.raw);
                }
            }
            _ => {}
        }
    }

    /// A new attempt of `at`'s speaker; the one before it, if it never ended, is dead.
    fn begin(
        &mut self,
        message_id: &str,
        message: &Value,
        at: At<'_>,
        out: &mut Out,
    ) -> Option<&mut Attempt> {
        let speaker = at.parent();
        if let Some(before) = self.0.get_mut(&speaker) {
            if before.message == message_id {
                return self.0.get_mut(&speaker);
            }
            if !before.done {
                before.discard(out);
            }
        } else if self.0.len() >= MAX_SPEAKERS {
            return None;
        }
        // What the harness says itself is no model call; and of a sub-agent's calls it does not say the end.
        let model = text(message, "model").unwrap_or_default();
        let step_open = at.parent.is_none() && model != SYNTHETIC;
        let mut attempt = Attempt { message: message_id.to_owned(), step_open, ..Attempt::default() };
        count(&mut attempt.usage, message.get("usage").unwrap_or(&Value::Null));
        if attempt.step_open {
            out.say_raw(Said::StepStart { description: model.to_owned() }, at.raw);
        }
        self.0.insert(speaker.clone(), attempt);
        self.0.get_mut(&speaker)
    }

    /// A whole block of text or thought. It confirms what the deltas said, and says what they did not.
    pub(super) fn whole(&mut self, message: &Value, reasoning: bool, words: &str, at: At<'_>, out: &mut Out) {
        let Some(message_id) = id(message, "id") else { return };
        let Some(attempt) = self.begin(message_id, message, at, out) else { return };
        let open = attempt.blocks.iter().find(|(_, block)| !block.confirmed && block.reasoning == reasoning);
        let (index, said) = open.map_or_else(
            || (attempt.blocks.last_key_value().map_or(0, |(last, _)| last.saturating_add(1)), 0),
            |(index, block)| (*index, block.said),
        );
        attempt.piece(index, reasoning, words.get(said..).unwrap_or_default(), at, out);
        if let Some(block) = attempt.blocks.get_mut(&index) {
            block.confirmed = true;
        }
    }

    /// The message of a whole line has said why it stopped: a call that was not streamed ends so.
    pub(super) fn finish(&mut self, message: &Value, at: At<'_>, out: &mut Out) {
        let Some(attempt) = self.0.get_mut(&at.parent()) else { return };
        if text(message, "stop_reason").is_none() || id(message, "id") != Some(attempt.message.as_str()) {
            return;
        }
        attempt.done = true;
        if std::mem::take(&mut attempt.step_open) {
            count(&mut attempt.usage, message.get("usage").unwrap_or(&Value::Null));
            out.say_raw(Said::StepFinish { usage: attempt.usage }, at.raw);
        }
    }

    /// The speaker's model call failed.
    pub(super) fn failed(&mut self, parent: Option<&str>, out: &mut Out) {
        if let Some(attempt) = self.0.get_mut(&parent.map(str::to_owned)).filter(|attempt| !attempt.done) {
            attempt.discard(out);
        }
    }

    /// Forgets everything: the turn is over.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
