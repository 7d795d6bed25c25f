//! What a sandbox in namespaces has in its root.

use std::fs;
use std::path::{Path, PathBuf};

use karta_guest::jail::{Ids, Item};

use crate::Error;

/// Folders of an image that are never shown, or that every sandbox has its own of.
const OWN: [&str; 15] = [
    "boot",
    "dev",
    "home",
    "lost+found",
    "media",
    "mnt",
    "opt",
    "proc",
    "release",
    "root",
    "run",
    "state",
    "sys",
    "tmp",
    "workspace",
];

/// Where the host's own programs are. Where there is no image, these are shown, and nothing else of the host but [`SETTINGS`].
pub(crate) const PROGRAMS: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// The files of the host's `/etc` without which its programs don't run. Nothing in them is private.
const SETTINGS: [&str; 12] = [
    "alternatives",
    "ca-certificates",
    "debian_version",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "magic",
    "mime.types",
    "os-release",
    "protocols",
    "ssl/certs",
];

/// Devices that are nobody's.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// What the kernel tells of itself, and takes orders by, in files that no session has a use for.
const HIDDEN: [&str; 7] =
    ["kcore", "keys", "key-users", "latency_stats", "sched_debug", "sysrq-trigger", "timer_list"];

/// Whose things are inside: as the host counts, or as it is inside where the launcher is not privileged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owners {
    /// Of the first process.
    pub(crate) root: Ids,
    /// Of the session's processes.
    pub(crate) agent: Ids,
}

/// The base: of an image, or of the host's own programs.
pub(crate) fn base(image: Option<&Path>, owners: Owners) -> Result<Vec<Item>, Error> {
    let mut items = if let Some(image) = image {
        shown(image, &entries(image)?)
    } else {
        let mut items = shown(Path::new("/"), &PROGRAMS.map(PathBuf::from));
        items.extend(shown(Path::new("/"), &SETTINGS.map(|name| Path::new("etc").join(name))));
        items
    };
    let folder = |to: &str, mode, owner| Item::Folder { to: to.into(), mode, owner };
    let file = |to: &str, content: &str| Item::File { to: to.into(), content: content.into() };
    let link = |to: &str, target: &str| Item::Link { to: to.into(), target: target.into() };
    if image.is_none() {
        // The first process lays the sandbox's own over these; an image has them.
        items.extend(["/etc/machine-id", "/etc/hostname", "/etc/hosts"].map(|to| file(to, "")));
    }
    items.extend([
        file("/etc/passwd", PASSWD),
        file("/etc/group", GROUP),
        file("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
        file("/etc/resolv.conf", ""),
        folder("/dev", 0o755, owners.root),
    ]);
    items.extend(DEVICES.map(|name| Item::Bind {
        from: Path::new("/dev").join(name),
        to: Path::new("/dev").join(name),
        writable: true,
        devices: true,
        ids: None,
    }));
    items.extend([
        Item::Terminals { to: "/dev/pts".into() },
        link("/dev/ptmx", "pts/ptmx"),
        link("/dev/fd", "/proc/self/fd"),
        link("/dev/stdin", "/proc/self/fd/0"),
        link("/dev/stdout", "/proc/self/fd/1"),
        link("/dev/stderr", "/proc/self/fd/2"),
        Item::Memory { to: "/dev/shm".into(), size: 64 << 20, mode: 0o1777 },
        Item::Processes { to: "/proc".into() },
        folder("/run", 0o755, owners.root),
        folder("/opt", 0o755, owners.root),
        folder("/root", 0o700, owners.root),
        folder("/home", 0o755, owners.root),
    ]);
    let hidden = HIDDEN.map(|name| Path::new("/proc").join(name));
    items.extend(hidden.into_iter().filter(|to| to.exists()).map(|to| Item::Bind {
        from: "/dev/null".into(),
        to,
        writable: false,
        devices: true,
        ids: None,
    }));
    Ok(items)
}

const PASSWD: &str = "root:x:0:0:root:/root:/usr/sbin/nologin\n\
                      agent:x:1000:1000:agent:/home/agent:/bin/sh\n\
                      nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n";

/// The top of an image.
fn entries(image: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::File { doing: "reading the image", path: image.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(image).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if !OWN.iter().any(|own| *own == name) {
            names.push(PathBuf::from(name));
        }
    }
    names.sort();
    Ok(names)
}

/// These things of a folder, read-only, at the same place in the root; what is not there is left out.
pub(crate) fn shown(from: &Path, names: &[PathBuf]) -> Vec<Item> {
    let show = |name: &PathBuf| {
        let there = from.join(name);
        let to = Path::new("/").join(name);
        let kind = fs::symlink_metadata(&there).ok()?.file_type();
        // A link at the top of a system leads to another place in it, as `bin` to `usr/bin`.
        if kind.is_symlink() && name.components().count() == 1 {
            return Some(Item::Link { to, target: fs::read_link(&there).ok()? });
        }
        there.exists().then_some(Item::Bind { from: there, to, writable: false, devices: false, ids: None })
    };
    names.iter().filter_map(show).collect()
}
