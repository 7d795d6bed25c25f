//! What a new process does to itself between fork and exec. The only unsafe code of this crate.
#![expect(unsafe_code, reason = "a hook between fork and exec, and descriptors known only by number")]

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::{Errno, FdFlags};
use rustix::process::{Pid, Resource, Rlimit, Signal};

/// Makes the command's process lead its own session, die with the server, keep its files private, and inherit nothing.
pub(super) fn confine(command: &mut Command) {
    let server = rustix::process::getpid();
    // SAFETY: between fork and exec in a threaded program only async-signal-safe work is allowed. `settle` makes nothing but
    // direct system calls: it allocates nothing, takes no lock, and its errors are plain numbers.
    unsafe { command.pre_exec(move || settle(server)) };
}

fn settle(server: Pid) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The server may have died before the signal was armed: then nobody would ever end this process.
    if rustix::process::getppid() != Some(server) {
        return Err(Errno::SRCH.into());
    }
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    close_at_exec()
}

/// Marks every descriptor but the three standard ones to close at exec, whoever opened it and however.
fn close_at_exec() -> io::Result<()> {
    const HERE: &CStr = c"/proc/self/fd";
    let folder = rustix::fs::open(HERE, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(&folder, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let Some(number) = descriptor(entry.file_name().to_bytes()) else { continue };
        // SAFETY: the number was read from this process's own table a moment ago, and it has only this one thread, so the
        // descriptor is open for as long as it is borrowed.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    }
    Ok(())
}

/// The descriptor a name in `/proc/self/fd` stands for; none for the standard ones and for what is no number.
fn descriptor(name: &[u8]) -> Option<RawFd> {
    let mut number: RawFd = 0;
    for byte in name {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number = number.checked_mul(10)?.checked_add(RawFd::from(digit))?;
    }
    (number > 2).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::descriptor;

    #[test]
    fn only_numbers_above_the_standard_ones_count() {
        assert_eq!(descriptor(b"3"), Some(3));
        assert_eq!(descriptor(b"1024"), Some(1024));
        for other in [&b"0"[..], b"2", b".", b"..", b"", b"99999999999999999999"] {
            assert_eq!(descriptor(other), None);
        }
    }
}
