//! System calls that have no safe form elsewhere.
#![expect(unsafe_code, reason = "fork, signal masks, ioctls and filters of system calls")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Pid;

/// Where a process finds itself after [`fork`].
pub(crate) enum Fork {
    /// In the new process.
    Child,
    /// In the old one.
    Parent(Pid),
}

fn told(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Makes a copy of this process. The agent and what it forks have one thread each, so the copy is whole: no lock is left held by a
/// thread that is not there.
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: this program never starts a second thread, so the copy may do everything the original may.
    let pid = told(unsafe { libc::fork() })?;
    Ok(Pid::from_raw(pid).map_or(Fork::Child, Fork::Parent))
}

/// Whether the agent is the first process of all that it sees. Its copies know it from it.
static FIRST: AtomicBool = AtomicBool::new(false);

/// Notes whether this process is the first of all that it sees, which it is in every sandbox.
pub(crate) fn note_first() {
    FIRST.store(rustix::process::getpid().is_init(), Ordering::Relaxed);
}

/// Whether the agent is the first process of all that it sees.
pub(crate) fn has_first() -> bool {
    FIRST.load(Ordering::Relaxed)
}

/// Stops every process of the sandbox but this one, the first: all at one moment. A process that is just being born is stopped as
/// well. Answers false, and does nothing, where others than the sandbox's would be met, and for every other process: two that do it
/// would stop each other, and one that is killed would leave everybody stopped. The first is neither stopped nor killed.
pub(crate) fn stop_everyone() -> bool {
    if !has_first() || !rustix::process::getpid().is_init() {
        return false;
    }
    // SAFETY: it sends a signal and touches no memory. That there may be nobody to send it to is no failure.
    unsafe { libc::kill(-1, libc::SIGSTOP) };
    true
}

/// Blocks the signal that tells of children, and opens a descriptor that is readable when it came.
pub(crate) fn children() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` fills the set, and the other calls get that set and no other pointer.
    let fd = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        told(libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()))?;
        told(libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?
    };
    // SAFETY: the descriptor was made just now and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes over a descriptor that was given to this process by number.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: this only asks about the number, it opens and closes nothing.
    told(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the number is open, and whoever started this program gave it away by naming it in the arguments, which are read once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Marks every descriptor from `first` on to close when another program starts.
pub(crate) fn close_at_exec(first: u32) -> io::Result<()> {
    let flags = i64::from(libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: it changes a flag of descriptors and closes none.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, i64::from(first), i64::from(u32::MAX), flags) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives the kernel random bytes that count as such.
pub(crate) fn credit_entropy(bytes: &[u8]) -> io::Result<()> {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    let device = std::fs::OpenOptions::new().write(true).open("/dev/urandom")?;
    let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut info = Vec::with_capacity(8 + bytes.len());
    info.extend((length * 8).to_ne_bytes());
    info.extend(length.to_ne_bytes());
    info.extend_from_slice(bytes);
    // SAFETY: the call reads two numbers and then as many bytes as the second says, all of which are in `info`.
    told(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, info.as_ptr()) })?;
    reseed(&device);
    Ok(())
}

/// Lets the kernel take the new bytes into its generator at once.
fn reseed(device: &std::fs::File) {
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    // SAFETY: the call takes no argument. Where it is not allowed, the kernel does it by itself a little later.
    unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _, 0) };
}

/// Forgets what the kernel has kept of a disk's content.
pub(crate) fn forget_buffers(disk: impl AsFd) -> io::Result<()> {
    const BLKFLSBUF: libc::c_ulong = 0x1261;
    // SAFETY: the call takes no argument.
    told(unsafe { libc::ioctl(disk.as_fd().as_raw_fd(), BLKFLSBUF as _, 0) })?;
    Ok(())
}

/// Turns a network interface on.
pub(crate) fn interface_up(name: &[u8]) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all bits zero is a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    // SAFETY: both calls get a whole `ifreq` with a name that ends in zero; the first fills its flags, which are then read.
    unsafe {
        told(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request))?;
        request.ifr_ifru.ifru_flags |= libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
        told(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request))?;
    }
    Ok(())
}

/// Puts a filter of system calls on this process and what it becomes. `code` holds instructions of 8 bytes.
pub(crate) fn filter(code: &[u8]) -> io::Result<()> {
    let instructions: Vec<libc::sock_filter> = code
        .chunks_exact(8)
        .map(|one| libc::sock_filter {
            code: u16::from_le_bytes([one[0], one[1]]),
            jt: one[2],
            jf: one[3],
            k: u32::from_le_bytes([one[4], one[5], one[6], one[7]]),
        })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: instructions.as_ptr().cast_mut(),
    };
    // SAFETY: `program` points to `len` instructions that live until the call has ended; the kernel checks and copies them.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ends this process, which was forked, without what the original would do at its end.
pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: it does nothing but end the process.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from 3 on but these. Only for a process that was just forked and never drops what it had: the
/// numbers that other values hold mean nothing afterwards.
pub(crate) fn close_others(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for end in kept.into_iter().chain([u32::MAX]) {
        let last = if end == u32::MAX { end } else { end.saturating_sub(1) };
        if end > first {
            // SAFETY: this process leaves by `leave`, without dropping the values whose descriptors are closed here, so nothing
            // uses or closes a number that came to mean something else.
            let result =
                unsafe { libc::syscall(libc::SYS_close_range, i64::from(first), i64::from(last), 0) };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        first = end.saturating_add(1).max(first);
    }
    Ok(())
}
