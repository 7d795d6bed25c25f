//! Questions to people: permissions and the `question` tool.

use std::collections::BTreeMap;

use karta_types::event::AskKind;
use karta_types::message::{Answer, Decision};
use karta_types::session::PermissionMode;
use serde_json::{Value, json};

use super::parts::Parts;
use super::recent::Recent;
use super::wire::{Permission, Question, shortened, text};
use crate::codec::{Ask, Said};

/// What nobody asked for is refused with these words; the model reads them and goes on.
const NOBODY: &str = "Nobody is there to approve this, so it is refused. Go on without it.";
const PLANNING: &str = "Only looking and planning is allowed now, so this is refused.";
/// Open questions that are kept at once.
const MAX_OPEN: usize = 1024;

/// The questions of one process.
#[derive(Debug)]
pub(super) struct Asks {
    open: BTreeMap<String, Open>,
    /// Questions that came before the server said the whole of the call they are about.
    held: Vec<Held>,
    /// Every id that was asked or answered: never again.
    seen: Recent,
}

#[derive(Debug)]
enum Held {
    Permission(Permission),
    Question(Question),
}

#[derive(Debug)]
enum Open {
    Permission,
    /// The texts of the questions, in order.
    Questions(Vec<String>),
}

/// A request to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) path: String,
    pub(super) body: Value,
}

impl Reply {
    /// Whether it answers this question.
    pub(super) fn is_to(&self, request: &str) -> bool {
        self.path.split('/').nth(2) == Some(request)
    }
}

/// What to do with a question that came.
pub(super) enum Asked {
    /// A person must answer.
    Person(Said),
    /// The mode answers.
    Mode(Reply),
}

impl Asks {
    pub(super) const fn new() -> Self {
        Self { open: BTreeMap::new(), held: Vec::new(), seen: Recent::new(8192) }
    }

    /// A tool asks for permission. `None` when it asked before, or must wait for its call to be said.
    pub(super) fn permission(
        &mut self,
        asked: Permission,
        mode: PermissionMode,
        parts: &Parts,
    ) -> Option<Asked> {
        if !self.fresh(&asked.id) {
            return None;
        }
        let changes = matches!(asked.kind.as_str(), "edit" | "bash");
        let reply = match mode {
            PermissionMode::AllowAll => Some(allow(&asked.id, "once")),
            PermissionMode::AcceptEdits if asked.kind == "edit" => Some(allow(&asked.id, "once")),
            PermissionMode::DenyAll => Some(reject(&asked.id, Some(NOBODY))),
            PermissionMode::Plan if changes => Some(reject(&asked.id, Some(PLANNING))),
            _ => None,
        };
        if let Some(reply) = reply {
            return Some(Asked::Mode(reply));
        }
        self.open.insert(asked.id.clone(), Open::Permission);
        if asked.tool.as_ref().is_some_and(|tool| parts.is_pending(&tool.call)) {
            self.held.push(Held::Permission(asked));
            return None;
        }
        Some(Asked::Person(permission(asked, parts)))
    }

    /// The `question` tool asks.
    pub(super) fn question(&mut self, asked: Question, mode: PermissionMode, parts: &Parts) -> Option<Asked> {
        if !self.fresh(&asked.id) {
            return None;
        }
        if matches!(mode, PermissionMode::AllowAll | PermissionMode::DenyAll) {
            return Some(Asked::Mode(dismiss(&asked.id)));
        }
        self.open.insert(asked.id.clone(), Open::Questions(texts(&asked)));
        if asked.tool.as_ref().is_some_and(|tool| parts.is_pending(&tool.call)) {
            self.held.push(Held::Question(asked));
            return None;
        }
        Some(Asked::Person(question(asked)))
    }

    /// The questions that waited and whose call was said by now; or all of them.
    pub(super) fn release(&mut self, parts: &Parts, all: bool) -> Vec<Said> {
        let waits = |held: &Held| {
            let tool = match held {
                Held::Permission(asked) => asked.tool.as_ref(),
                Held::Question(asked) => asked.tool.as_ref(),
            };
            !all && tool.is_some_and(|tool| parts.is_pending(&tool.call))
        };
        let ready: Vec<Held> = self.held.extract_if(.., |held| !waits(held)).collect();
        let said = ready.into_iter().map(|held| match held {
            Held::Permission(asked) => permission(asked, parts),
            Held::Question(asked) => question(asked),
        });
        said.collect()
    }

    fn fresh(&mut self, id: &str) -> bool {
        let plain = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        plain && self.open.len() < MAX_OPEN && self.seen.insert(id)
    }

    /// A person answers; `None` if the question is not open (any more).
    pub(super) fn answer(&mut self, request: &str, answer: &Answer) -> Option<Reply> {
        let open = self.open.remove(request)?;
        Some(match (open, answer.decision) {
            (Open::Permission, Decision::Deny) => reject(request, answer.message.as_deref()),
            (Open::Permission, Decision::ApproveOnce) => allow(request, "once"),
            (Open::Permission, Decision::ApproveSession) => allow(request, "always"),
            (Open::Questions(_), Decision::Deny) => dismiss(request),
            (Open::Questions(texts), _) => {
                let chosen: Vec<Value> = texts.iter().map(|text| labels(answer, text)).collect();
                Reply { path: format!("/question/{request}/reply"), body: json!({ "answers": chosen }) }
            }
        })
    }

    /// The ids of the questions that are open, permissions or others.
    pub(super) fn open(&self, permissions: bool) -> impl Iterator<Item = &String> {
        let kind = move |open: &Open| matches!(open, Open::Permission) == permissions;
        self.open.iter().filter(move |(_, open)| kind(open)).map(|(id, _)| id)
    }

    /// The server closed a question; true if a person was asked and has not answered.
    pub(super) fn closed(&mut self, request: &str) -> bool {
        self.open.remove(request).is_some() & !self.unasked(request)
    }

    /// The turn is over, and with it every question. Answers those that a person was asked.
    pub(super) fn end_turn(&mut self) -> Vec<String> {
        let open = std::mem::take(&mut self.open).into_keys();
        open.filter(|request| !self.unasked(request)).collect()
    }

    /// Forgets a question that waits; true if there was one.
    fn unasked(&mut self, request: &str) -> bool {
        self.held
            .extract_if(.., |held| match held {
                Held::Permission(asked) => asked.id == request,
                Held::Question(asked) => asked.id == request,
            })
            .count()
            > 0
    }
}

fn permission(asked: Permission, parts: &Parts) -> Said {
    let call = asked.tool.as_ref().and_then(|tool| parts.call(&tool.call));
    let tool = call.map_or(asked.kind.as_str(), |(name, _)| name).to_owned();
    let tool_input = match call {
        Some((_, input)) if !input.is_null() => input.clone(),
        _ => asked.metadata,
    };
    let patterns = asked.patterns.join(", ");
    let message = shortened(&if patterns.is_empty() || patterns == "*" {
        asked.kind
    } else {
        format!("{}: {patterns}", asked.kind)
    });
    Said::Asked { request: asked.id, ask: Ask { kind: AskKind::ToolUse, tool, tool_input, message } }
}

fn question(asked: Question) -> Said {
    let message = shortened(&texts(&asked).join(" "));
    let tool_input = json!({ "questions": asked.questions });
    let ask = Ask { kind: AskKind::Question, tool: "question".to_owned(), tool_input, message };
    Said::Asked { request: asked.id, ask }
}

/// The texts of the questions, in order.
fn texts(asked: &Question) -> Vec<String> {
    let all = asked.questions.as_array();
    all.map(|all| all.iter().map(|question| text(question.get("question"))).collect()).unwrap_or_default()
}

/// The labels chosen for a question: always a list.
fn labels(answer: &Answer, question: &str) -> Value {
    match answer.answers.as_ref().and_then(|answers| answers.get(question)) {
        Some(Value::Array(all)) => all.iter().filter(|label| label.is_string()).cloned().collect(),
        Some(label @ Value::String(_)) => json!([label]),
        _ => json!([]),
    }
}

fn allow(request: &str, how: &str) -> Reply {
    Reply { path: format!("/permission/{request}/reply"), body: json!({ "reply": how }) }
}

fn reject(request: &str, message: Option<&str>) -> Reply {
    let mut body = json!({ "reply": "reject" });
    if let Some(message) = message.filter(|message| !message.trim().is_empty()) {
        body["message"] = message.into();
    }
    Reply { path: format!("/permission/{request}/reply"), body }
}

fn dismiss(request: &str) -> Reply {
    Reply { path: format!("/question/{request}/reject"), body: Value::Null }
}
