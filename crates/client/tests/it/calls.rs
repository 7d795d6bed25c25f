//! Plain calls: what is sent, what is read, what a refusal becomes.

use karta_client::{
    Client, CreateSession, Error, OnBusy, PatchSession, SendMessage, SessionFilter, UsageQuery,
};
use karta_types::message::{Answer, Decision};
use karta_types::session::SessionStatus;
use karta_types::{ErrorCode, Micros, Secret};
use serde_json::{Value, json};

use crate::fake::{Fake, Play, SESSION, TURN, problem};

fn usage() -> Value {
    json!({"input_tokens": 1, "output_tokens": 2, "total_tokens": 3, "cache_read_tokens": 0,
        "cache_write_tokens": 0, "cost_micros": 40})
}

fn session() -> Value {
    json!({"id": SESSION, "project": {"id": "proj_01jd0000000000000000000001", "slug": "support", "version": 3},
        "status": "idle", "title": null, "metadata": {"order": "1"}, "current_agent": null, "participants": [],
        "pending_inputs": [], "pending_input": null, "permission_mode": "default", "release_pin": "turn",
        "isolation": "process", "end_user_id": null, "parent_id": null, "usage": usage(),
        "created_at": "2026-11-24T00:00:00Z", "updated_at": "2026-11-24T00:00:00Z", "expires_at": null,
        "a_field_of_tomorrow": true})
}

#[tokio::test]
async fn sessions_are_made_read_listed_changed_and_erased() {
    let page = json!({"data": [session()], "next_cursor": "c2"});
    let fake = Fake::plays([
        Play::Json(201, session()),
        Play::Json(200, session()),
        Play::Json(200, page),
        Play::Json(200, session()),
        Play::Json(204, Value::Null),
    ])
    .await;
    let create = CreateSession { project: Some("support".into()), ..CreateSession::default() };
    let made = fake.client.create_session(&create).await.unwrap();
    assert_eq!(made.project.version, Some(3));
    fake.client.session(made.id).await.unwrap();
    let mut filter = SessionFilter {
        project: Some("a b&c".into()),
        status: Some(SessionStatus::Waiting),
        limit: Some(2),
        ..SessionFilter::default()
    };
    filter.metadata.insert("order".into(), "1".into());
    let listed = fake.client.sessions(&filter).await.unwrap();
    assert_eq!(listed.next_cursor.as_deref(), Some("c2"));
    let patch = PatchSession { title: Some("t".into()), ..PatchSession::default() };
    fake.client.patch_session(made.id, &patch).await.unwrap();
    fake.client.delete_session(made.id).await.unwrap();
    let asked = fake.asked();
    let lines: Vec<_> = asked.iter().map(|asked| asked.line.clone()).collect();
    assert_eq!(
        lines,
        [
            "POST /v1/sessions".to_owned(),
            format!("GET /v1/sessions/{SESSION}"),
            "GET /v1/sessions?project=a+b%26c&status=waiting&limit=2&metadata.order=1".to_owned(),
            format!("PATCH /v1/sessions/{SESSION}"),
            format!("DELETE /v1/sessions/{SESSION}"),
        ]
    );
    assert_eq!(asked[0].body, json!({"project": "support"}));
    assert_eq!(asked[3].body, json!({"title": "t"}));
}

#[tokio::test]
async fn a_turn_is_waited_for_or_left_running() {
    let reply = json!({"text": "yes", "session_id": SESSION, "turn_id": TURN, "agent": null, "messages": [],
        "usage": usage(), "stop_reason": "end_turn"});
    let accepted = json!({"session_id": SESSION, "turn_id": TURN, "state": "running"});
    let fake = Fake::plays([Play::Json(200, reply), Play::Json(202, accepted)]).await;
    let session = SESSION.parse().unwrap();
    let reply = fake.client.send_message(session, &SendMessage::text("well?")).await.unwrap();
    assert_eq!((reply.text.as_str(), reply.usage.cost_micros), ("yes", Micros::new(40)));
    let message = SendMessage { on_busy: Some(OnBusy::Queue), ..SendMessage::text("go") };
    let accepted = fake.client.send_detached(session, &message).await.unwrap();
    assert_eq!(accepted.turn_id.to_string(), TURN);
    let asked = fake.asked();
    assert_eq!(asked[1].header("prefer"), Some("respond-async"));
    assert_eq!(asked[1].body, json!({"text": "go", "on_busy": "queue", "stream": false}));
}

#[tokio::test]
async fn questions_are_answered_and_turns_stopped() {
    let request = "req_01jd0000000000000000000001";
    let waiting = json!({"session_id": SESSION, "turn_id": TURN, "request_id": request, "kind": "plan", "tool": "Plan",
        "tool_input": {}, "message": "Is this right?", "options": ["approve_once", "deny"],
        "created_at": "2026-11-24T00:00:00Z"});
    let fake = Fake::plays([
        Play::Json(200, json!({"data": [waiting], "next_cursor": null})),
        problem(ErrorCode::InputAlreadyResolved),
        Play::Silent(String::new()),
        Play::Json(200, json!({"interrupted": true})),
    ])
    .await;
    let session = SESSION.parse().unwrap();
    let inputs = fake.client.inputs(session).await.unwrap().data;
    assert_eq!(
        (inputs[0].turn_id.to_string().as_str(), inputs[0].input.request_id.to_string().as_str()),
        (TURN, request)
    );
    let answer = Answer {
        decision: Decision::Deny,
        message: Some("not that one".into()),
        updated_input: None,
        answers: None,
    };
    let late = fake.client.answer(session, request.parse().unwrap(), &answer).await.unwrap_err();
    assert_eq!(late.code(), Some(ErrorCode::InputAlreadyResolved));
    assert!(!late.retryable());
    // The turn goes on in silence; the answer is taken all the same.
    fake.client.answer(session, request.parse().unwrap(), &answer).await.unwrap();
    assert!(fake.client.interrupt(session).await.unwrap());
    let asked = fake.asked();
    assert_eq!(asked[1].line, format!("PUT /v1/sessions/{SESSION}/inputs/{request}"));
    assert_eq!(asked[1].body, json!({"decision": "deny", "message": "not that one", "stream": true}));
    assert_eq!(asked[3].line, format!("POST /v1/sessions/{SESSION}/interrupt"));
}

#[tokio::test]
async fn the_account_is_read() {
    let mut report = usage();
    report["turns"] = json!(7);
    report["day"] = json!("2026-11-24");
    report["model"] = json!("m");
    let report = json!({"data": [report], "next_cursor": null});
    let whoami = json!({"principal": {"kind": "key", "id": "key_01jd0000000000000000000001"},
        "org": {"id": "org_01jd0000000000000000000001", "slug": "o", "name": "O"}, "role": null, "scopes": ["read"]});
    let fake = Fake::plays([Play::Json(200, whoami), Play::Json(200, report)]).await;
    assert_eq!(fake.client.whoami().await.unwrap().scopes, ["read"]);
    let query = UsageQuery { group_by: vec!["day".into(), "model".into()], ..UsageQuery::default() };
    let row = fake.client.usage(&query).await.unwrap().data.remove(0);
    assert_eq!((row.turns, row.metered.total_tokens), (7, 3));
    assert_eq!(Value::Object(row.keys), json!({"day": "2026-11-24", "model": "m"}));
    assert_eq!(fake.asked()[1].line, "GET /v1/usage?group_by=day%2Cmodel");
}

#[tokio::test]
async fn what_is_no_problem_object_is_told_with_its_status() {
    let fake = Fake::plays([
        Play::Text(503, "<h1>maintenance</h1>"),
        Play::Json(418, json!({"error": "teapot"})),
        Play::Json(200, json!({"id": 7})),
    ])
    .await;
    let session = SESSION.parse().unwrap();
    let error = fake.client.session(session).await.unwrap_err();
    assert!(error.to_string().contains("503") && error.to_string().contains("maintenance"), "{error}");
    assert!(error.retryable());
    assert!(!fake.client.session(session).await.unwrap_err().retryable());
    let error = fake.client.session(session).await.unwrap_err();
    assert!(matches!(error, Error::Protocol { status: Some(200), .. }), "{error:?}");
}

#[tokio::test]
async fn nobody_there_is_told_apart() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/karta/", listener.local_addr().unwrap());
    drop(listener);
    let client = Client::new(&url, Secret::new("kt_test_key".to_owned())).unwrap();
    let error = client.whoami().await.unwrap_err();
    assert!(error.unreachable() && error.retryable(), "{error:?}");
    assert!(error.to_string().contains(&url), "{error}");
}

#[test]
fn bad_addresses_and_keys_are_refused_at_once() {
    let key = || Secret::new("kt_test_key".to_owned());
    for bad in ["", "127.0.0.1:4747", "localhost", "ftp://host", "unix:/run/karta"] {
        assert!(matches!(Client::new(bad, key()), Err(Error::Usage(_))), "{bad}");
    }
    let bad = Client::new("http://127.0.0.1:1", Secret::new("two\nlines".to_owned())).unwrap_err();
    assert!(matches!(&bad, Error::Usage(_)) && !bad.to_string().contains("two"));
}
