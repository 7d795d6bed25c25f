//! For operators, and the form of every problem.

use karta_types::ErrorCode;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, answer, plain};

#[tokio::test]
async fn alive_ready_and_described() {
    let app = App::start(plain()).await;
    assert_eq!(app.get("/healthz").await, json!("ok\n"));
    let ready = app.get("/readyz").await;
    assert_eq!((&ready["ready"], &ready["parts"]["store"]), (&json!(true), &json!("ok")));
    assert!(app.get("/metrics").await.as_str().unwrap().contains("karta_http_requests_total"));
    let document = app.get("/openapi.json").await;
    assert_eq!(document["info"]["title"], "Karta");
    for code in ErrorCode::ALL {
        let page = app.get(&format!("/problems/{code}")).await;
        assert!(page.as_str().unwrap().contains(code.as_str()));
    }
    app.stop().await;
}

#[tokio::test]
async fn every_problem_has_its_form() {
    let app = App::start_with(plain(), |settings| settings.limits.body_bytes = 1000).await;
    let raw = |kind: &'static str, body: String| {
        app.request(Method::POST, "/v1/sessions").header("content-type", kind).body(body)
    };
    let large = json!({"project": "app", "title": "x".repeat(2000)}).to_string();
    for (request, status, code) in [
        (raw("application/json", "{".into()), 400, "invalid_request"),
        (raw("application/json", "[1,2]".into()), 400, "invalid_request"),
        (raw("application/json", "\u{0}\u{1}".into()), 400, "invalid_request"),
        (raw("text/plain", "{}".into()), 400, "invalid_request"),
        (raw("application/json", large), 413, "payload_too_large"),
        (app.request(Method::GET, "/v1/nothing"), 404, "not_found"),
        (app.request(Method::GET, "/v1/sessions/sess_x"), 404, "not_found"),
        (app.request(Method::PUT, "/v1/sessions"), 405, "invalid_request"),
    ] {
        let response = request.send().await.unwrap();
        let headers = response.headers().clone();
        let (got, problem) = answer(response).await;
        assert_eq!((got, &problem["error"]), (status, &json!(code)), "{problem}");
        assert_eq!(headers["content-type"], "application/problem+json");
        assert_eq!(headers["x-request-id"].to_str().unwrap(), problem["request_id"], "{problem}");
        assert_eq!(
            (&problem["type"], &problem["reason"]),
            (&json!(format!("/problems/{code}")), &json!(code))
        );
    }
    app.stop().await;
}

#[test]
fn the_checked_in_description_is_current() {
    let file = std::path::Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap())
        .join("../../snapshots/openapi.json");
    let current = karta_server::openapi::document() + "\n";
    if std::env::var_os("KARTA_BLESS").is_some() {
        std::fs::write(&file, &current).unwrap();
    }
    let checked_in = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        checked_in == current,
        "snapshots/openapi.json is stale; run this test with KARTA_BLESS=1 and read the diff"
    );
    let _: Value = serde_json::from_str(&current).unwrap();
}
