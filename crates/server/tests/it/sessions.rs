//! Sessions.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, kinds, plain};

#[tokio::test]
async fn made_listed_changed_erased() {
    let app = App::start(plain()).await;
    let mut ids = Vec::new();
    for index in 0..3 {
        let body = json!({"project": "app", "title": format!("s{index}"), "end_user_id": format!("u{index}"),
            "metadata": {"team": if index == 1 { "red" } else { "blue" }, "n": index}, "participants": [{"name": "Ada"}]});
        let (status, session) = app.post("/v1/sessions", body).await;
        assert_eq!(status, 201, "{session}");
        assert_eq!((&session["isolation"], &session["project"]["slug"]), (&json!("none"), &json!("app")));
        ids.push(session["id"].as_str().unwrap().to_owned());
    }
    let listed = |query: &str| {
        let path = format!("/v1/sessions{query}");
        let app = &app;
        async move {
            let page = app.get(&path).await;
            page["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|one| one["id"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        }
    };
    let newest_first: Vec<_> = ids.iter().rev().cloned().collect();
    assert_eq!(listed("").await, newest_first);
    assert_eq!(listed("?metadata.team=red").await, [ids[1].clone()]);
    assert_eq!(listed("?metadata.n=2&metadata.team=blue").await, [ids[2].clone()]);
    assert_eq!(listed("?end_user_id=u0").await, [ids[0].clone()]);
    assert_eq!(listed("?project=app&status=idle").await.len(), 3);
    assert!(listed("?status=closed").await.is_empty());
    let page = app.get("/v1/sessions?limit=2").await;
    let cursor = page["next_cursor"].as_str().unwrap();
    assert_eq!(listed(&format!("?limit=2&cursor={cursor}")).await, [ids[0].clone()]);
    for query in ["?limit=0", "?limit=201", "?cursor=x", "?status=odd", "?colour=red"] {
        assert_eq!(
            app.call(Method::GET, &format!("/v1/sessions{query}"), Value::Null).await.0,
            400,
            "{query}"
        );
    }

    let path = format!("/v1/sessions/{}", ids[0]);
    let (status, changed) =
        app.call(Method::PATCH, &path, json!({"title": null, "metadata": {"team": "green"}})).await;
    assert_eq!(
        (status, &changed["title"], &changed["metadata"]),
        (200, &Value::Null, &json!({"team": "green"}))
    );
    assert_eq!(changed["end_user_id"], "u0", "what is absent stays");
    assert_eq!(listed("?metadata.team=green").await, [ids[0].clone()]);
    assert_eq!(app.call(Method::PATCH, &path, json!({"status": "closed"})).await.0, 400);

    let (_, again) = app.post("/v1/sessions", json!({"project": "app", "session_id": ids[0]})).await;
    assert_eq!(again["id"], ids[0]);
    app.turn(&ids[0], "hello").await;
    assert_eq!(app.call(Method::DELETE, &path, Value::Null).await.0, 204);
    for rest in ["", "/events", "/turns", "/history", "/inputs"] {
        assert_eq!(app.call(Method::GET, &format!("{path}{rest}"), Value::Null).await.0, 404, "{rest}");
    }
    assert_eq!(app.post(&format!("{path}/messages"), json!({"text": "hello"})).await.0, 404);
    app.stop().await;
}

#[tokio::test]
async fn another_agent_takes_over() {
    let app = App::start(plain()).await;
    let session = app.session().await;
    let path = format!("/v1/sessions/{session}");
    let (status, changed) = app.call(Method::PATCH, &path, json!({"current_agent": "billing"})).await;
    assert_eq!((status, &changed["current_agent"]), (200, &json!("billing")), "{changed}");
    let events = app.turn(&session, "hello").await;
    assert_eq!(events[0]["data"]["agent"], "billing");
    let all = app.events(&session, "?after=0").await.until("done").await;
    assert_eq!(kinds(&all)[0], "agent_changed");
    assert_eq!(all[0]["data"], json!({"from": null, "to": "billing"}));
    assert_eq!(app.call(Method::PATCH, &path, json!({"current_agent": "nobody"})).await.0, 400);
    app.stop().await;
}

#[tokio::test]
async fn limits_are_told_by_field() {
    let app = App::start(plain()).await;
    let many: serde_json::Map<_, _> = (0..51).map(|n| (format!("k{n}"), json!(n))).collect();
    for (body, pointer) in [
        (json!({"project": "app", "metadata": many}), "/metadata"),
        (json!({"project": "app", "metadata": {"a/b": "x".repeat(10_001)}}), "/metadata/a~1b"),
        (json!({"project": "app", "agent": "nobody"}), "/agent"),
        (json!({"project": "app", "release_pin": "never"}), "/release_pin"),
        (json!({"project": "app", "session_id": "turn_0"}), "/session_id"),
        (json!({}), "/project"),
    ] {
        let (status, problem) = app.post("/v1/sessions", body.clone()).await;
        assert_eq!((status, problem["pointer"].as_str().unwrap_or_default()), (400, pointer), "{problem}");
    }
    let (status, problem) = app.post("/v1/sessions", json!({"project": "app", "isolation": "microvm"})).await;
    assert_eq!((status, &problem["error"]), (503, &json!("isolation_unavailable")));
    let (status, problem) = app.post("/v1/sessions", json!({"project": "app", "release_pin": 7})).await;
    assert_eq!(status, 404, "{problem}");
    app.stop().await;
}
