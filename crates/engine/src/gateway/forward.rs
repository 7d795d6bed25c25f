//! One call: out with the provider's key, back byte for byte, and what it used on record before its last bytes are passed on.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use karta_types::ModelCallId;
use serde_json::Value;

use super::provider::{Dialect, Provider, Route, Seen};
use super::server::{MAX_BODY, refuse};
use super::sse::Watcher;
use super::{Call, Channel, Shared, Trouble, Used};

/// An answer that is no stream is looked into up to this size.
const MAX_ANSWER: usize = 32 << 20;

/// Request headers that are passed on to every provider. Everything else, credentials and cookies first, stays here.
const PASSED: &[&str] =
    &["content-type", "accept", "user-agent", "x-claude-code-session-id", "x-session-id", "session-id"];
/// Answer headers that are passed back, beside those that begin with `anthropic-` or `x-ratelimit-`.
const RETURNED: &[&str] = &[
    "content-type",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "request-id",
    "x-request-id",
    "cache-control",
];

pub(super) async fn forward(
    provider: Provider,
    route: Route,
    shared: &Arc<Shared>,
    channel: Arc<dyn Channel>,
    request: Request,
) -> Response {
    let dialect = provider.dialect();
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return refuse(provider, 413, "request_too_large", "the request is larger than 32 MiB");
    };
    let Ok(asked) = serde_json::from_slice::<Value>(&body) else {
        return refuse(provider, 400, "invalid_request_error", "the request's body is not JSON");
    };
    let Some(upstream) = shared.config.upstreams.iter().find(|upstream| upstream.provider == provider) else {
        let message = format!("this server has no key for {}; set it and try again", provider.as_str());
        return refuse(provider, 401, "authentication_error", &message);
    };
    let call = Call {
        id: ModelCallId::new(&*shared.clock, &*shared.rng),
        provider,
        model: asked.get("model").and_then(Value::as_str).unwrap_or_default().chars().take(200).collect(),
        streaming: asked.get("stream").and_then(Value::as_bool).unwrap_or(false),
        at: shared.clock.now(),
    };
    if route.metered
        && let Err(refused) = channel.admit(&call).await
    {
        return refuse(provider, 402, "budget_exhausted", &refused.detail);
    }
    let mut headers = passed_headers(&parts.headers, dialect);
    if dialect.authorize(&mut headers, &upstream.key).is_err() {
        return refuse(provider, 401, "authentication_error", "the provider key of this server is not one");
    }
    let body = dialect.prepare(route.path, &asked).unwrap_or(body);
    let url = match parts.uri.query() {
        Some(query) => format!("{}{}?{query}", upstream.base_url, route.path),
        None => format!("{}{}", upstream.base_url, route.path),
    };
    let sent = shared.client.post(url).headers(headers).body(body).send().await;
    match sent {
        Ok(answer) => pass_back(provider, route, shared, channel, call, answer),
        Err(error) => {
            // The URL stays out of the message: it may be an internal one.
            let error = error.without_url();
            let why = if error.is_timeout() { "did not answer in time" } else { "can't be reached" };
            channel.trouble(&call, Trouble::Broken(crate::error::chain(&error)));
            let message = format!("the model provider {why}");
            refuse(provider, if error.is_timeout() { 504 } else { 502 }, "api_error", &message)
        }
    }
}

fn passed_headers(given: &HeaderMap, dialect: &dyn Dialect) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in PASSED.iter().chain(dialect.passed()) {
        for value in given.get_all(*name) {
            headers.append(HeaderName::from_static(name), value.clone());
        }
    }
    // Usage is read from the answer as it passes: it must not be compressed.
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

fn pass_back(
    provider: Provider,
    route: Route,
    shared: &Arc<Shared>,
    channel: Arc<dyn Channel>,
    call: Call,
    answer: reqwest::Response,
) -> Response {
    let status = answer.status();
    let headers = returned_headers(answer.headers(), status);
    if !status.is_success() {
        channel.trouble(&call, Trouble::Status(status.as_u16()));
    }
    let is_stream = answer
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.starts_with("text/event-stream"));
    let metered = route.metered && status.is_success();
    let watch = Watch {
        shared: shared.clone(),
        channel,
        call,
        provider,
        seen: Seen::default(),
        events: Watcher::default(),
        whole: (!is_stream).then(Vec::new),
        settled: !metered,
    };
    let body = Body::from_stream(watched(answer.bytes_stream(), watch));
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn returned_headers(given: &HeaderMap, status: StatusCode) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let text = name.as_str();
        let known = RETURNED.contains(&text)
            || text.starts_with("anthropic-ratelimit-")
            || text.starts_with("x-ratelimit-");
        if known {
            headers.append(name.clone(), value.clone());
        }
    }
    // Without a word on it some clients try a refused key again for minutes.
    if matches!(status.as_u16(), 401 | 403) {
        headers.entry("x-should-retry").or_insert(HeaderValue::from_static("false"));
    }
    headers
}

/// Looks at an answer as it passes, and settles it exactly once: at its end, at its break, or when the caller has gone.
struct Watch {
    shared: Arc<Shared>,
    channel: Arc<dyn Channel>,
    call: Call,
    provider: Provider,
    seen: Seen,
    events: Watcher,
    whole: Option<Vec<u8>>,
    settled: bool,
}

impl Watch {
    fn see(&mut self, bytes: &Bytes) {
        let dialect = self.provider.dialect();
        match &mut self.whole {
            Some(whole) if whole.len() + bytes.len() <= MAX_ANSWER => whole.extend_from_slice(bytes),
            Some(_) => {}
            None => {
                let seen = &mut self.seen;
                self.events.feed(bytes, |value| dialect.observe(seen, value));
            }
        }
    }

    fn end(&mut self) {
        if let Some(value) = self.whole.take().and_then(|whole| serde_json::from_slice(&whole).ok()) {
            self.provider.dialect().observe(&mut self.seen, &value);
        }
    }

    /// What to record, if it was not recorded before and there is something to it.
    fn take_used(&mut self) -> Option<(Arc<dyn Channel>, Call, Used)> {
        if std::mem::replace(&mut self.settled, true) {
            return None;
        }
        let model = self.seen.model.clone().unwrap_or_else(|| self.call.model.clone());
        let usage = self.seen.settled();
        let cost = self.shared.config.prices.cost(&model, &self.call.at.day(), &usage);
        if cost.is_none() && !usage.is_zero() {
            tracing::warn!(model, "a model without a price was used: its tokens count, its cost is unknown");
        }
        let used = Used {
            model,
            usage,
            cost: cost.unwrap_or_default(),
            priced: cost.is_some(),
            complete: self.seen.complete,
        };
        Some((self.channel.clone(), self.call.clone(), used))
    }

    async fn settle(&mut self) {
        if let Some((channel, call, used)) = self.take_used() {
            channel.used(&call, used).await;
        }
    }
}

impl Drop for Watch {
    /// The caller has gone in the middle: what it had is still recorded.
    fn drop(&mut self) {
        if let Some((channel, call, used)) = self.take_used()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            // One short write; there is nobody left to wait for it.
            runtime.spawn(async move { channel.used(&call, used).await });
        }
    }
}

/// Passes bytes on. A chunk that completes the provider's account of itself is held until it is on record.
fn watched(
    bytes: impl Stream<Item = Result<Bytes, reqwest::Error>> + Send + 'static,
    watch: Watch,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send {
    let state = (Box::pin(bytes), watch, false);
    futures_util::stream::unfold(state, |(mut bytes, mut watch, over)| async move {
        if over {
            return None;
        }
        match bytes.next().await {
            Some(Ok(chunk)) => {
                watch.see(&chunk);
                if watch.seen.complete {
                    watch.settle().await;
                }
                Some((Ok(chunk), (bytes, watch, false)))
            }
            Some(Err(error)) => {
                let why = crate::error::chain(&error.without_url());
                watch.channel.trouble(&watch.call, Trouble::Broken(why.clone()));
                watch.settle().await;
                // The connection breaks for the client as it broke for us, so that it knows.
                Some((Err(std::io::Error::other(why)), (bytes, watch, true)))
            }
            None => {
                watch.end();
                watch.settle().await;
                None
            }
        }
    })
}
