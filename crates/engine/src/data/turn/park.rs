//! A turn that waits for a person is put to sleep with its whole sandbox, and woken by whatever has to be said to the harness: an
//! answer, an interrupt, the refusal when nobody answers in time. After a start of the server it is taken up again as it was.

use std::sync::Arc;
use std::time::Duration;

use karta_sandbox::ParkKey;
use karta_sandbox::uplink::Service;
use karta_types::session::SessionStatus;
use karta_types::{ErrorCode, ModelCallId, Secret, Timestamp};

use super::machine::{Effect, Machine, Stimulus};
use super::parked::{self, Record, TRIES, Unfinished};
use super::process::{Asleep, Awake, Begun, Heard, Launched, Running, State};
use super::run::{Current, Fatal, NewTurn, Runner};
use crate::data::transport;
use crate::{Engine, Error, Result};

/// How soon a turn is woken again that had no place among the processes, or no answer from the control plane.
const WAKE: Duration = Duration::from_secs(3);
/// After a failure to save a sandbox, how long until it is tried again.
const AGAIN: Duration = Duration::from_mins(10);
/// How long a server that stops waits for others to be saved before it ends a turn instead: what is saved then still has time.
const LAST: Duration = Duration::from_secs(40);
/// How soon after a failure a parked turn is taken up again.
const TAKE_UP: Duration = Duration::from_secs(30);
/// The most that waits to be written to what can't be woken, in bytes.
const PENDING: usize = 8 << 20;

impl Runner {
    /// When a process that has no turn is to be paused, if it can be.
    pub(super) fn pause_at(&self) -> Option<Timestamp> {
        // Not while it starts, or is asked for the conversation: it would never answer. Nor before what it wrote late is kept.
        let asked = !self.history.is_empty() || self.rest_at().is_some();
        let pauses = |running: &Running| running.pauses() && !running.starting();
        let rests = self.current.is_none() && !asked && self.running.as_ref().is_some_and(pauses);
        let after = Duration::from_secs(self.engine.settings().limits.pause_seconds);
        rests.then(|| self.undisturbed(self.idle_since.plus(after)))
    }

    /// When the turn that waits for a person is to be put to sleep, if it can be.
    pub(super) fn park_at(&self) -> Option<Timestamp> {
        let running = self.running.as_ref()?;
        // What it was asked over a connection it would never answer.
        let parks = |awake: &Awake| awake.sandbox.parks() && !awake.io.waits();
        let parks = running.awake().is_some_and(parks) && !running.killed();
        running.machine.tape().filter(|tape| parks && tape.has_room())?;
        let rest = Duration::from_secs(self.engine.settings().limits.park_seconds);
        let since = running.machine.still_since()?;
        Some(self.undisturbed(since.plus(rest).max(self.not_parked_before)))
    }

    /// Puts the turn that waits for a person to sleep. When that fails it goes on as it was, if it can.
    pub(super) async fn park(&mut self) -> Result<(), Fatal> {
        let session = self.row.id;
        let Some(Running { state: State::Awake(awake), .. }) = &self.running else { return Ok(()) };
        let (sandbox, parked) = (awake.sandbox.clone(), self.engine.parked().clone());
        let now = self.engine.clock().now();
        let place = if self.engine.tasks().is_stopping() {
            tokio::time::timeout(LAST, parked.enter()).await.ok().flatten()
        } else {
            parked.try_enter()
        };
        let Some(place) = place else {
            self.not_parked_before = now.plus(WAKE);
            return Ok(());
        };
        self.not_parked_before = now.plus(AGAIN);
        let bytes = sandbox.park_bytes();
        let unfinished = match blocking(move || parked.begin(session, bytes)).await {
            Ok(unfinished) => unfinished,
            Err(error) => {
                tracing::error!(%session, error = error.chain(), "a turn that waits can't be parked");
                return Ok(());
            }
        };
        self.keep_before_parking().await;
        // Keeping may have taken its time. What was said meanwhile is heard by a harness that runs: it may be the turn's end.
        while let Some(said) = self.running.as_mut().and_then(Running::try_hear) {
            Box::pin(self.heard(Heard::Output(said))).await?;
            if self.park_at().is_none() {
                self.not_parked_before = self.row.created_at;
                return Ok(());
            }
        }
        if let Some(awake) = self.running.as_ref().and_then(Running::awake) {
            awake.io.hold();
        }
        let key = ParkKey::random(self.engine.rng());
        if let Err(error) = sandbox.park(&unfinished.machine(), &key).await {
            if let Some(awake) = self.running.as_ref().and_then(Running::awake) {
                awake.io.hold_no_more();
            }
            // If the sandbox ended by it, that is heard of as the end of the harness.
            tracing::error!(%session, error = crate::error::chain(&error), "a turn that waits can't be parked");
            return Ok(());
        }
        drop(sandbox);
        // It is woken by somebody: if it asks again, it waits again like the first time.
        self.not_parked_before = self.row.created_at;
        self.forget_machine();
        self.asleep(unfinished, &key).await?;
        // Waking may take its time: others may be saved meanwhile.
        drop(place);
        // A server that stops leaves it asleep: the next one writes what waits.
        if self.has_pending() && !self.engine.tasks().is_stopping() { self.awaken().await } else { Ok(()) }
    }

    /// The sandbox is saved: what was said before is heard, then the record is written.
    async fn asleep(&mut self, unfinished: Unfinished, key: &ParkKey) -> Result<(), Fatal> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let State::Awake(awake) = std::mem::replace(&mut running.state, State::Asleep(Asleep::default()))
        else {
            return Ok(());
        };
        let port = awake.io.port();
        let rest = awake.io.rest().await;
        let now = self.engine.clock().now();
        let mut effects = Vec::new();
        for bytes in &rest {
            running.machine.step(now, Stimulus::Output(bytes), &mut effects);
        }
        // What is to be written waits; what is to be told is told before the record says that it was.
        let mut pending = Vec::new();
        effects.retain(|effect| {
            if let Effect::Write(bytes) = effect {
                pending.push(bytes.clone());
            }
            !matches!(effect, Effect::Write(_))
        });
        if let Some(Running { state: State::Asleep(asleep), .. }) = &mut self.running {
            *asleep = Asleep { kept: pending.len(), pending, port };
        }
        self.perform(effects).await?;
        let kept = match self.parked_record(key) {
            Some(record) => match self.engine.seal_record(self.row.org, self.row.id, &record).await {
                Ok(sealed) => {
                    let failed = |error| Error::internal("keeping a parked turn", error);
                    blocking(move || unfinished.keep(&sealed).map_err(failed)).await
                }
                Err(error) => Err(error),
            },
            None => Err(Error::told(ErrorCode::Internal, "there is no turn to park")),
        };
        if let Err(error) = kept {
            // Its sandbox is gone with the folder.
            return self.lost(&error).await;
        }
        tracing::debug!(session = %self.row.id, "parked a turn that waits");
        Ok(())
    }

    /// Whether something waits to be written to what sleeps.
    pub(super) fn has_pending(&self) -> bool {
        matches!(&self.running, Some(Running { state: State::Asleep(asleep), .. }) if !asleep.pending.is_empty())
    }

    /// What is to be known to go on after a start of the server.
    fn parked_record(&self, key: &ParkKey) -> Option<Record> {
        let (running, current) = (self.running.as_ref()?, self.current.as_ref()?);
        let State::Asleep(asleep) = &running.state else { return None };
        let tape = running.machine.tape()?;
        let new = &current.new;
        let place = &running.begun.place;
        Some(Record {
            turn: new.id,
            key: new.key,
            token: new.token,
            asked_agent: new.agent.clone(),
            participant: new.participant.clone(),
            thinking: new.thinking,
            at: new.at,
            started: current.started,
            first_text: current.first_text,
            head: current.head,
            version: running.version,
            agent: running.begun.agent.clone(),
            native: (&running.begun.native).into(),
            place: [place.workspace.clone(), place.home.clone(), place.temp.clone()],
            model_token: running.begun.token.expose().clone(),
            tape: tape.clone(),
            port: asleep.port,
            pending: asleep.pending.iter().map(|bytes| parked::text(bytes)).collect(),
            park_key: parked::text(key.expose()),
            authority: self.way_out.authority(),
        })
    }

    /// Wakes what sleeps, and writes what waited. When it can't be woken the turn fails.
    pub(super) async fn awaken(&mut self) -> Result<(), Fatal> {
        let sleeps = |running: &Running| running.awake().is_none() && !running.killed();
        if !self.running.as_ref().is_some_and(sleeps) {
            return Ok(());
        }
        self.wake_at = None;
        match self.woken().await {
            Ok(awake) => {
                let Some(running) = &mut self.running else { return Ok(()) };
                let before = std::mem::replace(&mut running.state, State::Awake(Box::new(awake)));
                if let State::Asleep(asleep) = before {
                    for bytes in asleep.pending {
                        running.write(bytes).await;
                    }
                }
                Ok(())
            }
            // It sleeps on; what is to be written waits with it.
            Err(error) if passes(&error) && self.still_parked().await => {
                tracing::warn!(session = %self.row.id, error = error.chain(), "a parked turn waits to be woken");
                self.wake_at = Some(self.engine.clock().now().plus(WAKE));
                match self.keep_pending().await {
                    Ok(()) => Ok(()),
                    Err(failed) => self.lost(&failed).await,
                }
            }
            Err(error) => self.lost(&error).await,
        }
    }

    /// Whether what was saved is in its place: then it was not used.
    async fn still_parked(&mut self) -> bool {
        let (session, parked) = (self.row.id, self.engine.parked().clone());
        tokio::task::spawn_blocking(move || parked.has(session)).await.unwrap_or_default()
    }

    /// Writes the record anew of what sleeps and could not be woken, with what was said to it meanwhile: a start of the server in between
    /// forgets none of it.
    async fn keep_pending(&mut self) -> Result<()> {
        let Some(Running { machine, state: State::Asleep(asleep), .. }) = &mut self.running else {
            return Ok(());
        };
        if asleep.pending.iter().map(bytes::Bytes::len).sum::<usize>() > PENDING {
            return Err(Error::told(
                ErrorCode::Overloaded,
                "too much waits for a parked turn that can't be woken",
            ));
        }
        let written = asleep.pending.len();
        if asleep.kept == written {
            return Ok(());
        }
        let pending: Vec<_> = asleep.pending.iter().map(|bytes| parked::text(bytes)).collect();
        let Some(tape) = machine.tape().cloned() else { return Ok(()) };
        let (org, session, parked) = (self.row.org, self.row.id, self.engine.parked().clone());
        match self.engine.read_record(org, session).await {
            Ok(Some(record)) => {
                let record = Record { tape, pending, ..record };
                let sealed = self.engine.seal_record(org, session, &record).await?;
                let failed = |error| Error::internal("keeping what a parked turn was told", error);
                blocking(move || parked.rewrite(session, &sealed).map_err(failed)).await?;
                if let Some(Running { state: State::Asleep(asleep), .. }) = &mut self.running {
                    asleep.kept = written;
                }
                Ok(())
            }
            // The database is away: it is tried again with the waking.
            Err(error) if passes(&error) => Ok(()),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// When what sleeps and could not be woken is tried again.
    pub(super) fn wake_at(&self) -> Option<Timestamp> {
        self.wake_at.filter(|_| self.running.as_ref().is_some_and(|running| running.awake().is_none()))
    }

    /// What sleeps can't be woken: its turn ends, with what was said so far.
    async fn lost(&mut self, error: &Error) -> Result<(), Fatal> {
        tracing::error!(session = %self.row.id, error = error.chain(), "a parked turn can't go on");
        if let Some(running) = &mut self.running {
            running.kill();
        }
        Box::pin(self.step(Stimulus::Broken(Box::new(error.problem())))).await
    }

    async fn woken(&mut self) -> Result<Awake> {
        let Some(Running { state: State::Asleep(asleep), version, begun, transport, .. }) = &self.running
        else {
            return Err(Error::told(ErrorCode::HarnessFailed, "the harness is gone"));
        };
        let (version, token, transport, port) =
            (*version, begun.token.clone(), transport.clone(), asleep.port);
        let project = self.engine.project_known(self.row.org, self.row.project).await?;
        let release = self.engine.load(&project, version).await?;
        let (_, harness) = self.engine.program(&release)?;
        let (_, room) = self.engine.process_place(release.harness.id(), self.row.org).await?;
        let spec = self.spec(&release, harness);
        let pass = self.engine.channels().open_again(token, self.channel(), self.way_out.way());
        let (session, parked) = (self.row.id, self.engine.parked().clone());
        let record = self.engine.read_record(self.row.org, session).await?;
        let kept = record.and_then(|record| Some((record.park_key()?, record.authority)));
        let Some((key, authority)) = kept else {
            return Err(Error::told(
                ErrorCode::HarnessFailed,
                "what was kept of the parked turn can't be read",
            ));
        };
        // Since a start of the server there is no way out any more. It is made before anything is used up, and programs trust it that
        // have read the certificates of the one before.
        let outside = match &self.decisions {
            Some(_) => None,
            None => {
                Some(self.engine.session_egress(&self.row, self.home, release.recipe(), authority).await?)
            }
        };
        let folder = blocking(move || parked.take(session)).await?;
        let driver = self.engine.driver(release.harness.id());
        let revived = driver.revive(&spec, &folder.machine(), &key).await?;
        let sandbox: Arc<dyn karta_sandbox::Sandbox> = revived.sandbox.into();
        let mut processes = revived.processes.into_iter();
        let (Some(process), None) = (processes.next(), processes.next()) else {
            return Err(Error::told(ErrorCode::HarnessFailed, "the harness did not outlive being parked"));
        };
        let io = transport::open(self.engine.tasks(), process, sandbox.clone(), transport, port);
        tokio::task::spawn_blocking(move || drop(folder));
        if let Some(outside) = outside {
            self.go_out_by(outside, &*sandbox).await?;
        }
        self.goes_on_in(sandbox.clone(), version);
        Ok(Awake { io, sandbox, paused: false, _pass: pass, _room: room })
    }

    /// Takes up what was parked before the server was started. False if there is nothing, or it can't go on: it doesn't fit what is on
    /// record, or its release can't run here any more.
    ///
    /// # Errors
    /// What comes back by itself is away.
    pub(super) async fn take_up(&mut self) -> Result<bool> {
        let session = self.row.id;
        match self.taken_up().await {
            Ok(taken) => {
                self.engine.parked().tried(session, false);
                Ok(taken)
            }
            Err(error) if passes(&error) => Err(error),
            // Of the server's own making: perhaps not every time.
            Err(error @ Error::Internal { .. }) if self.engine.parked().tries(session) < TRIES => Err(error),
            Err(error) => {
                tracing::error!(%session, error = error.chain(), "a parked turn can't be taken up");
                self.engine.parked().tried(session, false);
                Ok(false)
            }
        }
    }

    async fn taken_up(&mut self) -> Result<bool> {
        let session = self.row.id;
        let Some(record) = self.engine.read_record(self.row.org, session).await? else { return Ok(false) };
        let written = record.pending.iter().map(|text| parked::bytes(text).map(bytes::Bytes::from));
        let Some(mut pending) = written.collect::<Option<Vec<_>>>() else { return Ok(false) };
        let kept = pending.len();
        let project = self.engine.project_known(self.row.org, self.row.project).await?;
        let release = self.engine.load(&project, record.version).await?;
        let [workspace, home, temp] = record.place;
        let place = karta_sandbox::Place { workspace, home, temp, harness: None };
        let begun = Begun {
            native: record.native.into(),
            agent: record.agent,
            mode: record.tape.mode(),
            place,
            service: Some(([127, 0, 0, 1], Service::Model.port()).into()),
            token: Secret::new(record.model_token),
        };
        let Launched { command, codec, .. } = self.launch(&release, &begun, "", Vec::new())?;
        let mut machine: Machine = record.tape.play(codec, self.new_request());
        // What holds from now on is what the server of now is set to.
        let limits = Stimulus::Limits(self.limits(&release));
        machine.step(self.engine.clock().now(), limits, &mut Vec::new());
        let asked = self.engine.store().inputs_pending(self.row.org, Some(session), None, 1000).await?;
        let open: Vec<_> = machine.open().collect();
        let same = asked.len() == open.len() && asked.iter().all(|row| open.contains(&row.input.request_id));
        if !same || !machine.busy() {
            return Ok(false);
        }
        let (usage, cost, models) = self.engine.gate().used_in(self.row.org, record.turn).await?;
        self.meter.begin(record.turn, record.version, record.key, record.token);
        self.meter.take_back(&usage, cost, &models);
        self.allowance.cap(&release.recipe().policy.caps);
        self.allowance.used(ModelCallId::new(self.engine.clock(), self.engine.rng()), &usage, cost);
        self.begin_on(&release);
        self.current = Some(Current {
            new: Arc::new(NewTurn {
                id: record.turn,
                key: record.key,
                token: record.token,
                seat: self.engine.seats().take_back(self.row.org, record.key),
                content: Vec::new(),
                agent: record.asked_agent,
                participant: record.participant,
                thinking: record.thinking,
                at: record.at,
            }),
            started: record.started,
            first_text: record.first_text,
            head: record.head,
        });
        if machine.mode() != self.row.permission_mode {
            // Changed when the last server had no time left to say so: nothing may be approved by what held before.
            let (now, mut effects) = (self.engine.clock().now(), Vec::new());
            machine.step(now, Stimulus::Mode(self.row.permission_mode), &mut effects);
            pending.extend(effects.into_iter().filter_map(|effect| match effect {
                Effect::Write(bytes) => Some(bytes),
                _ => None,
            }));
        }
        self.running = Some(Running::asleep(
            machine,
            release.harness.capabilities(),
            record.version,
            begun,
            command.transport,
            Asleep { kept, pending, port: record.port },
        ));
        let told = self.commit(Vec::new(), None, |commit| commit.status = Some(SessionStatus::Waiting)).await;
        match told {
            Ok(told) => told.map(|()| true),
            Err(Fatal::Store(error)) => Err(error),
            Err(Fatal::Fenced) => Ok(false),
        }
    }
}

/// Whether an error is of what comes back by itself: a place, the control plane, the database, room on the disk.
fn passes(error: &Error) -> bool {
    match error {
        Error::Told(problem) => matches!(problem.error, ErrorCode::Overloaded | ErrorCode::StorageFull),
        Error::Internal { source, .. } => source.is::<karta_store::Error>(),
    }
}

impl Engine {
    /// Removes what a session has parked.
    pub(crate) async fn forget_parked(&self, session: karta_types::SessionId) {
        let parked = self.parked().clone();
        // Failures are told in the log, and tried again at the next start.
        let _ = tokio::task::spawn_blocking(move || parked.erase(session)).await;
    }

    /// Takes up the parked turn of a session whose runner has given up, if it has one, after a while: it must expire though nobody speaks to
    /// it.
    pub(crate) fn take_up_later(&self, org: karta_types::OrgId, session: karta_types::SessionId) {
        let engine = self.clone();
        // One wait for each: every caller who speaks to a session whose runner fails would begin another.
        if !self.parked().tries_again(session) {
            return;
        }
        self.tasks().spawn(async move {
            if tokio::time::timeout(TAKE_UP, engine.tasks().stopping()).await.is_ok() {
                return;
            }
            let parked = engine.parked().clone();
            let has = tokio::task::spawn_blocking(move || parked.has(session)).await.unwrap_or_default();
            engine.parked().tried(session, has);
            if has {
                engine.take_up(vec![(org, session)]);
            }
        });
    }

    /// Takes up the parked turns of these sessions: from here on they wait as before, and expire.
    pub(crate) fn take_up(&self, parked: Vec<(karta_types::OrgId, karta_types::SessionId)>) {
        for (org, session) in parked {
            drop(self.runner(org, session));
        }
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::internal("working on a parked turn", error)))
}
