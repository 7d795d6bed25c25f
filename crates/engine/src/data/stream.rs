//! The cursor reader: everything after a position, from the journal and then live. Every surface reads through it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use karta_types::{Event, OrgId, Seq, SessionId};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::data::journal::{Batch, Live, flag};
use crate::{Engine, Error, Principal, Result};

/// How much of the journal is read at once.
const READ: usize = 256 << 10;

/// What a reader gets next.
#[derive(Debug, Clone)]
pub enum Item {
    /// Events, at least one of them after the cursor.
    Batch {
        /// The batch.
        batch: Arc<Batch>,
        /// Those of its events up to here were read before.
        after: Seq,
    },
    /// These can no longer be replayed.
    Gap {
        /// The first that is missing.
        from: Seq,
        /// The last that is missing.
        to: Seq,
    },
}

impl Item {
    /// The frames to show, if it is a batch.
    pub fn frames(&self) -> Bytes {
        match self {
            Self::Batch { batch, after } => batch.after(*after),
            Self::Gap { .. } => Bytes::new(),
        }
    }

    /// The events to read that are not hidden from plain readers.
    pub fn visible(&self) -> impl Iterator<Item = &Event> {
        let hidden = match self {
            Self::Batch { batch, .. } => batch.flags,
            Self::Gap { .. } => 0,
        };
        self.events().filter(move |event| flag(event.body.kind()) & hidden == 0)
    }

    /// The events to read.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        let (events, after) = match self {
            Self::Batch { batch, after } => (batch.events(), *after),
            Self::Gap { .. } => (&[][..], Seq::START),
        };
        events.iter().filter(move |event| event.seq > after)
    }
}

/// Reads one session's events in order, without gap or repeat, for as long as it is asked.
#[derive(Debug)]
pub struct Reader {
    engine: Engine,
    org: OrgId,
    session: SessionId,
    cursor: Seq,
    /// Kept alive so that the sender stays the one that the runner uses.
    _live: Arc<Live>,
    receiver: broadcast::Receiver<Arc<Batch>>,
    /// Read from the store, in order; a hole in it is a real one.
    stored: VecDeque<Arc<Batch>>,
    /// Came live but does not join on: the store is read first.
    held: Option<Arc<Batch>>,
    /// Whether the store may hold something after the cursor.
    behind: bool,
}

impl Engine {
    /// Reads a session's events after `after`.
    ///
    /// # Errors
    /// `not_found`; `invalid_request` for a cursor from the future.
    pub async fn read(&self, who: &Principal, session: SessionId, after: Seq) -> Result<Reader> {
        // Follow first, look second: what is committed in between comes twice and is dropped by its number.
        let reader = self.follow(who.org, session, after);
        let row = self.session_row(who, session).await?;
        if after > row.head {
            return Err(Error::invalid(
                "/after",
                format!("the cursor {after} is in the future; the session's last event is {}", row.head),
            ));
        }
        Ok(reader)
    }

    /// Reads on, for a caller that knows the session is its own.
    pub(crate) fn follow(&self, org: OrgId, session: SessionId, after: Seq) -> Reader {
        let live = self.hub().live(session);
        let receiver = live.follow();
        Reader {
            engine: self.clone(),
            org,
            session,
            cursor: after,
            _live: live,
            receiver,
            stored: VecDeque::new(),
            held: None,
            behind: true,
        }
    }
}

impl Reader {
    /// Reads from `head` on, which was the last event when following had begun already: nothing after it has to be looked for
    /// in the store, it comes live.
    #[must_use]
    pub(crate) const fn from(mut self, head: Seq) -> Self {
        self.cursor = head;
        self.behind = false;
        self
    }

    /// The last event that was handed out.
    pub const fn cursor(&self) -> Seq {
        self.cursor
    }

    /// The next item. Waits for it.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn next(&mut self) -> Result<Item> {
        loop {
            if let Some(item) = self.next_stored().await? {
                return Ok(item);
            }
            let looked = self.held.is_some();
            let batch = match self.held.take() {
                Some(batch) => batch,
                None => match self.receiver.recv().await {
                    Ok(batch) => batch,
                    // Too slow for the live stream: the store has it all.
                    Err(RecvError::Lagged(_)) => {
                        self.behind = true;
                        continue;
                    }
                    // Can't happen while `_live` is held; if it does, wait rather than spin.
                    Err(RecvError::Closed) => std::future::pending().await,
                },
            };
            if batch.first > self.cursor.next() && !looked {
                self.held = Some(batch);
                self.behind = true;
            } else if let Some(item) = self.hand_out(batch) {
                return Ok(item);
            }
        }
    }

    /// The next item of those that are there, without waiting for what comes.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn next_stored(&mut self) -> Result<Option<Item>> {
        loop {
            while let Some(batch) = self.stored.pop_front() {
                if batch.first > self.cursor.next() {
                    let gap = self.gap_before(&batch);
                    self.stored.push_front(batch);
                    return Ok(Some(gap));
                }
                if let Some(item) = self.hand_out(batch) {
                    return Ok(Some(item));
                }
            }
            if !self.behind {
                return Ok(None);
            }
            let read = self.engine.store().journal_read(self.org, self.session, self.cursor, READ);
            // On the heap only while it reads: a stream waits most of its life.
            let chunks = Box::pin(read).await?;
            self.behind = !chunks.is_empty();
            self.stored.extend(chunks.into_iter().map(|chunk| Arc::new(Batch::from(chunk))));
        }
    }

    fn gap_before(&mut self, batch: &Batch) -> Item {
        let (from, to) = (self.cursor.next(), Seq(batch.first.0 - 1));
        self.cursor = to;
        Item::Gap { from, to }
    }

    fn hand_out(&mut self, batch: Arc<Batch>) -> Option<Item> {
        if batch.last <= self.cursor {
            return None;
        }
        if batch.first > self.cursor.next() {
            let gap = self.gap_before(&batch);
            self.held = Some(batch);
            return Some(gap);
        }
        let after = self.cursor;
        self.cursor = batch.last;
        Some(Item::Batch { batch, after })
    }
}
