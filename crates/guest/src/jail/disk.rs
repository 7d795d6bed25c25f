//! A file of the host as a disk.
#![expect(unsafe_code, reason = "control calls for loop devices")]

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::Ids;
use super::launch::{Failure, Step as _, done};

const LOOP_CONFIGURE: u64 = 0x4c0a;
const LOOP_CTL_GET_FREE: u64 = 0x4c82;

/// The device is let go with its last user: there is nothing to clean up, whoever ends how.
const AUTOCLEAR: u32 = 4;

/// How often another process may be quicker in taking the free device.
const TRIES: usize = 64;

/// The kernel's `loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// The kernel's `loop_config`.
#[repr(C)]
struct Config {
    descriptor: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// Mounts the ext4 file system in a file, its root given to `owner`. The mount is not attached anywhere.
pub(super) fn mount(file: BorrowedFd<'_>, owner: Ids) -> Result<OwnedFd, Failure> {
    let (device, path) = attach(file).doing(|| "making a disk of the session's file")?;
    // What the session removes gives its room back to the host.
    let options = [("source", path.as_str()), ("discard", ""), ("errors", "remount-ro")];
    let tree = super::root::mountable("ext4", &options, MountAttrFlags::MOUNT_ATTR_NOATIME)
        .doing(|| "mounting the session's disk")?;
    drop(device);
    let give = || {
        let root = rustix::fs::openat(&tree, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::fs::fchown(&root, Some(Uid::from_raw(owner.user)), Some(Gid::from_raw(owner.group)))?;
        rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755))
    };
    give().doing(|| "giving away the session's disk")?;
    Ok(tree)
}

fn attach(file: BorrowedFd<'_>) -> Result<(OwnedFd, String), Errno> {
    let control =
        rustix::fs::openat(CWD, "/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    for _ in 0..TRIES {
        // SAFETY: the call takes no argument and gives a number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        done(i64::from(number).min(0))?;
        let path = format!("/dev/loop{number}");
        let device = rustix::fs::openat(CWD, &path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let config = Config {
            descriptor: file.as_raw_fd().unsigned_abs(),
            block_size: 0,
            info: Info {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: 0,
                size_limit: 0,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: AUTOCLEAR,
                file_name: [0; 64],
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        // SAFETY: the structure has the layout the call expects and lives until it returns.
        let answer = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        match done(i64::from(answer)) {
            Err(Errno::BUSY) => {}
            Err(error) => return Err(error),
            Ok(()) => return Ok((device, path)),
        }
    }
    Err(Errno::BUSY)
}
