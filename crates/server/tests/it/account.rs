//! Keys and the audit log.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, Events, plain};

#[tokio::test]
async fn a_key_is_shown_once_used_rotated_and_revoked() {
    let app = App::start(plain()).await;
    let admin = app.key.clone();
    let new = json!({"name": "backend", "scopes": ["read"], "project": "app"});
    let (status, made) = app.as_key(Method::POST, "/v1/keys", &admin, new).await;
    assert_eq!(status, 201, "{made}");
    let text = made["key"].as_str().unwrap().to_owned();
    let id = made["id"].as_str().unwrap().to_owned();
    assert!(text.starts_with("kt_live_") && text.ends_with(made["last4"].as_str().unwrap()));
    let listed = app.get("/v1/keys").await;
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);
    assert!(!listed.to_string().contains(&text[12..]), "the key's text is shown once");

    let (status, who) = app.as_key(Method::GET, "/v1/whoami", &text, json!({})).await;
    assert_eq!((status, &who["scopes"]), (200, &json!(["read"])));
    // The replacement has the same rights; the old key goes on for the overlap.
    let (status, second) = app
        .as_key(Method::POST, &format!("/v1/keys/{id}/rotate"), &admin, json!({"overlap_seconds": 60}))
        .await;
    assert_eq!((status, &second["replaces"]), (201, &json!(id)), "{second}");
    assert_eq!(second["project"], made["project"]);
    let newer = second["key"].as_str().unwrap().to_owned();
    for key in [&text, &newer] {
        assert_eq!(app.as_key(Method::GET, "/v1/whoami", key, json!({})).await.0, 200);
    }
    assert!(app.get(&format!("/v1/keys/{id}")).await["expires_at"].is_string());
    // Without overlap the old key ends at once, although it was in every memory.
    let third = format!("/v1/keys/{}/rotate", second["id"].as_str().unwrap());
    let (status, third) = app.as_key(Method::POST, &third, &admin, json!({"overlap_seconds": 0})).await;
    assert_eq!(status, 201, "{third}");
    assert_eq!(app.as_key(Method::GET, "/v1/whoami", &newer, json!({})).await.0, 401);
    let again = format!("/v1/keys/{}/rotate", second["id"].as_str().unwrap());
    assert_eq!(
        app.as_key(Method::POST, &again, &admin, json!({})).await.0,
        404,
        "an ended key is not replaced"
    );
    assert_eq!(app.as_key(Method::DELETE, &format!("/v1/keys/{id}"), &admin, json!({})).await.0, 204);
    assert_eq!(app.as_key(Method::GET, "/v1/whoami", &text, json!({})).await.0, 401);
    app.stop().await;
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_back() {
    let app = App::start_with(plain(), |settings| settings.limits.key_requests_per_second = 5).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let other = app.key_with("read").await;
    let ask =
        async |key: &str| client.get(format!("{}/v1/whoami", app.url)).bearer_auth(key).send().await.unwrap();
    let refused = loop {
        let answer = ask(&app.key).await;
        if answer.status() != 200 {
            break answer;
        }
    };
    assert_eq!(refused.status(), 429);
    for (name, value) in [("retry-after", "1"), ("ratelimit-limit", "5"), ("ratelimit-remaining", "0")] {
        assert_eq!(refused.headers()[name], value, "{name}");
    }
    let problem: serde_json::Value = refused.json().await.unwrap();
    assert_eq!((&problem["error"], &problem["retryable"]), (&json!("rate_limited"), &json!(true)));
    assert_eq!(ask(&other).await.status(), 200, "another key has its own measure");
    app.stop().await;
}

#[tokio::test]
async fn nobody_gives_more_than_they_have() {
    let app = App::start(plain()).await;
    let admin = app.key.clone();
    for (body, field) in [
        (json!({"name": "", "scopes": ["read"]}), "/name"),
        (json!({"name": "x", "scopes": []}), "/scopes"),
        (json!({"name": "x", "scopes": ["root"]}), "/scopes/0"),
        (json!({"name": "x", "scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"}), "/expires_at"),
        (json!({"name": "x", "scopes": ["read"], "colour": 1}), "/colour"),
    ] {
        let (status, problem) = app.as_key(Method::POST, "/v1/keys", &admin, body).await;
        assert_eq!((status, &problem["pointer"]), (400, &json!(field)), "{problem}");
    }
    let (_, made) = app
        .as_key(Method::POST, "/v1/keys", &admin, json!({"name": "a", "scopes": ["admin"], "project": "app"}))
        .await;
    let narrow = made["key"].as_str().unwrap();
    let wide = json!({"name": "b", "scopes": ["write"], "project": "app"});
    assert_eq!(app.as_key(Method::POST, "/v1/keys", narrow, wide).await.0, 403);
    let everywhere = json!({"name": "c", "scopes": ["admin"]});
    assert_eq!(app.as_key(Method::POST, "/v1/keys", narrow, everywhere).await.0, 403);
    let (_, seen) = app.as_key(Method::GET, "/v1/keys", narrow, json!({})).await;
    assert_eq!(seen["data"].as_array().unwrap().len(), 1, "a key for one project sees that project's keys");
    app.stop().await;
}

#[tokio::test]
async fn what_was_done_is_in_the_log_and_the_log_is_whole() {
    let app = App::start(plain()).await;
    let admin = app.key.clone();
    let (_, waiting) = app.post("/v1/projects/app/messages", json!({"text": "ask"})).await;
    let session = waiting["session_id"].as_str().unwrap();
    let request = waiting["pending_inputs"][0]["request_id"].as_str().unwrap();
    let path = format!("/v1/sessions/{session}/inputs/{request}");
    app.as_key(Method::PUT, &path, &admin, json!({"decision": "deny", "message": "secret words"})).await;
    app.as_key(Method::POST, "/v1/keys", &admin, json!({"name": "k", "scopes": ["read"]})).await;
    app.as_key(Method::DELETE, &format!("/v1/sessions/{session}"), &admin, json!({})).await;
    let log = app.get("/v1/audit").await;
    let actions: Vec<_> =
        log["data"].as_array().unwrap().iter().map(|row| row["action"].as_str().unwrap()).collect();
    let newest_first = [
        "session.erase",
        "key.create",
        "input.resolve",
        "key.create",
        "release.activate",
        "release.publish",
        "project.create",
    ];
    assert_eq!(actions, newest_first);
    let by_key = &log["data"][1];
    assert!(by_key["actor"].as_str().unwrap().starts_with("key:key_"), "{by_key}");
    assert_eq!(by_key["address"], "127.0.0.1");
    assert!(by_key["request_id"].is_string() && by_key["after"].is_string());
    assert!(!log.to_string().contains("secret words"));
    let only = app.get("/v1/audit?action=key.create&limit=1").await;
    assert_eq!((only["data"].as_array().unwrap().len(), only["next_cursor"].is_string()), (1, true));
    assert_eq!(app.engine.audit_seal().await.unwrap(), 1);
    assert_eq!(app.engine.audit_seal().await.unwrap(), 0, "nothing new to sign");
    let verdict = app.get("/v1/audit/verify").await;
    assert_eq!(
        (&verdict["intact"], &verdict["rows"], &verdict["seals"]),
        (&json!(true), &json!(7), &json!(1)),
        "{verdict}"
    );
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let export = client.get(format!("{}/v1/audit/export?after=2", app.url)).bearer_auth(&admin);
    let lines = export.send().await.unwrap().text().await.unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[0]["seq"], 3);
    assert_eq!(lines[4]["action"], "session.erase");
    app.stop().await;
}

#[tokio::test]
async fn only_so_many_turns_run_at_once() {
    let app = App::start_with(plain(), |settings| {
        settings.limits.key_turns = 1;
        settings.limits.org_turns = 2;
    })
    .await;
    let other = app.key_with("read,write").await;
    let third = app.key_with("read,write").await;
    let (first, second) = (app.session().await, app.session().await);
    let path = |session: &str| format!("/v1/sessions/{session}/messages");
    let wait = json!({"text": "wait", "stream": true});
    let mut running = Vec::new();
    for (session, key) in [(&first, &app.key), (&second, &other)] {
        let call = reqwest::Client::builder().no_proxy().build().unwrap();
        let call = call.post(format!("{}{}", app.url, path(session))).bearer_auth(key).json(&wait);
        let mut events = Events::open(call).await;
        events.until("text").await;
        running.push(events);
    }
    for (key, level) in [(&app.key, "key"), (&third, "organisation")] {
        let (status, problem) =
            app.as_key(Method::POST, "/v1/projects/app/messages", key, json!({"text": "hello"})).await;
        assert_eq!((status, &problem["error"]), (429, &json!("rate_limited")), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(level), "{problem}");
    }
    let raw = app.request(Method::POST, "/v1/projects/app/messages").json(&json!({"text": "hello"}));
    let refused = raw.send().await.unwrap();
    assert!(refused.headers().contains_key("retry-after") && refused.headers()["ratelimit-limit"] == "1");
    // A turn that ended gives its seat back, however it ended.
    app.post(&format!("/v1/sessions/{first}/interrupt"), json!({})).await;
    running[0].until("done").await;
    let (status, _) = app.post("/v1/projects/app/messages", json!({"text": "hello"})).await;
    assert_eq!(status, 200);
    app.stop().await;
}

#[tokio::test]
async fn a_crowded_server_turns_away_early() {
    let app = App::start_with(plain(), |settings| {
        settings.limits.processes = 0;
        settings.limits.waiting = 0;
    })
    .await;
    let session = app.session().await;
    let call = app
        .request(Method::POST, &format!("/v1/sessions/{session}/messages"))
        .json(&json!({"text": "hello"}));
    let refused = call.send().await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (503, "5"));
    let turns = app.get(&format!("/v1/sessions/{session}/turns")).await;
    assert_eq!(turns["data"], json!([]), "nothing was begun");
    app.stop().await;
}
