//! Archives on their way in or out. Each holds a thread as long as its client takes, so there are so many at once and no more.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use karta_types::{ErrorCode, OrgId, Problem};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::{Error, Result};

/// All of them: a fraction of the threads that blocking work has.
const AT_ONCE: usize = 96;
/// Those of one organisation.
const OF_ONE: usize = 24;
/// Seconds after which it is worth asking again.
const LATER: i64 = 5;
/// How long a reader may stand still.
const STILL: Duration = Duration::from_mins(1);

/// The archives on their way.
#[derive(Debug)]
pub(crate) struct Transfers {
    all: Arc<Semaphore>,
    of: Mutex<HashMap<OrgId, Weak<Semaphore>>>,
}

/// One of them; dropped, there is room for another.
#[derive(Debug)]
pub(super) struct Transfer {
    _all: OwnedSemaphorePermit,
    _of: OwnedSemaphorePermit,
}

impl Default for Transfers {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(AT_ONCE)), of: Mutex::default() }
    }
}

impl Transfers {
    /// One more.
    ///
    /// # Errors
    /// `rate_limited` where the organisation has as many as it may, `overloaded` where the server has.
    pub(super) fn begin(&self, org: OrgId) -> Result<Transfer> {
        let of = {
            let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
            of.retain(|_, known| known.strong_count() > 0);
            let known = of.get(&org).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let new = Arc::new(Semaphore::new(OF_ONE));
                of.insert(org, Arc::downgrade(&new));
                new
            })
        };
        let full = |code, detail: String| Error::from(Problem::new(code, detail).with("retry_after", LATER));
        let of = of.try_acquire_owned().map_err(|_| {
            full(ErrorCode::RateLimited, format!("{OF_ONE} archives of the organisation are on their way"))
        })?;
        let all = self
            .all
            .clone()
            .try_acquire_owned()
            .map_err(|_| full(ErrorCode::Overloaded, "too many archives are on their way".to_owned()))?;
        Ok(Transfer { _all: all, _of: of })
    }
}

/// A way out for blocking work, whose reader must not stand still.
pub(super) struct Outward {
    to: mpsc::Sender<io::Result<Bytes>>,
    runtime: Handle,
}

impl Outward {
    /// To a reader on this runtime.
    pub(super) fn new(to: mpsc::Sender<io::Result<Bytes>>) -> Self {
        Self { to, runtime: Handle::current() }
    }
}

impl Write for Outward {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let send = self.to.send(Ok(Bytes::copy_from_slice(bytes)));
        // The timer belongs to the runtime, so it is made there.
        match self.runtime.block_on(async { tokio::time::timeout(STILL, send).await }) {
            Ok(Ok(())) => Ok(bytes.len()),
            Ok(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the reader stood still")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_organisation_leaves_room_for_another() {
        let transfers = Transfers::default();
        let (one, other) = (OrgId::from_u128(1), OrgId::from_u128(2));
        let mut held: Vec<_> = (0..OF_ONE).map(|_| transfers.begin(one).unwrap()).collect();
        assert_eq!(transfers.begin(one).unwrap_err().code(), ErrorCode::RateLimited);
        drop(transfers.begin(other).unwrap());
        held.pop();
        drop(transfers.begin(one).unwrap());
    }
}
