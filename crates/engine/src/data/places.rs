//! Places among the processes that may run at once, given fairly: the organisation that holds fewest is served first, so a busy one
//! can't starve another.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use karta_types::OrgId;
use tokio::sync::{Notify, oneshot};

/// The places.
#[derive(Debug)]
pub struct Places {
    state: Mutex<State>,
    wanted: Notify,
}

#[derive(Debug)]
struct State {
    free: usize,
    held: HashMap<OrgId, usize>,
    /// Who waits, in the order they came, by organisation.
    waiting: HashMap<OrgId, VecDeque<Waiting>>,
    came: u64,
}

#[derive(Debug)]
struct Waiting {
    came: u64,
    give: oneshot::Sender<Place>,
}

/// A place; dropped, it is the next one's.
#[derive(Debug)]
pub struct Place {
    org: OrgId,
    places: Arc<Places>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        state.free += 1;
        if let Some(held) = state.held.get_mut(&self.org) {
            *held -= 1;
            if *held == 0 {
                state.held.remove(&self.org);
            }
        }
        let given = Places::give(&self.places, &mut state);
        drop(state);
        // Whoever gave up waiting meanwhile gives it back, by dropping it here, outside the lock.
        drop(given);
    }
}

impl Places {
    /// So many.
    pub fn new(count: usize) -> Arc<Self> {
        let state = State { free: count, held: HashMap::new(), waiting: HashMap::new(), came: 0 };
        Arc::new(Self { state: Mutex::new(state), wanted: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, now or later. Answers how many wait before it; dropping the receiver leaves the queue.
    pub fn ask(self: &Arc<Self>, org: OrgId) -> (usize, oneshot::Receiver<Place>) {
        let (give, place) = oneshot::channel();
        let mut state = self.lock();
        // Those that left.
        state.waiting.values_mut().for_each(|waiting| waiting.retain(|one| !one.give.is_closed()));
        state.waiting.retain(|_, waiting| !waiting.is_empty());
        let before = state.waiting.values().map(VecDeque::len).sum();
        state.came += 1;
        let came = state.came;
        state.waiting.entry(org).or_default().push_back(Waiting { came, give });
        let refused = Self::give(self, &mut state);
        let full = !state.waiting.is_empty();
        drop(state);
        drop(refused);
        if full {
            // Somebody who holds one and does nothing may let it go.
            self.wanted.notify_one();
        }
        (before, place)
    }

    /// Whether no place is free and so many wait that one more had better come later.
    pub fn is_crowded(&self, most: usize) -> bool {
        let state = self.lock();
        state.free == 0 && state.waiting.values().map(VecDeque::len).sum::<usize>() >= most
    }

    /// Resolves when somebody waits for a place: for one who holds one and has no use for it now.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Gives free places to those who wait: first to the organisation that holds fewest, then to who came first. Answers places whose
    /// takers had gone, to be dropped outside the lock.
    fn give(places: &Arc<Self>, state: &mut State) -> Vec<Place> {
        let mut refused = Vec::new();
        while state.free > 0 {
            let held = |org: &OrgId| state.held.get(org).copied().unwrap_or(0);
            let next = state
                .waiting
                .iter()
                .filter_map(|(org, waiting)| waiting.front().map(|first| (held(org), first.came, *org)))
                .min();
            let Some((_, _, org)) = next else { break };
            let Some(waiting) = state.waiting.get_mut(&org).and_then(VecDeque::pop_front) else { break };
            if state.waiting.get(&org).is_some_and(VecDeque::is_empty) {
                state.waiting.remove(&org);
            }
            state.free -= 1;
            *state.held.entry(org).or_insert(0) += 1;
            if let Err(place) = waiting.give.send(Place { org, places: places.clone() }) {
                refused.push(place);
            }
        }
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn org(number: u128) -> OrgId {
        OrgId::from_u128(number)
    }

    #[tokio::test]
    async fn a_busy_organisation_does_not_starve_another() {
        let places = Places::new(2);
        let (first, second) = (places.ask(org(1)).1.await.unwrap(), places.ask(org(1)).1.await.unwrap());
        // Ten more of the busy one wait before the quiet one comes.
        let mut busy: Vec<_> = (0..10).map(|_| places.ask(org(1)).1).collect();
        let (before, quiet) = places.ask(org(2));
        assert_eq!(before, 10);
        drop(first);
        let quiet = quiet.await.unwrap();
        assert!(busy.iter_mut().all(|waiting| waiting.try_recv().is_err()), "the quiet one is first");
        drop(quiet);
        drop(second);
        assert!(busy[0].try_recv().is_ok());
    }

    #[tokio::test]
    async fn who_left_the_queue_gets_nothing_and_no_place_is_lost() {
        let places = Places::new(1);
        let held = places.ask(org(1)).1.await.unwrap();
        drop(places.ask(org(1)).1);
        let (before, waiting) = places.ask(org(2));
        assert_eq!(before, 0, "those that left don't count");
        drop(places.ask(org(3)).1);
        drop(held);
        drop(waiting.await.unwrap());
        for _ in 0..3 {
            drop(places.ask(org(3)).1.await.unwrap());
        }
        let state = places.lock();
        assert!(state.free == 1 && state.held.is_empty() && state.waiting.is_empty());
    }

    #[tokio::test]
    async fn one_that_waits_is_told_of() {
        let places = Places::new(1);
        let held = places.ask(org(1)).1.await.unwrap();
        let (_, waiting) = places.ask(org(2));
        places.wanted().await;
        drop(held);
        waiting.await.unwrap();
    }
}
