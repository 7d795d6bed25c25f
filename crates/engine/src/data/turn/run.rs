//! The runner: one task for each session that is alive. It owns the session (nobody else appends), its process and its queue.
//!
//! Its loop is: take what comes next, step the machine, commit what the machine wants told, show it, then do the rest. A crash at
//! any point leaves a journal that [`crate::data::recovery`] can finish.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use karta_harness::Input;
use karta_sandbox::Sandbox;
use karta_store::{AuditEntry, SessionRow, TurnChange};
use karta_types::egress::Decision;
use karta_types::event::Answerer;
use karta_types::message::{Answer, Content, Message};
use karta_types::session::{Isolation, Participant, PermissionMode, ReleasePin, SessionStatus, TurnState};
use karta_types::{
    Body, ErrorCode, KeyId, OrgId, Problem, ProjectId, RequestId, Seq, SessionId, SessionTokenId, Timestamp,
    TurnId,
};
use tokio::sync::{mpsc, oneshot};

use crate::data::allowance::Allowance;
use crate::data::egress::Decisions;
use crate::data::journal::{Live, Writer};
use crate::data::releases::Loaded;
use crate::data::seats::Seat;
use crate::data::turn::admit::{OnBusy, Started};
use crate::data::turn::machine::{Effect, Stimulus};
use crate::data::turn::meter::Meter;
use crate::data::turn::process::{self, Heard, Running};
use crate::data::turn::state::Machine;
use crate::data::uplink::WayOut;
use crate::gateway::Way;
use crate::{Engine, Error, Result};

/// After how long a machine that was being read from is looked at again.
const READING: Duration = Duration::from_secs(1);
/// Chunks of output taken in before what they say is committed together.
const BURST: usize = 64;

/// A message that wants a turn.
#[derive(Debug)]
pub struct NewTurn {
    /// The turn's id.
    pub id: TurnId,
    /// The key it came with.
    pub key: Option<KeyId>,
    /// The session token it came with.
    pub token: Option<SessionTokenId>,
    /// Its seat among the turns at once.
    pub seat: Seat,
    /// Its parts.
    pub content: Vec<Content>,
    /// The agent asked for.
    pub agent: Option<String>,
    /// Who speaks.
    pub participant: Option<Participant>,
    /// Whether to show thinking.
    pub thinking: bool,
    /// When it was accepted.
    pub at: Timestamp,
}

/// What a runner is told to do.
#[derive(Debug)]
pub enum Order {
    /// A message.
    Send {
        /// The turn.
        turn: Arc<NewTurn>,
        /// What if one runs.
        on_busy: OnBusy,
        /// Taken or not.
        reply: oneshot::Sender<Result<Started>>,
    },
    /// An answer to a question.
    Answer {
        /// The question.
        request: RequestId,
        /// The answer.
        answer: Answer,
        /// Who.
        by: Answerer,
        /// What the audit log is told of it.
        told: Box<AuditEntry>,
        /// Whether the question was open, and the running turn.
        reply: oneshot::Sender<Option<Started>>,
    },
    /// Stop the running turn.
    Interrupt {
        /// Whether there was one.
        reply: oneshot::Sender<bool>,
    },
    /// Another agent takes over from the next turn on.
    HandOff {
        /// Who.
        to: Option<String>,
        /// Done.
        reply: oneshot::Sender<Result<()>>,
    },
    /// Another permission mode, from now on.
    Mode(PermissionMode),
    /// The conversation so far, for harnesses that tell it themselves.
    History {
        /// The conversation.
        reply: oneshot::Sender<Result<Vec<Message>>>,
    },
    /// The machine that runs now, to be read from; none if there is none, or if places outlive machines here.
    Machine {
        /// The machine.
        reply: oneshot::Sender<Option<Handle>>,
    },
    /// End: the session is being erased.
    Close {
        /// The process is gone.
        reply: oneshot::Sender<()>,
    },
}

/// A machine, to be read from. It is not stopped while this lives.
pub struct Handle {
    pub(crate) sandbox: Arc<dyn Sandbox>,
    _reads: Arc<()>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Handle").field(&self.sandbox.id()).finish()
    }
}

/// A turn that runs.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) new: Arc<NewTurn>,
    pub(super) started: Timestamp,
    pub(super) first_text: Option<Timestamp>,
    /// The session's last event before it.
    pub(super) head: Seq,
}

/// The runner of one session.
pub(super) struct Runner {
    pub(super) engine: Engine,
    pub(super) row: SessionRow,
    /// The project whose caps and usage its turns count for: a preview's is its parent.
    pub(super) home: ProjectId,
    pub(super) writer: Writer,
    pub(super) live: Arc<Live>,
    pub(super) meter: Arc<Meter>,
    pub(super) allowance: Arc<Allowance>,
    pub(super) running: Option<Running>,
    /// What it runs in, where that does not outlive the process by itself.
    pub(super) machine: Option<Machine>,
    pub(super) current: Option<Current>,
    queue: VecDeque<Arc<NewTurn>>,
    pub(super) history: Vec<oneshot::Sender<Result<Vec<Message>>>>,
    /// Whoever reads from the machine has one too.
    readers: Arc<()>,
    exhausted_to: mpsc::Sender<Box<Problem>>,
    exhausted: mpsc::Receiver<Box<Problem>>,
    pub(super) idle_since: Timestamp,
    /// How long it rests before everything goes.
    pub(super) idle: Duration,
    closed: bool,
    /// What the audit log is told with the next answer that is committed.
    pub(super) told: Vec<AuditEntry>,
    /// What comes out of its sandboxes goes here.
    pub(super) way_out: WayOut,
    /// What is decided about it.
    pub(super) decisions: Option<Decisions>,
    /// When a turn that could not be woken is tried again.
    pub(super) wake_at: Option<Timestamp>,
    /// A turn that waits is not parked again before this.
    pub(super) not_parked_before: Timestamp,
    /// The disk was full during this turn: what room is left is for its end, not for more words.
    muted: bool,
}

/// Why a runner ends before its time.
pub(super) enum Fatal {
    /// Another owner took the session: this one is silent from here on.
    Fenced,
    /// The store can't be written; recovery finishes the turn at the next start.
    Store(Error),
}

impl Engine {
    /// The way to the session's runner; starts one if there is none.
    pub(crate) fn runner(&self, org: OrgId, session: SessionId) -> mpsc::Sender<Order> {
        let engine = self.clone();
        self.hub().runner(session, move |orders| {
            let tasks = engine.tasks().clone();
            tasks.spawn(run(engine, org, session, orders));
        })
    }
}

async fn run(engine: Engine, org: OrgId, session: SessionId, mut orders: mpsc::Receiver<Order>) {
    let owned = async {
        let row = engine.store().session_own(org, session, engine.clock().now()).await?;
        let home = engine.project_known(org, row.project).await?.home();
        Ok::<_, Error>((row, home))
    };
    let (row, home) = match owned.await {
        Ok(owned) => owned,
        Err(error) => {
            engine.hub().retire(session, &mut orders);
            tracing::error!(%session, error = error.chain(), "taking the session over");
            engine.take_up_later(org, session);
            return;
        }
    };
    let (exhausted_to, exhausted) = mpsc::channel(1);
    // Where sandboxes are kept from the network, a token is good only for what comes out of its own.
    let kept_apart = engine.drivers().iter().any(|driver| driver.isolation() > Isolation::Process);
    let way = if kept_apart { Way::Sandbox(engine.rng().next_u128()) } else { Way::Port };
    let mut runner = Runner {
        writer: Writer::new(session, row.head, "karta"),
        live: engine.hub().live(session),
        meter: Arc::default(),
        allowance: Arc::new(Allowance::new(session, &row.usage)),
        running: None,
        machine: None,
        current: None,
        queue: VecDeque::new(),
        history: Vec::new(),
        readers: Arc::default(),
        exhausted_to,
        exhausted,
        idle_since: engine.clock().now(),
        idle: Duration::from_secs(engine.settings().limits.idle_seconds),
        closed: false,
        told: Vec::new(),
        way_out: WayOut::new(engine.clone(), way),
        decisions: None,
        wake_at: None,
        not_parked_before: row.created_at,
        muted: false,
        row,
        home,
        engine: engine.clone(),
    };
    let end = Box::pin(async {
        runner.begin_with_parked().await?;
        runner.serve(&mut orders).await
    })
    .await;
    let (over, failed) = (end.is_ok(), matches!(end, Err(Fatal::Store(_))));
    match end {
        Ok(()) => {}
        Err(Fatal::Fenced) => tracing::warn!(%session, "another owner took the session"),
        Err(Fatal::Store(error)) => {
            tracing::error!(%session, error = error.chain(), "the session's runner gave up");
        }
    }
    runner.let_go().await;
    if over && !runner.closed {
        // Nothing comes out any more: what was decided last is still told.
        if let Err(Fatal::Store(error)) = runner.close_way_out().await {
            tracing::error!(%session, error = error.chain(), "what was decided last about what comes out is not told");
        }
    }
    engine.hub().retire(session, &mut orders);
    if failed {
        engine.take_up_later(runner.row.org, session);
    }
}

/// What happened.
enum Next {
    Order(Option<Order>),
    Heard(Heard),
    Decided(Option<Vec<Decision>>),
    Exhausted(Option<Box<Problem>>),
    Deadline,
    Wanted,
    Stopping,
}

/// What is decided next about what comes out; never, if nothing does.
async fn decided(decisions: &mut Option<Decisions>) -> Option<Vec<Decision>> {
    match decisions {
        Some(decisions) => decisions.next().await,
        None => std::future::pending().await,
    }
}

impl Runner {
    async fn serve(&mut self, orders: &mut mpsc::Receiver<Order>) -> Result<(), Fatal> {
        loop {
            let deadline = self.deadline();
            let next = {
                let now = self.engine.clock().now();
                let sleep = deadline.map_or(Duration::from_hours(1), |at| at.since(now));
                let idle = self.current.is_none() && self.running.is_some();
                let running = &mut self.running;
                tokio::select! {
                    biased;
                    order = orders.recv() => Next::Order(order),
                    problem = self.exhausted.recv() => Next::Exhausted(problem),
                    heard = process::hear(running.as_mut()) => Next::Heard(heard),
                    decided = decided(&mut self.decisions) => Next::Decided(decided),
                    () = self.engine.tasks().stopping() => Next::Stopping,
                    () = self.engine.places().wanted(), if idle => Next::Wanted,
                    () = tokio::time::sleep(sleep) => Next::Deadline,
                }
            };
            match next {
                Next::Order(Some(order)) => self.obey(order).await?,
                // Wanted: somebody waits for a place, and this one is not used; its session goes on natively when it is spoken to again.
                Next::Order(None) => return Ok(()),
                Next::Wanted if self.part().await => return Ok(()),
                Next::Exhausted(Some(problem)) => {
                    self.step(Stimulus::BudgetExhausted(problem)).await?;
                }
                Next::Wanted | Next::Exhausted(None) => {}
                Next::Heard(heard) => self.heard(heard).await?,
                Next::Decided(Some(decisions)) => self.tell_decisions(&decisions).await?,
                Next::Decided(None) => self.decisions = None,
                Next::Deadline if self.wake_at().is_some_and(|at| self.engine.clock().now() >= at) => {
                    self.awaken().await?;
                }
                Next::Deadline if self.park_at().is_some_and(|at| self.engine.clock().now() >= at) => {
                    self.park().await?;
                }
                Next::Deadline if self.pause_at().is_some_and(|at| self.engine.clock().now() >= at) => {
                    if let Some(running) = &mut self.running {
                        running.pause().await;
                    }
                }
                Next::Deadline
                    if self.current.is_some() || self.running.as_ref().is_some_and(Running::starting) =>
                {
                    self.step(Stimulus::Tick).await?;
                }
                Next::Deadline if self.rest_is_due() => self.keep_at_rest().await?,
                Next::Deadline => {
                    if self.idle_out() && self.part().await {
                        return Ok(());
                    }
                }
                Next::Stopping => return self.stop_for_shutdown().await,
            }
            self.go_on().await?;
            if self.closed {
                return Ok(());
            }
        }
    }

    fn deadline(&self) -> Option<Timestamp> {
        let machine = self.running.as_ref().and_then(|running| running.machine.deadline());
        let idle = self.current.is_none().then(|| self.idle_since.plus(self.idle));
        let rests = [self.rest_at(), self.park_at(), self.pause_at(), self.wake_at()].into_iter().flatten();
        machine.into_iter().chain(idle).chain(rests).min()
    }

    /// Whether nothing has happened for long enough to let everything go.
    fn idle_out(&self) -> bool {
        self.current.is_none() && self.engine.clock().now() >= self.idle_since.plus(self.idle)
    }

    async fn obey(&mut self, order: Order) -> Result<(), Fatal> {
        // Whoever asked may have gone: that an answer can't be given is never an error here.
        match order {
            Order::Send { turn, on_busy, reply } => {
                let answer = self.take(turn, on_busy).await;
                let (told, fatal) = match answer {
                    Ok(told) => (told, None),
                    Err(fatal) => {
                        (Err(Error::told(ErrorCode::Internal, "the session can't be written")), Some(fatal))
                    }
                };
                let _ = reply.send(told);
                fatal.map_or(Ok(()), Err)
            }
            Order::Answer { request, answer, by, told, reply } => {
                let open = self.running.as_ref().is_some_and(|running| running.machine.asks(request));
                let started = self.current.as_ref().filter(|_| open).map(|current| Started {
                    turn: current.new.id,
                    head: self.writer.head,
                    queued: false,
                    fresh: false,
                });
                if open {
                    self.told = vec![*told];
                    self.step(Stimulus::Answer { request, answer, by }).await?;
                }
                let _ = reply.send(started);
                Ok(())
            }
            Order::Interrupt { reply } => {
                let busy = self.current.is_some();
                if busy {
                    self.step(Stimulus::Interrupt).await?;
                }
                let _ = reply.send(busy);
                Ok(())
            }
            Order::HandOff { to, reply } => {
                let from = self.row.current_agent.clone();
                let done = if from == to { Ok(()) } else { self.hand_off(from, to).await };
                let _ = reply.send(Ok(()));
                done
            }
            Order::Mode(mode) => {
                self.row.permission_mode = mode;
                self.step(Stimulus::Mode(mode)).await
            }
            Order::History { reply } => self.tell_history(reply).await,
            Order::Machine { reply } => {
                // One that stands still answers nothing; what it has is in its checkpoint.
                let runs = !self.running.as_ref().is_some_and(Running::paused);
                let machine = self.machine.as_ref().filter(|_| runs);
                let _ = reply.send(machine.map(|machine| Handle {
                    sandbox: machine.sandbox.clone(),
                    _reads: self.readers.clone(),
                }));
                Ok(())
            }
            Order::Close { reply } => {
                // What is in it is being erased.
                self.machine = None;
                if let Some(running) = self.running.take() {
                    running.end().await;
                }
                self.closed = true;
                let _ = reply.send(());
                Ok(())
            }
        }
    }

    /// A message is taken: begun, queued, joined to the running turn, or refused.
    async fn take(&mut self, new: Arc<NewTurn>, on_busy: OnBusy) -> Result<Result<Started>, Fatal> {
        let Some(current) = &self.current else {
            let started = Started { turn: new.id, head: self.writer.head, queued: false, fresh: true };
            return Ok(self.begin(new).await?.map(|()| started));
        };
        let running = current.new.id;
        // The same message again, sent while its turn runs or waits.
        if running == new.id || self.queue.iter().any(|waiting| waiting.id == new.id) {
            let (head, queued) = (current.head, running != new.id);
            return Ok(Ok(Started { turn: new.id, head, queued, fresh: true }));
        }
        let joins = on_busy == OnBusy::Steer
            && self.running.as_ref().is_some_and(|running| running.capabilities.steer && !running.starting());
        if joins {
            if new.content.iter().any(|part| matches!(part, Content::File { .. })) {
                // Files are put where the harness is: it must be there.
                self.awaken().await?;
            }
            let input = self.input(&new).await;
            return match input {
                Ok(input) => {
                    self.step(Stimulus::Steer(input)).await?;
                    Ok(Ok(Started { turn: running, head: self.writer.head, queued: false, fresh: false }))
                }
                Err(error) => Ok(Err(error)),
            };
        }
        if on_busy == OnBusy::Reject {
            return Ok(Err(Error::from(
                Problem::new(ErrorCode::TurnInProgress, "a turn is running in this session")
                    .with("turn_id", running.to_string()),
            )));
        }
        if self.queue.len() >= self.engine.settings().limits.queue {
            return Ok(Err(Error::told(ErrorCode::Overloaded, "too many messages wait in this session")));
        }
        let record = self.record(&new, TurnState::Queued, None, None);
        if let Err(error) = self.commit(vec![], Some(TurnChange::Queue(record)), |_| {}).await? {
            return Ok(Err(error));
        }
        let started = Started { turn: new.id, head: self.writer.head, queued: true, fresh: true };
        if on_busy == OnBusy::Interrupt {
            self.queue.push_front(new);
            self.step(Stimulus::Interrupt).await?;
        } else {
            self.queue.push_back(new);
        }
        Ok(Ok(started))
    }

    /// Starts the next queued turn, if nothing runs.
    async fn go_on(&mut self) -> Result<(), Fatal> {
        while self.current.is_none()
            && let Some(next) = self.queue.pop_front()
        {
            let id = next.id;
            if let Err(error) = self.begin(next).await? {
                self.fail_queued(id, &error).await?;
            }
        }
        Ok(())
    }

    /// A turn begins: it is in the journal before anything runs for it.
    async fn begin(&mut self, new: Arc<NewTurn>) -> Result<Result<()>, Fatal> {
        let release = match self.pin().await {
            Ok(release) => release,
            Err(error) => return Ok(Err(error)),
        };
        let isolation = match self.engine.still_gives(&self.row, &release) {
            Ok(isolation) => isolation,
            Err(error) => return Ok(Err(error)),
        };
        let now = self.engine.clock().now();
        let agent = new.agent.clone().or_else(|| self.row.current_agent.clone());
        let start = Body::TurnStart {
            release: release.release_ref(),
            agent: agent.clone(),
            participant: new.participant.clone(),
            isolation,
            queued_ms: u64::try_from(now.since(new.at).as_millis()).unwrap_or(u64::MAX),
        };
        self.allowance.cap(&release.recipe().policy.caps);
        self.begin_on(&release);
        let record = self.record(&new, TurnState::Running, Some(&release), Some(now));
        let pinned = match self.row.release_pin {
            ReleasePin::Session if self.row.pinned_version.is_none() => Some(release.row.version),
            _ => None,
        };
        self.current =
            Some(Current { new: new.clone(), started: now, first_text: None, head: self.writer.head });
        let version = release.row.version;
        let begun = self
            .commit(vec![(start, None)], Some(TurnChange::Begin(record)), |commit| {
                commit.status = Some(SessionStatus::Running);
                commit.last_version = Some(version);
                commit.pinned_version = pinned;
            })
            .await?;
        if let Err(error) = begun {
            self.current = None;
            return Ok(Err(error));
        }
        self.row.last_version = Some(version);
        self.row.pinned_version = self.row.pinned_version.or(pinned);
        self.meter.begin(new.id, version, new.key, new.token);
        if let Err(error) = self.drive(&new, &release, agent.as_deref()).await? {
            self.fail_current(&error).await?;
        }
        Ok(Ok(()))
    }

    /// What a release says about how its turns are told, and about how long its processes rest.
    pub(super) fn begin_on(&mut self, release: &Loaded) {
        self.writer.set_source(release.harness.id());
        let defaults = &release.recipe().defaults;
        self.writer.hide(&defaults.hidden_events);
        let most = self.engine.settings().limits.idle_seconds;
        self.idle = Duration::from_secs(defaults.idle_seconds.map_or(most, |wanted| wanted.min(most)));
    }

    /// A turn that was parked before the server was started goes on; one that can't is ended.
    async fn begin_with_parked(&mut self) -> Result<(), Fatal> {
        let (session, parked) = (self.row.id, self.engine.parked().clone());
        let has = tokio::task::spawn_blocking(move || parked.has(session)).await;
        if !has.unwrap_or_default() {
            return Ok(());
        }
        match self.take_up().await {
            // What was to be written when the last server ended is written now.
            Ok(true) if self.has_pending() => return self.awaken().await,
            Ok(true) => return Ok(()),
            Ok(false) => {
                tracing::warn!(session = %self.row.id, "a parked turn does not fit what is on record");
            }
            // Passing trouble, as of a control plane that is away: it stays parked, and is tried again.
            Err(error) => return Err(Fatal::Store(error)),
        }
        self.running = None;
        self.current = None;
        self.engine.give_up(self.row.org, self.row.id).await.map_err(Fatal::Store)?;
        // The end was written by another hand.
        let row = self.engine.store().session_own(self.row.org, self.row.id, self.engine.clock().now()).await;
        self.row = row.map_err(|error| Fatal::Store(error.into()))?;
        self.writer = Writer::new(self.row.id, self.row.head, "karta");
        Ok(())
    }

    /// The process is there (again) and gets the message.
    async fn drive(
        &mut self,
        new: &Arc<NewTurn>,
        release: &Arc<Loaded>,
        agent: Option<&str>,
    ) -> Result<Result<()>, Fatal> {
        let notices = match self.ensure_process(release, agent).await {
            Ok(notices) => notices,
            Err(error) => return Ok(Err(error)),
        };
        if !notices.is_empty() {
            let bodies = notices.into_iter().map(|body| (body, None)).collect();
            if let Err(error) = self.commit(bodies, None, |_| {}).await? {
                return Ok(Err(error));
            }
        }
        match self.input(new).await {
            Ok(mut input) => {
                if let Input::Message { agent: asked, .. } = &mut input {
                    *asked = agent.map(str::to_owned);
                }
                self.step(Stimulus::Begin(input)).await?;
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    /// The release this turn is pinned to, from its start to its end.
    async fn pin(&mut self) -> Result<Arc<Loaded>> {
        self.engine.release_for(self.row.org, self.row.project, &self.row).await
    }

    pub(super) async fn heard(&mut self, heard: Heard) -> Result<(), Fatal> {
        match heard {
            Heard::Output(first) => {
                let mut effects = Vec::new();
                let now = self.engine.clock().now();
                if let Some(running) = &mut self.running {
                    running.machine.step(now, Stimulus::Output(&first), &mut effects);
                    for _ in 1..BURST {
                        let Some(more) = running.try_hear() else { break };
                        running.machine.step(now, Stimulus::Output(&more), &mut effects);
                    }
                }
                self.perform(effects).await
            }
            Heard::Exited { status, stderr } => {
                self.step(Stimulus::Exited { status, stderr: &stderr }).await?;
                if self.running.as_ref().is_some_and(|running| running.awake().is_none()) {
                    // It was killed in its sleep: what was saved is of no use any more.
                    self.running = None;
                    self.engine.forget_parked(self.row.id).await;
                }
                // A machine whose process has ended is no use; should it not be kept now, it is when the session rests.
                self.part().await;
                for reply in self.history.drain(..) {
                    let _ = reply.send(Err(Error::told(ErrorCode::HarnessFailed, "the harness is gone")));
                }
                Ok(())
            }
        }
    }

    /// One step of the machine, and everything that follows from it.
    pub(super) async fn step(&mut self, stimulus: Stimulus<'_>) -> Result<(), Fatal> {
        let mut effects = Vec::new();
        let now = self.engine.clock().now();
        if let Some(running) = &mut self.running {
            running.machine.step(now, stimulus, &mut effects);
        }
        self.perform(effects).await
    }

    /// Commits what is to be told, then does the rest in order.
    pub(super) async fn perform(&mut self, effects: Vec<Effect>) -> Result<(), Fatal> {
        let mut bodies: Vec<(Body, Option<Bytes>)> = Vec::new();
        let mut later = Vec::new();
        let mut ending = None;
        let mut native = None;
        for effect in effects {
            match effect {
                Effect::Emit(body, _)
                    if self.muted && !matches!(body, Body::Error(_) | Body::InputResolved { .. }) => {}
                Effect::Emit(body, raw) => {
                    self.note(&body);
                    bodies.push((body, raw));
                }
                Effect::Native(id) => native = Some(id),
                Effect::Used { model, usage, cost } => self.count(&model, usage, cost).await,
                Effect::History(messages) => {
                    for reply in self.history.drain(..) {
                        let _ = reply.send(Ok(messages.clone()));
                    }
                }
                Effect::Ended(end) => ending = Some(end),
                write_or_kill => later.push(write_or_kill),
            }
        }
        if let Some(native) = &native {
            self.row.native = Some(native.clone());
        }
        if let Some(ending) = ending {
            self.settle(bodies, ending, native).await?;
        } else if !bodies.is_empty() || native.is_some() {
            let status = self.current.as_ref().map(|_| self.status());
            let told = self
                .commit(bodies, None, |commit| {
                    commit.status = status;
                    commit.native = native;
                })
                .await?;
            if let Err(error) = told {
                self.muted = true;
                if let Some(running) = &mut self.running {
                    running.kill();
                }
                return Box::pin(self.step(Stimulus::Broken(Box::new(error.problem())))).await;
            }
        }
        let writes = later.iter().any(|effect| matches!(effect, Effect::Write(_)));
        for effect in later {
            if let Some(running) = &mut self.running {
                match effect {
                    Effect::Write(bytes) => running.write(bytes).await,
                    Effect::Kill => running.kill(),
                    _ => {}
                }
            }
        }
        // What sleeps is woken for it, and written to then.
        if writes && self.has_pending() {
            Box::pin(self.awaken()).await?;
        }
        Ok(())
    }

    fn status(&self) -> SessionStatus {
        let waits = self.running.as_ref().is_some_and(|running| running.machine.waiting());
        if waits { SessionStatus::Waiting } else { SessionStatus::Running }
    }

    fn note(&mut self, body: &Body) {
        if let (Some(current), Body::Text { .. }) = (&mut self.current, body) {
            let now = self.engine.clock().now();
            current.first_text.get_or_insert(now);
        }
    }

    async fn hand_off(&mut self, from: Option<String>, to: Option<String>) -> Result<(), Fatal> {
        let body = Body::AgentChanged { from, to: to.clone() };
        let agent = to.clone();
        let done = self.commit(vec![(body, None)], None, |commit| commit.agent = Some(agent)).await?;
        if done.is_ok() {
            self.row.current_agent = to;
        }
        Ok(())
    }

    async fn tell_history(&mut self, reply: oneshot::Sender<Result<Vec<Message>>>) -> Result<(), Fatal> {
        if self.running.is_none() {
            let agent = self.row.current_agent.clone();
            let ready = match self.pin().await {
                Ok(release) => self.ensure_process(&release, agent.as_deref()).await.map(|_| ()),
                Err(error) => Err(error),
            };
            if let Err(error) = ready {
                let _ = reply.send(Err(error));
                return Ok(());
            }
        }
        self.history.push(reply);
        self.step(Stimulus::History).await
    }

    /// Takes the next queued turn, to end it.
    pub(super) fn next_queued(&mut self) -> Option<TurnId> {
        self.queue.pop_front().map(|new| new.id)
    }

    pub(super) const fn is_muted(&self) -> bool {
        self.muted
    }

    /// The earliest time at which the machine may be stopped: not while somebody reads from it.
    pub(super) fn undisturbed(&self, at: Timestamp) -> Timestamp {
        let read = Arc::strong_count(&self.readers) > 1;
        if read { at.max(self.engine.clock().now().plus(READING)) } else { at }
    }

    pub(super) fn exhausted_to(&self) -> mpsc::Sender<Box<Problem>> {
        self.exhausted_to.clone()
    }

    /// The turn is over: what waits may go on, and idleness begins.
    pub(super) fn rest(&mut self) {
        self.current = None;
        self.muted = false;
        self.idle_since = self.engine.clock().now();
        self.rest_soon();
        // Said about the turn that just ended; the next one is asked anew.
        while self.exhausted.try_recv().is_ok() {}
    }
}
