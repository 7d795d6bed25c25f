//! OpenCode: recorded sessions, discovery, command lines, and what no recording shows.

use karta_harness::launch::{FolderPolicy, Gateway, HttpTransport, Native};
use karta_harness::opencode::OpenCode;
use karta_harness::{Codec, Command, End, Error, Harness, Input, Launch, Out, Said, Transport, Tree};
use karta_types::message::{Answer, Content, Decision};
use karta_types::session::PermissionMode;
use karta_types::{ErrorCode, Secret};
use serde_json::{Value, json};

use crate::laws;

macro_rules! recorded {
    ($($test:ident $file:literal $make:ident)*) => {$(
        #[test]
        fn $test() {
            let transcript = include_str!(concat!("../../transcripts/opencode/", $file, ".jsonl"));
            laws::hold($make, transcript);
            insta::assert_snapshot!(concat!("opencode-", $file), laws::shown($make, transcript));
        }
    )*};
}

recorded! {
    agent_that_is_unknown "unknown-agent" new
    command_of_the_folder "command" with_command
    crash_with_a_tool_open "crash" new
    interrupt_of_text_question_tool_and_nothing "interrupt" new
    key_rejected "key-rejected" new
    modes "plan" planning
    overloaded_and_interrupted "overloaded" new
    plain_with_thinking_and_history "plain" new
    question "question" new
    resume "resume" resumed
    resume_of_a_missing_session "resume-missing" missing
    steer "steer" new
    subagent "subagent" new
    tools_allowed_and_denied "tools" new
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
        program: "/harness/opencode",
        version: "1.18.33",
        workspace: "/workspace",
        home: "/home/session",
        temp: "/temp",
        tree,
        title: "Karta",
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

fn codec(tree: &Tree, change: impl FnOnce(&mut Launch<'_>)) -> Box<dyn Codec> {
    with_launch(tree, change, |launch| OpenCode.codec(launch).unwrap())
}

pub(crate) fn new() -> Box<dyn Codec> {
    codec(&Tree::new(), |_| {})
}

fn planning() -> Box<dyn Codec> {
    codec(&Tree::new(), |launch| launch.permission_mode = PermissionMode::Plan)
}

fn resumed() -> Box<dyn Codec> {
    let first = include_str!("../../transcripts/opencode/tools.jsonl");
    let id = laws::shown(new, first).lines().last().unwrap().replace("native session: ", "");
    codec(&Tree::new(), |launch| launch.native = Native::Resume(id))
}

fn missing() -> Box<dyn Codec> {
    codec(&Tree::new(), |launch| {
        launch.native = Native::Resume("ses_0000000000000000000000000000".to_owned());
    })
}

fn with_command() -> Box<dyn Codec> {
    codec(&tree(&[(".opencode/commands/greet.md", "Say hello to $ARGUMENTS\n")]), |_| {})
}

fn tree(files: &[(&str, &str)]) -> Tree {
    files.iter().copied().collect()
}

/// A codec whose session is open, driven by hand.
pub(crate) struct Driven {
    codec: Box<dyn Codec>,
    out: Out,
}

impl Driven {
    fn open(mode: PermissionMode) -> Self {
        let codec = codec(&Tree::new(), |launch| launch.permission_mode = mode);
        let mut driven = Self { codec, out: Out::default() };
        driven.codec.start(&mut driven.out);
        driven.line(&json!({"ready": true}));
        driven.line(&json!({"id": 1, "status": 200, "body": {"id": "ses_1"}}));
        assert_eq!(driven.said(), [Said::Ready]);
        driven.written();
        driven
    }

    /// With a turn that runs, whose agent's message `msg_2` is open.
    pub(crate) fn busy(mode: PermissionMode) -> Self {
        let mut driven = Self::open(mode);
        driven.send("hi");
        driven.event(
            "message.updated",
            &json!({"info": {"id": "msg_1", "sessionID": "ses_1", "role": "user"}}),
        );
        driven.event("session.status", &json!({"sessionID": "ses_1", "status": {"type": "busy"}}));
        driven.answer("msg_2", &json!({}));
        assert_eq!(driven.said(), []);
        driven.written();
        driven
    }

    pub(crate) fn line(&mut self, line: &Value) {
        self.codec.output(format!("{line}\n").as_bytes(), &mut self.out);
    }

    pub(crate) fn event(&mut self, kind: &str, properties: &Value) {
        self.line(&json!({"event": {"id": "evt_1", "type": kind, "properties": properties}}));
    }

    /// The agent's message, which answers `msg_1`.
    pub(crate) fn answer(&mut self, id: &str, more: &Value) {
        let mut info = json!({"id": id, "sessionID": "ses_1", "role": "assistant", "parentID": "msg_1", "time": {"created": 1}});
        info.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.event("message.updated", &json!({ "info": info }));
    }

    pub(crate) fn part(&mut self, part: &Value) {
        let mut whole = json!({"sessionID": "ses_1", "messageID": "msg_2"});
        whole.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        self.event("message.part.updated", &json!({ "part": whole }));
    }

    pub(crate) fn idle(&mut self) {
        self.event("session.idle", &json!({"sessionID": "ses_1"}));
    }

    pub(crate) fn input(&mut self, input: Input) {
        self.codec.input(input, &mut self.out);
    }

    pub(crate) fn send(&mut self, text: &str) {
        let content = vec![Content::Text { text: text.to_owned() }];
        self.input(Input::Message { id: "m".to_owned(), content, agent: None, thinking: false });
    }

    pub(crate) fn said(&mut self) -> Vec<Said> {
        self.out.said.drain(..).map(|(said, _)| said).collect()
    }

    pub(crate) fn written(&mut self) -> Vec<Value> {
        let all: Vec<u8> = self.out.writes.drain(..).flatten().collect();
        String::from_utf8(all).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The method and path of the requests that were written.
    pub(crate) fn requests(&mut self) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        self.written()
            .iter()
            .map(|request| format!("{} {}", text(&request["method"]), text(&request["path"])))
            .collect()
    }

    fn failure(&mut self) -> Option<(ErrorCode, String)> {
        self.said().into_iter().find_map(|said| match said {
            Said::Ended(End::Failed { code, message }) => Some((code, message)),
            _ => None,
        })
    }
}

pub(crate) const COMPLETED: Said = Said::Ended(End::Completed { stop_reason: None });

#[test]
fn idle_ends_nothing_while_a_message_is_open() {
    let mut driven = Driven::busy(PermissionMode::Default);
    driven.idle();
    assert_eq!(driven.said(), []);
    assert_eq!(driven.requests(), ["GET /session/status"]);
    driven.answer("msg_2", &json!({"time": {"created": 1, "completed": 2}}));
    assert_eq!(driven.said(), []);
    driven.idle();
    driven.idle();
    assert_eq!(driven.said(), [COMPLETED]);
}

#[test]
fn a_server_that_rests_without_closing_its_message_ends_the_turn_after_a_while() {
    let mut driven = Driven::busy(PermissionMode::Default);
    driven.idle();
    let mut asked = 0;
    while let [poll] = &driven.written()[..] {
        asked += 1;
        assert!(asked <= 60, "it asks for ever");
        driven.line(&json!({"id": poll["id"], "status": 200, "body": {}}));
    }
    assert!(asked > 10 && driven.said() == [COMPLETED]);
}

#[test]
fn a_prompt_that_steers_is_waited_for() {
    let mut driven = Driven::busy(PermissionMode::Default);
    driven.send("and this");
    driven.answer("msg_2", &json!({"time": {"created": 1, "completed": 2}}));
    driven.idle();
    assert_eq!(driven.said(), [], "the second prompt was not even taken");
    driven.event("message.updated", &json!({"info": {"id": "msg_3", "sessionID": "ses_1", "role": "user"}}));
    driven.event("session.status", &json!({"sessionID": "ses_1", "status": {"type": "busy"}}));
    driven.answer("msg_4", &json!({"parentID": "msg_3", "time": {"created": 3, "completed": 4}}));
    driven.idle();
    assert_eq!(driven.said(), [COMPLETED]);
}

#[test]
fn an_idle_of_the_run_before_does_not_end_the_next_turn() {
    let mut driven = Driven::busy(PermissionMode::Default);
    driven.answer("msg_2", &json!({"time": {"created": 1, "completed": 2}}));
    driven.idle();
    assert_eq!(driven.said(), [COMPLETED]);
    driven.send("next");
    driven.idle();
    assert_eq!(driven.said(), []);
}

#[test]
fn an_interrupt_before_the_server_works_is_kept_until_it_does() {
    let mut driven = Driven::open(PermissionMode::Default);
    driven.send("hi");
    driven.written();
    driven.input(Input::Interrupt);
    assert_eq!(driven.requests(), [""; 0]);
    driven.event("session.status", &json!({"sessionID": "ses_1", "status": {"type": "busy"}}));
    assert_eq!(driven.requests(), ["POST /session/ses_1/abort"]);
}

#[test]
fn an_interrupt_before_the_session_is_open_ends_the_turn_at_once() {
    let mut driven = Driven { codec: new(), out: Out::default() };
    driven.send("hi");
    driven.input(Input::Interrupt);
    assert_eq!(driven.said(), [Said::Ended(End::Interrupted)]);
    driven.line(&json!({"ready": true}));
    driven.line(&json!({"id": 1, "status": 200, "body": {"id": "ses_1"}}));
    assert_eq!(driven.requests(), ["POST /session"], "the message is forgotten");
}

#[test]
fn what_the_user_said_is_not_said_back() {
    let mut driven = Driven::busy(PermissionMode::Default);
    driven.part(&json!({"id": "prt_1", "messageID": "msg_1", "type": "text", "text": "hi"}));
    let delta = json!({"sessionID": "ses_1", "messageID": "msg_1", "partID": "prt_1", "field": "text", "delta": "hi"});
    driven.event("message.part.delta", &delta);
    assert_eq!(driven.said(), []);
}

#[test]
fn what_pieces_did_not_bring_the_whole_text_does() {
    let mut driven = Driven::busy(PermissionMode::Default);
    driven.part(&json!({"id": "prt_1", "type": "text", "text": ""}));
    let delta = json!({"sessionID": "ses_1", "messageID": "msg_2", "partID": "prt_1", "field": "text", "delta": "one "});
    driven.event("message.part.delta", &delta);
    driven.part(&json!({"id": "prt_1", "type": "text", "text": "one twö"}));
    driven.part(&json!({"id": "prt_1", "type": "text", "text": "one twö"}));
    let text = |text: &str| Said::Text { part: "prt_1".to_owned(), text: text.to_owned(), parent: None };
    assert_eq!(driven.said(), [text("one "), text("twö")]);
    driven.event(
        "message.part.removed",
        &json!({"sessionID": "ses_1", "messageID": "msg_2", "partID": "prt_1"}),
    );
    assert_eq!(driven.said(), [Said::Discarded { part: "prt_1".to_owned(), reasoning: false }]);
}

#[test]
fn another_agent_is_told_and_a_digest_of_the_conversation_is_not_the_answer() {
    let mut driven = Driven::busy(PermissionMode::Default);
    driven.answer("msg_2", &json!({"agent": "build"}));
    driven.answer("msg_3", &json!({"agent": "compaction", "summary": true}));
    driven.part(&json!({"id": "prt_1", "messageID": "msg_3", "type": "text", "text": "so far"}));
    driven.answer("msg_4", &json!({"agent": "build"}));
    assert_eq!(driven.said(), []);
    driven.answer("msg_5", &json!({"agent": "plan"}));
    let (from, to) = (Some("build".to_owned()), Some("plan".to_owned()));
    assert_eq!(driven.said(), [Said::AgentChanged { from, to }]);
}

#[test]
fn a_question_comes_after_the_call_that_asks() {
    let mut driven = Driven::busy(PermissionMode::Default);
    let tool = |state: Value| json!({"id": "prt_1", "type": "tool", "tool": "bash", "callID": "call_1", "state": state});
    let asked = json!({"id": "per_1", "sessionID": "ses_1", "permission": "bash", "patterns": ["ls"],
        "metadata": {}, "tool": {"messageID": "msg_2", "callID": "call_1"}});
    driven.part(&tool(json!({"status": "pending", "input": {}})));
    driven.event("permission.asked", &asked);
    assert_eq!(driven.said(), []);
    driven.part(&tool(json!({"status": "running", "input": {"command": "ls"}})));
    driven.event("permission.asked", &asked);
    let said = driven.said();
    assert!(
        matches!(&said[..], [Said::ToolUse { .. }, Said::Asked { ask, .. }] if ask.tool_input == json!({"command": "ls"})),
        "{said:?}"
    );
}

#[test]
fn a_question_whose_call_never_comes_is_asked_with_the_next_heartbeat() {
    let mut driven = Driven::busy(PermissionMode::Default);
    driven.part(&json!({"id": "prt_1", "type": "tool", "tool": "bash", "callID": "call_1", "state": {"status": "pending"}}));
    driven.event(
        "permission.asked",
        &json!({"id": "per_1", "sessionID": "ses_1", "permission": "bash",
        "tool": {"messageID": "msg_2", "callID": "call_1"}}),
    );
    assert_eq!(driven.said(), []);
    driven.event("server.heartbeat", &json!({}));
    assert!(matches!(&driven.said()[..], [Said::Asked { .. }]));
}

#[test]
fn answers_of_every_kind_reach_the_server() {
    let mut driven = Driven::busy(PermissionMode::Default);
    let answer = |decision, message: Option<&str>| Answer {
        decision,
        message: message.map(str::to_owned),
        updated_input: None,
        answers: None,
    };
    let cases = [
        (answer(Decision::ApproveOnce, None), json!({"reply": "once"})),
        (answer(Decision::ApproveSession, None), json!({"reply": "always"})),
        (answer(Decision::Deny, None), json!({"reply": "reject"})),
        (answer(Decision::Deny, Some("why")), json!({"reply": "reject", "message": "why"})),
    ];
    for (at, (answer, body)) in cases.into_iter().enumerate() {
        let request = format!("per_{at}");
        driven.event(
            "permission.asked",
            &json!({"id": request, "sessionID": "ses_1", "permission": "webfetch"}),
        );
        driven.input(Input::Answer { request: request.clone(), answer: answer.clone() });
        let [written] = &driven.written()[..] else { panic!("one request") };
        assert_eq!(
            (&written["path"], &written["body"]),
            (&json!(format!("/permission/{request}/reply")), &body)
        );
        driven.input(Input::Answer { request, answer });
        assert_eq!(driven.written(), [Value::Null; 0], "an answer is given once");
    }
}

#[test]
fn questions_are_answered_in_their_order_with_lists() {
    let mut driven = Driven::busy(PermissionMode::Default);
    let questions = json!([{"question": "A?"}, {"question": "B?"}, {"question": "C?"}]);
    driven.event("question.asked", &json!({"id": "que_1", "sessionID": "ses_1", "questions": questions}));
    let answers = json!({"B?": ["x", "y"], "A?": "z"}).as_object().cloned();
    let answer = Answer { decision: Decision::ApproveOnce, message: None, updated_input: None, answers };
    driven.input(Input::Answer { request: "que_1".to_owned(), answer });
    assert_eq!(driven.written()[0]["body"], json!({"answers": [["z"], ["x", "y"], []]}));
}

#[test]
fn modes_answer_for_the_person() {
    use PermissionMode::{AcceptEdits, AllowAll, Default, DenyAll, Plan};
    let cases = [
        (Default, "edit", None),
        (AcceptEdits, "edit", Some("once")),
        (AcceptEdits, "bash", None),
        (AcceptEdits, "external_directory", None),
        (Plan, "edit", Some("reject")),
        (Plan, "bash", Some("reject")),
        (Plan, "webfetch", None),
        (DenyAll, "webfetch", Some("reject")),
        (AllowAll, "bash", Some("once")),
    ];
    for (mode, permission, reply) in cases {
        let mut driven = Driven::busy(mode);
        driven.event(
            "permission.asked",
            &json!({"id": "per_1", "sessionID": "ses_1", "permission": permission}),
        );
        let replied = driven.written().first().map(|request| request["body"]["reply"].clone());
        assert_eq!(replied, reply.map(Value::from), "{mode:?} {permission}");
        assert_eq!(driven.said().len(), usize::from(reply.is_none()), "{mode:?} {permission}");
    }
}

#[test]
fn errors_have_our_codes() {
    use ErrorCode as Code;
    let api = |status: u16, message: &str| json!({"name": "APIError", "data": {"message": message, "statusCode": status}});
    let cases = [
        (api(401, "no"), Code::ProviderKeyRejected),
        (api(403, "no"), Code::ProviderKeyRejected),
        (api(402, "no"), Code::BudgetExhausted),
        (api(400, "bad"), Code::ProviderRejected),
        (api(400, "Your credit balance is too low"), Code::ProviderKeyRejected),
        (api(404, "no"), Code::ProviderRejected),
        (api(429, "slow"), Code::ProviderRateLimited),
        (api(500, "oh"), Code::ProviderOverloaded),
        (api(529, "oh"), Code::ProviderOverloaded),
        (json!({"name": "ProviderAuthError", "data": {"message": "x"}}), Code::ProviderKeyRejected),
        (
            json!({"name": "APIError", "data": {"message": "Cannot connect to API"}}),
            Code::ProviderUnreachable,
        ),
        (json!({"name": "UnknownError", "data": {"message": "x\n    at y (z.js:1)"}}), Code::HarnessFailed),
    ];
    for (error, code) in cases {
        let mut driven = Driven::busy(PermissionMode::Default);
        driven.event("session.error", &json!({"sessionID": "ses_1", "error": error}));
        driven.idle();
        driven.answer("msg_2", &json!({"time": {"completed": 2}, "error": error}));
        driven.idle();
        let (found, message) = driven.failure().unwrap();
        assert_eq!(found, code, "{error}");
        assert!(!message.contains("    at "), "{message}");
    }
}

#[test]
fn a_refused_message_fails_its_turn() {
    let mut driven = Driven::open(PermissionMode::Default);
    driven.send("hi");
    let id = driven.written()[0]["id"].clone();
    driven.line(
        &json!({"id": id, "status": 404, "body": {"name": "NotFoundError", "data": {"message": "gone"}}}),
    );
    let (code, message) = driven.failure().unwrap();
    assert!(code == ErrorCode::HarnessFailed && message.contains("404: gone"), "{message}");
}

#[test]
fn a_lost_event_stream_ends_the_turn_and_another_takes_the_next_message() {
    let mut driven = Driven::busy(PermissionMode::Default);
    driven.line(&json!({"closed": "it broke off"}));
    assert_eq!(driven.requests(), ["POST /session/ses_1/abort"]);
    assert_eq!(driven.failure().unwrap().0, ErrorCode::HarnessFailed);
    driven.send("still there?");
    assert_eq!(driven.requests(), [""; 0]);
    driven.line(&json!({"ready": true}));
    assert_eq!(driven.requests(), ["POST /session/ses_1/prompt_async"]);
    assert_eq!(driven.said(), []);
}

#[test]
fn a_line_that_cannot_be_read_ends_the_turn_and_stops_the_server() {
    for line in [b"an event of 9000000 bytes is over the limit".to_vec(), vec![b'x'; 9 << 20]] {
        let mut driven = Driven::busy(PermissionMode::Default);
        driven.codec.output(&line, &mut driven.out);
        driven.codec.output(b"\n", &mut driven.out);
        assert_eq!(driven.failure().unwrap().0, ErrorCode::HarnessOutputInvalid);
        assert_eq!(driven.requests(), ["POST /session/ses_1/abort"]);
    }
}

#[test]
fn a_process_that_ends_before_it_is_ready_did_not_start() {
    let mut driven = Driven { codec: new(), out: Out::default() };
    driven.send("hi");
    driven.codec.exited(Some(1), "no such option\n", &mut driven.out);
    let (code, message) = driven.failure().unwrap();
    assert_eq!(code, ErrorCode::HarnessStartFailed);
    assert!(message.contains("status 1") && message.contains("no such option"), "{message}");
}

#[test]
fn a_history_too_large_is_asked_for_in_part() {
    let mut driven = Driven::open(PermissionMode::Default);
    driven.input(Input::History);
    for limit in [1000, 100, 10] {
        let [request] = &driven.written()[..] else { panic!("one request") };
        assert_eq!(request["path"], json!(format!("/session/ses_1/message?limit={limit}")));
        driven.line(&json!({"id": request["id"], "error": "length limit exceeded"}));
    }
    assert_eq!(driven.said().last(), Some(&Said::History(Vec::new())));
}

fn folder() -> Tree {
    tree(&[
        (
            "opencode.jsonc",
            r#"{
              // the house model
              "model": "anthropic/house",
              "agent": {"docs": {"description": "Writes.", "mode": "subagent", "model": "openai/pen", "tools": {"write": true, "bash": false}}, "off": {"disable": true}},
              "command": {"test": {"template": "Run the tests", "description": "Tests."}},
              "mcp": {"local": {"type": "local", "command": ["npx", "server", "--x"]}, "far": {"type": "remote", "url": "https://mcp.example"}, "asleep": {"type": "local", "command": ["x"], "enabled": false}},
              "plugin": ["some-plugin"],
              "formatter": {"tidy": {"command": ["tidy", "$FILE"], "extensions": [".x"]}},
            }"#,
        ),
        (".opencode/opencode.json", r#"{"agent": {"docs": {"description": "Writes better."}}}"#),
        (
            ".opencode/agent/reviewer.md",
            "---\ndescription: Reviews.\nmode: subagent\nmodel: elsewhere/m\ntools:\n  write: false\n---\nReview.\n",
        ),
        (".opencode/agents/deep/nested.md", "---\ndescription: Nested.\n---\nx\n"),
        (".opencode/commands/greet.md", "---\ndescription: Greets.\n---\nHi $ARGUMENTS\n"),
        (".opencode/command/bare.md", "Just do it.\n"),
        (".opencode/skills/pdf/SKILL.md", "---\nname: pdf\ndescription: Reads PDFs.\n---\nx\n"),
        (".opencode/skill/nameless/SKILL.md", "x\n"),
        (".opencode/plugin/watch.ts", "export default 1"),
        (".opencode/tools/add.js", "export default 1"),
        (".opencode/agents/broken.md", "---\ndescription: x\n"),
        ("AGENTS.md", "Be brief.\n"),
    ])
}

#[test]
fn a_folder_is_read_as_opencode_reads_it() {
    insta::assert_json_snapshot!("opencode-discovery", OpenCode.discover(&folder()).unwrap());
}

#[test]
fn broken_json_is_an_error_with_its_place() {
    for file in ["opencode.json", ".opencode/opencode.jsonc"] {
        let error =
            OpenCode.discover(&tree(&[(file, "{\n  // why\n  \"model\": }")])).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("line 3 column"), "{error}");
        assert!(OpenCode.discover(&tree(&[(file, "[]")])).is_err());
    }
}

fn command(tree: &Tree, change: impl FnOnce(&mut Launch<'_>)) -> Result<Command, Error> {
    with_launch(tree, change, |launch| OpenCode.command(launch))
}

fn variable<'a>(command: &'a Command, name: &str) -> Option<&'a str> {
    command.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn configuration(command: &Command) -> Value {
    serde_json::from_str(variable(command, "OPENCODE_CONFIG_CONTENT").unwrap()).unwrap()
}

#[test]
fn the_command_of_a_plain_folder() {
    let command = command(&tree(&[("AGENTS.md", "x")]), |_| {}).unwrap();
    let others: Vec<_> = command.env.iter().filter(|(name, _)| name != "OPENCODE_CONFIG_CONTENT").collect();
    insta::assert_debug_snapshot!("opencode-command-line", (&command.args, others, &command.cwd));
    insta::assert_json_snapshot!("opencode-configuration", configuration(&command));
    let Transport::Http(HttpTransport { basic_auth, .. }) = &command.transport else { panic!("not HTTP") };
    assert_eq!(
        basic_auth.as_ref().map(|(_, password)| password.as_str()),
        variable(&command, "OPENCODE_SERVER_PASSWORD")
    );
    let seeds: Vec<_> = command.seeds.iter().map(|seed| seed.path.as_str()).collect();
    assert!(seeds.len() == 3 && seeds.iter().all(|path| path.starts_with("/home/session/.config/opencode/")));
}

#[test]
fn no_secret_but_the_sessions_own_is_in_the_environment() {
    let command = command(&Tree::new(), |_| {}).unwrap();
    let config = variable(&command, "OPENCODE_CONFIG_CONTENT").unwrap();
    assert!(!config.contains("session-token") && config.contains("{env:KARTA_MODEL_TOKEN}"));
}

#[test]
fn the_folders_model_and_permissions_win() {
    let own = r#"{"model": "openai/pen", "permission": {"bash": "allow"}}"#;
    let config = configuration(&command(&tree(&[("opencode.json", own)]), |_| {}).unwrap());
    assert_eq!((config.get("model"), config.get("permission")), (None, None));
    assert!(config["provider"]["openai"]["models"]["pen"].is_object());
    assert!(config["provider"]["anthropic"]["models"]["big"].is_object());
}

#[test]
fn what_the_folder_starts_by_itself_can_be_switched_off() {
    let off = |launch: &mut Launch<'_>| {
        launch.policy = FolderPolicy { hooks: false, mcp: false, denied_tools: &[] }
    };
    let servers = r#"{"mcp": {"local": {"type": "local", "command": ["x"]}}}"#;
    let quiet = command(&tree(&[("opencode.json", servers), (".opencode/plugin/a.ts", "x")]), off).unwrap();
    assert_eq!(variable(&quiet, "OPENCODE_PURE"), Some("1"));
    assert_eq!(configuration(&quiet)["mcp"], json!({"local": {"enabled": false}}));

    let code = [(".opencode/plugin/watch.ts", "x"), (".opencode/tools/add.js", "x")];
    let inert = command(&tree(&code), off).unwrap();
    for file in ["/workspace/.opencode/plugin/watch.ts", "/workspace/.opencode/tools/add.js"] {
        let seed = inert.seeds.iter().find(|seed| seed.path == file);
        assert_eq!(seed.map(|seed| seed.content.as_slice()), Some(&b"export {}\n"[..]), "{file}");
    }
    let config = configuration(&inert);
    assert_eq!((&config["formatter"], &config["lsp"]), (&json!(false), &json!(false)));
    for named in [r#"{"plugins": ["./x.ts"]}"#, r#"{"plugin": ["some-plugin"]}"#] {
        let error = command(&tree(&[("opencode.json", named)]), off).unwrap_err().to_string();
        assert!(error.contains("opencode.json") && error.contains("take it out"), "{error}");
    }
    assert!(command(&folder(), |_| {}).unwrap().seeds.iter().all(|seed| !seed.path.ends_with("watch.ts")));
    assert_eq!(variable(&command(&folder(), |_| {}).unwrap(), "OPENCODE_PURE"), None);
}

#[test]
fn a_folder_with_code_of_its_own_keeps_its_packages() {
    let seeded = |files: &[(&str, &str)]| {
        let command = command(&tree(files), |_| {}).unwrap();
        command.seeds.iter().filter(|seed| seed.path.starts_with("/workspace/.opencode/")).count()
    };
    assert_eq!(seeded(&[(".opencode/agents/a.md", "x")]), 3);
    assert_eq!(seeded(&[(".opencode/agents/a.md", "x"), (".opencode/plugin/a.ts", "x")]), 0);
    assert_eq!(seeded(&[(".opencode/package.json", "{}")]), 0);
}
