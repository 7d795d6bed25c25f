//! Turns that wait for a person with their sandbox saved: woken by the answer, also after a start of the server.

#![expect(clippy::panic, reason = "a test that can't go on fails")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use karta_engine::data::sessions::NewSession;
use karta_engine::data::stream::Item;
use karta_engine::data::turn::{OnBusy, SendMessage};
use karta_engine::sandbox::fake::{Driver, Freezer};
use karta_engine::{Builder, Engine, Principal, Settings};
use karta_types::message::{Answer, Content, Decision};
use karta_types::session::TurnState;
use karta_types::{Body, RequestId, Seq, SessionId};
use serde_json::json;

/// How long anything may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

struct Rig {
    folder: tempfile::TempDir,
    freezer: Freezer,
    who: Option<Principal>,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let app = folder.path().join("app");
        std::fs::create_dir(&app).unwrap();
        let script = json!({"turns": [{"steps": [
            {"say": "before. "},
            {"use": {"input_tokens": 60, "output_tokens": 50, "cost_micros": 900}},
            {"ask": {"tool": "Bash", "input": {"command": "ls"}, "message": "Run?",
                "approved": [{"say": "approved"}], "denied": [{"say": "denied"}]}}]}]});
        std::fs::write(app.join("karta.script.json"), script.to_string()).unwrap();
        Self { folder, freezer: Freezer::default(), who: None }
    }

    async fn start(&mut self, park_seconds: u64) -> Engine {
        let mut settings = Settings { data: self.folder.path().join("data"), ..Settings::default() };
        settings.limits.park_seconds = park_seconds;
        let (clock, rng) = (Arc::new(karta_types::time::System), Arc::new(karta_types::rng::System));
        let driver =
            Driver::new(karta_engine::scripted_functions(), clock, rng).freezing(self.freezer.clone());
        let engine = Builder::new(settings).with_driver(Arc::new(driver)).open().await.unwrap();
        let org = engine.ensure_org("one").await.unwrap();
        self.who = Some(Principal::system(org));
        engine.publish_folder(org, "app", &self.folder.path().join("app")).await.unwrap();
        engine
    }

    fn who(&self) -> &Principal {
        self.who.as_ref().unwrap()
    }

    fn parked(&self) -> usize {
        let root = self.folder.path().join("data/parked");
        let held = |path: &Path| !path.file_name().unwrap().to_str().unwrap().starts_with('.');
        std::fs::read_dir(root)
            .map_or(0, |entries| entries.filter(|entry| held(&entry.as_ref().unwrap().path())).count())
    }

    /// Begins a turn and reads until it asks.
    async fn asked(&self, engine: &Engine) -> (SessionId, RequestId) {
        let session = engine.create_session(self.who(), "app", NewSession::default()).await.unwrap().id;
        let message = SendMessage {
            turn: None,
            content: vec![Content::Text { text: "go".to_owned() }],
            agent: None,
            participant: None,
            thinking: false,
            on_busy: OnBusy::Queue,
        };
        engine.send(self.who(), session, message).await.unwrap();
        let bodies = self.bodies(engine, session, |body| matches!(body, Body::InputRequired(_))).await;
        let Some(Body::InputRequired(asked)) = bodies.last() else { panic!("{bodies:?}") };
        (session, asked.request_id)
    }

    /// The session's events from the start up to the first that is wanted.
    async fn bodies(&self, engine: &Engine, session: SessionId, wanted: impl Fn(&Body) -> bool) -> Vec<Body> {
        let mut reader = engine.read(self.who(), session, Seq::START).await.unwrap();
        let mut bodies = Vec::new();
        let read = async {
            loop {
                let item: Item = reader.next().await.unwrap();
                for event in item.events() {
                    bodies.push(event.body.clone());
                    if wanted(&event.body) {
                        return;
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("the event came");
        bodies
    }

    async fn until_parked(&self) {
        let wait = async {
            while self.freezer.count() == 0 || self.parked() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the turn was parked");
    }

    async fn answer(&self, engine: &Engine, session: SessionId, request: RequestId) {
        let answer =
            Answer { decision: Decision::ApproveOnce, message: None, updated_input: None, answers: None };
        engine.answer(self.who(), session, request, answer).await.unwrap();
    }

    /// The turn ends as if nothing had happened in between.
    async fn done(&self, engine: &Engine, session: SessionId) {
        let bodies = self.bodies(engine, session, |body| matches!(body, Body::Done { .. })).await;
        let Some(Body::Done { status, text, usage, .. }) = bodies.last() else { panic!("{bodies:?}") };
        assert_eq!((*status, text.as_str()), (TurnState::Completed, "before. approved"));
        assert_eq!((usage.input_tokens, usage.output_tokens), (60, 50), "what was used before counts");
        let asked = bodies.iter().filter(|body| matches!(body, Body::InputRequired(_))).count();
        assert_eq!(asked, 1, "nothing is told twice: {bodies:?}");
        assert_eq!((self.freezer.count(), self.parked()), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_waits_is_parked_and_woken_by_the_answer() {
    let mut rig = Rig::new();
    let engine = rig.start(0).await;
    let (session, request) = rig.asked(&engine).await;
    rig.until_parked().await;
    rig.answer(&engine, session, request).await;
    rig.done(&engine, session).await;
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_turn_outlives_the_server() {
    let mut rig = Rig::new();
    let engine = rig.start(0).await;
    let (session, request) = rig.asked(&engine).await;
    rig.until_parked().await;
    engine.shutdown().await;
    drop(engine);

    let engine = rig.start(0).await;
    assert_eq!(rig.parked(), 1, "it waits on");
    let waits = engine.session(rig.who(), session).await.unwrap();
    assert_eq!(waits.status, karta_types::session::SessionStatus::Waiting);
    rig.answer(&engine, session, request).await;
    rig.done(&engine, session).await;
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_stopped_parks_what_waits() {
    let mut rig = Rig::new();
    let engine = rig.start(3600).await;
    let (session, request) = rig.asked(&engine).await;
    assert_eq!(rig.parked(), 0);
    engine.shutdown().await;
    drop(engine);
    assert_eq!(rig.parked(), 1);

    let engine = rig.start(3600).await;
    rig.answer(&engine, session, request).await;
    rig.done(&engine, session).await;
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_woken_ends_in_one_done() {
    let mut rig = Rig::new();
    let engine = rig.start(0).await;
    let (session, request) = rig.asked(&engine).await;
    rig.until_parked().await;
    engine.shutdown().await;
    drop(engine);
    // Another host's memory: what was saved is not there.
    rig.freezer = Freezer::default();
    let engine = rig.start(0).await;
    rig.answer(&engine, session, request).await;
    let bodies = rig.bodies(&engine, session, |body| matches!(body, Body::Done { .. })).await;
    let Some(Body::Done { status, text, .. }) = bodies.last() else { panic!("{bodies:?}") };
    assert_eq!((*status, text.as_str()), (TurnState::Failed, "before. "));
    assert_eq!(rig.parked(), 0);
    engine.shutdown().await;

    // A record that was damaged is not trusted either: the turn ends when the server starts.
    let mut rig = Rig::new();
    let engine = rig.start(0).await;
    let (session, _) = rig.asked(&engine).await;
    rig.until_parked().await;
    engine.shutdown().await;
    drop(engine);
    let record = rig.folder.path().join("data/parked").join(session.to_string()).join("record");
    let mut bytes = std::fs::read(&record).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&record, bytes).unwrap();
    let engine = rig.start(0).await;
    let bodies = rig.bodies(&engine, session, |body| matches!(body, Body::Done { .. })).await;
    assert!(matches!(bodies.last(), Some(Body::Done { status: TurnState::Failed, .. })), "{bodies:?}");
    assert_eq!(rig.parked(), 0);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_session_is_erased_whole() {
    let mut rig = Rig::new();
    let engine = rig.start(0).await;
    let (session, _) = rig.asked(&engine).await;
    rig.until_parked().await;
    engine.delete_session(rig.who(), session).await.unwrap();
    assert_eq!(rig.parked(), 0);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_turn_can_be_interrupted() {
    let mut rig = Rig::new();
    let engine = rig.start(0).await;
    let (session, _) = rig.asked(&engine).await;
    rig.until_parked().await;
    assert!(engine.interrupt(rig.who(), session).await.unwrap());
    let bodies = rig.bodies(&engine, session, |body| matches!(body, Body::Done { .. })).await;
    assert!(matches!(bodies.last(), Some(Body::Done { status: TurnState::Interrupted, .. })), "{bodies:?}");
    engine.shutdown().await;
}
