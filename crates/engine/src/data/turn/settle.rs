//! How a turn ends: counted, written, shown, exactly once.

use std::time::Duration;

use bytes::Bytes;
use karta_store::{Spender, TurnChange, TurnEnd, UsageRow};
use karta_types::session::{SessionStatus, TurnState};
use karta_types::usage::Metered;
use karta_types::{Body, ErrorCode, KeyId, Micros, ModelCallId, Problem, TurnId, Usage};

use crate::data::turn::machine::Ending;
use crate::data::turn::process;
use crate::data::turn::run::{Fatal, Runner};
use crate::{Error, Result};

/// How often, and how far apart, a `done` is tried on a full disk before the turn is left to recovery.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(500);
/// How long a server that stops waits for what was asked of a harness that could be parked.
const ANSWERS: Duration = Duration::from_secs(2);

impl Runner {
    /// Whom what this session spends belongs to.
    pub(super) fn spender(&self, key: Option<KeyId>) -> Spender {
        Spender {
            org: self.row.org,
            project: self.home,
            key,
            token: self.meter.token(),
            end_user: self.row.end_user_id.clone(),
            session: self.row.id,
        }
    }

    /// Counts what a harness says it used, for those whose models pass no gateway.
    pub(super) async fn count(&mut self, model: &str, usage: Usage, cost: Micros) {
        self.meter.add(model, &usage, cost);
        let id = ModelCallId::new(self.engine.clock(), self.engine.rng());
        self.allowance.used(id, &usage, cost);
        let (turn, release) = self.meter.turn();
        let row = UsageRow {
            id,
            org: self.row.org,
            project: self.home,
            session: self.row.id,
            turn,
            key: self.meter.key().or(self.row.key),
            token: self.meter.token(),
            end_user: self.row.end_user_id.clone(),
            release,
            provider: "harness".to_owned(),
            model: model.to_owned(),
            usage,
            cost,
            priced: true,
            at: self.engine.clock().now(),
        };
        if let Err(error) = self.engine.gate().record(row).await {
            tracing::error!(session = %self.row.id, error = error.chain(), "recording usage");
        }
    }

    /// Writes the turn's last events and its `done` in one commit.
    pub(super) async fn settle(
        &mut self,
        bodies: Vec<(Body, Option<Bytes>)>,
        ending: Ending,
        native: Option<String>,
    ) -> Result<(), Fatal> {
        // Before `done`, so that what it says is over is kept; after all that the turn had to say, so that nobody waits for that.
        let bodies = self.keep_at_end(bodies).await?;
        let Some(current) = &self.current else { return Ok(()) };
        let (id, started, first_text) = (current.new.id, current.started, current.first_text);
        let (metered, models) = self.meter.end();
        // On a full disk the words so far may be more than there is room for; their events were kept as long as there was.
        let text = if self.is_muted() { String::new() } else { ending.text.clone() };
        for attempt in 1.. {
            let now = self.engine.clock().now();
            let done = Body::Done {
                status: ending.status,
                text: text.clone(),
                usage: metered,
                cost_micros: metered.cost_micros,
                stop_reason: ending.stop_reason.clone(),
                duration_ms: u64::try_from(now.since(started).as_millis()).unwrap_or(u64::MAX),
            };
            let change = TurnChange::End(TurnEnd {
                id,
                state: ending.status,
                stop_reason: ending.stop_reason.clone(),
                error: ending.error.as_ref().map(|problem| problem.error),
                usage: metered,
                models: models.clone(),
                first_text_at: first_text,
                ended_at: now,
            });
            let mut all = bodies.clone();
            all.push((done, None));
            let native = native.clone();
            let written = self
                .commit(all, Some(change), |commit| {
                    commit.status = Some(SessionStatus::Idle);
                    commit.native = native;
                })
                .await?;
            match written {
                Ok(()) => break,
                // The ballast was dropped by now; there is room for a `done` unless somebody else took it.
                Err(error) if attempt >= TRIES => return Err(Fatal::Store(error)),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        self.rest();
        Ok(())
    }

    /// The running turn can't go on.
    pub(super) async fn fail_current(&mut self, error: &Error) -> Result<(), Fatal> {
        if self.current.is_none() {
            return Ok(());
        }
        let problem = log_and_tell(error);
        let bodies = vec![(Body::Error(problem.clone()), None)];
        let ending = Ending {
            status: TurnState::Failed,
            stop_reason: None,
            text: String::new(),
            error: Some(problem),
        };
        self.settle(bodies, ending, None).await
    }

    /// A queued turn can't begin. It still ends in one `done`.
    pub(super) async fn fail_queued(&mut self, id: TurnId, error: &Error) -> Result<(), Fatal> {
        let problem = log_and_tell(error);
        let now = self.engine.clock().now();
        let change = TurnChange::End(TurnEnd {
            id,
            state: TurnState::Failed,
            stop_reason: None,
            error: Some(problem.error),
            usage: Metered::default(),
            models: Vec::new(),
            first_text_at: None,
            ended_at: now,
        });
        let written = self.commit_for(Some(id), failed_bodies(problem), Some(change), |_| {}).await?;
        written.map_err(Fatal::Store)
    }

    /// Hears what the harness answers to requests that are under way, for a turn that could be parked but for them.
    async fn hear_answers(&mut self) -> Result<(), Fatal> {
        let patience = tokio::time::Instant::now() + ANSWERS;
        while let Some(running) = &mut self.running
            && running.machine.still_since().is_some()
            && running.awake().is_some_and(|awake| awake.io.waits())
        {
            // One that keeps its answers for longer is not waited for.
            let Ok(heard) = tokio::time::timeout_at(patience, process::hear(Some(running))).await else {
                break;
            };
            Box::pin(self.heard(heard)).await?;
        }
        Ok(())
    }

    /// The server stops: the turn ends now, and says why.
    pub(super) async fn stop_for_shutdown(&mut self) -> Result<(), Fatal> {
        self.hear_answers().await?;
        // A turn that waits for a person goes on after the start.
        if self.park_at().is_some() {
            self.not_parked_before = self.row.created_at;
            self.park().await?;
        }
        // One that was killed in its sleep is not kept: its turn ends here.
        let sleeps =
            self.running.as_ref().is_some_and(|running| running.awake().is_none() && !running.killed());
        if let Some(running) = self.running.take() {
            running.end().await;
        }
        let stopped = Error::told(ErrorCode::InterruptedByRestart, "the server was stopped during the turn");
        if !sleeps {
            self.fail_current(&stopped).await?;
        }
        while let Some(id) = self.next_queued() {
            self.fail_queued(id, &stopped).await?;
        }
        Ok(())
    }
}

/// The events of a turn that failed before it began.
fn failed_bodies(problem: Problem) -> Vec<(Body, Option<Bytes>)> {
    let done = Body::Done {
        status: TurnState::Failed,
        text: String::new(),
        usage: Metered::default(),
        cost_micros: Micros::ZERO,
        stop_reason: None,
        duration_ms: 0,
    };
    vec![(Body::Error(problem), None), (done, None)]
}

fn log_and_tell(error: &Error) -> Problem {
    if let Error::Internal { .. } = error {
        tracing::error!(error = error.chain(), "a turn failed");
    }
    error.problem()
}
