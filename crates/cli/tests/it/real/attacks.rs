//! What a hostile session tries against the engine around it, with the real harness in a real sandbox: the model token elsewhere, a
//! provider's other paths, ways out, what is another session's, approvals, what is left, secrets, floods. What a session tries against
//! its sandbox is in the sandbox crate.
//!
//! The attacks are programs in the release, run by the agent's own tool. Perl is a part of every image.

mod inside;
mod model;
mod outside;
mod secrets;

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};

use karta_client::SessionFilter;
use karta_types::RequestId;
use serde_json::json;

use super::*;

/// Emulated machines are slow; nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_mins(10);
/// What a provider's key of the attacker's own is.
const OWN: &str = "sk-own-0b7d";
/// What one session has, and no other may see.
const THEIRS: &str = "theirs-5c1e90b2";
/// What a tool's secret is.
const REAL: &str = "real-7e57a11c";
/// What the attacks in the release may ask for, which doesn't mean that they get it.
const RULES: &[&str] =
    &["127.0.0.1", "localhost", "169.254.169.254", "10.0.0.1", "192.168.0.1", "api.anthropic.com"];

/// A server with an attacker's release, and two sessions on it.
struct Ring {
    karta: Karta,
    gateway: SocketAddr,
    machine: bool,
    attacker: SessionId,
    victim: SessionId,
}

fn files(karta_toml: &str) -> Vec<(&str, &str)> {
    vec![
        ("CLAUDE.md", "# An app\n"),
        ("karta.toml", karta_toml),
        ("ask.pl", include_str!("attacks/ask.pl")),
        ("reach.pl", include_str!("attacks/reach.pl")),
        ("forge.pl", include_str!("attacks/forge.pl")),
        ("memory.pl", include_str!("attacks/memory.pl")),
    ]
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A script of the model: these commands, each a tool call, and the end.
fn script(commands: &[&str]) -> String {
    let mut steps: Vec<_> = commands
        .iter()
        .map(|command| json!({"tool": "Bash", "input": {"command": command, "description": "x"}}))
        .collect();
    steps.push(json!({"text": "tried"}));
    format!("go SCRIPT: {}", serde_json::Value::from(steps))
}

impl Ring {
    async fn new(isolation: &str) -> Self {
        let mut rules: Vec<_> = RULES.iter().map(|rule| (*rule).to_owned()).collect();
        rules.extend(outside::own_names());
        // Rules are refused where nothing can hold them.
        let held = isolation != "process";
        let manifest = if held { format!("[policy]\negress = {}\n", json!(rules)) } else { String::new() };
        let gateway = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let settings = format!(
            "isolation = \"{isolation}\"\ngateway_listen = \"{gateway}\"\n[limits]\nstart_seconds = 300\n"
        );
        let karta = Karta::serve_with(&files(&manifest), &settings, Options::default()).await;
        let (attacker, victim) = (karta.session().await, karta.session().await);
        Self { karta, gateway, machine: isolation == "microvm", attacker, victim }
    }

    /// Ends the sessions and the server in good order; whatever was tried, nothing of them is left, and the provider's key is nowhere.
    async fn end(self) {
        for session in self.karta.client.sessions(&SessionFilter::default()).await.unwrap().data {
            self.karta.client.delete_session(session.id).await.unwrap();
        }
        super::isolated::nothing_left(&self.karta.data.path().join("data"));
        let (log, data) = self.karta.stop().await;
        assert!(!log.contains(PLANTED));
        nowhere(&data.path().join("data"));
    }

    /// What a command in the attacker's sandbox says.
    async fn attack(&self, command: &str) -> String {
        said(&self.karta, self.attacker, command).await
    }

    /// Requests that the provider got.
    fn provider_got(&self) -> Vec<karta_model::Recorded> {
        self.karta.model.requests()
    }

    /// The resident memory of the server, at its most until now: KiB.
    fn memory(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.karta.child.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

/// Runs a command to the turn's end. Answers what it says.
async fn said(karta: &Karta, session: SessionId, command: &str) -> String {
    let events = tried(karta, session, &script(&[command])).await;
    assert_eq!(status(&events), TurnState::Completed, "{events:#?}");
    results(&events).into_iter().map(|(text, _)| text).collect()
}

/// Runs a turn to its end, whatever that is.
async fn tried(karta: &Karta, session: SessionId, text: &str) -> Vec<Event> {
    let mut stream = karta.client.send_streaming(session, &SendMessage::text(text)).unwrap();
    let mut events = Vec::new();
    let all = async {
        while let Some(event) = stream.next().await {
            let event = event.unwrap();
            if let Body::InputRequired(asked) = &event.body {
                karta.client.answer(session, asked.request_id, &decide(Decision::ApproveOnce)).await.unwrap();
            }
            events.push(event);
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("the turn ends");
    whole(&events);
    events
}

/// Runs a command, and then holds the turn at the question whether `next` may run: `then` gets what the command said and the question, and
/// answers whether it is allowed. Answers the turn's events, the held ones last.
async fn held<T>(
    karta: &Karta,
    session: SessionId,
    (command, next): (&str, &str),
    then: impl AsyncFnOnce(String, RequestId) -> (Decision, T),
) -> (T, Vec<Event>) {
    let text = script(&[command, next]);
    let mut stream = karta.client.send_streaming(session, &SendMessage::text(text)).unwrap();
    let mut events: Vec<Event> = Vec::new();
    let (mut then, mut got) = (Some(then), None);
    let all = async {
        while let Some(event) = stream.next().await {
            let event = event.unwrap();
            if let Body::InputRequired(asked) = &event.body {
                let seen: String = results(&events).into_iter().map(|(text, _)| text).collect();
                let mut decision = Decision::ApproveOnce;
                if !seen.is_empty()
                    && let Some(then) = then.take()
                {
                    let (decided, value) = then(seen, asked.request_id).await;
                    (decision, got) = (decided, Some(value));
                }
                karta.client.answer(session, asked.request_id, &decide(decision)).await.unwrap();
            }
            events.push(event);
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("the turn ends");
    whole(&events);
    assert_eq!(status(&events), TurnState::Completed, "{events:#?}");
    (got.unwrap_or_else(|| panic!("it never asked: {events:#?}")), events)
}

/// The model token in what a session printed.
fn token(said: &str) -> String {
    let at = said.find("karta_model_").unwrap_or_else(|| panic!("the token is in its environment: {said}"));
    said[at..].chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect()
}

const PRINT_TOKEN: &str = "echo \"<$ANTHROPIC_AUTH_TOKEN> <$ANTHROPIC_API_KEY>\"";

/// One test for each attack in namespaces. A machine takes its time here, so that there one test has them all.
macro_rules! attacks {
    ($($group:ident::$attack:ident)*) => {
        mod namespaces {
            $(#[tokio::test]
            #[ignore = "needs the real harnesses and an image: ./test runs it"]
            async fn $attack() {
                let ring = super::Ring::new("namespace").await;
                super::$group::$attack(&ring).await;
                ring.end().await;
            })*

            #[tokio::test]
            #[ignore = "needs the real harnesses and an image: ./test runs it"]
            async fn take_a_tools_secret() {
                super::secrets::take_a_tools_secret("namespace").await;
            }
        }

        mod machines {
            #[tokio::test]
            #[ignore = "needs the real harnesses, QEMU and an image, and some minutes: ./test runs it"]
            async fn every_attack_on_the_engine() {
                let ring = super::Ring::new("microvm").await;
                $(
                    eprintln!("{}", stringify!($attack));
                    super::$group::$attack(&ring).await;
                )*
                ring.end().await;
            }

            #[tokio::test]
            #[ignore = "needs the real harnesses, QEMU and an image, and some minutes: ./test runs it"]
            async fn take_a_tools_secret() {
                super::secrets::take_a_tools_secret("microvm").await;
            }
        }
    };
}

attacks! {
    model::use_the_model_token_elsewhere
    model::use_a_providers_other_paths
    outside::reach_what_is_outside
    outside::tunnel_through_the_dns
    inside::see_another_session
    inside::answer_an_approval_from_inside
    inside::forge_an_answer_in_the_harness
    model::find_a_credential_in_the_harness
    inside::flood
    model::use_a_token_after_the_end
}
