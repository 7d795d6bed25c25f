//! Whether this host can still make sandboxes. One that keeps failing takes no more turns, says why, and comes back by itself.
//!
//! Failures alone don't say whose they are: a release that can't be shown fails each time, and its session may try it as often as it
//! likes. So after some in a row the driver is tried with nothing of anybody's, and that decides.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use karta_sandbox::{Driver, Sandbox, Spec};
use karta_store::SessionRow;
use karta_types::session::Isolation;
use karta_types::{ErrorCode, Problem};

use crate::data::releases::Loaded;
use crate::{Engine, Error, Result};

/// Failures in a row after which a host is tried.
const MOST: u32 = 5;
/// How often a host that is out of rotation is tried.
pub(crate) const TRYING: Duration = Duration::from_secs(30);

/// What is known of this host.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Failures in a row.
    failures: u32,
    /// Why this host is out of rotation.
    out: Option<String>,
}

impl Health {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sandbox could not be made. Answers whether it is time to try this host.
    fn failed(&self) -> bool {
        let mut state = self.state();
        state.failures = state.failures.saturating_add(1);
        // Once for so many: whoever fails while it is tried starts no second trial.
        state.failures.is_multiple_of(MOST) && state.out.is_none()
    }

    /// A trial failed, too.
    fn take_out(&self, why: String) {
        tracing::error!(why, "this host is out of rotation: it makes no sandboxes any more");
        self.state().out = Some(why);
    }

    fn worked(&self) {
        let mut state = self.state();
        if std::mem::take(&mut *state).out.is_some() {
            tracing::info!("this host makes sandboxes again");
        }
    }

    /// Why this host is out of rotation; none if it is not.
    pub(crate) fn out(&self) -> Option<String> {
        let why = self.state().out.clone()?;
        Some(format!("sandboxes can't be made here ({why}); `karta doctor` says more"))
    }
}

impl Engine {
    /// A sandbox of the driver. Failures count against this host.
    pub(crate) async fn acquire(&self, driver: &dyn Driver, spec: &Spec) -> Result<Box<dyn Sandbox>> {
        match driver.acquire(spec).await {
            Ok(sandbox) => {
                self.health().worked();
                Ok(sandbox)
            }
            Err(error) => {
                // A full disk is told in its own way.
                if !error.is_full() && self.health().failed() {
                    self.doubt(driver).await;
                }
                Err(error.into())
            }
        }
    }

    /// Tries a host on which several sandboxes in a row could not be made.
    async fn doubt(&self, driver: &dyn Driver) {
        match driver.check().await {
            Ok(()) => tracing::warn!(
                "several sandboxes in a row could not be made, though one without a release can: it is the sessions' own trouble"
            ),
            Err(error) => self.health().take_out(crate::error::chain(&error)),
        }
    }

    /// Whether this host takes turns.
    ///
    /// # Errors
    /// `isolation_unavailable` with the reason, and when to try again.
    pub(crate) fn in_rotation(&self) -> Result<()> {
        let Some(why) = self.health().out() else { return Ok(()) };
        let mut problem =
            Problem::new(ErrorCode::IsolationUnavailable, why).with("retry_after", TRYING.as_secs());
        // Unlike where a server never gives what is asked for.
        problem.retryable = true;
        Err(problem.into())
    }

    /// Tries a host that is out of rotation.
    pub(crate) async fn try_host(&self) -> Result<()> {
        if self.health().out().is_some() {
            for driver in self.drivers() {
                driver.check().await?;
            }
            self.health().worked();
        }
        Ok(())
    }

    /// Whether the server still keeps a session as apart as it was told, and holds what the release asks: it may have been started
    /// again with another driver since. Answers what it gives.
    ///
    /// # Errors
    /// `isolation_unavailable`.
    pub(crate) fn still_gives(&self, row: &SessionRow, release: &Loaded) -> Result<Isolation> {
        let given = self.driver(release.harness.id()).isolation();
        let policy = &release.recipe().policy;
        let wanted = policy.isolation.map_or(row.isolation, |least| least.max(row.isolation));
        if wanted > given {
            return Err(Error::told(
                ErrorCode::IsolationUnavailable,
                format!(
                    "`{}` is what this session needs; this server gives `{}` now",
                    wanted.as_str(),
                    given.as_str()
                ),
            ));
        }
        let reaches = !policy.egress.is_empty() || !release.recipe().secrets.is_empty();
        if reaches && given <= Isolation::Process && given != Isolation::None {
            return Err(Error::told(
                ErrorCode::IsolationUnavailable,
                format!(
                    "the release says what may be reached, which `{}` does not hold: start the server with `namespace` or `microvm`",
                    given.as_str()
                ),
            ));
        }
        Ok(given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_in_a_row_are_a_reason_to_try_a_host() {
        let health = Health::default();
        for _ in 0..3 {
            for _ in 1..MOST {
                assert!(!health.failed());
            }
            health.worked();
        }
        let tried = (0..2 * MOST).filter(|_| health.failed()).count();
        assert_eq!((tried, health.out()), (2, None), "a trial that works takes no host out");
        health.take_out("the disk is gone".to_owned());
        assert!(health.out().is_some_and(|why| why.contains("the disk is gone")));
        assert_eq!((0..2 * MOST).filter(|_| health.failed()).count(), 0, "it is tried at its times");
        health.worked();
        assert_eq!(health.out(), None);
    }
}
