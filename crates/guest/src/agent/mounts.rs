//! The file systems of a virtual machine and of a workspace.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use karta_guest::proto::message::Failure;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use super::core::failure;
use super::place::folder;
use super::sys;

/// The name of the port that leads to the host.
const PORT: &str = "agent.0";
/// Where the system is mounted before it becomes the root.
const NEXT: &str = "/next";

/// Mounts one thing; the failure says which.
pub(super) fn mount(
    source: &str,
    target: &Path,
    kind: &str,
    flags: MountFlags,
    data: &str,
) -> Result<(), Failure> {
    let done = CString::new(data)
        .map_err(io::Error::from)
        .and_then(|data| Ok(rustix::mount::mount(source, target, kind, flags, data.as_c_str())?));
    done.map_err(|error| failure(&error, &format!("mounting `{source}` ({kind}) on `{}`", target.display())))
}

/// Shows a file or a folder at another place too.
pub(super) fn bind(source: &Path, target: &Path) -> Result<(), Failure> {
    rustix::mount::mount_bind(source, target).map_err(|error| {
        failure(&error.into(), &format!("binding `{}` to `{}`", source.display(), target.display()))
    })
}

const QUIET: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// What the first process of a virtual machine does first: the channel to the host, and the numbers of the disks.
pub(super) fn boot() -> io::Result<(OwnedFd, HashMap<String, u64>)> {
    let told = |failure: Failure| io::Error::other(failure.text);
    for (path, kind) in [("/proc", "proc"), ("/sys", "sysfs"), ("/dev", "devtmpfs")] {
        folder(Path::new(path), 0o755, None).map_err(told)?;
        match mount(kind, Path::new(path), kind, MountFlags::NOSUID | MountFlags::NOEXEC, "") {
            // The kernel may have done it already.
            Err(failure) if failure.errno != libc::EBUSY => return Err(told(failure)),
            _ => {}
        }
    }
    // The last to be killed when memory runs out.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let mut disks = HashMap::new();
    for entry in fs::read_dir("/sys/class/block")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(number) = fs::read_to_string(entry.path().join("dev")).ok().and_then(|text| number(&text))
        {
            disks.insert(name, number);
        }
    }
    let port = port()?;
    // Until the host has opened its end, the port reads as if it were closed.
    loop {
        let mut poll = [PollFd::new(&port, PollFlags::OUT)];
        rustix::event::poll(&mut poll, None)?;
        if !poll[0].revents().contains(PollFlags::HUP) {
            return Ok((port, disks));
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

fn number(text: &str) -> Option<u64> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

fn port() -> io::Result<OwnedFd> {
    let mut seen = Vec::new();
    for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == PORT {
            let path = Path::new("/dev").join(entry.file_name());
            return Ok(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?);
        }
        seen.push(name.trim().to_owned());
    }
    Err(io::Error::other(format!(
        "there is no port `{PORT}` to the host (there are {seen:?}): give the machine one"
    )))
}

/// Mounts a disk by its name.
pub(super) fn disk(
    disks: &HashMap<String, u64>,
    name: &str,
    target: &Path,
    kind: &str,
    flags: MountFlags,
) -> Result<(), Failure> {
    let Some(number) = disks.get(name) else {
        return Err(Failure { errno: libc::ENODEV, text: format!("the machine has no disk `{name}`") });
    };
    let node = format!("/dev/.{name}");
    let opened =
        rustix::fs::mknodat(rustix::fs::CWD, &node, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, *number)
            .and_then(|()| rustix::fs::open(&node, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()));
    let done = opened
        .map_err(io::Error::from)
        // Its content may be another than when the machine was copied.
        .and_then(sys::forget_buffers)
        .map_err(|error| failure(&error, &format!("opening the disk `{name}`")))
        .and_then(|()| mount(&node, target, kind, flags, ""));
    let _ = fs::remove_file(&node);
    done
}

/// Mounts the system of a virtual machine and makes it the root.
pub(super) fn system(disks: &HashMap<String, u64>, base: &str, harness: Option<&str>) -> Result<(), Failure> {
    let next = Path::new(NEXT);
    folder(next, 0o755, None)?;
    let read = QUIET | MountFlags::RDONLY;
    disk(disks, base, next, "erofs", read)?;
    if let Some(harness) = harness {
        disk(disks, harness, &next.join("opt/harness"), "erofs", read)?;
    }
    mount("proc", &next.join("proc"), "proc", QUIET | MountFlags::NOEXEC, "")?;
    devices(&next.join("dev"))?;
    let moved = || -> io::Result<()> {
        rustix::process::chdir(next)?;
        rustix::mount::mount_move(".", "/")?;
        rustix::process::chroot(".")?;
        Ok(rustix::process::chdir("/")?)
    };
    moved().map_err(|error| failure(&error, "making the base the root"))?;
    let _ = rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
    );
    runtime()?;
    mount("tmpfs", Path::new("/tmp"), "tmpfs", QUIET, "mode=1777,size=64m")
}

/// `/run`, which is small and the agent's.
pub(super) fn runtime() -> Result<(), Failure> {
    mount("tmpfs", Path::new("/run"), "tmpfs", QUIET | MountFlags::NOEXEC, "mode=755,size=1m")
}

/// The few devices a program needs.
fn devices(dev: &Path) -> Result<(), Failure> {
    mount("tmpfs", dev, "tmpfs", MountFlags::NOSUID | MountFlags::NOEXEC, "mode=755,size=64k")?;
    let doing = |name: &str| format!("making the device `{name}`");
    for (name, minor, major) in
        [("null", 3, 1), ("zero", 5, 1), ("full", 7, 1), ("random", 8, 1), ("urandom", 9, 1), ("tty", 0, 5)]
    {
        let number = rustix::fs::makedev(major, minor);
        let path = dev.join(name);
        let all = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH;
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::CharacterDevice, all, number)
            .and_then(|()| rustix::fs::chmod(&path, all))
            .map_err(|error| failure(&error.into(), &doing(name)))?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        std::os::unix::fs::symlink(target, dev.join(name)).map_err(|error| failure(&error, &doing(name)))?;
    }
    folder(&dev.join("pts"), 0o755, None)?;
    folder(&dev.join("shm"), 0o1777, None)?;
    mount(
        "devpts",
        &dev.join("pts"),
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        "ptmxmode=666,mode=620",
    )?;
    mount("tmpfs", &dev.join("shm"), "tmpfs", QUIET, "mode=1777,size=64m")
}

/// Lays the session's changes over the release.
pub(super) fn overlay(release: &Path, upper: &Path, scratch: &Path, target: &Path) -> Result<(), Failure> {
    // Marks of its own in attributes that need no rights over the whole machine: so it works in a user namespace, and the process
    // that surveys the changes needs no more rights than the session has.
    let data = format!(
        "lowerdir={},upperdir={},workdir={},userxattr",
        release.display(),
        upper.display(),
        scratch.display()
    );
    mount("overlay", target, "overlay", QUIET, &data)
}

/// Takes a mount away again.
pub(super) fn unmount(target: &Path) {
    let _ = rustix::mount::unmount(target, UnmountFlags::DETACH);
}
