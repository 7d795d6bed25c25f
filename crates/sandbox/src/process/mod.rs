//! The driver `process`: harnesses as child processes of the server, each session with its own place and environment.
//!
//! This keeps sessions apart from each other's files only by convention: all processes run as the server's user. It is for folders
//! that are trusted as one's own code. What it does hold: nothing of the server's environment or descriptors reaches a process,
//! the release is never written, and every process ends with its session and with the server.

mod child;
mod copy;
mod keeper;
mod manifest;
mod place;
mod sandbox;
mod sweep;
mod update;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use karta_types::session::Isolation;
use karta_types::{Clock, Rng, SandboxId, SessionId};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};

pub use sweep::VARIABLE;

use crate::{Error, Spec};
use keeper::Keeper;
use place::Root;
use sandbox::Sandbox;

/// Runs harnesses as child processes.
pub struct Driver {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    lanes: Mutex<HashMap<SessionId, Weak<Lane>>>,
}

/// What the driver and its sandboxes have in common.
struct Shared {
    root: Root,
    programs: HashMap<String, (PathBuf, Vec<String>)>,
    rng: Arc<dyn Rng>,
    keeper: Arc<Keeper>,
}

/// One session's order: its place changes only while nothing uses it. True once it is erased.
type Lane = RwLock<bool>;

impl Driver {
    /// A driver with its places under `root`. A program asked for by a name in `programs` is the mapped one, its arguments going
    /// before the others. Fails if the two threads that keep the processes can't be started.
    pub fn new(
        root: impl AsRef<Path>,
        programs: HashMap<String, (PathBuf, Vec<String>)>,
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
    ) -> Result<Self, Error> {
        let root = root.as_ref();
        let root = std::path::absolute(root).map_err(place::at("finding", root))?;
        let keeper = Keeper::new().map_err(|error| {
            Error::Unavailable(format!("the threads that keep the processes could not be started ({error})"))
        })?;
        Ok(Self {
            shared: Arc::new(Shared { root: Root(root), programs, rng, keeper }),
            clock,
            lanes: Mutex::default(),
        })
    }

    fn lane(&self, session: SessionId) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(&session).and_then(Weak::upgrade) {
            return lane;
        }
        // Looking through all of them only when the table would grow keeps this cheap, and the table small.
        if lanes.len() == lanes.capacity() {
            lanes.retain(|_, lane| lane.strong_count() > 0);
        }
        let lane = Arc::new(Lane::new(false));
        lanes.insert(session, Arc::downgrade(&lane));
        lane
    }

    /// The session's lane, held alone. A lane whose session was erased is left to those who still hold it; a new one begins.
    async fn claim(&self, session: SessionId) -> (Arc<Lane>, OwnedRwLockWriteGuard<bool>) {
        loop {
            let lane = self.lane(session);
            let guard = Arc::clone(&lane).write_owned().await;
            if !*guard {
                return (lane, guard);
            }
            let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
            if lanes.get(&session).is_some_and(|known| known.as_ptr() == Arc::as_ptr(&lane)) {
                lanes.remove(&session);
            }
        }
    }

    /// Ends a session's processes and removes its place. Answers whether there was one.
    async fn remove(&self, session: SessionId) -> Result<bool, Error> {
        let (_lane, mut erased) = self.claim(session).await;
        let shared = Arc::clone(&self.shared);
        blocking("removing the place", move || {
            if let Some(root) = shared.root.identity() {
                let session = session.to_string();
                sweep::sweep(&|seen| {
                    seen.mark.as_ref().is_some_and(|mark| mark.root == root && mark.session == session)
                });
            }
            let removed = shared.root.remove(session);
            // Sandboxes of this session that are still held must not start anything any more.
            *erased = true;
            removed
        })
        .await
    }
}

#[async_trait]
impl crate::Driver for Driver {
    fn id(&self) -> &'static str {
        "process"
    }

    fn isolation(&self) -> Isolation {
        Isolation::Process
    }

    async fn check(&self) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        blocking("checking the data directory", move || {
            if let Err(error) = std::fs::read("/proc/self/environ").and_then(|_| std::fs::read_dir("/proc/self/fd")) {
                return Err(Error::Unavailable(format!(
                    "`/proc` can't be read ({error}), and processes are found and ended through it: mount it, or run the server \
                     where it is mounted"
                )));
            }
            shared.root.check()
        })
        .await
    }

    async fn notes(&self) -> Vec<String> {
        let shared = Arc::clone(&self.shared);
        let asked = blocking("looking at the file system", move || Ok(shared.root.shares_blocks())).await;
        if asked.unwrap_or(false) {
            return Vec::new();
        }
        vec![format!(
            "each session keeps a copy of its release's files: the file system under `{}` can't share blocks; XFS, Btrfs and bcachefs can",
            self.shared.root.0.display()
        )]
    }

    async fn acquire(&self, spec: &Spec) -> Result<Box<dyn crate::Sandbox>, Error> {
        let session = spec.session;
        let (lane, guard) = self.claim(session).await;
        let shared = Arc::clone(&self.shared);
        let (release, digest) = (spec.release.clone(), spec.digest.clone());
        let fresh = SandboxId::new(&*self.clock, &*self.shared.rng);
        // The guard goes with the work: if the caller gives up, the place is still not used half changed.
        let record = blocking("preparing the place", move || {
            let _guard = guard;
            shared.root.prepare(session, &release, &digest, fresh)
        })
        .await?;
        Ok(Box::new(Sandbox::new(Arc::clone(&self.shared), lane, session, record, spec.harness.clone())))
    }

    async fn erase(&self, session: SessionId) -> Result<(), Error> {
        self.remove(session).await.map(|_| ())
    }

    async fn reap(
        &self,
        keep: &(dyn for<'a> Fn(&'a SessionId) -> bool + Send + Sync),
    ) -> Result<usize, Error> {
        let shared = Arc::clone(&self.shared);
        let sessions = blocking("looking for what a crash left", move || {
            let sessions = shared.root.sessions()?;
            // Whatever was started on this root and not by this server has lost its server.
            if let Some(root) = shared.root.identity() {
                let killed = sweep::sweep(&|seen| {
                    seen.mark
                        .as_ref()
                        .is_some_and(|mark| mark.root == root && !shared.keeper.knows(mark.birth))
                });
                if killed > 0 {
                    tracing::info!(killed, "ended processes that a crash had left");
                }
            }
            Ok(sessions)
        })
        .await?;
        let mut removed = 0;
        for session in sessions {
            if !keep(&session) && self.remove(session).await? {
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Error::Unavailable(format!(
            "{doing} was cut off ({error}): the server is shutting down, or has a bug"
        )))
    })
}
