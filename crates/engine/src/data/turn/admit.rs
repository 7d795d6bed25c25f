//! A message is admitted: checked, paid for, handed to the session's runner.

use std::sync::Arc;

use karta_store::Spender;
use karta_types::message::Content;
use karta_types::session::{Isolation, Participant, SessionStatus, TurnState};
use karta_types::{ErrorCode, Problem, Seq, SessionId, TurnId};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::data::allowance;
use crate::data::stream::Reader;
use crate::data::turn::run::{NewTurn, Order};
use crate::{Engine, Error, Principal, Result};

/// What to do when a turn runs already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBusy {
    /// Answer 409 `turn_in_progress`.
    #[default]
    Reject,
    /// Wait for it.
    Queue,
    /// Stop it and go next.
    Interrupt,
    /// Join it.
    Steer,
}

/// A message to a session.
#[derive(Debug, Clone)]
pub struct SendMessage {
    /// The turn's id, where the caller has it from an earlier try.
    pub turn: Option<TurnId>,
    /// Its parts.
    pub content: Vec<Content>,
    /// The agent to take it; absent is the session's current one.
    pub agent: Option<String>,
    /// Who speaks.
    pub participant: Option<Participant>,
    /// Whether the model should show its thinking.
    pub thinking: bool,
    /// What to do when a turn runs already.
    pub on_busy: OnBusy,
}

/// A message was taken.
#[derive(Debug)]
pub struct Accepted {
    /// The turn that answers it: a new one, or the one it joined.
    pub turn: TurnId,
    /// Whether it waits for a turn before it.
    pub queued: bool,
    /// Reads the session from just before the turn.
    pub reader: Reader,
}

/// How often a runner that just retired is asked for again.
const TRIES: usize = 5;
/// Seconds after which it is worth asking a crowded server again.
const CROWDED: i64 = 5;

impl Engine {
    /// Takes a message: after this the turn runs whether or not anybody reads it.
    ///
    /// # Errors
    /// `not_found`, `budget_exhausted`, `turn_in_progress`, `invalid_request` for an unknown agent, `no_active_release`,
    /// `overloaded` when too many messages wait.
    pub async fn send(&self, who: &Principal, session: SessionId, message: SendMessage) -> Result<Accepted> {
        self.check_space()?;
        let limits = &self.settings().limits;
        // Shed before anything is done for it: those who wait already are served sooner so.
        if self.places().is_crowded(limits.waiting) && !self.is_alive(session) {
            let problem = Problem::new(ErrorCode::Overloaded, "too many sessions wait for a place")
                .with("retry_after", CROWDED);
            return Err(problem.into());
        }
        let row = self.session_row(who, session).await?;
        let spender = Spender {
            org: row.org,
            project: self.project_known(row.org, row.project).await?.home(),
            key: who.actor.key(),
            token: who.actor.token(),
            end_user: row.end_user_id.clone(),
            session,
        };
        self.admit(who, &spender).await?;
        if row.status == SessionStatus::Closed {
            return Err(Error::not_found("session"));
        }
        let release = self.release_for(row.org, row.project, &row).await?;
        let given = self.still_gives(&row, &release)?;
        self.check_isolation(row.org, given).await?;
        if given > Isolation::None {
            self.in_rotation()?;
        }
        release.check_agent(message.agent.as_deref())?;
        allowance::check(session, &release.recipe().policy.caps, &row.usage)?;
        let new = Arc::new(NewTurn {
            id: message.turn.unwrap_or_else(|| TurnId::new(self.clock(), self.rng())),
            key: who.actor.key(),
            token: who.actor.token(),
            seat: self.seats().take(who, limits.key_turns, limits.org_turns)?,
            content: message.content,
            agent: message.agent,
            participant: message.participant,
            thinking: message.thinking,
            at: self.clock().now(),
        });
        // Following begins before the turn does, so that nothing of it can be missed.
        let reader = self.follow(row.org, session, row.head);
        let started = self
            .order(who, session, |reply| Order::Send { turn: new.clone(), on_busy: message.on_busy, reply })
            .await??;
        let reader = if started.fresh { reader.from(started.head) } else { reader };
        Ok(Accepted { turn: started.turn, queued: started.queued, reader })
    }

    /// Whether a session that is to be made for a message may run: an exhausted cap leaves no empty session behind.
    ///
    /// # Errors
    /// `budget_exhausted`; `not_found` for the project.
    pub async fn admit_new(&self, who: &Principal, project: &str, end_user: Option<&str>) -> Result<()> {
        let spender = Spender {
            org: who.org,
            project: self.project_row(who, project).await?.home(),
            key: who.actor.key(),
            token: who.actor.token(),
            end_user: end_user.map(str::to_owned),
            // The session that is to be: nothing is capped for it yet.
            session: SessionId::from_u128(0),
        };
        self.admit(who, &spender).await
    }

    /// Whether this spender may begin something. A refusal is on record.
    ///
    /// # Errors
    /// `budget_exhausted`.
    pub(crate) async fn admit(&self, who: &Principal, spender: &Spender) -> Result<()> {
        let Err(problem) = self.gate().admit(spender).await else { return Ok(()) };
        if problem.error == ErrorCode::BudgetExhausted {
            let mut told = self.told(who, "budget.refuse", spender.session);
            told.reason = Some(problem.detail.clone());
            self.store().audit_append(told).await?;
        }
        Err(Error::Told(problem))
    }

    /// Takes a message whose turn may exist already: then nothing runs twice, and the reader begins at the session's first event.
    ///
    /// # Errors
    /// As [`Engine::send`].
    pub async fn send_again(
        &self,
        who: &Principal,
        session: SessionId,
        message: SendMessage,
    ) -> Result<Accepted> {
        if let Some(turn) = message.turn {
            let row = self.session_row(who, session).await?;
            if let Some(known) = self.store().turn_get(row.org, session, turn).await? {
                let reader = self.follow(row.org, session, Seq::START);
                return Ok(Accepted { turn, queued: known.turn.state == TurnState::Queued, reader });
            }
        }
        self.send(who, session, message).await
    }

    /// Stops the running turn. Answers whether there was one.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn interrupt(&self, who: &Principal, session: SessionId) -> Result<bool> {
        self.session_row(who, session).await?;
        let Some(runner) = self.hub().running(session) else { return Ok(false) };
        let (reply, answer) = oneshot::channel();
        if runner.send(Order::Interrupt { reply }).await.is_err() {
            return Ok(false);
        }
        Ok(answer.await.unwrap_or(false))
    }

    /// Gives the session's runner an order, starting one if need be, and waits for its answer.
    pub(crate) async fn order<T>(
        &self,
        who: &Principal,
        session: SessionId,
        make: impl Fn(oneshot::Sender<T>) -> Order,
    ) -> Result<T> {
        for _ in 0..TRIES {
            let runner = self.runner(who.org, session);
            let (reply, answer) = oneshot::channel();
            match runner.try_send(make(reply)) {
                Ok(()) => {
                    // No answer: the runner retired with the order in its channel.
                    if let Ok(answer) = answer.await {
                        return Ok(answer);
                    }
                }
                Err(mpsc::error::TrySendError::Full(_)) => {
                    return Err(Error::told(
                        ErrorCode::Overloaded,
                        "too many requests wait for this session",
                    ));
                }
                Err(mpsc::error::TrySendError::Closed(_)) => {}
            }
        }
        Err(Error::told(ErrorCode::Overloaded, "the session's runner could not be started"))
    }
}

/// What the runner says of a message it took.
#[derive(Debug, Clone, Copy)]
pub struct Started {
    /// The turn.
    pub turn: TurnId,
    /// The session's last event before it.
    pub head: Seq,
    /// Whether it waits.
    pub queued: bool,
    /// Whether it is a turn of its own.
    pub fresh: bool,
}
