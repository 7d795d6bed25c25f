//! Webhooks end to end: a receiver on loopback, a clock that is set, a resolver that lies.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::hmac;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use karta_engine::addresses::Lookup;
use karta_types::{Clock, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};

use crate::publish::{folder, packed};
use crate::support::{App, plain};

/// What came: id, timestamp, signatures, body.
type Came = (String, String, String, Bytes);

/// A receiver that answers as it is told and remembers.
#[derive(Clone)]
struct Receiver {
    url: String,
    came: Arc<Mutex<Vec<Came>>>,
    answers: Arc<Mutex<StatusCode>>,
}

impl Receiver {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/in", listener.local_addr().unwrap());
        let receiver = Self { url, came: Arc::default(), answers: Arc::new(Mutex::new(StatusCode::OK)) };
        let router = Router::new().route("/in", post(take)).with_state(receiver.clone());
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async move { axum::serve(listener, router).await });
        receiver
    }

    fn answer(&self, status: u16) {
        *self.answers.lock().unwrap() = StatusCode::from_u16(status).unwrap();
    }

    fn taken(&self) -> Vec<Came> {
        std::mem::take(&mut self.came.lock().unwrap())
    }

    fn kinds(&self) -> Vec<String> {
        let kind = |(_, _, _, body): &Came| {
            let body: Value = serde_json::from_slice(body).unwrap();
            body["type"].as_str().unwrap().to_owned()
        };
        self.taken().iter().map(kind).collect()
    }
}

async fn take(State(me): State<Receiver>, headers: HeaderMap, body: Bytes) -> (StatusCode, HeaderMap) {
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    me.came.lock().unwrap().push((
        header("webhook-id"),
        header("webhook-timestamp"),
        header("webhook-signature"),
        body,
    ));
    let status = *me.answers.lock().unwrap();
    let mut headers = HeaderMap::new();
    if status.is_redirection() {
        headers.insert("location", "/in".parse().unwrap());
    }
    (status, headers)
}

/// Whether one of the signatures is by this secret (Standard Webhooks).
fn signed((id, timestamp, signatures, body): &Came, secret: &str) -> bool {
    let key =
        hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap());
    let message = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
    let one = |text: &str| STANDARD.decode(text.strip_prefix("v1,").unwrap()).unwrap();
    signatures.split(' ').any(|text| hmac::verify(&key, &message, &one(text)).is_ok())
}

/// A clock that only goes when it is told.
#[derive(Clone, Default)]
struct Hands(Arc<AtomicI64>);

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        // Ids need time to go on.
        Timestamp::from_micros(1_800_000_000_000_000 + self.0.fetch_add(1, Ordering::SeqCst))
    }
}

impl Hands {
    fn wait(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_micros()).unwrap(), Ordering::SeqCst);
    }
}

async fn start() -> (App, Receiver, Hands) {
    let clock = Hands::default();
    let hands = clock.clone();
    let build = move |builder: karta_engine::Builder| {
        builder.with_world(Arc::new(hands), Arc::new(karta_types::rng::System))
    };
    let app = App::start_built(plain(), |settings| settings.webhooks.loopback = true, build).await;
    (app, Receiver::start().await, clock)
}

async fn endpoint(app: &App, receiver: &Receiver, events: Value) -> (String, String) {
    let (status, made) =
        app.post("/v1/webhook-endpoints", json!({"url": receiver.url, "events": events})).await;
    assert_eq!(status, 201, "{made}");
    (made["id"].as_str().unwrap().to_owned(), made["secret"].as_str().unwrap().to_owned())
}

/// Delivers until nothing is due. The platform does so by itself, too: both take turns.
async fn deliver(app: &App) {
    for _ in 0..100 {
        if app.engine.deliver().await.unwrap() == 0 && !waiting(app).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("deliveries don't end");
}

/// Whether a delivery is claimed by the platform's own round just now.
async fn waiting(app: &App) -> bool {
    let endpoints = app.get("/v1/webhook-endpoints").await;
    let now = app.engine.clock().now();
    for endpoint in endpoints["data"].as_array().unwrap() {
        let id = endpoint["id"].as_str().unwrap();
        let pending = app.get(&format!("/v1/webhook-endpoints/{id}/deliveries?state=pending")).await;
        let rows = pending["data"].as_array().unwrap();
        let untried = |row: &Value| row["attempts"] == 0;
        // Claimed by the platform's own round: due in a minute, though it was never tried.
        let claimed = |row: &Value| {
            let next: Timestamp = serde_json::from_value(row["next_attempt_at"].clone()).unwrap();
            next > now && untried(row)
        };
        // The oldest waits for nothing: what waits for it may be let go by it just now.
        if rows.iter().any(claimed) || rows.last().is_some_and(untried) {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn what_happens_is_told_signed_and_in_order() {
    let (app, receiver, _) = start().await;
    let (id, secret) = endpoint(&app, &receiver, json!([])).await;
    let session = app.session().await;
    let (_, waiting) = app.post(&format!("/v1/sessions/{session}/messages"), json!({"text": "ask"})).await;
    let request = waiting["pending_inputs"][0]["request_id"].as_str().unwrap();
    let path = format!("/v1/sessions/{session}/inputs/{request}");
    app.call(Method::PUT, &path, json!({"decision": "approve_once"})).await;
    app.events(&session, "").await.until("done").await;
    app.post("/v1/keys", json!({"name": "k", "scopes": ["read"]})).await;
    deliver(&app).await;
    let came = receiver.taken();
    let bodies: Vec<Value> =
        came.iter().map(|(_, _, _, body)| serde_json::from_slice(body).unwrap()).collect();
    let of_session: Vec<_> =
        bodies.iter().filter(|body| body["data"]["session_id"] == session.as_str()).collect();
    let kinds: Vec<_> = of_session.iter().map(|body| body["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["session.created", "input.required", "input.resolved", "turn.completed"]);
    assert!(bodies.iter().any(|body| body["type"] == "key.created"), "{bodies:?}");
    assert!(came.iter().all(|came| signed(came, &secret)));
    assert!(!bodies.iter().any(|body| body.to_string().contains("ls\"")), "no tool input: {bodies:?}");
    // Two secrets sign while one takes over; then only the new one.
    let path = format!("/v1/webhook-endpoints/{id}/rotate-secret");
    let (_, rotated) = app.post(&path, json!({"overlap_seconds": 60})).await;
    let new = rotated["secret"].as_str().unwrap();
    app.session().await;
    deliver(&app).await;
    let came = receiver.taken();
    assert!(signed(&came[0], &secret) && signed(&came[0], new), "{came:?}");
    app.stop().await;
}

#[tokio::test]
async fn a_failure_is_tried_by_the_schedule_and_can_be_sent_again() {
    let (app, receiver, clock) = start().await;
    let (id, _) = endpoint(&app, &receiver, json!(["session.created", "turn.completed"])).await;
    receiver.answer(302);
    let session = app.session().await;
    app.turn(&session, "hello").await;
    let mut times = Vec::new();
    for wait in [0, 5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 10 * 3600] {
        clock.wait(Duration::from_secs(wait));
        deliver(&app).await;
        times.push(receiver.kinds());
    }
    // A redirect is a failure; the turn waits for its session's first event to be through or given up.
    assert!(times.iter().take(7).all(|kinds| kinds == &["session.created"]), "{times:?}");
    assert_eq!(times[7], ["session.created", "turn.completed"], "given up, and the next in order goes");
    let path = format!("/v1/webhook-endpoints/{id}/deliveries");
    let failed = app.get(&format!("{path}?state=failed")).await;
    let failed = &failed["data"][0];
    assert_eq!((&failed["attempts"], &failed["last_status"]), (&json!(8), &json!(302)));
    receiver.answer(204);
    let again = format!("{path}/{}/redeliver", failed["id"].as_str().unwrap());
    assert_eq!(app.post(&again, json!({})).await.0, 200);
    deliver(&app).await;
    assert_eq!(receiver.kinds().first().unwrap(), "session.created");
    assert_eq!(app.get(&format!("{path}?state=failed")).await["data"], json!([]));
    // Everything since: what was given up only.
    let (_, since) = app
        .post(&format!("/v1/webhook-endpoints/{id}/redeliver"), json!({"since": "2026-01-01T00:00:00Z"}))
        .await;
    assert_eq!(since["count"], 0);
    app.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_fails_for_days_is_disabled_and_that_is_told() {
    let (app, receiver, clock) = start().await;
    let watcher = Receiver::start().await;
    let (id, _) = endpoint(&app, &receiver, json!(["session.created"])).await;
    endpoint(&app, &watcher, json!(["webhook_endpoint.disabled"])).await;
    receiver.answer(500);
    for _ in 0..6 {
        app.session().await;
        deliver(&app).await;
        clock.wait(Duration::from_hours(24));
    }
    app.session().await;
    deliver(&app).await;
    let state = app.get(&format!("/v1/webhook-endpoints/{id}")).await;
    assert_eq!(state["disabled_reason"], "it failed for 5 days", "{state}");
    assert_eq!(watcher.kinds(), ["webhook_endpoint.disabled"]);
    let audit = app.get("/v1/audit?action=webhook.disable").await;
    assert_eq!(audit["data"].as_array().unwrap().len(), 1);
    receiver.taken();
    app.session().await;
    deliver(&app).await;
    assert!(receiver.taken().is_empty());
    // Taken up again by hand; and gone is gone at once.
    let path = format!("/v1/webhook-endpoints/{id}");
    let (_, state) = app.call(Method::PATCH, &path, json!({"enabled": true})).await;
    assert_eq!((&state["disabled_at"], &state["failing_since"]), (&Value::Null, &Value::Null));
    receiver.answer(410);
    app.session().await;
    deliver(&app).await;
    assert_eq!(app.get(&path).await["disabled_reason"], "it answered 410 Gone");
    app.stop().await;
}

#[tokio::test]
async fn budgets_tell_when_half_four_fifths_and_all_is_used() {
    let (app, receiver, _) = start().await;
    endpoint(&app, &receiver, json!(["budget.threshold"])).await;
    let org = app.get("/v1/whoami").await["org"]["id"].as_str().unwrap().to_owned();
    // Each turn that spends costs 900.
    app.call(Method::PUT, &format!("/v1/budgets/org/{org}"), json!({"cost_micros": 1000})).await;
    let session = app.session().await;
    app.turn(&session, "spend").await;
    deliver(&app).await;
    let told = |came: &[Came]| {
        let body = |(_, _, _, body): &Came| {
            let body: Value = serde_json::from_slice(body).unwrap();
            (body["data"]["percent"].as_i64().unwrap(), body["data"]["level"].as_str().unwrap().to_owned())
        };
        let mut told: Vec<_> = came.iter().map(body).collect();
        told.sort();
        told
    };
    assert_eq!(told(&receiver.taken()), [(50, "org".to_owned()), (80, "org".to_owned())]);
    app.turn(&session, "spend").await;
    deliver(&app).await;
    assert_eq!(told(&receiver.taken()), [(100, "org".to_owned())]);
    app.stop().await;
}

/// Says of every name that it is here.
struct Liar;

impl Lookup for Liar {
    fn lookup(&self, _: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        Box::pin(async { Ok(vec![IpAddr::from([127, 0, 0, 1])]) })
    }
}

#[tokio::test]
async fn nobody_is_led_inside() {
    let app = App::start_built(plain(), |_| {}, |builder| builder.with_lookup(Arc::new(Liar))).await;
    for url in [
        "http://hook.example.com/",
        "https://127.0.0.1:9/",
        "https://[::1]/",
        "https://localhost/",
        "https://169.254.169.254/",
    ] {
        let (status, problem) = app.post("/v1/webhook-endpoints", json!({"url": url})).await;
        assert_eq!((status, &problem["pointer"]), (400, &json!("/url")), "{url}");
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = format!("https://hook.example.com:{port}/");
    let (_, made) =
        app.post("/v1/webhook-endpoints", json!({"url": url, "events": ["session.created"]})).await;
    app.session().await;
    let path = format!("/v1/webhook-endpoints/{}/deliveries", made["id"].as_str().unwrap());
    for _ in 0..500 {
        app.engine.deliver().await.unwrap();
        let row = app.get(&path).await["data"][0].clone();
        if row["attempts"] == json!(1) {
            let why = row["last_error"].as_str().unwrap();
            assert!(why.contains("no public address"), "{why}");
            assert!(
                tokio::time::timeout(Duration::from_millis(1), listener.accept()).await.is_err(),
                "nobody came"
            );
            app.stop().await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the delivery was never tried");
}

/// Everything that happens to releases is told, each once.
#[tokio::test]
async fn releases_canaries_and_previews_are_told() {
    let (app, receiver, _) = start().await;
    endpoint(&app, &receiver, json!([])).await;
    let at = app.data.path().join("shop");
    let publish = async |says: &str, query: &str| {
        folder(&at, says, &[]);
        app.publish(&format!("shop/releases{query}"), packed(&at, None)).await.0
    };
    assert_eq!(publish("one", "").await, 201);
    assert_eq!(publish("two", "?preview=x").await, 201);
    app.post("/v1/projects/shop/releases/2/activate", json!({"percent": 5})).await;
    app.post("/v1/projects/shop/canary/abort", json!({})).await;
    app.post("/v1/projects/shop/releases/2/activate", json!({"percent": 5})).await;
    app.post("/v1/projects/shop/canary/promote", json!({})).await;
    app.post("/v1/projects/shop/rollback", json!({})).await;
    app.call(Method::DELETE, "/v1/projects/shop/previews/x", Value::Null).await;
    app.call(Method::DELETE, "/v1/projects/shop/releases/2", Value::Null).await;
    std::fs::write(at.join("karta.toml"), "[build]\nsetup = \"exit 1\"\n").unwrap();
    assert_eq!(publish("three", "").await, 422);
    deliver(&app).await;
    let mut kinds: Vec<_> = receiver
        .kinds()
        .into_iter()
        .filter(|kind| ["release.", "canary.", "preview."].iter().any(|noun| kind.starts_with(noun)))
        .collect();
    kinds.sort_unstable();
    let told = [
        "canary.aborted",
        "canary.started",
        "canary.started",
        "preview.published",
        "preview.removed",
        "release.activated",
        "release.activated",
        "release.activated",
        "release.deleted",
        "release.failed",
        "release.published",
        "release.published",
        "release.published",
    ];
    assert_eq!(kinds, told);
    app.stop().await;
}
