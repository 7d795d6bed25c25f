//! A program that serves HTTP as OpenCode does, as far as one turn with a question needs it.

#![expect(clippy::unused_async, reason = "handlers are asynchronous")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use karta_engine::sandbox::Exit;
use karta_engine::sandbox::fake::{Call, Program};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::sync::{Notify, broadcast, watch};

/// A server, and what the test may do to it. Clones are the same.
#[derive(Clone)]
pub(crate) struct Server(Arc<Inner>);

struct Inner {
    events: broadcast::Sender<String>,
    /// The agent's message as it is now: its fields and its parts.
    message: Mutex<(Value, Vec<Value>)>,
    /// Questions that are open.
    open: Mutex<Vec<Value>>,
    /// Is it to stop listening?
    deaf: Notify,
    /// Whether the turn is over.
    over: watch::Sender<bool>,
    /// Replies that came while nobody listened to the events.
    unheard: AtomicUsize,
    /// How often the events were asked for.
    streams: AtomicUsize,
    /// How often they are still to be refused.
    refused: AtomicUsize,
    /// How many replies came.
    replies: AtomicUsize,
}

impl Server {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            events: broadcast::Sender::new(64),
            message: Mutex::new((
                json!({"id": "msg_2", "sessionID": "ses_1", "role": "assistant", "parentID": "msg_1", "time": {"created": 1}}),
                Vec::new(),
            )),
            open: Mutex::default(),
            deaf: Notify::new(),
            over: watch::Sender::new(false),
            unheard: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            replies: AtomicUsize::new(0),
        }))
    }

    /// What plays the program.
    pub(crate) fn program(&self) -> Program {
        let server = self.clone();
        Arc::new(move |call| Box::pin(server.clone().run(call)))
    }

    async fn run(self, mut call: Call) -> Exit {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let said = format!("opencode server listening on http://{}\n", listener.local_addr().unwrap());
        call.stdout.write_all(said.as_bytes()).await.unwrap();
        let routes = Router::new()
            .route("/event", get(Self::stream))
            .route("/session", post(async || axum::Json(json!({"id": "ses_1"}))))
            .route("/session/{session}/prompt_async", post(Self::prompt))
            .route("/session/{session}/command", post(Self::command))
            .route("/session/{session}/message", get(Self::messages))
            .route("/session/{session}/abort", post(Self::abort))
            .route("/session/status", get(Self::status))
            .route("/permission", get(Self::permissions))
            .route("/permission/{request}/reply", post(Self::reply))
            .route("/question", get(async || axum::Json(json!([]))))
            .with_state(self.clone());
        tokio::select! {
            served = axum::serve(listener, routes) => served.unwrap(),
            () = self.0.deaf.notified() => {}
        }
        // It lives, and nobody can reach it.
        let _held = call;
        std::future::pending().await
    }

    /// From now on it takes no connection.
    pub(crate) fn go_deaf(&self) {
        self.0.deaf.notify_one();
    }

    /// The next so many times the events are asked for, they are refused.
    pub(crate) fn refuse(&self, times: usize) {
        self.0.refused.store(times, Ordering::SeqCst);
    }

    /// How many replies came while nobody listened to the events.
    pub(crate) fn unheard(&self) -> usize {
        self.0.unheard.load(Ordering::SeqCst)
    }

    /// How many replies came.
    pub(crate) fn replies(&self) -> usize {
        self.0.replies.load(Ordering::SeqCst)
    }

    /// How often the events were asked for.
    pub(crate) fn streams(&self) -> usize {
        self.0.streams.load(Ordering::SeqCst)
    }

    /// Says an event to whoever listens.
    pub(crate) fn tell(&self, kind: &str, properties: &Value) {
        let event = json!({"id": "evt_1", "type": kind, "properties": properties});
        // Nobody may listen.
        let _ = self.0.events.send(format!("data: {event}\n\n"));
    }

    /// Asks a person about a further call.
    pub(crate) fn ask(&self, request: &str, call: &str) {
        self.part(&tool(call, &json!({"status": "running", "input": {"command": call}})));
        let asked = json!({"id": request, "sessionID": "ses_1", "permission": "bash", "patterns": [call],
            "tool": {"messageID": "msg_2", "callID": call}});
        self.0.open.lock().unwrap().push(asked.clone());
        self.tell("permission.asked", &asked);
    }

    fn part(&self, part: &Value) {
        let mut part = part.clone();
        (part["sessionID"], part["messageID"]) = ("ses_1".into(), "msg_2".into());
        let mut message = self.0.message.lock().unwrap();
        message.1.retain(|known| known["id"] != part["id"]);
        message.1.push(part.clone());
        drop(message);
        self.tell("message.part.updated", &json!({ "part": part }));
    }

    fn message(&self, change: impl FnOnce(&mut Value)) {
        let mut message = self.0.message.lock().unwrap();
        change(&mut message.0);
        let info = message.0.clone();
        drop(message);
        self.tell("message.updated", &json!({ "info": info }));
    }

    fn begin(&self) {
        self.tell("message.updated", &json!({"info": {"id": "msg_1", "sessionID": "ses_1", "role": "user"}}));
        self.tell("session.status", &json!({"sessionID": "ses_1", "status": {"type": "busy"}}));
        self.message(|_| {});
        self.part(&json!({"id": "prt_1", "type": "text", "text": "before. "}));
        self.ask("per_1", "call_1");
    }

    fn end(&self) {
        self.message(|info| info["time"]["completed"] = 2.into());
        self.0.over.send_replace(true);
        self.tell("session.idle", &json!({"sessionID": "ses_1"}));
    }

    async fn stream(State(server): State<Self>) -> Result<Body, axum::http::StatusCode> {
        server.0.streams.fetch_add(1, Ordering::SeqCst);
        let refused = &server.0.refused;
        if refused.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |times| times.checked_sub(1)).is_ok() {
            return Err(axum::http::StatusCode::SERVICE_UNAVAILABLE);
        }
        // A slow one: whoever does not wait for the first word says things that nobody hears of.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let events = server.0.events.subscribe();
        let first =
            futures_util::stream::iter(["data: {\"type\":\"server.connected\",\"properties\":{}}\n\n"]);
        let rest = futures_util::stream::unfold(events, |mut events| async move {
            Some((Ok::<_, std::io::Error>(events.recv().await.ok()?), events))
        });
        Ok(Body::from_stream(futures_util::StreamExt::chain(
            futures_util::StreamExt::map(first, |line| Ok(line.to_owned())),
            rest,
        )))
    }

    async fn prompt(State(server): State<Self>) -> axum::http::StatusCode {
        server.begin();
        axum::http::StatusCode::NO_CONTENT
    }

    /// Is answered when the turn is over.
    async fn command(State(server): State<Self>) -> axum::Json<Value> {
        server.begin();
        server.0.over.subscribe().wait_for(|over| *over).await.unwrap();
        axum::Json(json!({}))
    }

    async fn messages(State(server): State<Self>) -> axum::Json<Value> {
        let (info, parts) = server.0.message.lock().unwrap().clone();
        axum::Json(json!([{"info": info, "parts": parts}]))
    }

    async fn status(State(server): State<Self>) -> axum::Json<Value> {
        let over = *server.0.over.borrow();
        axum::Json(if over { json!({}) } else { json!({"ses_1": {"type": "busy"}}) })
    }

    async fn permissions(State(server): State<Self>) -> axum::Json<Value> {
        axum::Json(Value::Array(server.0.open.lock().unwrap().clone()))
    }

    async fn abort(State(server): State<Self>) -> axum::Json<bool> {
        server.message(|info| info["error"] = json!({"name": "MessageAbortedError", "data": {}}));
        server.end();
        axum::Json(true)
    }

    async fn reply(
        State(server): State<Self>,
        Path(request): Path<String>,
        axum::Json(body): axum::Json<Value>,
    ) -> axum::Json<bool> {
        server.0.replies.fetch_add(1, Ordering::SeqCst);
        if server.0.events.receiver_count() == 0 {
            server.0.unheard.fetch_add(1, Ordering::SeqCst);
        }
        let (asked, last) = {
            let mut open = server.0.open.lock().unwrap();
            let Some(at) = open.iter().position(|asked| asked["id"] == request.as_str()) else {
                return axum::Json(false);
            };
            (open.remove(at), open.is_empty())
        };
        server.tell("permission.replied", &json!({"sessionID": "ses_1", "requestID": request}));
        let said = if body["reply"] == "reject" { "denied" } else { "approved" };
        let call = asked["tool"]["callID"].as_str().unwrap();
        server.part(&tool(call, &json!({"status": "completed", "input": {"command": call}, "output": said})));
        if last {
            server.part(&json!({"id": "prt_9", "type": "text", "text": said}));
            server.end();
        }
        axum::Json(true)
    }
}

fn tool(call: &str, state: &Value) -> Value {
    json!({"id": format!("prt_{call}"), "type": "tool", "tool": "bash", "callID": call, "state": state})
}
