//! What a release says of its sessions (`karta.toml`, `karta.jsonc`), held.

use reqwest::Method;
use serde_json::{Value, json};

use crate::publish::packed;
use crate::support::{App, done, kinds, plain};

/// A project `shop` whose folder has the script of [`plain`] and these files.
async fn with(files: &[(&str, &str)]) -> App {
    let app = App::start(plain()).await;
    let at = app.data.path().join("shop");
    std::fs::create_dir_all(&at).unwrap();
    std::fs::write(at.join("karta.script.json"), plain().to_string()).unwrap();
    for (path, content) in files {
        std::fs::write(at.join(path), content).unwrap();
    }
    let (status, release) = app.publish("shop/releases", packed(&at, None)).await;
    assert_eq!(status, 201, "{release}");
    app
}

async fn session(app: &App, more: Value) -> Value {
    let mut body = json!({"project": "shop"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (status, session) = app.post("/v1/sessions", body).await;
    assert_eq!(status, 201, "{session}");
    session
}

#[tokio::test]
async fn hidden_events_are_told_to_those_who_ask_and_the_mode_is_the_release_s() {
    let settings = r#"{
        // What end users need not see.
        "hidden_events": ["reasoning", "tool_use", "tool_result"],
        "permission_mode": "plan",
    }"#;
    let app = with(&[("karta.jsonc", settings)]).await;
    let made = session(&app, json!({})).await;
    assert_eq!(made["permission_mode"], "plan");
    assert_eq!(session(&app, json!({"permission_mode": "default"})).await["permission_mode"], "default");
    let id = made["id"].as_str().unwrap();
    let events = app.turn(id, "hello").await;
    for hidden in ["reasoning", "tool_use", "tool_result"] {
        assert!(!kinds(&events).contains(&hidden), "{events:#?}");
    }
    assert_eq!(done(&events)["text"], "la la la end");
    let mut asked = app.events(id, "?include=reasoning,tool_use").await;
    let events = asked.until("done").await;
    assert!(kinds(&events).contains(&"reasoning") && kinds(&events).contains(&"tool_use"), "{events:#?}");
    assert!(!kinds(&events).contains(&"tool_result"), "{events:#?}");
    // The plain answer is the fold of what is seen.
    let (_, answer) = app.post(&format!("/v1/sessions/{id}/messages"), json!({"text": "hello"})).await;
    let parts = answer["messages"].to_string();
    assert!(!parts.contains("reasoning") && !parts.contains("tool_use"), "{answer}");
    let query = format!("/v1/sessions/{id}/events?include=text");
    let (status, problem) = app.call(Method::GET, &query, Value::Null).await;
    assert_eq!((status, &problem["pointer"]), (400, &json!("/include")), "{problem}");
    app.stop().await;
}

#[tokio::test]
async fn a_session_that_used_what_its_release_allows_begins_nothing_more() {
    let app = with(&[("karta.toml", "[policy.caps]\nsession_total_tokens = 100\n")]).await;
    let id = session(&app, json!({})).await["id"].as_str().unwrap().to_owned();
    app.turn(&id, "spend").await;
    let path = format!("/v1/sessions/{id}/messages");
    let (status, problem) = app.post(&path, json!({"text": "hello"})).await;
    assert_eq!(
        (status, &problem["error"], &problem["level"]),
        (402, &json!("budget_exhausted"), &json!("session"))
    );
    assert_eq!((&problem["cap"], &problem["left"]), (&json!(100), &json!(0)), "{problem}");
    // Another session has its own.
    let other = session(&app, json!({})).await["id"].as_str().unwrap().to_owned();
    app.turn(&other, "hello").await;
    let policy = &app.get("/v1/projects/shop/releases/1").await["policy"];
    assert_eq!(policy["caps"]["session_total_tokens"], 100);
    app.stop().await;
}

#[tokio::test]
async fn a_turn_ends_when_its_release_says_so() {
    let app = with(&[("karta.toml", "[policy.caps]\nturn_seconds = 1\n")]).await;
    let id = session(&app, json!({})).await["id"].as_str().unwrap().to_owned();
    let events = app.turn(&id, "wait").await;
    assert_eq!(done(&events)["status"], "failed", "{events:#?}");
    app.stop().await;
}
