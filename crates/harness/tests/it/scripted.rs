//! The scripted harness: its player and its codec, together as they run and each against damage.

use std::collections::VecDeque;

use karta_harness::launch::{FolderPolicy, Gateway, Native};
use karta_harness::scripted::{Action, FILE, Player, Scripted};
use karta_harness::transcript::{Do, Step};
use karta_harness::{Codec, End, Harness, HistorySource, Launch, Out, Said, Tree};
use karta_types::message::{Answer, Content, Decision, Role};
use karta_types::session::PermissionMode;
use karta_types::{ErrorCode, Micros, Secret};

use crate::laws;

const SCRIPT: &str = r#"{
  "agents": ["helper"],
  "history": true,
  "turns": [
    {"steps": [{"think": "hm"}, {"say": "Hello. "}, {"repeat": {"times": 3, "say": "x "}},
               {"tool": {"name": "look", "input": {"at": 1}, "output": "seen"}},
               {"use": {"model": "m", "input_tokens": 7, "output_tokens": 2, "cost_micros": 9}}]},
    {"steps": [{"say": "Second."}]},
    {"match": "approve", "steps": [{"ask": {"tool": "write", "input": {"file": "a"}, "message": "Write?",
        "approved": [{"say": "Written."}], "denied": [{"say": "Left alone."}]}}]},
    {"match": "hang", "steps": [{"say": "Waiting."}, {"hang": false}]},
    {"match": "pause", "steps": [{"say": "One."}, {"wait_ms": 5}, {"say": "Two."}]},
    {"match": "fail", "steps": [{"fail": {"code": "provider_overloaded", "message": "too much"}}]},
    {"match": "noise", "steps": [{"raw": "no json\n"}, {"raw": "{\"a\":1}\n"}, {"notice": "still here"}]},
    {"match": "flood", "steps": [{"flood": 9000000}, {"say": "after"}]},
    {"match": "exit", "steps": [{"stderr": "why"}, {"exit": 3}]}
  ]
}"#;

fn with_launch<T>(then: impl FnOnce(&Launch<'_>) -> T) -> T {
    let gateway = Gateway {
        anthropic: String::new(),
        openai: String::new(),
        token: Secret::new(String::new()),
        provider: String::new(),
        model: String::new(),
        small_model: String::new(),
    };
    let tree: Tree = [(FILE, SCRIPT)].into_iter().collect();
    then(&Launch {
        program: "",
        version: "1",
        workspace: "/workspace",
        home: "/home/session",
        temp: "/temp",
        tree: &tree,
        title: "",
        native: Native::New("n-1".to_owned()),
        gateway: &gateway,
        agent: None,
        permission_mode: PermissionMode::Default,
        thinking_budget: None,
        policy: FolderPolicy::default(),
        env: &[],
    })
}

fn codec() -> Box<dyn Codec> {
    with_launch(|launch| Scripted.codec(launch).unwrap())
}

/// Player and codec joined, recorded as they go.
struct Joined {
    player: Player,
    codec: Box<dyn Codec>,
    steps: Vec<Step>,
    said: VecDeque<Said>,
    kept: Vec<u8>,
    stderr: String,
}

impl Joined {
    fn new(history: &[u8]) -> Self {
        let player = Player::new(SCRIPT, "n-1", history).unwrap();
        let (steps, said, kept) = (Vec::new(), VecDeque::new(), Vec::new());
        let mut joined = Self { player, codec: codec(), steps, said, kept, stderr: String::new() };
        let mut out = Out::default();
        joined.codec.start(&mut out);
        joined.heard(out);
        joined.run();
        joined
    }

    fn input(&mut self, input: Do) {
        self.steps.push(Step::Do(input.clone()));
        let mut out = Out::default();
        self.codec.input(input.into(), &mut out);
        self.heard(out);
        self.run();
    }

    fn send(&mut self, text: &str) {
        let content = vec![Content::Text { text: text.to_owned() }];
        self.input(Do::Message { id: "m".to_owned(), content, agent: None, thinking: false });
    }

    fn answer(&mut self, decision: Decision) {
        let request = self.said.iter().rev().find_map(|said| match said {
            Said::Asked { request, .. } => Some(request.clone()),
            _ => None,
        });
        let answer = Answer { decision, message: None, updated_input: None, answers: None };
        self.input(Do::Answer { request: request.unwrap(), answer });
    }

    fn heard(&mut self, out: Out) {
        self.said.extend(out.said.into_iter().map(|(said, _)| said));
        for write in out.writes {
            for line in write.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
                self.steps.push(Step::In { line: String::from_utf8(line.to_vec()).unwrap() });
                self.player.line(line);
            }
        }
    }

    /// Plays until the player listens, or ends. Waits pass at once.
    fn run(&mut self) {
        let mut written = Vec::new();
        let status = loop {
            match self.player.next_action() {
                Action::Write(bytes) => written.extend(bytes),
                Action::Stderr(text) => self.stderr.push_str(&text),
                Action::Append(bytes) => self.kept.extend(bytes),
                Action::Wait(_) => {}
                Action::Listen => break None,
                Action::Exit(status) => break Some(status),
            }
        };
        let mut out = Out::default();
        for line in written.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            self.steps.push(Step::Out { line: String::from_utf8(line.to_vec()).unwrap() });
        }
        self.codec.output(&written, &mut out);
        if status.is_some() {
            let stderr = self.stderr.clone();
            self.codec.exited(status, &stderr, &mut out);
            self.steps.push(Step::Exit { status, stderr });
        }
        self.heard(out);
    }

    fn text(&mut self) -> String {
        self.said
            .drain(..)
            .filter_map(|said| match said {
                Said::Text { text, .. } => Some(text),
                _ => None,
            })
            .collect()
    }

    fn end(&self) -> Option<&End> {
        match self.said.back() {
            Some(Said::Ended(end)) => Some(end),
            _ => None,
        }
    }

    fn transcript(&self) -> String {
        self.steps.iter().map(|step| serde_json::to_string(step).unwrap() + "\n").collect()
    }
}

fn completed() -> End {
    End::Completed { stop_reason: Some("end_turn".to_owned()) }
}

#[test]
fn the_laws_hold_for_a_whole_session() {
    let mut joined = Joined::new(b"");
    joined.send("hi");
    joined.send("approve this");
    joined.answer(Decision::ApproveOnce);
    joined.send("approve this too");
    joined.input(Do::Interrupt);
    joined.send("hang");
    joined.input(Do::Interrupt);
    joined.send("fail");
    joined.send("noise");
    joined.send("again");
    joined.send("exit");
    let transcript = joined.transcript();
    laws::hold(codec, &transcript);
    insta::assert_snapshot!("scripted-session", laws::shown(codec, &transcript));
}

#[test]
fn a_plain_turn_says_every_kind_of_thing() {
    let mut joined = Joined::new(b"");
    assert_eq!(joined.said, [Said::Ready]);
    joined.send("hi");
    assert_eq!(joined.end(), Some(&completed()));
    let used = joined.said.iter().find_map(|said| match said {
        Said::Used { model, usage, cost } => Some((model.clone(), usage.total(), *cost)),
        _ => None,
    });
    assert_eq!(used, Some(("m".to_owned(), 9, Micros::new(9))));
    assert_eq!(joined.text(), "Hello. x x x ");
}

#[test]
fn turns_without_words_to_match_follow_one_another_and_the_last_stays() {
    let mut joined = Joined::new(b"");
    joined.send("a");
    joined.text();
    for _ in 0..2 {
        joined.send("b");
        assert_eq!(joined.text(), "Second.");
    }
}

#[test]
fn what_follows_a_question_depends_on_the_answer() {
    for (decision, text) in [(Decision::ApproveOnce, "Written."), (Decision::Deny, "Left alone.")] {
        let mut joined = Joined::new(b"");
        joined.send("approve");
        assert_eq!(joined.end(), None);
        joined.answer(decision);
        assert_eq!(joined.end(), Some(&completed()));
        assert_eq!(joined.text(), text);
    }
}

#[test]
fn an_interrupt_ends_the_turn_and_the_next_is_played() {
    let mut joined = Joined::new(b"");
    joined.send("hang");
    assert_eq!(joined.end(), None);
    joined.input(Do::Interrupt);
    assert_eq!(joined.end(), Some(&End::Interrupted));
    joined.send("approve");
    assert!(matches!(joined.said.back(), Some(Said::Asked { .. })));
}

#[test]
fn a_message_into_a_turn_is_said_back_in_it() {
    let mut joined = Joined::new(b"");
    joined.send("approve");
    joined.send("and hurry");
    joined.answer(Decision::Deny);
    assert_eq!(joined.said.iter().filter(|said| matches!(said, Said::Ended(_))).count(), 1);
    assert!(joined.text().contains("and hurry"));
}

#[test]
fn a_flood_a_failure_and_an_exit_end_their_turns() {
    let cases = [
        ("flood", ErrorCode::HarnessOutputInvalid),
        ("fail", ErrorCode::ProviderOverloaded),
        ("exit", ErrorCode::HarnessFailed),
    ];
    for (text, expected) in cases {
        let mut joined = Joined::new(b"");
        joined.send(text);
        let ends: Vec<_> = joined.said.iter().filter(|said| matches!(said, Said::Ended(_))).collect();
        let [Said::Ended(End::Failed { code, message })] = ends[..] else { panic!("{text}: {ends:?}") };
        assert_eq!(*code, expected, "{message}");
        assert!(text != "exit" || message.contains("status 3") && message.contains("why"), "{message}");
    }
}

#[test]
fn the_conversation_is_kept_and_gone_on_with() {
    let mut first = Joined::new(b"");
    first.send("a");
    let kept = first.kept.clone();
    let history = Scripted.read_history(&kept).unwrap();
    let roles: Vec<_> = history.iter().map(|message| (message.role, message.text.as_str())).collect();
    assert_eq!(roles, [(Role::User, "a"), (Role::Assistant, "Hello. x x x ")]);
    let HistorySource::File(_) = Scripted.history_source("n-1") else { panic!("no file") };

    let mut second = Joined::new(&kept);
    second.said.clear();
    second.send("b");
    assert_eq!(second.text(), "Second.");
}

#[test]
fn a_script_that_cannot_be_read_is_an_error_with_its_place() {
    for (script, words) in [("{\"turn\": []}", "turn"), ("{\n \"turns\": 1}", "line 2")] {
        let tree: Tree = [(FILE, script)].into_iter().collect();
        let error = Scripted.discover(&tree).unwrap_err().to_string();
        assert!(error.contains(FILE) && error.contains(words), "{error}");
    }
    let tree: Tree = [(FILE, SCRIPT)].into_iter().collect();
    assert_eq!(Scripted.discover(&tree).unwrap().agents[0].name, "helper");
}

#[test]
fn the_command_names_script_session_and_history() {
    let command = with_launch(|launch| Scripted.command(launch).unwrap());
    assert_eq!(command.program, karta_harness::scripted::PROGRAM);
    assert_eq!(command.args[..2], ["/workspace/karta.script.json", "n-1"]);
    assert!(command.args[2].starts_with("/home/session/"));
}
