//! Claude Code: recorded sessions, discovery, command lines, history.

use karta_harness::claude_code::ClaudeCode;
use karta_harness::launch::{FolderPolicy, Gateway, Native};
use karta_harness::{Codec, Command, End, Error, Harness, Input, Launch, Out, Said, Tree};
use karta_types::message::{Content, Part, Role};
use karta_types::session::PermissionMode;
use karta_types::{ErrorCode, Secret};

use crate::laws;

macro_rules! recorded {
    ($($test:ident $file:literal)*) => {$(
        #[test]
        fn $test() {
            let transcript = include_str!(concat!("../../transcripts/claude-code/", $file, ".jsonl"));
            laws::hold(codec, transcript);
            insta::assert_snapshot!(concat!("claude-code-", $file), laws::shown(codec, transcript));
        }
    )*};
}

recorded! {
    agent "agent"
    approve_session "approve-session"
    cut_after_a_block "cut-after-block"
    cut_and_retried "cut-retry"
    cut_and_not_streamed "cut-unstreamed"
    error_400_credit "error-400-credit"
    error_401 "error-401"
    error_402 "error-402"
    error_404 "error-404"
    error_429 "error-429"
    error_529 "error-529"
    error_unreachable "error-unreachable"
    folder_names_another_provider "folder-elsewhere"
    hooks "hooks"
    hooks_off "hooks-off"
    interrupt_at_a_question "interrupt-question"
    interrupt_while_speaking "interrupt-text"
    max_turns "max-turns"
    mcp "mcp"
    mcp_off "mcp-off"
    modes "modes"
    multi_turn "multi-turn"
    plain "plain"
    plan "plan"
    question "question"
    resume "resume"
    resume_of_an_unknown_session "resume-unknown"
    slash_command "slash-command"
    steer "steer"
    subagent "subagent"
    thinking "thinking"
    tool_allow "tool-allow"
    tool_deny "tool-deny"
    tool_edited "tool-edited"
}

fn gateway() -> Gateway {
    Gateway {
        anthropic: "http://127.0.0.1:9/session/anthropic".to_owned(),
        openai: "http://127.0.0.1:9/session/openai/v1".to_owned(),
        token: Secret::new("session-token".to_owned()),
        provider: "anthropic".to_owned(),
        model: "big".to_owned(),
        small_model: "small".to_owned(),
    }
}

fn with_launch<T>(
    tree: &Tree,
    change: impl FnOnce(&mut Launch<'_>),
    then: impl FnOnce(&Launch<'_>) -> T,
) -> T {
    let gateway = gateway();
    let mut launch = Launch {
        program: "/harness/claude",
        version: "2.1.330",
        workspace: "/workspace",
        home: "/home/session",
        temp: "/temp",
        tree,
        title: "",
        native: Native::New("00000000-0000-4000-8000-000000000000".to_owned()),
        gateway: &gateway,
        agent: None,
        permission_mode: PermissionMode::Default,
        thinking_budget: None,
        policy: FolderPolicy::default(),
        env: &[],
    };
    change(&mut launch);
    then(&launch)
}

fn codec() -> Box<dyn Codec> {
    with_launch(&Tree::new(), |_| {}, |launch| ClaudeCode.codec(launch).unwrap())
}

fn command(tree: &Tree, change: impl FnOnce(&mut Launch<'_>)) -> Result<Command, Error> {
    with_launch(tree, change, |launch| ClaudeCode.command(launch))
}

fn variable<'a>(command: &'a Command, name: &str) -> Option<&'a str> {
    command.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn begun() -> (Box<dyn Codec>, Out) {
    let (mut codec, mut out) = (codec(), Out::default());
    codec.start(&mut out);
    let content = vec![Content::Text { text: "hi".to_owned() }];
    codec.input(Input::Message { id: "m".to_owned(), content, agent: None, thinking: false }, &mut out);
    out.writes.clear();
    (codec, out)
}

fn failure(out: &Out) -> Option<(ErrorCode, &str)> {
    out.said.iter().find_map(|(said, _)| match said {
        Said::Ended(End::Failed { code, message }) => Some((*code, message.as_str())),
        _ => None,
    })
}

#[test]
fn a_line_without_end_fails_the_turn_and_stops_the_harness() {
    let (mut codec, mut out) = begun();
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..10 {
        codec.output(&piece, &mut out);
    }
    assert!(out.said.is_empty(), "nothing is known before the line ends");
    codec.output(b"\n", &mut out);
    assert_eq!(failure(&out).unwrap().0, ErrorCode::HarnessOutputInvalid);
    let wrote = String::from_utf8(out.writes.concat()).unwrap();
    assert!(wrote.contains(r#""subtype":"interrupt""#), "{wrote}");
}

#[test]
fn one_malformed_line_is_noticed_and_many_fail_the_turn() {
    let (mut codec, mut out) = begun();
    codec.output(b"{\"type\":\nnot of the protocol\n", &mut out);
    assert!(
        matches!(&out.said[..], [(Said::Notice { subtype, .. }, Some(_))] if subtype == "malformed_line")
    );
    codec.output(&b"{\n".repeat(100), &mut out);
    assert_eq!(failure(&out).unwrap().0, ErrorCode::HarnessOutputInvalid);
    assert_eq!(out.said.iter().filter(|(said, _)| matches!(said, Said::Ended(_))).count(), 1);
}

#[test]
fn a_dead_process_says_how_it_died() {
    let (mut codec, mut out) = begun();
    codec.exited(Some(139), "Illegal instruction", &mut out);
    let (code, message) = failure(&out).unwrap();
    assert_eq!(code, ErrorCode::HarnessFailed);
    assert!(message.contains("139") && message.contains("Illegal instruction"), "{message}");
}

#[test]
fn idle_before_the_message_was_read_ends_nothing() {
    let (mut codec, mut out) = begun();
    let state = |state: &str| {
        format!("{{\"type\":\"system\",\"subtype\":\"session_state_changed\",\"state\":\"{state}\"}}\n")
    };
    let life = |state: &str| {
        format!("{{\"type\":\"command_lifecycle\",\"command_uuid\":\"m\",\"state\":\"{state}\"}}\n")
    };
    codec.output(state("idle").as_bytes(), &mut out);
    for line in [state("running"), life("queued"), life("started"), state("idle")] {
        codec.output(line.as_bytes(), &mut out);
    }
    assert!(out.said.is_empty(), "{:?}", out.said);
    codec.output(life("completed").as_bytes(), &mut out);
    codec.output(state("idle").as_bytes(), &mut out);
    assert!(matches!(&out.said[..], [(Said::Ended(End::Completed { .. }), _)]), "{:?}", out.said);
}

#[test]
fn a_question_outside_a_turn_is_refused_at_once() {
    let (mut codec, mut out) = (codec(), Out::default());
    codec.output(
        b"{\"type\":\"control_request\",\"request_id\":\"r\",\"request\":{\"subtype\":\"can_use_tool\",\"tool_name\":\"Bash\",\"input\":{}}}\n",
        &mut out,
    );
    assert!(out.said.is_empty());
    assert!(String::from_utf8(out.writes.concat()).unwrap().contains(r#""behavior":"deny""#));
}

#[test]
fn images_go_as_blocks_and_words_as_one_text() {
    let (mut codec, mut out) = (codec(), Out::default());
    let text = |text: &str| Content::Text { text: text.to_owned() };
    let image = Content::Image { media_type: "image/png".to_owned(), data: "aGk=".to_owned() };
    for content in [vec![text("/greet"), text("Bob")], vec![text("look"), image]] {
        codec.input(Input::Message { id: "m".to_owned(), content, agent: None, thinking: false }, &mut out);
    }
    let lines: Vec<serde_json::Value> =
        out.writes.iter().map(|line| serde_json::from_slice(line).unwrap()).collect();
    assert_eq!(lines[0]["message"]["content"], "/greet\n\nBob");
    assert_eq!(lines[1]["message"]["content"][1]["source"]["data"], "aGk=");
}

fn folder() -> Tree {
    let settings = r#"{"model": "opus", "hooks": {"PreToolUse": [{"matcher": "Bash", "hooks": [{"type": "command", "command": "./check"}]}]}}"#;
    [
        ("CLAUDE.md", "Be kind."),
        (".claude/settings.json", settings),
        (".claude/agents/reviewer.md", "---\nname: reviewer\ndescription: Reviews.\ntools: Read, Grep\nmodel: haiku\n---\nYou review."),
        (".claude/agents/team/writer.md", "---\nname: writer\ndescription: >\n  Writes\n  well.\nmodel: inherit\nhooks:\n  Stop:\n    - hooks: []\n---\nYou write."),
        (".claude/agents/nameless.md", "You are nobody."),
        (".claude/agents/open.md", "---\nname: open"),
        (".claude/skills/pdf/SKILL.md", "---\nname: pdf\ndescription: Reads PDF files.\n---\n"),
        (".claude/skills/pdf/more.md", "not a skill"),
        (".claude/commands/greet.md", "# Greet $ARGUMENTS\n"),
        (".claude/commands/front/build.md", "---\ndescription: Builds.\n---\nBuild."),
        (".mcp.json", r#"{"mcpServers": {"mini": {"command": "python3", "args": ["mini.py"]}, "far": {"type": "http", "url": "https://example.test/mcp"}}}"#),
    ]
    .into_iter()
    .collect()
}

#[test]
fn discovery_lists_what_the_folder_declares() {
    insta::assert_json_snapshot!(ClaudeCode.discover(&folder()).unwrap());
}

#[test]
fn broken_json_is_an_error_with_its_place() {
    for file in [".claude/settings.json", ".claude/settings.local.json", ".mcp.json"] {
        let tree: Tree = [(file, "{\n  \"model\": }")].into_iter().collect();
        let error = ClaudeCode.discover(&tree).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("line 2 column"), "{error}");
    }
}

#[test]
fn the_command_is_complete() {
    let command = command(&Tree::new(), |_| {}).unwrap();
    insta::assert_debug_snapshot!((&command.args, &command.env, &command.cwd));
    let [settings] = &command.seeds[..] else { panic!("one seed") };
    let settings: serde_json::Value = serde_json::from_slice(&settings.content).unwrap();
    assert_eq!(settings["env"]["ANTHROPIC_BASE_URL"], gateway().anthropic);
    assert_eq!(settings.get("disableAllHooks"), None);
}

#[test]
fn the_folders_model_wins_over_the_default() {
    let model = |tree: &Tree| variable(&command(tree, |_| {}).unwrap(), "ANTHROPIC_MODEL").map(str::to_owned);
    assert_eq!(model(&Tree::new()).as_deref(), Some("big"));
    assert_eq!(model(&folder()), None);
}

#[test]
fn policy_modes_and_agents_become_arguments() {
    let all = command(&folder(), |launch| {
        launch.policy = FolderPolicy { hooks: false, mcp: false, denied_tools: &[] };
        launch.permission_mode = PermissionMode::AllowAll;
        launch.agent = Some("reviewer");
        launch.native = Native::Resume("old".to_owned());
        launch.thinking_budget = Some(5000);
    })
    .unwrap();
    for argument in
        ["--strict-mcp-config", "--permission-mode=bypassPermissions", "--agent=reviewer", "--resume=old"]
    {
        assert!(all.args.iter().any(|known| known == argument), "{argument} in {:?}", all.args);
    }
    assert_eq!(variable(&all, "IS_SANDBOX"), Some("1"));
    assert_eq!(variable(&all, "MAX_THINKING_TOKENS"), Some("5000"));
    let settings: serde_json::Value = serde_json::from_slice(&all.seeds[0].content).unwrap();
    assert_eq!(settings["disableAllHooks"], true);
    assert!(!all.args.iter().any(|argument| argument.contains("session-token")), "{:?}", all.args);
}

#[test]
fn an_agent_that_is_not_there_is_an_error_that_names_those_that_are() {
    let error = command(&folder(), |launch| launch.agent = Some("nobody")).unwrap_err();
    assert_eq!(error.to_string(), "there is no agent `nobody` in this release; it has: reviewer, writer");
}

#[test]
fn history_is_the_conversation_alone() {
    let lines = r#"
{"type":"queue-operation","operation":"enqueue"}
{"type":"user","uuid":"u1","timestamp":"2026-11-23T23:43:56.014Z","message":{"role":"user","content":"look"}}
{"type":"attachment","uuid":"a1"}
{"type":"assistant","uuid":"b1","message":{"id":"msg_1","model":"m","content":[{"type":"thinking","thinking":"hm"}]}}
{"type":"assistant","uuid":"b2","message":{"id":"msg_1","model":"m","content":[{"type":"tool_use","id":"t1","name":"Read","input":{"file_path":"x"}}]}}
{"type":"user","uuid":"u2","message":{"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":[{"type":"text","text":"content"}]}]}}
{"type":"assistant","uuid":"b3","message":{"id":"msg_2","model":"m","content":[{"type":"text","text":"I see."}]}}
{"type":"assistant","uuid":"b3","message":{"id":"msg_2","model":"m","content":[{"type":"text","text":"I see."}]}}
{"type":"user","uuid":"u3","isMeta":true,"message":{"role":"user","content":"hidden"}}
{"type":"user","uuid":"u4","isSidechain":true,"message":{"role":"user","content":"to a sub-agent"}}
{"type":"user","uuid":"u5","message":{"role":"user","content":[{"type":"text","text":"[Request interrupted by user]"}]}}
{"type":"user","uuid":"u6","message":{"role":"user","content":"<command-message>greet</command-message>\n<command-name>/greet</command-name>\n<command-args>Bob</command-args>"}}
{"type":"assistant","uuid":"b4","isApiErrorMessage":true,"message":{"id":"x","model":"<synthetic>","content":[{"type":"text","text":"API Error"}]}}
{"type":"assistant","uuid":"b5","message":{"id":"msg_3","model":"m","con"#;
    let messages = ClaudeCode.read_history(lines.as_bytes()).unwrap();
    let told: Vec<_> = messages.iter().map(|message| (message.role, message.text.as_str())).collect();
    assert_eq!(
        told,
        [
            (Role::User, "look"),
            (Role::Assistant, ""),
            (Role::Assistant, "I see."),
            (Role::User, "/greet Bob")
        ]
    );
    assert!(matches!(
        &messages[1].parts[..],
        [Part::Reasoning { .. }, Part::ToolUse { .. }, Part::ToolResult { output, .. }] if output == "content"
    ));
    assert!(messages[0].created_at.is_some());
}

#[test]
fn any_bytes_are_some_history() {
    assert_eq!(ClaudeCode.read_history(b"\xff\n{}\n[]\nnull\n").unwrap(), []);
}
