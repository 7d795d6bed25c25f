//! The jail's root: made of what the plan names, on a file system of its own, and then all there is.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use super::disk;
use super::launch::{Failure, Step as _};
use super::{Ids, Item, Plan};

/// Folders of the host over which the new root can stand while it is made; one is enough.
const STANDS: [&str; 5] = ["/tmp", "/run", "/mnt", "/dev", "/proc"];

const SEARCHED: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Makes the root in the calling process's own mount namespace and moves into it. `maps` are the user namespaces for the items
/// whose files seem to belong to others.
pub(super) fn build(plan: &Plan, descriptors: &[OwnedFd], maps: &[Option<OwnedFd>]) -> Result<(), Failure> {
    let everything = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", everything).doing(|| "taking the mounts apart from the host's")?;
    // Everything of the host is opened before the new root hides anything of it.
    let mut trees = Vec::with_capacity(plan.items.len());
    for (at, item) in plan.items.iter().enumerate() {
        trees.push(open(item, descriptors, maps.get(at).and_then(Option::as_ref))?);
    }
    let size = plan.root.to_string();
    let root = memory(&size, "0755").doing(|| "making the root")?;
    let stands = STANDS.iter().any(|stand| attach(&root, CWD, stand, MoveMountFlags::empty()).is_ok());
    if !stands {
        return Err(Failure::new(Errno::NOENT, "looking for a folder to make the root in".to_owned()));
    }
    for (item, tree) in plan.items.iter().zip(trees) {
        put(&root, item, tree)?;
    }
    set(root.as_fd(), 0, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID, None)
        .doing(|| "making the root read-only")?;
    rustix::process::fchdir(&root).doing(|| "entering the root")?;
    rustix::process::pivot_root(".", ".").doing(|| "moving into the root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).doing(|| "leaving the host's files")?;
    rustix::process::chdir("/").doing(|| "entering the root")
}

/// What an item mounts, not yet anywhere.
fn open(item: &Item, descriptors: &[OwnedFd], map: Option<&OwnedFd>) -> Result<Option<OwnedFd>, Failure> {
    Ok(Some(match item {
        Item::Folder { .. } | Item::Link { .. } | Item::File { .. } => return Ok(None),
        Item::Bind { from, writable, devices, ids, .. } => {
            let doing = || format!("taking `{}`", from.display());
            // A map holds for one file system.
            let deep = if ids.is_none() { libc::AT_RECURSIVE } else { 0 };
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::from_bits_retain(deep.unsigned_abs());
            let tree = rustix::mount::open_tree(CWD, from, flags).doing(doing)?;
            let mut attributes = libc::MOUNT_ATTR_NOSUID;
            if !writable {
                attributes |= libc::MOUNT_ATTR_RDONLY;
            }
            if !devices {
                attributes |= libc::MOUNT_ATTR_NODEV;
            }
            set(tree.as_fd(), deep, attributes, None).doing(doing)?;
            if let Some(map) = map {
                set(tree.as_fd(), 0, libc::MOUNT_ATTR_IDMAP, Some(map.as_fd()))
                    .doing(|| format!("giving the files of `{}` another owner", from.display()))?;
            }
            tree
        }
        Item::Memory { size, mode, to } => memory(&size.to_string(), &format!("{mode:o}"))
            .doing(|| format!("making memory for `{}`", to.display()))?,
        Item::Processes { .. } => {
            mountable("proc", &[], MountAttrFlags::MOUNT_ATTR_NOEXEC).doing(|| "mounting the processes")?
        }
        Item::Terminals { .. } => {
            let options = [("ptmxmode", "0666"), ("mode", "0620")];
            mountable("devpts", &options, MountAttrFlags::MOUNT_ATTR_NOEXEC)
                .doing(|| "mounting the terminals")?
        }
        Item::Disk { descriptor, owner, .. } => {
            let file = usize::try_from(*descriptor).ok().and_then(|at| descriptors.get(at));
            let file = file.ok_or_else(|| Failure::new(Errno::BADF, "finding the disk".to_owned()))?;
            disk::mount(file.as_fd(), *owner)?
        }
    }))
}

fn memory(size: &str, mode: &str) -> Result<OwnedFd, Errno> {
    mountable("tmpfs", &[("size", size), ("mode", mode), ("nr_inodes", "65536")], MountAttrFlags::empty())
}

/// A new file system without device nodes and without programs that give powers.
pub(super) fn mountable(
    kind: &str,
    options: &[(&str, &str)],
    more: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            rustix::mount::fsconfig_set_flag(&context, *key)?;
        } else {
            rustix::mount::fsconfig_set_string(&context, *key, *value)?;
        }
    }
    rustix::mount::fsconfig_create(&context)?;
    // Terminals are device nodes.
    let nodes = if kind == "devpts" { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_NODEV };
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | nodes | more;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn put(root: &OwnedFd, item: &Item, tree: Option<OwnedFd>) -> Result<(), Failure> {
    match item {
        Item::Folder { to, mode, owner } => {
            let made = folder(root, to).doing(|| format!("making `{}`", to.display()))?;
            own(&made, Mode::from_raw_mode(*mode), *owner).doing(|| format!("giving away `{}`", to.display()))
        }
        Item::Link { to, target } => {
            let make = || {
                let (parent, name) = parent(root, to)?;
                rustix::fs::symlinkat(target, &parent, &name)
            };
            make().doing(|| format!("making the link `{}`", to.display()))
        }
        Item::File { to, content } => {
            write(root, to, content).doing(|| format!("writing `{}`", to.display()))
        }
        Item::Bind { to, .. }
        | Item::Memory { to, .. }
        | Item::Processes { to }
        | Item::Terminals { to }
        | Item::Disk { to, .. } => {
            let place = || {
                let tree = tree.ok_or(Errno::BADF)?;
                let kind = FileType::from_raw_mode(rustix::fs::fstat(&tree)?.st_mode);
                let target = if kind == FileType::Directory { folder(root, to)? } else { spot(root, to)? };
                attach(&tree, &target, "", MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)
            };
            place().doing(|| format!("mounting `{}`", to.display()))
        }
    }
}

fn attach(tree: &OwnedFd, at: impl AsFd, path: &str, more: MoveMountFlags) -> Result<(), Errno> {
    rustix::mount::move_mount(tree, "", at, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | more)
}

fn own(folder: &OwnedFd, mode: Mode, owner: Ids) -> Result<(), Errno> {
    let folder = rustix::fs::openat(folder, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::fchown(&folder, Some(Uid::from_raw(owner.user)), Some(Gid::from_raw(owner.group)))?;
    rustix::fs::fchmod(&folder, mode)
}

/// Opens a path of the new root; links in it lead nowhere else.
fn within(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
}

/// A folder of the new root, made with those above it if need be.
fn folder(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let mut above = PathBuf::new();
    let mut at = within(root, &above, SEARCHED | OFlags::DIRECTORY)?;
    for part in path.components() {
        let name = match part {
            Component::Normal(name) => name,
            Component::RootDir | Component::CurDir => continue,
            Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL),
        };
        above.push(name);
        at = match within(root, &above, SEARCHED | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755))?;
                within(root, &above, SEARCHED | OFlags::DIRECTORY)?
            }
            other => other?,
        };
    }
    Ok(at)
}

/// The folder of a path, and its last name.
fn parent(root: &OwnedFd, path: &Path) -> Result<(OwnedFd, PathBuf), Errno> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    Ok((folder(root, path.parent().unwrap_or_else(|| Path::new("")))?, PathBuf::from(name)))
}

/// A file of the new root to mount something over, made empty if it is not there.
fn spot(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    match within(root, path, SEARCHED) {
        Err(Errno::NOENT) => {
            let (parent, name) = parent(root, path)?;
            let made = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            drop(rustix::fs::openat(&parent, &name, made, Mode::from_raw_mode(0o644))?);
            within(root, path, SEARCHED)
        }
        other => other,
    }
}

fn write(root: &OwnedFd, path: &Path, content: &[u8]) -> Result<(), Errno> {
    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fill = |file: OwnedFd| {
        File::from(file).write_all(content).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    };
    match parent(root, path) {
        Ok((parent, name)) => match rustix::fs::openat(&parent, &name, create, Mode::from_raw_mode(0o644)) {
            Ok(made) => return fill(made),
            Err(Errno::ROFS | Errno::EXIST) => {}
            Err(error) => return Err(error),
        },
        // The folder isn't there and can't be made: then nobody looks for the file either.
        Err(Errno::ROFS) => return Ok(()),
        Err(error) => return Err(error),
    }
    // Something of the image is there: the file is laid over it. Its own name is only a means to mount it.
    let over = match within(root, path, SEARCHED) {
        Ok(over) => over,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error),
    };
    let name = ".file";
    fill(rustix::fs::openat(root, name, create, Mode::from_raw_mode(0o644))?)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(root, name, flags)?;
    set(tree.as_fd(), 0, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV, None)?;
    attach(&tree, &over, "", MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)?;
    rustix::fs::unlinkat(root, name, AtFlags::empty())
}

/// Sets attributes of a mount that is not attached, or of the one whose root a descriptor is.
#[expect(unsafe_code, reason = "a system call that the system call library lacks")]
fn set(tree: BorrowedFd<'_>, deep: i32, attributes: u64, map: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: map.map_or(0, |map| u64::from(map.as_raw_fd().unsigned_abs())),
    };
    // SAFETY: the path is an empty C string, the structure is the one the call expects with its true size, and both live until
    // it returns; the descriptors are borrowed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | deep,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    super::launch::done(done)
}
