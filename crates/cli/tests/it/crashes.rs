//! The server killed while something is published: nothing of it is seen, or all of it.

#![expect(clippy::disallowed_methods, reason = "tasks of a test end with it")]

use std::path::Path;
use std::time::Duration;

use karta_release::{Files, archive};
use serde_json::{Value, json};

use crate::served::{PATIENCE, Served};

const NONE: Value = Value::Null;

/// Makes the folder say this, with as many other files.
fn folder(home: &Path, says: &str, others: usize) {
    let app = home.join("work");
    std::fs::create_dir_all(&app).unwrap();
    let script = json!({"turns": [{"steps": [{"say": says}]}]});
    std::fs::write(app.join("karta.script.json"), script.to_string()).unwrap();
    for number in 0..others {
        std::fs::write(app.join(format!("{number}.txt")), format!("{says} {number}")).unwrap();
    }
}

fn archive_of(home: &Path) -> Vec<u8> {
    let (app, mut bytes) = (home.join("work"), Vec::new());
    archive::pack(&app, &Files::read(&app).unwrap(), None, &mut bytes).unwrap();
    bytes
}

async fn serve(home: &Path) -> Served {
    Served::start_as(home, "data", "", &["serve"]).await
}

async fn publish(server: &Served, archive: Vec<u8>) -> (u16, Value) {
    let call = server.http.post(format!("{}/v1/projects/bot/releases", server.url)).bearer_auth(&server.key);
    let answer = call.body(archive).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn says(server: &Served) -> Value {
    let (status, answer) = server.call("POST", "/v1/projects/bot/messages", &json!({"text": "hello"})).await;
    assert_eq!(status, 200, "{answer}");
    answer["text"].clone()
}

async fn releases(server: &Served) -> Vec<Value> {
    let (status, page) = server.call("GET", "/v1/projects/bot/releases?limit=200", &NONE).await;
    assert_eq!(status, 200, "{page}");
    page["data"].as_array().unwrap().clone()
}

/// Nothing that is half made is left in the data directory.
fn clean(home: &Path) {
    let left = std::fs::read_dir(home.join("data/incoming")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "a restart removes what was half made");
}

#[tokio::test]
async fn an_upload_that_the_server_did_not_outlive_is_nowhere() {
    let home = tempfile::tempdir().unwrap();
    let mut server = serve(home.path()).await;
    folder(home.path(), "one", 20);
    assert_eq!(publish(&server, archive_of(home.path())).await.0, 201);
    folder(home.path(), "two", 400);
    let archive = archive_of(home.path());
    let (send, parts) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let body = reqwest::Body::wrap_stream(tokio_stream::wrappers::ReceiverStream::new(parts));
    let call = server.http.post(format!("{}/v1/projects/bot/releases", server.url)).bearer_auth(&server.key);
    let uploading = tokio::spawn(call.body(body).send());
    send.send(Ok(archive[..archive.len() / 2].to_vec())).await.unwrap();
    let unpacked = async {
        while std::fs::read_dir(home.path().join("data/incoming")).map_or(0, Iterator::count) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, unpacked).await.expect("the upload has begun");
    server.kill().await;
    assert!(uploading.await.unwrap().is_err());
    let server = serve(home.path()).await;
    clean(home.path());
    assert_eq!((releases(&server).await.len(), says(&server).await), (1, json!("one")));
    let (status, second) = publish(&server, archive).await;
    assert_eq!((status, &second["version"]), (201, &json!(2)), "{second}");
    assert_eq!(says(&server).await, "two");
}

#[tokio::test]
async fn a_setup_that_the_server_did_not_outlive_has_failed_and_its_processes_are_gone() {
    let home = tempfile::tempdir().unwrap();
    let mut server = serve(home.path()).await;
    folder(home.path(), "one", 1);
    assert_eq!(publish(&server, archive_of(home.path())).await.0, 201);
    folder(home.path(), "two", 1);
    let mark = home.path().join("pid");
    let manifest = format!("[build]\nsetup = \"echo $$ > {}; sleep 600\"\n", mark.display());
    std::fs::write(home.path().join("work/karta.toml"), manifest).unwrap();
    let call = server.http.post(format!("{}/v1/projects/bot/releases", server.url)).bearer_auth(&server.key);
    let publishing = tokio::spawn(call.body(archive_of(home.path())).send());
    let pid = async {
        loop {
            let text = std::fs::read_to_string(&mark).unwrap_or_default();
            if let Some(pid) = text.strip_suffix('\n') {
                return pid.to_owned();
            }
            tokio::task::yield_now().await;
        }
    };
    let pid = tokio::time::timeout(PATIENCE, pid).await.expect("the setup runs");
    server.kill().await;
    assert!(publishing.await.unwrap().is_err());
    let server = serve(home.path()).await;
    clean(home.path());
    let gone = async {
        while Path::new(&format!("/proc/{pid}")).exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the setup's processes end");
    let all = releases(&server).await;
    assert_eq!((&all[0]["version"], &all[0]["state"]), (&json!(2), &json!("failed")), "{all:?}");
    assert!(all[0]["error"].as_str().unwrap().contains("server ended"), "{all:?}");
    assert_eq!(says(&server).await, "one");
    // The same content once more begins anew; with another setup it is another release.
    std::fs::write(home.path().join("work/karta.toml"), "[build]\nsetup = \"true\"\n").unwrap();
    let (status, third) = publish(&server, archive_of(home.path())).await;
    assert_eq!((status, &third["version"]), (201, &json!(3)), "{third}");
    assert_eq!(says(&server).await, "two");
}

/// Killed at many moments of a publish: whatever is on record afterwards can be run, and the next publish heals the rest.
#[tokio::test]
async fn at_whatever_moment_the_server_is_killed_what_is_on_record_runs() {
    let home = tempfile::tempdir().unwrap();
    let mut server = serve(home.path()).await;
    folder(home.path(), "0", 150);
    assert_eq!(publish(&server, archive_of(home.path())).await.0, 201);
    let mut known = 1;
    for round in 1..=12_u64 {
        folder(home.path(), &round.to_string(), 150);
        let archive = archive_of(home.path());
        let call =
            server.http.post(format!("{}/v1/projects/bot/releases", server.url)).bearer_auth(&server.key);
        let publishing = tokio::spawn(call.body(archive.clone()).send());
        // Not to wait for something: to choose the moment.
        tokio::time::sleep(Duration::from_millis(round * 8)).await;
        server.kill().await;
        let answered = publishing.await.unwrap().is_ok_and(|answer| answer.status() == 201);
        server = serve(home.path()).await;
        clean(home.path());
        let all = releases(&server).await;
        assert!(all.len() == known || all.len() == known + 1, "{all:?}");
        assert!(!answered || all.len() == known + 1, "what was answered is there: {all:?}");
        let active = all.iter().find(|release| release["state"] == "active").unwrap();
        let said = says(&server).await;
        assert!(said == json!(round.to_string()) || said == json!((round - 1).to_string()), "{said}");
        for release in all.iter().filter(|release| release["version"] != active["version"]).take(2) {
            let path = format!("/v1/projects/bot/releases/{}/activate", release["version"]);
            assert_eq!(server.call("POST", &path, &json!({})).await.0, 200);
            says(&server).await;
        }
        let (status, healed) = publish(&server, archive).await;
        assert!(matches!(status, 200 | 201), "{healed}");
        assert_eq!(says(&server).await, round.to_string());
        known = releases(&server).await.len();
    }
    assert_eq!(known, 13);
}
