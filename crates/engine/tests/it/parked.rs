//! Turns that wait for a person with their sandbox saved: woken by the answer, also after a start of the server.

#![expect(clippy::panic, reason = "a test that can't go on fails")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use karta_engine::data::sessions::NewSession;
use karta_engine::data::stream::Item;
use karta_engine::data::turn::{OnBusy, SendMessage};
use karta_engine::sandbox::fake::{Driver, Freezer, Program};
use karta_engine::{Builder, Engine, Principal, Settings};
use karta_types::message::{Answer, Content, Decision};
use karta_types::session::{SessionStatus, TurnState};
use karta_types::{Body, RequestId, Seq, SessionId};
use serde_json::json;

/// How long anything may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Rig {
    folder: tempfile::TempDir,
    pub(crate) freezer: Freezer,
    programs: HashMap<String, Program>,
    /// Whether sessions are kept from the network.
    confines: bool,
    who: Option<Principal>,
}

impl Rig {
    fn new() -> Self {
        let script = json!({"turns": [{"steps": [
            {"say": "before. "},
            {"use": {"input_tokens": 60, "output_tokens": 50, "cost_micros": 900}},
            {"ask": {"tool": "Bash", "input": {"command": "ls"}, "message": "Run?",
                "approved": [{"say": "approved"}], "denied": [{"say": "denied"}]}}]}]});
        Self::of(&[("karta.script.json", &script.to_string())])
    }

    /// With a folder of these files.
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join("app").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let programs = karta_engine::scripted_functions();
        Self { folder, freezer: Freezer::default(), programs, confines: false, who: None }
    }

    /// Changes a file of the folder.
    pub(crate) fn write(&self, name: &str, content: &str) {
        std::fs::write(self.folder.path().join("app").join(name), content).unwrap();
    }

    /// With a function that plays a program.
    pub(crate) fn with_program(mut self, path: &str, program: Program) -> Self {
        self.programs.insert(path.to_owned(), program);
        self
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) async fn start(&mut self, park_seconds: u64) -> Engine {
        self.start_with(park_seconds, |_| ()).await
    }

    pub(crate) async fn start_with(
        &mut self,
        park_seconds: u64,
        change: impl FnOnce(&mut Settings),
    ) -> Engine {
        let mut settings = Settings { data: self.data(), ..Settings::default() };
        settings.limits.park_seconds = park_seconds;
        change(&mut settings);
        let (clock, rng) = (Arc::new(karta_types::time::System), Arc::new(karta_types::rng::System));
        let driver = Driver::new(self.programs.clone(), clock, rng).freezing(self.freezer.clone());
        let driver = if self.confines { driver.confining() } else { driver };
        let engine = Builder::new(settings).with_driver(Arc::new(driver)).open().await.unwrap();
        let org = engine.ensure_org("one").await.unwrap();
        self.who = Some(Principal::system(org));
        engine.publish_folder(org, "app", &self.folder.path().join("app")).await.unwrap();
        engine
    }

    pub(crate) fn who(&self) -> &Principal {
        self.who.as_ref().unwrap()
    }

    pub(crate) fn parked(&self) -> usize {
        let root = self.folder.path().join("data/parked");
        let held = |path: &Path| !path.file_name().unwrap().to_str().unwrap().starts_with('.');
        std::fs::read_dir(root)
            .map_or(0, |entries| entries.filter(|entry| held(&entry.as_ref().unwrap().path())).count())
    }

    /// Begins a turn and reads until it asks.
    pub(crate) async fn asked(&self, engine: &Engine) -> (SessionId, RequestId) {
        self.asked_by(engine, "go").await
    }

    pub(crate) async fn asked_by(&self, engine: &Engine, text: &str) -> (SessionId, RequestId) {
        let session = engine.create_session(self.who(), "app", NewSession::default()).await.unwrap().id;
        let message = SendMessage {
            turn: None,
            content: vec![Content::Text { text: text.to_owned() }],
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
    pub(crate) async fn bodies(
        &self,
        engine: &Engine,
        session: SessionId,
        wanted: impl Fn(&Body) -> bool,
    ) -> Vec<Body> {
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

    pub(crate) async fn until_parked(&self) {
        let wait = async {
            while self.freezer.count() == 0 || self.parked() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the turn was parked");
    }

    pub(crate) async fn answer(&self, engine: &Engine, session: SessionId, request: RequestId) {
        engine.answer(self.who(), session, request, decide(Decision::ApproveOnce)).await.unwrap();
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

pub(crate) fn decide(decision: Decision) -> Answer {
    Answer { decision, message: None, updated_input: None, answers: None }
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
    assert_eq!(waits.status, SessionStatus::Waiting);
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

/// What a crash at this moment would leave.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).unwrap();
        if entry.is_dir() {
            copy(&entry, &to);
        } else if entry.is_file() {
            std::fs::copy(&entry, &to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_turn_waits_on_though_what_was_queued_behind_it_is_lost_in_a_crash() {
    let mut rig = Rig::new();
    let engine = rig.start(0).await;
    let (session, _) = rig.asked(&engine).await;
    rig.until_parked().await;
    let message = SendMessage {
        turn: None,
        content: vec![Content::Text { text: "next".to_owned() }],
        agent: None,
        participant: None,
        thinking: false,
        on_busy: OnBusy::Queue,
    };
    let queued = engine.send(rig.who(), session, message).await.unwrap();
    assert!(queued.queued);
    let mut crashed = Rig::new();
    copy(&rig.folder.path().join("data"), &crashed.folder.path().join("data"));
    engine.shutdown().await;

    let engine = crashed.start(0).await;
    let ended = engine.turn(crashed.who(), session, queued.turn).await.unwrap();
    assert_eq!(ended.state, TurnState::Failed);
    assert_eq!(crashed.parked(), 1, "it waits on");
    let waits = async {
        while engine.session(crashed.who(), session).await.unwrap().status != SessionStatus::Waiting {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.expect("it waits");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_joins_a_parked_turn_is_brought_to_it() {
    let mut rig = Rig::new();
    let engine = rig.start(0).await;
    let (session, request) = rig.asked(&engine).await;
    rig.until_parked().await;
    let file = Content::File { name: "a.txt".to_owned(), media_type: None, data: "YQ==".to_owned() };
    let message = SendMessage {
        turn: None,
        content: vec![file],
        agent: None,
        participant: None,
        thinking: false,
        on_busy: OnBusy::Steer,
    };
    engine.send(rig.who(), session, message).await.unwrap();
    rig.answer(&engine, session, request).await;
    let bodies = rig.bodies(&engine, session, |body| matches!(body, Body::Done { .. })).await;
    let Some(Body::Done { status, text, .. }) = bodies.last() else { panic!("{bodies:?}") };
    assert_eq!(*status, TurnState::Completed);
    assert!(text.contains("attached a file: uploads/a.txt"), "{text}");
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

impl Rig {
    /// The turn ends without having been woken.
    async fn failed(&self, engine: &Engine, session: SessionId) {
        let bodies = self.bodies(engine, session, |body| matches!(body, Body::Done { .. })).await;
        let Some(Body::Done { status, text, .. }) = bodies.last() else { panic!("{bodies:?}") };
        assert_eq!((*status, text.as_str()), (TurnState::Failed, "before. "));
    }

    fn place(&self, session: SessionId) -> std::path::PathBuf {
        self.folder.path().join("data/parked").join(session.to_string())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_is_unreadable_without_the_organisation_s_key() {
    for restarted in [false, true] {
        let mut rig = Rig::new();
        let mut engine = rig.start(0).await;
        let (session, request) = rig.asked(&engine).await;
        rig.until_parked().await;
        // A copy that the server does not know of.
        let backup = rig.folder.path().join("backup");
        copy(&rig.place(session), &backup);
        engine.destroy_state_key(rig.who().org).await.unwrap();
        assert_eq!(rig.parked(), 0);
        copy(&backup, &rig.place(session));
        if restarted {
            engine.shutdown().await;
            engine = rig.start(0).await;
        } else {
            rig.answer(&engine, session, request).await;
        }
        rig.failed(&engine, session).await;
        assert_eq!(rig.freezer.count(), 1, "nobody had its key");
        engine.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_good_in_its_own_session_alone() {
    let mut rig = Rig::new();
    let engine = rig.start(0).await;
    let mut sessions = Vec::new();
    for number in 1..=2 {
        sessions.push(rig.asked(&engine).await.0);
        let wait = async {
            while rig.parked() < number {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the turn was parked");
    }
    engine.shutdown().await;
    let [one, other] = [sessions[0], sessions[1]].map(|session| rig.place(session).join("record"));
    let (record, second) = (std::fs::read(&one).unwrap(), std::fs::read(&other).unwrap());
    std::fs::write(&one, second).unwrap();
    std::fs::write(&other, &record).unwrap();
    for text in [&b"model_token"[..], b"tape", b"before", b"park_key"] {
        assert!(!record.windows(text.len()).any(|window| window == text));
    }
    let engine = rig.start(0).await;
    for session in sessions {
        rig.failed(&engine, session).await;
    }
    assert_eq!(rig.parked(), 0);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_find_the_certificates_that_they_have_read() {
    let mut rig = Rig::new();
    rig.confines = true;
    let ask = |approved: serde_json::Value| {
        json!({"ask": {"tool": "Bash", "input": {"command": "ls"}, "message": "Run?",
            "approved": [approved], "denied": [{"say": "denied"}]}})
    };
    let script = json!({"turns": [{"steps": [ask(ask(json!({"say": "approved"})))]}]});
    let app = rig.folder.path().join("app");
    std::fs::write(app.join("karta.script.json"), script.to_string()).unwrap();
    std::fs::write(app.join("karta.toml"), "[policy]\negress = [\"GET a.example/x\"]\n").unwrap();
    let engine = rig.start(0).await;
    let (session, request) = rig.asked(&engine).await;
    let bundle = Path::new("/karta").join(session.to_string()).join("tmp/karta-certificates.pem");
    rig.until_parked().await;
    let first = rig.freezer.file(&bundle).expect("its certificates are there");
    assert!(String::from_utf8_lossy(&first).contains("BEGIN CERTIFICATE"));
    engine.shutdown().await;
    let engine = rig.start(0).await;
    rig.answer(&engine, session, request).await;
    let asks = std::cell::Cell::new(0);
    let second = |body: &Body| {
        asks.set(asks.get() + u32::from(matches!(body, Body::InputRequired(_))));
        asks.get() == 2 || matches!(body, Body::Done { .. })
    };
    let bodies = rig.bodies(&engine, session, second).await;
    let Some(Body::InputRequired(asked)) = bodies.last() else { panic!("{bodies:?}") };
    let request = asked.request_id;
    rig.until_parked().await;
    assert_eq!(rig.freezer.file(&bundle).as_ref(), Some(&first), "the same as before");
    rig.answer(&engine, session, request).await;
    let bodies = rig.bodies(&engine, session, |body| matches!(body, Body::Done { .. })).await;
    assert!(matches!(bodies.last(), Some(Body::Done { status: TurnState::Completed, .. })), "{bodies:?}");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_stopped_saves_two_at_once() {
    let mut rig = Rig::new();
    let engine = rig.start(3600).await;
    let mut asked = Vec::new();
    for _ in 0..5 {
        asked.push(rig.asked(&engine).await);
    }
    rig.freezer.set_open(false);
    let stop = engine.shutdown();
    let watch = async {
        let wait = async {
            while rig.freezer.waiting() < 2 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("two are being saved");
        for _ in 0..1000 {
            assert_eq!(rig.freezer.waiting(), 2);
            tokio::task::yield_now().await;
        }
        rig.freezer.set_open(true);
    };
    tokio::join!(stop, watch);
    drop(engine);
    assert_eq!(rig.parked(), 5);
    let engine = rig.start(3600).await;
    for (session, request) in &asked {
        rig.answer(&engine, *session, *request).await;
        let bodies = rig.bodies(&engine, *session, |body| matches!(body, Body::Done { .. })).await;
        assert!(matches!(bodies.last(), Some(Body::Done { status: TurnState::Completed, .. })), "{bodies:?}");
    }
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_room_is_not_parked_and_goes_on() {
    let mut rig = Rig::new();
    rig.freezer.set_weight(1 << 60);
    let engine = rig.start(0).await;
    let (session, request) = rig.asked(&engine).await;
    rig.answer(&engine, session, request).await;
    rig.done(&engine, session).await;
    engine.shutdown().await;
    // At the server's end there is nothing else to be done than to end it, in writing.
    let engine = rig.start(3600).await;
    let (session, _) = rig.asked(&engine).await;
    engine.shutdown().await;
    drop(engine);
    assert_eq!((rig.parked(), rig.freezer.count()), (0, 0));
    let engine = rig.start(3600).await;
    let bodies = rig.bodies(&engine, session, |body| matches!(body, Body::Done { .. })).await;
    assert!(matches!(bodies.last(), Some(Body::Done { status: TurnState::Failed, .. })), "{bodies:?}");
    engine.shutdown().await;
}
