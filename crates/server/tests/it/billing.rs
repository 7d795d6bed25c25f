//! What organisations pay: credit that can't be overspent, statements that add up, and Stripe, played by a fake that answers as its
//! documentation says.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use aws_lc_rs::hmac;
use axum::extract::{Form, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use karta_engine::control::billing::{self, Change};
use karta_engine::settings;
use karta_types::{Clock as _, Role, Secret, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, answer, done, plain};

fn later(app: &App, seconds: u64) -> Timestamp {
    app.engine.clock().now().plus(std::time::Duration::from_secs(seconds))
}

async fn change(app: &App, what: Change) {
    billing::change(app.engine.settings(), "one", what).await.unwrap();
}

#[tokio::test]
async fn credit_is_drawn_on_first_to_expire_first_and_gone_when_it_is_over() {
    let app = App::start(plain()).await;
    let none = app.get("/v1/billing").await;
    assert_eq!(none, json!({"configured": false, "plans": [], "subscription": null, "credit_micros": null}));
    let grant = |amount, expires_at, note: &str| Change::Grant { amount, expires_at, note: note.into() };
    change(&app, grant(1_000, None, "for ever")).await;
    change(&app, grant(1_000, Some(later(&app, 3600)), "for an hour")).await;
    let session = app.session().await;
    // Each of these costs 900.
    assert_eq!(done(&app.turn(&session, "spend").await)["status"], "completed");
    let used = |credit: &Value| {
        let rows = credit["data"].as_array().unwrap().clone();
        rows.iter()
            .map(|row| (row["note"].as_str().unwrap().to_owned(), row["used_micros"].as_i64().unwrap()))
            .collect::<Vec<_>>()
    };
    let credit = app.get("/v1/billing/credit").await;
    assert_eq!(used(&credit), [("for ever".to_owned(), 0), ("for an hour".to_owned(), 900)]);
    assert_eq!(app.get("/v1/billing").await["credit_micros"], 1_100);
    assert_eq!(done(&app.turn(&session, "spend").await)["status"], "completed");
    assert_eq!(
        used(&app.get("/v1/billing/credit").await),
        [("for ever".to_owned(), 800), ("for an hour".to_owned(), 1_000)]
    );
    // 200 are left; the scripted harness is counted afterwards, so this turn passes it, and the next is refused.
    app.turn(&session, "spend").await;
    let (status, problem) =
        app.post(&format!("/v1/sessions/{session}/messages"), json!({"text": "more"})).await;
    assert_eq!(
        (status, &problem["error"], &problem["level"]),
        (402, &json!("budget_exhausted"), &json!("credit")),
        "{problem}"
    );
    // Nobody but whoever runs the server grants.
    let org = app.get("/v1/whoami").await["org"]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/budgets/credit/{org}");
    assert_eq!(app.call(Method::PUT, &path, json!({"cost_micros": 1_000_000})).await.0, 403);
    assert_eq!(app.call(Method::DELETE, &path, Value::Null).await.0, 403);
    // What expires takes only what was left of it.
    change(&app, grant(5_000, Some(later(&app, 1)), "for a second")).await;
    let before = app.get("/v1/billing").await["credit_micros"].as_i64().unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    app.engine.expire_credit().await.unwrap();
    app.engine.expire_credit().await.unwrap();
    assert_eq!(app.get("/v1/billing").await["credit_micros"], before - 5_000);
    let audit = app.get("/v1/audit?action=billing.credit_expired").await;
    assert_eq!(audit["data"].as_array().unwrap().len(), 1);
    app.stop().await;
}

#[tokio::test]
async fn only_a_subscription_that_is_paid_may_run() {
    let app = App::start(plain()).await;
    let subscribe = |status: &str| Change::Subscribe { plan: "team".into(), status: status.parse().unwrap() };
    for (status, answered) in [("trialing", 200), ("past_due", 402), ("active", 200), ("canceled", 402)] {
        change(&app, subscribe(status)).await;
        assert_eq!(app.get("/v1/billing").await["subscription"]["status"], status);
        let (code, problem) = app.post("/v1/projects/app/messages", json!({"text": "hello"})).await;
        assert_eq!(code, answered, "{status}: {problem}");
        if code == 402 {
            assert_eq!(problem["error"], "subscription_inactive");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn a_statement_adds_up_in_every_form() {
    let app = App::start(plain()).await;
    let session = app.session().await;
    for _ in 0..7 {
        app.turn(&session, "spend").await;
    }
    let month = app.engine.clock().now().day()[..7].to_owned();
    let path = format!("/v1/billing/statements/{month}");
    let statement = app.get(&path).await;
    assert_eq!((&statement["cost_micros"], &statement["closed"]), (&json!(6_300), &json!(false)));
    assert_eq!((&statement["total_cents"], &statement["rounding_micros"]), (&json!(1), &json!(3_700)));
    let lines = statement["lines"].as_array().unwrap();
    let sum: i64 = lines.iter().map(|line| line["cost_micros"].as_i64().unwrap()).sum();
    assert_eq!((lines.len(), sum), (1, 6_300));
    let csv = app.get(&format!("{path}?format=csv")).await;
    let csv = csv.as_str().unwrap();
    assert!(csv.ends_with("sum,,,,,,,,,6300\r\nrounding,,,,,,,,,3700\r\ntotal,,,,,,,,,10000\r\n"), "{csv}");
    let page = app.get(&format!("{path}?format=html")).await;
    let page = page.as_str().unwrap();
    assert!(page.contains("$0.006300") && page.contains("$0.003700") && page.contains("$0.01<"), "{page}");
    for none in ["2026", "1999-13", "2999-01"] {
        let (status, _) = app.call(Method::GET, &format!("/v1/billing/statements/{none}"), Value::Null).await;
        assert_eq!(status, 404, "{none}");
    }
    app.stop().await;
}

type Asked = (String, HashMap<String, String>, Option<String>);

/// Stripe.
#[derive(Clone, Default)]
struct Fake {
    /// What was asked: path, form, idempotency key.
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Subscriptions by id.
    subscriptions: Arc<Mutex<HashMap<String, Value>>>,
    /// Whether it is down.
    down: Arc<Mutex<bool>>,
}

const KEY: &str = "sk_test_planted_77aa";
const SIGNING: &str = "whsec_planted_88bb";

impl Fake {
    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/v1/customers", post(asked))
            .route("/v1/checkout/sessions", post(asked))
            .route("/v1/billing/meter_events", post(asked))
            .route("/v1/subscriptions/{id}", get(subscription))
            .with_state(self.clone());
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    fn set(&self, id: &str, status: &str, price: &str) {
        let value = json!({"id": id, "object": "subscription", "customer": "cus_1", "status": status,
            "items": {"object": "list", "data": [{"price": {"id": price}, "current_period_start": 1_790_000_000,
                "current_period_end": 1_792_592_000}]}});
        self.subscriptions.lock().unwrap().insert(id.to_owned(), value);
    }
}

async fn asked(
    State(me): State<Fake>,
    uri: axum::http::Uri,
    headers: HeaderMap,
    Form(form): Form<HashMap<String, String>>,
) -> (StatusCode, Json<Value>) {
    let path = uri.path().to_owned();
    if headers["authorization"] != format!("Bearer {KEY}") || *me.down.lock().unwrap() {
        return (StatusCode::BAD_GATEWAY, Json(json!({"error": {"message": "down"}})));
    }
    let once = headers.get("idempotency-key").map(|value| value.to_str().unwrap().to_owned());
    me.asked.lock().unwrap().push((path.clone(), form, once));
    (
        StatusCode::OK,
        Json(match path.as_str() {
            "/v1/customers" => json!({"id": "cus_1", "object": "customer"}),
            "/v1/checkout/sessions" => {
                json!({"id": "cs_1", "object": "checkout.session", "url": "https://checkout.stripe.com/c/pay/cs_1"})
            }
            _ => json!({"object": "billing.meter_event"}),
        }),
    )
}

async fn subscription(State(me): State<Fake>, Path(id): Path<String>) -> Result<Json<Value>, StatusCode> {
    if *me.down.lock().unwrap() {
        return Err(StatusCode::BAD_GATEWAY);
    }
    me.subscriptions.lock().unwrap().get(&id).cloned().map(Json).ok_or(StatusCode::NOT_FOUND)
}

/// Sends an event as Stripe does.
async fn event(app: &App, id: &str, kind: &str, object: Value, age: i64, secret: &str) -> (u16, Value) {
    let body = json!({"id": id, "object": "event", "type": kind, "data": {"object": object}}).to_string();
    let at = karta_types::time::System.now().as_millis() / 1000 - age;
    let tag =
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), format!("{at}.{body}").as_bytes());
    let tag = tag.as_ref().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let call = http
        .post(format!("{}/webhooks/stripe", app.url))
        .header("stripe-signature", format!("t={at},v1=00,v1={tag}"));
    answer(call.body(body).send().await.unwrap()).await
}

#[tokio::test]
async fn stripe_subscribes_meters_and_its_events_may_come_in_any_order() {
    let fake = Fake::default();
    let base_url = fake.start().await;
    let app = App::start_with(plain(), |settings| {
        settings.billing.stripe = Some(settings::Stripe {
            key: Secret::new(KEY.into()),
            webhook_secret: Secret::new(SIGNING.into()),
            plans: [("team".to_owned(), "price_team".to_owned())].into(),
            usage_price: Some("price_usage".into()),
            meter: "karta_usage_micros".into(),
            base_url,
        });
    })
    .await;
    // A key can't subscribe, a person can.
    assert_eq!(app.post("/v1/billing/checkout", json!({"plan": "team"})).await.0, 403);
    let owner = app.person(Role::Owner).await;
    let (status, _) = app.as_key(Method::POST, "/v1/billing/checkout", &owner, json!({"plan": "none"})).await;
    assert_eq!(status, 404);
    let (status, checkout) =
        app.as_key(Method::POST, "/v1/billing/checkout", &owner, json!({"plan": "team"})).await;
    assert_eq!((status, &checkout["url"]), (201, &json!("https://checkout.stripe.com/c/pay/cs_1")));
    let asked = std::mem::take(&mut *fake.asked.lock().unwrap());
    let org = app.get("/v1/whoami").await["org"]["id"].as_str().unwrap().to_owned();
    assert_eq!(asked[0].2.as_deref(), Some(format!("customer-{org}").as_str()));
    assert_eq!(
        (asked[1].1["line_items[0][price]"].as_str(), asked[1].1["line_items[1][price]"].as_str()),
        ("price_team", "price_usage")
    );

    // What Stripe did not sign, or signed long ago, changes nothing.
    fake.set("sub_1", "active", "price_team");
    let changed = json!({"id": "sub_1", "customer": "cus_1", "status": "active"});
    let sent =
        |id: &'static str, kind: &'static str, object: Value| event(&app, id, kind, object, 0, SIGNING);
    for (age, secret) in [(0, "whsec_other"), (600, SIGNING), (-600, SIGNING)] {
        let (status, _) =
            event(&app, "evt_0", "customer.subscription.created", changed.clone(), age, secret).await;
        assert_eq!(status, 401);
    }
    assert_eq!(app.get("/v1/billing").await["subscription"], Value::Null);
    // One that can't be done now is to be sent again, and then is done.
    *fake.down.lock().unwrap() = true;
    assert_eq!(sent("evt_1", "customer.subscription.created", changed.clone()).await.0, 500);
    *fake.down.lock().unwrap() = false;
    assert_eq!(sent("evt_1", "customer.subscription.created", changed.clone()).await.0, 204);
    let billing = app.get("/v1/billing").await;
    assert_eq!(
        (&billing["subscription"]["plan"], &billing["subscription"]["status"]),
        (&json!("team"), &json!("active"))
    );
    assert_eq!(billing["subscription"]["period_end"], "2026-10-21T14:13:20.000Z");
    // It is past due now. The event of that comes, then an old one of when it was active, then the first again.
    fake.set("sub_1", "past_due", "price_team");
    let due = json!({"id": "in_1", "customer": "cus_1", "subscription": "sub_1"});
    assert_eq!(sent("evt_3", "invoice.payment_failed", due).await.0, 204);
    assert_eq!(sent("evt_2", "customer.subscription.updated", changed.clone()).await.0, 204);
    assert_eq!(sent("evt_1", "customer.subscription.created", changed).await.0, 204);
    assert_eq!(app.get("/v1/billing").await["subscription"]["status"], "past_due");
    assert_eq!(app.post("/v1/projects/app/messages", json!({"text": "hello"})).await.0, 402);
    // Another subscription takes over; the end of the old one does not end it. Strangers' events are nobody's.
    fake.set("sub_2", "trialing", "price_team");
    fake.set("sub_1", "canceled", "price_team");
    assert_eq!(
        sent("evt_4", "checkout.session.completed", json!({"customer": "cus_1", "subscription": "sub_2"}))
            .await
            .0,
        204
    );
    assert_eq!(
        sent("evt_5", "customer.subscription.deleted", json!({"id": "sub_1", "customer": "cus_1"})).await.0,
        204
    );
    assert_eq!(
        sent("evt_6", "customer.subscription.updated", json!({"id": "sub_9", "customer": "cus_9"})).await.0,
        204
    );
    assert_eq!(
        sent("evt_7", "customer.subscription.updated", json!({"id": "../x", "customer": "cus_1"})).await.0,
        400
    );
    assert_eq!(app.get("/v1/billing").await["subscription"]["status"], "trialing");

    // Usage is told once, and only what came since; a part that was told without our knowing has the same identifier.
    let session = app.session().await;
    app.turn(&session, "spend").await;
    *fake.down.lock().unwrap() = true;
    assert!(app.engine.report_usage().await.is_err());
    *fake.down.lock().unwrap() = false;
    fake.asked.lock().unwrap().clear();
    app.engine.report_usage().await.unwrap();
    app.engine.report_usage().await.unwrap();
    app.turn(&session, "spend").await;
    app.engine.report_usage().await.unwrap();
    let told: Vec<_> = std::mem::take(&mut *fake.asked.lock().unwrap());
    let told: Vec<_> = told
        .iter()
        .map(|(_, form, _)| (form["payload[value]"].as_str(), form["identifier"].rsplit('-').next().unwrap()))
        .collect();
    assert_eq!(told, [("900", "0"), ("900", "900")]);
    let log = app.get("/v1/audit").await.to_string();
    assert!(log.contains("billing.checkout") && log.contains("billing.subscribed"));
    assert!(!log.contains(KEY) && !log.contains(SIGNING));
    app.stop().await;
}
