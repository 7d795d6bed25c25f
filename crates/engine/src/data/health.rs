//! Whether this host can still make sandboxes. One that keeps failing takes no more turns, says why, and comes back by itself.

use std::sync::{Mutex, PoisonError};

use karta_sandbox::{Driver, Sandbox, Spec};
use karta_store::SessionRow;
use karta_types::ErrorCode;
use karta_types::session::Isolation;

use crate::data::releases::Loaded;
use crate::{Engine, Error, Result};

/// Failures in a row after which a host is out of rotation. One session's own trouble is not so many.
const MOST: u32 = 5;

/// What is known of this host.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<(u32, String)>);

impl Health {
    fn failed(&self, why: String) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = state.0.saturating_add(1);
        state.1 = why;
        if state.0 == MOST {
            tracing::error!(why = state.1, "this host is out of rotation: it makes no sandboxes any more");
        }
    }

    fn worked(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut state.0) >= MOST {
            tracing::info!("this host makes sandboxes again");
        }
    }

    /// Why this host is out of rotation; none if it is not.
    pub(crate) fn out(&self) -> Option<String> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (state.0 >= MOST).then(|| {
            format!(
                "the last {} sandboxes could not be made here ({}); `karta doctor` says more",
                state.0, state.1
            )
        })
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
                if !error.is_full() {
                    self.health().failed(crate::error::chain(&error));
                }
                Err(error.into())
            }
        }
    }

    /// Whether this host takes turns.
    ///
    /// # Errors
    /// `isolation_unavailable` with the reason.
    pub(crate) fn in_rotation(&self) -> Result<()> {
        self.health().out().map_or(Ok(()), |why| Err(Error::told(ErrorCode::IsolationUnavailable, why)))
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
    fn only_failures_in_a_row_take_a_host_out() {
        let health = Health::default();
        for _ in 0..3 {
            for _ in 1..MOST {
                health.failed("no".to_owned());
            }
            assert_eq!(health.out(), None);
            health.worked();
        }
        for _ in 0..MOST {
            health.failed("the disk is gone".to_owned());
        }
        assert!(health.out().is_some_and(|why| why.contains("the disk is gone")));
        health.worked();
        assert_eq!(health.out(), None);
    }
}
