//! Machines that wait for a session: restored, running, nobody's.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::{Arc, Mutex};

use super::keys::{Key, Kind};
use super::vm::{self, Vm};
use super::{Shared, boot, lock};

/// A machine that nobody has.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) vm: Vm,
    /// The file that is its disk for the release: empty until somebody has it.
    pub(super) release: File,
    /// The file that is the session's disk.
    pub(super) session: File,
}

/// The machines that wait.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    ready: HashMap<Key, VecDeque<Spare>>,
    /// How many are being made.
    coming: HashMap<Key, usize>,
}

impl Waiting {
    fn of(&self, key: &Key) -> usize {
        self.ready.get(key).map_or(0, VecDeque::len) + self.coming.get(key).copied().unwrap_or(0)
    }

    fn all(&self) -> usize {
        self.ready.values().map(VecDeque::len).sum::<usize>() + self.coming.values().sum::<usize>()
    }
}

impl Pool {
    /// One of this kind, if one waits.
    pub(super) fn take(&self, key: &Key) -> Option<Spare> {
        let mut waiting = lock(&self.0);
        loop {
            let spare = waiting.ready.get_mut(key)?.pop_front()?;
            // One that has died while it waited is nobody's loss.
            if spare.vm.is_alive() {
                return Some(spare);
            }
        }
    }

    /// How many wait.
    pub(super) fn ready(&self) -> usize {
        lock(&self.0).ready.values().map(VecDeque::len).sum()
    }

    /// Whether one more of this kind should be made; if so, it counts as coming from now on.
    fn begin(&self, key: &Key, target: usize, ceiling: usize) -> bool {
        let mut waiting = lock(&self.0);
        if waiting.of(key) >= target {
            return false;
        }
        if waiting.all() >= ceiling {
            // Of a kind that nobody has asked for since: the newest wish counts.
            let other = waiting.ready.iter_mut().find(|(other, spares)| *other != key && !spares.is_empty());
            let Some((_, spares)) = other else { return false };
            drop(spares.pop_front());
        }
        *waiting.coming.entry(key.clone()).or_default() += 1;
        true
    }

    fn done(&self, key: &Key, spare: Option<Spare>) {
        let mut waiting = lock(&self.0);
        if let Some(coming) = waiting.coming.get_mut(key) {
            *coming -= 1;
        }
        waiting.coming.retain(|_, coming| *coming > 0);
        if let Some(spare) = spare {
            waiting.ready.entry(key.clone()).or_default().push_back(spare);
        }
    }
}

/// Counts as coming until it is dropped, whatever happens on the way.
struct Coming<'a>(&'a Pool, &'a Key, Option<Spare>);

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.0.done(self.1, self.2.take());
    }
}

/// Sees that as many of this kind wait as should, in the background.
pub(super) fn refill(shared: &Arc<Shared>, kind: &Kind) {
    let (target, ceiling) = (shared.limits.warm as usize, shared.limits.warm_ceiling as usize);
    let (weak, kind) = (Arc::downgrade(shared), kind.clone());
    if !shared.pool.begin(&kind.key, target, ceiling) {
        return;
    }
    vm::task(async move {
        let mut begun = true;
        // The driver may be gone by the next round: nothing is made for it any more.
        while let Some(shared) = weak.upgrade().filter(|_| begun) {
            let mut coming = Coming(&shared.pool, &kind.key, None);
            let made = match shared.snapshot(&kind).await {
                Ok(snapshot) => boot::restore(&shared, &kind, &snapshot).await,
                Err(error) => Err(error),
            };
            match made {
                Ok(spare) => coming.2 = Some(spare),
                Err(error) => {
                    tracing::warn!(%error, "a virtual machine could not be made in advance");
                    return;
                }
            }
            drop(coming);
            begun = shared.pool.begin(&kind.key, target, ceiling);
        }
    });
}
