//! What is alive in this process: the sessions that have a runner, and the streams that somebody follows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use karta_types::SessionId;
use tokio::sync::mpsc;

use crate::data::journal::Live;
use crate::data::turn::run::Order;

/// Orders that may wait for one runner.
const ORDERS: usize = 32;

/// Everything alive.
#[derive(Debug, Default)]
pub struct Hub {
    runners: Mutex<HashMap<SessionId, mpsc::Sender<Order>>>,
    streams: Mutex<HashMap<SessionId, Weak<Live>>>,
}

/// The lock, also after a panic elsewhere: these maps are whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// The way to the session's runner; `start` is called with the orders' other end if there was none.
    pub fn runner(
        &self,
        session: SessionId,
        start: impl FnOnce(mpsc::Receiver<Order>),
    ) -> mpsc::Sender<Order> {
        let mut runners = lock(&self.runners);
        if let Some(sender) = runners.get(&session).filter(|sender| !sender.is_closed()) {
            return sender.clone();
        }
        let (sender, receiver) = mpsc::channel(ORDERS);
        runners.insert(session, sender.clone());
        drop(runners);
        start(receiver);
        sender
    }

    /// The way to the session's runner, if it has one.
    pub fn running(&self, session: SessionId) -> Option<mpsc::Sender<Order>> {
        lock(&self.runners).get(&session).filter(|sender| !sender.is_closed()).cloned()
    }

    /// The runner is about to end and takes no more orders. Those that are still in the channel get no answer; their senders,
    /// seeing that, ask for a runner again.
    pub fn retire(&self, session: SessionId, orders: &mut mpsc::Receiver<Order>) {
        let mut runners = lock(&self.runners);
        orders.close();
        if runners.get(&session).is_some_and(mpsc::Sender::is_closed) {
            runners.remove(&session);
        }
    }

    /// How many sessions have a runner.
    pub fn count(&self) -> usize {
        lock(&self.runners).len()
    }

    /// The session's stream of new batches.
    pub fn live(&self, session: SessionId) -> Arc<Live> {
        let mut streams = lock(&self.streams);
        if let Some(live) = streams.get(&session).and_then(Weak::upgrade) {
            return live;
        }
        // Dead entries are swept when there are as many as could ever be alive twice over; amortised over insertions.
        if streams.len() >= 64 && streams.len() == streams.capacity() {
            streams.retain(|_, live| live.strong_count() > 0);
        }
        let live = Arc::new(Live::default());
        streams.insert(session, Arc::downgrade(&live));
        live
    }
}
