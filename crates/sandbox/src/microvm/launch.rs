//! Puts the VMM into its jail: ids, namespaces and a control group of its own, none of the host's files but programs, no network,
//! no powers, and a filter of system calls under its own.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use karta_guest::jail::{Ids, Item, Limit, Plan, Range};
use tokio::io::AsyncReadExt as _;

use crate::Error;
use crate::cgroup::{Group, Quota, Tree};
use crate::ids::{Lease, Users};
use crate::image::{Need, Tool, find_program};
use crate::jail::{Given, Jail, Launcher, Output};
use crate::limits::Machines;
use crate::live::{self, Live};
use crate::namespace::root::{Owners, PROGRAMS, shown};
use crate::namespace::tag;

/// The VMM.
const QEMU: Need = Need {
    program: "qemu-system-x86_64",
    purpose: "virtual machines are run by it",
    package: "qemu-system-x86",
};
/// What a VMM needs beside the memory of its guest: its own, and translated code under software emulation.
const OVERHEAD: u64 = 768 << 20;
/// Threads of a VMM: up to 64 read and write disks, beside those that it always has. It ends if it can't start one.
const THREADS: u32 = 160;
/// The id that a VMM runs as, inside its jail.
const USER: u32 = 1000;
/// How much is kept of what a VMM prints.
const SAID: u64 = 2048;
/// Where the processor's virtualisation is.
const KVM: &str = "/dev/kvm";

/// What the names of control groups of VMMs begin with; the data directory's mark, the server's process and a number follow.
const GROUP: &str = "machine-";

/// The number of the next group.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A VMM to start.
#[derive(Debug)]
pub(super) struct Launch {
    /// Its arguments.
    pub(super) arguments: Vec<OsString>,
    /// What it is given, with the numbers under which it has it.
    pub(super) descriptors: Vec<(u32, OwnedFd)>,
}

/// Room for a VMM: its ids and its control group, which goes when it is not used.
#[derive(Debug)]
pub(super) struct Room {
    lease: Option<Lease>,
    group: Option<Group>,
    /// The group's name, until the group is gone.
    live: Option<Live>,
}

impl Drop for Room {
    fn drop(&mut self) {
        // Nothing was ever in it: this takes no time.
        if self.group.take().is_some_and(|group| !group.remove()) {
            tracing::warn!("a control group that was not used could not be removed; it is tried again later");
        }
    }
}

/// What a VMM sees of files: programs and libraries, what it reads of its own, and two devices.
fn root(owners: Owners) -> Vec<Item> {
    let mut items = shown(Path::new("/"), &PROGRAMS.map(PathBuf::from));
    items.extend(shown(Path::new("/"), &["etc/ld.so.cache".into()]));
    items.push(Item::Folder { to: "/dev".into(), mode: 0o755, owner: owners.root });
    items.extend(["/dev/null", "/dev/urandom"].map(|device| Item::Bind {
        from: device.into(),
        to: device.into(),
        writable: true,
        devices: true,
        ids: None,
    }));
    items.push(Item::Processes { to: "/proc".into() });
    items
}

/// The group that a VMM of another user has to be in for this device; none if everybody may open it. If nobody but root may, what
/// to do.
fn kept(device: &Metadata) -> Result<Option<u32>, String> {
    let (mode, group) = (device.mode(), device.gid());
    if mode & 0o006 == 0o006 {
        return Ok(None);
    }
    // What else is root's group's is not for a VMM.
    if mode & 0o060 == 0o060 && group != 0 {
        return Ok(Some(group));
    }
    Err(format!(
        "`{KVM}` is for root only (mode {:04o}, group {group}), and virtual machines don't run as root: let its group have it \
         (`groupadd -f -r kvm && chgrp kvm {KVM} && chmod 0660 {KVM}`; a rule of udev keeps it so), and start the server again",
        mode & 0o7777
    ))
}

/// Removes the groups whose names begin so and that nobody uses. Answers how many there were.
fn sweep(tree: &Tree, prefix: &str) -> usize {
    // First all that are there, then whether they are in use: see `live`.
    let left = tree.found(prefix).into_iter().filter(|(name, group)| {
        let maker = name.strip_prefix(prefix).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        let used = match maker {
            // An earlier server may have had the same number.
            Some(pid) if pid == std::process::id() => live::is(name),
            Some(pid) => Path::new(&format!("/proc/{pid}")).exists(),
            None => false,
        };
        !used && group.folders().iter().any(|folder| folder.exists())
    });
    left.filter(|(_, group)| group.remove()).count()
}

/// What starts VMMs here.
#[derive(Debug)]
pub(super) struct Host {
    program: PathBuf,
    version: String,
    launcher: Launcher,
    tree: Option<Tree>,
    filter: Vec<u8>,
    privileged: bool,
    users: Arc<Users>,
    cpu: u32,
    /// What the names of this server's groups begin with.
    prefix: String,
}

impl Host {
    /// Finds the VMM and what confines it.
    pub(super) async fn new(limits: &Machines) -> Result<Self, Error> {
        let missing = |error| super::disks::failed(&error);
        let program = find_program(QEMU.program).ok_or_else(|| {
            missing(crate::image::Error::Missing {
                program: QEMU.program,
                purpose: QEMU.purpose,
                package: QEMU.package,
            })
        })?;
        let asked = Tool::new(QEMU).map_err(missing)?.arg("--version");
        let said =
            asked.run("asking QEMU for its version", Duration::from_secs(20)).await.map_err(missing)?;
        let version = said.lines().next().unwrap_or_default().chars().take(128).collect();
        let privileged = rustix::process::geteuid().is_root();
        let tree = match Tree::find() {
            Ok(tree) => Some(tree),
            // Without root's powers the host may give none; with them something is wrong.
            Err(error) if privileged => return Err(error),
            Err(_) => None,
        };
        Ok(Self {
            program,
            version,
            launcher: Launcher::new()?,
            tree,
            filter: crate::seccomp::machine()?,
            privileged,
            users: Users::new(limits),
            prefix: format!("{GROUP}{}", tag(limits)),
            cpu: limits.cpu_hundredths,
        })
    }

    /// Which QEMU it is.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Whether there is virtualisation by the processor to try; why not, if not.
    pub(super) fn has_kvm(&self) -> Result<(), String> {
        let device = std::fs::OpenOptions::new().read(true).write(true).open(KVM);
        let seen = device.and_then(|device| device.metadata()).map_err(|error| {
            format!("`{KVM}` can't be opened ({error}); run the server where it can, on a host with it")
        })?;
        if self.privileged { kept(&seen).map(drop) } else { Ok(()) }
    }

    /// What was found out about the processor holds as long as this stays the same.
    pub(super) fn device(&self) -> String {
        std::fs::metadata(KVM).map_or_else(
            |_| "none".to_owned(),
            |seen| format!("{} {:o} {} {}", self.privileged, seen.mode(), seen.uid(), seen.gid()),
        )
    }

    /// Removes the control groups that earlier servers of the same data directory have left. Answers how many there were. It may
    /// block.
    pub(super) fn sweep(&self) -> usize {
        self.tree.as_ref().map_or(0, |tree| sweep(tree, &self.prefix))
    }

    /// Makes room for a VMM whose guest has so many MiB of memory.
    pub(super) async fn room(&self, memory: u64) -> Result<Room, Error> {
        let lease = self.users.take()?;
        let Some(tree) = self.tree.clone() else {
            return Ok(Room { lease: Some(lease), group: None, live: None });
        };
        let quota = Quota {
            // Each page counts twice that it has touched of its own: the copy, and the hole of the shared memory below that reading
            // fills. Saving a machine reads them all; a limit of once its memory would kill it there.
            memory: (memory << 21).saturating_add(OVERHEAD),
            processes: THREADS,
            // What emulates a machine works beside it.
            cpu: self.cpu.saturating_add(50),
        };
        // One row of numbers for all drivers of this process: no two groups have the same name.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (name, privileged) = (format!("{}{}-{number}", self.prefix, std::process::id()), self.privileged);
        // Whoever waits for it may go away meanwhile: then what was made goes with the answer.
        super::blocking(move || {
            let live = Live::new(name.clone());
            let group = match tree.create(&name, quota) {
                Ok(group) => Some(group),
                Err(error) if privileged => return Err(error),
                Err(_) => None,
            };
            Ok(Room { lease: Some(lease), group, live: Some(live) })
        })
        .await
    }

    /// Starts a VMM.
    pub(super) async fn start(&self, mut room: Room, launch: Launch) -> Result<Running, Error> {
        let Launch { arguments, descriptors } = launch;
        let lease = room.lease.take();
        let plan = self.plan(lease.as_ref(), room.group.as_ref(), arguments, &descriptors);
        let (group, live) = (room.group.take(), room.live.take());
        let descriptors = descriptors.into_iter().map(|(_, descriptor)| descriptor).collect();
        // Nobody else is this user before everything in the jail has ended.
        let given = Given::new(descriptors, group, Some(Box::new(move || drop((lease, live)))));
        let (jail, output) = self.launcher.start(&plan, given).await?;
        Ok(Running { jail, output })
    }

    fn plan(
        &self,
        lease: Option<&Lease>,
        group: Option<&Group>,
        arguments: Vec<OsString>,
        descriptors: &[(u32, OwnedFd)],
    ) -> Plan {
        let me =
            Ids { user: rustix::process::geteuid().as_raw(), group: rustix::process::getegid().as_raw() };
        let (owners, range) = if let Some(lease) = lease.filter(|_| self.privileged) {
            let user = u16::try_from(USER).unwrap_or_default();
            (Owners { root: lease.id(0), agent: lease.id(user) }, [lease.range(), lease.range()])
        } else {
            let only = Ids { user: USER, group: USER };
            let one = |outside| Range { inside: USER, outside, count: 1 };
            (Owners { root: only, agent: only }, [one(me.user), one(me.group)])
        };
        let mut items = root(owners);
        let device = std::fs::metadata(KVM).ok();
        // As who it is elsewhere, the server's user, it is in all groups that it was in.
        let kept = device.as_ref().filter(|_| self.privileged).and_then(|device| kept(device).ok()?);
        if device.is_some() {
            items.push(Item::Bind {
                from: KVM.into(),
                to: KVM.into(),
                writable: true,
                devices: true,
                ids: None,
            });
        }
        let mut line = vec![QEMU.program.as_bytes().to_vec()];
        line.extend(arguments.into_iter().map(OsStringExt::into_vec));
        Plan {
            privileged: self.privileged,
            name: "machine".to_owned(),
            groups: group.map(|group| group.folders().to_vec()).unwrap_or_default(),
            users: vec![range[0]],
            members: vec![range[1]],
            user: USER,
            group: USER,
            kept: kept.into_iter().collect(),
            root: 1 << 20,
            items,
            capabilities: 0,
            reaper: true,
            program: Some(self.program.clone()),
            arguments: line,
            environment: vec![b"PATH=/usr/bin:/bin".to_vec(), b"LC_ALL=C.UTF-8".to_vec()],
            folder: "/".into(),
            descriptors: descriptors.iter().map(|(number, _)| Some(*number)).collect(),
            limits: vec![
                Limit { resource: limit(libc::RLIMIT_CORE), most: 0 },
                Limit { resource: limit(libc::RLIMIT_NOFILE), most: 256 },
            ],
            access: None,
            filter: self.filter.clone(),
        }
    }
}

fn limit(resource: libc::__rlimit_resource_t) -> u32 {
    resource
}

/// A VMM that runs. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Running {
    jail: Jail,
    output: Output,
}

impl Running {
    /// Waits for the end of everything in its jail, and answers how it ended and what it printed.
    pub(super) async fn ended(&mut self) -> String {
        let exit = self.jail.wait().await;
        let mut said = Vec::new();
        // All that could write has ended.
        let _ = (&mut self.output.stderr).take(SAID).read_to_end(&mut said).await;
        let said = String::from_utf8_lossy(&said);
        let said: String =
            said.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
        let how = match (exit.status, exit.signal) {
            (Some(status), _) => format!("status {status}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "for an unknown reason".to_owned(),
        };
        format!("{how} {}", said.trim()).trim().to_owned()
    }

    /// Kills it at once.
    pub(super) fn kill(&mut self) {
        self.jail.kill();
    }

    /// The first process of its jail, as the host counts.
    pub(super) fn pid(&self) -> u32 {
        self.jail.pid()
    }

    /// Whether it has not ended.
    pub(super) fn is_alive(&self) -> bool {
        !self.jail.ended()
    }
}

#[cfg(test)]
mod tests;
