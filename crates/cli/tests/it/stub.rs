//! A server that answers what a test tells it to, and remembers what it was asked.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::sync::watch;

pub(crate) const KEY: &str = "kt_test_key";

/// One answer.
pub(crate) enum Answer {
    Json(u16, Value),
    /// An event stream of these frames that is torn after them.
    Torn(Vec<String>),
    /// An event stream of these frames that stays open.
    Open(Vec<String>),
    /// Nothing, for ever.
    Silence,
}

/// What was asked: `GET /v1/projects?limit=1`, and the body.
pub(crate) type Asked = (String, Bytes);

type Play = dyn Fn(&str, &[u8], usize) -> Answer + Send + Sync;

#[derive(Clone)]
struct Stage {
    play: Arc<Play>,
    asked: Arc<Mutex<Vec<Asked>>>,
    changed: watch::Sender<usize>,
}

pub(crate) struct Stub {
    pub(crate) url: String,
    stage: Stage,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Stub {
    /// `play` is told the request's line and how many of the same came before.
    pub(crate) async fn plays(play: impl Fn(&str, usize) -> Answer + Send + Sync + 'static) -> Self {
        Self::answers(move |line, _, before| play(line, before)).await
    }

    /// `play` is told the request's line, its body, and how many of the same line came before.
    #[expect(clippy::disallowed_methods, reason = "the stub ends with its test")]
    pub(crate) async fn answers(play: impl Fn(&str, &[u8], usize) -> Answer + Send + Sync + 'static) -> Self {
        let stage = Stage { play: Arc::new(play), asked: Arc::default(), changed: watch::Sender::new(0) };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(stage.clone());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, stage, server }
    }

    /// The lines that were asked.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.stage.asked.lock().unwrap().iter().map(|(line, _)| line.clone()).collect()
    }

    /// Waits until this was asked.
    pub(crate) async fn was_asked(&self, line: &str) {
        let mut changed = self.stage.changed.subscribe();
        changed.wait_for(|_| self.lines().iter().any(|asked| asked == line)).await.unwrap();
    }

    /// The bodies that came with this line.
    pub(crate) fn bodies(&self, line: &str) -> Vec<Bytes> {
        let asked = self.stage.asked.lock().unwrap();
        asked.iter().filter(|(asked, _)| asked == line).map(|(_, body)| body.clone()).collect()
    }
}

async fn answer(State(stage): State<Stage>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 16 << 20).await.unwrap();
    let line = format!("{} {}", parts.method, parts.uri);
    let before = {
        let mut asked = stage.asked.lock().unwrap();
        let before = asked.iter().filter(|(other, _)| *other == line).count();
        asked.push((line.clone(), body.clone()));
        before
    };
    stage.changed.send_modify(|number| *number += 1);
    if parts.headers.get("authorization").is_none_or(|value| value != &format!("Bearer {KEY}")) {
        return respond(401, &problem(401, "unauthorized"));
    }
    let frames = |frames: Vec<String>| stream::iter(frames.into_iter().map(|frame| Ok(Bytes::from(frame))));
    let streaming =
        |body| Response::builder().header("content-type", "text/event-stream").body(body).unwrap();
    match (stage.play)(&line, &body, before) {
        Answer::Json(status, value) => respond(status, &value),
        Answer::Torn(all) => {
            let torn = stream::once(async {
                tokio::task::yield_now().await;
                Err(std::io::Error::other("torn"))
            });
            streaming(Body::from_stream(frames(all).chain(torn)))
        }
        Answer::Open(all) => {
            streaming(Body::from_stream(frames(all).chain(stream::pending::<std::io::Result<_>>())))
        }
        Answer::Silence => std::future::pending().await,
    }
}

fn respond(status: u16, value: &Value) -> Response {
    let kind = if status < 400 { "application/json" } else { "application/problem+json" };
    let body = if status == 204 { Body::empty() } else { Body::from(value.to_string()) };
    Response::builder().status(status).header("content-type", kind).body(body).unwrap()
}

pub(crate) fn problem(status: u16, code: &str) -> Value {
    json!({"type": format!("/problems/{code}"), "title": "As played", "status": status, "error": code, "reason": code})
}

pub(crate) fn page(rows: &[Value]) -> Value {
    json!({"data": rows, "next_cursor": null})
}

/// What the server says of whatever a test does not think of.
pub(crate) fn not_found() -> Answer {
    Answer::Json(404, problem(404, "not_found"))
}

pub(crate) fn project(slug: &str, active: Option<u64>) -> Value {
    let active = active
        .map(|version| json!({"version": version, "id": "rel_01jd0000000000000000000001", "digest": "ab"}));
    json!({"id": "proj_01jd0000000000000000000001", "slug": slug, "name": "For people", "active_release": active, "canary": null,
        "agents": [], "created_at": "2026-11-24T00:00:00Z"})
}

pub(crate) fn release(version: u64, state: &str) -> Value {
    json!({"version": version, "id": "rel_01jd0000000000000000000001", "digest": "ab".repeat(32),
        "harness": {"type": "scripted", "version": "1.0.0"}, "agents": [], "skills": [], "commands": [], "hooks": [],
        "mcp_servers": [], "warnings": [], "policy": {}, "commit": "0123456789abcdef-dirty", "message": "why\u{1b}[2J not",
        "created_by": "system:karta", "size_bytes": 1234, "file_count": 2, "preview": null, "state": state, "error": null,
        "build_log_url": null, "created_at": "2026-11-24T12:30:00Z"})
}
