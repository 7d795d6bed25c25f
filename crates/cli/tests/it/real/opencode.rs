//! OpenCode.

use karta_client::SendMessage;
use karta_types::message::{Answer, Decision};
use karta_types::session::TurnState;

use super::*;

const APP: &[(&str, &str)] = &[
    ("AGENTS.md", "# An app\n\nBe brief.\n"),
    (
        ".opencode/agents/reviewer.md",
        "---\ndescription: Reviews things\nmode: subagent\n---\n\nYou review.\n",
    ),
    (
        ".opencode/commands/greet.md",
        "---\ndescription: Greets\n---\n\nGreet $ARGUMENTS SCRIPT: [{\"text\":\"Hello from the command\"}]\n",
    ),
];

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn a_session_from_end_to_end() {
    let mut karta = Karta::serve(APP).await;
    let session = karta.session().await;
    let bash = |command: &str| {
        format!(
            r#"go SCRIPT: [{{"text":"I will. ","tool":"bash","input":{{"command":"{command}","description":"x"}}}},{{"text":"done"}}]"#
        )
    };
    let events = karta.turn(session, &bash("echo hi > made.txt && cat made.txt"), yes).await;
    assert_eq!((status(&events), text(&events).as_str()), (TurnState::Completed, "I will. done"));
    assert!(results(&events)[0].0.contains("hi"), "{events:#?}");

    let deny =
        |_: &InputRequired| Answer { message: Some("Not on a Sunday.".into()), ..decide(Decision::Deny) };
    let events = karta.turn(session, &bash("echo no > denied.txt"), deny).await;
    assert!(results(&events)[0].1, "{events:#?}");
    assert!(matches!(status(&events), TurnState::Completed | TurnState::Interrupted), "{events:#?}");

    let mut stream =
        karta.client.send_streaming(session, &SendMessage::text(bash("echo hi > x.txt"))).unwrap();
    until(&mut stream, "input_required").await;
    let asked = karta.client.inputs(session).await.unwrap().data.remove(0).input;
    let other = Answer { updated_input: Some(asked.tool_input.clone()), ..yes(&asked) };
    let refused = karta.client.answer(session, asked.request_id, &other).await.unwrap_err();
    assert_eq!(
        refused.code().map(karta_types::ErrorCode::as_str),
        Some("invalid_request"),
        "OpenCode takes no edited input"
    );
    karta.client.answer(session, asked.request_id, &yes(&asked)).await.unwrap();
    assert_eq!(status(&karta.follow(session, stream, yes).await), TurnState::Completed);

    let events = karta.turn(session, "/greet you", yes).await;
    assert!(text(&events).contains("Hello from the command"), "{events:#?}");

    let task = r#"go SCRIPT: [{"tool":"task","input":{"description":"review","subagent_type":"reviewer","prompt":"Look. SCRIPT: [{\"text\":\"all is fine\"}]"}},{"text":"reviewed"}]"#;
    let events = karta.turn(session, task, yes).await;
    assert!(text(&events).ends_with("reviewed"), "{events:#?}");

    let slow = r#"go SCRIPT: [{"text":"one two three four five six seven eight nine ten eleven twelve","chunk_delay_ms":500}]"#;
    let mut stream = karta.client.send_streaming(session, &SendMessage::text(slow)).unwrap();
    until(&mut stream, "text").await;
    assert!(karta.client.interrupt(session).await.unwrap());
    let events = karta.follow(session, stream, yes).await;
    assert_eq!(status(&events), TurnState::Interrupted, "{events:#?}");

    karta.kill_and_restart().await;
    let events = karta.turn(session, r#"again SCRIPT: [{"text":"back"}]"#, yes).await;
    assert_eq!(text(&events), "back", "{events:#?}");
    let last = karta.model.requests().pop().unwrap().body.to_string();
    assert!(last.contains("made.txt"), "the conversation was resumed");
    let history = karta.client.history(session).await.unwrap().data;
    assert!(history.iter().any(|message| message.text.contains("back")), "{history:#?}");
    let (log, data) = karta.stop().await;
    assert!(!log.contains(PLANTED), "the log shows the provider's key");
    nowhere(&data.path().join("data"));
}

#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn what_the_provider_refuses_is_told_by_its_code() {
    let settings = "[limits]\nretry_seconds = 3\n";
    let karta = Karta::serve_with(APP, settings, karta_model::Options::default()).await;
    let session = karta.session().await;
    let events = karta.turn(session, r#"go SCRIPT: [{"status":401}]"#, yes).await;
    assert_eq!(error_code(&events).as_deref(), Some("provider_key_rejected"), "{events:#?}");
    // It would try for ever; the platform's own limit ends it.
    let events = karta.turn(session, r#"go SCRIPT: [{"status":529}]"#, yes).await;
    assert_eq!(error_code(&events).as_deref(), Some("provider_overloaded"), "{events:#?}");
    let events = karta.turn(session, "hello again", yes).await;
    assert_eq!(status(&events), TurnState::Completed, "{events:#?}");
    karta.stop().await;
}
