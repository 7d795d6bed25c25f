//! The processes below one, as `/proc` shows them.

use std::collections::{HashMap, HashSet};
use std::fs;

use rustix::process::{Pid, Signal};

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    /// Its state: `R`, `S`, `T`, `Z`.
    pub(crate) state: u8,
}

impl Seen {
    /// Whether it is dead but for its number.
    pub(crate) fn dead(self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    /// Whether it is stopped.
    pub(crate) fn stopped(self) -> bool {
        matches!(self.state, b'T' | b't')
    }

    /// Sends it a signal; nothing happens if it is gone.
    pub(crate) fn signal(self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// Every process there is.
pub(crate) fn processes() -> Vec<Seen> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| parse(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?))
        .collect()
}

/// A line of `/proc/…/stat`.
fn parse(pid: i32, line: &[u8]) -> Option<Seen> {
    // The name in parentheses may hold anything, parentheses included; what counts comes after the last one.
    let after = line.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = std::str::from_utf8(&line[after..]).ok()?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some(Seen { pid, parent: fields.next()?.parse().ok()?, state })
}

/// Those that descend from `root`, without it and without the ones below `but`.
pub(crate) fn below(all: &[Seen], root: i32, but: &HashSet<i32>) -> Vec<Seen> {
    let mut children: HashMap<i32, Vec<Seen>> = HashMap::new();
    for one in all {
        children.entry(one.parent).or_default().push(*one);
    }
    let mut found = Vec::new();
    let mut met = HashSet::from([root]);
    let mut next = vec![root];
    while let Some(pid) = next.pop() {
        for one in children.remove(&pid).unwrap_or_default() {
            if !but.contains(&one.pid) && met.insert(one.pid) {
                found.push(one);
                next.push(one.pid);
            }
        }
    }
    found
}

/// Stops everything that `find` gives until it finds nothing new that runs; so nobody is missed that is born meanwhile. Answers
/// who was stopped by it, and whether all were.
pub(crate) fn stop(find: &dyn Fn() -> Vec<Seen>) -> (Vec<Seen>, bool) {
    /// How often it looks again.
    const ROUNDS: u32 = 500;
    /// How often at once; after that it waits a moment, for a busy host may not have given the stopped a turn to stop in.
    const AT_ONCE: u32 = 8;
    let mut stopped: Vec<Seen> = Vec::new();
    for round in 0..ROUNDS {
        let running: Vec<Seen> = find().into_iter().filter(|one| !one.dead() && !one.stopped()).collect();
        if running.is_empty() {
            return (stopped, true);
        }
        for one in running {
            one.signal(Signal::STOP);
            if !stopped.iter().any(|known| known.pid == one.pid) {
                stopped.push(one);
            }
        }
        if round < AT_ONCE {
            std::thread::yield_now();
        } else {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    (stopped, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_misleads_nobody() {
        let seen = parse(7, b"7 (a) S 1 (b) R 3 4 5").unwrap();
        assert_eq!(seen, Seen { pid: 7, parent: 3, state: b'R' });
        assert_eq!(parse(7, b"7 (a"), None);
    }

    #[test]
    fn descendants_are_found_and_exceptions_left_out() {
        let one = |pid, parent| Seen { pid, parent, state: b'S' };
        let all = [one(10, 1), one(11, 10), one(12, 11), one(13, 1), one(14, 13)];
        let pids = |found: Vec<Seen>| {
            let mut pids: Vec<i32> = found.iter().map(|one| one.pid).collect();
            pids.sort_unstable();
            pids
        };
        assert_eq!(pids(below(&all, 10, &HashSet::new())), [11, 12]);
        assert_eq!(pids(below(&all, 1, &HashSet::from([13]))), [10, 11, 12]);
    }
}
