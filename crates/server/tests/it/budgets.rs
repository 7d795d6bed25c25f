//! Budgets by the API, and turns under them.

use reqwest::Method;
use serde_json::json;

use crate::support::{App, plain};

#[tokio::test]
async fn a_cap_is_set_counted_refused_raised_and_removed() {
    let app = App::start(plain()).await;
    let key = app.key.clone();
    // What was used before counts.
    let (status, first) =
        app.post("/v1/projects/app/messages", json!({"text": "spend", "end_user_id": "ann"})).await;
    assert_eq!(status, 200, "{first}");
    let used = first["usage"]["total_tokens"].as_i64().unwrap();
    assert!(used > 0, "{first}");
    let path = "/v1/budgets/end_user/ann";
    let (status, set) = app.as_key(Method::PUT, path, &key, json!({"total_tokens": used})).await;
    assert_eq!(status, 200, "{set}");
    assert_eq!((&set["settled"]["total_tokens"], &set["left"]["total_tokens"]), (&json!(used), &json!(0)));
    let turn = json!({"text": "spend", "end_user_id": "ann"});
    let (status, refused) = app.post("/v1/projects/app/messages", turn.clone()).await;
    assert_eq!(status, 402);
    for (field, value) in [
        ("error", json!("budget_exhausted")),
        ("level", json!("end_user")),
        ("id", json!("ann")),
        ("unit", json!("total_tokens")),
        ("cap", json!(used)),
        ("settled", json!(used)),
        ("reserved", json!(0)),
        ("short", json!(1)),
    ] {
        assert_eq!(refused[field], value, "{refused}");
    }
    let sessions = app.get("/v1/sessions?end_user_id=ann").await;
    assert_eq!(sessions["data"].as_array().unwrap().len(), 1, "a refusal leaves no empty session behind");
    let other = json!({"text": "spend", "end_user_id": "bob"});
    assert_eq!(app.post("/v1/projects/app/messages", other).await.0, 200, "another end user is not capped");
    // In an existing session too.
    let session = first["session_id"].as_str().unwrap();
    let again = app.post(&format!("/v1/sessions/{session}/messages"), json!({"text": "spend"})).await;
    assert_eq!(again.0, 402);
    app.as_key(Method::PUT, path, &key, json!({"total_tokens": used + 1})).await;
    assert_eq!(
        app.post("/v1/projects/app/messages", turn.clone()).await.0,
        200,
        "a raised cap holds at once"
    );
    assert_eq!(app.post("/v1/projects/app/messages", turn.clone()).await.0, 402);
    assert_eq!(app.as_key(Method::DELETE, path, &key, json!({})).await.0, 204);
    assert_eq!(app.as_key(Method::DELETE, path, &key, json!({})).await.0, 404);
    assert_eq!(app.post("/v1/projects/app/messages", turn).await.0, 200);
    let actions = app.get("/v1/audit?action=budget.refuse").await;
    assert_eq!(actions["data"].as_array().unwrap().len(), 3);
    app.stop().await;
}

#[tokio::test]
async fn what_was_used_is_summed_written_as_csv_and_exported() {
    let app = App::start(plain()).await;
    for user in ["ann", "=1+1,\"x\"", "ann"] {
        app.post("/v1/projects/app/messages", json!({"text": "spend", "end_user_id": user})).await;
    }
    let sums = app.get("/v1/usage?group_by=end_user,release").await;
    let ann = &sums["data"][1];
    assert_eq!((&ann["end_user"], &ann["release"]), (&json!("ann"), &json!("1")), "{sums}");
    assert_eq!((&ann["turns"], &ann["calls"], &ann["unpriced_calls"]), (&json!(2), &json!(2), &json!(0)));
    assert_eq!(ann["cost_micros"], 1_800);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let text = async |path: &str| {
        let answer = client.get(format!("{}{path}", app.url)).bearer_auth(&app.key).send().await.unwrap();
        answer.text().await.unwrap()
    };
    let csv = text("/v1/usage?group_by=end_user&format=csv").await;
    let lines: Vec<_> = csv.lines().collect();
    assert!(lines[0].starts_with("end_user,turns,calls,unpriced_calls,input_tokens"), "{csv}");
    assert!(lines[1].starts_with("\"'=1+1,\"\"x\"\"\",1,1,0,60,50,7,0,"), "no formula: {csv}");
    assert!(lines[2].starts_with("ann,2,2,0,120,100,14,0,") && lines[2].ends_with(",1800"));
    let export = text("/v1/usage/export").await;
    let events: Vec<serde_json::Value> =
        export.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 3);
    assert_eq!((&events[0]["specversion"], &events[0]["type"]), (&json!("1.0"), &json!("karta.model_call")));
    assert_eq!(events[0]["data"]["cost_micros"], 900);
    let after = text(&format!("/v1/usage/export?after={}", events[1]["id"].as_str().unwrap())).await;
    assert_eq!(after.lines().count(), 1);
    app.stop().await;
}

#[tokio::test]
async fn every_level_caps_and_nonsense_is_named() {
    let app = App::start(plain()).await;
    let key = app.key.clone();
    let (_, first) = app.post("/v1/projects/app/messages", json!({"text": "spend"})).await;
    let session = first["session_id"].as_str().unwrap();
    let me = app.get("/v1/whoami").await["principal"]["id"].as_str().unwrap().to_owned();
    let org = app.get("/v1/whoami").await["org"]["id"].as_str().unwrap().to_owned();
    for (level, id) in [("session", session), ("key", &me), ("project", "app"), ("org", &org)] {
        let path = format!("/v1/budgets/{level}/{id}");
        let (status, set) =
            app.as_key(Method::PUT, &path, &key, json!({"output_tokens": 1, "period": "month"})).await;
        assert_eq!((status, &set["period"]), (200, &json!("month")), "{set}");
        let (status, refused) =
            app.post(&format!("/v1/sessions/{session}/messages"), json!({"text": "spend"})).await;
        assert_eq!((status, &refused["level"]), (402, &json!(level)), "{refused}");
        assert_eq!(app.get("/v1/budgets").await["data"].as_array().unwrap().len(), 1);
        assert_eq!(app.as_key(Method::DELETE, &format!("{path}?period=month"), &key, json!({})).await.0, 204);
    }
    for (path, body, status) in [
        ("/v1/budgets/org/two", json!({"cost_micros": 1}), 404),
        ("/v1/budgets/planet/earth", json!({"cost_micros": 1}), 404),
        ("/v1/budgets/project/nothing", json!({"cost_micros": 1}), 404),
        ("/v1/budgets/key/key_1", json!({"cost_micros": 1}), 404),
        ("/v1/budgets/org/one", json!({}), 400),
        ("/v1/budgets/org/one", json!({"cost_micros": -1}), 400),
        ("/v1/budgets/org/one", json!({"cost_micros": 1.5}), 400),
        ("/v1/budgets/org/one", json!({"cost_micros": 1, "period": "week"}), 400),
    ] {
        let (got, problem) = app.as_key(Method::PUT, path, &key, body).await;
        assert_eq!(got, status, "{path}: {problem}");
    }
    app.stop().await;
}
