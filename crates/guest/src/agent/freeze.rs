//! Everything of the session stands still, and goes on again.

use std::collections::HashSet;
use std::time::Duration;

use karta_guest::proto::message::Failure;
use rustix::process::{Pid, Signal};

use super::core::Agent;
use super::sys;
use super::tree::{self, Seen, Until};

/// How long everything may take to stand still: a busy host may give it few turns.
const STANDING: Duration = Duration::from_mins(1);
/// How long this process, which does nothing else meanwhile, tries to end what others could not. A sandbox ends for certain with it.
const ENDING: Duration = Duration::from_secs(3);

impl Agent {
    /// Stops every process of the session; those that the agent itself needs go on.
    pub(super) fn freeze(&mut self) -> Result<(), Failure> {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let children: HashSet<i32> = self.children.iter().map(|pid| pid.as_raw_nonzero().get()).collect();
        let session = || {
            let all = tree::processes();
            let mut found = tree::below(&all, own, &HashSet::new());
            found.retain(|one| !children.contains(&one.pid));
            found
        };
        let (stopped, all) = tree::stop_at_once(Until::within(STANDING), &session);
        for one in stopped {
            if !self.frozen.contains(&one) {
                self.frozen.push(one);
            }
        }
        if all {
            return Ok(());
        }
        self.thaw();
        Err(Failure {
            errno: 0,
            text: "not all processes of the session could be stopped in time".to_owned(),
        })
    }

    /// Lets them go on.
    pub(super) fn thaw(&mut self) {
        for one in self.frozen.drain(..) {
            one.signal(Signal::CONT);
        }
    }

    /// Kills what came to this process because its keeper was killed.
    pub(super) fn end_orphans(&mut self) {
        /// Rounds without disturbing others.
        const GENTLE: u32 = 4;
        self.reap();
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let until = Until::within(ENDING);
        // Each round stops what runs, so the killed have no child that is missed.
        for round in 0_u32.. {
            let children: HashSet<i32> = self.children.iter().map(|pid| pid.as_raw_nonzero().get()).collect();
            let orphans = || tree::below(&tree::processes(), own, &children);
            let all = if round < GENTLE {
                tree::stop(until.or(Until::within(ENDING / 10)), &orphans).1
            } else {
                tree::stop_at_once(until, &orphans).1
            };
            let left = kill(&orphans);
            let more = self.reap();
            if all && left == 0 && !more || until.over() {
                return;
            }
        }
    }

    /// Kills what is below a keeper, which tells how it ends.
    pub(super) fn help(&self, keeper: Pid) {
        // Its number means it, until it was reaped. Where nothing can be stopped at once, it does by itself what this could do.
        if !sys::has_first() || !self.children.contains(&keeper) {
            return;
        }
        let below = || tree::below(&tree::processes(), keeper.as_raw_nonzero().get(), &HashSet::new());
        let until = Until::within(ENDING);
        // It may have asked several times, and need nothing any more.
        while !below().is_empty() && !until.over() {
            let (_, all) = tree::stop_at_once(until, &below);
            kill(&below);
            if all {
                return;
            }
        }
    }
}

/// Kills whoever `find` gives. Answers how many were still alive.
fn kill(find: &dyn Fn() -> Vec<Seen>) -> usize {
    let left: Vec<Seen> = find().into_iter().filter(|one| !one.dead()).collect();
    for one in &left {
        one.signal(Signal::KILL);
    }
    left.len()
}
