//! Everything of the session stands still, and goes on again.

use std::collections::HashSet;

use karta_guest::proto::message::Failure;
use rustix::process::Signal;

use super::core::Agent;
use super::tree::{self, Seen};

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
        let (stopped, all) = tree::stop_at_once(&session);
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
        self.reap();
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let children: HashSet<i32> = self.children.iter().map(|pid| pid.as_raw_nonzero().get()).collect();
        let orphans = || -> Vec<Seen> { tree::below(&tree::processes(), own, &children) };
        // Each round stops what runs, so the killed have no child that is missed.
        for round in 0..32 {
            let (_, all) = tree::stop_harder(round, &orphans);
            let left: Vec<Seen> = orphans().into_iter().filter(|one| !one.dead()).collect();
            for one in &left {
                one.signal(Signal::KILL);
            }
            let more = self.reap();
            if all && left.is_empty() && !more {
                return;
            }
        }
    }
}
