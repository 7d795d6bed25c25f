//! The driver `namespace`: each session in namespaces of its own, on the host's kernel.
//!
//! A session's processes see a root of their own (an image's, or the host's programs without its files), no network but a loopback of
//! their own, and nobody else's processes; they have no powers, a list of what they may ask of the kernel, and a share of the host.
//! What keeps them in is the kernel that they share with everything else: this is for hosts without virtualisation.
//!
//! Where the server runs as root, each sandbox has users of its own, a disk with a size, and a control group. Where it does not, a
//! sandbox has what a user can make: one id, the server's own, and a folder.

mod check;
mod disk;
mod folder;
mod machine;
pub(crate) mod root;
mod sandbox;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use karta_types::session::Isolation;
use karta_types::{Clock, Rng, SandboxId, SessionId};

use crate::cgroup::Tree;
use crate::guest::WeakSandbox;
use crate::ids::Users;
use crate::jail::Launcher;
use crate::limits::Machines;
use crate::{Error, Spec};
use machine::Running;
use sandbox::Shown;

/// Programs asked for by name: the program on the host, and the arguments that go before the others.
pub(crate) type Programs = HashMap<String, (PathBuf, Vec<String>)>;

/// Runs each session in namespaces.
pub struct Driver {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    /// By session; an entry stays as long as something of the session is here.
    lanes: Mutex<HashMap<SessionId, Arc<Lane>>>,
}

/// What the driver and its sandboxes have in common.
struct Shared {
    machines: Machines,
    programs: Programs,
    rng: Arc<dyn Rng>,
    launcher: Launcher,
    users: Arc<Users>,
    /// Whether the server is root.
    privileged: bool,
    /// Tells this server's control groups from another's on the same host.
    tag: String,
    /// The control groups; the reason why there are none.
    groups: Result<Tree, String>,
}

/// One session's order.
type Lane = tokio::sync::Mutex<Option<Held>>;

/// The sandbox that a session has or had last.
struct Held {
    digest: String,
    sandbox: WeakSandbox,
    running: Arc<Running>,
}

impl Driver {
    /// A driver with these limits. A program asked for by a name in `programs` is the mapped one of the host, its arguments going
    /// before the others. Fails where the program for the inside can't be prepared.
    pub fn new(
        machines: Machines,
        programs: Programs,
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
    ) -> Result<Self, Error> {
        let root = std::path::absolute(&machines.root).map_err(|source| Error::File {
            doing: "finding",
            path: machines.root.clone(),
            source,
        })?;
        let machines = Machines { root, ..machines };
        let shared = Shared {
            users: Users::new(&machines),
            tag: tag(&machines),
            programs,
            rng,
            launcher: Launcher::new()?,
            privileged: rustix::process::geteuid().is_root(),
            groups: Tree::find().map_err(|error| error.to_string()),
            machines,
        };
        Ok(Self { shared: Arc::new(shared), clock, lanes: Mutex::default() })
    }

    fn lane(&self, session: SessionId) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.len() == lanes.capacity() {
            // A lane that nobody else holds, with nothing running, tells nothing.
            lanes.retain(|_, lane| {
                Arc::strong_count(lane) > 1
                    || lane
                        .try_lock()
                        .map_or(true, |held| held.as_ref().is_some_and(|held| !held.running.ended()))
            });
        }
        Arc::clone(lanes.entry(session).or_default())
    }

    /// Ends a session's sandbox, if it is this one. Answers whether there was one.
    async fn end(&self, session: SessionId, only: Option<SandboxId>) -> Result<bool, Error> {
        let lane = self.lane(session);
        let mut held = lane.lock().await;
        let meant = held.take_if(|held| only.is_none_or(|id| held.running.id() == id));
        let Some(held) = meant else { return Ok(false) };
        let ran = !held.running.ended();
        held.running.close().await;
        Ok(ran)
    }

    /// The ids of sandboxes that are here now. Those that are being made, found or ended are somebody's, and left out.
    fn here(&self) -> HashMap<SessionId, SandboxId> {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let id = |lane: &Lane| Some(lane.try_lock().ok()?.as_ref()?.running.id());
        lanes.iter().filter_map(|(session, lane)| Some((*session, id(lane)?))).collect()
    }
}

/// Tells what belongs to the server of this folder from what belongs to another's: the same for the same folder, another for another.
pub(crate) fn tag(machines: &Machines) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, machines.root.as_os_str().as_bytes());
    let short = digest.as_ref().first_chunk().map_or(0, |first| u64::from_be_bytes(*first) >> 24);
    format!("{short:010x}-")
}

#[async_trait]
impl crate::Driver for Driver {
    fn id(&self) -> &'static str {
        "namespace"
    }

    fn isolation(&self) -> Isolation {
        Isolation::Namespace
    }

    /// Makes a sandbox, runs a program in it and removes it again.
    async fn check(&self) -> Result<(), Error> {
        self.shared.trial(SandboxId::new(&*self.clock, &*self.shared.rng)).await
    }

    async fn notes(&self) -> Vec<String> {
        let shared = Arc::clone(&self.shared);
        blocking("looking at the host", move || Ok(shared.notes())).await.unwrap_or_default()
    }

    fn keeps(&self) -> bool {
        false
    }

    async fn acquire(&self, spec: &Spec) -> Result<Box<dyn crate::Sandbox>, Error> {
        let lane = self.lane(spec.session);
        let mut held = lane.lock().await;
        if let Some(there) = held.as_ref().filter(|there| !there.running.ended()) {
            match there.sandbox.upgrade() {
                Some(inner) if there.digest == spec.digest => {
                    return Ok(Box::new(Shown { inner, shared: Arc::clone(&self.shared) }));
                }
                Some(_) => {
                    return Err(Error::Unavailable(format!(
                        "the sandbox of `{}` still runs on another release: close it first",
                        spec.session
                    )));
                }
                // Nobody uses it any more: it is about to end.
                None => there.running.close().await,
            }
        }
        let id = SandboxId::new(&*self.clock, &*self.shared.rng);
        let (inner, running) = Arc::clone(&self.shared).make(id, spec).await?;
        *held = Some(Held { digest: spec.digest.clone(), sandbox: inner.downgrade(), running });
        Ok(Box::new(Shown { inner, shared: Arc::clone(&self.shared) }))
    }

    async fn erase(&self, session: SessionId) -> Result<(), Error> {
        self.end(session, None).await.map(|_| ())
    }

    async fn reap(
        &self,
        keep: &(dyn for<'a> Fn(&'a SessionId) -> bool + Send + Sync),
    ) -> Result<usize, Error> {
        // What is made from here on is not meant.
        let here = self.here();
        let mut ended = Arc::clone(&self.shared).sweep().await?;
        for (session, id) in here.into_iter().filter(|(session, _)| !keep(session)) {
            ended += usize::from(self.end(session, Some(id)).await?);
        }
        Ok(ended)
    }
}

/// Runs work where it may block.
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
