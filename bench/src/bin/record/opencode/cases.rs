//! What is recorded of OpenCode.

use std::time::Duration;

use karta_types::message::{Answer, Decision};
use karta_types::session::PermissionMode;
use serde_json::{Value, json};

/// When the caller acts.
#[derive(Debug, Clone, Copy)]
pub(super) enum When {
    /// No turn runs.
    Rest,
    /// Text came.
    Text,
    /// A question came.
    Ask,
    /// A model call is tried again.
    Retry,
    /// So long after the act before.
    After(Duration),
}

/// What the caller does.
#[derive(Debug, Clone)]
pub(super) enum What {
    Say(String, Option<&'static str>),
    Interrupt,
    Answer(Answer),
    Mode(PermissionMode),
    Think,
    History,
}

/// One thing that the caller does.
#[derive(Debug, Clone)]
pub(super) struct Act {
    pub(super) when: When,
    pub(super) what: What,
}

/// One recording.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) files: Vec<(&'static str, String)>,
    pub(super) mode: PermissionMode,
    /// The case whose session goes on, or an id that nobody knows.
    pub(super) resume: Option<&'static str>,
    pub(super) acts: Vec<Act>,
}

/// A session that does not exist.
const MISSING: &str = "ses_0000000000000000000000000000";

fn case(name: &'static str, acts: Vec<Act>) -> Case {
    let files = vec![("AGENTS.md", "Be brief.\n".to_owned())];
    Case { name, files, mode: PermissionMode::Default, resume: None, acts }
}

const fn act(when: When, what: What) -> Act {
    Act { when, what }
}

fn say(text: impl Into<String>) -> Act {
    act(When::Rest, What::Say(text.into(), None))
}

fn play(steps: &Value) -> Act {
    say(format!("go SCRIPT: {steps}"))
}

const fn after(millis: u64, what: What) -> Act {
    act(When::After(Duration::from_millis(millis)), what)
}

fn answer(decision: Decision) -> Act {
    act(When::Ask, What::Answer(Answer { decision, message: None, updated_input: None, answers: None }))
}

fn bash(command: &str) -> Value {
    json!({"tool": "bash", "input": {"command": command, "description": "Run it"}})
}

fn words(count: usize, pause: u64) -> Value {
    json!([{"text": "word ".repeat(count), "chunk_delay_ms": pause}])
}

/// Every case.
pub(super) fn all() -> Vec<Case> {
    [turns(), asks(), interrupts(), failures()].into_iter().flatten().collect()
}

fn turns() -> Vec<Case> {
    let greet = "Say hello to $ARGUMENTS SCRIPT: [{\"text\": \"Hello Ada\"}]\n".to_owned();
    let helper = "---\ndescription: Looks things up.\nmode: subagent\n---\nYou look things up.\n".to_owned();
    let found = json!([{"thinking": "hm", "text": "Let me run it.", "tool": "bash",
        "input": {"command": "echo found", "description": "Run it"}}, {"text": "The answer is 42."}]);
    let task = json!({"description": "look it up", "prompt": format!("please SCRIPT: {found}"), "subagent_type": "helper"});
    let used =
        json!({"input_tokens": 120, "output_tokens": 22, "cache_read_tokens": 80, "cache_write_tokens": 10});
    vec![
        case(
            "plain",
            vec![
                play(&json!([{"thinking": "let me see", "text": "Hello there friend", "usage": used}])),
                act(When::Rest, What::Think),
                say("again"),
                act(When::Rest, What::History),
            ],
        ),
        case(
            "steer",
            vec![play(&words(40, 40)), act(When::Text, What::Say("and this".to_owned(), None)), say("next")],
        ),
        Case {
            files: vec![(".opencode/commands/greet.md", greet)],
            ..case("command", vec![say("/greet Ada"), say("/nosuch thing")])
        },
        Case {
            files: vec![(".opencode/agents/helper.md", helper)],
            ..case(
                "subagent",
                vec![
                    play(
                        &json!([{"text": "I ask my helper.", "tool": "task", "input": task}, {"text": "It says 42."}]),
                    ),
                    answer(Decision::ApproveOnce),
                ],
            )
        },
        case("unknown-agent", vec![act(When::Rest, What::Say("hello".to_owned(), Some("nobody")))]),
    ]
}

fn asks() -> Vec<Case> {
    let spoken = |text: &str, command: &str| {
        let mut step = bash(command);
        step["text"] = text.into();
        step
    };
    let deny = Answer {
        decision: Decision::Deny,
        message: Some("Keep the file.".to_owned()),
        updated_input: None,
        answers: None,
    };
    let blue = Answer {
        decision: Decision::ApproveOnce,
        message: None,
        updated_input: None,
        answers: json!({"Which colour?": "Blue"}).as_object().cloned(),
    };
    let question = |words: &str, header: &str, options: Value| json!({"tool": "question", "input": {"questions": [{"question": words, "header": header, "options": options}]}});
    let write = json!({"tool": "write", "input": {"filePath": "WORKSPACE/x.txt", "content": "x"}});
    let mode = |mode| act(When::Rest, What::Mode(mode));
    vec![
        case(
            "tools",
            vec![
                play(&json!([spoken("I will write it.", "echo hi > made.txt"), {"text": "written"}])),
                answer(Decision::ApproveOnce),
                play(&json!([bash("rm made.txt"), {"text": "Then I leave it."}])),
                act(When::Ask, What::Answer(deny)),
                play(&json!([bash("rm made.txt"), {"text": "never"}])),
                answer(Decision::Deny),
                play(&json!([bash("echo one"), bash("echo two"), {"text": "both ran"}])),
                answer(Decision::ApproveSession),
                act(When::Rest, What::History),
            ],
        ),
        Case {
            resume: Some("tools"),
            ..case("resume", vec![say("and now?"), act(When::Rest, What::History)])
        },
        Case { resume: Some(MISSING), ..case("resume-missing", vec![say("hello?")]) },
        case(
            "question",
            vec![
                play(&json!([
                    question("Which colour?", "Colour", json!([{"label": "Red", "description": "warm"},
                        {"label": "Blue", "description": "cold"}])),
                    {"text": "Blue it is."}
                ])),
                act(When::Ask, What::Answer(blue)),
                play(
                    &json!([question("Sure?", "Sure", json!([{"label": "Yes", "description": ""}])), {"text": "no matter"}]),
                ),
                answer(Decision::Deny),
            ],
        ),
        Case {
            mode: PermissionMode::Plan,
            ..case(
                "plan",
                vec![
                    play(&json!([bash("echo a > b"), {"text": "I only plan."}])),
                    mode(PermissionMode::Default),
                    play(&json!([bash("echo a > b"), {"text": "now it ran"}])),
                    answer(Decision::ApproveOnce),
                    mode(PermissionMode::AcceptEdits),
                    play(&json!([write, {"text": "wrote"}])),
                    mode(PermissionMode::DenyAll),
                    play(&json!([bash("echo c"), {"text": "refused, fine"}])),
                    mode(PermissionMode::AllowAll),
                    play(&json!([bash("echo d"), {"text": "ran"}])),
                ],
            )
        },
    ]
}

fn interrupts() -> Vec<Case> {
    let sleep = || play(&json!([bash("sleep 60"), {"text": "x"}]));
    vec![case(
        "interrupt",
        vec![
            play(&words(200, 30)),
            act(When::Text, What::Interrupt),
            play(&json!([{"text": "Still alive."}])),
            sleep(),
            act(When::Ask, What::Interrupt),
            sleep(),
            answer(Decision::ApproveOnce),
            after(1500, What::Interrupt),
            play(&words(50, 30)),
            after(0, What::Interrupt),
            play(&json!([{"text": "Alive again."}])),
        ],
    )]
}

fn failures() -> Vec<Case> {
    let always = |status: u16| json!([{"status": status}]);
    vec![
        case(
            "crash",
            vec![play(&json!([bash("kill -9 $PPID"), {"text": "x"}])), answer(Decision::ApproveOnce)],
        ),
        case(
            "key-rejected",
            vec![
                play(&always(401)),
                say("still there?"),
                play(&json!([{"status": 400, "message": "Your credit balance is too low"}])),
            ],
        ),
        case(
            "overloaded",
            vec![
                play(&always(529)),
                act(When::Retry, What::Interrupt),
                play(&always(429)),
                act(When::Retry, What::Interrupt),
            ],
        ),
    ]
}
