//! Event streams that outlive their connections.
//!
//! A cut connection is taken up again with `Last-Event-ID`, so the caller sees each event once and none is missing; what the
//! server no longer has it says by a `gap` event. Before its first event the stream of a message is taken up by sending the same
//! POST with the same `Idempotency-Key`, which the server answers with the turn that already runs.

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use karta_types::{Body, ErrorCode, Event, Seq, SessionId, TurnId};
use reqwest::{Method, Request, Response};
use serde::Deserialize;

use crate::client::Client;
use crate::error::Error;
use crate::sse::{Decoder, Frame};

/// The longest event that is read, in bytes.
const MAX_EVENT: usize = 16 << 20;
const DOING: &str = "following the events";

/// Every type of event that [`Event`] can hold. Others come from a newer server and are passed over.
const KNOWN: &[&str] = &[
    "turn_start",
    "text",
    "reasoning",
    "tool_use",
    "tool_result",
    "step_start",
    "step_finish",
    "input_required",
    "input_resolved",
    "agent_changed",
    "system",
    "error",
    "gap",
    "done",
];

/// How the stream is opened while no event has been seen.
enum Opening {
    Message(Box<Request>),
    Events,
}

enum State {
    Cut,
    Connecting(BoxFuture<'static, Result<Response, Error>>),
    Open(BoxStream<'static, reqwest::Result<Bytes>>),
    /// Nothing can be read on; said once.
    Broken(Error),
    Ended,
}

/// A session's events, in order, each once. Ask with [`EventStream::next`].
pub struct EventStream {
    client: Client,
    opening: Opening,
    session: Option<SessionId>,
    /// Whether to end with one turn, and which, once known.
    one_turn: bool,
    turn: Option<TurnId>,
    cursor: Option<Seq>,
    state: State,
    /// Failed attempts since the server was last heard.
    failed: u32,
    decoder: Decoder,
    frames: VecDeque<Frame>,
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream")
            .field("session", &self.session)
            .field("turn", &self.turn)
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// All events of a session after `after` (all that are kept, from [`Seq::START`]), then live, for ever.
    pub fn events(&self, session: SessionId, after: Seq) -> EventStream {
        EventStream::new(self.clone(), Opening::Events, Some(session), Some(after))
    }

    /// The events of one turn from `after`; ends after the turn's `done`. If a `gap` event says that events are gone, the
    /// `done` may be among them: ask [`Client::turn`].
    pub fn turn_events(&self, session: SessionId, turn: TurnId, after: Seq) -> EventStream {
        let mut events = self.events(session, after);
        events.one_turn = true;
        events.turn = Some(turn);
        events
    }
}

impl EventStream {
    fn new(client: Client, opening: Opening, session: Option<SessionId>, cursor: Option<Seq>) -> Self {
        Self {
            client,
            opening,
            session,
            one_turn: false,
            turn: None,
            cursor,
            state: State::Cut,
            failed: 0,
            decoder: Decoder::new(MAX_EVENT),
            frames: VecDeque::new(),
        }
    }

    pub(crate) fn of_message(client: Client, request: Request) -> Self {
        let mut events = Self::new(client, Opening::Message(Box::new(request)), None, None);
        events.one_turn = true;
        events
    }

    /// The position of the last event that was given out: follow from here to see what comes after.
    pub fn cursor(&self) -> Seq {
        self.cursor.unwrap_or(Seq::START)
    }

    /// The session, once known.
    pub const fn session(&self) -> Option<SessionId> {
        self.session
    }

    /// The turn that is followed, once known.
    pub const fn turn(&self) -> Option<TurnId> {
        self.turn
    }

    /// Whether the connection is cut and being taken up again.
    pub const fn reconnecting(&self) -> bool {
        self.failed > 0
    }

    /// The next event; `None` after the turn's `done`. An error is the last thing a stream says.
    ///
    /// Safe to cancel: nothing is lost or sent twice when this is dropped and asked again.
    ///
    /// # Errors
    /// A refusal that repeating won't change, an answer that can't be read, or more failed attempts in a row than
    /// [`crate::Retry::attempts`].
    pub async fn next(&mut self) -> Option<Result<Event, Error>> {
        loop {
            while let Some(frame) = self.frames.pop_front() {
                match self.take(frame) {
                    Ok(None) => {}
                    Ok(Some(event)) => return Some(Ok(event)),
                    Err(error) => self.end(error),
                }
            }
            match &mut self.state {
                State::Ended => return None,
                State::Broken(_) => {
                    if let State::Broken(error) = std::mem::replace(&mut self.state, State::Ended) {
                        return Some(Err(error));
                    }
                }
                State::Cut => match self.connect() {
                    Ok(connecting) => self.state = State::Connecting(connecting),
                    Err(error) => self.end(error),
                },
                State::Connecting(connecting) => {
                    let connected = connecting.await;
                    match connected.and_then(event_stream) {
                        Ok(response) => {
                            self.decoder = Decoder::new(MAX_EVENT);
                            self.state = State::Open(response.bytes_stream().boxed());
                        }
                        Err(error) if self.worth_retrying(&error) => self.failed(),
                        Err(error) => self.end(error),
                    }
                }
                State::Open(bytes) => {
                    let chunk = tokio::time::timeout(self.client.retry.silence, bytes.next()).await;
                    if let Ok(Some(Ok(chunk))) = chunk {
                        let mut frames = Vec::new();
                        let broken = self.decoder.push(&chunk, &mut frames).err();
                        self.frames.extend(frames);
                        if let Some(broken) = broken {
                            // What was whole before the break still counts, but there is no way on.
                            self.state = State::Broken(Error::protocol(DOING, broken.to_string()));
                        }
                    } else if self.failed < self.client.retry.attempts {
                        self.failed();
                    } else {
                        let error = match chunk {
                            Ok(Some(Err(why))) => Error::transport(DOING, why),
                            Ok(_) => Error::protocol(DOING, "the server keeps closing the stream"),
                            Err(_) => Error::protocol(DOING, "the server says nothing"),
                        };
                        self.end(error);
                    }
                }
            }
        }
    }

    /// As a [`Stream`], for those who combine streams.
    pub fn into_stream(self) -> impl Stream<Item = Result<Event, Error>> + Send {
        stream::unfold(self, |mut events| async move {
            let item = events.next().await?;
            Some((item, events))
        })
    }

    fn end(&mut self, error: Error) {
        self.state = State::Broken(error);
        self.frames.clear();
    }

    fn failed(&mut self) {
        self.failed += 1;
        self.state = State::Cut;
    }

    fn worth_retrying(&self, error: &Error) -> bool {
        if self.failed >= self.client.retry.attempts {
            return false;
        }
        match (error, &self.opening, self.cursor) {
            // A refusal of the message itself is the caller's to judge; that an earlier attempt of ours still runs is not.
            (Error::Problem(problem), Opening::Message(_), None) => {
                self.failed > 0 && problem.error == ErrorCode::RequestInProgress
            }
            _ => error.retryable(),
        }
    }

    /// The request that opens the stream or takes it up, after the pause that is due.
    fn connect(&self) -> Result<BoxFuture<'static, Result<Response, Error>>, Error> {
        let request = match (&self.opening, self.session, self.cursor) {
            (Opening::Message(request), _, None) => request
                .try_clone()
                .ok_or_else(|| Error::Usage("the message can't be sent again".to_owned()))?,
            (_, Some(session), Some(cursor)) => {
                let url = self.client.url(&["sessions", &session.to_string(), "events"]);
                self.client
                    .request(Method::GET, url)
                    .header("accept", "text/event-stream")
                    .header("last-event-id", cursor.0)
                    .build()
                    .map_err(|why| Error::transport(DOING, why))?
            }
            (_, None, _) | (Opening::Events, _, None) => {
                return Err(Error::protocol(DOING, "the server did not say which session this is"));
            }
        };
        let doing = if self.cursor.is_none() { "sending the message" } else { DOING };
        let pause = self.failed.checked_sub(1).map(|attempt| self.client.retry.pause(attempt));
        let client = self.client.clone();
        Ok(async move {
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            client.execute(doing, request).await
        }
        .boxed())
    }

    /// Judges one frame: an event to give out, or nothing.
    fn take(&mut self, frame: Frame) -> Result<Option<Event>, Error> {
        self.failed = 0;
        let Frame::Event { data, .. } = frame else { return Ok(None) };
        let Some(event) = parse(&data)? else { return Ok(None) };
        let gap_end = match &event.body {
            Body::Gap { to_seq, .. } => Some(*to_seq),
            _ => None,
        };
        let end = gap_end.unwrap_or(event.seq).max(event.seq);
        // Seen already: the server may say more than was asked for. A gap may stand where its last missing event did.
        if self.cursor.is_some_and(|cursor| end <= cursor) {
            return Ok(None);
        }
        if *self.session.get_or_insert(event.session_id) != event.session_id {
            return Err(Error::protocol(DOING, "an event of another session came"));
        }
        self.cursor = Some(end);
        if self.one_turn && event.turn_id.is_some() {
            if self.turn.is_none() {
                self.turn = event.turn_id;
            }
            if self.turn != event.turn_id {
                return Ok(None);
            }
            if matches!(event.body, Body::Done { .. }) {
                self.state = State::Ended;
                self.frames.clear();
            }
        }
        Ok(Some(event))
    }
}

/// Whether what came is an event stream at all, and not a page of something in between.
fn event_stream(response: Response) -> Result<Response, Error> {
    let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.starts_with("text/event-stream") {
        return Ok(response);
    }
    Err(Error::Protocol {
        doing: DOING.to_owned(),
        reason: format!("the answer is `{kind}` and no event stream"),
        status: Some(response.status().as_u16()),
    })
}

/// Reads an event; `None` for a type this client doesn't know.
fn parse(data: &str) -> Result<Option<Event>, Error> {
    #[derive(Deserialize)]
    struct Unknown {
        #[serde(rename = "type")]
        kind: String,
    }
    match serde_json::from_str::<Event>(data) {
        Ok(event) => Ok(Some(event)),
        Err(why) => match serde_json::from_str::<Unknown>(data) {
            Ok(unknown) if !KNOWN.contains(&unknown.kind.as_str()) => Ok(None),
            _ => Err(Error::protocol(DOING, format!("an event can't be read: {why}"))),
        },
    }
}
