//! The first process inside a sandbox.
//!
//! `karta-guest init` is the first process of a virtual machine: the channel is its port `agent.0`, and it mounts what it is told to.
//! `karta-guest serve <fd>` is the first process of namespaces: whoever made them has made the root, with `/release`, `/state`,
//! `/opt/harness`, `/proc` and `/dev`, and has left this process the capabilities it needs to finish: it mounts the rest, and drops
//! what it does not need before the first program runs. `karta-guest serve <fd> <folder> <address>` is neither: an ordinary process
//! with a place in an ordinary folder, so that the protocol can be tried without either.
//!
//! The agent ends when its channel does, and everything inside ends with it.

mod channel;
mod child;
mod configure;
mod core;
mod files;
mod freeze;
mod keeper;
mod landlock;
mod mounts;
mod parked;
mod place;
mod sockets;
mod spawn;
mod stream;
mod streams;
mod sys;
mod tree;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use place::{Kind, Place};

/// Serves a host over a descriptor that was inherited.
pub(crate) fn serve(arguments: &[OsString]) -> ExitCode {
    told(match arguments {
        [fd] => start(fd, Kind::Namespace),
        [fd, folder, address] => match address.to_str().and_then(|text| text.parse().ok()) {
            Some(address) => start(fd, Kind::Plain { root: PathBuf::from(folder), address }),
            None => Err(io::Error::other("the address is none")),
        },
        _ => Err(io::Error::other("say `serve <fd>` or `serve <fd> <folder> <address>`")),
    })
}

/// Serves as the first process of a virtual machine, and ends the machine with it.
pub(crate) fn init() -> ExitCode {
    sys::note_first();
    let served = mounts::boot().and_then(|(channel, disks)| {
        core::Agent::new(channel, Place::new(Kind::Machine { disks }), core::Stage::Bare)?.run()
    });
    let code = told(served);
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    code
}

fn start(fd: &OsString, kind: Kind) -> io::Result<()> {
    sys::note_first();
    let number = fd.to_str().and_then(|text| text.parse().ok());
    let number = number.ok_or_else(|| io::Error::other("the descriptor is no number"))?;
    let channel = sys::inherited(number)?;
    // A session's process of the same user may neither look into this one nor change it.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    let plain = matches!(kind, Kind::Plain { .. });
    if plain {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    }
    // What is inherited as standard input, the channel itself perhaps, is nobody else's.
    let channel = rustix::io::fcntl_dupfd_cloexec(&channel, 10)?;
    if number <= 2 {
        let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())?;
        rustix::stdio::dup2_stdin(&null)?;
    }
    core::Agent::new(channel, Place::new(kind), core::Stage::Bare)?.run()
}

fn told(result: io::Result<()>) -> ExitCode {
    use std::io::Write as _;
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "karta-guest: {error}");
            ExitCode::FAILURE
        }
    }
}
