//! End to end with the real harnesses: the real binary, the real Claude Code and OpenCode, the real client, and the scripted model in
//! the provider's place. They need the harnesses installed (`./test` does that and says where by `KARTA_TEST_HARNESSES`), so they are
//! ignored unless asked for.

#![expect(clippy::expect_used, clippy::panic, reason = "a test that can't go on fails")]

mod attacks;
mod claude_code;
mod faults;
mod isolated;
mod opencode;
mod releases;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use karta_client::{Client, CreateSession, EventStream, SendMessage};
use karta_model::{Options, Server};
use karta_types::event::InputRequired;
use karta_types::message::{Answer, Decision};
use karta_types::session::TurnState;
use karta_types::{Body, Event, Secret, Seq, SessionId, TurnId};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// A key that no file, log or answer may ever show.
pub(crate) const PLANTED: &str = "sk-planted-4f1d9c7ab2e8";
/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_mins(2);

/// A server that runs as a process of its own, and the scripted model that it calls.
pub(crate) struct Karta {
    pub(crate) data: tempfile::TempDir,
    pub(crate) folder: PathBuf,
    pub(crate) client: Client,
    pub(crate) model: Server,
    pub(crate) log: tokio::task::JoinHandle<String>,
    child: Child,
    listen: String,
}

fn harnesses() -> PathBuf {
    let path = std::env::var_os("KARTA_TEST_HARNESSES");
    path.expect("KARTA_TEST_HARNESSES names the folder of installed harnesses; `./test` sets it").into()
}

impl Karta {
    /// Serves a folder with these files.
    pub(crate) async fn serve(files: &[(&str, &str)]) -> Self {
        Self::serve_with(files, "", Options::default()).await
    }

    pub(crate) async fn serve_with(files: &[(&str, &str)], settings: &str, options: Options) -> Self {
        let data = tempfile::tempdir().unwrap();
        let folder = data.path().join("app");
        for (name, content) in files {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        std::fs::create_dir_all(data.path().join("data")).unwrap();
        std::os::unix::fs::symlink(harnesses(), data.path().join("data/harnesses")).unwrap();
        if let Some(images) = std::env::var_os("KARTA_TEST_IMAGES") {
            std::os::unix::fs::symlink(images, data.path().join("data/images")).unwrap();
        }
        std::fs::write(data.path().join("settings.toml"), settings).unwrap();
        let options =
            Options { required_key: options.required_key.or_else(|| Some(PLANTED.to_owned())), ..options };
        let model = Server::start(options).await.unwrap();
        let (child, client, log, listen) =
            start(data.path(), &folder, &model.base_url(), "127.0.0.1:0").await;
        Self { data, folder, client, model, log, child, listen }
    }

    /// The server's address and key.
    pub(crate) fn address(&self) -> (String, String) {
        let about = std::fs::read(self.data.path().join("data/dev.json")).unwrap();
        let about: serde_json::Value = serde_json::from_slice(&about).unwrap();
        (about["url"].as_str().unwrap().to_owned(), about["key"].as_str().unwrap().to_owned())
    }

    /// Kills the server like a power cut of the process, and starts it again on the same data and port.
    pub(crate) async fn kill_and_restart(&mut self) {
        self.kill_between(|| ()).await;
    }

    /// The same, with something done in between.
    pub(crate) async fn kill_between(&mut self, work: impl FnOnce()) {
        self.child.start_kill().unwrap();
        self.child.wait().await.unwrap();
        work();
        let (child, client, log, _) =
            start(self.data.path(), &self.folder, &self.model.base_url(), &self.listen).await;
        (self.child, self.client, self.log) = (child, client, log);
    }

    pub(crate) async fn session(&self) -> SessionId {
        let new = CreateSession { project: Some("app".to_owned()), ..CreateSession::default() };
        self.client.create_session(&new).await.unwrap().id
    }

    /// Runs a turn to its end, answering every question with `answer`.
    pub(crate) async fn turn(
        &self,
        session: SessionId,
        text: &str,
        answer: impl Fn(&InputRequired) -> Answer,
    ) -> Vec<Event> {
        let stream = self.client.send_streaming(session, &SendMessage::text(text)).unwrap();
        self.follow(session, stream, answer).await
    }

    pub(crate) async fn follow(
        &self,
        session: SessionId,
        mut stream: EventStream,
        answer: impl Fn(&InputRequired) -> Answer,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        let all = async {
            while let Some(event) = stream.next().await {
                let event = event.unwrap();
                if let Body::InputRequired(asked) = &event.body {
                    self.client.answer(session, asked.request_id, &answer(asked)).await.unwrap();
                }
                events.push(event);
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("the turn ends");
        whole(&events);
        events
    }

    /// Stops the server in good order and gives what it logged.
    pub(crate) async fn stop(mut self) -> (String, tempfile::TempDir) {
        let pid = self.child.id().unwrap();
        let killed = Command::new("kill").args(["-TERM", &pid.to_string()]).status().await.unwrap();
        assert!(killed.success());
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("the server ends").unwrap();
        (self.log.await.unwrap(), self.data)
    }
}

async fn start(
    data: &Path,
    folder: &Path,
    model: &str,
    listen: &str,
) -> (Child, Client, tokio::task::JoinHandle<String>, String) {
    let data_dir = data.join("data");
    let mut command = Command::new(env!("CARGO_BIN_EXE_karta"));
    command
        .args(["dev", folder.to_str().unwrap(), "--project", "app", "--listen", listen, "--config"])
        .arg(data.join("settings.toml"))
        .arg("--data")
        .arg(&data_dir)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", data)
        .env("ANTHROPIC_API_KEY", PLANTED)
        .env("ANTHROPIC_BASE_URL", model)
        .env("OPENAI_API_KEY", PLANTED)
        .env("OPENAI_BASE_URL", model)
        .env("KARTA_LOG", "debug")
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut err = BufReader::new(child.stderr.take().unwrap()).lines();
    #[expect(clippy::disallowed_methods, reason = "ends with the server's output")]
    let log = tokio::spawn(async move {
        let mut log = String::new();
        while let Ok(Some(line)) = err.next_line().await {
            log.push_str(&line);
            log.push('\n');
        }
        log
    });
    // The curl line is printed once the server takes requests.
    let line = tokio::time::timeout(PATIENCE, out.next_line()).await.expect("the server starts").unwrap();
    assert!(line.unwrap_or_default().starts_with("curl "), "the server did not start");
    let about: serde_json::Value =
        serde_json::from_slice(&std::fs::read(data_dir.join("dev.json")).unwrap()).unwrap();
    let url = about["url"].as_str().unwrap();
    let key = Secret::new(about["key"].as_str().unwrap().to_owned());
    let listen = url.trim_start_matches("http://").to_owned();
    (child, Client::new(url, key).unwrap(), log, listen)
}

/// Numbered without gap or repeat, one `done`, and that last.
pub(crate) fn whole(events: &[Event]) {
    let done = events.iter().filter(|event| matches!(event.body, Body::Done { .. })).count();
    assert_eq!(done, 1, "{events:#?}");
    assert!(matches!(events.last().unwrap().body, Body::Done { .. }));
    for pair in events.windows(2) {
        // `system` events are numbered too, but hidden.
        assert!(pair[0].seq < pair[1].seq, "{pair:#?}");
    }
}

pub(crate) fn status(events: &[Event]) -> TurnState {
    match &events.last().unwrap().body {
        Body::Done { status, .. } => *status,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn text(events: &[Event]) -> String {
    match &events.last().unwrap().body {
        Body::Done { text, .. } => text.clone(),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn kinds(events: &[Event]) -> Vec<&'static str> {
    events.iter().map(|event| event.body.kind()).collect()
}

pub(crate) fn results(events: &[Event]) -> Vec<(String, bool)> {
    let result = |event: &Event| match &event.body {
        Body::ToolResult { output, is_error, .. } => {
            Some((output.as_str().map_or_else(|| output.to_string(), str::to_owned), *is_error))
        }
        _ => None,
    };
    events.iter().filter_map(result).collect()
}

pub(crate) fn error_code(events: &[Event]) -> Option<String> {
    events.iter().find_map(|event| match &event.body {
        Body::Error(problem) => Some(problem.error.as_str().to_owned()),
        _ => None,
    })
}

pub(crate) fn decide(decision: Decision) -> Answer {
    Answer { decision, message: None, updated_input: None, answers: None }
}

pub(crate) fn yes(_asked: &InputRequired) -> Answer {
    decide(Decision::ApproveOnce)
}

/// Waits for the first event of a kind and gives everything up to it.
pub(crate) async fn until(stream: &mut EventStream, kind: &str) -> Vec<Event> {
    until_within(PATIENCE, stream, kind).await
}

pub(crate) async fn until_within(patience: Duration, stream: &mut EventStream, kind: &str) -> Vec<Event> {
    let mut events = Vec::new();
    let wait = async {
        while let Some(event) = stream.next().await {
            let event = event.unwrap();
            let found = event.body.kind() == kind;
            events.push(event);
            if found {
                return;
            }
        }
        panic!("the stream ended before a `{kind}`: {events:#?}");
    };
    tokio::time::timeout(patience, wait).await.expect("the event comes");
    events
}

/// A turn from the session's very first event on, however it was cut.
pub(crate) async fn replay(client: &Client, session: SessionId, turn: TurnId) -> Vec<Event> {
    let mut stream = client.turn_events(session, turn, Seq::START);
    let mut events = Vec::new();
    let all = async {
        while let Some(event) = stream.next().await {
            events.push(event.unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("the turn has an end");
    events
}

/// No file below `path` holds the planted key.
pub(crate) fn nowhere(path: &Path) {
    absent(path, PLANTED);
}

/// No file below `path` holds what nobody may read there.
pub(crate) fn absent(path: &Path, secret: &str) {
    let mut open = vec![path.to_owned()];
    let mut files = 0;
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                let meta = entry.metadata().unwrap();
                // An empty disk that sandboxes begin with: formatted, and otherwise holes.
                if meta.blocks() * 512 < meta.len() / 2 {
                    continue;
                }
                files += 1;
                let bytes = std::fs::read(entry.path()).unwrap();
                let found = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
                assert!(!found, "a secret is in {}", entry.path().display());
            }
        }
    }
    assert!(files > 3, "there was something to look at");
}
