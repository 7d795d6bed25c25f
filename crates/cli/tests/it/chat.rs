//! `karta chat` with one message: what is sent, what is printed where, the exit code.

use serde_json::{Value, json};
use tokio::process::Command;

use crate::fake::{ASK, Fake, KEY, Piece, SESSION, ask, done, text};
use crate::run::{karta, run};

fn chat(fake: &Fake, args: &[&str]) -> Command {
    let mut command = karta(&["chat", "--project", "support"]);
    command.args(args).env("KARTA_URL", &fake.url).env("KARTA_API_KEY", KEY);
    command
}

fn answered() -> String {
    format!("PUT /v1/sessions/{SESSION}/inputs/{ASK}")
}

#[tokio::test]
async fn the_answer_goes_to_stdout_and_the_rest_to_stderr() {
    let call = json!({"tool_use_id": "t", "tool_name": "Read", "tool_input": {"file_path": "/a"}});
    let result = json!({"tool_use_id": "t", "output": "x\ny", "is_error": false, "truncated": false});
    let fake = Fake::plays(vec![
        Piece::Event("reasoning", json!({"part": {"id": "r", "text": "Hm."}})),
        Piece::Event("tool_use", call),
        Piece::Event("tool_result", result),
        text("Hel"),
        text("lo"),
        done("completed", "Hello"),
    ])
    .await;
    let ran = run(chat(&fake, &["-m", "hi", "--agent", "helper"]), "").await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "Hello\n"), "{}", ran.err);
    assert_eq!(ran.err, "Hm.\n● Read /a\n  └ x (+1 line)\n1,200 in · 34 out · $0.004200 · 2.5 s\n");
    assert_eq!(fake.body("POST /v1/sessions/"), json!({"text": "hi", "agent": "helper", "stream": true}));
    assert_eq!(
        fake.asked()[0],
        ("POST /v1/sessions".into(), json!({"project": "support", "agent": "helper"}))
    );
    let quiet = run(chat(&fake, &["-q", "-m", "hi"]), "").await;
    assert_eq!((quiet.out.as_str(), quiet.err.as_str()), ("Hello\n", ""));
}

#[tokio::test]
async fn json_is_the_envelopes_one_a_line() {
    let fake = Fake::plays(vec![text("Hello"), done("completed", "Hello")]).await;
    let ran = run(chat(&fake, &["--json", "-m", "hi"]), "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let events: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seen: Vec<_> = events.iter().map(|event| (&event["seq"], event["type"].as_str().unwrap())).collect();
    assert_eq!(seen, [(&json!(1), "text"), (&json!(2), "done")]);
    assert_eq!(events[0]["data"], json!({"part": {"id": "p", "text": "Hello"}}));
    assert_eq!(events[1]["session_id"], SESSION);
}

#[tokio::test]
async fn without_a_terminal_approvals_are_denied_unless_said_otherwise() {
    let turn = || vec![ask(), Piece::Until(answered()), done("completed", "ok")];
    let denied = Fake::plays(turn()).await;
    let ran = run(chat(&denied, &["-m", "clean up"]), "").await;
    assert_eq!(ran.code, Some(0));
    assert!(ran.err.contains("? Bash rm -r build: denied"), "{}", ran.err);
    assert_eq!(denied.body(&answered())["decision"], "deny");
    for (scope, decision) in [("once", "approve_once"), ("session", "approve_session")] {
        let fake = Fake::plays(turn()).await;
        assert_eq!(run(chat(&fake, &["--approve", scope, "-m", "clean up"]), "").await.code, Some(0));
        assert_eq!(fake.body(&answered()), json!({"decision": decision, "stream": true}));
    }
}

#[tokio::test]
async fn the_message_may_come_on_stdin_and_go_to_a_session_there_is() {
    let fake = Fake::plays(vec![done("completed", "ok")]).await;
    let command = karta(&["chat", "--session", SESSION, "--url", &fake.url, "--key", KEY]);
    let ran = run(command, "two\nlines\n").await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "ok\n"), "{}", ran.err);
    assert_eq!(fake.body("POST /v1/sessions/")["text"], "two\nlines\n");
    let empty = run(chat(&fake, &[]), " \n").await;
    assert_eq!(empty.code, Some(1));
    assert!(empty.err.contains("there is no message"), "{}", empty.err);
}

#[tokio::test]
async fn a_cut_connection_loses_nothing() {
    let fake = Fake::plays(vec![text("Hel"), Piece::Tear, text("lo"), done("completed", "Hello")]).await;
    let ran = run(chat(&fake, &["--json", "-m", "hi"]), "").await;
    let seqs: Vec<_> =
        ran.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].clone()).collect();
    assert_eq!((ran.code, seqs), (Some(0), vec![json!(1), json!(2), json!(3)]), "{}", ran.err);
}

#[tokio::test]
async fn ctrl_c_interrupts_the_turn_and_not_the_program() {
    let interrupt = format!("POST /v1/sessions/{SESSION}/interrupt");
    let fake =
        Fake::plays(vec![text("Wor"), Piece::Until(interrupt.clone()), done("interrupted", "Wor")]).await;
    let mut command = chat(&fake, &["--json", "-m", "work"]);
    let mut child = command.spawn().unwrap();
    // The first event is on standard output, so the program follows the turn and listens for signals.
    let mut first = [0];
    tokio::io::AsyncReadExt::read_exact(child.stdout.as_mut().unwrap(), &mut first).await.unwrap();
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    fake.was_asked(&interrupt).await;
    let ran: crate::run::Ran = child.wait_with_output().await.unwrap().into();
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.out.contains("\"status\":\"interrupted\"") && ran.err.contains("interrupted · "), "{ran:?}");
}

#[tokio::test]
async fn failures_name_the_code_and_what_to_do() {
    let problem = json!({"type": "/problems/harness_failed", "title": "The harness ended unexpectedly", "status": 502,
        "detail": "exit \u{1b}[31mstatus 1", "error": "harness_failed", "reason": "harness_failed", "retryable": true});
    let fake = Fake::plays(vec![Piece::Event("error", problem), done("failed", "")]).await;
    let ran = run(chat(&fake, &["-m", "hi"]), "").await;
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err.starts_with(
            "error: The harness ended unexpectedly (harness_failed): exit [31mstatus 1\n  hint: "
        )
    );
    let mut wrong_key = chat(&fake, &["-m", "hi"]);
    wrong_key.env("KARTA_API_KEY", "kt_test_wrong");
    let ran = run(wrong_key, "").await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("unauthorized") && ran.err.contains("hint: Send `Authorization"), "{}", ran.err);
    let mut several = karta(&["chat", "-m", "hi"]);
    several.env("KARTA_URL", &fake.url).env("KARTA_API_KEY", KEY);
    let ran = run(several, "").await;
    assert!(ran.err.contains("name one: support, sales"), "{}", ran.err);
    let ran = run(karta(&["chat", "-m", "hi"]), "").await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("no server is known: start one by `karta dev`"), "{}", ran.err);
}

#[tokio::test]
async fn the_server_that_dev_started_is_found_in_the_data_directory() {
    let fake = Fake::plays(vec![done("completed", "ok")]).await;
    let data = tempfile::tempdir().unwrap();
    let running = json!({"url": fake.url, "key": KEY, "project": "support"});
    std::fs::write(data.path().join("dev.json"), running.to_string()).unwrap();
    let ran = run(karta(&["chat", "-m", "hi", "--data", data.path().to_str().unwrap()]), "").await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "ok\n"), "{}", ran.err);
    assert_eq!(fake.asked()[0].1, json!({"project": "support"}));
}

#[tokio::test]
async fn nobody_at_the_address_is_told_with_a_hint() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let ran = run(karta(&["chat", "-m", "hi", "--project", "p", "--url", &url, "--key", "k"]), "").await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("because: ") && ran.err.contains("`karta dev` starts one"), "{}", ran.err);
}
