//! `karta deploy`: what is asked of the server and what is said, whatever the server answers.

use std::path::Path;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::run::{karta, run};
use crate::served::PATIENCE;
use crate::stub::{Answer, KEY, Stub, not_found, page, problem, project, release};

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("karta.script.json", "{\"turns\": []}"),
        ("karta.toml", "project = \"app\"\n"),
        ("a.txt", "one"),
        ("same.txt", "one"),
    ] {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn deploy(stub: &Stub, folder: &Path, args: &[&str]) -> Command {
    let mut command = karta(&["deploy"]);
    command.args(args).current_dir(folder).env("KARTA_URL", &stub.url).env("KARTA_API_KEY", KEY);
    command
}

fn event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

fn log(text: &str) -> String {
    event(
        "log",
        &json!({"cursor": "1", "at": "2026-11-24T12:30:00Z", "version": 3, "kind": "build", "text": text}),
    )
}

const PUBLISH: &str = "POST /v1/projects/app/releases?activate=true";
const MISSING: &str = "POST /v1/projects/app/releases/missing";

/// A server that has release 2 of `app`, which runs, lacks these contents, and answers so to an archive.
async fn server(
    missing: fn(&[Value]) -> Vec<Value>,
    publish: impl Fn(usize) -> Answer + Send + Sync + 'static,
) -> Stub {
    Stub::answers(move |line, body, before| match line {
        "GET /v1/projects/app" => Answer::Json(200, project("app", Some(2))),
        "GET /v1/projects/app/releases" => Answer::Json(200, page(&[release(2, "active")])),
        MISSING => {
            let asked: Value = serde_json::from_slice(body).unwrap();
            Answer::Json(200, json!({"hashes": missing(asked["hashes"].as_array().unwrap())}))
        }
        line if line.starts_with("POST /v1/projects/app/releases?") => publish(before),
        _ => not_found(),
    })
    .await
}

fn all(hashes: &[Value]) -> Vec<Value> {
    hashes.to_vec()
}

#[tokio::test]
async fn what_is_lacking_goes_up_and_what_is_built_is_shown() {
    let build = || vec![log("one \u{1b}[31mline"), event("release", &release(3, "active"))];
    let stub = server(|hashes| hashes[..1].to_vec(), move |_| Answer::Torn(build())).await;
    let ran = run(deploy(&stub, folder().path(), &["-m", "first"]), "").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.out, format!("{}/v1/projects/app\n", stub.url), "the address alone is the result");
    for said in
        ["app: 4 files, ", "sending 1 of 4 files", "build │ one [31mline", "app v3 is active  1 file sent, "]
    {
        assert!(ran.err.contains(said), "{said}: {}", ran.err);
    }
    // Three contents: two of the four files have the same.
    let hashes: Value = serde_json::from_slice(&stub.bodies(MISSING)[0]).unwrap();
    assert_eq!(hashes["hashes"].as_array().unwrap().len(), 3);
    let lines = stub.lines();
    assert_eq!(lines, ["GET /v1/projects/app", "GET /v1/projects/app/releases", MISSING, PUBLISH]);
    assert!(!stub.bodies(PUBLISH)[0].is_empty());
}

#[tokio::test]
async fn machines_get_the_release_and_what_was_sent() {
    let stub = server(all, |_| Answer::Torn(vec![event("release", &release(3, "ready"))])).await;
    let ran = run(deploy(&stub, folder().path(), &["--json", "-q", "--no-activate"]), "").await;
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let said: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&said["version"], &said["state"], &said["uploaded_files"]),
        (&json!(3), &json!("ready"), &json!(3))
    );
    let bytes = stub.bodies("POST /v1/projects/app/releases?activate=false")[0].len();
    assert_eq!(said["uploaded_bytes"], bytes);
}

#[tokio::test]
async fn the_same_again_sends_no_file_and_says_so() {
    let stub = server(|_| Vec::new(), |_| Answer::Torn(vec![event("release", &release(2, "active"))])).await;
    let ran = run(deploy(&stub, folder().path(), &[]), "").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(
        ran.err.contains("Nothing changed: app v2 is active  0 files sent") && !ran.err.contains("sending"),
        "{}",
        ran.err
    );
}

#[tokio::test]
async fn content_that_went_missing_is_made_up_for_once() {
    let gone = || Answer::Json(409, problem(409, "content_missing"));
    let stub = server(
        |_| Vec::new(),
        move |before| match before {
            0 => gone(),
            _ => Answer::Torn(vec![event("release", &release(3, "active"))]),
        },
    )
    .await;
    let ran = run(deploy(&stub, folder().path(), &[]), "").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.err.contains("4 files sent"), "{}", ran.err);
    let stub = server(|_| Vec::new(), move |_| gone()).await;
    let ran = run(deploy(&stub, folder().path(), &[]), "").await;
    assert!(ran.code == Some(1) && ran.err.contains("content_missing"), "{ran:?}");
    assert_eq!(stub.bodies(PUBLISH).len(), 2);
}

#[tokio::test]
async fn a_failure_says_why_what_to_do_and_that_what_runs_stays() {
    let failed = json!({"type": "/problems/build_failed", "title": "The release's setup failed", "status": 422,
        "detail": "exit status 7", "error": "build_failed", "reason": "build_failed"});
    let stub =
        server(all, move |_| Answer::Torn(vec![log("no such package"), event("error", &failed)])).await;
    let ran = run(deploy(&stub, folder().path(), &[]), "").await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    for said in [
        "build │ no such package\n",
        "error: The release's setup failed (build_failed): exit status 7\n  hint: ",
        "\nStill active, as before: app v2\n",
    ] {
        assert!(ran.err.contains(said), "{said}: {}", ran.err);
    }
    let torn = server(all, |_| Answer::Torn(vec![log("one")])).await;
    let ran = run(deploy(&torn, folder().path(), &[]), "").await;
    assert!(
        ran.code == Some(1) && ran.err.contains("publishing") && ran.err.contains("Still active"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn a_folder_that_would_be_refused_is_not_sent() {
    let stub = server(all, |_| not_found()).await;
    let folder = folder();
    std::fs::write(folder.path().join(".env"), "TOKEN=planted\n").unwrap();
    std::fs::write(folder.path().join("karta.toml"), "project = \"app\"\nprojekt = \"x\"\n").unwrap();
    let ran = run(deploy(&stub, folder.path(), &["--project", "app"]), "").await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    for said in [
        "nothing was sent",
        "karta.toml:2:1: ",
        ".env: looks like a secret",
        "--allow-secret .env",
        "Still active, as before: app v2",
    ] {
        assert!(ran.err.contains(said), "{said}: {}", ran.err);
    }
    assert!(!ran.err.contains("planted"));
    assert_eq!(stub.lines(), ["GET /v1/projects/app"]);
}

#[tokio::test]
async fn a_key_that_may_not_read_may_publish() {
    let stub = Stub::answers(|line, _, _| match line {
        MISSING => Answer::Json(200, json!({"hashes": []})),
        line if line.starts_with("POST ") => Answer::Torn(vec![event("release", &release(3, "active"))]),
        _ => Answer::Json(403, problem(403, "forbidden")),
    })
    .await;
    let ran = run(deploy(&stub, folder().path(), &[]), "").await;
    assert!(ran.code == Some(0) && ran.err.contains("app v3 is active  0 files sent"), "{ran:?}");
    assert!(!ran.err.contains("new"), "nobody knows that: {}", ran.err);
    let ran = run(deploy(&stub, folder().path(), &["--preview", "pr-7"]), "").await;
    assert_eq!((ran.code, ran.out), (Some(0), format!("{}/v1/projects/app@pr-7\n", stub.url)), "{}", ran.err);
}

#[tokio::test]
async fn a_dry_run_sends_nothing_and_works_without_a_server() {
    let stub = server(|hashes| hashes[..2].to_vec(), |_| not_found()).await;
    let folder = folder();
    let ran = run(deploy(&stub, folder.path(), &["--dry-run"]), "").await;
    assert!(
        ran.code == Some(0) && ran.out.starts_with("2 files, ") && ran.out.contains("would be sent to app"),
        "{ran:?}"
    );
    assert!(stub.lines().iter().all(|line| !line.contains("releases?")));
    let ran = run(deploy(&stub, folder.path(), &["--dry-run", "--project", "new"]), "").await;
    assert!(ran.out.starts_with("4 files, ") && ran.out.contains("the project would be made"), "{ran:?}");
    let mut alone = karta(&["deploy", "--dry-run"]);
    alone.current_dir(folder.path());
    let ran = run(alone, "").await;
    assert!(ran.code == Some(0) && ran.err.contains("No server is known"), "{ran:?}");
    let mut alone = karta(&["deploy"]);
    alone.current_dir(folder.path());
    let ran = run(alone, "").await;
    assert!(ran.code == Some(1) && ran.err.contains("`karta dev`") && !ran.err.contains("files"), "{ran:?}");
}

#[tokio::test]
async fn ctrl_c_ends_it_with_the_right_words() {
    let stub = server(all, |_| Answer::Silence).await;
    let folder = folder();
    let mut child = deploy(&stub, folder.path(), &[]).spawn().unwrap();
    tokio::time::timeout(PATIENCE, stub.was_asked(PUBLISH)).await.unwrap();
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    drop(child.stdin.take());
    let ran: crate::run::Ran =
        tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap().into();
    assert!(
        ran.code == Some(130) && ran.err.contains("stopped by Ctrl-C") && ran.err.contains("Still active"),
        "{ran:?}"
    );
}
