//! What the runner writes: each step of a turn in one commit, shown only when the store has it.

use std::sync::Arc;

use bytes::Bytes;
use karta_store::{Commit, TurnChange, TurnRow};
use karta_types::session::{Turn, TurnState};
use karta_types::usage::Metered;
use karta_types::{Body, Timestamp, TurnId};

use super::run::{Fatal, NewTurn, Runner};
use crate::Result;
use crate::data::releases::Loaded;

impl Runner {
    /// Commits a step of the turn, then shows it. An inner error is one the caller can go on after.
    pub(super) async fn commit(
        &mut self,
        bodies: Vec<(Body, Option<Bytes>)>,
        turn: Option<TurnChange>,
        more: impl FnOnce(&mut Commit),
    ) -> Result<Result<()>, Fatal> {
        let id = self.current.as_ref().map(|current| current.new.id);
        self.commit_for(id, bodies, turn, more).await
    }

    /// Commits events of this turn, which may be one that never ran.
    pub(super) async fn commit_for(
        &mut self,
        id: Option<TurnId>,
        bodies: Vec<(Body, Option<Bytes>)>,
        turn: Option<TurnChange>,
        more: impl FnOnce(&mut Commit),
    ) -> Result<Result<()>, Fatal> {
        let at = self.engine.clock().now();
        let before = self.writer.head;
        let (mut asked, mut resolved) = (Vec::new(), Vec::new());
        for (body, _) in &bodies {
            match body {
                Body::InputRequired(input) => asked.push(input.clone()),
                Body::InputResolved { request_id, decision, by } => {
                    resolved.push((*request_id, *decision, by.clone()));
                }
                _ => {}
            }
        }
        let batch = self.writer.encode(at, id, bodies);
        let mut commit = Commit {
            org: self.row.org,
            session: self.row.id,
            generation: self.row.generation,
            head: before,
            at,
            chunk: batch.as_ref().map(crate::data::journal::Batch::to_chunk),
            status: None,
            native: None,
            agent: None,
            last_version: None,
            pinned_version: None,
            turn,
            asked,
            told: if resolved.is_empty() { Vec::new() } else { std::mem::take(&mut self.told) },
            resolved,
        };
        more(&mut commit);
        match self.engine.store().commit(commit).await {
            Ok(()) => {
                if let Some(batch) = batch {
                    self.live.show(Arc::new(batch));
                }
                Ok(Ok(()))
            }
            Err(karta_store::Error::Fenced) => Err(Fatal::Fenced),
            Err(karta_store::Error::Full) => {
                self.writer.head = before;
                self.engine.space_is_short();
                Ok(Err(karta_store::Error::Full.into()))
            }
            Err(error) => Err(Fatal::Store(error.into())),
        }
    }

    pub(super) fn record(
        &self,
        new: &NewTurn,
        state: TurnState,
        release: Option<&Loaded>,
        started_at: Option<Timestamp>,
    ) -> TurnRow {
        TurnRow {
            org: self.row.org,
            key: new.key,
            turn: Turn {
                id: new.id,
                session_id: self.row.id,
                release: release.map(Loaded::release_ref),
                agent: new.agent.clone().or_else(|| self.row.current_agent.clone()),
                participant: new.participant.clone(),
                state,
                stop_reason: None,
                error: None,
                usage: Metered::default(),
                models: Vec::new(),
                created_at: new.at,
                started_at,
                first_text_at: None,
                ended_at: None,
            },
        }
    }
}
