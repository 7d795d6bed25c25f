//! The turn that runs: which messages it has, what its last result was, and when it is over.
//!
//! A turn is over when the harness says it is idle, not at its first `result`: sub-agents in the background and messages that came
//! in the meantime make more of those. Idle is said also just before a message that is still in the pipe is read, so a turn waits
//! until each of its messages was told to be completed or cancelled.

use serde_json::Value;

use super::outcome;
use super::wire::{list, number, text};
use crate::codec::End;

/// So many messages can wait in one turn; the oldest is no longer waited for.
const MAX_WAITING: usize = 256;

/// What a process has shown of itself: what a turn's end can be told by.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// It says when it is idle.
    pub(super) states: bool,
    /// It says what becomes of messages.
    pub(super) lifecycle: bool,
    /// So many background tasks run.
    pub(super) background: usize,
}

/// A message of the turn that is not done with.
#[derive(Debug)]
struct Waiting {
    uuid: String,
    started: bool,
}

/// The turn that runs.
#[derive(Debug, Default)]
pub(super) struct Turn {
    waiting: Vec<Waiting>,
    /// It was seen to run.
    ran: bool,
    /// The last result.
    result: Option<Value>,
    /// The harness's word for the last model call that failed.
    pub(super) failure: Option<String>,
    /// Some text was said.
    pub(super) spoke: bool,
    /// A caller wants it stopped.
    interrupted: bool,
}

impl Turn {
    /// A message was given to it.
    pub(super) fn message(&mut self, uuid: &str) {
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.remove(0);
        }
        self.waiting.push(Waiting { uuid: uuid.to_owned(), started: false });
    }

    /// What became of a message.
    pub(super) fn lifecycle(&mut self, uuid: &str, state: &str) {
        match state {
            "queued" => {}
            "started" => {
                self.ran = true;
                if let Some(message) = self.waiting.iter_mut().find(|message| message.uuid == uuid) {
                    message.started = true;
                }
            }
            _ => {
                self.ran = true;
                self.waiting.retain(|message| message.uuid != uuid);
            }
        }
    }

    /// It is running.
    pub(super) fn running(&mut self) {
        self.ran = true;
    }

    /// Stop it: the messages after the first that were not begun, to be taken back.
    pub(super) fn interrupt(&mut self) -> Vec<String> {
        self.interrupted = true;
        let later = self.waiting.iter().skip(1).filter(|message| !message.started);
        later.map(|message| message.uuid.clone()).collect()
    }

    /// A result came; the end, if it can be told without waiting for more.
    pub(super) fn result(&mut self, result: Value, shown: &Shown) -> Option<End> {
        for uuid in list(&result, "user_message_uuids") {
            self.waiting.retain(|message| Some(message.uuid.as_str()) != uuid.as_str());
        }
        let more = number(&result, "queued_turn_count").unwrap_or(0) > 0 || shown.background > 0;
        self.ran = true;
        self.result = Some(result);
        (!shown.states && !more && self.waiting_for(shown) == 0).then(|| self.end())
    }

    /// The harness is idle; the end, unless a message is still on its way to it.
    pub(super) fn idle(&self, shown: &Shown) -> Option<End> {
        (self.ran && self.waiting_for(shown) == 0).then(|| self.end())
    }

    /// The process is gone.
    pub(super) fn exited(&self, status: Option<i32>, stderr_tail: &str) -> End {
        match &self.result {
            Some(_) if self.waiting.is_empty() => self.end(),
            // A result that is an error says better why than the status does.
            Some(result) if matches!(outcome::of(result, self.failure.as_deref()), End::Failed { .. }) => {
                self.end()
            }
            _ => outcome::of_exit(status, stderr_tail),
        }
    }

    /// What the harness gives as the turn's outcome in words, when no text was said: the answer of a command of its own, or of a
    /// hook that refused the message.
    pub(super) fn unsaid(&self) -> Option<&str> {
        let result = self.result.as_ref().filter(|_| !self.spoke)?;
        text(result, "result").filter(|words| !words.is_empty())
    }

    fn waiting_for(&self, shown: &Shown) -> usize {
        if shown.lifecycle { self.waiting.len() } else { 0 }
    }

    fn end(&self) -> End {
        match &self.result {
            Some(result) => outcome::of(result, self.failure.as_deref()),
            None if self.interrupted => End::Interrupted,
            None => End::Completed { stop_reason: None },
        }
    }
}
