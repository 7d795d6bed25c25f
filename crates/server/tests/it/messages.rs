//! Messages and turns.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, Events, answer, done, kinds, plain, seqs};

#[tokio::test]
async fn the_plain_answer_is_the_fold_of_the_stream() {
    let app = App::start(plain()).await;
    let session = app.session().await;
    let path = format!("/v1/sessions/{session}/messages");
    let (status, unary) = app.post(&path, json!({"text": "hello"})).await;
    assert_eq!(status, 200, "{unary}");
    let events = app.turn(&session, "hello").await;
    let text: String = events
        .iter()
        .filter(|event| event["type"] == "text")
        .map(|event| event["data"]["part"]["text"].as_str().unwrap())
        .collect();
    assert_eq!(unary["text"], text);
    assert_eq!(unary["text"], done(&events)["text"]);
    assert_eq!(unary["usage"], done(&events)["usage"]);
    assert_eq!(unary["stop_reason"], done(&events)["stop_reason"]);
    let parts = unary["messages"][0]["parts"].as_array().unwrap();
    let kinds: Vec<_> = parts.iter().map(|part| part["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["reasoning", "text", "tool_use", "tool_result", "text"]);
    assert_eq!(unary["messages"][0]["role"], "assistant");
    app.stop().await;
}

#[tokio::test]
async fn turns_are_numbered_on_and_recorded() {
    let app = App::start(plain()).await;
    let session = app.session().await;
    let mut all = Vec::new();
    for _ in 0..3 {
        let events = app.turn(&session, "hello").await;
        assert_eq!(kinds(&events)[0], "turn_start");
        assert_eq!(done(&events)["status"], "completed");
        all.extend(events);
    }
    assert_eq!(seqs(&all), (1..=all.len() as u64).collect::<Vec<_>>());
    let turns = app.get(&format!("/v1/sessions/{session}/turns?limit=2")).await;
    assert_eq!(turns["data"].as_array().unwrap().len(), 2);
    let cursor = turns["next_cursor"].as_str().unwrap();
    let rest = app.get(&format!("/v1/sessions/{session}/turns?limit=2&cursor={cursor}")).await;
    assert_eq!((rest["data"].as_array().unwrap().len(), &rest["next_cursor"]), (1, &Value::Null));
    let id = turns["data"][0]["id"].as_str().unwrap();
    let turn = app.get(&format!("/v1/sessions/{session}/turns/{id}")).await;
    assert_eq!((&turn["state"], &turn["release"]["version"]), (&json!("completed"), &json!(1)));
    assert!(
        turn["started_at"].is_string() && turn["first_text_at"].is_string() && turn["ended_at"].is_string()
    );
    let history = app.get(&format!("/v1/sessions/{session}/history")).await;
    assert_eq!(history["data"].as_array().unwrap().len(), 6);
    assert_eq!(history["data"][0]["text"], "hello");
    app.stop().await;
}

#[tokio::test]
async fn one_call_makes_session_and_turn() {
    let app = App::start(plain()).await;
    let body = json!({"text": "hello", "end_user_id": "u1", "metadata": {"plan": "pro"},
        "participant_name": "Ada", "agent": "billing"});
    let (status, first) = app.post("/v1/projects/app/messages", body).await;
    assert_eq!(status, 200, "{first}");
    assert_eq!(first["agent"], "billing");
    let id = first["session_id"].as_str().unwrap();
    let session = app.get(&format!("/v1/projects/app/sessions/{id}")).await;
    assert_eq!((&session["end_user_id"], &session["metadata"]["plan"]), (&json!("u1"), &json!("pro")));
    let (_, again) = app.post("/v1/projects/app/messages", json!({"text": "more", "session_id": id})).await;
    assert_eq!(again["session_id"], id);
    let mut events = app.events(id, "?after=0").await;
    let first = events.until("done").await;
    assert_eq!(first[0]["data"]["participant"], json!({"name": "Ada", "type": "human"}));
    app.stop().await;
}

#[tokio::test]
async fn asynchronous_turns_run_by_themselves() {
    let app = App::start(plain()).await;
    let session = app.session().await;
    let path = format!("/v1/sessions/{session}/messages");
    let request =
        app.request(Method::POST, &path).header("prefer", "respond-async").json(&json!({"text": "hi"}));
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 202);
    let place = response.headers()["location"].to_str().unwrap().to_owned();
    let (_, taken) = answer(response).await;
    assert_eq!(taken["session_id"], session);
    app.events(&session, "").await.until("done").await;
    assert_eq!(app.get(&place).await["state"], "completed");
    app.stop().await;
}

#[tokio::test]
async fn a_busy_session_does_as_asked() {
    let app = App::start_with(plain(), |settings| settings.limits.queue = 2).await;
    let session = app.session().await;
    let path = format!("/v1/sessions/{session}/messages");
    let mut running =
        Events::open(app.request(Method::POST, &path).json(&json!({"text": "wait", "stream": true}))).await;
    running.until("text").await;

    let (status, refused) = app.post(&path, json!({"text": "now"})).await;
    assert_eq!((status, &refused["error"]), (409, &json!("turn_in_progress")));
    assert_eq!(app.get(&format!("/v1/sessions/{session}")).await["status"], "running");

    let send = |on_busy: &str| {
        let body = json!({"text": "hello", "on_busy": on_busy});
        app.request(Method::POST, &path).header("prefer", "respond-async").json(&body).send()
    };
    let (status, queued) = answer(send("queue").await.unwrap()).await;
    assert_eq!((status, &queued["status"]), (202, &json!("queued")));
    let (status, _) = answer(send("steer").await.unwrap()).await;
    assert_eq!(status, 202);
    let (_, first) = answer(send("interrupt").await.unwrap()).await;
    let stopped = running.until("done").await;
    assert_eq!(done(&stopped)["status"], "interrupted");

    // What interrupted goes first, then what was queued.
    let mut events = app.events(&session, "").await;
    events.until("done").await;
    for turn in [&first["turn_id"], &queued["turn_id"]] {
        let next = events.until("done").await;
        assert_eq!(&next[0]["turn_id"], turn);
        assert_eq!(done(&next)["status"], "completed");
    }
    assert_eq!(app.get(&format!("/v1/sessions/{session}")).await["status"], "idle");
    app.stop().await;
}

#[tokio::test]
async fn interrupt_stops_and_says_whether_there_was_something() {
    let app = App::start(plain()).await;
    let session = app.session().await;
    let path = format!("/v1/sessions/{session}/interrupt");
    assert_eq!(app.post(&path, Value::Null).await.1["interrupted"], false);
    let request = app.request(Method::POST, &format!("/v1/sessions/{session}/messages"));
    let mut running = Events::open(request.json(&json!({"text": "wait", "stream": true}))).await;
    running.until("text").await;
    assert_eq!(app.post(&path, Value::Null).await.1["interrupted"], true);
    assert_eq!(done(&running.until("done").await)["status"], "interrupted");
    assert!(running.next().await.is_none(), "the stream ends with its turn");
    app.stop().await;
}

#[tokio::test]
async fn parts_are_taken_and_nonsense_is_named() {
    let app = App::start(json!({"turns": [{"steps": [{"echo": true}]}]})).await;
    let session = app.session().await;
    let path = format!("/v1/sessions/{session}/messages");
    let content = json!([{"type": "text", "text": "look"}, {"type": "image", "media_type": "image/png", "data": "aGk="},
        {"type": "file", "name": "a.txt", "data": "aGk="}]);
    let (status, said) = app.post(&path, json!({"content": content})).await;
    assert_eq!(status, 200, "{said}");
    assert!(said["text"].as_str().unwrap().contains("uploads/a.txt"), "{said}");
    for (body, pointer) in [
        (json!({}), "/text"),
        (json!({"text": " "}), "/text"),
        (json!({"text": 5}), "/text"),
        (json!({"text": "a", "colour": "red"}), "/colour"),
        (json!({"text": "a", "on_busy": "panic"}), "/on_busy"),
        (json!({"text": "a", "agent": "nobody"}), "/agent"),
        (json!({"text": "a", "content": [{"type": "text", "text": "b"}]}), "/content"),
        (json!({"content": [{"type": "text", "words": "b"}]}), "/content/0"),
        (json!({"text": "a", "participant": {"name": "x", "age": 3}}), "/participant/age"),
    ] {
        let (status, problem) = app.post(&path, body.clone()).await;
        assert_eq!((status, &problem["error"]), (400, &json!("invalid_request")), "{body}: {problem}");
        let told = problem["pointer"].as_str().unwrap_or_default();
        assert!(told.starts_with(pointer), "{body}: {problem}");
    }
    let escape = json!({"content": [{"type": "file", "name": "../../x", "data": "aGk="}]});
    let (status, problem) = app.post(&path, escape).await;
    assert_eq!(status, 400, "{problem}");
    app.stop().await;
}
