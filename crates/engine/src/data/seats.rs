//! How many turns of one key and of one organisation run or wait at once, on this node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use karta_types::{ErrorCode, KeyId, OrgId, Problem};

use crate::gate::Actor;
use crate::{Error, Principal, Result};

/// Seconds after which it is worth asking again.
const RETRY: i64 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Whose {
    Org(OrgId),
    Actor(Actor),
}

/// Every seat that is taken.
#[derive(Debug, Default)]
pub struct Seats(Mutex<HashMap<Whose, u32>>);

/// A turn's seat; dropped, it is free again.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    whose: [Whose; 2],
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        for whose in self.whose {
            if let Some(count) = taken.get_mut(&whose) {
                *count -= 1;
                if *count == 0 {
                    taken.remove(&whose);
                }
            }
        }
    }
}

impl Seats {
    fn lock(&self) -> MutexGuard<'_, HashMap<Whose, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The seat of a turn that had one before the server was started again: it is there whatever the limits say.
    pub fn take_back(self: &Arc<Self>, org: OrgId, key: Option<KeyId>) -> Seat {
        let whose = [Whose::Org(org), Whose::Actor(key.map_or(Actor::System, Actor::Key))];
        let mut taken = self.lock();
        for whose in whose {
            *taken.entry(whose).or_insert(0) += 1;
        }
        Seat { seats: self.clone(), whose }
    }

    /// A seat for one more turn of this caller. A limit of 0 is none.
    ///
    /// # Errors
    /// `rate_limited` with the seconds to wait.
    pub fn take(self: &Arc<Self>, who: &Principal, key_limit: u32, org_limit: u32) -> Result<Seat> {
        // What browsers do counts for the key that let them in.
        let actor = who.actor.key().map_or(who.actor, Actor::Key);
        let limits =
            [("key", Whose::Actor(actor), key_limit), ("organisation", Whose::Org(who.org), org_limit)];
        let mut taken = self.lock();
        for (level, whose, limit) in limits {
            if limit > 0 && taken.get(&whose).copied().unwrap_or(0) >= limit {
                let detail = format!("{limit} turns of this {level} run or wait already");
                let problem = Problem::new(ErrorCode::RateLimited, detail)
                    .with("limit", i64::from(limit))
                    .with("retry_after", RETRY);
                return Err(Error::Told(Box::new(problem)));
            }
        }
        for (_, whose, _) in limits {
            *taken.entry(whose).or_insert(0) += 1;
        }
        Ok(Seat { seats: self.clone(), whose: limits.map(|(_, whose, _)| whose) })
    }
}
