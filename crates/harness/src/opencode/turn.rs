//! One turn: when it is over, and how it ended.

use std::collections::BTreeSet;

use karta_types::ErrorCode;

use super::wire::Info;
use crate::codec::End;

/// Times the server is asked what it does before silence is taken for the end.
const MAX_POLLS: u8 = 50;
/// The agent's messages that may be open at once.
const MAX_OPEN: usize = 256;

/// A running turn.
///
/// The server says that it is idle twice after an abort or an error, once before the last message is closed, and a prompt sent
/// between the two is lost. So idle alone ends nothing: every prompt must have been taken and the last one answered, and every
/// message of the agent closed. Where idle comes and that is not so, the server is asked a few times what it does.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, each told by another event")]
pub(super) struct Turn {
    /// The server began to work.
    pub(super) busy: bool,
    /// Prompts that the server was given.
    pub(super) prompts: u32,
    taken: u32,
    /// The first prompt that the server took: whatever belongs to the turn has a higher id.
    pub(super) first: Option<String>,
    answered: bool,
    open: BTreeSet<String>,
    failure: Option<(ErrorCode, String)>,
    finish: Option<String>,
    pub(super) interrupt: Interrupt,
    aborted: bool,
    polls: u8,
    pub(super) polling: bool,
}

/// How far an interrupt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Interrupt {
    /// Nobody wants one.
    #[default]
    None,
    /// Wanted, but an abort before the server works would be lost.
    Wanted,
    /// The server was told, so many times.
    Sent(u8),
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Wait for events.
    Wait,
    /// Ask the server what it does.
    Poll,
    /// Tell it to stop once more.
    Abort,
    /// The turn is over.
    End,
}

impl Turn {
    /// The server took a prompt.
    pub(super) fn taken(&mut self, prompt: &str) {
        self.first.get_or_insert_with(|| prompt.to_owned());
        self.taken = self.taken.saturating_add(1);
        self.answered = false;
    }

    /// The agent began, changed or closed a message of its own; `answers` says that it answers the newest prompt.
    pub(super) fn message(&mut self, info: &Info, answers: bool) {
        self.answered |= answers;
        if info.time.completed.is_some() || info.error.is_some() {
            self.open.remove(&info.id);
        } else if self.open.len() < MAX_OPEN {
            self.open.insert(info.id.clone());
        }
        if info.finish.is_some() {
            self.finish.clone_from(&info.finish);
        }
    }

    /// The server works.
    pub(super) fn works(&mut self) {
        (self.busy, self.polls) = (true, 0);
    }

    /// Something went wrong; the first fault counts.
    pub(super) fn fails(&mut self, code: ErrorCode, message: String) {
        self.failure.get_or_insert((code, message));
    }

    /// The run was stopped, whoever wanted it.
    pub(super) fn aborted(&mut self) {
        self.aborted = true;
    }

    /// The server says that it does nothing.
    pub(super) fn rests(&mut self) -> Next {
        if !self.busy {
            return Next::Wait;
        }
        if self.settled() { Next::End } else { Next::Poll }
    }

    /// The server was asked, and says whether it works.
    pub(super) fn polled(&mut self, works: bool) -> Next {
        self.polling = false;
        self.polls = self.polls.saturating_add(1);
        // A prompt that could not be taken is followed by nothing.
        let refused = !self.busy && self.failure.is_some();
        let spent = refused || self.polls >= MAX_POLLS;
        match self.interrupt {
            _ if !works && (self.settled() || spent) => Next::End,
            _ if !works => Next::Poll,
            Interrupt::Sent(times) if times < 3 => Next::Abort,
            _ => Next::Wait,
        }
    }

    fn settled(&self) -> bool {
        let stopped = self.failure.is_some() || self.aborted || self.interrupt != Interrupt::None;
        self.open.is_empty() && self.taken >= self.prompts && (self.answered || stopped)
    }

    /// How it ended.
    pub(super) fn end(self) -> End {
        match self.failure {
            _ if self.interrupt != Interrupt::None => End::Interrupted,
            Some((code, message)) => End::Failed { code, message },
            None if self.aborted => End::Interrupted,
            None => End::Completed { stop_reason: self.finish },
        }
    }
}
