//! One sandbox in namespaces: how it is made, and what holds it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream as Stream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use karta_guest::jail::{Ids, Item, Limit, Plan, Range};
use karta_guest::proto::message::{Configure, Request, Workspace};
use karta_types::SandboxId;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

use super::root::{Owners, base};
use super::{Shared, disk, folder};
use crate::cgroup::Quota;
use crate::guest::{GuestSandbox, Link, Machine, Setup};
use crate::image::{self, Images, Lease};
use crate::jail::{Given, Jail, Output};
use crate::live::Live;
use crate::{Error, Place, Spec, seccomp};

/// How long the first process may take to be there, and to make the rest.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a folder without a size of its own is measured.
const LOOK: Duration = Duration::from_secs(3);

/// What the first process needs until it is configured. It gives up most of it then, and its children have nothing of it.
const POWERS: [u8; 11] = [
    0,  // chown
    1,  // dac_override
    2,  // dac_read_search
    3,  // fowner
    4,  // fsetid
    5,  // kill
    6,  // setgid
    7,  // setuid
    8,  // setpcap
    12, // net_admin
    21, // sys_admin
];

/// The number under which the first process finds the channel to its host.
const CHANNEL: u32 = 3;

/// The agent's user and group inside.
const AGENT: u16 = 1000;

/// A sandbox that runs.
#[derive(Debug)]
pub(super) struct Running {
    id: SandboxId,
    jail: Jail,
}

impl Running {
    pub(super) fn id(&self) -> SandboxId {
        self.id
    }

    pub(super) fn ended(&self) -> bool {
        self.jail.ended()
    }

    /// Ends it and waits until nothing of it is left.
    pub(super) async fn close(&self) {
        self.jail.kill();
        self.jail.wait().await;
    }
}

/// What the sandbox's handles have of it: it ends with the last.
struct Handle {
    running: Arc<Running>,
    link: Link,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.running.jail.kill();
    }
}

#[async_trait]
impl Machine for Handle {
    /// By signals, not by the kernel's freezer: what that holds can't even be killed on hosts with control groups of the first
    /// version, and would outlive a server that is killed.
    async fn pause(&self) -> Result<(), Error> {
        self.link.request(&Request::Freeze, PATIENCE).await.map(drop)
    }

    async fn wake(&self) -> Result<(), Error> {
        self.link.request(&Request::Thaw, PATIENCE).await.map(drop)
    }

    async fn close(&self) -> Result<(), Error> {
        self.running.close().await;
        Ok(())
    }
}

/// A sandbox that is about to be made.
struct Made {
    plan: Plan,
    given: Given,
    channel: Stream,
    state: Option<PathBuf>,
}

impl Shared {
    /// Makes a sandbox.
    pub(super) async fn make(
        self: Arc<Self>,
        id: SandboxId,
        spec: &Spec,
    ) -> Result<(GuestSandbox, Arc<Running>), Error> {
        let (shared, wanted) = (Arc::clone(&self), spec.clone());
        let made = super::blocking("preparing a sandbox", move || shared.prepare(id, &wanted)).await?;
        let (jail, output) = self.launcher.start(&made.plan, made.given).await?;
        let running = Arc::new(Running { id, jail });
        let configured = self.configure(id, made.channel, spec).await;
        let link = match configured {
            Ok(link) => link,
            Err(error) => {
                running.close().await;
                return Err(explain(error, output).await);
            }
        };
        if let Some(state) = made.state {
            watch_size(Arc::downgrade(&running), state, self.machines.disk_bytes);
        }
        let place = Place {
            workspace: "/workspace".into(),
            home: "/home/agent".into(),
            temp: "/tmp".into(),
            harness: spec.harness.as_ref().map(|_| "/opt/harness".into()),
        };
        let sandbox = GuestSandbox::new(Setup {
            id,
            place,
            machine: Box::new(Handle { running: Arc::clone(&running), link: link.clone() }),
            link,
            kept: Vec::new(),
            fresh: true,
            services: std::net::Ipv4Addr::LOCALHOST,
        });
        Ok((sandbox, running))
    }

    async fn configure(&self, id: SandboxId, channel: Stream, spec: &Spec) -> Result<Link, Error> {
        let channel = channel
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(channel))
            .map_err(|error| Error::Unavailable(format!("the channel to the sandbox failed ({error})")))?;
        let link = Link::start(channel, 1, Arc::clone(&spec.uplink));
        link.hello(PATIENCE).await?;
        let (mut entropy, mut machine) = (vec![0; 64], [0; 16]);
        self.rng.fill(&mut entropy);
        self.rng.fill(&mut machine);
        let configure = Configure {
            entropy,
            machine,
            name: host_name(id),
            clock: 0,
            release: None,
            state: None,
            workspace: Workspace::Overlay,
            temp: self.machines.temp_bytes,
            files: self.machines.open_files,
            processes: u64::from(self.machines.processes),
            filter: seccomp::session()?,
            landlock: true,
        };
        for note in link.request(&Request::Configure(configure), PATIENCE).await? {
            tracing::info!(sandbox = %id, "{note}");
        }
        Ok(link)
    }

    /// Everything the host has to have for a sandbox, and how it is put together.
    fn prepare(&self, id: SandboxId, spec: &Spec) -> Result<Made, Error> {
        let machines = &self.machines;
        fs::create_dir_all(&machines.root).map_err(at("making", &machines.root))?;
        let name = self.name(id, spec.session);
        // Before anything of it is made. Whatever fails from here on, it is given back after the rest is removed.
        let live = Live::new(name.clone());
        let (channel, inside) = Stream::pair().map_err(at("making a channel for", &machines.root))?;
        let mut descriptors = vec![OwnedFd::from(inside)];
        let mut numbers = vec![Some(CHANNEL)];
        let quota = Quota {
            memory: machines.memory_bytes,
            processes: machines.processes,
            cpu: machines.cpu_hundredths,
        };
        let lease = if self.privileged { Some(self.users.take()?) } else { None };
        let inside_only = Ids { user: u32::from(AGENT), group: u32::from(AGENT) };
        let owners = lease.as_ref().map_or(Owners { root: inside_only, agent: inside_only }, |lease| {
            Owners { root: lease.id(0), agent: lease.id(AGENT) }
        });
        let (image, right) = self.image()?.unzip();
        let mut items = base(image.as_deref(), owners)?;
        items.extend(["/workspace", "/home/agent", "/state", "/release"].map(|to| Item::Folder {
            to: to.into(),
            mode: 0o755,
            owner: owners.root,
        }));
        items.push(Item::Folder { to: "/tmp".into(), mode: 0o1777, owner: owners.root });
        items.push(self.shown(&spec.release, Path::new("/release"), owners)?);
        if let Some(harness) = &spec.harness {
            items.push(self.shown(harness, Path::new("/opt/harness"), owners)?);
        }
        for (name, (program, _)) in &self.programs {
            if let Some(to) = super::sandbox::inside(name).filter(|_| program.is_file()) {
                items.push(Item::Bind {
                    from: program.clone(),
                    to,
                    writable: false,
                    devices: false,
                    ids: None,
                });
            }
        }
        let mut state = None;
        if self.privileged {
            descriptors.push(disk::make(&machines.root, machines.disk_bytes)?);
            numbers.push(None);
            items.push(Item::Disk { descriptor: 1, to: "/state".into(), owner: owners.root });
        } else {
            let folder = machines.root.join(&name);
            fs::create_dir(&folder).map_err(at("making", &folder))?;
            items.push(Item::Bind {
                from: folder.clone(),
                to: "/state".into(),
                writable: true,
                devices: false,
                ids: None,
            });
            state = Some(folder);
        }
        let (users, members, first) = match &lease {
            Some(lease) => (vec![lease.range()], vec![lease.range()], 0),
            None => {
                (only(rustix::process::geteuid().as_raw()), only(rustix::process::getegid().as_raw()), AGENT)
            }
        };
        let group = match &self.groups {
            Ok(tree) => match tree.create(&name, quota) {
                Ok(group) => Some(group),
                Err(_) if !self.privileged => None,
                Err(error) => return Err(error),
            },
            Err(_) if !self.privileged => None,
            Err(reason) => return Err(Error::Unavailable(reason.clone())),
        };
        let mut plan = Plan {
            privileged: self.privileged,
            name: host_name(id),
            groups: group.as_ref().map_or_else(Vec::new, |group| group.folders().to_vec()),
            users,
            members,
            user: u32::from(first),
            group: u32::from(first),
            kept: Vec::new(),
            root: 1 << 20,
            items,
            capabilities: POWERS.iter().fold(0, |all, one| all | 1 << one),
            reaper: false,
            program: None,
            arguments: ["karta-guest", "serve", &CHANNEL.to_string()]
                .map(|one| one.as_bytes().to_vec())
                .into(),
            environment: Vec::new(),
            folder: "/".into(),
            descriptors: numbers,
            limits: vec![
                Limit { resource: libc::RLIMIT_CORE, most: 0 },
                Limit { resource: libc::RLIMIT_NOFILE, most: machines.open_files.max(4096) },
            ],
            access: None,
            filter: Vec::new(),
        };
        if state.is_some() {
            // The kernel holds at least each file to the quota.
            plan.limits.push(Limit { resource: libc::RLIMIT_FSIZE, most: machines.disk_bytes });
        }
        let folder = state.clone();
        let afterwards = Box::new(move || {
            if let Some(folder) = folder {
                folder::remove(&folder);
            }
            drop((lease, live, right));
        });
        let given = Given::new(descriptors, group, Some(afterwards));
        Ok(Made { plan, given, channel, state })
    }

    /// The root file system of the image to use, with the right to it if it is a built one; none where there is no image.
    pub(super) fn image(&self) -> Result<Option<(PathBuf, Option<Lease>)>, Error> {
        let unusable = |error: image::Error| Error::Unavailable(error.to_string());
        if let (Some(folder), Some(tree)) = (&self.machines.image, self.machines.tree()) {
            if *folder == tree {
                return Ok(Some((tree, None)));
            }
            let Some(lease) = Lease::take(folder).map_err(unusable)? else {
                return Err(Error::Unavailable(format!(
                    "the image `{}` is being removed: name another, or run `karta image build`",
                    folder.display()
                )));
            };
            return Ok(Some((tree, Some(lease))));
        }
        let images = Images::new(self.machines.images.clone()).list().map_err(unusable)?;
        for image in &images {
            if let Some(lease) = Lease::take(&image.folder).map_err(unusable)? {
                return Ok(Some((image.root(), Some(lease))));
            }
        }
        // Without an image sandboxes are others: never by chance.
        if images.is_empty() {
            Ok(None)
        } else {
            Err(Error::Unavailable("images are being removed: try again".to_owned()))
        }
    }

    /// A folder of the host, read-only, as the agent's.
    fn shown(&self, from: &Path, to: &Path, owners: Owners) -> Result<Item, Error> {
        let meta = fs::metadata(from).map_err(at("looking at", from))?;
        let ids = self.privileged.then_some((Ids { user: meta.uid(), group: meta.gid() }, owners.agent));
        Ok(Item::Bind { from: from.to_owned(), to: to.to_owned(), writable: false, devices: false, ids })
    }
}

/// The agent inside is one id outside.
fn only(outside: u32) -> Vec<Range> {
    vec![Range { inside: u32::from(AGENT), outside, count: 1 }]
}

/// A name of letters, digits and `-`.
fn host_name(id: SandboxId) -> String {
    let end: String = id.to_string().chars().rev().take(12).collect();
    let end = end.chars().rev().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    format!("karta-{end}")
}

/// Adds what the first process said to the reason why it failed.
async fn explain(error: Error, output: Output) -> Error {
    let mut said = Vec::new();
    // The process has ended, and its end of the pipe with it.
    let mut both = output.stderr.take(1024).chain(output.stdout.take(1024));
    let _ = tokio::time::timeout(PATIENCE, both.read_to_end(&mut said)).await;
    let said = String::from_utf8_lossy(&said);
    let said: String = said.chars().map(|one| if one.is_control() { ' ' } else { one }).collect();
    if said.trim().is_empty() {
        return error;
    }
    Error::Unavailable(format!(
        "the sandbox could not be made: {error}; its first process said: {}",
        said.trim()
    ))
}

/// Ends a sandbox whose folder holds more than it may.
#[expect(clippy::disallowed_methods, reason = "it ends with the sandbox, which ends with the server")]
fn watch_size(running: Weak<Running>, state: PathBuf, most: u64) {
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(running) = running.upgrade().filter(|running| !running.ended()) else { return };
            let folder = state.clone();
            let size = tokio::task::spawn_blocking(move || folder::size(&folder)).await;
            if size.is_ok_and(|size| size.is_none_or(|size| size > most)) {
                tracing::warn!(sandbox = %running.id, "the session's folder holds more than its quota: its sandbox is ended");
                running.jail.kill();
                return;
            }
        }
    });
}

pub(super) fn at<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + use<'a> {
    move |source| Error::File { doing, path: path.to_owned(), source }
}
