//! Sessions: make, read, list, change, erase.

use std::collections::BTreeMap;

use karta_types::SessionId;
use karta_types::page::Page;
use karta_types::session::{Isolation, Participant, PermissionMode, ReleasePin, Session, SessionStatus};
use reqwest::Method;
use serde::Serialize;
use serde_json::Value;

use crate::client::{Client, append};
use crate::error::Error;

/// What a new session is made with. What is absent is the server's default.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CreateSession {
    /// The project, by id or slug; may be absent where the server has one alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Resume this session instead of making one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// Your own labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, Value>,
    /// A name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The agent that takes the first message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Your own user this session is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_user_id: Option<String>,
    /// Who takes part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub participants: Vec<Participant>,
    /// When a tool call needs a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permission_mode: Option<PermissionMode>,
    /// Which release its turns run on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release_pin: Option<ReleasePin>,
    /// The weakest isolation you accept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
}

/// What to change of a session. What is absent stays.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PatchSession {
    /// A name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// All labels anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, Value>>,
    /// Hand over to this agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_agent: Option<String>,
    /// When a tool call needs a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permission_mode: Option<PermissionMode>,
    /// Everyone who takes part anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub participants: Option<Vec<Participant>>,
}

/// Which sessions to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct SessionFilter {
    /// Of this project, by id or slug.
    pub project: Option<String>,
    /// That stand so.
    pub status: Option<SessionStatus>,
    /// Of this user of yours.
    pub end_user_id: Option<String>,
    /// With these labels.
    pub metadata: BTreeMap<String, String>,
    /// At most so many; the server caps it.
    pub limit: Option<u32>,
    /// From where the last page ended.
    pub cursor: Option<String>,
}

impl Client {
    /// What a session reached outside and what was refused, and the rules that it would need.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn egress(&self, session: SessionId) -> Result<karta_types::egress::Record, Error> {
        let url = self.url(&["sessions", &session.to_string(), "egress"]);
        self.json("reading what a session reached", self.request(Method::GET, url)).await
    }

    /// Makes a session, or resumes the one that `session_id` names.
    ///
    /// # Errors
    /// The server's refusal, or the way there or back failing.
    pub async fn create_session(&self, session: &CreateSession) -> Result<Session, Error> {
        let request = self
            .request(Method::POST, self.url(&["sessions"]))
            .header("idempotency-key", self.idempotency_key())
            .json(session);
        self.json("making a session", request).await
    }

    /// Reads a session.
    ///
    /// # Errors
    /// See [`Client::create_session`].
    pub async fn session(&self, session: SessionId) -> Result<Session, Error> {
        let url = self.url(&["sessions", &session.to_string()]);
        self.json("reading the session", self.request(Method::GET, url)).await
    }

    /// Lists sessions, newest first.
    ///
    /// # Errors
    /// See [`Client::create_session`].
    pub async fn sessions(&self, filter: &SessionFilter) -> Result<Page<Session>, Error> {
        let mut url = self.url(&["sessions"]);
        append(
            &mut url,
            &[
                ("project", filter.project.clone()),
                ("status", filter.status.map(|status| status.as_str().to_owned())),
                ("end_user_id", filter.end_user_id.clone()),
                ("limit", filter.limit.map(|limit| limit.to_string())),
                ("cursor", filter.cursor.clone()),
            ],
        );
        for (name, value) in &filter.metadata {
            append(&mut url, &[(&format!("metadata.{name}"), Some(value.clone()))]);
        }
        self.json("listing sessions", self.request(Method::GET, url)).await
    }

    /// Changes a session.
    ///
    /// # Errors
    /// See [`Client::create_session`].
    pub async fn patch_session(&self, session: SessionId, patch: &PatchSession) -> Result<Session, Error> {
        let url = self.url(&["sessions", &session.to_string()]);
        self.json("changing the session", self.request(Method::PATCH, url).json(patch)).await
    }

    /// Tears a session down and erases what the harness kept of it.
    ///
    /// # Errors
    /// See [`Client::create_session`].
    pub async fn delete_session(&self, session: SessionId) -> Result<(), Error> {
        let url = self.url(&["sessions", &session.to_string()]);
        self.send("erasing the session", self.request(Method::DELETE, url)).await.map(drop)
    }
}
