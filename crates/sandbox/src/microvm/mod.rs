//! The driver `microvm`: each session in a virtual machine of its own.
//!
//! A machine begins as a copy of a snapshot: it has booted, its system and the harness are mounted. The copy shares that memory with
//! all others until it writes. Before anything of a session runs in it, it is told who it is: new randomness,
//! name, id and time. It has no network; all that goes in and out is one stream, see [`crate::guest`].
//!
//! Nothing of a machine has a name on the host: its disks are files without one, its memory and streams are descriptors. So
//! nothing is left when its VMM ends, and the VMM ends with the server.

mod boot;
mod command;
mod disks;
mod figures;
mod keys;
mod launch;
mod memory;
mod notes;
mod park;
mod pool;
mod qmp;
mod snapshot;
mod streams;
mod vm;

pub use figures::Figures;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use karta_guest::proto::message::{Configure, Request, Workspace};
use karta_types::session::Isolation;
use karta_types::{Clock, Rng, SandboxId, SessionId};
use tokio::sync::OnceCell;

use crate::guest::{GuestSandbox, Link, Setup, WeakSandbox};
use crate::image::Images;
use crate::limits::Machines;
use crate::{Error, ParkKey, Place, Sandbox as _, Spec};
use boot::Base;
use command::Accelerator;
use disks::{Disk, Disks};
use keys::{Key, Kind};
use launch::Host;
use pool::{Pool, Spare};
use snapshot::Snapshot;
use vm::Kept;

/// How long a guest may take to become a session's: it mounts two disks and starts nothing.
const CONFIGURE: Duration = Duration::from_mins(1);
/// The disks by their names in a guest, in the order of the command line.
pub(super) const DISKS: [&str; 4] = ["vda", "vdb", "vdc", "vdd"];

/// Runs each session in a virtual machine.
pub struct Driver {
    shared: Arc<Shared>,
}

/// What the driver and its background work have in common.
pub(super) struct Shared {
    limits: Machines,
    disks: Disks,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    host: OnceCell<Host>,
    base: OnceCell<Arc<Base>>,
    accelerator: OnceCell<(Accelerator, Option<String>)>,
    snapshots: Mutex<HashMap<Key, Arc<OnceCell<Arc<Snapshot>>>>>,
    kinds: keys::Known,
    pool: Pool,
    running: Mutex<HashMap<SessionId, Running>>,
    lanes: Mutex<HashMap<SessionId, Weak<tokio::sync::Mutex<()>>>>,
    generation: AtomicU64,
}

/// A session's machine.
struct Running {
    id: SandboxId,
    digest: String,
    sandbox: WeakSandbox,
}

/// A panic elsewhere leaves these plain tables whole, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::Unavailable(format!("working with files was cut off ({error})"))))
}

impl Driver {
    /// A driver with these limits. Nothing is looked at before it is needed.
    pub fn new(limits: Machines, clock: Arc<dyn Clock>, rng: Arc<dyn Rng>) -> Self {
        let root = std::path::absolute(&limits.root).unwrap_or_else(|_| limits.root.clone());
        // Later than any generation of an earlier server on the same machines.
        let first = u64::try_from(clock.now().as_micros()).unwrap_or(0).max(1);
        Self {
            shared: Arc::new(Shared {
                disks: Disks::new(root.join("disks")),
                limits: Machines { root, ..limits },
                clock,
                rng,
                host: OnceCell::new(),
                base: OnceCell::new(),
                accelerator: OnceCell::new(),
                snapshots: Mutex::default(),
                kinds: keys::Known::default(),
                pool: Pool::default(),
                running: Mutex::default(),
                lanes: Mutex::default(),
                generation: AtomicU64::new(first),
            }),
        }
    }
}

impl Driver {
    /// How many machines wait for a session.
    pub fn waiting(&self) -> usize {
        self.shared.pool.ready()
    }
}

impl Shared {
    async fn host(&self) -> Result<&Host, Error> {
        self.host.get_or_try_init(|| Host::new(&self.limits)).await
    }

    async fn base(&self) -> Result<Arc<Base>, Error> {
        let open = || async {
            let (images, named) = (Images::new(self.limits.images.clone()), self.limits.image.clone());
            blocking(move || Base::open(&images, named.as_deref()).map(Arc::new)).await
        };
        self.base.get_or_try_init(open).await.cloned()
    }

    /// The session's turn: its machine is made, found and removed by one at a time.
    fn lane(&self, session: SessionId) -> Arc<tokio::sync::Mutex<()>> {
        let mut lanes = lock(&self.lanes);
        if let Some(lane) = lanes.get(&session).and_then(Weak::upgrade) {
            return lane;
        }
        if lanes.len() == lanes.capacity() {
            lanes.retain(|_, lane| lane.strong_count() > 0);
        }
        let lane = Arc::default();
        lanes.insert(session, Arc::downgrade(&lane));
        lane
    }

    fn running(&self, session: SessionId) -> Option<(String, GuestSandbox)> {
        let mut running = lock(&self.running);
        let known = running.get(&session)?;
        let found = known.sandbox.upgrade().map(|sandbox| (known.digest.clone(), sandbox));
        if found.is_none() {
            running.remove(&session);
        }
        found
    }

    /// The machines that sessions have now.
    fn here(&self) -> Vec<(SessionId, SandboxId)> {
        // No handle is taken of them, which would count as somebody's.
        lock(&self.running).iter().map(|(session, known)| (*session, known.id)).collect()
    }

    /// Higher than any that a guest has heard of.
    fn generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// From now on the session has this machine.
    fn note(&self, spec: &Spec, sandbox: &GuestSandbox) {
        let running = Running { id: sandbox.id(), digest: spec.digest.clone(), sandbox: sandbox.downgrade() };
        let mut table = lock(&self.running);
        if table.len() == table.capacity() {
            table.retain(|_, running| running.sandbox.upgrade().is_some());
        }
        table.insert(spec.session, running);
    }

    /// The snapshot of this kind: made once, by whoever is first.
    async fn snapshot(&self, kind: &Kind) -> Result<Arc<Snapshot>, Error> {
        let cell = Arc::clone(lock(&self.snapshots).entry(kind.key.clone()).or_default());
        let made = cell.get_or_try_init(|| boot::snapshot(self, kind)).await;
        made.cloned()
    }

    /// Makes a machine a session's.
    async fn make(self: &Arc<Self>, spec: &Spec) -> Result<GuestSandbox, Error> {
        let kind = keys::kind(self, spec.harness.as_deref()).await?;
        let release = Arc::new(self.disks.release(&spec.release, &spec.digest).await?);
        let waiting = self.pool.take(&kind.key);
        pool::refill(self, &kind);
        if let Some(spare) = waiting {
            match self.give(&kind, spare, release.clone(), spec).await {
                Ok(sandbox) => return Ok(sandbox),
                // It has died while it waited, which may not have been seen yet.
                Err(error) => tracing::warn!(error = crate::chain(&error), "a waiting machine was of no use"),
            }
        }
        let snapshot = self.snapshot(&kind).await?;
        let spare = boot::restore(self, &kind, &snapshot).await?;
        self.give(&kind, spare, release, spec).await
    }

    /// Gives a machine to a session.
    async fn give(
        &self,
        kind: &Kind,
        spare: Spare,
        release: Arc<Disk>,
        spec: &Spec,
    ) -> Result<GuestSandbox, Error> {
        let Spare { vm, release: disk, session } = spare;
        blocking(move || release.copy(&disk)).await?;
        let generation = self.generation();
        let (running, control, stream) = vm.into_parts()?;
        let kept = park::What {
            session,
            memory: kind.shape.memory,
            key: kind.key.clone(),
            digest: spec.digest.clone(),
        };
        let link = Link::start(stream, generation, Arc::clone(&spec.uplink));
        let machine = Kept::new(running, control, link.clone(), Arc::clone(&self.clock), kept);
        let notes = link.request(&Request::Configure(self.identity()?), CONFIGURE).await?;
        if !notes.is_empty() {
            tracing::warn!(session = %spec.session, ?notes, "a virtual machine works, but not as it should");
        }
        Ok(GuestSandbox::new(Setup {
            id: SandboxId::new(&*self.clock, &*self.rng),
            place: place(kind.harness.is_some()),
            link,
            machine: Box::new(machine),
            kept: Vec::new(),
            fresh: true,
            services: std::net::Ipv4Addr::LOCALHOST,
        }))
    }

    /// Who a machine is: never the same twice.
    fn identity(&self) -> Result<Configure, Error> {
        let mut entropy = vec![0; 256];
        self.rng.fill(&mut entropy);
        let mut machine = [0; 16];
        self.rng.fill(&mut machine);
        let mut name = [0; 6];
        self.rng.fill(&mut name);
        Ok(Configure {
            entropy,
            machine,
            name: format!("karta-{}", crate::image::hex(&name)),
            clock: self.clock.now().as_micros().saturating_mul(1000),
            release: Some(DISKS[2].to_owned()),
            state: Some(DISKS[3].to_owned()),
            workspace: Workspace::Overlay,
            temp: self.limits.temp_bytes,
            files: self.limits.open_files,
            processes: u64::from(self.limits.processes),
            filter: crate::seccomp::session()?,
            landlock: true,
        })
    }
}

/// Where everything is inside.
fn place(harness: bool) -> Place {
    Place {
        workspace: PathBuf::from("/workspace"),
        home: PathBuf::from("/home/agent"),
        temp: PathBuf::from("/tmp"),
        harness: harness.then(|| PathBuf::from("/opt/harness")),
    }
}

#[async_trait]
impl crate::Driver for Driver {
    fn id(&self) -> &'static str {
        "microvm"
    }

    fn isolation(&self) -> Isolation {
        Isolation::Microvm
    }

    fn keeps(&self) -> bool {
        false
    }

    /// Boots a machine, if none of this kind has booted yet.
    async fn check(&self) -> Result<(), Error> {
        let kind = keys::kind(&self.shared, None).await?;
        let snapshot = self.shared.snapshot(&kind).await?;
        let mut spare = boot::restore(&self.shared, &kind, &snapshot).await?;
        spare.vm.end().await;
        Ok(())
    }

    async fn notes(&self) -> Vec<String> {
        notes::notes(&self.shared).await
    }

    async fn acquire(&self, spec: &Spec) -> Result<Box<dyn crate::Sandbox>, Error> {
        let shared = &self.shared;
        let lane = shared.lane(spec.session);
        let _turn = lane.lock().await;
        if let Some((digest, sandbox)) = shared.running(spec.session) {
            let alive = sandbox.link().ended().now_or_never().is_none();
            if alive && digest == spec.digest {
                return Ok(Box::new(sandbox));
            }
            if alive && sandbox.handles() > 1 {
                return Err(Error::Unavailable(
                    "the session's machine runs on another release and is in use: close it first".to_owned(),
                ));
            }
            sandbox.close().await?;
        }
        let sandbox = shared.make(spec).await?;
        shared.note(spec, &sandbox);
        Ok(Box::new(sandbox))
    }

    async fn revive(&self, spec: &Spec, from: &Path, key: &ParkKey) -> Result<crate::Revived, Error> {
        let shared = &self.shared;
        let lane = shared.lane(spec.session);
        let _turn = lane.lock().await;
        if let Some((_, sandbox)) = shared.running(spec.session) {
            if sandbox.link().ended().now_or_never().is_none() {
                return Err(Error::Unavailable(
                    "the session has a machine that runs: close it first".to_owned(),
                ));
            }
            sandbox.close().await?;
        }
        let (sandbox, processes) = park::revive(shared, spec, from, key).await?;
        shared.note(spec, &sandbox);
        Ok(crate::Revived { sandbox: Box::new(sandbox), processes })
    }

    async fn erase(&self, session: SessionId) -> Result<(), Error> {
        let lane = self.shared.lane(session);
        let _turn = lane.lock().await;
        if let Some((_, sandbox)) = self.shared.running(session) {
            sandbox.close().await?;
        }
        lock(&self.shared.running).remove(&session);
        Ok(())
    }

    /// Machines of a crashed server have ended with it, and their disks have no names. What can be left is half-made files.
    async fn reap(
        &self,
        keep: &(dyn for<'a> Fn(&'a SessionId) -> bool + Send + Sync),
    ) -> Result<usize, Error> {
        // What is made from here on is not meant.
        let unknown: Vec<_> = self.shared.here().into_iter().filter(|(session, _)| !keep(session)).collect();
        let disks = self.shared.disks.clone();
        let snapshots = self.shared.limits.root.join("snapshots");
        blocking(move || disks.sweep().and_then(|()| snapshot::sweep(&snapshots))).await?;
        let sweeping = Arc::clone(&self.shared);
        if self.shared.host().await.is_ok() {
            let swept = blocking(move || Ok(sweeping.host.get().map_or(0, Host::sweep))).await?;
            if swept > 0 {
                tracing::info!(swept, "removed the control groups of virtual machines that a crash had left");
            }
        }
        let mut ended = 0;
        for (session, meant) in unknown {
            let lane = self.shared.lane(session);
            let _turn = lane.lock().await;
            let Some((_, sandbox)) = self.shared.running(session) else { continue };
            if sandbox.id() == meant {
                sandbox.close().await?;
                lock(&self.shared.running).remove(&session);
                ended += 1;
            }
        }
        Ok(ended)
    }
}
