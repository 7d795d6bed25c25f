//! Inputs: questions that wait for a person, their answers, and stopping a turn.

use karta_types::event::InputRequired;
use karta_types::message::Answer;
use karta_types::page::Page;
use karta_types::{RequestId, SessionId, TurnId};
use reqwest::Method;
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::error::Error;

/// A question that waits for a person.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct PendingInput {
    /// The session.
    pub session_id: SessionId,
    /// The turn that waits.
    pub turn_id: TurnId,
    /// The question.
    #[serde(flatten)]
    pub input: InputRequired,
}

/// An answer as it goes over the wire.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    answer: &'a Answer,
    stream: bool,
}

impl Client {
    /// The questions that wait in a session.
    ///
    /// # Errors
    /// The server's refusal, or the way there or back failing.
    pub async fn inputs(&self, session: SessionId) -> Result<Page<PendingInput>, Error> {
        let url = self.url(&["sessions", &session.to_string(), "inputs"]);
        self.json("listing the questions of the session", self.request(Method::GET, url)).await
    }

    /// The questions that wait anywhere in the organisation.
    ///
    /// # Errors
    /// See [`Client::inputs`].
    pub async fn all_inputs(&self) -> Result<Page<PendingInput>, Error> {
        self.json("listing questions", self.request(Method::GET, self.url(&["inputs"]))).await
    }

    /// Answers a question, and returns as soon as the answer is taken. The first answer wins; a later one is refused with
    /// `input_already_resolved`. How the turn goes on is among its events.
    ///
    /// # Errors
    /// See [`Client::inputs`].
    pub async fn answer(&self, session: SessionId, request: RequestId, answer: &Answer) -> Result<(), Error> {
        let url = self.url(&["sessions", &session.to_string(), "inputs", &request.to_string()]);
        // As a stream the server answers at once, and else only at the turn's end. The stream is let go: that stops no turn.
        let request = self.request(Method::PUT, url).json(&Body { answer, stream: true });
        self.send("answering the question", request).await.map(drop)
    }

    /// Stops the running turn; its `done` says `interrupted`. Whether there was one.
    ///
    /// # Errors
    /// See [`Client::inputs`].
    pub async fn interrupt(&self, session: SessionId) -> Result<bool, Error> {
        #[derive(Deserialize)]
        struct Interrupted {
            interrupted: bool,
        }
        let url = self.url(&["sessions", &session.to_string(), "interrupt"]);
        let answer: Interrupted = self.json("interrupting the turn", self.request(Method::POST, url)).await?;
        Ok(answer.interrupted)
    }
}
