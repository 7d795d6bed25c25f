//! The journal of one session: events become batches of ready-made SSE frames, and those are the currency of everything after.
//!
//! A batch is written once, sealed, and shown byte for byte to everybody who reads the native stream, live or later. Only readers
//! that want something else (adapters, the fold, `?include=raw`) look inside.

use std::io::Write as _;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use karta_store::Chunk;
use karta_types::event::HIDEABLE;
use karta_types::{Body, Event, Seq, SessionId, Timestamp, TurnId};
use tokio::sync::broadcast;

/// The flag of a type of event that can be hidden; 0 if it can't be. Flags are kept with batches: the list only grows at its end.
pub fn flag(kind: &str) -> u32 {
    HIDEABLE.iter().position(|name| *name == kind).map_or(0, |place| 1 << place)
}

/// Batches that a slow reader may be behind before it reads from the store instead.
const LIVE: usize = 64;

/// Consecutive events of one session, as SSE frames.
#[derive(Debug)]
pub struct Batch {
    /// The turn they belong to.
    pub turn: Option<TurnId>,
    /// The first.
    pub first: Seq,
    /// The last.
    pub last: Seq,
    /// The frames: `id:`, `event:`, `data:` and an empty line for each.
    pub frames: Bytes,
    /// For events that a harness's own line is kept of: the sequence number, a space, the line as JSON.
    pub raw: Option<Bytes>,
    /// The flags of its events that are hidden from plain readers: see [`flag`].
    pub flags: u32,
    events: OnceLock<Vec<Event>>,
}

impl Batch {
    /// The events, read from the frames unless they were just written.
    pub fn events(&self) -> &[Event] {
        self.events.get_or_init(|| {
            frames(&self.frames).filter_map(|frame| serde_json::from_slice(frame.data).ok()).collect()
        })
    }

    /// The frames after `cursor`.
    pub fn after(&self, cursor: Seq) -> Bytes {
        if cursor < self.first {
            return self.frames.clone();
        }
        frames(&self.frames)
            .find(|frame| frame.seq > cursor)
            .map_or_else(Bytes::new, |frame| self.frames.slice(frame.start..))
    }

    /// As the store keeps it.
    pub fn to_chunk(&self) -> Chunk {
        Chunk {
            turn: self.turn,
            first: self.first,
            last: self.last,
            frames: self.frames.clone(),
            raw: self.raw.clone(),
            flags: self.flags,
        }
    }
}

impl From<Chunk> for Batch {
    fn from(chunk: Chunk) -> Self {
        Self {
            turn: chunk.turn,
            first: chunk.first,
            last: chunk.last,
            frames: chunk.frames,
            raw: chunk.raw,
            flags: chunk.flags,
            events: OnceLock::new(),
        }
    }
}

/// One frame within a batch.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// Where it starts.
    pub start: usize,
    /// Where it ends, its empty line included.
    pub end: usize,
    /// Its event's position.
    pub seq: Seq,
    /// Its event's type.
    pub kind: &'a str,
    /// The envelope, JSON on one line.
    pub data: &'a [u8],
}

/// The frames of a batch. Only we write them, so a form that is not ours ends the iteration.
pub fn frames(bytes: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(at..)?;
        let mut lines = rest.splitn(4, |&byte| byte == b'\n');
        let seq = std::str::from_utf8(lines.next()?.strip_prefix(b"id: ")?).ok()?.parse().ok()?;
        let kind = std::str::from_utf8(lines.next()?.strip_prefix(b"event: ")?).ok()?;
        let line = lines.next()?;
        let data = line.strip_prefix(b"data: ")?;
        let start = at;
        let head = line.as_ptr() as usize - rest.as_ptr() as usize;
        at += head + line.len() + 2;
        Some(Frame { start, end: at, seq: Seq(seq), kind, data })
    })
}

/// Writes the journal of a session that this process owns: it alone numbers its events.
#[derive(Debug)]
pub struct Writer {
    session: SessionId,
    session_text: String,
    /// The last event written.
    pub head: Seq,
    source: &'static str,
    hidden: u32,
}

impl Writer {
    /// Goes on after `head`; what the harness says is marked with `source`.
    pub fn new(session: SessionId, head: Seq, source: &'static str) -> Self {
        Self { session, session_text: session.to_string(), head, source, hidden: flag("system") }
    }

    /// These types of events are hidden from now on, beside `system`.
    pub fn hide(&mut self, kinds: &[String]) {
        self.hidden = kinds.iter().fold(flag("system"), |hidden, kind| hidden | flag(kind));
    }

    /// The harness changed.
    pub const fn set_source(&mut self, source: &'static str) {
        self.source = source;
    }

    /// Makes a batch of these bodies. The head moves on: the batch must be committed or the writer dropped.
    pub fn encode(
        &mut self,
        now: Timestamp,
        turn: Option<TurnId>,
        bodies: Vec<(Body, Option<Bytes>)>,
    ) -> Option<Batch> {
        let first = self.head.next();
        let turn_text = turn.map_or_else(|| "null".to_owned(), |turn| format!("\"{turn}\""));
        let timestamp = now.as_millis();
        let mut out = Vec::with_capacity(bodies.len() * 256);
        let mut raws = Vec::new();
        let mut flags = 0;
        let mut events = Vec::with_capacity(bodies.len());
        for (body, raw) in bodies {
            self.head = self.head.next();
            let (seq, kind) = (self.head, body.kind());
            let source = match body {
                Body::Text { .. }
                | Body::Reasoning { .. }
                | Body::ToolUse { .. }
                | Body::ToolResult { .. }
                | Body::StepStart { .. }
                | Body::StepFinish { .. }
                | Body::InputRequired(_) => self.source,
                _ => "karta",
            };
            flags |= flag(kind) & self.hidden;
            // The envelope is written around the body's own `"type":…,"data":…` instead of through serde's flatten, which
            // would buffer every value: this is the hottest line of the platform.
            let _ = write!(
                out,
                "id: {seq}\nevent: {kind}\ndata: {{\"seq\":{seq},\"session_id\":\"{}\",\"turn_id\":{turn_text},\
                 \"timestamp\":{timestamp},\"source\":\"{source}\",",
                self.session_text,
            );
            let brace = out.len();
            if serde_json::to_writer(&mut out, &body).is_err() {
                // Bodies are plain data; there is nothing in them that JSON can't say.
                debug_assert!(false, "a body that is no JSON");
            }
            out.remove(brace);
            out.extend_from_slice(b"\n\n");
            if let Some(raw) = raw {
                let _ = write!(raws, "{seq} ");
                if serde_json::from_slice::<&serde_json::value::RawValue>(&raw).is_ok()
                    && !raw.contains(&b'\n')
                {
                    raws.extend_from_slice(&raw);
                } else {
                    let _ = serde_json::to_writer(&mut raws, &String::from_utf8_lossy(&raw));
                }
                raws.push(b'\n');
            }
            events.push(Event {
                seq,
                session_id: self.session,
                turn_id: turn,
                timestamp,
                source: source.to_owned(),
                body,
                raw: None,
            });
        }
        (self.head >= first).then(|| Batch {
            turn,
            first,
            last: self.head,
            frames: out.into(),
            raw: (!raws.is_empty()).then(|| raws.into()),
            flags,
            events: OnceLock::from(events),
        })
    }
}

/// Where a session's new batches are announced. Exists while somebody writes or reads.
#[derive(Debug)]
pub struct Live(broadcast::Sender<Arc<Batch>>);

impl Default for Live {
    fn default() -> Self {
        Self(broadcast::Sender::new(LIVE))
    }
}

impl Live {
    /// Shows a batch, which was committed before, to everybody who follows.
    pub fn show(&self, batch: Arc<Batch>) {
        // Nobody follows: that is no error.
        let _ = self.0.send(batch);
    }

    /// Follows from now on.
    pub fn follow(&self) -> broadcast::Receiver<Arc<Batch>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karta_types::event::Chunk;

    #[test]
    fn frames_read_back_as_the_events_they_were() {
        let session = SessionId::from_u128(7);
        let mut writer = Writer::new(session, Seq(4), "scripted");
        let text = |text: &str| Body::Text {
            part: Chunk { id: "p".into(), text: text.into(), discarded: false },
            parent_tool_use_id: None,
        };
        let bodies =
            vec![(text("one\n\ntwo"), Some(Bytes::from_static(b"not json"))), (text("é\u{2028}"), None)];
        let batch = writer.encode(Timestamp::from_micros(5_000_000), None, bodies).unwrap();
        assert_eq!((batch.first, batch.last, writer.head), (Seq(5), Seq(6), Seq(6)));
        let read = Batch::from(batch.to_chunk());
        assert_eq!(read.events(), batch.events());
        assert_eq!(batch.after(Seq(4)), batch.frames);
        assert_eq!(frames(&batch.after(Seq(5))).count(), 1);
        assert!(batch.after(Seq(6)).is_empty());
        assert_eq!(batch.raw.unwrap(), "5 \"not json\"\n".as_bytes());
    }
}
