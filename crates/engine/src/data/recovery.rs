//! After a crash: every turn that has no `done` gets one, and nothing that the last process left behind goes on.

use std::sync::Arc;

use karta_store::{Commit, TurnChange, TurnEnd, TurnRow};
use karta_types::event::Answerer;
use karta_types::message::Decision;
use karta_types::session::{SessionStatus, TurnState};
use karta_types::usage::Metered;
use karta_types::{Body, ErrorCode, OrgId, Problem, Seq, SessionId, TurnId};

use crate::data::journal::{Batch, Writer};
use crate::{Engine, Error, Result};

/// How much of a turn's journal is read at once.
const READ: usize = 1 << 20;

impl Engine {
    /// Finishes what the last process could not. Runs before anything is served.
    ///
    /// # Errors
    /// The store can't be read or written.
    pub(crate) async fn recover(&self) -> Result<()> {
        let store = self.store().clone();
        store.idem_abandon_all_running().await?;
        let unfinished = store.turns_unfinished().await?;
        let count = unfinished.len();
        let mut waiting = Vec::new();
        for row in unfinished {
            let (org, session) = (row.org, row.turn.session_id);
            match self.parked_turn(org, session).await {
                Ok(Some(turn)) if turn == row.turn.id => waiting.push((org, session)),
                Ok(_) => self.finish(row).await?,
                // It is tried again, and ended if that goes on.
                Err(error) => {
                    tracing::error!(%session, error = error.chain(), "a parked turn can't be read now");
                    waiting.push((org, session));
                }
            }
        }
        let parked = self.parked().clone();
        let kept: Vec<_> = waiting.iter().map(|(_, session)| *session).collect();
        let reaped = tokio::task::spawn_blocking(move || parked.reap(&|session| kept.contains(&session)));
        reaped.await.map_err(|error| Error::internal("removing parked turns that nobody has", error))?;
        self.end_lost_builds().await?;
        if count > 0 {
            tracing::warn!(turns = count, "ended turns that the last process could not");
        }
        for driver in self.drivers() {
            let known = store.session_ids().await?;
            let reaped = driver.reap(&|id| known.contains(id)).await?;
            if reaped > 0 {
                tracing::warn!(driver = driver.id(), reaped, "ended what the last process left behind");
            }
        }
        // Last: one that has expired is woken at once, and what is woken must not be taken for what was left behind.
        self.take_up(waiting);
        Ok(())
    }

    /// Ends the turn that a session has parked and that can't go on, and what was kept of it.
    pub(crate) async fn give_up(&self, org: OrgId, session: SessionId) -> Result<()> {
        let begun =
            |row: &TurnRow| row.org == org && row.turn.session_id == session && row.turn.started_at.is_some();
        for row in self.store().turns_unfinished().await?.into_iter().filter(begun) {
            self.finish(row).await?;
        }
        self.forget_parked(session).await;
        Ok(())
    }

    async fn finish(&self, row: TurnRow) -> Result<()> {
        let now = self.clock().now();
        let turn = row.turn;
        let session = self.store().session_own(row.org, turn.session_id, now).await?;
        let text = self.text_so_far(row.org, turn.session_id, turn.id).await?;
        let (usage, cost, models) = self.gate().used_in(row.org, turn.id).await?;
        let metered = Metered::new(&usage, cost);
        let problem = Problem::new(
            ErrorCode::InterruptedByRestart,
            "the server ended during the turn; the next message goes on from what the harness kept",
        );
        let mut bodies = Vec::new();
        let mut resolved = Vec::new();
        let asked = self.store().inputs_pending(row.org, Some(turn.session_id), None, 1000).await?;
        // Of this turn only: one of the session that is parked waits on.
        for open in asked.into_iter().filter(|open| open.turn == turn.id) {
            let by = Answerer { kind: "karta".to_owned(), id: "restart".to_owned() };
            resolved.push((open.input.request_id, Decision::Deny, by.clone()));
            let request_id = open.input.request_id;
            bodies.push((Body::InputResolved { request_id, decision: Decision::Deny, by }, None));
        }
        bodies.push((Body::Error(problem), None));
        let started = turn.started_at.unwrap_or(turn.created_at);
        bodies.push((
            Body::Done {
                status: TurnState::Failed,
                text,
                usage: metered,
                cost_micros: cost,
                stop_reason: None,
                duration_ms: u64::try_from(now.since(started).as_millis()).unwrap_or(u64::MAX),
            },
            None,
        ));
        let mut writer = Writer::new(session.id, session.head, "karta");
        let batch = writer.encode(now, Some(turn.id), bodies);
        let commit = Commit {
            org: row.org,
            session: session.id,
            generation: session.generation,
            head: session.head,
            at: now,
            chunk: batch.as_ref().map(Batch::to_chunk),
            status: Some(SessionStatus::Idle),
            native: None,
            agent: None,
            last_version: None,
            pinned_version: None,
            turn: Some(TurnChange::End(TurnEnd {
                id: turn.id,
                state: TurnState::Failed,
                stop_reason: None,
                error: Some(ErrorCode::InterruptedByRestart),
                usage: metered,
                models,
                first_text_at: turn.first_text_at,
                ended_at: now,
            })),
            asked: Vec::new(),
            resolved,
            told: Vec::new(),
        };
        self.store().commit(commit).await?;
        if let Some(batch) = batch {
            // After the start of the server somebody may follow already.
            self.hub().live(session.id).show(Arc::new(batch));
        }
        Ok(())
    }

    /// The text that the journal has of the turn.
    async fn text_so_far(
        &self,
        org: karta_types::OrgId,
        session: karta_types::SessionId,
        turn: TurnId,
    ) -> Result<String> {
        let mut text = TurnText::default();
        let mut cursor = Seq::START;
        loop {
            let chunks = self.store().journal_read(org, session, cursor, READ).await?;
            let Some(last) = chunks.last() else { break };
            cursor = last.last;
            for chunk in chunks.into_iter().filter(|chunk| chunk.turn == Some(turn)) {
                text.read(&Batch::from(chunk));
            }
        }
        Ok(text.whole())
    }
}

/// Puts a turn's text together, as the fold does for a turn that ended.
#[derive(Default)]
struct TurnText(Vec<(String, String)>);

impl TurnText {
    fn read(&mut self, batch: &Batch) {
        for event in batch.events() {
            let Body::Text { part, parent_tool_use_id: None } = &event.body else { continue };
            if part.discarded {
                self.0.retain(|(id, _)| *id != part.id);
            } else if let Some((_, text)) = self.0.iter_mut().find(|(id, _)| *id == part.id) {
                text.push_str(&part.text);
            } else {
                self.0.push((part.id.clone(), part.text.clone()));
            }
        }
    }

    fn whole(self) -> String {
        self.0.into_iter().map(|(_, text)| text).collect()
    }
}
