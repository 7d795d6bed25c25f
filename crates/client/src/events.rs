//! Event streams that outlive their connections.
//!
//! A cut connection is taken up again with `Last-Event-ID`, so the caller sees each event once and none is missing; what the
//! server no longer has it says by a `gap` event. Before its first event the stream of a message is taken up by sending the same
//! POST with the same `Idempotency-Key`, which the server answers with the turn that already runs.

use std::fmt;

use futures_util::{Stream, stream};
use karta_types::{Body, ErrorCode, Event, Seq, SessionId, TurnId};
use reqwest::{Method, Request};
use serde::Deserialize;

use crate::client::Client;
use crate::error::Error;
use crate::frames::{Ask, Frames};
use crate::sse::Frame;

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

/// What was seen, and so what is asked for next.
struct Place {
    opening: Opening,
    session: Option<SessionId>,
    /// Whether to end with one turn, and which, once known.
    one_turn: bool,
    turn: Option<TurnId>,
    cursor: Option<Seq>,
}

/// A session's events, in order, each once. Ask with [`EventStream::next`].
pub struct EventStream {
    place: Place,
    frames: Frames,
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream")
            .field("session", &self.place.session)
            .field("turn", &self.place.turn)
            .field("cursor", &self.place.cursor)
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
        events.place.one_turn = true;
        events.place.turn = Some(turn);
        events
    }
}

impl EventStream {
    fn new(client: Client, opening: Opening, session: Option<SessionId>, cursor: Option<Seq>) -> Self {
        let place = Place { opening, session, one_turn: false, turn: None, cursor };
        Self { place, frames: Frames::new(client) }
    }

    pub(crate) fn of_message(client: Client, request: Request) -> Self {
        let mut events = Self::new(client, Opening::Message(Box::new(request)), None, None);
        events.place.one_turn = true;
        events
    }

    /// The position of the last event that was given out: follow from here to see what comes after.
    pub fn cursor(&self) -> Seq {
        self.place.cursor.unwrap_or(Seq::START)
    }

    /// The session, once known.
    pub const fn session(&self) -> Option<SessionId> {
        self.place.session
    }

    /// The turn that is followed, once known.
    pub const fn turn(&self) -> Option<TurnId> {
        self.place.turn
    }

    /// Whether the connection is cut and being taken up again.
    pub const fn reconnecting(&self) -> bool {
        self.frames.reconnecting()
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
            let taken = match self.frames.next(&mut self.place).await? {
                Ok(frame) => self.place.take(frame),
                Err(error) => Err(error),
            };
            match taken {
                Ok(None) => {}
                Ok(Some(event)) => {
                    if self.place.one_turn && matches!(event.body, Body::Done { .. }) {
                        self.frames.end();
                    }
                    return Some(Ok(event));
                }
                Err(error) => {
                    self.frames.end();
                    return Some(Err(error));
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
}

impl Ask for Place {
    fn doing(&self) -> &'static str {
        if self.cursor.is_none() { "sending the message" } else { DOING }
    }

    fn request(&mut self, client: &Client) -> Result<Request, Error> {
        match (&self.opening, self.session, self.cursor) {
            (Opening::Message(request), _, None) => {
                request.try_clone().ok_or_else(|| Error::Usage("the message can't be sent again".to_owned()))
            }
            (_, Some(session), Some(cursor)) => client
                .request(Method::GET, client.url(&["sessions", &session.to_string(), "events"]))
                .header("accept", "text/event-stream")
                .header("last-event-id", cursor.0)
                .build()
                .map_err(|why| Error::transport(DOING, why)),
            (_, None, _) | (Opening::Events, _, None) => {
                Err(Error::protocol(DOING, "the server did not say which session this is"))
            }
        }
    }

    fn again(&self, error: &Error, failed: u32) -> bool {
        match (error, &self.opening, self.cursor) {
            // A refusal of the message itself is the caller's to judge; that an earlier attempt of ours still runs is not.
            (Error::Problem(problem), Opening::Message(_), None) => {
                failed > 0 && problem.error == ErrorCode::RequestInProgress
            }
            _ => error.retryable(),
        }
    }
}

impl Place {
    /// Judges one frame: an event to give out, or nothing.
    fn take(&mut self, frame: Frame) -> Result<Option<Event>, Error> {
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
        }
        Ok(Some(event))
    }
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
