//! Which users of the host sandboxes are.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use karta_guest::jail::{Ids, Range};

use crate::Error;
use crate::limits::{Machines, SPAN};

/// The ranges of ids, each for one sandbox at a time.
#[derive(Debug)]
pub(crate) struct Users {
    first: u32,
    most: u32,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    ranges: BTreeSet<u32>,
    /// Ranges are given in turn, so that what an earlier sandbox may have left anywhere is not the next one's.
    next: u32,
}

/// A sandbox's range. It is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    users: Arc<Users>,
    index: u32,
}

impl Users {
    /// All of them free.
    pub(crate) fn new(machines: &Machines) -> Arc<Self> {
        // Above this, ids mean something else to some programs.
        let room = (0x7fff_ffff_u32.saturating_sub(machines.first_id)) / SPAN;
        let most = machines.sandboxes.min(room);
        Arc::new(Self { first: machines.first_id, most, taken: Mutex::default() })
    }

    /// Takes a range.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Lease, Error> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let from = taken.next;
        let free = (0..self.most).map(|step| (from + step) % self.most).find(|at| !taken.ranges.contains(at));
        let Some(index) = free else {
            return Err(Error::Unavailable(format!(
                "{} sandboxes run already, and there are no more users of the host for another: close some, or raise the limit",
                self.most
            )));
        };
        taken.ranges.insert(index);
        taken.next = (index + 1) % self.most;
        Ok(Lease { users: Arc::clone(self), index })
    }
}

impl Lease {
    fn outside(&self) -> u32 {
        self.users.first + self.index * SPAN
    }

    /// The whole range: all ids inside.
    pub(crate) fn range(&self) -> Range {
        Range { inside: 0, outside: self.outside(), count: SPAN }
    }

    /// An id inside as the host counts.
    pub(crate) fn id(&self, inside: u16) -> Ids {
        let id = self.outside() + u32::from(inside);
        Ids { user: id, group: id }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut taken = self.users.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.ranges.remove(&self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_have_an_id_in_common_and_what_is_given_back_is_used_again() {
        let machines = Machines { sandboxes: 3, ..Machines::new("/nowhere".into()) };
        let users = Users::new(&machines);
        let leases: Vec<_> = (0..3).map(|_| users.take().unwrap()).collect();
        let firsts: BTreeSet<_> = leases.iter().map(|lease| lease.range().outside).collect();
        assert_eq!(firsts.len(), 3);
        assert!(firsts.iter().zip(firsts.iter().skip(1)).all(|(one, next)| next - one >= SPAN));
        assert!(users.take().is_err());
        let second = leases[1].range();
        drop(leases);
        assert_eq!(users.take().unwrap().id(1000).user % SPAN, 1000);
        assert_eq!(users.take().unwrap().range(), second);
    }

    #[test]
    fn a_first_id_without_room_gives_none() {
        let machines = Machines { first_id: u32::MAX, ..Machines::new("/nowhere".into()) };
        assert!(Users::new(&machines).take().is_err());
    }
}
