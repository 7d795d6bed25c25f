//! `Idempotency-Key`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::publish::{folder, packed};
use crate::support::{App, Events, answer, plain};

async fn send(app: &App, path: &str, key: &str, body: Value) -> (u16, Value) {
    let request = app.request(Method::POST, path).header("idempotency-key", key).json(&body);
    answer(request.send().await.unwrap()).await
}

#[tokio::test]
async fn the_same_message_again_is_the_same_turn() {
    let app = App::start(plain()).await;
    let session = app.session().await;
    let path = format!("/v1/sessions/{session}/messages");
    let body = json!({"text": "hello"});
    let (status, first) = send(&app, &path, "k1", body.clone()).await;
    assert_eq!(status, 200, "{first}");
    assert_eq!(send(&app, &path, "k1", body.clone()).await, (200, first.clone()));
    let (status, problem) = send(&app, &path, "k1", json!({"text": "other"})).await;
    assert_eq!((status, &problem["error"]), (422, &json!("idempotency_mismatch")));
    let (_, other) = send(&app, &path, "k2", body.clone()).await;
    assert_ne!(other["turn_id"], first["turn_id"]);
    let streamed = json!({"text": "hello", "stream": true});
    let stream = || app.request(Method::POST, &path).header("idempotency-key", "k3").json(&streamed);
    let one = Events::open(stream()).await.until("done").await;
    let two = Events::open(stream()).await.until("done").await;
    assert_eq!(one, two, "the stored stream is replayed");
    assert_eq!(app.get(&format!("/v1/sessions/{session}/turns")).await["data"].as_array().unwrap().len(), 3);
    app.stop().await;
}

#[tokio::test]
async fn two_at_once_are_one() {
    let app = App::start(plain()).await;
    let body = json!({"text": "wait"});
    let call = || send(&app, "/v1/projects/app/messages", "once", body.clone());
    let stop = async {
        // Once a turn runs it is stopped, so that both calls answer.
        loop {
            let sessions = app.get("/v1/sessions").await;
            if let Some(id) = sessions["data"][0]["id"].as_str()
                && sessions["data"][0]["status"] == "running"
            {
                app.post(&format!("/v1/sessions/{id}/interrupt"), Value::Null).await;
                break;
            }
        }
    };
    let (one, two, ()) = tokio::join!(call(), call(), stop);
    let fine: Vec<_> = [&one, &two].into_iter().filter(|(status, _)| *status == 200).collect();
    assert!(!fine.is_empty(), "{one:?} {two:?}");
    for (status, body) in [&one, &two] {
        let waits = *status == 409 && body["error"] == "request_in_progress";
        assert!(waits || body["turn_id"] == fine[0].1["turn_id"], "{one:?} {two:?}");
    }
    assert_eq!(app.get("/v1/sessions").await["data"].as_array().unwrap().len(), 1);
    app.stop().await;
}

#[tokio::test]
async fn sessions_are_made_once_and_failures_free_the_key() {
    let app = App::start(plain()).await;
    let (status, first) = send(&app, "/v1/sessions", "s", json!({"project": "app"})).await;
    assert_eq!(status, 201);
    assert_eq!(send(&app, "/v1/sessions", "s", json!({"project": "app"})).await, (201, first));
    let (status, _) = send(&app, "/v1/sessions", "t", json!({"project": "nothing"})).await;
    assert_eq!(status, 404);
    let (status, _) = send(&app, "/v1/sessions", "t", json!({"project": "app"})).await;
    assert_eq!(status, 201, "the failed request did not take the key");
    let (status, _) = send(&app, "/v1/sessions", &"x".repeat(300), json!({"project": "app"})).await;
    assert_eq!(status, 400);
    app.stop().await;
}

#[tokio::test]
async fn a_rollback_that_is_sent_again_goes_back_once() {
    let app = App::start(plain()).await;
    let at = app.data.path().join("shop");
    for says in ["one", "two", "three"] {
        folder(&at, says, &[]);
        app.publish("shop/releases", packed(&at, None)).await;
    }
    let back = "/v1/projects/shop/rollback";
    let (status, first) = send(&app, back, "k", json!({})).await;
    assert_eq!((status, &first["version"]), (200, &json!(2)));
    assert_eq!(send(&app, back, "k", json!({})).await, (200, first));
    assert_eq!(app.get("/v1/projects/shop").await["active_release"]["version"], 2);
    assert_eq!(send(&app, back, "another", json!({})).await.1["version"], 1);
    app.stop().await;
}
