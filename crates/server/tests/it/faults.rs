//! What goes wrong ends the turn by its name, and the session goes on.

use karta_types::budget::Caps;
use serde_json::json;

use crate::support::{App, Events, done, kinds, plain, seqs};

#[tokio::test]
async fn each_fault_has_its_error_and_one_done() {
    let script = json!({"turns": [
        {"match": "fail", "steps": [{"say": "so far"}, {"fail": {"code": "provider_overloaded", "message": "too much"}}]},
        {"match": "exit", "steps": [{"say": "so far"}, {"stderr": "it hurts\n"}, {"exit": 3}]},
        {"match": "broken", "steps": [{"say": "so far"}, {"raw": "not json\n"}, {"raw": "{\"half\": \n"}, {"say": " and on"}]},
        {"match": "flood", "steps": [{"say": "so far"}, {"flood": 10_000_000}, {"hang": true}]},
        {"match": "silence", "steps": [{"say": "so far"}, {"hang": false}]},
        {"match": "deaf", "steps": [{"say": "so far"}, {"hang": true}]},
        {"steps": [{"say": "fine"}]}
    ]});
    let app = App::start_with(script, |settings| settings.limits.silence_seconds = 1).await;
    for (word, status, code) in [
        ("fail", "failed", "provider_overloaded"),
        ("exit", "failed", "harness_failed"),
        ("broken", "completed", ""),
        ("flood", "failed", "harness_output_invalid"),
        ("silence", "failed", "harness_silent"),
    ] {
        let session = app.session().await;
        let events = app.turn(&session, word).await;
        assert_eq!(done(&events)["status"], status, "{word}: {events:#?}");
        let errors: Vec<_> = events.iter().filter(|event| event["type"] == "error").collect();
        assert_eq!(errors.len(), usize::from(!code.is_empty()), "{word}: {events:#?}");
        if let Some(error) = errors.first() {
            assert_eq!(error["data"]["error"], code, "{word}");
            assert_eq!(kinds(&events)[events.len() - 2], "error", "the error comes right before the end");
        }
        assert!(done(&events)["text"].as_str().unwrap().starts_with("so far"), "{word}");
        let next = app.turn(&session, "hello").await;
        assert_eq!(done(&next)["status"], "completed", "after {word}: {next:#?}");
        assert_eq!(seqs(&next)[0], seqs(&events)[events.len() - 1] + 1, "after {word}");
    }
    let session = app.session().await;
    let (status, problem) =
        app.post(&format!("/v1/sessions/{session}/messages"), json!({"text": "exit"})).await;
    assert_eq!((status, &problem["error"]), (502, &json!("harness_failed")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("it hurts"), "{problem}");
    app.stop().await;
}

#[tokio::test]
async fn a_used_up_cap_refuses_before_anything_runs() {
    let cap = Caps { total_tokens: Some(100), ..Caps::default() };
    let app = App::start_with(plain(), |settings| settings.budget = cap).await;
    let session = app.session().await;
    let events = app.turn(&session, "spend").await;
    assert_eq!(done(&events)["usage"]["total_tokens"], 117);
    let head = seqs(&events).len();
    let (status, problem) =
        app.post(&format!("/v1/sessions/{session}/messages"), json!({"text": "more"})).await;
    assert_eq!((status, &problem["error"]), (402, &json!("budget_exhausted")));
    assert_eq!(
        (&problem["level"], &problem["cap"], &problem["settled"]),
        (&json!("org"), &json!(100), &json!(117))
    );
    let seen = app.events(&session, "?after=0").await.until("done").await;
    assert_eq!(seen.len(), head, "nothing ran");
    let usage = app.get("/v1/usage?group_by=model,day").await;
    let row = &usage["data"][0];
    assert_eq!(
        (&row["model"], &row["turns"], &row["cost_micros"]),
        (&json!("scripted-1"), &json!(1), &json!(900))
    );
    assert_eq!((&row["input_tokens"], &row["cache_read_tokens"]), (&json!(60), &json!(7)));
    let session = app.get(&format!("/v1/sessions/{session}")).await;
    assert_eq!(session["usage"]["total_tokens"], 117);
    app.stop().await;
}

#[tokio::test]
async fn a_server_that_stops_ends_its_turns_in_writing() {
    let app = App::start(plain()).await;
    let session = app.session().await;
    let request = app.request(reqwest::Method::POST, &format!("/v1/sessions/{session}/messages"));
    let mut running = Events::open(request.json(&json!({"text": "wait", "stream": true}))).await;
    running.until("text").await;
    let stopping = app.stop();
    let (rest, ()) = tokio::join!(running.until("done"), stopping);
    assert_eq!(done(&rest)["status"], "failed");
    assert_eq!(rest[0]["data"]["error"], "interrupted_by_restart");
}
