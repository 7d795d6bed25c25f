//! Faults that only real processes have.

use std::time::Duration;

use karta_client::SendMessage;
use karta_types::session::TurnState;

use super::*;

const APP: &[(&str, &str)] = &[("CLAUDE.md", "# An app\n")];

/// Processes of the session, by the mark that each has in its environment.
fn processes(session: SessionId) -> Vec<u32> {
    let mark = session.to_string();
    let alive = |entry: std::fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let environ = std::fs::read(entry.path().join("environ")).ok()?;
        let marked = environ.windows(mark.len()).any(|part| part == mark.as_bytes());
        marked.then_some(pid)
    };
    std::fs::read_dir("/proc").unwrap().filter_map(|entry| alive(entry.ok()?)).collect()
}

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn a_killed_harness_ends_the_turn_and_nothing_outlives_the_server() {
    let mut karta = Karta::serve(APP).await;
    let session = karta.session().await;
    let asks = r#"go SCRIPT: [{"tool":"Bash","input":{"command":"echo hi > x.txt","description":"x"}},{"text":"end"}]"#;
    let mut stream = karta.client.send_streaming(session, &SendMessage::text(asks)).unwrap();
    until(&mut stream, "input_required").await;
    let running = processes(session);
    assert!(!running.is_empty());
    for pid in &running {
        Command::new("kill").args(["-KILL", &pid.to_string()]).status().await.unwrap();
    }
    let events = karta.follow(session, stream, yes).await;
    assert_eq!(status(&events), TurnState::Failed);
    assert_eq!(error_code(&events).as_deref(), Some("harness_failed"), "{events:#?}");
    let events = karta.turn(session, "hello again", yes).await;
    assert_eq!(status(&events), TurnState::Completed, "{events:#?}");

    // The harness waits for its next turn; the server is killed outright.
    assert!(!processes(session).is_empty());
    karta.kill_and_restart().await;
    let gone = async {
        while !processes(session).is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("nothing outlives the server");
    let events = karta.turn(session, "and again", yes).await;
    assert_eq!(status(&events), TurnState::Completed, "{events:#?}");
    karta.client.delete_session(session).await.unwrap();
    assert!(processes(session).is_empty(), "nothing outlives its session");
    karta.stop().await;
}

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn a_model_that_is_gone_is_told_and_a_saved_folder_is_served() {
    let karta = Karta::serve(APP).await;
    let session = karta.session().await;
    karta.turn(session, "hello", yes).await;
    let Karta { model, data, folder, client, log, child, listen } = karta;
    model.shutdown().await;
    let model = Server::start(Options::default()).await.unwrap();
    let karta = Karta { data, folder, client, model, log, child, listen };
    let events = karta.turn(session, "are you there?", yes).await;
    assert_eq!(status(&events), TurnState::Failed, "{events:#?}");
    let code = error_code(&events);
    assert!(matches!(code.as_deref(), Some("provider_unreachable" | "provider_overloaded")), "{code:?}");

    std::fs::create_dir_all(karta.folder.join(".claude/agents")).unwrap();
    let agent = "---\nname: late\ndescription: Came later\n---\n\nYou are late.\n";
    std::fs::write(karta.folder.join(".claude/agents/late.md"), agent).unwrap();
    let seen = async {
        loop {
            let project = karta.client.project("app").await.unwrap();
            if project.agents.iter().any(|agent| agent.name == "late") {
                break project.active_release.unwrap().release.version;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let version = tokio::time::timeout(PATIENCE, seen).await.expect("the change is taken over");
    assert_eq!(version, 2);
    karta.stop().await;
}
