//! What an organisation demands of all its sessions.

use reqwest::Method;
use serde_json::json;

use crate::support::{App, plain};

#[tokio::test]
async fn a_policy_is_set_whole_and_told() {
    let app = App::start(plain()).await;
    let key = app.key.clone();
    let put = |body| app.as_key(Method::PUT, "/v1/policy", &key, body);
    assert_eq!(
        app.get("/v1/policy").await,
        json!({"isolation": null, "egress_allow": null, "egress_deny": []}),
        "nothing is demanded"
    );
    let policy = json!({
        "isolation": "none", "egress_allow": ["api.example.com", "GET *.example.org/v1/*"], "egress_deny": ["evil.example"],
    });
    assert_eq!(put(policy.clone()).await, (200, policy.clone()));
    assert_eq!(app.get("/v1/policy").await, policy);
    for (body, at) in [
        (json!({"egress_allow": ["https://x.example"]}), "/egress_allow/0"),
        (json!({"egress_deny": ["a.example", "A.example"]}), "/egress_deny/1"),
        (json!({"isolation": "strong"}), "isolation"),
        (json!({"surprise": true}), "surprise"),
    ] {
        let (status, problem) = put(body).await;
        assert_eq!(status, 400, "{problem}");
        assert!(problem.to_string().contains(at), "{problem}");
    }
    assert_eq!(app.get("/v1/policy").await, policy, "what is refused changes nothing");
    assert_eq!(put(json!({})).await.0, 200);
    assert_eq!(app.get("/v1/policy").await["egress_allow"], json!(null));
    let log = app.get("/v1/audit?action=policy.set").await;
    assert_eq!(log["data"].as_array().unwrap().len(), 2, "{log}");
    app.stop().await;
}

#[tokio::test]
async fn sessions_below_the_least_isolation_are_not_made() {
    let app = App::start(plain()).await;
    let key = app.key.clone();
    let set = |isolation| app.as_key(Method::PUT, "/v1/policy", &key, json!({ "isolation": isolation }));
    assert_eq!(set("namespace").await.0, 200);
    let (status, problem) = app.post("/v1/sessions", json!({"project": "app"})).await;
    assert_eq!((status, &problem["error"]), (503, &json!("isolation_unavailable")), "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("`namespace`") && detail.contains("karta policy show"), "{detail}");
    let (status, _) = app.post("/v1/projects/app/messages", json!({"text": "hello"})).await;
    assert_eq!(status, 503, "nor for a message");
    assert_eq!(set("none").await.0, 200);
    let (status, session) = app.post("/v1/sessions", json!({"project": "app"})).await;
    assert_eq!(status, 201, "{session}");
    let record = app.get(&format!("/v1/sessions/{}/egress", session["id"].as_str().unwrap())).await;
    assert_eq!(record, json!({"decisions": [], "rules": [], "complete": true}));
    assert_eq!(set("microvm").await.0, 200);
    let path = format!("/v1/sessions/{}/messages", session["id"].as_str().unwrap());
    let (status, problem) = app.post(&path, json!({"text": "hello"})).await;
    assert_eq!(
        (status, &problem["error"]),
        (503, &json!("isolation_unavailable")),
        "a session made before: {problem}"
    );
    app.stop().await;
}
