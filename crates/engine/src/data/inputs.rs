//! Inputs: questions that turns wait for, and their answers. The first answer wins.

use karta_types::event::{Answerer, AskKind, InputRequired};
use karta_types::message::{Answer, Decision};
use karta_types::page::Page;
use karta_types::{ErrorCode, RequestId, SessionId, TurnId};
use serde::Serialize;

use crate::data::stream::Reader;
use crate::data::turn::run::Order;
use crate::{Engine, Error, Principal, Result};

/// A question that waits.
#[derive(Debug, Clone, Serialize)]
pub struct Pending {
    /// The session.
    pub session_id: SessionId,
    /// The turn that waits.
    pub turn_id: TurnId,
    /// The question.
    #[serde(flatten)]
    pub input: InputRequired,
    /// When it was asked.
    pub created_at: karta_types::Timestamp,
}

/// An answer was taken.
#[derive(Debug)]
pub struct Answered {
    /// The turn that goes on.
    pub turn: TurnId,
    /// Reads the session from just before the answer.
    pub reader: Reader,
}

impl Engine {
    /// Questions that wait, in one session or anywhere in the organisation, oldest first.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn inputs(
        &self,
        who: &Principal,
        session: Option<SessionId>,
        after: Option<RequestId>,
        limit: u32,
    ) -> Result<Page<Pending>> {
        if let Some(session) = session {
            self.session_row(who, session).await?;
        }
        let mut rows = self.store().inputs_pending(who.org, session, after, limit + 1).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next_cursor = rows.last().filter(|_| more).map(|row| row.input.request_id.to_string());
        let mut data = Vec::with_capacity(rows.len());
        for row in rows {
            if who.project.is_some() && self.session_row(who, row.session).await.is_err() {
                continue;
            }
            data.push(Pending {
                session_id: row.session,
                turn_id: row.turn,
                input: row.input,
                created_at: row.created_at,
            });
        }
        Ok(Page { data, next_cursor })
    }

    /// Answers a question.
    ///
    /// # Errors
    /// `not_found`; `input_already_resolved`; `invalid_request` for an answer that does not fit the question.
    pub async fn answer(
        &self,
        who: &Principal,
        session: SessionId,
        request: RequestId,
        answer: Answer,
    ) -> Result<Answered> {
        let row = self.session_row(who, session).await?;
        let harness = row.harness.as_deref().and_then(karta_harness::registry::find);
        if answer.updated_input.is_some()
            && harness.is_some_and(|harness| !harness.capabilities().edited_input)
        {
            return Err(Error::invalid(
                "/updated_input",
                "this session's harness takes no other input: approve or deny",
            ));
        }
        let asked = self.store().inputs_pending(who.org, Some(session), None, 64).await?;
        match asked.iter().find(|asked| asked.input.request_id == request) {
            Some(asked) => fits(&asked.input, &answer)?,
            None => return Err(self.not_open(who, session, request).await),
        }
        let reader = self.follow(who.org, session, row.head);
        let by = Answerer { kind: who.actor.kind().to_owned(), id: who.actor.id() };
        let Some(runner) = self.hub().running(session) else {
            return Err(self.not_open(who, session, request).await);
        };
        let mut told = Box::new(self.told(who, "input.resolve", format!("{session}/{request}")));
        told.reason = Some(answer.decision.as_str().to_owned());
        let (reply, taken) = tokio::sync::oneshot::channel();
        if runner.send(Order::Answer { request, answer, by, told, reply }).await.is_err() {
            return Err(self.not_open(who, session, request).await);
        }
        match taken.await {
            Ok(Some(started)) => Ok(Answered { turn: started.turn, reader: reader.from(started.head) }),
            _ => Err(self.not_open(who, session, request).await),
        }
    }

    async fn not_open(&self, who: &Principal, session: SessionId, request: RequestId) -> Error {
        match self.store().input_state(who.org, session, request).await {
            Ok(Some(_)) => {
                Error::told(ErrorCode::InputAlreadyResolved, "somebody answered, or it was withdrawn")
            }
            Ok(None) => Error::not_found("input"),
            Err(error) => error.into(),
        }
    }
}

fn fits(asked: &InputRequired, answer: &Answer) -> Result<()> {
    let yes = answer.decision != Decision::Deny;
    if !asked.options.contains(&answer.decision) {
        return Err(Error::invalid("/decision", "this question does not take that decision"));
    }
    if answer.updated_input.is_some() && (asked.kind != AskKind::ToolUse || !yes) {
        return Err(Error::invalid("/updated_input", "only an approved tool call takes another input"));
    }
    if answer.answers.is_some() && asked.kind != AskKind::Question {
        return Err(Error::invalid("/answers", "only a question takes answers"));
    }
    if asked.kind == AskKind::Question && yes && answer.answers.is_none() {
        return Err(Error::invalid("/answers", "a question that is not denied needs answers"));
    }
    Ok(())
}
