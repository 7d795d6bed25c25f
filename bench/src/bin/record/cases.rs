//! What is recorded.

use karta_harness::launch::FolderPolicy;
use karta_types::message::{Answer, Decision};
use karta_types::session::PermissionMode;
use serde_json::{Value, json};

/// What the caller does in a session.
pub(crate) enum Act {
    /// Says this when the turn before it is over.
    Say(String),
    /// Says this as soon as text comes.
    Steer(String),
    /// Interrupts as soon as text comes.
    InterruptAtText,
    /// Interrupts as soon as a question comes.
    InterruptAtAsk,
    /// Answers the next question.
    Answer(Answer),
    /// Asks for thinking from now on.
    Think,
    /// Changes the permission mode before the next message.
    Mode(PermissionMode),
}

/// One recording.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Whether the model can be reached.
    pub(crate) reachable: bool,
    pub(crate) files: Vec<(&'static str, String)>,
    pub(crate) mode: PermissionMode,
    pub(crate) agent: Option<&'static str>,
    pub(crate) policy: FolderPolicy<'static>,
    /// The case whose session goes on; an empty name is a session that nobody knows.
    pub(crate) resume: Option<&'static str>,
    pub(crate) acts: Vec<Act>,
}

/// Whether a case is wanted, or another needs it.
pub(crate) fn needs(name: &str, only: &[String]) -> bool {
    let named = |name: &str| only.iter().any(|one| one == name);
    only.is_empty() || named(name) || (name == "multi-turn" && named("resume"))
}

fn script(steps: &Value) -> String {
    format!("go SCRIPT: {steps}")
}

fn answer(decision: Decision) -> Answer {
    Answer { decision, message: None, updated_input: None, answers: None }
}

fn case(name: &'static str, acts: Vec<Act>) -> Case {
    Case {
        name,
        reachable: true,
        files: vec![("CLAUDE.md", "Be brief.\n".to_owned())],
        mode: PermissionMode::Default,
        agent: None,
        policy: FolderPolicy::default(),
        resume: None,
        acts,
    }
}

fn bash(command: &str) -> Value {
    json!({"text": "I will do it.", "tool": "Bash", "input": {"command": command, "description": "Scripted"}})
}

/// Every case.
pub(crate) fn all() -> Vec<Case> {
    [turns(), asks(), failures(), folders()].into_iter().flatten().collect()
}

fn turns() -> Vec<Case> {
    use Act::{InterruptAtText, Mode, Say, Steer, Think};
    let used =
        json!({"input_tokens": 100, "output_tokens": 5, "cache_read_tokens": 11, "cache_write_tokens": 7});
    let slow = |words: usize| script(&json!([{"text": "word ".repeat(words * 3), "chunk_delay_ms": 40}]));
    let shell = || Say(script(&json!([bash("echo hi > made.txt"), {"text": "It is done."}])));
    vec![
        case(
            "plain",
            vec![Say(script(
                &json!([{"text": "Hello there, friend. How are you on this fine day?", "usage": used}]),
            ))],
        ),
        case(
            "thinking",
            vec![Think, Say(script(&json!([{"thinking": "Let me think.", "text": "Done thinking."}])))],
        ),
        case("interrupt-text", vec![InterruptAtText, Say(slow(40)), Say("hello".into())]),
        case("steer", vec![Steer("and this".into()), Say(slow(10))]),
        case("max-turns", vec![Act::Answer(answer(Decision::ApproveOnce)), shell()]),
        case("multi-turn", vec![Say("one".into()), Say("two".into())]),
        Case { resume: Some("multi-turn"), ..case("resume", vec![Say("three".into())]) },
        Case { resume: Some(""), ..case("resume-unknown", vec![Say("hello".into())]) },
        case("modes", vec![Mode(PermissionMode::AllowAll), shell(), Mode(PermissionMode::DenyAll), shell()]),
    ]
}

fn asks() -> Vec<Case> {
    use Act::{InterruptAtAsk, Say};
    let shell = |command: &str| Say(script(&json!([bash(command), {"text": "It is done."}])));
    let hi = "echo hi > made.txt";
    let once = || answer(Decision::ApproveOnce);
    let refused = Answer { message: Some("Not today.".into()), ..answer(Decision::Deny) };
    let other = json!({"command": "echo edited > made.txt", "description": "Edited"});
    let blue = json!({"Which colour?": "Blue"});
    let question = json!({"questions": [{"question": "Which colour?", "header": "Colour", "multiSelect": false,
        "options": [{"label": "Red", "description": "warm"}, {"label": "Blue", "description": "cold"}]}]});
    let plan = json!([{"tool": "ExitPlanMode", "input": {"plan": "1. Do it."}}, {"text": "Doing it."}]);
    let question = json!([{"tool": "AskUserQuestion", "input": question}, {"text": "Thanks."}]);
    vec![
        case("tool-allow", vec![Act::Answer(once()), shell(hi)]),
        case("tool-deny", vec![Act::Answer(refused), shell(hi)]),
        case("tool-edited", vec![Act::Answer(Answer { updated_input: Some(other), ..once() }), shell(hi)]),
        case(
            "approve-session",
            vec![
                Act::Answer(answer(Decision::ApproveSession)),
                shell("touch one.txt"),
                shell("touch one.txt"),
            ],
        ),
        case(
            "question",
            vec![
                Act::Answer(Answer { answers: blue.as_object().cloned(), ..once() }),
                Say(script(&question)),
            ],
        ),
        Case { mode: PermissionMode::Plan, ..case("plan", vec![Act::Answer(once()), Say(script(&plan))]) },
        case("interrupt-question", vec![InterruptAtAsk, shell(hi)]),
    ]
}

fn failures() -> Vec<Case> {
    use Act::Say;
    let failing = |name, status: u16| case(name, vec![Say(script(&json!([{ "status": status }])))]);
    let cut = |name, step: Value| case(name, vec![Say(script(&json!([step, {"text": "end"}])))]);
    vec![
        failing("error-401", 401),
        failing("error-400-credit", 400),
        failing("error-402", 402),
        failing("error-404", 404),
        failing("error-429", 429),
        failing("error-529", 529),
        Case { reachable: false, ..case("error-unreachable", vec![Say("hello".into())]) },
        cut(
            "cut-retry",
            json!({"thinking": "a b", "text": "one two three", "cut_after_chunks": 6, "times": 1}),
        ),
        cut("cut-unstreamed", json!({"text": "one two three four", "cut_after_chunks": 4, "times": 9})),
        cut(
            "cut-after-block",
            json!({"text": "one two", "tool": "Read", "input": {"file_path": "CLAUDE.md"}, "cut_after_chunks": 8, "times": 1}),
        ),
    ]
}

fn folders() -> Vec<Case> {
    use Act::Say;
    let once = || Act::Answer(answer(Decision::ApproveOnce));
    let reviewer = || {
        let text =
            "---\nname: reviewer\ndescription: Reviews.\ntools: Read\nmodel: haiku\n---\nYou review.\n";
        vec![(".claude/agents/reviewer.md", text.to_owned())]
    };
    let inner = script(
        &json!([{"text": "Reading.", "tool": "Read", "input": {"file_path": "/etc/hostname"}}, {"text": "Looks good."}]),
    );
    let task = json!([{"tool": "Task", "input": {"description": "review it", "prompt": inner, "subagent_type": "reviewer"}},
        {"text": "Reviewed."}]);
    let add = |end: &str| json!([{"tool": "mcp__mini__add", "input": {"a": 2, "b": 3}}, {"text": end}]);
    let off = |hooks, mcp| FolderPolicy { hooks, mcp, denied_tools: &[] };
    let elsewhere = json!({"env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:1", "ANTHROPIC_API_KEY": "k",
        "CLAUDE_CODE_USE_BEDROCK": "1"}, "apiKeyHelper": "echo k"});
    let greet = "---\ndescription: Greets.\n---\nGreet $ARGUMENTS.\n";
    vec![
        Case { files: reviewer(), ..case("subagent", vec![once(), Say(script(&task))]) },
        Case { files: reviewer(), agent: Some("reviewer"), ..case("agent", vec![Say("hello".into())]) },
        Case {
            files: hooks(),
            ..case(
                "hooks",
                vec![Say(script(&json!([bash("true"), {"text": "It is done."}]))), Say("BLOCK this".into())],
            )
        },
        Case {
            files: hooks(),
            policy: off(false, true),
            ..case("hooks-off", vec![Say("BLOCK this".into())])
        },
        Case { files: mcp(), ..case("mcp", vec![once(), Say(script(&add("Five.")))]) },
        Case { files: mcp(), policy: off(true, false), ..case("mcp-off", vec![Say(script(&add("No.")))]) },
        Case {
            files: vec![(".claude/commands/greet.md", greet.to_owned())],
            ..case("slash-command", vec![Say("/greet Bob".into()), Say("/cost".into())])
        },
        Case {
            files: vec![(".claude/settings.json", elsewhere.to_string())],
            ..case("folder-elsewhere", vec![Say("hello".into())])
        },
    ]
}

fn hooks() -> Vec<(&'static str, String)> {
    let command = |command: &str| json!([{"hooks": [{"type": "command", "command": command}]}]);
    let block = "if grep -q BLOCK; then echo 'not this' >&2; exit 2; fi";
    let note = "cat > \"$CLAUDE_PROJECT_DIR/hook.json\"";
    let hooks = json!({"hooks": {"UserPromptSubmit": command(block), "PreToolUse": command(note)}});
    vec![(".claude/settings.json", hooks.to_string())]
}

fn mcp() -> Vec<(&'static str, String)> {
    let server = r#"import json, sys
for line in sys.stdin:
    call = json.loads(line)
    if "id" not in call:
        continue
    answers = {
        "initialize": {"protocolVersion": call.get("params", {}).get("protocolVersion"), "capabilities": {"tools": {}}, "serverInfo": {"name": "mini", "version": "1"}},
        "tools/list": {"tools": [{"name": "add", "description": "Adds.", "inputSchema": {"type": "object"}}]},
        "tools/call": {"content": [{"type": "text", "text": "5"}]},
    }
    print(json.dumps({"jsonrpc": "2.0", "id": call["id"], "result": answers.get(call["method"], {})}), flush=True)
"#;
    let servers = json!({"mcpServers": {"mini": {"command": "python3", "args": ["mini.py"]}}});
    vec![(".mcp.json", servers.to_string()), ("mini.py", server.to_owned())]
}
