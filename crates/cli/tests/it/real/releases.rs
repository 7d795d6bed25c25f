//! A release goes live, the next one during a turn, and back again: the real git client, the real harnesses.

use karta_client::{CreateSession, SendMessage};
use karta_types::session::{ReleasePin, TurnState};

use super::*;

/// What the agent's instructions say in a release.
fn words(version: u64) -> String {
    format!("# An app\n\nThe words of release number {version} are here.\n")
}

/// A working copy that pushes to a project of the server.
struct Copy {
    folder: PathBuf,
    remote: String,
}

impl Copy {
    fn new(karta: &Karta) -> Self {
        let (url, key) = karta.address();
        let address = url.trim_start_matches("http://");
        let folder = karta.data.path().join("copy");
        std::fs::create_dir(&folder).unwrap();
        let copy = Self { folder, remote: format!("http://git:{key}@{address}/git/shop.git") };
        copy.git(&["init", "--quiet", "--initial-branch=main"]);
        copy
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Commits everything and pushes it; it must be taken. Answers what git said.
    fn push(&self, message: &str) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", message]);
        self.git(&["push", &self.remote, "main"])
    }

    fn git(&self, args: &[&str]) -> String {
        let ran = std::process::Command::new("git")
            .args(["-c", "user.name=Ann", "-c", "user.email=ann@example.com"])
            .args(args)
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", &self.folder)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.success(), "git {args:?}: {said}");
        said
    }
}

fn version(events: &[Event]) -> u64 {
    let started = events.iter().find_map(|event| match &event.body {
        Body::TurnStart { release, .. } => Some(release.version),
        _ => None,
    });
    started.expect("a turn starts with its release")
}

/// Whether the last call of the model was told the words of this release.
fn told(karta: &Karta, version: u64) -> bool {
    let asked = karta.model.requests().pop().unwrap().body.to_string();
    asked.contains(&format!("The words of release number {version} are here."))
}

/// Publishes, publishes again during a turn, rolls back: on a session that goes along and on one that stays.
async fn live(instructions: &str, others: &[(&str, &str)], tool: &str) {
    let karta = Karta::serve(&[&[(instructions, "# Another project\n")], others].concat()).await;
    let copy = Copy::new(&karta);
    for (name, content) in others {
        copy.write(name, content);
    }
    copy.write(instructions, &words(1));
    copy.write("mine.txt", "of release one\n");
    let said = copy.push("One");
    assert!(said.contains("v1"), "{said}");

    let session = async |pin| {
        let new = CreateSession {
            project: Some("shop".to_owned()),
            release_pin: Some(pin),
            ..CreateSession::default()
        };
        karta.client.create_session(&new).await.unwrap().id
    };
    let (goes, stays) = (session(ReleasePin::Turn).await, session(ReleasePin::Session).await);
    let run = |command: &str| {
        format!(
            r#"go SCRIPT: [{{"tool":"{tool}","input":{{"command":"{command}","description":"x"}}}},{{"text":"ran"}}]"#
        )
    };
    for id in [goes, stays] {
        let events = karta.turn(id, &run("echo of the session > mine.txt"), yes).await;
        assert_eq!((status(&events), version(&events)), (TurnState::Completed, 1), "{events:#?}");
        assert!(told(&karta, 1));
    }

    // The next release goes live while a turn waits for a person: the turn ends on the one that it began on.
    let mut stream =
        karta.client.send_streaming(goes, &SendMessage::text(run("echo during > during.txt"))).unwrap();
    let mut events = until(&mut stream, "input_required").await;
    copy.write(instructions, &words(2));
    copy.write("mine.txt", "of release two\n");
    copy.write("new.txt", "new in release two\n");
    let said = copy.push("Two");
    assert!(said.contains("v2"), "{said}");
    assert_eq!(karta.client.project("shop").await.unwrap().active_release.unwrap().release.version, 2);
    let asked = karta.client.inputs(goes).await.unwrap().data.remove(0).input;
    karta.client.answer(goes, asked.request_id, &yes(&asked)).await.unwrap();
    let rest = async {
        while let Some(event) = stream.next().await {
            events.push(event.unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, rest).await.expect("the turn ends");
    whole(&events);
    assert_eq!((status(&events), version(&events)), (TurnState::Completed, 1), "{events:#?}");
    assert!(told(&karta, 1) && !told(&karta, 2), "no word of the new release in the old one's turn");

    // The next turn is on the new one. What the session changed itself is still its own.
    let events = karta.turn(goes, &run("cat mine.txt new.txt during.txt"), yes).await;
    assert_eq!((status(&events), version(&events)), (TurnState::Completed, 2), "{events:#?}");
    assert!(told(&karta, 2));
    let (url, key) = karta.address();
    let all = reqwest::Client::builder().no_proxy().build().unwrap();
    let all = all.get(format!("{url}/v1/sessions/{goes}/events?include=system")).bearer_auth(key);
    let mut seen = all.send().await.unwrap();
    let kept = async {
        let mut text = String::new();
        while let Some(part) = seen.chunk().await.unwrap() {
            text.push_str(&String::from_utf8_lossy(&part));
            let tells = |line: &str| line.contains("\"files_kept\"") && line.contains("\"mine.txt\"");
            if text.lines().any(tells) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, kept).await.expect("what was kept is told");
    let output = results(&events)[0].0.clone();
    for line in ["of the session", "new in release two", "during"] {
        assert!(output.contains(line), "{output}");
    }
    let events = karta.turn(stays, "hello", yes).await;
    assert_eq!(version(&events), 1, "{events:#?}");
    assert!(told(&karta, 1));

    // One call, and the first is back.
    let back = karta.client.roll_back("shop", None, Some("it lies")).await.unwrap();
    assert_eq!(back.version, 1);
    let events = karta.turn(goes, "hello", yes).await;
    assert_eq!((status(&events), version(&events)), (TurnState::Completed, 1), "{events:#?}");
    assert!(told(&karta, 1));
    let events = karta.turn(session(ReleasePin::Turn).await, "hello", yes).await;
    assert_eq!(version(&events), 1);
    karta.stop().await;
}

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn claude_code_runs_each_turn_on_one_release() {
    live("CLAUDE.md", &[], "Bash").await;
}

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn opencode_runs_each_turn_on_one_release() {
    live("AGENTS.md", &[(".opencode/opencode.json", "{}\n")], "bash").await;
}

/// What a release forbids is not done, whatever the model wants and whoever would allow it.
async fn denied(instructions: &str, others: &[(&str, &str)], tool: &str) {
    let manifest = format!("[policy.tools]\ndeny = [\"{tool}\"]\n\n[env]\nGREETING = \"hello\"\n");
    let files = [&[(instructions, "# An app\n"), ("karta.toml", &manifest)], others].concat();
    let karta = Karta::serve(&files).await;
    let session = karta.session().await;
    let script = format!(
        r#"go SCRIPT: [{{"tool":"{tool}","input":{{"command":"echo done > done.txt","description":"x"}}}},{{"text":"tried"}}]"#
    );
    let events = karta.turn(session, &script, yes).await;
    assert_eq!(status(&events), TurnState::Completed, "{events:#?}");
    let place = karta.data.path().join("data/sessions").join(session.to_string());
    let mut open = vec![place];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let entry = entry.unwrap();
            assert_ne!(entry.file_name(), "done.txt", "the tool ran");
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            }
        }
    }
    let tools = karta.model.requests().pop().unwrap().body["tools"].to_string();
    assert!(!tools.contains(&format!("\"name\":\"{tool}\"")), "the model is not even offered it");
    karta.stop().await;
}

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn claude_code_does_not_use_a_tool_that_the_release_forbids() {
    denied("CLAUDE.md", &[], "Bash").await;
}

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn opencode_does_not_use_a_tool_that_the_release_forbids() {
    denied("AGENTS.md", &[(".opencode/opencode.json", "{}\n")], "bash").await;
}
