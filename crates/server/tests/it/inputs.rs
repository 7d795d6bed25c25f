//! Questions and answers.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, Events, answer, done, kinds, plain};

async fn ask(app: &App, text: &str) -> (String, String, Events) {
    let session = app.session().await;
    let request = app.request(Method::POST, &format!("/v1/sessions/{session}/messages"));
    let mut events = Events::open(request.json(&json!({"text": text, "stream": true}))).await;
    let seen = events.until("input_required").await;
    let request = seen.last().unwrap()["data"]["request_id"].as_str().unwrap().to_owned();
    (session, request, events)
}

fn path(session: &str, request: &str) -> String {
    format!("/v1/sessions/{session}/inputs/{request}")
}

#[tokio::test]
async fn a_question_waits_and_its_answer_goes_on() {
    let app = App::start(plain()).await;
    let (session, request, mut events) = ask(&app, "ask").await;
    let shown = app.get(&format!("/v1/sessions/{session}")).await;
    assert_eq!(shown["status"], "waiting");
    assert_eq!(shown["pending_input"]["request_id"], request);
    for list in [format!("/v1/sessions/{session}/inputs"), "/v1/inputs".to_owned()] {
        let waiting = app.get(&list).await;
        assert_eq!(waiting["data"][0]["request_id"], request);
        assert_eq!(waiting["data"][0]["session_id"], session);
    }
    let (status, went_on) =
        app.call(Method::PUT, &path(&session, &request), json!({"decision": "approve_once"})).await;
    assert_eq!(status, 200, "{went_on}");
    let told = went_on["events"].as_array().unwrap();
    assert_eq!(kinds(told), ["input_resolved", "tool_use", "tool_result", "text", "done"]);
    assert_eq!(went_on["session"]["status"], "idle");
    assert_eq!(events.until("done").await, *told, "the stream and the answer say the same");
    assert_eq!(told[0]["data"]["by"]["kind"], "key");
    let (status, problem) =
        app.call(Method::PUT, &path(&session, &request), json!({"decision": "deny"})).await;
    assert_eq!((status, &problem["error"]), (409, &json!("input_already_resolved")));
    assert!(app.get("/v1/inputs").await["data"].as_array().unwrap().is_empty());
    app.stop().await;
}

#[tokio::test]
async fn a_plain_call_returns_at_the_question() {
    let app = App::start(plain()).await;
    let (status, waiting) = app.post("/v1/projects/app/messages", json!({"text": "ask"})).await;
    assert_eq!((status, &waiting["stop_reason"]), (200, &json!("input_required")), "{waiting}");
    let session = waiting["session_id"].as_str().unwrap();
    let request = waiting["pending_inputs"][0]["request_id"].as_str().unwrap();
    let body = json!({"decision": "deny", "message": "not today", "stream": true});
    let mut rest = Events::open(app.request(Method::PUT, &path(session, request)).json(&body)).await;
    assert_eq!(done(&rest.until("done").await)["text"], "let me see. as you wish");
    app.stop().await;
}

#[tokio::test]
async fn the_first_of_two_answers_wins() {
    let app = App::start(plain()).await;
    let (session, request, mut events) = ask(&app, "ask").await;
    let put = |decision: &str| {
        app.request(Method::PUT, &path(&session, &request))
            .json(&json!({"decision": decision, "stream": true}))
            .send()
    };
    let (one, two) = tokio::join!(put("approve_once"), put("deny"));
    let mut statuses = [one.unwrap().status().as_u16(), two.unwrap().status().as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409]);
    let rest = events.until("done").await;
    assert_eq!(rest.iter().filter(|event| event["type"] == "input_resolved").count(), 1);
    app.stop().await;
}

#[tokio::test]
async fn answers_must_fit() {
    let app = App::start(plain()).await;
    let (session, request, mut events) = ask(&app, "choose").await;
    for (body, pointer) in [
        (json!({"decision": "approve_once"}), "/answers"),
        (json!({"decision": "approve_session", "answers": {"Which?": "a"}}), "/decision"),
        (
            json!({"decision": "approve_once", "answers": {"Which?": "a"}, "updated_input": {}}),
            "/updated_input",
        ),
        (json!({"decision": "perhaps"}), "/decision"),
        (json!({"decision": "deny", "why": "no"}), "/why"),
        (json!({}), ""),
    ] {
        let (status, problem) = app.call(Method::PUT, &path(&session, &request), body.clone()).await;
        assert_eq!(status, 400, "{body}: {problem}");
        assert_eq!(problem["pointer"].as_str().unwrap_or_default(), pointer, "{body}: {problem}");
    }
    let unknown = "req_00000000000000000000000000";
    let (status, _) = app.call(Method::PUT, &path(&session, unknown), json!({"decision": "deny"})).await;
    assert_eq!(status, 404);
    let body = json!({"decision": "approve_once", "answers": {"Which?": "a"}});
    let (status, _) = app.call(Method::PUT, &path(&session, &request), body).await;
    assert_eq!(status, 200);
    assert_eq!(done(&events.until("done").await)["text"], "noted");
    app.stop().await;
}

#[tokio::test]
async fn an_unanswered_question_is_refused_in_time() {
    let app = App::start_with(plain(), |settings| settings.limits.approval_seconds = 1).await;
    let (_, request, mut events) = ask(&app, "ask").await;
    let rest = events.until("done").await;
    let resolved = &rest[0]["data"];
    assert_eq!((&resolved["request_id"], &resolved["decision"]), (&json!(request), &json!("deny")));
    assert_eq!(resolved["by"]["kind"], "karta");
    assert_eq!(done(&rest)["status"], "completed");
    app.stop().await;
}

#[tokio::test]
async fn an_interrupt_withdraws_the_question() {
    let app = App::start(plain()).await;
    let (session, request, mut events) = ask(&app, "ask").await;
    app.post(&format!("/v1/sessions/{session}/interrupt"), Value::Null).await;
    let rest = events.until("done").await;
    assert_eq!(kinds(&rest), ["input_resolved", "done"]);
    let late = app.request(Method::PUT, &path(&session, &request)).json(&json!({"decision": "deny"}));
    assert_eq!(answer(late.send().await.unwrap()).await.0, 409);
    app.stop().await;
}
