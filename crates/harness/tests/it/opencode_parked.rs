//! OpenCode when its sandbox was saved and goes on: the event stream is opened again, and what was said between is asked for.

use karta_harness::{Input, Said};
use karta_types::message::{Answer, Decision};
use karta_types::session::PermissionMode;
use serde_json::{Value, json};

use crate::laws;
use crate::opencode::{COMPLETED, Driven, new};

const MESSAGES: &str = "GET /session/ses_1/message?limit=10";
const REST: [&str; 3] = ["GET /permission", "GET /question", "GET /session/status"];

/// A turn that waits for a person: a text was begun, and a tool asks.
fn waits() -> Driven {
    let mut driven = Driven::busy(PermissionMode::Default);
    driven.part(&json!({"id": "prt_1", "type": "text", "text": ""}));
    driven.event(
        "message.part.delta",
        &json!({"sessionID": "ses_1", "messageID": "msg_2", "partID": "prt_1", "field": "text", "delta": "I will. "}),
    );
    driven.part(&tool("running", &json!({})));
    driven.event("permission.asked", &permission("per_1", "call_1"));
    let said = driven.said();
    assert!(matches!(said.last(), Some(Said::Asked { .. })), "{said:?}");
    driven
}

fn permission(id: &str, call: &str) -> Value {
    json!({"id": id, "sessionID": "ses_1", "permission": "bash", "patterns": ["ls"], "tool": {"messageID": "msg_2", "callID": call}})
}

fn tool(status: &str, more: &Value) -> Value {
    let mut state = json!({"status": status, "input": {"command": "ls"}});
    state.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"id": "prt_2", "type": "tool", "tool": "bash", "callID": "call_1", "state": state})
}

/// What the server says of the agent's message.
fn entry(info: &Value, parts: &[Value]) -> Value {
    let mut whole = json!({"id": "msg_2", "sessionID": "ses_1", "role": "assistant", "parentID": "msg_1", "time": {"created": 1}});
    whole.as_object_mut().unwrap().extend(info.as_object().unwrap().clone());
    let parts: Vec<Value> = parts
        .iter()
        .map(|part| {
            let mut whole = json!({"sessionID": "ses_1", "messageID": whole["id"]});
            whole.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
            whole
        })
        .collect();
    json!({"info": whole, "parts": parts})
}

/// Earlier turns are told too.
fn earlier() -> Value {
    let mut entry = entry(
        &json!({"id": "msg_0", "parentID": "msg_00"}),
        &[json!({"id": "prt_0", "type": "text", "text": "long ago"})],
    );
    entry["parts"][0]["messageID"] = "msg_0".into();
    entry
}

/// The stream is open again. Answers the requests that follow by path.
fn again(driven: &mut Driven, answers: &[(&str, Value)]) -> Vec<String> {
    driven.line(&json!({"ready": true}));
    answer(driven, answers)
}

fn answer(driven: &mut Driven, answers: &[(&str, Value)]) -> Vec<String> {
    let mut asked = Vec::new();
    loop {
        let written = driven.written();
        if written.is_empty() {
            return asked;
        }
        for request in written {
            let path = request["path"].as_str().unwrap();
            asked.push(format!("{} {path}", request["method"].as_str().unwrap()));
            if let Some((_, body)) = answers.iter().find(|(known, _)| path.starts_with(known)) {
                driven.line(&json!({"id": request["id"], "status": 200, "body": body}));
            }
        }
    }
}

fn still() -> Vec<(&'static str, Value)> {
    let text = json!({"id": "prt_1", "type": "text", "text": "I will. "});
    vec![
        (
            "/session/ses_1/message",
            json!([earlier(), entry(&json!({}), &[text, tool("running", &json!({}))])]),
        ),
        ("/permission", json!([permission("per_1", "call_1")])),
        ("/question", json!([])),
        ("/session/status", json!({"ses_1": {"type": "busy"}})),
    ]
}

fn approve(driven: &mut Driven, request: &str) -> Vec<String> {
    let answer =
        Answer { decision: Decision::ApproveOnce, message: None, updated_input: None, answers: None };
    driven.input(Input::Answer { request: request.to_owned(), answer });
    driven.requests()
}

fn finish(driven: &mut Driven) {
    driven.answer("msg_2", &json!({"time": {"created": 1, "completed": 2}}));
    driven.idle();
}

#[test]
fn where_nothing_was_missed_nothing_is_said() {
    let mut driven = waits();
    let asked = again(&mut driven, &still());
    assert_eq!(asked, [&[MESSAGES], &REST[..]].concat());
    assert_eq!(driven.said(), []);
    assert_eq!(approve(&mut driven, "per_1"), ["POST /permission/per_1/reply"]);
    driven.part(&tool("completed", &json!({"output": "a"})));
    finish(&mut driven);
    let said = driven.said();
    assert!(matches!(&said[..], [Said::ToolResult { .. }, end] if *end == COMPLETED), "{said:?}");
}

#[test]
fn between_turns_nothing_is_asked() {
    let mut driven = waits();
    finish(&mut driven);
    driven.said();
    driven.requests();
    driven.line(&json!({"ready": true}));
    assert_eq!((driven.requests(), driven.said()), (Vec::new(), Vec::new()));
}

#[test]
fn what_was_missed_is_said_once_whatever_the_stream_still_brings() {
    let mut driven = waits();
    driven.line(&json!({"ready": true}));
    let more = [
        json!({"id": "prt_1", "type": "text", "text": "I will. "}),
        tool("completed", &json!({"output": "a"})),
        json!({"id": "prt_3", "type": "step-finish"}),
    ];
    let next = json!({"id": "prt_4", "type": "text", "text": "All."});
    let messages = json!([
        entry(&json!({"time": {"created": 1, "completed": 2}}), &more),
        entry(&json!({"id": "msg_3"}), std::slice::from_ref(&next)),
    ]);
    let mut answers = still();
    answers[0].1 = messages;
    answers[1].1 = json!([permission("per_2", "call_1")]);
    answer(&mut driven, &answers);
    let said = driven.said();
    let [
        Said::ToolResult { .. },
        Said::StepFinish { .. },
        Said::Text { text, .. },
        Said::Asked { request, .. },
        Said::Withdrawn { request: withdrawn },
    ] = &said[..]
    else {
        panic!("{said:#?}")
    };
    assert_eq!((text.as_str(), request.as_str(), withdrawn.as_str()), ("All.", "per_2", "per_1"));

    // The stream was open before the answers were made: it tells the same, and may tell it late.
    driven.part(&tool("completed", &json!({"output": "a"})));
    driven.event("permission.asked", &permission("per_2", "call_1"));
    driven.event("permission.replied", &json!({"sessionID": "ses_1", "requestID": "per_1"}));
    driven.event(
        "message.part.delta",
        &json!({"sessionID": "ses_1", "messageID": "msg_3", "partID": "prt_4", "field": "text", "delta": "All."}),
    );
    assert_eq!(driven.said(), []);
    let mut whole = next;
    whole["messageID"] = "msg_3".into();
    whole["text"] = "All. Done.".into();
    driven.part(&whole);
    let said = driven.said();
    assert!(matches!(&said[..], [Said::Text { text, .. }] if text == " Done."), "{said:?}");
}

#[test]
fn what_the_stream_tells_first_is_newer_than_the_answers() {
    let mut driven = waits();
    driven.line(&json!({"ready": true}));
    let written = driven.written();
    assert_eq!(approve(&mut driven, "per_1"), ["POST /permission/per_1/reply"]);
    driven.part(&tool("completed", &json!({"output": "a"})));
    driven.answer("msg_2", &json!({"time": {"created": 1, "completed": 2}}));
    assert_eq!(driven.said().len(), 1);
    // Made before all that, it comes after it.
    driven.line(&json!({"id": written[0]["id"], "status": 200, "body": still()[0].1}));
    driven.event("permission.asked", &permission("per_2", "call_1"));
    let late = vec![("/permission", json!([])), ("/question", json!([]))];
    answer(&mut driven, &late);
    let said = driven.said();
    assert!(matches!(&said[..], [Said::Asked { .. }]), "the new question stays open: {said:?}");
    approve(&mut driven, "per_2");
    driven.idle();
    assert_eq!(driven.said(), [COMPLETED], "the message that was closed is not open again");
}

#[test]
fn a_turn_that_ended_unseen_has_ended() {
    let mut driven = waits();
    let mut answers = still();
    let closed = json!({"time": {"created": 1, "completed": 2}, "finish": "stop"});
    answers[0].1 = json!([entry(&closed, &[tool("error", &json!({"error": "no"}))])]);
    answers[1].1 = json!([]);
    answers[3].1 = json!({});
    again(&mut driven, &answers);
    let said = driven.said();
    assert!(
        matches!(&said[..], [Said::ToolResult { .. }, Said::Withdrawn { .. }, Said::Ended(_)]),
        "{said:?}"
    );
}

#[test]
fn sub_agents_are_asked_about_too() {
    let mut driven = waits();
    let mut answers = still();
    let task = json!({"id": "prt_5", "type": "tool", "tool": "task", "callID": "call_2", "state": {
        "status": "running", "input": {}, "metadata": {"sessionId": "ses_2"}}});
    answers[0].1 = json!([entry(&json!({}), &[task])]);
    let text = json!({"id": "prt_6", "type": "text", "text": "below"});
    let mut below = entry(&json!({"id": "msg_4", "sessionID": "ses_2"}), &[text]);
    below["parts"][0]["sessionID"] = "ses_2".into();
    answers.push(("/session/ses_2/message", json!([below])));
    let mut asks = permission("per_3", "call_9");
    asks["sessionID"] = "ses_2".into();
    answers[1].1 = json!([permission("per_1", "call_1"), asks]);
    let asked = again(&mut driven, &answers);
    assert!(asked.contains(&"GET /session/ses_2/message?limit=10".to_owned()), "{asked:?}");
    let said = driven.said();
    let [Said::ToolUse { .. }, Said::Text { parent, .. }, Said::Asked { .. }] = &said[..] else {
        panic!("{said:?}")
    };
    assert_eq!(parent.as_deref(), Some("call_2"));
}

#[test]
fn an_interrupt_before_the_stream_is_open_still_stops_the_turn() {
    let mut driven = waits();
    driven.input(Input::Interrupt);
    let [abort] = &driven.written()[..] else { panic!("one request") };
    again(&mut driven, &still());
    driven.line(&json!({"id": abort["id"], "status": 200, "body": true}));
    driven.event("session.idle", &json!({"sessionID": "ses_1"}));
    driven.answer(
        "msg_2",
        &json!({"time": {"created": 1, "completed": 2}, "error": {"name": "MessageAbortedError", "data": {}}}),
    );
    driven.idle();
    assert!(driven.said().contains(&Said::Ended(karta_harness::End::Interrupted)));
}

#[test]
fn a_server_that_tells_nothing_of_it_is_gone_on_with() {
    let mut driven = waits();
    driven.line(&json!({"ready": true}));
    let [request] = &driven.written()[..] else { panic!("one request") };
    driven.line(&json!({"id": request["id"], "error": "length limit exceeded"}));
    assert_eq!(driven.requests(), REST);
    assert!(matches!(&driven.said()[..], [Said::Notice { .. }]));
    approve(&mut driven, "per_1");
    finish(&mut driven);
    assert_eq!(driven.said(), [COMPLETED]);
}

/// The same laws as for what was recorded.
#[test]
fn the_laws_hold_across_a_saved_sandbox() {
    let out = |line: Value| json!({"dir": "out", "line": line.to_string()});
    let event = |kind: &str, properties: Value| {
        out(json!({"event": {"id": "evt_1", "type": kind, "properties": properties}}))
    };
    let asks = |id: u64, method: &str, path: &str, body: Value| {
        let mut request = json!({"id": id, "method": method, "path": path});
        if !body.is_null() {
            request["body"] = body;
        }
        if path.ends_with("/status") {
            request["delay_ms"] = 100.into();
        }
        json!({"dir": "in", "line": request.to_string()})
    };
    let answer = |id: u64, body: &Value| out(json!({"id": id, "status": 200, "body": body}));
    let agent = |more: Value| json!({"info": entry(&more, &[])["info"]});
    let part = |part: &Value| json!({"part": entry(&json!({}), std::slice::from_ref(part))["parts"][0]});
    let told = still();
    let steps = [
        json!({"dir": "do", "do": "message", "id": "m1", "content": [{"type": "text", "text": "hi"}]}),
        out(json!({"ready": true})),
        asks(1, "POST", "/session", json!({"title": "Karta"})),
        answer(1, &json!({"id": "ses_1"})),
        asks(2, "POST", "/session/ses_1/prompt_async", json!({"parts": [{"type": "text", "text": "hi"}]})),
        event("message.updated", json!({"info": {"id": "msg_1", "sessionID": "ses_1", "role": "user"}})),
        event("session.status", json!({"sessionID": "ses_1", "status": {"type": "busy"}})),
        event("message.updated", agent(json!({}))),
        event("message.part.updated", part(&tool("running", &json!({})))),
        event("permission.asked", permission("per_1", "call_1")),
        out(json!({"ready": true})),
        asks(3, "GET", "/session/ses_1/message?limit=10", Value::Null),
        answer(3, &told[0].1),
        asks(4, "GET", "/permission", Value::Null),
        asks(5, "GET", "/question", Value::Null),
        asks(6, "GET", "/session/status", Value::Null),
        answer(4, &json!([permission("per_1", "call_1"), permission("per_2", "call_1")])),
        answer(5, &told[2].1),
        answer(6, &told[3].1),
        json!({"dir": "do", "do": "answer", "request": "per_1", "answer": {"decision": "approve_once"}}),
        asks(7, "POST", "/permission/per_1/reply", json!({"reply": "once"})),
        event("message.part.updated", part(&tool("completed", &json!({"output": "a"})))),
        event("message.updated", agent(json!({"time": {"created": 1, "completed": 2}}))),
        event("session.idle", json!({"sessionID": "ses_1"})),
    ];
    let transcript = steps.map(|step| step.to_string()).join("\n");
    laws::hold(new, &transcript);
    let shown = laws::shown(new, &transcript);
    assert_eq!(shown.matches("Asked {").count(), 2, "{shown}");
    assert_eq!(shown.matches("Ended(").count(), 1, "{shown}");
}

fn piece(driven: &mut Driven, text: &str) {
    driven.event(
        "message.part.delta",
        &json!({"sessionID": "ses_1", "messageID": "msg_2", "partID": "prt_1", "field": "text", "delta": text}),
    );
}

/// What was said of the text.
fn words(driven: &mut Driven) -> String {
    let text = |said| match said {
        Said::Text { text, .. } => Some(text),
        _ => None,
    };
    driven.said().into_iter().filter_map(text).collect()
}

/// Heard was "I will. ", the hole is "CD", and "EF" comes by the new stream.
#[test]
fn a_text_with_a_hole_is_said_once_and_whole() {
    let told = |text: &str| {
        let part = json!({"id": "prt_1", "type": "text", "text": text});
        json!([entry(&json!({}), std::slice::from_ref(&part))])
    };
    // What the server answers when it is asked, whether the piece comes before that, and what the stream tells whole in the end.
    let aborted = "I will. CDEF";
    for (asked, early, whole, said) in [
        ("I will. CDEF", true, Some("I will. CDEF!"), "CDEF!"),
        ("I will. CDEF", false, Some("I will. CDEF!"), "CDEF!"),
        ("I will. CD", true, Some("I will. CDEF"), "CDEF"),
        ("I will. CD", false, Some("I will. CDEF"), "CDEF"),
        // A server that keeps a text when it is complete knows nothing of it yet.
        ("", true, Some("I will. CDEF"), "CDEF"),
        ("", false, Some("I will. CDEF"), "CDEF"),
        // It is aborted, and never told whole.
        (aborted, true, None, "CDEF"),
        (aborted, false, None, "CDEF"),
        ("I will. CD", true, None, "CDEF"),
        ("I will. CD", false, None, "CDEF"),
        ("I will. CDE", true, None, "CDEF"),
        ("", true, None, "EF"),
    ] {
        let mut driven = waits();
        driven.line(&json!({"ready": true}));
        if early {
            piece(&mut driven, "EF");
        }
        let mut answers = still();
        answers[0].1 = told(asked);
        answer(&mut driven, &answers);
        if !early {
            piece(&mut driven, "EF");
        }
        if let Some(whole) = whole {
            driven.part(&json!({"id": "prt_1", "type": "text", "text": whole}));
            // From here on the stream is in step again.
            piece(&mut driven, " G");
        }
        finish(&mut driven);
        let more = if whole.is_some() { " G" } else { "" };
        assert_eq!(words(&mut driven), format!("{said}{more}"), "{asked} {early} {whole:?}");
    }
}

/// Approves the question and lets the connection of each reply break off. How often it was told.
fn break_off(driven: &mut Driven, most: usize) -> usize {
    let answer =
        Answer { decision: Decision::ApproveOnce, message: None, updated_input: None, answers: None };
    driven.input(Input::Answer { request: "per_1".to_owned(), answer });
    for told in 0..most {
        let written = driven.written();
        let [request] = &written[..] else { panic!("{written:?}") };
        if request["path"] != "/permission/per_1/reply" {
            assert_eq!(request["path"], "/session/ses_1/abort", "the server must not go on with it");
            return told;
        }
        assert_eq!(request["body"], json!({"reply": "once"}));
        driven.line(&json!({"id": request["id"], "error": "connection reset"}));
    }
    most
}

#[test]
fn an_answer_whose_connection_breaks_off_is_told_again() {
    let mut driven = waits();
    assert_eq!(break_off(&mut driven, 2), 2);
    let [again] = &driven.written()[..] else { panic!("one request") };
    // The first arrived after all: this one is about a question that the server does not know any more.
    driven.line(&json!({"id": again["id"], "status": 404, "body": {"message": "not found"}}));
    driven.part(&tool("completed", &json!({"output": "a"})));
    finish(&mut driven);
    let said = driven.said();
    assert!(
        matches!(&said[..], [Said::Notice { .. }, Said::ToolResult { .. }, end] if *end == COMPLETED),
        "{said:?}"
    );
}

#[test]
fn an_answer_that_arrived_is_not_told_again() {
    let mut driven = waits();
    let answer =
        Answer { decision: Decision::ApproveOnce, message: None, updated_input: None, answers: None };
    driven.input(Input::Answer { request: "per_1".to_owned(), answer });
    let [request] = &driven.written()[..] else { panic!("one request") };
    let id = request["id"].clone();
    driven.event("permission.replied", &json!({"sessionID": "ses_1", "requestID": "per_1"}));
    driven.line(&json!({"id": id, "error": "connection reset"}));
    assert_eq!((driven.requests(), driven.said()), (Vec::new(), Vec::new()));
}

#[test]
fn a_turn_whose_answer_can_not_be_told_ends_with_the_reason() {
    let mut driven = waits();
    assert_eq!(break_off(&mut driven, 10), 4);
    let said = driven.said();
    let [Said::Ended(karta_harness::End::Failed { message, .. })] = &said[..] else { panic!("{said:?}") };
    assert!(message.contains("connection reset"), "{message}");
}
