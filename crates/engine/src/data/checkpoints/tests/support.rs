//! A machine in memory, a blob store that can go wrong, and a world for them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use karta_sandbox::state::{Entry, Kind, Record, Records};
use karta_sandbox::{Command, Duplex, Error, Place, Process, Sandbox};
use karta_store::{AuditEntry, Durability, Keyring, Options, OrgRow, SessionRow, Store};
use karta_types::rng::Seeded;
use karta_types::session::{Isolation, PermissionMode, ReleasePin, SessionStatus};
use karta_types::time::Fixed;
use karta_types::{AuditId, Clock, OrgId, ProjectId, Rng, SandboxId, SessionId, Timestamp, TurnId};
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use crate::control::encryption::{KeyEncryption, LocalKeys};
use crate::data::checkpoints::{CheckpointError, Checkpoints, Limits, Loaded, Owner, Pace, Saved};

/// Long past: a stamp of then is trusted.
pub(super) const PAST: i64 = 1_700_000_000_000_000_000;
pub(super) const LIMITS: Limits = Limits { bytes: 64 << 20, files: 10_000, keep: 3, seconds: 60 };

/// A machine: what is in it, by path, and how it lies.
#[derive(Default)]
pub(super) struct Machine {
    id: u128,
    pub(super) things: Mutex<BTreeMap<PathBuf, (Entry, Bytes)>>,
    stamps: AtomicU64,
    /// Files that were taken out of it.
    pub(super) taken: AtomicU64,
    /// What it says instead of the truth.
    pub(super) lie: Mutex<Option<Lie>>,
}

pub(super) type Lie = Arc<dyn Fn(Vec<PathBuf>) -> Records + Send + Sync>;

impl Machine {
    pub(super) fn new(id: u128) -> Self {
        Self { id, stamps: AtomicU64::new(1), ..Self::default() }
    }

    fn stamp(&self) -> u64 {
        self.stamps.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn set(&self, path: &str, kind: Kind, content: &[u8]) {
        let entry = Entry { path: path.into(), kind, mode: 0o644, stamp: self.stamp(), modified: PAST };
        self.things.lock().unwrap().insert(path.into(), (entry, Bytes::copy_from_slice(content)));
    }

    pub(super) fn file(&self, path: &str, content: &[u8]) {
        self.set(path, Kind::File { size: content.len() as u64 }, content);
    }

    pub(super) fn remove(&self, path: &str) {
        self.things.lock().unwrap().retain(|known, _| !known.starts_with(path));
    }

    /// Everything in it but the stamps, which are each machine's own.
    pub(super) fn state(&self) -> BTreeMap<PathBuf, (Entry, Bytes)> {
        let mut things = self.things.lock().unwrap().clone();
        for (entry, _) in things.values_mut() {
            entry.stamp = 0;
        }
        things
    }
}

#[async_trait]
impl Sandbox for Machine {
    fn id(&self) -> SandboxId {
        SandboxId::from_u128(self.id)
    }

    fn place(&self) -> &Place {
        unreachable!("nobody asks")
    }

    fn kept(&self) -> &[String] {
        &[]
    }

    async fn survey(&self) -> Result<Vec<Entry>, Error> {
        Ok(self.things.lock().unwrap().values().map(|(entry, _)| entry.clone()).collect())
    }

    async fn take(&self, paths: Vec<PathBuf>) -> Result<Records, Error> {
        if let Some(lie) = self.lie.lock().unwrap().clone() {
            return Ok(lie(paths));
        }
        let things = self.things.lock().unwrap();
        let mut records = Vec::new();
        for path in paths {
            let Some((entry, content)) = things.get(&path) else { continue };
            self.taken.fetch_add(1, Ordering::Relaxed);
            records.push(Ok(Record::Entry(entry.clone())));
            records
                .extend(content.chunks(64 << 10).map(|part| Ok(Record::Data(Bytes::copy_from_slice(part)))));
        }
        Ok(Box::pin(stream::iter(records)))
    }

    async fn restore(&self, mut records: Records) -> Result<(), Error> {
        let mut open: Option<(Entry, Vec<u8>)> = None;
        while let Some(record) = records.next().await {
            match record? {
                Record::Data(bytes) => {
                    assert!(!bytes.is_empty() && bytes.len() <= 64 << 10);
                    open.as_mut().unwrap().1.extend_from_slice(&bytes);
                }
                Record::Entry(entry) => {
                    self.put_back(open.take());
                    open = Some((Entry { stamp: self.stamp(), ..entry }, Vec::new()));
                }
            }
        }
        self.put_back(open);
        Ok(())
    }

    async fn spawn(&self, _: &Command) -> Result<Process, Error> {
        unreachable!("nobody asks")
    }

    async fn connect(&self, _: u16) -> Result<Box<dyn Duplex>, Error> {
        unreachable!("nobody asks")
    }

    async fn put(&self, _: &Path, _: &[u8]) -> Result<(), Error> {
        unreachable!("nobody asks")
    }

    async fn find(&self, _: &str, _: u64) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
        unreachable!("nobody asks")
    }

    async fn export(&self, _: &Path) -> Result<(), Error> {
        unreachable!("nobody asks")
    }
}

impl Machine {
    fn put_back(&self, done: Option<(Entry, Vec<u8>)>) {
        let Some((entry, content)) = done else { return };
        if let Kind::File { size } = entry.kind {
            assert_eq!(size, content.len() as u64, "{}", entry.path.display());
        }
        self.things.lock().unwrap().insert(entry.path.clone(), (entry, content.into()));
    }
}

/// A blob store in memory. Every step counts; at one of them it can stop for ever or fail.
#[derive(Debug, Default)]
pub(super) struct Faulty {
    pub(super) inner: InMemory,
    pub(super) steps: AtomicU64,
    /// The step that is not taken: whoever waits for it waits for ever.
    pub(super) dies_at: AtomicU64,
    /// Whether that step is taken before.
    pub(super) dies_after: AtomicBool,
    /// The step that fails as a full disk does.
    pub(super) full_at: AtomicU64,
    pub(super) put_bytes: AtomicU64,
    pub(super) dead: tokio::sync::Notify,
}

impl std::fmt::Display for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Faulty")
    }
}

impl Faulty {
    async fn step(&self) -> object_store::Result<u64> {
        let step = self.steps.fetch_add(1, Ordering::SeqCst) + 1;
        if !self.dies_after.load(Ordering::SeqCst) {
            self.die(step).await;
        }
        if step == self.full_at.load(Ordering::SeqCst) {
            let source = Box::new(std::io::Error::from(std::io::ErrorKind::StorageFull));
            return Err(object_store::Error::Generic { store: "Faulty", source });
        }
        Ok(step)
    }

    async fn die(&self, step: u64) {
        if step == self.dies_at.load(Ordering::SeqCst) {
            self.dead.notify_one();
            std::future::pending::<()>().await;
        }
    }

    /// The objects, by name, with their sizes.
    pub(super) async fn objects(&self) -> BTreeMap<String, u64> {
        let listed = self.inner.list(None).map(|object| object.unwrap());
        listed.map(|object| (object.location.to_string(), object.size)).collect().await
    }

    /// Changes an object.
    pub(super) async fn change(&self, name: &str, change: impl Fn(&mut Vec<u8>)) {
        let key = Key::from(name);
        let mut bytes = self.inner.get(&key).await.unwrap().bytes().await.unwrap().to_vec();
        change(&mut bytes);
        self.inner.put(&key, bytes.into()).await.unwrap();
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        at: &Key,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        let step = self.step().await?;
        self.put_bytes.fetch_add(payload.content_length() as u64, Ordering::Relaxed);
        let done = self.inner.put_opts(at, payload, opts).await;
        self.die(step).await;
        done
    }

    async fn put_multipart_opts(
        &self,
        at: &Key,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, at: &Key, options: GetOptions) -> object_store::Result<GetResult> {
        let step = self.step().await?;
        let done = self.inner.get_opts(at, options).await;
        self.die(step).await;
        done
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, object_store::Result<Key>>,
    ) -> BoxStream<'static, object_store::Result<Key>> {
        let step = self.steps.fetch_add(1, Ordering::SeqCst) + 1;
        if step == self.dies_at.load(Ordering::SeqCst) {
            self.dead.notify_one();
            return Box::pin(stream::pending());
        }
        self.inner.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A database, keys and a blob store that outlive what uses them.
pub(super) struct World {
    pub(super) folder: tempfile::TempDir,
    pub(super) store: Store,
    pub(super) blobs: Arc<Faulty>,
    pub(super) keys: Arc<LocalKeys>,
    pub(super) clock: Arc<Fixed>,
    rng: Arc<Seeded>,
}

impl World {
    pub(super) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rng = Arc::new(Seeded::new(11));
        let clock = Arc::new(Fixed::new(Timestamp::from_micros(1_795_478_656_000_000)));
        let store = open(&folder.path().join("karta.db"), &*rng).await;
        let keys = LocalKeys::open(&folder.path().join("keys"), clock.clone(), rng.clone()).unwrap();
        Self { folder, store, blobs: Arc::default(), keys: Arc::new(keys), clock, rng }
    }

    /// Checkpoints as another process would have them: nothing is remembered.
    pub(super) fn checkpoints(&self) -> Checkpoints {
        self.with(LIMITS)
    }

    pub(super) fn with(&self, limits: Limits) -> Checkpoints {
        let keys: Arc<dyn KeyEncryption> = self.keys.clone();
        let (clock, rng) = (self.clock.clone(), self.rng.clone());
        Checkpoints::new(self.store.clone(), self.blobs.clone(), None, keys, clock, rng, limits)
    }

    pub(super) async fn org(&self, number: u128) -> OrgId {
        let id = OrgId::from_u128(number);
        let slug = format!("org{number}");
        let row = OrgRow { id, name: slug.clone(), slug, created_at: self.clock.now() };
        self.store.org_insert(&row).await.unwrap();
        id
    }

    /// A new session of the organisation, and its owner.
    pub(super) async fn session(&self, org: OrgId, number: u128) -> Owner {
        let session = SessionId::from_u128(number);
        let row = SessionRow {
            id: session,
            org,
            project: ProjectId::from_u128(1),
            key: None,
            status: SessionStatus::Idle,
            title: None,
            metadata: BTreeMap::new(),
            current_agent: None,
            participants: Vec::new(),
            permission_mode: PermissionMode::default(),
            release_pin: ReleasePin::default(),
            pinned_version: None,
            last_version: None,
            isolation: Isolation::None,
            end_user_id: None,
            parent_id: None,
            native: None,
            harness: None,
            head: karta_types::Seq::START,
            generation: 0,
            usage: karta_types::usage::Metered::default(),
            created_at: self.clock.now(),
            updated_at: self.clock.now(),
            expires_at: None,
        };
        self.store.session_insert(&row).await.unwrap();
        self.own(Owner { org, session, generation: 0 }).await
    }

    /// The next owner of the session.
    pub(super) async fn own(&self, owner: Owner) -> Owner {
        let row = self.store.session_own(owner.org, owner.session, self.clock.now()).await.unwrap();
        Owner { generation: u64::try_from(row.generation).unwrap(), ..owner }
    }

    pub(super) fn told(&self, org: OrgId) -> AuditEntry {
        AuditEntry {
            id: AuditId::new(&*self.clock, &*self.rng),
            org,
            at: self.clock.now(),
            actor: "system:test".into(),
            action: "state_key.destroy".into(),
            resource: org.to_string(),
            request: None,
            address: None,
            before: None,
            after: None,
            reason: None,
        }
    }

    /// Every pack that a kept checkpoint names is there, and no other.
    pub(super) async fn check_packs(&self, owner: Owner) {
        let rows = self.store.checkpoint_list(owner.org, owner.session).await.unwrap();
        let top = format!("state/{}/{}/", owner.org, owner.session);
        let mut named: Vec<String> =
            rows.iter().flat_map(|row| &row.packs).map(|pack| format!("{top}{pack}")).collect();
        named.sort();
        named.dedup();
        let lying: Vec<String> =
            self.blobs.objects().await.into_keys().filter(|name| name.starts_with(&top)).collect();
        assert_eq!(named, lying);
    }
}

pub(super) async fn open(path: &Path, rng: &dyn Rng) -> Store {
    let options = Options {
        url: format!("sqlite:{}", path.display()),
        durability: Durability::Process,
        keys: Keyring::in_memory(rng),
        data_plane: false,
    };
    Store::open(options).await.unwrap()
}

/// A turn's id, as a checkpoint has it.
#[expect(clippy::unnecessary_wraps, reason = "a checkpoint may have none")]
pub(super) fn turn(number: u128) -> Option<TurnId> {
    Some(TurnId::from_u128(number))
}

/// Keeps what a machine has at a turn's end.
pub(super) async fn save(at: &Checkpoints, owner: Owner, machine: &Machine) -> Saved {
    at.save(owner, turn(1), Pace::Turn, machine).await.unwrap()
}

/// What another machine has after everything was put back into it.
pub(super) async fn load(at: &Checkpoints, owner: Owner) -> (Loaded, Machine) {
    let machine = Machine::new(99);
    let loaded = at.load(owner, 0, &machine).await.unwrap().expect("something is kept");
    (loaded, machine)
}

/// Does something until the blob store dies, then breaks it off there. Answers whether it died.
pub(super) async fn until_death(
    blobs: &Faulty,
    doing: impl Future<Output = Result<(), CheckpointError>>,
) -> bool {
    let died = tokio::time::timeout(Duration::from_mins(1), async {
        tokio::select! {
            biased;
            () = blobs.dead.notified() => true,
            done = doing => { done.unwrap(); false }
        }
    });
    died.await.expect("it ends")
}

/// Bytes that don't repeat, so that what is equal is equal by what it is.
pub(super) fn content(size: u32, seed: u32) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..size).map(|_| next()).collect()
}
