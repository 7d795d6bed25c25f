//! Requests a second, for each key and each organisation: token buckets that hold two seconds' worth.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use karta_types::{ErrorCode, OrgId, Problem, Timestamp};

use crate::gate::Actor;
use crate::{Engine, Error, Principal, Result};

/// Buckets kept before full ones are thrown away: a full bucket is like none.
const BUCKETS: usize = 10_000;
/// Seconds' worth that a bucket holds.
const BURST: i64 = 2;
const MICROS: i64 = 1_000_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Whose {
    Org(OrgId),
    Actor(Actor),
    /// Somebody who has not signed in.
    Address(String),
}

/// Requests a second from one address without a credential: signing in takes a handful.
const STRANGERS: u32 = 10;

/// What is left, in millionths of a request, and when that was.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: i64,
    at: Timestamp,
}

/// Every bucket.
#[derive(Debug, Default)]
pub struct Rates(Mutex<HashMap<Whose, Bucket>>);

impl Rates {
    /// Takes one request. An error is how many microseconds until there is one.
    fn take(&self, whose: Whose, per_second: u32, now: Timestamp) -> Result<(), i64> {
        let rate = i64::from(per_second);
        let full = rate * BURST * MICROS;
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKETS {
            buckets.retain(|_, bucket| bucket.left.saturating_add(grown(bucket.at, now, rate)) < full);
        }
        let bucket = buckets.entry(whose).or_insert(Bucket { left: full, at: now });
        bucket.left = bucket.left.saturating_add(grown(bucket.at, now, rate)).min(full);
        bucket.at = now;
        if bucket.left < MICROS {
            return Err((MICROS - bucket.left).div_euclid(rate) + 1);
        }
        bucket.left -= MICROS;
        Ok(())
    }
}

fn grown(since: Timestamp, now: Timestamp, rate: i64) -> i64 {
    i64::try_from(now.since(since).as_micros()).unwrap_or(i64::MAX).saturating_mul(rate)
}

impl Engine {
    /// Whether somebody without a credential may ask once more this second.
    ///
    /// # Errors
    /// `rate_limited` with the seconds to wait.
    pub fn check_stranger(&self, address: Option<&str>) -> Result<()> {
        let whose = Whose::Address(address.unwrap_or_default().to_owned());
        self.take("address", whose, STRANGERS)
    }

    /// Whether the caller may ask once more this second.
    ///
    /// # Errors
    /// `rate_limited` with the seconds to wait.
    pub fn check_rate(&self, who: &Principal) -> Result<()> {
        let limits = &self.settings().limits;
        self.take("key", Whose::Actor(who.actor), limits.key_requests_per_second)?;
        self.take("organisation", Whose::Org(who.org), limits.org_requests_per_second)
    }

    fn take(&self, level: &str, whose: Whose, rate: u32) -> Result<()> {
        if rate > 0
            && let Err(wait) = self.control().rates().take(whose, rate, self.clock().now())
        {
            let seconds = wait.div_euclid(MICROS) + 1;
            let detail = format!("more than {rate} requests a second by this {level}");
            let problem = Problem::new(ErrorCode::RateLimited, detail)
                .with("limit", i64::from(rate))
                .with("retry_after", seconds);
            return Err(Error::Told(Box::new(problem)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_gives_its_rate_and_a_burst_and_others_have_their_own() {
        let rates = Rates::default();
        let (one, two) = (Whose::Org(OrgId::from_u128(1)), Whose::Org(OrgId::from_u128(2)));
        let mut now = Timestamp::from_micros(1_000_000_000);
        let given = (0..100).filter(|_| rates.take(one.clone(), 10, now).is_ok()).count();
        assert_eq!(given, 20, "two seconds' worth at once");
        assert_eq!(rates.take(one.clone(), 10, now), Err(100_001), "a tenth of a second for the next");
        assert!(rates.take(two.clone(), 10, now).is_ok());
        let mut later = 0;
        for _ in 0..100 {
            now = now.plus(Duration::from_millis(50));
            later += usize::from(rates.take(one.clone(), 10, now).is_ok());
        }
        assert_eq!(later, 50, "ten a second for five seconds");
    }
}
