//! One stream of a link, and all of them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use bytes::{Buf as _, Bytes, BytesMut};
use karta_guest::proto::frame::{self, Kind};
use karta_guest::proto::message::Answer;
use karta_guest::proto::{CHUNK, WINDOW};
use tokio::sync::{oneshot, watch};

use crate::Exit;

#[derive(Debug, Default)]
pub(in crate::guest) struct State {
    pub(in crate::guest) entries: HashMap<u32, Entry>,
    /// Streams with something to send, in order.
    pub(in crate::guest) dirty: VecDeque<u32>,
    pub(in crate::guest) host_last: u32,
    pub(in crate::guest) guest_last: u32,
    /// Whether the machine is being saved: nothing is sent but what asks for that and for its end.
    pub(in crate::guest) silent: bool,
    /// Whether programs of before may be told of.
    pub(in crate::guest) adopts: bool,
    /// Why the link has ended.
    pub(in crate::guest) ended: Option<Arc<str>>,
}

/// One stream.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about one of two directions")]
pub(in crate::guest) struct Entry {
    /// What opens it, until it is sent.
    pub(in crate::guest) opening: Option<Vec<u8>>,
    pub(in crate::guest) answer: Option<oneshot::Sender<Answer>>,
    /// Whether the answer is all that comes.
    pub(in crate::guest) unary: bool,
    pub(in crate::guest) exit: Option<watch::Sender<Option<Exit>>>,
    pub(in crate::guest) signal: Option<u8>,
    pub(in crate::guest) dirty: bool,

    pub(in crate::guest) received: VecDeque<Bytes>,
    /// How many bytes the guest may still send.
    pub(in crate::guest) granted: u32,
    /// How many bytes were read and not granted anew.
    pub(in crate::guest) used: u32,
    /// Whether the guest sends no more; whether it broke.
    pub(in crate::guest) incoming_over: Option<bool>,
    pub(in crate::guest) reader: Option<Waker>,
    /// Whether somebody may still read.
    pub(in crate::guest) reading: bool,
    pub(in crate::guest) stop: bool,

    pub(in crate::guest) sending: BytesMut,
    pub(in crate::guest) window: u32,
    pub(in crate::guest) writer: Option<Waker>,
    pub(in crate::guest) finish: bool,
    pub(in crate::guest) finished: bool,
    /// Whether the guest takes no more.
    pub(in crate::guest) refused: bool,
}

impl Entry {
    pub(in crate::guest) fn new() -> Self {
        Self {
            opening: None,
            answer: None,
            unary: false,
            exit: None,
            signal: None,
            dirty: false,
            received: VecDeque::new(),
            granted: WINDOW,
            used: 0,
            incoming_over: None,
            reader: None,
            reading: true,
            stop: false,
            sending: BytesMut::new(),
            window: WINDOW,
            writer: None,
            finish: false,
            finished: false,
            refused: false,
        }
    }

    /// Whether nothing more of it comes or goes.
    pub(in crate::guest) fn over(&self) -> bool {
        self.opening.is_none()
            && self.answer.is_none()
            && self.exit.is_none()
            && self.incoming_over.is_some()
            && self.finished
    }

    pub(in crate::guest) fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

impl State {
    /// Whether something is on its way to the guest, or asked and not answered.
    pub(in crate::guest) fn busy(&self) -> bool {
        self.entries.values().any(|entry| {
            entry.opening.is_some() || entry.answer.is_some() || !entry.sending.is_empty() || entry.dirty
        })
    }

    /// The next stream that has something to send, and may.
    pub(in crate::guest) fn next_dirty(&mut self) -> Option<u32> {
        if !self.silent {
            return self.dirty.pop_front();
        }
        let opens = |id: &u32| self.entries.get(id).is_some_and(|entry| entry.opening.is_some());
        let at = self.dirty.iter().position(opens)?;
        self.dirty.remove(at)
    }

    /// The streams of programs that ran before, as the guest numbers them.
    pub(in crate::guest) fn adopt(&mut self, programs: u16) {
        for id in (3..).step_by(4).take(usize::from(programs)) {
            self.entries.insert(id, Entry { exit: Some(watch::Sender::new(None)), ..Entry::new() });
            self.entries.insert(id + 2, Entry { finished: true, ..Entry::new() });
            self.host_last = id + 2;
        }
    }

    /// Forgets a stream that is over and that nobody reads any more.
    pub(in crate::guest) fn settle(&mut self, id: u32) {
        if self.entries.get(&id).is_some_and(|entry| entry.over() && !entry.reading && !entry.dirty) {
            self.entries.remove(&id);
        }
    }
}

impl Entry {
    /// The guest takes no more.
    pub(in crate::guest) fn refuse(&mut self) {
        self.refused = true;
        self.sending.clear();
        self.finish = true;
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    /// Writes what this stream has to send, at most one piece of data. Answers whether there is more.
    pub(in crate::guest) fn emit(&mut self, id: u32, generation: u64, batch: &mut Vec<u8>) -> bool {
        // Only a payload that its kind has no room for is refused, and none of these is.
        let mut say = |kind, payload: &[u8]| {
            let _ = frame::encode(batch, kind, id, generation, payload);
        };
        if let Some(opening) = self.opening.take() {
            say(Kind::Open, &opening);
        }
        if let Some(signal) = self.signal.take() {
            say(Kind::Signal, &[signal]);
        }
        if self.used >= WINDOW / 2 && self.incoming_over.is_none() {
            say(Kind::Credit, &self.used.to_le_bytes());
            self.granted += std::mem::take(&mut self.used);
        }
        if std::mem::take(&mut self.stop) && self.incoming_over.is_none() {
            say(Kind::Stop, &[]);
        }
        if self.unary || self.finished {
            return false;
        }
        let length = self.sending.len().min(CHUNK).min(self.window as usize);
        if length > 0 {
            say(Kind::Data, &self.sending[..length]);
            self.sending.advance(length);
            self.window -= u32::try_from(length).unwrap_or(self.window);
            if let Some(writer) = self.writer.take() {
                writer.wake();
            }
        }
        if self.sending.is_empty() && self.finish {
            say(Kind::Eof, &[0]);
            self.finished = true;
        }
        !self.sending.is_empty() && self.window > 0
    }
}
