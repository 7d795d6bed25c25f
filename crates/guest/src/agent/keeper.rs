//! The process between the agent and a program: it adopts whatever the program leaves behind, so that all of it can be ended.
//!
//! Each program has a keeper of its own. The kernel gives every orphan below a keeper to the keeper, whatever session, group or
//! environment it made for itself; so what descends from it is exactly what the program started, and nobody gets away.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use karta_guest::proto::message::Ended;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use super::child::{self, Confinement, Program, Standard};
use super::sys::{self, Fork};
use super::tree::{self, Seen, Until};

/// Asks to end gently.
pub(super) const TERMINATE: u8 = b'T';
/// Asks to end at once.
pub(super) const KILL: u8 = b'K';
/// The program runs.
pub(super) const STARTED: u8 = b'S';
/// The program did not start: number of the error, then why.
pub(super) const FAILED: u8 = b'F';
/// The program and everything below it are gone: [`Ended`].
pub(super) const ENDED: u8 = b'E';
/// What is below multiplies faster than it is killed: asks the agent to stop it at once, which the first process alone can.
pub(super) const HELP: u8 = b'H';

/// The status with which a keeper leaves what it can't end, and nobody helps with, to the agent.
pub(super) const GAVE_UP: i32 = 3;

/// How long a round waits for the killed to be gone.
const ROUND: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// How long a round waits at most for everything to stand still; then what is found is killed.
const STANDING: Duration = Duration::from_millis(500);

/// Runs the program to its end, in a process of its own. Returns when nothing is left of it.
pub(super) fn run(control: &OwnedFd, standard: Standard, program: &Program, confinement: &Confinement) {
    let failed = |error: &io::Error, doing: &str| {
        let mut news = vec![FAILED];
        news.extend(error.raw_os_error().unwrap_or(0).to_ne_bytes());
        news.extend_from_slice(doing.as_bytes());
        tell(control, &news);
    };
    let own = rustix::process::getpid();
    let prepared = rustix::process::set_child_subreaper(Some(own))
        .map_err(io::Error::from)
        .and_then(|()| sys::children())
        .and_then(|signals| Ok((signals, rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)));
    let (signals, (status, failing)) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return failed(&error, "preparing to watch over the program"),
    };
    let leader = match sys::fork() {
        Ok(Fork::Child) => {
            let failure = child::become_program(standard, program, confinement);
            child::report(&failing, &failure);
            return;
        }
        Ok(Fork::Parent(leader)) => leader,
        Err(error) => return failed(&error, "making a process"),
    };
    // Whoever reads the program's output must see it end with the program.
    drop((standard, failing));
    match child::outcome(&status) {
        None => tell(control, &[STARTED]),
        Some(failure) => {
            let _ = rustix::process::waitpid(Some(leader), WaitOptions::empty());
            return failed(&failure.error, &failure.doing);
        }
    }
    drop(status);
    let mut ended = None;
    let mut wanted = None;
    while ended.is_none() && wanted.is_none() {
        let mut poll = [PollFd::new(control, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        if rustix::event::poll(&mut poll, None).is_err() {
            continue;
        }
        if !poll[0].revents().is_empty() {
            wanted = order(control);
        }
        ended = reap(&signals, leader, ended);
    }
    let ended = end_all(control, &signals, leader, ended);
    let mut news = vec![ENDED];
    news.extend(ended.unwrap_or(Ended::Unknown).encode());
    tell(control, &news);
}

fn tell(control: &OwnedFd, news: &[u8]) {
    // If the agent is gone, nobody wants to know.
    let _ = rustix::net::send(control, news, SendFlags::NOSIGNAL);
}

/// What the agent wants. Its end is an order to kill.
fn order(control: &OwnedFd) -> Option<()> {
    let mut byte = [0];
    match rustix::net::recv(control, &mut byte, RecvFlags::DONTWAIT) {
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => None,
        Ok((1, _)) if byte[0] == TERMINATE => {
            for one in below().into_iter().filter(|one| !one.dead()) {
                one.signal(Signal::TERM);
                // A stopped one would not hear it.
                one.signal(Signal::CONT);
            }
            None
        }
        Ok(_) | Err(_) => Some(()),
    }
}

fn below() -> Vec<Seen> {
    tree::below(&tree::processes(), rustix::process::getpid().as_raw_nonzero().get(), &HashSet::new())
}

/// Reaps whoever has ended; answers how the leader did, if it has.
fn reap(signals: &OwnedFd, leader: Pid, mut ended: Option<Ended>) -> Option<Ended> {
    let mut buffer = [0; 1024];
    while rustix::io::read(signals, &mut buffer).is_ok() {}
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid == leader {
            ended = Some(how(status));
        }
    }
    ended
}

fn how(status: WaitStatus) -> Ended {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => Ended::Status(status),
        (None, Some(signal)) => Ended::Signal(signal),
        (None, None) => Ended::Unknown,
    }
}

/// Asks the agent to kill what is below. Nothing happens if it has been asked so often that it has not come to hear it.
fn ask_for_help(control: &OwnedFd) {
    let asked = rustix::net::send(control, &[HELP], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    let heard = matches!(asked, Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR));
    if !heard && sys::has_first() {
        // Nobody hears this one any more; what it leaves comes to the first process, which ends it.
        sys::leave(GAVE_UP);
    }
}

/// Kills everything below, until nothing is left.
fn end_all(control: &OwnedFd, signals: &OwnedFd, leader: Pid, mut ended: Option<Ended>) -> Option<Ended> {
    /// After so many rounds, and each time after so many more, the agent is asked for help.
    const ALONE: u32 = 4;
    for round in 1_u32.. {
        ended = reap(signals, leader, ended);
        // One that forks as fast as it is killed must stand still first.
        let (_, all) = tree::stop(Until::within(STANDING), &below);
        let left = below();
        for one in &left {
            one.signal(Signal::KILL);
        }
        ended = reap(signals, leader, ended);
        if all && left.is_empty() && rustix::process::wait(WaitOptions::NOHANG).is_err() {
            return ended;
        }
        if round.is_multiple_of(ALONE) {
            ask_for_help(control);
        }
        let mut poll = [PollFd::new(signals, PollFlags::IN)];
        let _ = rustix::event::poll(&mut poll, Some(&ROUND));
    }
    ended
}
