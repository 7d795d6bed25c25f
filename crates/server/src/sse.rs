//! Event streams on the wire: `id` is the sequence number, a comment keeps the connection alive.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use karta_engine::Engine;
use karta_engine::data::journal::{Batch, flag, frames};
use karta_engine::data::stream::{Item, Reader};
use karta_types::event::HIDEABLE;
use karta_types::{Body as EventBody, Event, Seq, SessionId, TurnId};
use serde::Serialize;

/// How often a silent stream says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// What a reader wants to see beyond the plain events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Include {
    /// The harness's own lines.
    pub raw: bool,
    /// Events of these types where they are hidden: their flags.
    pub kinds: u32,
}

impl Include {
    /// From `?include=raw,system,reasoning`.
    ///
    /// # Errors
    /// A word that is neither `raw` nor a type that can be hidden.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut include = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            match word {
                "raw" => include.raw = true,
                kind if flag(kind) != 0 => include.kinds |= flag(kind),
                other => {
                    let can = HIDEABLE.map(|kind| format!("`{kind}`")).join(", ");
                    return Err(format!("`{other}` can't be included; `raw` and {can} can"));
                }
            }
        }
        Ok(include)
    }
}

/// The header by which a client says where it stopped reading.
pub(crate) const LAST_EVENT_ID: &str = "last-event-id";

/// Whether the caller wants an event stream.
pub(crate) fn wants_events(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|kind| kind.split(';').next().unwrap_or_default().trim() == "text/event-stream")
}

/// An event of a stream that is none of a session's.
pub(crate) struct Named(Bytes);

impl Named {
    /// With its type, its id if it has one, and its data as JSON on one line.
    pub(crate) fn new(kind: &str, id: Option<&str>, data: &impl Serialize) -> Self {
        let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
        let data = serde_json::to_string(data).unwrap_or_default();
        Self(format!("{id}event: {kind}\ndata: {data}\n\n").into())
    }
}

/// A stream of such events, kept alive while it is silent.
pub(crate) fn named(events: impl Stream<Item = Named> + Send + 'static) -> Response {
    let events = tokio_stream::StreamExt::timeout_repeating(events, tokio::time::interval(HEARTBEAT));
    let bytes = events.map(|event| {
        Ok::<_, std::io::Error>(event.map_or_else(|_| Bytes::from_static(b": alive\n\n"), |event| event.0))
    });
    event_stream(Body::from_stream(bytes))
}

/// A stream of a session's events. With `turn`, it ends after that turn's `done`.
pub fn stream(
    engine: &Engine,
    session: SessionId,
    reader: Reader,
    turn: Option<TurnId>,
    include: Include,
) -> Response {
    let pump = Pump { engine: engine.clone(), session, reader, turn, include, first: true, over: false };
    event_stream(Body::from_stream(pump.run()))
}

fn event_stream(body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Proxies that buffer would turn a stream into a delay.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Pump {
    engine: Engine,
    session: SessionId,
    reader: Reader,
    turn: Option<TurnId>,
    include: Include,
    first: bool,
    over: bool,
}

impl Pump {
    fn run(self) -> impl Stream<Item = Result<Bytes, std::io::Error>> {
        futures_util::stream::unfold(self, |mut pump| async move {
            let bytes = pump.next().await?;
            Some((Ok(bytes), pump))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        if std::mem::take(&mut self.first) && self.turn.is_none() {
            // Headers alone leave some clients waiting to know that they are connected.
            return Some(Bytes::from_static(b": connected\n\n"));
        }
        loop {
            let item = tokio::select! {
                biased;
                item = tokio::time::timeout(HEARTBEAT, self.reader.next()) => item,
                () = self.engine.tasks().stopping() => {
                    self.over = true;
                    return self.rest().await;
                }
            };
            match item {
                Err(_) => return Some(Bytes::from_static(b": alive\n\n")),
                Ok(Err(error)) => {
                    tracing::error!(error = error.chain(), session = %self.session, "reading the journal");
                    // The connection ends; the client comes back with its cursor.
                    return None;
                }
                Ok(Ok(item)) => {
                    let bytes = self.show(&item);
                    if !bytes.is_empty() {
                        return Some(bytes);
                    }
                    if self.over {
                        return None;
                    }
                }
            }
        }
    }

    /// The server stops: what the turns said at their end is still shown.
    async fn rest(&mut self) -> Option<Bytes> {
        let mut all = BytesMut::new();
        if !self.engine.is_alive(self.session) {
            return None;
        }
        let farewell = tokio::time::timeout(Duration::from_secs(2), async {
            while let Ok(item) = self.reader.next().await {
                all.extend_from_slice(&self.show(&item));
                let ended = item.events().any(|event| matches!(event.body, EventBody::Done { .. }));
                if ended {
                    break;
                }
            }
        });
        // Time is up: the client comes back with its cursor.
        let _ = farewell.await;
        (!all.is_empty()).then(|| all.freeze())
    }

    fn show(&mut self, item: &Item) -> Bytes {
        match item {
            Item::Gap { from, to } => gap(self.session, *from, *to),
            Item::Batch { batch, after } => {
                let bytes = self.batch(batch, *after);
                if let Some(turn) = self.turn
                    && batch.turn == Some(turn)
                {
                    self.over = item.events().any(|event| matches!(event.body, EventBody::Done { .. }));
                }
                bytes
            }
        }
    }

    fn batch(&self, batch: &Arc<Batch>, after: Seq) -> Bytes {
        let other_turn = self.turn.is_some() && batch.turn.is_some() && batch.turn != self.turn;
        if other_turn {
            return Bytes::new();
        }
        let hidden = batch.flags & !self.include.kinds;
        let add_raw = self.include.raw && batch.raw.is_some();
        if hidden == 0 && !add_raw {
            return batch.after(after);
        }
        let mut out = BytesMut::new();
        for frame in frames(&batch.frames).filter(|frame| frame.seq > after) {
            if flag(frame.kind) & hidden != 0 {
                continue;
            }
            match batch.raw.as_ref().filter(|_| add_raw).and_then(|raws| raw_of(raws, frame.seq)) {
                None => out.extend_from_slice(&batch.frames[frame.start..frame.end]),
                Some(raw) => {
                    // The envelope is one JSON object: its last byte is the brace that closes it.
                    let open = &frame.data[..frame.data.len() - 1];
                    out.extend_from_slice(
                        format!("id: {}\nevent: {}\ndata: ", frame.seq, frame.kind).as_bytes(),
                    );
                    out.extend_from_slice(open);
                    out.extend_from_slice(b",\"raw\":");
                    out.extend_from_slice(raw);
                    out.extend_from_slice(b"}\n\n");
                }
            }
        }
        out.freeze()
    }
}

fn raw_of(raws: &[u8], seq: Seq) -> Option<&[u8]> {
    let wanted = format!("{seq} ");
    raws.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(wanted.as_bytes()))
}

/// A `gap` is nobody's event: it carries the number of the last one missing, so that a reconnect goes on after it.
fn gap(session: SessionId, from: Seq, to: Seq) -> Bytes {
    let event = Event {
        seq: to,
        session_id: session,
        turn_id: None,
        timestamp: 0,
        source: "karta".to_owned(),
        body: EventBody::Gap { from_seq: from, to_seq: to },
        raw: None,
    };
    let data = serde_json::to_string(&event).unwrap_or_default();
    format!("id: {to}\nevent: gap\ndata: {data}\n\n").into()
}
