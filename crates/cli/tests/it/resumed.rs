//! The server killed again and again while a session whose machine dies with it talks: what was told to be done is there.

use std::path::Path;

use serde_json::{Value, json};

use crate::served::{PATIENCE, Served};

async fn serve(home: &Path) -> Served {
    let talk = home.join("talk");
    std::fs::create_dir_all(&talk).unwrap();
    let script = json!({"history": true, "turns": [{"steps": [{"repeat": {"times": 3, "say": "heard "}}]}]});
    std::fs::write(talk.join("karta.script.json"), script.to_string()).unwrap();
    Served::start_as(home, "data", "scripted = \"machine\"\n", &["serve", talk.to_str().unwrap()]).await
}

fn files(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.map(|entry| entry.unwrap().path()).map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

#[tokio::test]
async fn what_was_done_is_there_after_a_kill_at_any_moment() {
    let home = tempfile::tempdir().unwrap();
    let mut server = serve(home.path()).await;
    let (status, session) = server.call("POST", "/v1/projects/talk/sessions", &json!({})).await;
    assert_eq!(status, 201, "{session}");
    let path = format!("/v1/sessions/{}", session["id"].as_str().unwrap());
    let mut done = Vec::new();
    for round in 0..12 {
        let words = format!("message {round}.");
        let call = server.http.post(format!("{}{path}/messages", server.url)).bearer_auth(&server.key);
        let mut stream = call.json(&json!({"text": words, "stream": true})).send().await.unwrap();
        assert_eq!(stream.status(), 200);
        let until = ["event: done", "event: turn_start", "event: text", "event: done"][round % 4];
        let mut seen = String::new();
        let read = async {
            while !seen.contains(until) {
                let chunk = stream.chunk().await.unwrap().expect("the turn ends with `done`");
                seen.push_str(&String::from_utf8_lossy(&chunk));
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("the turn goes on");
        if seen.contains("event: done") {
            done.push(words);
        }
        server.kill().await;
        server = serve(home.path()).await;
        let (status, history) = server.call("GET", &format!("{path}/history"), &Value::Null).await;
        assert_eq!(status, 200, "{history}");
        let told = history.to_string();
        let lost: Vec<_> = done.iter().filter(|words| !told.contains(words.as_str())).collect();
        assert!(lost.is_empty(), "round {round}: {lost:?} of {told}");
    }
    assert!(done.len() >= 6);
    // A turn in peace, and a delete: nothing is left of what the kills broke off.
    let (status, answer) =
        server.call("POST", &format!("{path}/messages"), &json!({"text": "the last"})).await;
    assert_eq!((status, &answer["text"]), (200, &json!("heard heard heard ")), "{answer}");
    let state = home.path().join("data/blobs/state");
    assert!((1..=20).contains(&files(&state)), "{} files", files(&state));
    // Made unreadable by whoever runs the server, on purpose alone.
    let asked = server.run(&["admin", "shred", "default"]).await;
    assert!(asked.err.contains("--yes") && files(&state) > 0, "{}", asked.err);
    let (status, other) =
        server.call("POST", "/v1/projects/talk/messages", &json!({"text": "another"})).await;
    assert_eq!(status, 200, "{other}");
    assert_eq!(server.call("DELETE", &path, &Value::Null).await.0, 204);
    let left = files(&state);
    assert!(left > 0, "the other session's");
    let shredded = server.run(&["admin", "shred", "default", "--yes"]).await;
    assert!(shredded.err.contains("destroyed"), "{}", shredded.err);
    assert_eq!(files(&state), 0);
}
