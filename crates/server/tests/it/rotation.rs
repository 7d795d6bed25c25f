//! A host that makes no sandboxes any more takes no turns, says why, and comes back by itself.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use karta_engine::sandbox::{Driver, Error, ParkKey, Revived, Sandbox, Spec, fake};
use karta_types::SessionId;
use karta_types::session::Isolation;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, done, kinds, plain};

/// A driver whose sandboxes, and whose trials, fail when a test wants it.
struct Moody {
    inner: fake::Driver,
    fails: Arc<Fails>,
}

#[derive(Default)]
struct Fails {
    sandboxes: AtomicBool,
    trials: AtomicBool,
}

fn mood(fails: &AtomicBool) -> Result<(), Error> {
    if fails.load(Ordering::SeqCst) {
        return Err(Error::Unavailable("the loop device is gone".to_owned()));
    }
    Ok(())
}

#[async_trait]
impl Driver for Moody {
    fn id(&self) -> &'static str {
        "moody"
    }

    fn isolation(&self) -> Isolation {
        Isolation::Namespace
    }

    async fn check(&self) -> Result<(), Error> {
        mood(&self.fails.trials)
    }

    async fn acquire(&self, spec: &Spec) -> Result<Box<dyn Sandbox>, Error> {
        mood(&self.fails.sandboxes)?;
        self.inner.acquire(spec).await
    }

    async fn revive(&self, spec: &Spec, from: &Path, key: &ParkKey) -> Result<Revived, Error> {
        self.inner.revive(spec, from, key).await
    }

    async fn erase(&self, session: SessionId) -> Result<(), Error> {
        self.inner.erase(session).await
    }

    async fn reap(
        &self,
        keep: &(dyn for<'a> Fn(&'a SessionId) -> bool + Send + Sync),
    ) -> Result<usize, Error> {
        self.inner.reap(keep).await
    }
}

async fn start() -> (App, Arc<Fails>) {
    let (clock, rng) = (Arc::new(karta_types::time::System), Arc::new(karta_types::rng::System));
    let fails = Arc::new(Fails::default());
    let inner = fake::Driver::new(karta_engine::scripted_functions(), clock, rng);
    let driver = Arc::new(Moody { inner, fails: fails.clone() });
    (App::start_built(plain(), |_| {}, |builder| builder.with_driver(driver)).await, fails)
}

/// A turn of a session of its own that must fail.
async fn failed(app: &App) -> Value {
    let session = app.session().await;
    let (status, problem) =
        app.post(&format!("/v1/sessions/{session}/messages"), json!({"text": "hello"})).await;
    assert_eq!((status, &problem["error"]), (503, &json!("isolation_unavailable")), "{problem}");
    problem
}

async fn ready(app: &App) -> (u16, Value) {
    app.call(Method::GET, "/readyz", Value::Null).await
}

#[tokio::test]
async fn a_host_that_keeps_failing_is_taken_out_of_rotation_and_comes_back() {
    let (app, fails) = start().await;
    let before = app.session().await;
    let events = app.turn(&before, "hello").await;
    fails.sandboxes.store(true, Ordering::SeqCst);
    fails.trials.store(true, Ordering::SeqCst);
    for _ in 0..5 {
        assert!(failed(&app).await["retry_after"].is_null(), "its own sandbox was tried");
    }
    // From here on nothing is tried for a turn, and what is there already does not take one either.
    fails.sandboxes.store(false, Ordering::SeqCst);
    for session in [app.session().await, before.clone()] {
        let path = format!("/v1/sessions/{session}/messages");
        let response = app.request(Method::POST, &path).json(&json!({"text": "hello"})).send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), response.headers()["retry-after"].to_str().unwrap()),
            (503, "30")
        );
        let problem: Value = response.json().await.unwrap();
        assert_eq!(
            (&problem["error"], &problem["retryable"]),
            (&json!("isolation_unavailable"), &json!(true)),
            "{problem}"
        );
        let why = problem["detail"].as_str().unwrap();
        assert!(why.contains("the loop device is gone") && why.contains("karta doctor"), "{why}");
    }
    let (status, parts) = ready(&app).await;
    assert_eq!(status, 503);
    assert!(parts["parts"]["sandbox"].as_str().unwrap().contains("the loop device is gone"), "{parts}");
    // What was said is readable.
    let read = app.events(&before, "?after=0").await.until("done").await;
    assert_eq!(kinds(&read), kinds(&events));
    assert_eq!(app.get(&format!("/v1/sessions/{before}")).await["id"], json!(before));

    // It is tried at its times, and stays out while that fails.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    assert_eq!(ready(&app).await.0, 503);
    fails.trials.store(false, Ordering::SeqCst);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    while ready(&app).await.0 != 200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(done(&app.turn(&before, "hello").await)["status"], "completed");
    assert_eq!(done(&app.turn(&app.session().await, "hello").await)["status"], "completed");
    app.stop().await;
}

#[tokio::test]
async fn a_session_s_own_fault_takes_no_host_out() {
    let (app, fails) = start().await;
    let before = app.session().await;
    app.turn(&before, "hello").await;
    // Only what is asked for by sessions fails: the host itself is well.
    fails.sandboxes.store(true, Ordering::SeqCst);
    for _ in 0..12 {
        assert!(failed(&app).await["retry_after"].is_null());
    }
    assert_eq!(ready(&app).await.0, 200);
    assert_eq!(done(&app.turn(&before, "hello").await)["status"], "completed", "others go on");
    app.stop().await;
}
