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
use tokio::time::Instant;

use crate::data::releases::Loaded;
use crate::{Engine, Error, Result};

/// Failures in a row after which a host is tried.
const MOST: u32 = 5;
/// How often a host that is out of rotation is tried, and the least time between two trials of one that is in doubt.
pub(crate) const TRYING: Duration = Duration::from_secs(30);

/// What is known of this host.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Failures in a row.
    failures: u32,
    /// The driver whose failures these are.
    driver: Option<&'static str>,
    /// Why this host is out of rotation.
    out: Option<String>,
    /// How often something worked.
    worked: u64,
    /// Whether this host is tried at the moment.
    trying: bool,
    /// When its last trial ended.
    tried: Option<Instant>,
}

/// A trial of this host; there is one at a time. It may be given up at any moment.
struct Trial<'a> {
    health: &'a Health,
    /// What had worked when it began.
    worked: u64,
}

impl Trial<'_> {
    /// It failed. Answers whether that takes this host out of rotation: not if something worked since the trial began.
    fn take_out(&self, why: &str) -> bool {
        let mut state = self.health.state();
        let counts = state.worked == self.worked;
        if counts {
            state.out = Some(why.to_owned());
        }
        counts
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        let mut state = self.health.state();
        (state.trying, state.tried) = (false, Some(Instant::now()));
    }
}

impl Health {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A driver could not make a sandbox. Answers a trial if it is time for one.
    fn failed(&self, driver: &'static str) -> Option<Trial<'_>> {
        let mut state = self.state();
        if state.out.is_none() && state.driver.replace(driver) != Some(driver) {
            state.failures = 0;
        }
        state.failures = state.failures.saturating_add(1);
        // Whoever fails while it is tried starts no second trial, nor does who fails soon after: trials take room themselves.
        let due = state.failures >= MOST
            && state.out.is_none()
            && !state.trying
            && state.tried.is_none_or(|tried| tried.elapsed() >= TRYING);
        due.then(|| {
            state.trying = true;
            Trial { health: self, worked: state.worked }
        })
    }

    /// A driver made a sandbox: that says nothing of another one.
    fn worked(&self, driver: &'static str) {
        let mut state = self.state();
        if state.driver.is_some_and(|failing| failing != driver) {
            return;
        }
        state.worked = state.worked.wrapping_add(1);
        (state.failures, state.driver) = (0, None);
        if state.out.take().is_some() {
            tracing::info!("this host makes sandboxes again");
        }
    }

    /// The driver that took this host out of rotation; none if it is not.
    fn broken(&self) -> Option<&'static str> {
        let state = self.state();
        state.out.as_ref().and(state.driver)
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
                self.health().worked(driver.id());
                Ok(sandbox)
            }
            Err(error) => {
                // A full disk is told in its own way.
                if !error.is_full()
                    && let Some(trial) = self.health().failed(driver.id())
                {
                    doubt(driver, &trial).await;
                }
                Err(error.into())
            }
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
        let Some(broken) = self.health().broken() else { return Ok(()) };
        // One may be both.
        if let Some(driver) = self.every_driver().into_iter().find(|driver| driver.id() == broken) {
            driver.check().await?;
        }
        self.health().worked(broken);
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

/// Tries a host on which several sandboxes in a row could not be made.
async fn doubt(driver: &dyn Driver, trial: &Trial<'_>) {
    match driver.check().await {
        Ok(()) => tracing::warn!(
            "several sandboxes in a row could not be made, though one without a release can: it is the sessions' own trouble"
        ),
        // As where a session's sandbox is made.
        Err(error) if error.is_full() => tracing::warn!("this host could not be tried: its disk is full"),
        Err(error) => {
            let why = crate::error::chain(&error);
            if trial.take_out(&why) {
                tracing::error!(why, "this host is out of rotation: it makes no sandboxes any more");
            } else {
                tracing::warn!(why, "a trial of this host failed while sandboxes were made");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_failures_in_a_row_are_a_reason_to_try_a_host() {
        let health = Health::default();
        for driver in ["a", "b", "a", "a"] {
            for _ in 1..MOST {
                assert!(health.failed(driver).is_none());
            }
            health.worked(driver);
        }
        for _ in 1..MOST {
            assert!(health.failed("a").is_none());
        }
        health.worked("b");
        let trial = health.failed("a").expect("what works elsewhere says nothing");
        assert!(trial.take_out("the disk is gone"));
        drop(trial);
        assert!(health.out().is_some_and(|why| why.contains("the disk is gone")));
        tokio::time::advance(TRYING).await;
        assert!((0..2 * MOST).all(|_| health.failed("b").is_none()), "it is tried at its times");
        assert_eq!(health.broken(), Some("a"));
        health.worked("b");
        assert!(health.out().is_some());
        health.worked("a");
        assert_eq!((health.out(), health.broken()), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn trials_do_not_pile_up() {
        let health = Health::default();
        let mut trials = (0..500).filter_map(|_| health.failed("a")).collect::<Vec<_>>();
        assert_eq!(trials.len(), 1, "one at a time");
        tokio::time::advance(2 * TRYING).await;
        assert!(health.failed("a").is_none(), "however long it takes");
        // Given up or over: the next has its time.
        trials.clear();
        assert!((0..500).all(|_| health.failed("a").is_none()));
        assert_eq!(health.out(), None, "a trial that works takes no host out");
        tokio::time::advance(TRYING).await;
        let trial = health.failed("a").unwrap();
        health.worked("a");
        assert!(!trial.take_out("too many at once"), "something worked meanwhile");
        assert_eq!(health.out(), None);
    }
}
