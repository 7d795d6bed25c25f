//! A set that forgets its oldest members: memory stays bounded whatever a process says.

use std::collections::{HashSet, VecDeque};

/// The last so many ids.
#[derive(Debug)]
pub(crate) struct Recent {
    members: HashSet<String>,
    order: VecDeque<String>,
    limit: usize,
}

impl Recent {
    /// An empty set of at most `limit` ids.
    pub(crate) fn new(limit: usize) -> Self {
        Self { members: HashSet::new(), order: VecDeque::new(), limit }
    }

    /// Adds an id; false if it is there already.
    pub(crate) fn insert(&mut self, id: &str) -> bool {
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

    /// Whether the id is among the last ones.
    pub(crate) fn contains(&self, id: &str) -> bool {
        self.members.contains(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten() {
        let mut recent = Recent::new(2);
        assert!(recent.insert("a") && recent.insert("b") && !recent.insert("a"));
        assert!(recent.insert("c"));
        assert!(!recent.contains("a") && recent.contains("b") && recent.contains("c"));
    }
}
