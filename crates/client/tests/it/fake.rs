//! A server that plays a list of answers, one per request, and remembers what was asked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use karta_client::{Client, Retry};
use karta_types::Secret;
use serde_json::{Value, json};

pub(crate) const SESSION: &str = "sess_01jd0000000000000000000001";
pub(crate) const TURN: &str = "turn_01jd0000000000000000000001";
pub(crate) const OTHER_TURN: &str = "turn_01jd0000000000000000000002";

/// One answer.
pub(crate) enum Play {
    Json(u16, Value),
    Text(u16, &'static str),
    /// An event stream that is closed in good order after these bytes.
    Stream(String),
    /// An event stream whose connection is torn after these bytes.
    Torn(String),
    /// An event stream that stays open and silent after these bytes.
    Silent(String),
}

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
    /// The body as it came.
    pub(crate) raw: Bytes,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

#[derive(Clone, Default)]
struct Stage {
    plays: Arc<Mutex<VecDeque<Play>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

pub(crate) struct Fake {
    pub(crate) client: Client,
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
    pub(crate) async fn plays(plays: impl IntoIterator<Item = Play>) -> Self {
        let stage = Stage { plays: Arc::new(Mutex::new(plays.into_iter().collect())), ..Stage::default() };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(stage.clone());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let retry = Retry {
            attempts: 3,
            first: Duration::from_millis(1),
            most: Duration::from_millis(2),
            silence: Duration::from_secs(30),
        };
        let client = Client::new(&url, Secret::new("kt_test_key".to_owned())).unwrap().with_retry(retry);
        Self { client, stage, server }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.stage.asked.lock().unwrap().clone()
    }
}

async fn answer(State(stage): State<Stage>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    stage.asked.lock().unwrap().push(Asked {
        line: format!("{} {}", parts.method, parts.uri),
        headers: parts.headers,
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        raw: body,
    });
    let play = stage.plays.lock().unwrap().pop_front();
    let answer = |status: u16, kind: &str, body: Body| {
        let status = StatusCode::from_u16(status).unwrap();
        Response::builder().status(status).header("content-type", kind).body(body).unwrap()
    };
    let whole = |text: String| futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from(text))]);
    match play {
        None => answer(500, "text/plain", Body::from("the play is over")),
        Some(Play::Json(204, _)) => answer(204, "text/plain", Body::empty()),
        Some(Play::Json(status, value)) => {
            let kind = if status < 400 { "application/json" } else { "application/problem+json" };
            answer(status, kind, Body::from(value.to_string()))
        }
        Some(Play::Text(status, text)) => answer(status, "text/html", Body::from(text)),
        Some(Play::Stream(text)) => answer(200, "text/event-stream", Body::from(text)),
        Some(Play::Torn(text)) => {
            use futures_util::StreamExt as _;
            // Pending once, so that what stands before the tear is written out.
            let torn = futures_util::stream::once(async {
                tokio::task::yield_now().await;
                Err(std::io::Error::other("torn"))
            });
            answer(200, "text/event-stream", Body::from_stream(whole(text).chain(torn)))
        }
        Some(Play::Silent(text)) => {
            use futures_util::StreamExt as _;
            answer(
                200,
                "text/event-stream",
                Body::from_stream(whole(text).chain(futures_util::stream::pending())),
            )
        }
    }
}

/// An event as a frame of the stream.
pub(crate) fn frame(seq: u64, turn: &str, kind: &str, data: &Value) -> String {
    let event = json!({
        "type": kind, "seq": seq, "session_id": SESSION, "turn_id": turn, "timestamp": 1_795_478_656_129_i64,
        "source": "scripted", "data": data,
    });
    format!("id: {seq}\nevent: {kind}\ndata: {event}\n\n")
}

pub(crate) fn text(seq: u64, text: &str) -> String {
    frame(seq, TURN, "text", &json!({"part": {"id": "p1", "text": text}}))
}

pub(crate) fn done(seq: u64, turn: &str) -> String {
    let usage = json!({"input_tokens": 1, "output_tokens": 2, "total_tokens": 3, "cache_read_tokens": 0,
        "cache_write_tokens": 0, "cost_micros": 4});
    let data = json!({"status": "completed", "text": "…", "usage": usage, "cost_micros": 4,
        "stop_reason": "end_turn", "duration_ms": 5});
    frame(seq, turn, "done", &data)
}

pub(crate) fn problem(code: karta_types::ErrorCode) -> Play {
    Play::Json(code.status(), serde_json::to_value(karta_types::Problem::new(code, "as played")).unwrap())
}
