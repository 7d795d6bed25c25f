//! Messages: run a turn and wait for it, stream it, or leave it running.

use karta_types::event::InputRequired;
use karta_types::message::{Content, Message};
use karta_types::session::{Participant, TurnState};
use karta_types::usage::Metered;
use karta_types::{SessionId, TurnId};
use reqwest::{Method, RequestBuilder, Url};
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::error::Error;
use crate::events::EventStream;

/// What happens to a message while a turn runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBusy {
    /// It is refused.
    Reject,
    /// It waits for its turn.
    Queue,
    /// The running turn is stopped for it.
    Interrupt,
    /// It goes into the running turn.
    Steer,
}

/// A message, and how it is to be run. What is absent is the server's default.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SendMessage {
    /// The words; or else `content`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Words, pictures and files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub content: Vec<Content>,
    /// The agent that takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Who speaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub participant: Option<Participant>,
    /// Whether the model should show its thinking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<bool>,
    /// What happens while a turn runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_busy: Option<OnBusy>,
}

impl SendMessage {
    /// A message of nothing but words.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: Some(text.into()), ..Self::default() }
    }
}

/// A message as it goes over the wire.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    message: &'a SendMessage,
    stream: bool,
}

/// The answer of a turn that was waited for: the fold of its events, up to its end or to a question that waits for a person.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Reply {
    /// The words of the agent.
    pub text: String,
    /// The session.
    pub session_id: SessionId,
    /// The turn.
    pub turn_id: TurnId,
    /// How the turn stands: it runs on if a question waits.
    #[serde(default)]
    pub status: Option<TurnState>,
    /// The agent that answered.
    #[serde(default)]
    pub agent: Option<String>,
    /// What was said and done, in order.
    #[serde(default)]
    pub messages: Vec<Message>,
    /// Tokens and cost.
    #[serde(default)]
    pub usage: Metered,
    /// Why it ended, in the harness's words; `input_required` while a question waits.
    #[serde(default)]
    pub stop_reason: Option<String>,
    /// The questions that wait: answer them by [`Client::answer`], then follow the turn by [`Client::turn_events`].
    #[serde(default)]
    pub pending_inputs: Vec<InputRequired>,
}

/// A turn that was accepted and runs on by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Accepted {
    /// The session.
    pub session_id: SessionId,
    /// The turn.
    pub turn_id: TurnId,
}

impl Client {
    /// Runs a turn and waits for its end, or for the first question that it has.
    ///
    /// # Errors
    /// The server's refusal, the problem that ended the turn, or the way there or back failing.
    pub async fn send_message(&self, session: SessionId, message: &SendMessage) -> Result<Reply, Error> {
        let request = self.message(self.messages_url(session), message, false, &self.idempotency_key());
        self.json("sending the message", request).await
    }

    /// Starts a turn and returns at once; follow it by [`Client::turn_events`].
    ///
    /// # Errors
    /// See [`Client::send_message`].
    pub async fn send_detached(&self, session: SessionId, message: &SendMessage) -> Result<Accepted, Error> {
        let request = self
            .message(self.messages_url(session), message, false, &self.idempotency_key())
            .header("prefer", "respond-async");
        self.json("sending the message", request).await
    }

    /// Runs a turn and streams it; the stream ends after the turn's `done` and takes up cut connections by itself. Nothing is
    /// sent before the stream is first asked for an event.
    ///
    /// # Errors
    /// [`Error::Usage`] if the message can't be written as JSON.
    pub fn send_streaming(&self, session: SessionId, message: &SendMessage) -> Result<EventStream, Error> {
        self.stream_to(self.messages_url(session), message)
    }

    /// Runs a turn in a new session of `project` (id or slug) and streams it.
    ///
    /// # Errors
    /// See [`Client::send_streaming`].
    pub fn start_streaming(&self, project: &str, message: &SendMessage) -> Result<EventStream, Error> {
        self.stream_to(self.url(&["projects", project, "messages"]), message)
    }

    fn messages_url(&self, session: SessionId) -> Url {
        self.url(&["sessions", &session.to_string(), "messages"])
    }

    fn stream_to(&self, url: Url, message: &SendMessage) -> Result<EventStream, Error> {
        let request = self
            .message(url, message, true, &self.idempotency_key())
            .header("accept", "text/event-stream")
            .build()
            .map_err(|why| Error::Usage(format!("writing the message as JSON: {why}")))?;
        Ok(EventStream::of_message(self.clone(), request))
    }

    /// The key makes the request safe to repeat: the server replays its first answer.
    fn message(&self, url: Url, message: &SendMessage, stream: bool, key: &str) -> RequestBuilder {
        self.request(Method::POST, url).header("idempotency-key", key).json(&Body { message, stream })
    }
}
