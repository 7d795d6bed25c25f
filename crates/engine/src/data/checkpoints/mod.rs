//! What a session has made, kept beyond its machine: the harness's home, and what differs from the release in the workspace.
//!
//! A checkpoint is a list of things and, for each file, the pieces it is put together from. Pieces are compressed, named by a keyed hash of
//! what they hold and sealed; new ones are packed into one object of the blob store, with the list and, at its end, the root. It exists
//! once its row is in the database: whatever ends before that leaves the one before, and packs that nobody names. Karta never reads
//! what is in them, but for what a harness is asked of its own history ([`Checkpoints::find`]).

mod blobs;
mod error;
mod fit;
mod load;
mod operate;
mod pack;
mod save;
mod seal;
mod tree;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use karta_sandbox::Sandbox;
use karta_sandbox::paths::Pattern;
use karta_sandbox::state::HOME;
use karta_store::{AuditEntry, CheckpointRow, Store};
use karta_types::{Clock, OrgId, Rng, SessionId, TurnId};
use object_store::ObjectStore;
use tokio::sync::Semaphore;

pub use error::CheckpointError;
pub(crate) use operate::open;
pub use operate::shred;

use crate::Result;
use crate::control::encryption::KeyEncryption;
use blobs::Blobs;
use load::{Listed, Source};
use pack::{Packer, Packing, off_runtime};
use save::{Base, Plan, Seen};
use seal::{Keys, Role, SessionKey};
use tree::{Item, Kind, PackId, Root};

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

    /// Keeps what the sandbox has now.
    ///
    /// # Errors
    /// The session has more than it may; the sandbox failed, or gave what can't be kept; another owner has the session; a store failed.
    /// What was kept before is kept still.
    pub async fn save(
        &self,
        owner: Owner,
        turn: Option<TurnId>,
        pace: Pace,
        sandbox: &dyn Sandbox,
    ) -> Result<Saved, CheckpointError> {
        let held = self.held(owner.session);
        let mut held = held.lock().await;
        let saving = self.save_held(&mut held, owner, turn, pace, sandbox);
        let saved = tokio::time::timeout(Duration::from_secs(self.limits.seconds), Box::pin(saving)).await;
        let saved = saved.unwrap_or(Err(CheckpointError::Late("taking a checkpoint")));
        match &saved {
            // Packs of it may lie there that nobody names.
            Err(_) => held.swept = false,
            Ok(_) if pace == Pace::Rest => self.collect(&mut held, owner).await,
            Ok(_) => {}
        }
        saved
    }

    async fn save_held(
        &self,
        held: &mut Held,
        owner: Owner,
        turn: Option<TurnId>,
        pace: Pace,
        sandbox: &dyn Sandbox,
    ) -> Result<Saved, CheckpointError> {
        let Owner { org, session, generation } = owner;
        let key = Arc::new(self.keys.get_or_make(org, session).await?);
        let rows = self.store.checkpoint_list(org, session).await?;
        let last = rows.first().map_or(0, |row| row.seq);
        self.refresh(held, &key, rows.first()).await?;
        let before = held.newest.as_ref().map(|newest| newest.base.clone());
        let machine = sandbox.id();
        let seen = held.seen.clone().filter(|seen| seen.machine == machine);

        // From here on changes are the next survey's.
        let now = self.keys.clock.now();
        let survey = Arc::new(save::survey(sandbox, &self.limits).await?);
        let (surveyed, base) = (survey.clone(), before.clone());
        let Plan { changed, mut tree, worn, known } =
            off_runtime(&self.cpu, move || save::plan(&surveyed, seen.as_deref(), base.as_deref(), pace))
                .await?;
        let packing = Packing {
            blobs: self.blobs.clone(),
            key: key.clone(),
            cpu: self.cpu.clone(),
            rng: self.keys.rng.clone(),
            org,
            session,
            generation,
        };
        let mut packer = Packer::new(packing, known);
        let taken = save::take(sandbox, changed, &mut tree, &self.limits, &mut packer).await?;
        if !worn.is_empty() {
            save::relocate(&mut tree, &worn, &self.source(org, session, &key, last), &mut packer).await?;
        }
        let (tree, parts, bytes, seen) = off_runtime(&self.cpu, move || {
            let (parts, bytes) = (tree::parts(&tree), tree.values().map(Item::size).sum());
            let seen = Seen::new(machine, &survey, &tree, now);
            (tree, parts, bytes, seen)
        })
        .await?;
        if bytes > self.limits.bytes {
            return Err(CheckpointError::Refused { what: "bytes", have: bytes, most: self.limits.bytes });
        }
        for part in parts {
            packer.add(Role::List, part.into()).await?;
        }
        let lists = packer.collect().await?;
        if before.as_ref().is_some_and(|base| base.lists == lists) {
            held.seen = Some(Arc::new(seen));
            return Ok(Saved { seq: last, changed: false, taken, stored: 0 });
        }

        let seq = last + 1;
        let (into, at) = packer.open();
        let (sealing, lengths) = (key.clone(), packer.put.clone());
        let (tree, root, sealed) = off_runtime(&self.cpu, move || {
            let mut packs: BTreeMap<PackId, u64> = BTreeMap::new();
            for used in tree::packs_of(&tree, &lists) {
                let length = lengths.get(&used).or_else(|| before.as_ref()?.packs.get(&used)).copied();
                packs.extend(length.map(|length| (used, length)));
            }
            let root = Root { lists, packs };
            let mut sealed = Vec::new();
            let done = sealing.seal(Role::Root, &seq.to_be_bytes(), &root.write(), &mut sealed);
            done.map(|()| (tree, root, sealed))
        })
        .await??;
        let length = sealed.len() as u64;
        packer.finish(&sealed).await?;
        let stored = packer.put.values().sum();
        let row = CheckpointRow {
            org,
            session,
            seq,
            turn,
            key: key.id.clone(),
            pack: into.to_string(),
            place: at,
            length,
            packs: root.packs.keys().chain([&into]).map(PackId::to_string).collect(),
            files: tree.len() as u64,
            bytes,
            at: now,
        };
        let left = self.store.checkpoint_add(row.clone(), generation, self.limits.keep).await?;
        note_unused(held, &rows, &left);
        held.seen = Some(Arc::new(seen));
        held.newest = Some(Newest::new(row, Listed { tree, root }));
        held.distrusted = None;
        Ok(Saved { seq, changed: true, taken, stored })
    }

    /// Makes what is remembered of the newest checkpoint that of this row.
    async fn refresh(
        &self,
        held: &mut Held,
        key: &Arc<SessionKey>,
        row: Option<&CheckpointRow>,
    ) -> Result<(), CheckpointError> {
        if held.newest.as_ref().map(|newest| &newest.row) == row {
            return Ok(());
        }
        held.newest = None;
        held.seen = None;
        let Some(row) = row else { return Ok(()) };
        if held.distrusted.is_some_and(|seq| seq >= row.seq) {
            return Ok(());
        }
        match self.source(row.org, row.session, key, row.seq).listed(row).await {
            Ok(listed) => held.newest = Some(Newest::new(row.clone(), listed)),
            // Then everything is put anew: what is in the machine is all that there is.
            Err(error @ (CheckpointError::Damaged { .. } | CheckpointError::Shredded)) => {
                tracing::error!(session = %row.session, %error, "the newest checkpoint");
                held.distrusted = Some(row.seq);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Removes packs that no checkpoint names. Failing is no reason for anything else to fail: it is tried again.
    async fn collect(&self, held: &mut Held, owner: Owner) {
        let Owner { org, session, generation } = owner;
        let done = async {
            if !held.swept {
                // What lies there first, then what is named: a checkpoint that is added in between is not lost.
                let lying = self.blobs.list(org, session).await?;
                let rows = self.store.checkpoint_list(org, session).await?;
                let named: HashSet<PackId> = names(&rows);
                held.unused = lying.into_iter().filter(|pack| !named.contains(pack)).collect();
                // An owner after this one may have put packs whose checkpoint is not added yet.
                held.unused.retain(save::mine(generation));
                self.blobs.remove_partial(org, session).await?;
                held.swept = true;
            }
            while let Some(pack) = held.unused.first().copied() {
                self.blobs.remove(org, session, pack).await?;
                held.unused.remove(&pack);
            }
            Ok::<_, CheckpointError>(())
        };
        if let Err(error) = done.await {
            tracing::warn!(%session, error = crate::error::chain(&error), "removing old checkpoints");
        }
    }

    /// Puts what was kept into a new sandbox: the newest checkpoint, or with `back` one that is so many older. None if there is none.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`]: that one can't be read, and the sandbox may hold half of it: close it, and try with another and
    /// one more `back`. The sandbox or a store failed.
    pub async fn load(
        &self,
        owner: Owner,
        back: usize,
        sandbox: &dyn Sandbox,
    ) -> Result<Option<Loaded>, CheckpointError> {
        let Owner { org, session, .. } = owner;
        let held = self.held(session);
        let mut held = held.lock().await;
        let rows = self.store.checkpoint_list(org, session).await?;
        if back > 0 {
            held.newest = None;
            held.distrusted = rows.first().map(|row| row.seq);
        }
        let Some(row) = rows.get(back) else { return Ok(None) };
        let Some(key) = self.keys.get(org, session).await? else { return Err(CheckpointError::Shredded) };
        let source = self.source(org, session, &Arc::new(key), row.seq);
        let loading = Box::pin(self.load_row(&mut held, row, source, sandbox));
        let loaded = tokio::time::timeout(Duration::from_secs(self.limits.seconds), loading).await;
        loaded.unwrap_or(Err(CheckpointError::Late("putting a checkpoint back")))?;
        Ok(Some(Loaded { seq: row.seq, turn: row.turn, files: row.files }))
    }

    async fn load_row(
        &self,
        held: &mut Held,
        row: &CheckpointRow,
        source: Source,
        sandbox: &dyn Sandbox,
    ) -> Result<(), CheckpointError> {
        let listed = source.listed(row).await?;
        let newest = Newest::new(row.clone(), listed);
        let failed: Arc<Mutex<Option<CheckpointError>>> = Arc::default();
        let (base, failing) = (newest.base.clone(), failed.clone());
        let records = off_runtime(&self.cpu, move || source.records(&base.tree, failing)).await?;
        if let Err(error) = sandbox.restore(records).await {
            let ours = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Err(ours.unwrap_or(CheckpointError::Sandbox(error)));
        }
        // What the machine calls the state that it has now: only what changes from here on is taken out again.
        let now = self.keys.clock.now();
        let survey = save::survey(sandbox, &self.limits).await?;
        let (machine, base) = (sandbox.id(), newest.base.clone());
        let seen = off_runtime(&self.cpu, move || Seen::new(machine, &survey, &base.tree, now)).await?;
        held.seen = Some(Arc::new(seen));
        if held.distrusted.is_none() {
            held.newest = Some(newest);
        }
        Ok(())
    }

    /// Reads files of the home out of the newest checkpoint, without a machine: those that match `pattern` (relative to the home, one
    /// `*` for one folder level), newest first, each at most `limit` bytes. The paths are relative to the home.
    ///
    /// # Errors
    /// The pattern leads out of the home; the checkpoint can't be read; a store failed.
    pub async fn find(
        &self,
        org: OrgId,
        session: SessionId,
        pattern: &str,
        limit: u64,
    ) -> Result<Vec<(PathBuf, Vec<u8>)>, CheckpointError> {
        let pattern = Pattern::parse(pattern)?;
        // A checkpoint that is added meanwhile may take the packs of this one with it: then the next one is read.
        let mut tries = 3;
        loop {
            tries -= 1;
            let rows = self.store.checkpoint_list(org, session).await?;
            let Some(row) = rows.first() else { return Ok(Vec::new()) };
            match self.find_in(row, &pattern, limit).await {
                Err(CheckpointError::Damaged { .. }) if tries > 0 => {}
                found => return found,
            }
        }
    }

    async fn find_in(
        &self,
        row: &CheckpointRow,
        pattern: &Pattern,
        limit: u64,
    ) -> Result<Vec<(PathBuf, Vec<u8>)>, CheckpointError> {
        let Some(key) = self.keys.get(row.org, row.session).await? else {
            return Err(CheckpointError::Shredded);
        };
        let source = self.source(row.org, row.session, &Arc::new(key), row.seq);
        let tree = source.listed(row).await?.tree;
        let file = |(path, item): (&PathBuf, &Item)| {
            let path = path.strip_prefix(HOME).ok()?;
            let file = matches!(item.kind, Kind::File(_)) && pattern.matches(path);
            file.then(|| (path.to_owned(), item.clone()))
        };
        let mut found: Vec<_> = tree.iter().filter_map(file).collect();
        found.sort_by_key(|(_, item)| std::cmp::Reverse(item.modified));
        let mut read = Vec::with_capacity(found.len());
        for (path, item) in found {
            read.push((path, source.read(&item, limit).await?));
        }
        Ok(read)
    }

    /// Whether anything is kept of the session.
    ///
    /// # Errors
    /// The store failed.
    pub async fn has(&self, org: OrgId, session: SessionId) -> Result<bool, CheckpointError> {
        Ok(!self.store.checkpoint_list(org, session).await?.is_empty())
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

/// The packs that these name.
fn names(rows: &[CheckpointRow]) -> HashSet<PackId> {
    rows.iter().flat_map(|row| &row.packs).filter_map(|name| name.parse().ok()).collect()
}

/// Notes packs that were named before and are named no more.
fn note_unused(held: &mut Held, before: &[CheckpointRow], after: &[CheckpointRow]) {
    let (before, after) = (names(before), names(after));
    held.unused.extend(before.difference(&after));
}
