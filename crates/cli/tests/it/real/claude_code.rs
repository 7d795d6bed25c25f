//! Claude Code.

use karta_client::{OnBusy, PatchSession, SendMessage};
use karta_model::Options;
use karta_types::message::{Answer, Decision};
use karta_types::session::TurnState;
use karta_types::{Body, Seq};
use serde_json::json;

use super::*;

const APP: &[(&str, &str)] = &[("CLAUDE.md", "# An app\n\nBe brief.\n")];

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn approvals_are_allowed_denied_edited_and_kept() {
    let karta = Karta::serve(APP).await;
    let session = karta.session().await;
    let bash = |command: &str, last: &str| {
        format!(
            r#"go SCRIPT: [{{"text":"I will.","tool":"Bash","input":{{"command":"{command}","description":"x"}}}},{{"text":"{last}"}}]"#
        )
    };

    let events = karta.turn(session, &bash("echo hi > made.txt && cat made.txt", "made"), yes).await;
    assert_eq!((status(&events), text(&events).as_str()), (TurnState::Completed, "I will.made"));
    assert!(results(&events)[0].0.contains("hi"), "{events:#?}");
    let order = ["turn_start", "text", "tool_use", "input_required", "input_resolved", "tool_result", "done"];
    let seen = kinds(&events);
    let mut at = 0;
    for kind in order {
        at +=
            seen[at..].iter().position(|seen| *seen == kind).unwrap_or_else(|| panic!("{kind} in {seen:?}"));
    }

    let deny =
        |_: &InputRequired| Answer { message: Some("Not on a Sunday.".into()), ..decide(Decision::Deny) };
    let events = karta.turn(session, &bash("echo no > denied.txt", "understood"), deny).await;
    assert_eq!(status(&events), TurnState::Completed);
    assert!(results(&events)[0].1 && results(&events)[0].0.contains("Sunday"), "{events:#?}");

    let edit = |asked: &InputRequired| {
        let mut input = asked.tool_input.clone();
        input["command"] = json!("echo edited > edited.txt && cat edited.txt");
        Answer { updated_input: Some(input), ..decide(Decision::ApproveOnce) }
    };
    let events = karta.turn(session, &bash("echo plain > plain.txt && cat plain.txt", "done"), edit).await;
    assert!(results(&events)[0].0.contains("edited"), "{events:#?}");

    let keep = |_: &InputRequired| decide(Decision::ApproveSession);
    let events = karta.turn(session, &bash("echo kept > kept.txt", "one"), keep).await;
    assert_eq!(kinds(&events).iter().filter(|kind| **kind == "input_required").count(), 1);
    let events = karta.turn(session, &bash("echo kept > kept.txt", "two"), keep).await;
    assert_eq!(kinds(&events).iter().filter(|kind| **kind == "input_required").count(), 0, "{events:#?}");

    // The session's own copy was written, the folder never.
    assert!(!karta.folder.join("made.txt").exists());
    let history = karta.client.history(session).await.unwrap().data;
    assert!(history.iter().any(|message| message.text.contains("made")), "{history:#?}");
    karta.client.delete_session(session).await.unwrap();
    let (_, data) = karta.stop().await;
    let sessions = data.path().join("data/sessions");
    assert!(!sessions.join(session.to_string()).exists(), "erased");
}

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn questions_are_answered_and_thinking_is_shown() {
    let karta = Karta::serve(APP).await;
    let session = karta.session().await;
    let script = r#"go SCRIPT: [{"thinking":"hm, hm","tool":"AskUserQuestion","input":{"questions":[{"question":"Which colour?","header":"Colour","multiSelect":false,"options":[{"label":"Red","description":"r"},{"label":"Blue","description":"b"}]}]}},{"text":"noted"}]"#;
    let blue = |_: &InputRequired| Answer {
        answers: json!({"Which colour?": "Blue"}).as_object().cloned(),
        ..decide(Decision::ApproveOnce)
    };
    let events = karta.turn(session, script, blue).await;
    assert_eq!(status(&events), TurnState::Completed, "{events:#?}");
    assert!(results(&events)[0].0.contains("Blue"), "{events:#?}");
    assert!(kinds(&events).contains(&"reasoning"), "{events:#?}");
    karta.stop().await;
}

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn interrupt_steer_and_queue() {
    let karta = Karta::serve(APP).await;
    let session = karta.session().await;
    let slow = r#"go SCRIPT: [{"text":"one two three four five six seven eight nine ten eleven twelve thirteen fourteen","chunk_delay_ms":400}]"#;
    let mut stream = karta.client.send_streaming(session, &SendMessage::text(slow)).unwrap();
    until(&mut stream, "text").await;
    let queued = SendMessage { on_busy: Some(OnBusy::Queue), ..SendMessage::text("after that") };
    let queued = karta.client.send_detached(session, &queued).await.unwrap();
    assert!(karta.client.interrupt(session).await.unwrap());
    let events = karta.follow(session, stream, yes).await;
    assert_eq!(status(&events), TurnState::Interrupted);
    let events = replay(&karta.client, session, queued.turn_id).await;
    assert!(text(&events).contains("after that"), "{events:#?}");

    let asks = r#"go SCRIPT: [{"tool":"Bash","input":{"command":"echo hi > x.txt","description":"x"}},{"text":"end"}]"#;
    let mut stream = karta.client.send_streaming(session, &SendMessage::text(asks)).unwrap();
    until(&mut stream, "input_required").await;
    let steer = SendMessage { on_busy: Some(OnBusy::Steer), ..SendMessage::text("and hurry") };
    karta.client.send_detached(session, &steer).await.unwrap();
    let asked = karta.client.inputs(session).await.unwrap().data.remove(0).input;
    karta.client.answer(session, asked.request_id, &yes(&asked)).await.unwrap();
    let events = karta.follow(session, stream, yes).await;
    assert_eq!(status(&events), TurnState::Completed, "{events:#?}");
    karta.stop().await;
}

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn a_killed_server_loses_nothing_and_the_conversation_goes_on() {
    let mut karta = Karta::serve(APP).await;
    let session = karta.session().await;
    karta.turn(session, r#"go SCRIPT: [{"text":"the password is teapot"}]"#, yes).await;
    let asks = r#"go SCRIPT: [{"text":"soon","tool":"Bash","input":{"command":"echo hi > x.txt","description":"x"}},{"text":"end"}]"#;
    let mut stream = karta.client.send_streaming(session, &SendMessage::text(asks)).unwrap();
    let before = until(&mut stream, "input_required").await;
    let turn = before[0].turn_id.unwrap();
    let cursor = stream.cursor();
    drop(stream);
    karta.kill_and_restart().await;

    // The rest of the cut turn, from the cursor: no gap, no repeat, one end.
    let mut rest = karta.client.turn_events(session, turn, cursor);
    let mut after = Vec::new();
    while let Some(event) = rest.next().await {
        after.push(event.unwrap());
    }
    assert!(after.iter().all(|event| event.seq > cursor));
    let all: Vec<_> = before.into_iter().chain(after).collect();
    whole(&all);
    assert_eq!(status(&all), TurnState::Failed);
    assert_eq!(error_code(&all).as_deref(), Some("interrupted_by_restart"));
    assert!(karta.client.inputs(session).await.unwrap().data.is_empty());

    // The harness resumes its own conversation in a new process.
    let events = karta.turn(session, r#"again SCRIPT: [{"text":"back"}]"#, yes).await;
    assert_eq!(text(&events), "back");
    let last = karta.model.requests().pop().unwrap().body.to_string();
    assert!(last.contains("the password is teapot"), "the model was told the conversation so far");
    let replayed = karta.client.turns(session, None).await.unwrap().data;
    assert_eq!(replayed.len(), 3);
    let mut all = karta.client.events(session, Seq::START);
    let first = until(&mut all, "done").await;
    assert_eq!(first[0].seq, Seq(1));
    karta.stop().await;
}

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn what_the_documentation_shows_runs_unchanged() {
    const MCP: &str = r#"import json, sys
for line in sys.stdin:
    call = json.loads(line)
    if "id" not in call:
        continue
    method, result = call["method"], {}
    if method == "initialize":
        result = {"protocolVersion": call["params"]["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": {"name": "adder", "version": "1"}}
    elif method == "tools/list":
        result = {"tools": [{"name": "add", "description": "Adds", "inputSchema": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}}}]}
    elif method == "tools/call":
        given = call["params"]["arguments"]
        result = {"content": [{"type": "text", "text": "sum " + str(given["a"] + given["b"])}]}
    print(json.dumps({"jsonrpc": "2.0", "id": call["id"], "result": result}), flush=True)
"#;
    let files = &[
        ("CLAUDE.md", "# An app\n"),
        (
            ".claude/agents/reviewer.md",
            "---\nname: reviewer\ndescription: Reviews things\ntools: Read\n---\n\nYou review.\n",
        ),
        (
            ".claude/commands/greet.md",
            "---\ndescription: Greets\n---\n\nGreet $ARGUMENTS SCRIPT: [{\"text\":\"Hello from the command\"}]\n",
        ),
        (".claude/skills/tone/SKILL.md", "---\nname: tone\ndescription: The tone\n---\n\nBe kind.\n"),
        (
            ".claude/settings.json",
            r#"{"hooks":{"PreToolUse":[{"matcher":"Bash","hooks":[{"type":"command","command":"touch hooked.txt"}]}]}}"#,
        ),
        (".mcp.json", r#"{"mcpServers":{"adder":{"type":"stdio","command":"python3","args":["adder.py"]}}}"#),
        ("adder.py", MCP),
    ];
    let karta = Karta::serve(files).await;
    let project = karta.client.project("app").await.unwrap();
    assert_eq!(project.agents[0].name, "reviewer");
    let session = karta.session().await;

    let events = karta.turn(session, "/greet you", yes).await;
    assert!(text(&events).contains("Hello from the command"), "{events:#?}");

    let add = r#"go SCRIPT: [{"tool":"mcp__adder__add","input":{"a":2,"b":3}},{"text":"ok"}]"#;
    let events = karta.turn(session, add, yes).await;
    assert!(results(&events)[0].0.contains("sum 5"), "{events:#?}");

    let look = r#"go SCRIPT: [{"tool":"Bash","input":{"command":"ls; rm -f nothing.txt","description":"x"}},{"text":"ok"}]"#;
    let events = karta.turn(session, look, yes).await;
    assert!(results(&events)[0].0.contains("hooked.txt"), "the hook ran: {events:#?}");

    let task = r#"go SCRIPT: [{"tool":"Task","input":{"description":"review","subagent_type":"reviewer","prompt":"Look. SCRIPT: [{\"text\":\"all is fine\"}]"}},{"text":"reviewed"}]"#;
    let events = karta.turn(session, task, yes).await;
    assert!(text(&events).ends_with("reviewed"), "{events:#?}");
    assert!(results(&events).iter().any(|(output, _)| output.contains("all is fine")), "{events:#?}");

    let patch = PatchSession { current_agent: Some("reviewer".to_owned()), ..PatchSession::default() };
    karta.client.patch_session(session, &patch).await.unwrap();
    let events = karta.turn(session, r#"go SCRIPT: [{"text":"handed over"}]"#, yes).await;
    assert_eq!(text(&events), "handed over");
    let asked = karta.model.requests().pop().unwrap().body.to_string();
    assert!(asked.contains("You review."), "the agent's own prompt is used");
    karta.stop().await;
}

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn no_provider_key_reaches_the_agent_and_what_it_uses_is_metered() {
    let karta = Karta::serve_with(APP, "[budget]\ntotal_tokens = 200000\n", Options::default()).await;
    let session = karta.session().await;
    let look = r#"go SCRIPT: [{"tool":"Bash","input":{"command":"env; cat /proc/self/environ; echo $ANTHROPIC_BASE_URL > base.txt","description":"x"}},{"text":"ok","usage":{"input_tokens":300000,"output_tokens":50,"cache_read_tokens":70,"cache_write_tokens":30}}]"#;
    let events = karta.turn(session, look, yes).await;
    let (output, _) = &results(&events)[0];
    assert!(output.contains("ANTHROPIC_BASE_URL=http://127.0.0.1:"), "{output}");
    assert!(!output.contains(PLANTED), "the provider's key must stay outside");
    for request in karta.model.requests() {
        assert_eq!(request.key(), Some(PLANTED), "the gateway puts the key in");
        assert!(
            !request
                .headers
                .iter()
                .any(|(_, value)| value.to_str().is_ok_and(|text| text.contains("karta_model_")))
        );
    }
    let Body::Done { usage, cost_micros, .. } = &events.last().unwrap().body else { panic!() };
    assert_eq!((usage.cache_read_tokens, usage.cache_write_tokens), (70, 30));
    assert!(cost_micros.get() > 0);
    let turn = karta.client.turns(session, None).await.unwrap().data.remove(0);
    assert_eq!(turn.usage, *usage);
    let refused = karta.client.send_message(session, &SendMessage::text("more")).await.unwrap_err();
    assert_eq!(refused.code().map(karta_types::ErrorCode::as_str), Some("budget_exhausted"), "{refused:?}");
    let (log, data) = karta.stop().await;
    assert!(!log.contains(PLANTED), "the log shows the provider's key");
    nowhere(&data.path().join("data"));
}

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn a_call_that_there_is_no_room_for_never_leaves_and_ends_the_turn() {
    let karta = Karta::serve_with(APP, "[budget]\ntotal_tokens = 1000\n", Options::default()).await;
    let session = karta.session().await;
    let events = karta.turn(session, "hello", yes).await;
    assert_eq!(status(&events), TurnState::BudgetExhausted, "{events:#?}");
    assert_eq!(error_code(&events).as_deref(), Some("budget_exhausted"));
    let left = karta.model.requests().into_iter().filter(|request| !request.path.contains("count_tokens"));
    assert_eq!(left.count(), 0, "only the exact count was asked for");
    karta.stop().await;
}

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn an_organisations_own_key_is_put_in_and_a_rejected_one_is_told() {
    let own = format!("{PLANTED}-own");
    let options = Options { required_key: Some(own.clone()), ..Options::default() };
    let karta = Karta::serve_with(APP, "", options).await;
    let session = karta.session().await;
    let (server, key) = karta.address();
    let url = format!("{server}/v1/provider-keys/anthropic");
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let set = http.put(&url).bearer_auth(&key).json(&serde_json::json!({"key": own})).send().await.unwrap();
    assert_eq!(set.status(), 200);
    let look = r#"go SCRIPT: [{"tool":"Bash","input":{"command":"env; cat /proc/self/environ","description":"x"}},{"text":"ok"}]"#;
    let events = karta.turn(session, look, yes).await;
    assert!(!results(&events)[0].0.contains(PLANTED), "no provider key enters the sandbox");
    let requests = karta.model.requests();
    assert!(!requests.is_empty() && requests.iter().all(|request| request.key() == Some(own.as_str())));
    let events = karta.turn(session, r#"go SCRIPT: [{"status":401}]"#, yes).await;
    assert_eq!(error_code(&events).as_deref(), Some("provider_key_rejected"));
    // Erased, the next call goes with the platform's.
    assert_eq!(http.delete(&url).bearer_auth(&key).send().await.unwrap().status(), 204);
    let events = karta.turn(session, "hello", yes).await;
    assert_eq!(error_code(&events).as_deref(), Some("provider_key_rejected"));
    assert_eq!(karta.model.requests().last().unwrap().key(), Some(PLANTED));
    let audit = http.get(format!("{server}/v1/audit?action=provider_key.use")).bearer_auth(&key);
    let audit: serde_json::Value = audit.send().await.unwrap().json().await.unwrap();
    assert_eq!(audit["data"].as_array().unwrap().len(), 2, "one use for each turn: {audit}");
    let (log, data) = karta.stop().await;
    assert!(!log.contains(PLANTED), "the log shows a provider's key");
    nowhere(&data.path().join("data"));
}

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn a_session_that_rests_gives_its_place_to_one_that_waits_and_goes_on_later() {
    let karta = Karta::serve_with(APP, "[limits]\nprocesses = 1\n", Options::default()).await;
    let (first, second) = (karta.session().await, karta.session().await);
    for session in [first, second, first] {
        let events = karta.turn(session, "hello", yes).await;
        assert_eq!(status(&events), TurnState::Completed, "{events:#?}");
    }
    let history = karta.client.history(first).await.unwrap();
    assert_eq!(history.data.len(), 4, "the same conversation, natively: {history:#?}");
    karta.stop().await;
}

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn what_the_provider_refuses_is_told_by_its_code() {
    let karta = Karta::serve(APP).await;
    for (step, code) in [
        (r#"{"status":401}"#, "provider_key_rejected"),
        (r#"{"status":400}"#, "provider_key_rejected"),
        (r#"{"status":529}"#, "provider_overloaded"),
        (r#"{"status":429}"#, "provider_rate_limited"),
    ] {
        let session = karta.session().await;
        let events = karta.turn(session, &format!("go SCRIPT: [{step}]"), yes).await;
        assert_eq!(status(&events), TurnState::Failed, "{step}");
        assert_eq!(error_code(&events).as_deref(), Some(code), "{step}: {events:#?}");
        let events = karta.turn(session, "hello again", yes).await;
        assert_eq!(status(&events), TurnState::Completed, "the session goes on after {step}");
    }
    // A stream that breaks off is tried again: what was shown of it is taken back, and the text is whole.
    let session = karta.session().await;
    let cut =
        r#"go SCRIPT: [{"text":"one two three four five six seven eight","cut_after_chunks":5,"times":1}]"#;
    let events = karta.turn(session, cut, yes).await;
    assert_eq!(text(&events), "one two three four five six seven eight", "{events:#?}");
    karta.stop().await;
}
