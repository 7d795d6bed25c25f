//! Faults that only real processes have.

use std::time::Duration;

use karta_client::{Publish, Published, SendMessage};
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

/// The data directory on a disk of 64 MiB, which one turn fills.
#[tokio::test]
#[ignore = "needs to mount a small disk: ./test runs it"]
async fn a_full_disk_ends_the_turn_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let script = serde_json::json!({"turns": [
        {"match": "big", "steps": [{"repeat": {"times": 400_000, "say": "word after word after word after word "}}]},
        {"steps": [{"say": "fine"}]}
    ]});
    std::fs::write(folder.path().join("karta.script.json"), script.to_string()).unwrap();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let (_child, client) = on_small_disk(folder.path(), &disk).await;
    let new = CreateSession { project: Some("app".to_owned()), ..CreateSession::default() };
    let session = client.create_session(&new).await.unwrap().id;
    let mut stream = client.send_streaming(session, &SendMessage::text("big")).unwrap();
    let events = until(&mut stream, "done").await;
    whole(&events);
    assert_eq!(status(&events), TurnState::Failed);
    assert_eq!(error_code(&events).as_deref(), Some("storage_full"));
    // The server lives, says so, and takes nothing more for now.
    let refused = client.send_message(session, &SendMessage::text("small")).await.unwrap_err();
    assert_eq!(refused.code().map(karta_types::ErrorCode::as_str), Some("storage_full"), "{refused:?}");
    assert_eq!(client.turns(session, None).await.unwrap().data.len(), 1);
}

/// A server whose data directory is on a disk of 64 MiB, and a client of it.
async fn on_small_disk(folder: &std::path::Path, disk: &std::path::Path) -> (tokio::process::Child, Client) {
    // In a mount namespace of its own, so that nothing has to be unmounted.
    let mut child = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c"])
        .arg("mount -t tmpfs -o size=64m tmpfs \"$1\" && exec \"$2\" dev \"$3\" --project app --listen 127.0.0.1:0 --data \"$1\"")
        .args([std::ffi::OsStr::new("sh"), disk.as_os_str(), std::ffi::OsStr::new(env!("CARGO_BIN_EXE_karta"))])
        .arg(folder)
        .env_remove("KARTA_DATA")
        .kill_on_drop(true)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let line = BufReader::new(child.stdout.take().unwrap()).lines().next_line().await.unwrap().unwrap();
    let word = |start: &str| line.split([' ', '\'']).find(|word| word.starts_with(start)).unwrap().to_owned();
    let url = word("http://").split("/v1/").next().unwrap().to_owned();
    let client = Client::new(&url, Secret::new(word("kt_test_"))).unwrap();
    (child, client)
}

/// A release that does not fit on the disk is refused by that name; what runs stays, and a smaller one fits afterwards.
#[tokio::test]
#[ignore = "needs to mount a small disk: ./test runs it"]
async fn a_full_disk_refuses_a_release_and_leaves_what_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (app, disk) = (folder.path().join("app"), folder.path().join("disk"));
    std::fs::create_dir_all(&app).unwrap();
    std::fs::create_dir(&disk).unwrap();
    let script = |says: &str| serde_json::json!({"turns": [{"steps": [{"say": says}]}]}).to_string();
    std::fs::write(app.join("karta.script.json"), script("one")).unwrap();
    let (_child, client) = on_small_disk(&app, &disk).await;
    let next = folder.path().join("next");
    std::fs::create_dir(&next).unwrap();
    std::fs::write(next.join("karta.script.json"), script("two")).unwrap();
    // What can't be packed smaller.
    let mut state = 88_172_645_463_325_252_u64;
    let noise = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    std::fs::write(next.join("large.bin"), noise.take(10 << 20).flatten().collect::<Vec<u8>>()).unwrap();
    let packed = || {
        let mut bytes = Vec::new();
        karta_release::archive::pack(&next, &karta_release::Files::read(&next).unwrap(), None, &mut bytes)
            .unwrap();
        bytes
    };
    let says = async || {
        let new = CreateSession { project: Some("app".to_owned()), ..CreateSession::default() };
        let session = client.create_session(&new).await.unwrap().id;
        client.send_message(session, &SendMessage::text("hello")).await.unwrap().text
    };
    let publish = async |archive: Vec<u8>| {
        let parts: Vec<_> =
            archive.chunks(1 << 20).map(|part| Ok::<_, std::io::Error>(part.to_vec().into())).collect();
        let how = Publish { activate: true, ..Publish::default() };
        let mut publication = client.publish("app", &how, tokio_stream::iter(parts)).unwrap();
        match publication.next().await.expect("an answer") {
            Ok(Published::Release(release)) => Ok(release.version),
            Ok(Published::Log(line)) => panic!("nothing is built here: {line:?}"),
            Err(error) => Err(error.code().map(karta_types::ErrorCode::as_str)),
        }
    };
    assert_eq!(publish(packed()).await, Err(Some("storage_full")));
    assert_eq!(says().await, "one");
    std::fs::remove_file(next.join("large.bin")).unwrap();
    assert_eq!(publish(packed()).await, Ok(2));
    assert_eq!(says().await, "two");
}
