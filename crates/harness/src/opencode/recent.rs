//! A set that forgets its oldest members: memory is bounded whatever a process says.

use std::collections::{BTreeSet, VecDeque};

/// The last so many ids.
#[derive(Debug)]
pub(super) struct Recent {
    members: BTreeSet<String>,
    order: VecDeque<String>,
    limit: usize,
}

impl Recent {
    pub(super) const fn new(limit: usize) -> Self {
        Self { members: BTreeSet::new(), order: VecDeque::new(), limit }
    }

    /// Adds an id; false if it is there already.
    pub(super) fn insert(&mut self, id: &str) -> bool {
        if !self.members.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.members.remove(&oldest);
        }
        true
    }
}
