//! What a session has made in a machine that does not outlive its process: brought into a new one, kept at each turn's end, kept once
//! more when the session rests, and kept before the machine goes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use karta_sandbox::{Driver, Sandbox, Spec};
use karta_types::{Body, Timestamp, TurnId};
use serde_json::json;

use crate::data::checkpoints::{CheckpointError, Owner, Pace, Saved};
use crate::data::turn::run::{Fatal, Runner};
use crate::{Error, Result};

/// How long after a turn's end what was written late is kept too: a harness may end its turn before its last line is on its disk.
const REST: Duration = Duration::from_secs(1);
/// When keeping what a machine has is tried again, so that the machine can go.
const AGAIN: Duration = Duration::from_secs(30);
/// How often.
const TRIES: u32 = 20;

/// The machine that a session's process runs in.
pub(super) struct Machine {
    pub(super) sandbox: Arc<dyn Sandbox>,
    /// The release that it was made for.
    version: u64,
    /// The last turn that ran in it.
    turn: Option<TurnId>,
    /// When what was written after the last turn's end is to be kept.
    rest_at: Option<Timestamp>,
    /// How often what is in it could not be kept when it was to go.
    tries: u32,
    /// What was told last of why it is not kept.
    told: Option<String>,
}

impl Machine {
    const fn new(sandbox: Arc<dyn Sandbox>, version: u64) -> Self {
        Self { sandbox, version, turn: None, rest_at: None, tries: 0, told: None }
    }
}

impl Runner {
    fn owner(&self) -> Owner {
        // Generations are counted up from nothing.
        let generation = u64::try_from(self.row.generation).unwrap_or_default();
        Owner { org: self.row.org, session: self.row.id, generation }
    }

    /// The session's sandbox. One that does not keep places gets what was kept of the session. Answers what is to be told of it.
    pub(super) async fn sandbox(
        &mut self,
        driver: &dyn Driver,
        spec: &Spec,
        version: u64,
    ) -> Result<(Arc<dyn Sandbox>, Vec<Body>)> {
        if driver.keeps() {
            return Ok((self.engine.acquire(driver, spec).await?.into(), Vec::new()));
        }
        let mut damaged = None;
        for back in 0.. {
            let sandbox: Arc<dyn Sandbox> = self.engine.acquire(driver, spec).await?.into();
            if !sandbox.fresh() {
                self.machine.get_or_insert_with(|| Machine::new(sandbox.clone(), version));
                return Ok((sandbox, Vec::new()));
            }
            let loaded = self.engine.checkpoints().load(self.owner(), back, &*sandbox).await;
            let error = match (loaded, damaged.take()) {
                (Ok(Some(loaded)), _) => {
                    self.machine = Some(Machine::new(sandbox.clone(), version));
                    let subtype = if back == 0 { "state_restored" } else { "state_older" };
                    let detail =
                        json!({ "checkpoint": loaded.seq, "turn": loaded.turn, "files": loaded.files });
                    return Ok((sandbox, vec![Body::System { subtype: subtype.to_owned(), detail }]));
                }
                (Ok(None), None) => {
                    self.machine = Some(Machine::new(sandbox.clone(), version));
                    return Ok((sandbox, Vec::new()));
                }
                (Ok(None), Some(damaged)) => damaged,
                (Err(error), _) => error,
            };
            // What is half put back must be nobody's place.
            if let Err(error) = sandbox.close().await {
                tracing::warn!(session = %self.row.id, error = crate::error::chain(&error), "closing a sandbox");
            }
            drop(sandbox);
            let more = matches!(error, CheckpointError::Damaged { .. }) && back < self.most_back();
            tracing::error!(session = %self.row.id, error = crate::error::chain(&error), "putting a checkpoint back");
            if !more {
                return Err(error.into());
            }
            damaged = Some(error);
        }
        Err(Error::internal("putting a checkpoint back", "there is none that can be read"))
    }

    fn most_back(&self) -> usize {
        usize::try_from(self.engine.settings().state.keep).unwrap_or(usize::MAX)
    }

    /// What the machine has is kept before it is saved: should the save be lost with its host, this is not.
    pub(super) async fn keep_before_parking(&mut self) {
        // What can't be kept is told in the log, and at the turn's end.
        let _ = self.keep(Pace::Rest).await;
    }

    /// The machine was saved, and is not here any more.
    pub(super) fn forget_machine(&mut self) {
        self.machine = None;
        self.engine.checkpoints().forget(self.row.id);
    }

    /// A machine that was saved is here again.
    pub(super) fn goes_on_in(&mut self, sandbox: Arc<dyn Sandbox>, version: u64) {
        self.machine = Some(Machine::new(sandbox, version));
    }

    /// A machine that was made for another release goes, once what is in it is kept.
    pub(super) async fn leave_other(&mut self, version: u64) -> Result<()> {
        if self.machine.as_ref().is_none_or(|machine| machine.version == version) || self.part().await {
            return Ok(());
        }
        Err(Error::internal("going to another release", "what the session has made could not be kept"))
    }

    /// Keeps what the machine has. None if there is no machine.
    async fn keep(&mut self, pace: Pace) -> Option<Result<Saved, CheckpointError>> {
        let machine = self.machine.as_mut()?;
        machine.rest_at = None;
        machine.turn = self.current.as_ref().map(|current| current.new.id).or(machine.turn);
        let (sandbox, turn) = (machine.sandbox.clone(), machine.turn);
        let saved = self.engine.checkpoints().save(self.owner(), turn, pace, &*sandbox).await;
        if let Err(error) = &saved {
            tracing::error!(session = %self.row.id, error = crate::error::chain(error), "keeping what a session has made");
        }
        Some(saved)
    }

    /// What is to be told of it; each reason once.
    fn tell(&mut self, saved: Option<Result<Saved, CheckpointError>>) -> Option<Body> {
        let machine = self.machine.as_mut()?;
        let Err(error) = saved? else {
            machine.told = None;
            return None;
        };
        let (subtype, detail) = match &error {
            CheckpointError::Refused { what, have, most } => {
                ("state_refused", json!({ "limit": format!("session_{what}"), "have": have, "most": most }))
            }
            error => ("state_failed", json!({ "detail": error.told() })),
        };
        let told = error.told();
        if machine.told.as_ref() == Some(&told) && self.current.is_none() {
            return None;
        }
        machine.told = Some(told);
        Some(Body::System { subtype: subtype.to_owned(), detail })
    }

    /// A turn ends: these events of it are shown, then what the machine has is kept. Answers what is still to be told with `done`.
    pub(super) async fn keep_at_end(
        &mut self,
        bodies: Vec<(Body, Option<Bytes>)>,
    ) -> Result<Vec<(Body, Option<Bytes>)>, Fatal> {
        if self.machine.is_none() || self.current.is_none() {
            return Ok(bodies);
        }
        let mut bodies = bodies;
        // On a full disk they are told with `done`, when there is room for it.
        if !bodies.is_empty() && !self.is_muted() && self.commit(bodies.clone(), None, |_| {}).await?.is_ok()
        {
            bodies.clear();
        }
        let saved = self.keep(Pace::Turn).await;
        bodies.extend(self.tell(saved).map(|told| (told, None)));
        Ok(bodies)
    }

    /// A turn has ended: what is written late is kept soon.
    pub(super) fn rest_soon(&mut self) {
        let at = self.engine.clock().now().plus(REST);
        if let Some(machine) = &mut self.machine {
            machine.rest_at = Some(at);
        }
    }

    /// When what was written late is to be kept.
    pub(super) fn rest_at(&self) -> Option<Timestamp> {
        self.machine.as_ref().filter(|_| self.current.is_none()).and_then(|machine| machine.rest_at)
    }

    pub(super) fn rest_is_due(&self) -> bool {
        self.rest_at().is_some_and(|at| self.engine.clock().now() >= at)
    }

    /// Keeps what was written after the turn's end.
    pub(super) async fn keep_at_rest(&mut self) -> Result<(), Fatal> {
        let saved = self.keep(Pace::Rest).await;
        if let Some(told) = self.tell(saved) {
            // No room to tell it: then it is in the log alone.
            let _ = self.commit(vec![(told, None)], None, |_| {}).await?;
        }
        Ok(())
    }

    /// Ends the process, keeps what the machine has, and lets it go. False if that could not be kept now and may be later: then the
    /// machine stays, and this is to be tried again.
    pub(super) async fn part(&mut self) -> bool {
        if let Some(running) = self.running.take() {
            running.end().await;
        }
        let saved = self.keep(Pace::Rest).await;
        let passing = matches!(&saved, Some(Err(error)) if error.is_passing());
        if let Some(machine) = &mut self.machine
            && passing
            && machine.tries < TRIES
        {
            machine.tries += 1;
            self.idle_since = self.engine.clock().now().minus(self.idle).plus(AGAIN);
            return false;
        }
        self.drop_machine().await;
        true
    }

    /// The runner ends: whatever can be kept is.
    pub(super) async fn let_go(&mut self) {
        if !self.part().await {
            tracing::error!(session = %self.row.id, "what the session made since its last checkpoint is lost");
            self.drop_machine().await;
        }
    }

    async fn drop_machine(&mut self) {
        let Some(machine) = self.machine.take() else { return };
        self.engine.checkpoints().forget(self.row.id);
        if let Err(error) = machine.sandbox.close().await {
            tracing::error!(session = %self.row.id, error = crate::error::chain(&error), "closing a sandbox");
        }
    }
}
