//! Finds and kills the processes of a session that left its process group.
//!
//! A process that calls `setsid` escapes a kill by group. Each process of the platform is therefore started with
//! `KARTA_SANDBOX=<root>/<session>/<sandbox>/<birth>` in its environment, which its descendants inherit, and the sweep looks for
//! that mark in `/proc`. The root is the data directory's device and inode, so two servers on one machine never end each
//! other's processes; the birth is one spawn, so ending one process of a sandbox leaves the others alone.
//!
//! A descendant that both clears its environment and is adopted by init gets away: this driver is for folders that are trusted as
//! one's own code.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

/// The variable that marks the platform's processes.
pub const VARIABLE: &str = "KARTA_SANDBOX";

/// Most bytes of an environment that are looked at: what the kernel lets a program be started with.
const ENVIRONMENT: u64 = 8 << 20;
/// How often a sweep looks again for processes that were born while it killed.
const ROUNDS: usize = 32;
/// How long one round waits for the killed to be gone.
const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// What marks one spawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    /// The data directory: device and inode.
    pub(super) root: String,
    /// The session.
    pub(super) session: String,
    /// The sandbox.
    pub(super) sandbox: String,
    /// This one spawn. Never 0.
    pub(super) birth: u64,
}

impl Mark {
    /// The variable's value.
    pub(super) fn value(&self) -> String {
        format!("{}/{}/{}/{:016x}", self.root, self.session, self.sandbox, self.birth)
    }

    /// Reads a value back.
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(value).ok()?.split('/').map(str::to_owned);
        let (root, session, sandbox) = (parts.next()?, parts.next()?, parts.next()?);
        let birth = u64::from_str_radix(&parts.next()?, 16).ok()?;
        parts.next().is_none().then_some(Self { root, session, sandbox, birth })
    }
}

/// A process as `/proc` shows it.
#[derive(Debug)]
pub(super) struct Seen {
    pid: i32,
    parent: i32,
    /// The pid of its session's leader.
    pub(super) leader: i32,
    started: u64,
    /// The mark it carries.
    pub(super) mark: Option<Mark>,
}

/// Kills every process of this user that `wanted` picks, with all its descendants, and waits for them to be gone. Answers how
/// many were killed.
pub(super) fn sweep(wanted: &dyn Fn(&Seen) -> bool) -> usize {
    let mut killed = 0;
    for _ in 0..ROUNDS {
        let dying: Vec<OwnedFd> = family(&processes(), wanted).into_iter().filter_map(end).collect();
        if dying.is_empty() {
            return killed;
        }
        killed += dying.len();
        for process in &dying {
            let mut poll = [PollFd::new(process, PollFlags::IN)];
            let _ = rustix::event::poll(&mut poll, Some(&PATIENCE));
        }
    }
    tracing::warn!(killed, "processes of a session come back as fast as they are killed; some may be left");
    killed
}

/// The picked ones and all their descendants.
fn family<'a>(all: &'a [Seen], wanted: &dyn Fn(&Seen) -> bool) -> Vec<&'a Seen> {
    let mut children: HashMap<i32, Vec<&Seen>> = HashMap::new();
    for one in all {
        children.entry(one.parent).or_default().push(one);
    }
    let mut taken = HashSet::new();
    let mut found = Vec::new();
    let mut next: Vec<&Seen> = all.iter().filter(|one| wanted(one)).collect();
    while let Some(one) = next.pop() {
        if taken.insert(one.pid) {
            next.extend(children.get(&one.pid).into_iter().flatten());
            found.push(one);
        }
    }
    found
}

/// Kills one process, if the number still means the same one. The answer tells when it is gone.
fn end(seen: &Seen) -> Option<OwnedFd> {
    let process = rustix::process::pidfd_open(Pid::from_raw(seen.pid)?, PidfdFlags::empty()).ok()?;
    // From here on the descriptor can't come to mean another process: a number that was reused shows now.
    let (.., started) = status(seen.pid)?;
    if started != seen.started {
        return None;
    }
    rustix::process::pidfd_send_signal(process.as_fd(), Signal::KILL).ok()?;
    Some(process)
}

/// The living processes of this user, without this one.
fn processes() -> Vec<Seen> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let user = rustix::process::geteuid().as_raw();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if pid == own || entry.metadata().map(|meta| meta.uid()).ok() != Some(user) {
            continue;
        }
        let Some((parent, leader, started)) = status(pid) else { continue };
        found.push(Seen { pid, parent, leader, started, mark: mark(pid) });
    }
    found
}

/// Parent, session leader and start of a process that lives: none for a zombie.
fn status(pid: i32) -> Option<(i32, i32, u64)> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, spaces and parentheses included; what counts comes after the last one.
    let after = text.iter().rposition(|byte| *byte == b')')? + 1;
    let text = std::str::from_utf8(&text[after..]).ok()?;
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    if matches!(fields.first(), Some(&("Z" | "X"))) {
        return None;
    }
    Some((fields.get(1)?.parse().ok()?, fields.get(3)?.parse().ok()?, fields.get(19)?.parse().ok()?))
}

/// The mark a process was started with.
fn mark(pid: i32) -> Option<Mark> {
    // Room for a usual one at once: growing it bit by bit costs a system call each time.
    let mut environment = Vec::with_capacity(16 << 10);
    fs::File::open(format!("/proc/{pid}/environ"))
        .ok()?
        .take(ENVIRONMENT)
        .read_to_end(&mut environment)
        .ok()?;
    environment
        .split(|byte| *byte == 0)
        .find_map(|variable| Mark::parse(variable.strip_prefix(VARIABLE.as_bytes())?.strip_prefix(b"=")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_mark_reads_back() {
        let mark =
            Mark { root: "1f-2a".into(), session: "sess_1".into(), sandbox: "sbx_2".into(), birth: 0xfeed };
        assert_eq!(Mark::parse(mark.value().as_bytes()), Some(mark));
    }

    proptest! {
        #[test]
        fn no_environment_makes_it_panic(value: Vec<u8>) {
            let _ = Mark::parse(&value);
        }
    }

    #[test]
    fn descendants_belong_to_the_family() {
        let one = |pid, parent| Seen { pid, parent, leader: 1, started: 0, mark: None };
        let all = [one(10, 1), one(11, 10), one(12, 11), one(13, 1)];
        let mut pids: Vec<_> = family(&all, &|seen| seen.pid == 10).iter().map(|seen| seen.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [10, 11, 12]);
    }
}
