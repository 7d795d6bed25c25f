//! A machine becomes one session's.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use karta_guest::proto::USER;
use karta_guest::proto::message::{Base, Configure, Failure, Workspace};
use rustix::mount::MountFlags;
use rustix::thread::{CapabilitySet, CapabilitySets};
use rustix::time::{ClockId, Timespec};

use super::child::Confinement;
use super::core::{Agent, Stage, failure};
use super::place::{Kind, Place, folder};
use super::{files, mounts, sys};

/// The ports of the services.
const SERVICES: [u16; 2] = [4180, 4181];

/// Makes the machine a session's. A second time, for a machine that was kept and woke up elsewhere, only what time has made wrong
/// is set right.
pub(super) fn configure(agent: &mut Agent, configure: &Configure) -> Result<Vec<String>, Failure> {
    let mut notes = Vec::new();
    let place = &mut agent.place;
    if place.machine() {
        sys::credit_entropy(&configure.entropy)
            .map_err(|error| failure(&error, "giving the kernel random bytes"))?;
        if configure.clock != 0 {
            clock(configure.clock).map_err(|error| failure(&error, "setting the clock"))?;
        }
    }
    if agent.stage == Stage::Ready {
        return Ok(notes);
    }
    let user = place.own() && mapped("/proc/self/uid_map") && mapped("/proc/self/gid_map");
    let owner = user.then_some(USER);
    if let Kind::Machine { disks } = &place.kind {
        let quiet = MountFlags::NOSUID | MountFlags::NODEV;
        if let Some(name) = &configure.state {
            mounts::disk(disks, name, Path::new("/state"), "ext4", quiet)?;
        }
        if let Some(name) = &configure.release {
            mounts::disk(disks, name, Path::new("/release"), "erofs", quiet | MountFlags::RDONLY)?;
        }
    }
    if let Kind::Plain { root, .. } = &place.kind {
        for name in ["home", "home/agent", "tmp", "workspace", "state"] {
            folder(&root.join(name), 0o700, None)?;
        }
    } else {
        identity(place, configure, &mut notes)?;
        state(place, owner)?;
        temp(place, configure.temp)?;
    }
    agent.confinement = Confinement {
        user,
        files: configure.files,
        processes: configure.processes,
        filter: configure.filter.clone(),
        writable: configure.landlock.then(|| place.writable()),
    };
    workspace(place, configure.workspace, owner, &agent.confinement, &mut notes)?;
    let address = place.address();
    let own = place.own();
    if own {
        sys::interface_up(b"lo").map_err(|error| failure(&error, "turning the loopback on"))?;
    }
    agent.listen(address, &SERVICES).map_err(|error| failure(&error, "listening for the services"))?;
    if own {
        drop_rights(agent.place.machine())
            .map_err(|error| failure(&error, "giving up what is not needed"))?;
    }
    Ok(notes)
}

/// Sets the clock.
pub(super) fn clock(nanos: i64) -> io::Result<()> {
    let second = 1_000_000_000;
    let time = Timespec { tv_sec: nanos.div_euclid(second), tv_nsec: nanos.rem_euclid(second) };
    Ok(rustix::time::clock_settime(ClockId::Realtime, time)?)
}

/// Whether a map of ids has the session's.
fn mapped(map: &str) -> bool {
    let text = fs::read_to_string(map).unwrap_or_default();
    text.lines().any(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
        let (Some(Ok(inside)), Some(Ok(_)), Some(Ok(length))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        (inside..inside.saturating_add(length)).contains(&u64::from(USER))
    })
}

/// The names this machine goes by: its own, never those of the machine it was copied from.
fn identity(place: &Place, configure: &Configure, notes: &mut Vec<String>) -> Result<(), Failure> {
    rustix::system::sethostname(configure.name.as_bytes())
        .map_err(|error| failure(&error.into(), "setting the host's name"))?;
    if !place.machine() {
        mounts::runtime()?;
    }
    let id = format!("{:032x}", u128::from_be_bytes(configure.machine));
    let hosts = format!("127.0.0.1 localhost {}\n::1 localhost\n", configure.name);
    folder(Path::new("/run/karta"), 0o755, None)?;
    for (name, content) in
        [("machine-id", format!("{id}\n")), ("hostname", format!("{}\n", configure.name)), ("hosts", hosts)]
    {
        let (source, target) = (Path::new("/run/karta").join(name), Path::new("/etc").join(name));
        fs::write(&source, content).map_err(|error| failure(&error, &format!("writing `/etc/{name}`")))?;
        if fs::symlink_metadata(&target).is_ok_and(|meta| meta.is_file()) {
            mounts::bind(&source, &target)?;
        } else {
            notes.push(format!(
                "the image has no file `/etc/{name}`, so the sandbox has none: make an empty one"
            ));
        }
    }
    Ok(())
}

/// The session's disk: its home, and what its workspace has of its own.
fn state(place: &Place, owner: Option<u32>) -> Result<(), Failure> {
    let state = place.state();
    // The session must not reach what lies under its workspace, only the workspace itself.
    folder(&state, 0o711, None)?;
    folder(&state.join("home"), 0o700, owner)?;
    folder(&state.join("work"), 0o700, None)?;
    folder(&state.join("work/up"), 0o755, owner)?;
    folder(&state.join("work/tmp"), 0o700, None)?;
    mounts::bind(&state.join("home"), &place.base(Base::Home))
}

fn temp(place: &Place, bytes: u64) -> Result<(), Failure> {
    /// How big it is where nothing was said.
    const USUAL: u64 = 64 << 20;
    if bytes == 0 && !place.machine() {
        return Ok(());
    }
    let target = place.base(Base::Temp);
    if place.machine() {
        // Whatever ran before the session may have left something.
        mounts::unmount(&target);
    }
    let bytes = if bytes == 0 { USUAL } else { bytes };
    // Empty files take room too: what the kernel keeps of each.
    let files = (bytes / 4096).max(1024);
    let data = format!("mode=1777,size={bytes},nr_inodes={files}");
    mounts::mount("tmpfs", &target, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, &data)
}

fn workspace(
    place: &mut Place,
    wanted: Workspace,
    owner: Option<u32>,
    confinement: &Confinement,
    notes: &mut Vec<String>,
) -> Result<(), Failure> {
    let (release, target) = (place.release(), place.base(Base::Work));
    if wanted == Workspace::Overlay && place.own() {
        let session = owner.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        // What the session does not own in the release it could not change through an overlay.
        let fits = fs::metadata(&release).is_ok_and(|meta| meta.uid() == session);
        if fits {
            match mounts::overlay(&release, &place.upper(), &place.state().join("work/tmp"), &target) {
                Ok(()) => {
                    place.overlay = true;
                    return Ok(());
                }
                Err(failure) => {
                    notes.push(format!("the workspace is a copy of the release: {}", failure.text));
                }
            }
        } else {
            notes.push("the workspace is a copy of the release, whose files have another owner".to_owned());
        }
    }
    if place.own() {
        mounts::bind(&place.upper(), &target)?;
    }
    files::copy(place, confinement)
}

/// Gives up every right that is not needed once everything is mounted.
fn drop_rights(machine: bool) -> io::Result<()> {
    let mut keep = CapabilitySet::SETUID
        | CapabilitySet::SETGID
        | CapabilitySet::SETPCAP
        | CapabilitySet::KILL
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::SYS_RESOURCE;
    if machine {
        // The clock, the random bytes of a machine that wakes up, and its end.
        keep |= CapabilitySet::SYS_TIME | CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_BOOT;
    }
    let keep = keep & rustix::thread::capabilities(None)?.permitted;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() },
    )?;
    Ok(())
}
