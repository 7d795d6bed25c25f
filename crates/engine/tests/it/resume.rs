//! Sessions whose machines don't outlive their processes: what was made is kept, put back, found without a machine, and erased.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use karta_engine::data::sessions::NewSession;
use karta_engine::data::turn::{OnBusy, SendMessage};
use karta_engine::settings::Scripted;
use karta_engine::{Builder, Engine, Principal, Settings};
use karta_types::message::Content;
use karta_types::{Body, Event, OrgId, SessionId};

const PATIENCE: Duration = Duration::from_mins(1);

/// What hosts of one installation share, and a data directory for each.
struct Installation(tempfile::TempDir);

impl Installation {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let app = home.path().join("app");
        std::fs::create_dir_all(&app).unwrap();
        let script = r#"{"history": true, "turns": [{"steps": [{"say": "heard"}]}]}"#;
        std::fs::write(app.join("karta.script.json"), script).unwrap();
        Self(home)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn settings(&self, host: &str) -> Settings {
        let mut settings = Settings {
            data: self.path(host),
            database: Some(format!("sqlite:{}", self.path("shared.db").display())),
            scripted: Scripted::Machine,
            ..Settings::default()
        };
        settings.releases.blobs = Some(self.path("blobs"));
        settings
    }

    /// Gives a new host the installation's keys.
    fn keys(&self, from: &str, to: &str) {
        for folder in ["keys", "keys/state", "keys/kek"] {
            let (from, to) = (self.path(from).join(folder), self.path(to).join(folder));
            std::fs::create_dir_all(&to).unwrap();
            for entry in
                std::fs::read_dir(from).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file())
            {
                std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    }

    fn objects(&self) -> usize {
        fn count(folder: &Path) -> usize {
            let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
            let paths = entries.map(|entry| entry.unwrap().path());
            paths.map(|path| if path.is_dir() { count(&path) } else { 1 }).sum()
        }
        count(&self.path("blobs/state"))
    }
}

async fn open(settings: Settings) -> Engine {
    Builder::new(settings).open().await.unwrap()
}

async fn begin(engine: &Engine, installation: &Installation) -> (OrgId, SessionId) {
    let org = engine.ensure_org("one").await.unwrap();
    engine.publish_folder(org, "app", &installation.path("app")).await.unwrap();
    let who = Principal::system(org);
    (org, engine.create_session(&who, "app", NewSession::default()).await.unwrap().id)
}

/// A turn from its message to its `done`: its events.
async fn say(engine: &Engine, org: OrgId, session: SessionId, content: Vec<Content>) -> Vec<Event> {
    let message = SendMessage {
        turn: None,
        content,
        agent: None,
        participant: None,
        thinking: false,
        on_busy: OnBusy::Queue,
    };
    let mut accepted = engine.send(&Principal::system(org), session, message).await.unwrap();
    let mut events = Vec::new();
    let read = async {
        while !events.iter().any(|event: &Event| matches!(event.body, Body::Done { .. })) {
            events.extend(accepted.reader.next().await.unwrap().events().cloned());
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the turn ends");
    events
}

fn text(text: &str) -> Vec<Content> {
    vec![Content::Text { text: text.to_owned() }]
}

fn systems(events: &[Event]) -> Vec<&str> {
    let subtype = |event: &'_ Event| matches!(event.body, Body::System { .. });
    let all = events.iter().filter(|event| subtype(event));
    all.filter_map(
        |event| if let Body::System { subtype, .. } = &event.body { Some(subtype.as_str()) } else { None },
    )
    .filter(|subtype| subtype.starts_with("state_"))
    .collect()
}

async fn history(engine: &Engine, org: OrgId, session: SessionId) -> String {
    serde_json::to_string(&engine.history(&Principal::system(org), session).await.unwrap()).unwrap()
}

/// The host ends as by a kill: nothing of it runs any more, and nothing was said to it.
fn end(runtime: tokio::runtime::Runtime) {
    runtime.shutdown_background();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn a_session_goes_on_on_another_host() {
    let installation = Installation::new();
    let first = runtime();
    let (org, session, told) = first.block_on(async {
        let engine = open(installation.settings("one")).await;
        let (org, session) = begin(&engine, &installation).await;
        let data = base64::engine::general_purpose::STANDARD.encode(b"a file of the user");
        let file = Content::File { name: "notes.txt".to_owned(), media_type: None, data };
        let mut content = text("remember this");
        content.push(file);
        let events = say(&engine, org, session, content).await;
        assert!(systems(&events).is_empty(), "{events:?}");
        let told = history(&engine, org, session).await;
        assert!(told.contains("remember this"), "{told}");
        (org, session, told)
    });
    // At once after `done`.
    end(first);
    installation.keys("one", "two");
    runtime().block_on(async {
        let engine = open(installation.settings("two")).await;
        assert_eq!(history(&engine, org, session).await, told, "without a machine");
        let events = say(&engine, org, session, text("go on")).await;
        assert_eq!(systems(&events), ["state_restored"]);
        let restored = events.iter().find_map(|event| match &event.body {
            Body::System { subtype, detail } if subtype == "state_restored" => Some(detail.clone()),
            _ => None,
        });
        // The history with its folders, the upload with its folder.
        assert!(restored.as_ref().unwrap()["files"].as_u64() >= Some(4), "{restored:?}");
        let more = history(&engine, org, session).await;
        assert!(more.contains("remember this") && more.contains("go on"), "{more}");
        let events = say(&engine, org, session, text("and on")).await;
        assert!(systems(&events).is_empty(), "the machine runs still");
        engine.delete_session(&Principal::system(org), session).await.unwrap();
        assert_eq!(installation.objects(), 0, "nothing of it is left in the blob store");
        engine.shutdown().await;
    });
}

#[tokio::test]
async fn what_was_made_outlives_the_machine_and_a_destroyed_key_does_not_let_it() {
    let installation = Installation::new();
    let mut settings = installation.settings("one");
    settings.limits.idle_seconds = 0;
    let engine = open(settings).await;
    let (org, session) = begin(&engine, &installation).await;
    say(&engine, org, session, text("first")).await;
    let ended = async {
        while engine.is_alive(session) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("a session that rests lets its machine go");
    let events = say(&engine, org, session, text("second")).await;
    assert_eq!(systems(&events), ["state_restored"]);
    assert!(history(&engine, org, session).await.contains("first"));
    let ended = async {
        while engine.is_alive(session) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("again");
    assert!(installation.objects() > 0);
    assert!(engine.destroy_state_key(org).await.unwrap() > 0);
    assert_eq!(installation.objects(), 0);
    assert_eq!(history(&engine, org, session).await, "[]");
    let events = say(&engine, org, session, text("third")).await;
    assert!(systems(&events).is_empty(), "it begins anew: {events:?}");
    let told = history(&engine, org, session).await;
    assert!(told.contains("third") && !told.contains("first"), "{told}");
    let who = Principal::system(org);
    let audit = engine.audit(&who, &karta_engine::control::audit::Filter::default(), None, 50).await.unwrap();
    assert!(format!("{audit:?}").contains("state_key.destroyed"));
    engine.shutdown().await;
}

#[tokio::test]
async fn growth_beyond_the_quota_is_told_and_the_turn_is_done() {
    let installation = Installation::new();
    let mut settings = installation.settings("one");
    settings.state.session_bytes = 2000;
    let engine = open(settings).await;
    let (org, session) = begin(&engine, &installation).await;
    let events = say(&engine, org, session, text("small")).await;
    assert!(systems(&events).is_empty(), "{events:?}");
    let events = say(&engine, org, session, text(&"large ".repeat(1000))).await;
    assert_eq!(systems(&events), ["state_refused"]);
    let detail = events.iter().find_map(|event| match &event.body {
        Body::System { subtype, detail } if subtype == "state_refused" => Some(detail),
        _ => None,
    });
    let detail = detail.unwrap();
    assert!(
        detail["limit"] == "session_bytes" && detail["most"] == 2000 && detail["have"].as_u64() > Some(2000),
        "{detail}"
    );
    assert!(matches!(
        events.last().unwrap().body,
        Body::Done { status: karta_types::session::TurnState::Completed, .. }
    ));
    engine.shutdown().await;
    // What was kept before it is there.
    let engine = open(installation.settings("one")).await;
    let told = history(&engine, org, session).await;
    assert!(told.contains("small") && !told.contains("large"), "{told}");
    engine.shutdown().await;
}
