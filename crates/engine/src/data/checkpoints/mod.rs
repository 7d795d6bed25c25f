//! What a session has made, kept beyond its machine: the harness's home, and what differs from the release in the workspace.
//!
//! A checkpoint is a list of things and, for each file, the pieces it is put together from. Pieces are compressed, named by a keyed hash of
//! what they hold and sealed; new ones are packed into one object of the blob store, with the list and, at its end, the root. It exists
//! once its row is in the database: whatever ends before that leaves the one before, and packs that nobody names. Karta never reads
//! what is in them, but for what a harness is asked of its own history ([`Checkpoints::find`]).

mod blobs;
mod bring;
mod error;
mod fit;
mod keep;
mod load;
mod operate;
mod pack;
mod save;
mod seal;
mod tree;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use karta_store::{AuditEntry, CheckpointRow, Store};
use karta_types::{Clock, OrgId, Rng, Secret, SessionId, TurnId};
use object_store::ObjectStore;
use tokio::sync::Semaphore;

pub use error::CheckpointError;
pub(crate) use operate::open;
pub use operate::shred;

use crate::Result;
use crate::control::encryption::KeyEncryption;
use blobs::Blobs;
use load::{Listed, Source};
use save::{Base, Seen};
use seal::{Keys, Role, SessionKey};
use tree::{PackId, Root};

/// What a session may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of its files.
    pub bytes: u64,
    /// The most things.
    pub files: u64,
    /// How many checkpoints are kept.
    pub keep: u32,
    /// How long taking one, or putting one back, may last.
    pub seconds: u64,
}

/// Who owns the session: only the owner with this generation may add a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The organisation.
    pub org: OrgId,
    /// The session.
    pub session: SessionId,
    /// The owner's generation.
    pub generation: u64,
}

/// Whether somebody waits for a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// A turn's end waits for it: what can be done later is.
    Turn,
    /// Nobody waits: packs are tidied too, and what nothing names any more is removed.
    Rest,
}

/// What was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Saved {
    /// The checkpoint's number; that of the one before if nothing has changed.
    pub seq: u64,
    /// Whether anything had changed.
    pub changed: bool,
    /// Bytes taken out of the sandbox.
    pub taken: u64,
    /// Bytes put into the blob store.
    pub stored: u64,
}

/// What was put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// The checkpoint's number.
    pub seq: u64,
    /// The turn at whose end it was taken.
    pub turn: Option<TurnId>,
    /// How many things were put back.
    pub files: u64,
}

/// Checkpoints of all sessions.
pub struct Checkpoints {
    store: Store,
    blobs: Blobs,
    keys: Keys,
    limits: Limits,
    cpu: Arc<Semaphore>,
    sessions: Mutex<HashMap<SessionId, Arc<tokio::sync::Mutex<Held>>>>,
}

impl std::fmt::Debug for Checkpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoints").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// What is remembered of a session while its machine runs. Everything in it can be had from the store again.
#[derive(Default)]
struct Held {
    newest: Option<Newest>,
    seen: Option<Arc<Seen>>,
    /// Packs that no kept checkpoint names any more.
    unused: BTreeSet<PackId>,
    /// What a crash may have left was looked for.
    swept: bool,
    /// The checkpoint with this number can't be read: nothing of it or before it may be relied on.
    distrusted: Option<u64>,
}

/// The newest checkpoint.
struct Newest {
    row: CheckpointRow,
    base: Arc<Base>,
}

impl Newest {
    fn new(row: CheckpointRow, listed: Listed) -> Self {
        let Listed { tree, root: Root { lists, mut packs } } = listed;
        if let Ok(own) = row.pack.parse() {
            packs.insert(own, row.place.saturating_add(row.length));
        }
        Self { row, base: Arc::new(Base { tree, lists, packs }) }
    }
}

impl Checkpoints {
    /// Checkpoints in these stores, under keys that are wrapped by these. `folder` is where the blob store is, if it is a folder.
    pub fn new(
        store: Store,
        blobs: Arc<dyn ObjectStore>,
        folder: Option<PathBuf>,
        wrapping: Arc<dyn KeyEncryption>,
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
        limits: Limits,
    ) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            keys: Keys { store: store.clone(), wrapping, clock, rng },
            store,
            blobs: Blobs { store: blobs, folder },
            limits,
            cpu: Arc::new(Semaphore::new(processors)),
            sessions: Mutex::default(),
        }
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<tokio::sync::Mutex<Held>>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self, session: SessionId) -> Arc<tokio::sync::Mutex<Held>> {
        self.sessions().entry(session).or_default().clone()
    }

    /// Forgets what is remembered of a session whose machine is gone. What is kept stays kept.
    pub fn forget(&self, session: SessionId) {
        self.sessions().remove(&session);
    }

    fn source(&self, org: OrgId, session: SessionId, key: &Arc<SessionKey>, seq: u64) -> Source {
        Source { blobs: self.blobs.clone(), key: key.clone(), cpu: self.cpu.clone(), org, session, seq }
    }

    /// Whether anything is kept of the session.
    ///
    /// # Errors
    /// The store failed.
    pub async fn has(&self, org: OrgId, session: SessionId) -> Result<bool, CheckpointError> {
        Ok(!self.store.checkpoint_list(org, session).await?.is_empty())
    }

    /// Seals what is kept of a session's parked turn: readable as long as its checkpoints are.
    ///
    /// # Errors
    /// The key can't be had.
    pub(crate) async fn seal_parked(
        &self,
        org: OrgId,
        session: SessionId,
        plain: Secret<Vec<u8>>,
    ) -> Result<Vec<u8>, CheckpointError> {
        let key = self.keys.get_or_make(org, session).await?;
        pack::off_runtime(&self.cpu, move || {
            let mut sealed = Vec::new();
            key.seal(Role::Parked, &[], plain.expose(), &mut sealed).map(|()| sealed)
        })
        .await?
    }

    /// Opens what [`Checkpoints::seal_parked`] sealed for the same session; none if it is anything else, or longer than `most` bytes.
    ///
    /// # Errors
    /// The key can't be had, or was destroyed.
    pub(crate) async fn open_parked(
        &self,
        org: OrgId,
        session: SessionId,
        sealed: Vec<u8>,
        most: usize,
    ) -> Result<Option<Secret<Vec<u8>>>, CheckpointError> {
        let key = self.keys.get(org, session).await?.ok_or(CheckpointError::Shredded)?;
        let open = move || key.open(Role::Parked, &[], &sealed, most).map(Secret::new);
        pack::off_runtime(&self.cpu, open).await
    }

    /// Erases everything that is kept of a session.
    ///
    /// # Errors
    /// A store failed; again, it goes on where it ended.
    pub async fn erase(&self, org: OrgId, session: SessionId) -> Result<(), CheckpointError> {
        let held = self.held(session);
        let mut held = held.lock().await;
        *held = Held::default();
        // The rows first: a checkpoint without its packs would be taken for damaged.
        self.store.checkpoint_forget(org, session).await?;
        self.blobs.erase(org, session).await?;
        self.forget(session);
        Ok(())
    }

    /// Destroys an organisation's keys, then erases what they opened. Answers how many checkpoints there were. Copies that others have
    /// of the blob store are unreadable as soon as this has written to the database.
    ///
    /// # Errors
    /// A store failed. Once the keys are destroyed, what could not be erased is by the next sweep.
    pub async fn destroy_key(&self, org: OrgId, told: AuditEntry) -> Result<u64, CheckpointError> {
        let gone = self.store.state_keys_destroy(org, told).await?;
        self.blobs.erase_org(org).await?;
        Ok(gone)
    }

    /// Removes what is kept of sessions that do not exist any more: what a crash left of them. Answers of how many.
    ///
    /// # Errors
    /// A store failed.
    pub async fn sweep(&self) -> Result<usize, CheckpointError> {
        // In this order: a session exists before anything is kept of it.
        let kept = self.blobs.sessions().await?;
        if kept.is_empty() {
            return Ok(0);
        }
        let known = self.store.session_ids().await?;
        let mut gone = 0;
        for (org, session) in kept {
            if !known.contains(&session) {
                self.blobs.erase(org, session).await?;
                gone += 1;
            }
        }
        Ok(gone)
    }

    /// Makes a new key-encryption key and wraps every data key with it. Answers how many.
    ///
    /// # Errors
    /// A data key can't be unwrapped; those before it are done.
    pub async fn rotate(&self) -> Result<u64> {
        self.keys.wrapping.rotate().await?;
        let current = self.keys.wrapping.current();
        self.keys.rewrap(&current).await
    }

    /// Whether the key-encryption key has wrapped for long enough.
    pub fn is_due(&self) -> bool {
        self.keys.wrapping.is_due()
    }
}
