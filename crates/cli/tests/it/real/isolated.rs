//! The real harnesses in sandboxes of their own: a virtual machine each, or namespaces. They need what `./test` installs: QEMU, and an
//! image (`KARTA_TEST_IMAGES` names the folder).

use std::path::Path;

use karta_client::SendMessage;
use karta_model::Options;
use karta_types::message::Decision;
use karta_types::session::{Isolation, TurnState};
use karta_types::{Body, Seq};

use super::*;

const CLAUDE: &[(&str, &str)] = &[("CLAUDE.md", "# An app\n\nBe brief.\n"), ("data/numbers.txt", "1 2 3\n")];
const OPENCODE: &[(&str, &str)] = &[
    ("opencode.json", r#"{"$schema":"https://opencode.ai/config.json","permission":{"bash":"ask"}}"#),
    ("data/numbers.txt", "1 2 3\n"),
];
/// Emulated machines are slow; nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_mins(10);

fn settings(isolation: &str, more: &str) -> String {
    format!("isolation = \"{isolation}\"\n{more}\n[limits]\nstart_seconds = 300\npark_seconds = 0\n")
}

fn bash(command: &str, last: &str) -> String {
    let command = command.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        r#"go SCRIPT: [{{"text":"I will. ","tool":"Bash","input":{{"command":"{command}","description":"x"}}}},{{"text":"{last}"}}]"#
    )
}

async fn turn(karta: &Karta, session: SessionId, text: &str) -> Vec<Event> {
    let stream = karta.client.send_streaming(session, &SendMessage::text(text)).unwrap();
    tokio::time::timeout(PATIENCE, karta.follow(session, stream, yes)).await.expect("the turn ends")
}

/// Nothing of a machine or of namespaces is left on the host.
pub(super) fn nothing_left(data: &Path) {
    for folder in ["machines", "sandboxes", "parked"] {
        let Ok(entries) = std::fs::read_dir(data.join(folder)) else { continue };
        let left: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            // What is kept for the next machines is nobody's.
            .filter(|name| name.contains("sess_") || name.contains("sbx_"))
            .collect();
        assert_eq!(left, Vec::<String>::new(), "{folder}");
    }
}

/// A turn with a tool, another after everything was torn down, and the end.
async fn a_whole_session(isolation: &str, files: &[(&str, &str)]) {
    let mut karta = Karta::serve_with(files, &settings(isolation, ""), Options::default()).await;
    let session = karta.session().await;
    let shown = karta.client.session(session).await.unwrap();
    let wanted = if isolation == "microvm" { Isolation::Microvm } else { Isolation::Namespace };
    assert_eq!(shown.isolation, wanted);

    let look =
        "id -u; hostname; env; echo kept > made.txt; ls -d /proc/[0-9]* | wc -l; cat /etc/hostname; ls /";
    let events = turn(&karta, session, &bash(look, "made")).await;
    assert_eq!(status(&events), TurnState::Completed, "{events:#?}");
    assert_eq!(text(&events), "I will. made", "{events:#?}");
    let seen = results(&events)[0].0.clone();
    assert!(seen.starts_with("1000"), "it is nobody in particular: {seen}");
    assert!(!seen.contains(PLANTED), "the provider's key is outside: {seen}");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(!seen.lines().any(|line| line == host.trim()), "{seen}");

    // A server that is killed leaves no machine, and what the session made is there again.
    karta.kill_and_restart().await;
    let events = turn(&karta, session, &bash("cat made.txt", "back")).await;
    assert_eq!(status(&events), TurnState::Completed, "{events:#?}");
    assert!(results(&events)[0].0.contains("kept"), "{events:#?}");
    let history = karta.client.history(session).await.unwrap().data;
    assert!(history.iter().any(|message| message.text.contains("made")), "resumed natively: {history:#?}");

    karta.client.delete_session(session).await.unwrap();
    nothing_left(&karta.data.path().join("data"));
    let (log, data) = karta.stop().await;
    assert!(!log.contains(PLANTED));
    nowhere(&data.path().join("data"));
}

#[tokio::test]
#[ignore = "needs the real harnesses, QEMU and an image: ./test runs it"]
async fn claude_code_in_a_machine_of_its_own() {
    a_whole_session("microvm", CLAUDE).await;
}

#[tokio::test]
#[ignore = "needs the real harnesses and an image: ./test runs it"]
async fn claude_code_in_namespaces() {
    a_whole_session("namespace", CLAUDE).await;
}

#[tokio::test]
#[ignore = "needs the real harnesses and an image: ./test runs it"]
async fn opencode_in_namespaces() {
    a_whole_session("namespace", OPENCODE).await;
}

#[tokio::test]
#[ignore = "needs the real harnesses, QEMU and an image, and some minutes: ./test runs it"]
async fn opencode_in_a_machine_of_its_own() {
    a_whole_session("microvm", OPENCODE).await;
}

/// A turn that asks is parked, its server killed, and the answer given to the next one.
async fn an_approval_across_a_kill(files: &[(&str, &str)]) {
    let mut karta = Karta::serve_with(files, &settings("microvm", ""), Options::default()).await;
    let session = karta.session().await;
    let asks = bash("echo yes > approved.txt && cat approved.txt data/numbers.txt", "end");
    let mut stream = karta.client.send_streaming(session, &SendMessage::text(&asks)).unwrap();
    let before = until_within(PATIENCE, &mut stream, "input_required").await;
    let turn = before[0].turn_id.unwrap();
    let asked = before
        .iter()
        .find_map(|event| match &event.body {
            Body::InputRequired(asked) => Some(asked.clone()),
            _ => None,
        })
        .unwrap();
    drop(stream);
    let record = karta.data.path().join("data/parked").join(session.to_string()).join("record");
    let parked = async {
        while !record.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, parked).await.expect("the turn is parked");
    karta.kill_and_restart().await;

    let open = karta.client.inputs(session).await.unwrap().data;
    assert_eq!(open.len(), 1, "it waits on");
    karta.client.answer(session, asked.request_id, &decide(Decision::ApproveOnce)).await.unwrap();
    let mut rest = karta.client.turn_events(session, turn, Seq::START);
    let mut all = Vec::new();
    let read = async {
        while let Some(event) = rest.next().await {
            all.push(event.unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the turn ends");
    whole(&all);
    assert_eq!(status(&all), TurnState::Completed, "{all:#?}");
    assert_eq!((results(&all).len(), text(&all).as_str()), (1, "I will. end"), "{all:#?}");
    assert!(results(&all)[0].0.contains("yes") && results(&all)[0].0.contains("1 2 3"), "{all:#?}");
    assert!(!record.exists());
    karta.stop().await;
}

#[tokio::test]
#[ignore = "needs the real harnesses, QEMU and an image: ./test runs it"]
async fn an_approval_waits_across_a_server_that_is_killed() {
    an_approval_across_a_kill(CLAUDE).await;
}

#[tokio::test]
#[ignore = "needs the real harnesses, QEMU and an image, and some minutes: ./test runs it"]
async fn an_approval_of_opencode_waits_across_a_server_that_is_killed() {
    an_approval_across_a_kill(OPENCODE).await;
}

#[tokio::test]
#[ignore = "needs the real harnesses, QEMU and an image: ./test runs it"]
async fn a_session_goes_on_from_the_blob_store_alone() {
    let kept = tempfile::tempdir().unwrap();
    let more = format!(
        "database = \"sqlite:{0}/karta.db\"\n[releases]\nblobs = \"{0}/blobs\"\n",
        kept.path().display()
    );
    let mut karta = Karta::serve_with(CLAUDE, &settings("microvm", &more), Options::default()).await;
    let session = karta.session().await;
    let events = turn(&karta, session, &bash("mkdir -p deep/er && echo moved > deep/er/file", "made")).await;
    assert_eq!(status(&events), TurnState::Completed, "{events:#?}");

    // Another host: the database and the blob store, and the keys that open them; nothing else.
    let data = karta.data.path().join("data");
    karta
        .kill_between(|| {
            for entry in std::fs::read_dir(&data).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                if path.is_symlink() || name == "keys" {
                    continue;
                }
                let gone =
                    if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
                gone.unwrap();
            }
        })
        .await;
    let events = turn(&karta, session, &bash("cat deep/er/file", "back")).await;
    assert_eq!(status(&events), TurnState::Completed, "{events:#?}");
    assert!(results(&events)[0].0.contains("moved"), "{events:#?}");
    let history = karta.client.history(session).await.unwrap().data;
    assert!(history.iter().any(|message| message.text.contains("made")), "resumed natively: {history:#?}");
    karta.stop().await;
}

#[tokio::test]
#[ignore = "needs the real harnesses and an image: ./test runs it"]
async fn a_server_that_keeps_less_apart_takes_no_turns_of_a_session() {
    let mut karta = Karta::serve_with(CLAUDE, &settings("namespace", ""), Options::default()).await;
    let session = karta.session().await;
    let events = turn(&karta, session, &bash("echo one", "made")).await;
    assert_eq!(status(&events), TurnState::Completed, "{events:#?}");
    let config = karta.data.path().join("settings.toml");
    karta.kill_between(|| std::fs::write(config, settings("process", "")).unwrap()).await;
    let sent = karta.client.send_detached(session, &SendMessage::text("more")).await;
    let problem = sent.expect_err("it is refused, not downgraded").to_string();
    assert!(problem.contains("namespace") && problem.contains("process"), "{problem}");
    karta.stop().await;
}
