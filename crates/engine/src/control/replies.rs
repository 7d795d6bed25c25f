//! Answers kept for requests that may be repeated.

use std::time::Duration;

use karta_store::Idem;
pub use karta_store::Reply;
use karta_types::{ErrorCode, SessionId, TurnId};

use crate::{Engine, Error, Principal, Result};

/// What is known of a repeated request.
#[derive(Debug)]
pub enum Replay {
    /// Nothing: it is the first.
    New,
    /// Its answer.
    Known(Reply),
}

impl Engine {
    /// Begins a request that may be repeated.
    ///
    /// # Errors
    /// `idempotency_mismatch` when the key came with another request; `request_in_progress` while the first runs.
    pub async fn reply_begin(
        &self,
        who: &Principal,
        key: &str,
        fingerprint: [u8; 32],
        kept: Duration,
    ) -> Result<Replay> {
        let now = self.clock().now();
        // A key is the caller's own: two keys of one organisation don't meet.
        let key = scoped(who, key);
        match self.store().idem_begin(who.org, &key, fingerprint, now, now.plus(kept)).await? {
            Idem::New => Ok(Replay::New),
            Idem::Done(reply) => Ok(Replay::Known(reply)),
            Idem::Running => {
                Err(Error::told(ErrorCode::RequestInProgress, "repeat it when the first has answered"))
            }
            Idem::Mismatch => {
                Err(Error::told(ErrorCode::IdempotencyMismatch, "its first request had another path or body"))
            }
        }
    }

    /// Keeps the answer.
    ///
    /// # Errors
    /// The store can't be written.
    pub async fn reply_finish(&self, who: &Principal, key: &str, reply: &Reply) -> Result<()> {
        Ok(self.store().idem_finish(who.org, &scoped(who, key), reply).await?)
    }

    /// Keeps that the request is answered by this turn.
    ///
    /// # Errors
    /// The store can't be written.
    pub async fn reply_is_turn(
        &self,
        who: &Principal,
        key: &str,
        session: SessionId,
        turn: TurnId,
    ) -> Result<()> {
        let reply = Reply {
            status: 200,
            content_type: String::new(),
            body: bytes::Bytes::new(),
            stream: Some((session, turn)),
        };
        self.reply_finish(who, key, &reply).await
    }

    /// The request failed: its key is free again.
    ///
    /// # Errors
    /// The store can't be written.
    pub async fn reply_abandon(&self, who: &Principal, key: &str) -> Result<()> {
        Ok(self.store().idem_abandon(who.org, &scoped(who, key)).await?)
    }
}

fn scoped(who: &Principal, key: &str) -> String {
    format!("{}:{key}", who.actor.id())
}
