//! Starts a keeper, which starts the program.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use karta_guest::proto::message::Spawn;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use super::child::{Confinement, Standard};
use super::keeper;
use super::stream::non_blocking;
use super::sys::{self, Fork};

/// A program that is being started.
pub(super) struct Spawned {
    /// Tells when it runs and how it ended; takes orders.
    pub(super) keeper: OwnedFd,
    /// The keeper's number.
    pub(super) pid: Pid,
    pub(super) input: OwnedFd,
    pub(super) output: OwnedFd,
    pub(super) error: OwnedFd,
}

/// Two ends of a pipe, of which this process's one never blocks: first what is read from, then what is written to.
pub(super) fn pipe(own_reads: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    non_blocking(if own_reads { &read } else { &write })?;
    Ok((read, write))
}

/// Starts a program. Its keeper tells whether it runs.
pub(super) fn spawn(program: &Spawn, confinement: &Confinement) -> io::Result<Spawned> {
    let (their_input, input) = pipe(false)?;
    let (output, their_output) = pipe(true)?;
    let (error, their_error) = pipe(true)?;
    let (keeper, control) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let standard = Standard { input: their_input, output: their_output, error: their_error };
    match sys::fork()? {
        Fork::Child => {
            drop((input, output, error, keeper));
            let control = only(control, &standard);
            if let Some(control) = control {
                keeper::run(&control, standard, program, confinement);
            }
            sys::leave(0)
        }
        Fork::Parent(pid) => Ok(Spawned { keeper, pid, input, output, error }),
    }
}

/// Closes everything a keeper has no use for: the channel to the host and other programs' pipes above all, which would never end
/// as long as it holds them.
fn only(control: OwnedFd, standard: &Standard) -> Option<OwnedFd> {
    let kept = [control.as_fd(), standard.input.as_fd(), standard.output.as_fd(), standard.error.as_fd()];
    sys::close_others(&kept).ok()?;
    Some(control)
}
