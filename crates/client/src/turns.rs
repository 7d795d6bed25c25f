//! Turns and what was said: records without text, and the harness's own history.

use karta_types::message::Message;
use karta_types::page::Page;
use karta_types::session::Turn;
use karta_types::{SessionId, TurnId};
use reqwest::Method;

use crate::client::{Client, append};
use crate::error::Error;

impl Client {
    /// The records of a session's turns, newest first.
    ///
    /// # Errors
    /// The server's refusal, or the way there or back failing.
    pub async fn turns(&self, session: SessionId, cursor: Option<&str>) -> Result<Page<Turn>, Error> {
        let mut url = self.url(&["sessions", &session.to_string(), "turns"]);
        append(&mut url, &[("cursor", cursor.map(str::to_owned))]);
        self.json("listing the turns", self.request(Method::GET, url)).await
    }

    /// The record of one turn.
    ///
    /// # Errors
    /// See [`Client::turns`].
    pub async fn turn(&self, session: SessionId, turn: TurnId) -> Result<Turn, Error> {
        let url = self.url(&["sessions", &session.to_string(), "turns", &turn.to_string()]);
        self.json("reading the turn", self.request(Method::GET, url)).await
    }

    /// The conversation, read from the harness's own store.
    ///
    /// # Errors
    /// See [`Client::turns`].
    pub async fn history(&self, session: SessionId) -> Result<Page<Message>, Error> {
        let url = self.url(&["sessions", &session.to_string(), "history"]);
        self.json("reading the history", self.request(Method::GET, url)).await
    }
}
