//! A server with one session whose turn plays a list of events, some of which wait until something was asked.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::watch;

pub(crate) const SESSION: &str = "sess_01jd0000000000000000000001";
pub(crate) const TURN: &str = "turn_01jd0000000000000000000001";
pub(crate) const ASK: &str = "req_01jd0000000000000000000001";
pub(crate) const KEY: &str = "kt_test_key";

/// A piece of the turn.
#[derive(Clone)]
pub(crate) enum Piece {
    /// An event of this type with this data.
    Event(&'static str, Value),
    /// Wait until a request line begins so.
    Until(String),
    /// Tear the connection; what follows comes when the events are asked for again.
    Tear,
}

#[derive(Clone)]
struct Stage {
    turn: Arc<Vec<Piece>>,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    lines: watch::Sender<Vec<String>>,
}

pub(crate) struct Fake {
    pub(crate) url: String,
    stage: Stage,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Fake {
    #[expect(clippy::disallowed_methods, reason = "the fake ends with its test")]
    pub(crate) async fn plays(turn: Vec<Piece>) -> Self {
        let stage =
            Stage { turn: Arc::new(turn), asked: Arc::default(), lines: watch::Sender::new(Vec::new()) };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(stage.clone());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, stage, server }
    }

    /// Request lines with their bodies.
    pub(crate) fn asked(&self) -> Vec<(String, Value)> {
        self.stage.asked.lock().unwrap().clone()
    }

    /// The body of the one request whose line begins so.
    pub(crate) fn body(&self, line: &str) -> Value {
        let asked = self.asked();
        let found: Vec<_> = asked.iter().filter(|(asked, _)| asked.starts_with(line)).collect();
        assert_eq!(found.len(), 1, "{line} in {asked:?}");
        found[0].1.clone()
    }

    pub(crate) async fn was_asked(&self, line: &str) {
        wait(&self.stage, line).await;
    }
}

async fn wait(stage: &Stage, begin: &str) {
    let mut lines = stage.lines.subscribe();
    lines.wait_for(|lines| lines.iter().any(|line| line.starts_with(begin))).await.unwrap();
}

async fn answer(State(stage): State<Stage>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let path = parts.uri.path().to_owned();
    let line = format!("{} {path}", parts.method);
    stage.asked.lock().unwrap().push((line.clone(), body));
    stage.lines.send_modify(|lines| lines.push(line.clone()));
    let authorized =
        parts.headers.get("authorization").is_some_and(|value| value == &format!("Bearer {KEY}"));
    let last = parts.headers.get("last-event-id").map_or(0, |id| id.to_str().unwrap().parse().unwrap());
    let page = |data: Value| json!({"data": data, "next_cursor": null});
    let end = path.rsplit('/').next().unwrap();
    match (parts.method.as_str(), end) {
        _ if !authorized => problem("unauthorized", 401),
        ("GET", "projects") => respond(200, &page(json!([project("support"), project("sales")]))),
        ("POST", "sessions") => respond(201, &session()),
        ("GET", SESSION) => respond(200, &session()),
        ("POST", "messages") | ("GET", "events") => play(stage, last),
        // The turn goes on elsewhere; this stream stays silent.
        ("PUT", ASK) => silence(),
        ("POST", "interrupt") => respond(200, &json!({"interrupted": true})),
        _ => problem("not_found", 404),
    }
}

/// The turn from after the event `last` to its end or its next tear.
fn play(stage: Stage, last: usize) -> Response {
    let mut start = 0;
    let mut seq = 0;
    while seq < last {
        seq += usize::from(matches!(stage.turn[start], Piece::Event(..)));
        start += 1;
    }
    // A tear that was seen already is not seen again.
    start += usize::from(matches!(stage.turn.get(start), Some(Piece::Tear)) && last > 0);
    let frames = stream::unfold((stage, start, seq), |(stage, mut at, mut seq)| async move {
        loop {
            let piece = stage.turn.get(at)?.clone();
            at += 1;
            match piece {
                Piece::Event(kind, data) => {
                    seq += 1;
                    return Some((Ok(frame(seq, kind, &data)), (stage, at, seq)));
                }
                Piece::Until(line) => wait(&stage, &line).await,
                Piece::Tear => {
                    tokio::task::yield_now().await;
                    at = stage.turn.len();
                    return Some((Err(std::io::Error::other("torn")), (stage, at, seq)));
                }
            }
        }
    });
    Response::builder().header("content-type", "text/event-stream").body(Body::from_stream(frames)).unwrap()
}

fn silence() -> Response {
    let body = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
}

fn respond(status: u16, value: &Value) -> Response {
    let kind = if status < 400 { "application/json" } else { "application/problem+json" };
    let body = Body::from(value.to_string());
    Response::builder().status(status).header("content-type", kind).body(body).unwrap()
}

fn problem(code: &str, status: u16) -> Response {
    let title = "As played";
    respond(
        status,
        &json!({"type": format!("/problems/{code}"), "title": title, "status": status, "error": code, "reason": code}),
    )
}

fn project(slug: &str) -> Value {
    json!({"id": "proj_01jd0000000000000000000001", "slug": slug, "name": slug, "active_release": null, "agents": [],
        "created_at": "2026-11-24T00:00:00Z"})
}

fn session() -> Value {
    json!({"id": SESSION, "project": {"id": "proj_01jd0000000000000000000001", "slug": "support", "version": 3},
        "status": "idle", "title": null, "metadata": {}, "current_agent": null, "participants": [],
        "pending_inputs": [], "pending_input": null, "permission_mode": "default", "release_pin": "turn",
        "isolation": "process", "end_user_id": null, "parent_id": null, "usage": usage(),
        "created_at": "2026-11-24T00:00:00Z", "updated_at": "2026-11-24T00:00:00Z", "expires_at": null})
}

fn frame(seq: usize, kind: &str, data: &Value) -> Bytes {
    let event = json!({"type": kind, "seq": seq, "session_id": SESSION, "turn_id": TURN,
        "timestamp": 1_795_478_656_129_i64, "source": "scripted", "data": data});
    Bytes::from(format!("id: {seq}\nevent: {kind}\ndata: {event}\n\n"))
}

fn usage() -> Value {
    json!({"input_tokens": 1200, "output_tokens": 34, "total_tokens": 1234, "cache_read_tokens": 0,
        "cache_write_tokens": 0, "cost_micros": 4200})
}

pub(crate) fn text(text: &str) -> Piece {
    Piece::Event("text", json!({"part": {"id": "p", "text": text}}))
}

pub(crate) fn done(status: &str, text: &str) -> Piece {
    Piece::Event(
        "done",
        json!({"status": status, "text": text, "usage": usage(), "cost_micros": 4200, "stop_reason": "end_turn",
            "duration_ms": 2500}),
    )
}

pub(crate) fn ask() -> Piece {
    Piece::Event(
        "input_required",
        json!({"request_id": ASK, "kind": "tool_use", "tool": "Bash", "tool_input": {"command": "rm -r build"},
            "message": "Bash wants to run", "options": ["approve_once", "approve_session", "deny"]}),
    )
}
