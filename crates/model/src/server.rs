//! The server.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::play::json as answer;
use crate::script::{Rule, Step, Turn, choose};
use crate::{anthropic, chat, responses};

/// Requests that are remembered.
const REMEMBERED: usize = 1000;
/// The largest request.
const MAX_BODY: usize = 64 << 20;

/// How to serve.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The port; absent takes any.
    pub port: Option<u16>,
    /// What to say to words without a script.
    pub rules: Vec<Rule>,
    /// The only key that is taken; absent takes any.
    pub required_key: Option<String>,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Its path.
    pub path: String,
    /// Its headers, as they came.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Value,
}

impl Recorded {
    /// The credential it came with.
    pub fn key(&self) -> Option<&str> {
        key(&self.headers)
    }
}

#[derive(Default)]
struct Shared {
    options: Options,
    requests: Mutex<VecDeque<Recorded>>,
    failures: Mutex<HashMap<String, u32>>,
    counter: AtomicU64,
}

/// A server that runs. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Server {
    /// Starts to serve on loopback.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn start(options: Options) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", options.port.unwrap_or(0))).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { options, ..Shared::default() });
        let router = Router::new().fallback(serve).with_state(shared.clone());
        #[expect(clippy::disallowed_methods, reason = "ends with the server: shutdown and drop abort it")]
        let task = tokio::spawn(async move {
            // It ends by being aborted; an error before that shows at the next request.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, shared, task })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The last requests, oldest first.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Stops.
    pub async fn shutdown(mut self) {
        self.task.abort();
        // Aborted is what it was to be.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn key(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    text("x-api-key").or_else(|| text("authorization").map(|value| value.trim_start_matches("Bearer ")))
}

/// What differs between the shapes.
struct Shape {
    turns: fn(&Value) -> Vec<Turn>,
    helper: fn(&Value) -> bool,
    play: fn(&Step, crate::script::Usage, &Value, &str, bool) -> Response,
    error: fn(u16, Option<&str>) -> Value,
}

const ANTHROPIC: Shape = Shape {
    turns: anthropic::turns,
    helper: anthropic::helper,
    play: anthropic::play,
    error: anthropic::error,
};
const CHAT: Shape = Shape { turns: chat::turns, helper: chat::helper, play: chat::play, error: chat::error };
const RESPONSES: Shape =
    Shape { turns: responses::turns, helper: |_| false, play: responses::play, error: chat::error };

async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let body = to_bytes(body, MAX_BODY).await.unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    shared.remember(Recorded { path: path.clone(), headers: parts.headers.clone(), body: body.clone() });
    let number = shared.counter.fetch_add(1, Ordering::Relaxed) + 1;
    let id = format!("{number:06}");
    let mut response = route(&shared, &parts.method, &path, &parts.headers, &body, &id).await;
    if let Ok(value) = HeaderValue::from_str(&format!("scripted_{id}")) {
        response.headers_mut().insert("request-id", value);
    }
    response
}

async fn route(
    shared: &Shared,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    body: &Value,
    id: &str,
) -> Response {
    let shape = match (method, path) {
        (&Method::POST, "/v1/messages") => ANTHROPIC,
        (&Method::POST, "/v1/chat/completions") => CHAT,
        (&Method::POST, "/v1/responses") => RESPONSES,
        (&Method::POST, "/v1/messages/count_tokens") => {
            let tokens = body.to_string().len() / 4;
            return answer(200, &json!({ "input_tokens": tokens }));
        }
        (&Method::GET, "/v1/models") => {
            return answer(
                200,
                &json!({"object": "list", "data": [{"id": "scripted-1", "object": "model"}]}),
            );
        }
        _ => return answer(404, &anthropic::error(404, None)),
    };
    if shared.options.required_key.as_deref().is_some_and(|required| key(headers) != Some(required)) {
        return answer(401, &(shape.error)(401, None));
    }
    let (step, words, index) = choose(&(shape.turns)(body), &shared.options.rules, (shape.helper)(body));
    if step.delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(step.delay_ms)).await;
    }
    let faulty = shared.faulty(&step, &words, index);
    if let Some(status) = step.status.filter(|_| faulty) {
        let mut response = answer(status, &(shape.error)(status, step.message.as_deref()));
        if let Some(seconds) = step.retry_after {
            response.headers_mut().insert("retry-after", HeaderValue::from(seconds));
        }
        return response;
    }
    (shape.play)(&step, step.used(&words), body, id, faulty)
}

impl Shared {
    fn remember(&self, request: Recorded) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() == REMEMBERED {
            requests.pop_front();
        }
        requests.push_back(request);
    }

    /// Whether the step's fault happens this time.
    fn faulty(&self, step: &Step, words: &str, index: usize) -> bool {
        let Some(times) = step.times else { return true };
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() > REMEMBERED {
            failures.clear();
        }
        let seen = failures.entry(format!("{index}:{words}")).or_default();
        *seen += 1;
        *seen <= times
    }
}
