//! `karta logs`: how lines read, and that following one outlives its connections.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::run::{karta, run};
use crate::served::PATIENCE;
use crate::stub::{Answer, KEY, Stub, not_found, page};

fn build(cursor: &str, text: &str) -> Value {
    json!({"cursor": cursor, "at": "2026-11-24T12:30:01.5Z", "version": 12, "kind": "build", "text": text})
}

fn turn(cursor: &str, state: &str, error: Option<&str>) -> Value {
    let usage = json!({"input_tokens": 1200, "output_tokens": 34, "total_tokens": 1234, "cache_read_tokens": 0,
        "cache_write_tokens": 0, "cost_micros": 4200});
    json!({"cursor": cursor, "at": "2026-11-24T12:31:00Z", "version": 3, "kind": "turn", "turn": {
        "id": "turn_01jd0000000000000000000001", "session_id": "sess_01jd0000000000000000000001", "release": null,
        "agent": null, "participant": null, "state": state, "stop_reason": null, "error": error, "usage": usage, "models": [],
        "created_at": "2026-11-24T12:30:57Z", "started_at": "2026-11-24T12:30:57.5Z", "first_text_at": null,
        "ended_at": "2026-11-24T12:31:00Z"}})
}

fn frame(line: &Value) -> String {
    format!("id: {}\nevent: log\ndata: {line}\n\n", line["cursor"].as_str().unwrap())
}

#[tokio::test]
async fn builds_and_turns_read_apart_and_machines_get_them_one_a_line() {
    let lines = [
        build("1", "npm ci \u{1b}[31mred\n"),
        turn("2", "completed", None),
        turn("3", "failed", Some("harness_failed")),
        turn("4", "budget_exhausted", None),
    ];
    let stub = Stub::plays(move |line, _| match line {
        "GET /v1/projects/app/logs?kind=build&version=3&limit=9" => Answer::Json(200, page(&[])),
        line if line.starts_with("GET /v1/projects/app/logs?limit=50") => Answer::Json(200, page(&lines)),
        _ => not_found(),
    })
    .await;
    let logs = |args: &[&str]| {
        let mut command = karta(&["logs", "app"]);
        command.args(args).env("KARTA_URL", &stub.url).env("KARTA_API_KEY", KEY);
        command
    };
    let ran = run(logs(&[]), "").await;
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let usage = "1,200 in · 34 out · $0.004200 · 2.5 s sess_01jd0000000000000000000001";
    let wanted = [
        "11-24 12:30:01  v12  build  npm ci [31mred\n".to_owned(),
        format!("11-24 12:31:00  v3   turn   completed · {usage}\n"),
        format!("11-24 12:31:00  v3   turn   failed: harness_failed · {usage}\n"),
        format!("11-24 12:31:00  v3   turn   budget exhausted · {usage}\n"),
    ];
    assert_eq!(ran.out, wanted.concat());
    let ran = run(logs(&["--json"]), "").await;
    let cursors: Vec<_> =
        ran.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["cursor"].clone()).collect();
    assert_eq!(cursors, ["1", "2", "3", "4"]);
    let ran = run(logs(&["--kind", "build", "--release", "v3", "-n", "9"]), "").await;
    assert!(ran.code == Some(0) && ran.out.is_empty() && ran.err.contains("no such line yet"), "{ran:?}");
    let wrong = run(logs(&["--kind", "hologram"]), "").await;
    assert!(wrong.code == Some(2) && wrong.err.contains("build, turn"), "{wrong:?}");
}

#[tokio::test]
async fn following_goes_on_behind_the_last_line_after_a_cut() {
    let stub = Stub::plays(|line, before| match (line, before) {
        ("GET /v1/projects/app/logs?limit=2", 0) => {
            Answer::Torn(vec![frame(&build("1", "one")), frame(&build("2", "two"))])
        }
        ("GET /v1/projects/app/logs?limit=2&after=2", 0) => Answer::Json(503, json!({})),
        ("GET /v1/projects/app/logs?limit=2&after=2", _) => Answer::Open(vec![frame(&build("3", "three"))]),
        _ => not_found(),
    })
    .await;
    let mut command = karta(&["logs", "-f", "app", "-n", "2"]);
    command.env("KARTA_URL", &stub.url).env("KARTA_API_KEY", KEY);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for wanted in ["one", "two", "three"] {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
        assert!(line.ends_with(wanted), "{line}");
    }
    assert!(child.try_wait().unwrap().is_none(), "it follows on");
    child.kill().await.unwrap();
    assert_eq!(stub.lines().len(), 3);
}

#[tokio::test]
async fn a_refusal_ends_the_following() {
    let stub = Stub::plays(|_, _| not_found()).await;
    let mut command = karta(&["logs", "-f", "app"]);
    command.env("KARTA_URL", &stub.url).env("KARTA_API_KEY", KEY);
    let ran = run(command, "").await;
    assert!(ran.code == Some(1) && ran.err.contains("not_found"), "{ran:?}");
}
