//! Inputs: questions that wait for a person, their answers, and stopping a turn.

use karta_types::event::InputRequired;
use karta_types::message::Answer;
use karta_types::page::Page;
use karta_types::{RequestId, SessionId};
use reqwest::Method;

use crate::client::Client;
use crate::error::Error;

impl Client {
    /// The questions that wait in a session.
    ///
    /// # Errors
    /// The server's refusal, or the way there or back failing.
    pub async fn inputs(&self, session: SessionId) -> Result<Page<InputRequired>, Error> {
        let url = self.url(&["sessions", &session.to_string(), "inputs"]);
        self.json("listing the questions of the session", self.request(Method::GET, url)).await
    }

    /// Answers a question. The first answer wins; a later one is refused with `input_already_resolved`.
    ///
    /// # Errors
    /// See [`Client::inputs`].
    pub async fn answer(&self, session: SessionId, request: RequestId, answer: &Answer) -> Result<(), Error> {
        let url = self.url(&["sessions", &session.to_string(), "inputs", &request.to_string()]);
        self.send("answering the question", self.request(Method::PUT, url).json(answer)).await.map(drop)
    }

    /// Stops the running turn; its `done` says `interrupted`.
    ///
    /// # Errors
    /// See [`Client::inputs`].
    pub async fn interrupt(&self, session: SessionId) -> Result<(), Error> {
        let url = self.url(&["sessions", &session.to_string(), "interrupt"]);
        self.send("interrupting the turn", self.request(Method::POST, url)).await.map(drop)
    }
}
