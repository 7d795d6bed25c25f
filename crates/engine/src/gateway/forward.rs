//! One call: out with the provider's key, back byte for byte, and what it used on record before its last bytes are passed on.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use karta_types::{ErrorCode, ModelCallId, Problem};
use serde_json::Value;

use super::cloud::{NoWay, Way};
use super::provider::{Dialect, Provider, Route, Seen};
use super::server::{MAX_BODY, refuse};
use super::sse::Watcher;
use super::{Bound, Call, Channel, Refused, Shared, Trouble, Used};
use crate::gate::Hold;

/// An answer that is no stream is looked into up to this size.
const MAX_ANSWER: usize = 32 << 20;

/// How long the provider may count.
const COUNTING: Duration = Duration::from_secs(10);

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

/// Not now, and worth another try.
fn later(provider: Provider, problem: &Problem) -> Response {
    refuse(provider, 503, "overloaded_error", &problem.detail)
}

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
    let Ok(mut asked) = serde_json::from_slice::<Value>(&body) else {
        return refuse(provider, 400, "invalid_request_error", "the request's body is not JSON");
    };
    let own = match channel.credential(provider).await {
        Ok(own) => own,
        Err(problem) if problem.error == ErrorCode::Overloaded => return later(provider, &problem),
        Err(problem) => return refuse(provider, 401, "authentication_error", &problem.detail),
    };
    let at = own.as_ref().map_or(provider, |own| own.provider);
    let upstream = shared.config.upstreams.iter().find(|upstream| upstream.provider == at);
    let key = own.map(|own| own.key).or_else(|| upstream.and_then(|upstream| upstream.key.clone()));
    let (Some(upstream), Some(key)) = (upstream, key) else {
        let message = format!("this server has no key for {}; set it and try again", provider.as_str());
        return refuse(provider, 401, "authentication_error", &message);
    };
    let call = Call {
        id: ModelCallId::new(&*shared.clock, &*shared.rng),
        provider: at,
        model: asked.get("model").and_then(Value::as_str).unwrap_or_default().chars().take(200).collect(),
        streaming: asked.get("stream").and_then(Value::as_bool).unwrap_or(false),
        at: shared.clock.now(),
    };
    let found = Way::find(at, &upstream.base_url, key, &call.model, &shared.google, &*shared.clock).await;
    let way = match found {
        Ok(way) => way,
        Err(NoWay::Key(why)) => return refuse(provider, 401, "authentication_error", why),
        Err(NoWay::Model) => {
            return refuse(provider, 400, "invalid_request_error", "this is no model's name");
        }
        Err(NoWay::Unreachable) => {
            return refuse(provider, 503, "api_error", "Google's access tokens can't be had now");
        }
    };
    let mut headers = passed_headers(&parts.headers, dialect);
    if way.authorize(&mut headers, dialect).is_err() {
        return refuse(provider, 401, "authentication_error", "the provider's key is not one");
    }
    let held = if route.metered {
        let leaving = Leaving { shared, channel: &*channel, call: &call, way: &way, headers: &headers };
        match leaving.admit(route, &mut asked, body.len()).await {
            Ok(held) => Some(held),
            Err(refused) => {
                if refused.problem.error != ErrorCode::BudgetExhausted {
                    return later(provider, &refused.problem);
                }
                let detail = refused.problem.detail.clone();
                channel.refused(refused);
                return refuse(provider, 402, "budget_exhausted", &detail);
            }
        }
    } else {
        None
    };
    let changed = dialect.prepare(route.path, &asked);
    let limited = held.as_ref().is_some_and(|held| held.limited);
    let renamed = way.body(route.path, &asked).map(|body| Bytes::from(body.to_string()));
    let changed = renamed.or(changed);
    let body = changed.unwrap_or_else(|| if limited { asked.to_string().into() } else { body });
    let url = way.url(route.path, call.streaming);
    let url = match parts.uri.query() {
        Some(query) => format!("{url}?{query}"),
        None => url,
    };
    let watch = Watch {
        shared: shared.clone(),
        channel,
        call,
        provider,
        seen: Seen::default(),
        events: Watcher::default(),
        whole: None,
        hold: held.map(|held| held.hold),
        noted: false,
    };
    match shared.client.post(url).headers(headers).body(body).send().await {
        Ok(answer) => pass_back(watch, answer).await,
        Err(error) => {
            // The URL stays out of the message: it may be an internal one.
            let error = error.without_url();
            let why = if error.is_timeout() { "did not answer in time" } else { "can't be reached" };
            watch.channel.trouble(&watch.call, Trouble::Broken(crate::error::chain(&error)));
            watch.unused().await;
            let message = format!("the model provider {why}");
            refuse(provider, if error.is_timeout() { 504 } else { 502 }, "api_error", &message)
        }
    }
}

/// A call on its way out.
struct Leaving<'a> {
    shared: &'a Shared,
    channel: &'a dyn Channel,
    call: &'a Call,
    way: &'a Way,
    headers: &'a HeaderMap,
}

struct Held {
    hold: Hold,
    /// Whether the request was given another limit.
    limited: bool,
}

impl Leaving<'_> {
    /// Sets the call's bound aside. When there is no room for the bound, the provider is asked for the exact input first; when there is
    /// no room for all the output, the request is limited to what there is.
    async fn admit(&self, route: Route, asked: &mut Value, bytes: usize) -> Result<Held, Refused> {
        let dialect = self.call.provider.dialect();
        let mut bound = dialect.bound(route.path, asked, bytes);
        let day = self.call.at.day();
        let prices = &self.shared.config.prices;
        let org = self.channel.org();
        let dearest =
            |bound: &Bound| prices.dearest(org, &self.call.model, &day, bound.input, bound.long_cache);
        let admitted = match self.channel.admit(self.call, &bound, dearest(&bound)).await {
            Err(refused) if refused.inexact => match self.count(route, asked).await {
                Some(exact) => {
                    bound = bound.counted(exact);
                    self.channel.admit(self.call, &bound, dearest(&bound)).await?
                }
                None => return Err(refused),
            },
            admitted => admitted?,
        };
        let limited = admitted.output < bound.output;
        if limited {
            dialect.limit(route.path, asked, bound.each(admitted.output));
        }
        Ok(Held { hold: admitted.hold, limited })
    }

    /// The request's input as the provider counts it, which it does not bill.
    async fn count(&self, route: Route, asked: &Value) -> Option<u64> {
        let (path, body) = self.call.provider.dialect().count(route.path, asked)?;
        let url = self.way.url(path, false);
        let body = self.way.body(path, &body).unwrap_or(body);
        let asked = self.shared.client.post(url).headers(self.headers.clone()).json(&body).timeout(COUNTING);
        let answer = asked.send().await.ok().filter(|answer| answer.status().is_success())?;
        let answer: Value = answer.json().await.ok()?;
        answer.get("input_tokens").and_then(Value::as_u64)
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

async fn pass_back(mut watch: Watch, answer: reqwest::Response) -> Response {
    let status = answer.status();
    let headers = returned_headers(answer.headers(), status);
    if !status.is_success() {
        watch.channel.trouble(&watch.call, Trouble::Status(status.as_u16()));
        // Errors are not billed.
        if let Some(hold) = watch.hold.take() {
            watch.channel.unused(hold).await;
        }
    }
    let is_stream = answer
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.starts_with("text/event-stream"));
    watch.whole = (!is_stream).then(Vec::new);
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
    /// What was set aside for it; none for what is not metered, and when it was settled.
    hold: Option<Hold>,
    noted: bool,
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

    fn used(&self) -> Used {
        let model = self.seen.model.clone().unwrap_or_else(|| self.call.model.clone());
        let usage = self.seen.settled();
        let (prices, day) = (&self.shared.config.prices, self.call.at.day());
        let org = self.channel.org();
        let cost = prices.cost(org, &model, &day, &usage);
        let writes = self.seen.long_writes.min(usage.cache_write_tokens);
        let long = prices.long_cache(org, &model, &day, &usage, writes);
        Used {
            model,
            usage,
            cost: cost.unwrap_or_default().saturating_add(long),
            priced: cost.is_some(),
            complete: self.seen.complete,
        }
    }

    /// What to record, if it was not recorded before.
    fn take_used(&mut self) -> Option<(Hold, Used)> {
        let hold = self.hold.take()?;
        let used = self.used();
        if !used.priced && !used.usage.is_zero() {
            tracing::warn!(
                model = used.model,
                "a model without a price was used: its tokens count, its cost is unknown"
            );
        }
        Some((hold, used))
    }

    /// The provider has begun to say what it bills: that much is on record before anything of it is passed on.
    async fn note(&mut self) {
        if self.noted || self.seen.usage.is_zero() {
            return;
        }
        self.noted = true;
        if let Some(hold) = &self.hold {
            self.channel.noted(hold, &self.used()).await;
        }
    }

    async fn settle(&mut self) {
        if let Some((hold, used)) = self.take_used() {
            self.channel.used(&self.call, hold, used).await;
        }
    }

    async fn unused(mut self) {
        if let Some(hold) = self.hold.take() {
            self.channel.unused(hold).await;
        }
    }
}

impl Drop for Watch {
    /// The caller has gone in the middle: what it had is still recorded.
    fn drop(&mut self) {
        if let Some((hold, used)) = self.take_used()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (channel, call) = (self.channel.clone(), self.call.clone());
            // One short write; there is nobody left to wait for it.
            runtime.spawn(async move { channel.used(&call, hold, used).await });
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
                } else {
                    watch.note().await;
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
