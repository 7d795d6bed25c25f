//! Questions to a person: what is open, and the answers in the harness's words.

use std::collections::BTreeMap;

use karta_types::event::AskKind;
use karta_types::message::{Answer, Decision};
use karta_types::session::PermissionMode;
use serde_json::{Value, json};

use super::wire::{id, list, mode_word, shortened, text, with_answers};
use crate::codec::Ask;
use crate::recent::Recent;

/// So many questions can be open at once; more are refused.
const MAX_OPEN: usize = 64;
/// The open questions' lines have at most so many bytes together; what is more is refused.
const MAX_OPEN_BYTES: usize = 16 << 20;
/// So many answered questions are remembered, so that none is asked again.
const MAX_REMEMBERED: usize = 4096;

/// A question that waits.
#[derive(Debug)]
struct Open {
    kind: AskKind,
    tool: String,
    input: Value,
    suggestions: Vec<Value>,
    /// Bytes of its line.
    size: usize,
}

/// The questions of one process.
#[derive(Debug)]
pub(super) struct Asks {
    open: BTreeMap<String, Open>,
    seen: Recent,
    /// Started in the mode that never asks, so the process can be put back into it.
    bypass: bool,
    allow_all: bool,
}

/// What to do with a question of the process.
#[derive(Debug)]
pub(super) enum Asked {
    /// Ask a person.
    Person(Ask),
    /// It was asked before.
    Again,
    /// Too many are open.
    TooMany,
}

impl Asks {
    /// No questions yet, in a process that was started in this mode.
    pub(super) fn new(mode: PermissionMode) -> Self {
        let bypass = mode == PermissionMode::AllowAll;
        Self { open: BTreeMap::new(), seen: Recent::new(MAX_REMEMBERED), bypass, allow_all: bypass }
    }

    /// Whether every tool is allowed without asking a person.
    pub(super) const fn allow_all(&self) -> bool {
        self.allow_all
    }

    /// Changes the mode; the word for the process. One that was not started in the mode that never asks can't be put into it: then
    /// it goes on asking, and the codec says yes.
    pub(super) fn mode(&mut self, mode: PermissionMode) -> &'static str {
        self.allow_all = mode == PermissionMode::AllowAll;
        if self.allow_all && !self.bypass { "default" } else { mode_word(mode) }
    }

    /// Takes a question in, whose line has `size` bytes. `plan` is the plan of an `ExitPlanMode` call, which the question itself leaves out.
    pub(super) fn take(
        &mut self,
        request_id: &str,
        request: &Value,
        plan: Option<&Value>,
        size: usize,
    ) -> Asked {
        if self.seen.contains(request_id) {
            return Asked::Again;
        }
        let bytes: usize = self.open.values().map(|open| open.size).sum();
        if self.open.len() >= MAX_OPEN || bytes + size > MAX_OPEN_BYTES {
            return Asked::TooMany;
        }
        self.seen.insert(request_id);
        let tool = id(request, "tool_name").unwrap_or("a tool").to_owned();
        let input = request.get("input").cloned().unwrap_or_else(|| json!({}));
        let kind = kind_of(&tool);
        let shown = match plan {
            Some(plan) if kind == AskKind::Plan && input.get("plan").is_none() => plan.clone(),
            _ => input.clone(),
        };
        let message = match kind {
            AskKind::ToolUse => in_words(&tool, request),
            AskKind::Question => list(&input, "questions")
                .iter()
                .filter_map(|question| text(question, "question"))
                .collect::<Vec<_>>()
                .join(" "),
            AskKind::Plan => "Is this plan right?".to_owned(),
        };
        let suggestions = list(request, "permission_suggestions").to_vec();
        self.open.insert(request_id.to_owned(), Open { kind, tool: tool.clone(), input, suggestions, size });
        Asked::Person(Ask { kind, tool, tool_input: shown, message: shortened(&message) })
    }

    /// A question is no longer open; whether it was.
    pub(super) fn withdraw(&mut self, request_id: &str) -> bool {
        self.open.remove(request_id).is_some()
    }

    /// Closes all; their ids.
    pub(super) fn close(&mut self) -> Vec<String> {
        std::mem::take(&mut self.open).into_keys().collect()
    }

    /// The answer in the harness's words; `None` if the question is not open.
    pub(super) fn answer(&mut self, request_id: &str, answer: &Answer) -> Option<Value> {
        let open = self.open.remove(request_id)?;
        if answer.decision == Decision::Deny {
            let reason = answer.message.as_deref().unwrap_or("The user refused this.");
            return Some(json!({"behavior": "deny", "message": reason}));
        }
        let input = answer.updated_input.clone().unwrap_or(open.input);
        let input = match &answer.answers {
            Some(answers) => with_answers(input, answers),
            None => input,
        };
        let mut response = json!({"behavior": "allow", "updatedInput": input});
        if answer.decision == Decision::ApproveSession && open.kind == AskKind::ToolUse {
            response["updatedPermissions"] = for_session(&open.tool, open.suggestions);
        }
        Some(response)
    }
}

/// What the harness suggests to allow from now on, kept to this session: other places would write into the workspace.
fn for_session(tool: &str, suggestions: Vec<Value>) -> Value {
    let kept: Vec<Value> = suggestions
        .into_iter()
        .filter_map(|mut suggestion| {
            suggestion.as_object_mut()?.insert("destination".to_owned(), json!("session"));
            Some(suggestion)
        })
        .collect();
    if kept.is_empty() {
        let rule = json!({"toolName": tool});
        return json!([{"type": "addRules", "rules": [rule], "behavior": "allow", "destination": "session"}]);
    }
    Value::Array(kept)
}

fn kind_of(tool: &str) -> AskKind {
    match tool {
        "AskUserQuestion" => AskKind::Question,
        "ExitPlanMode" => AskKind::Plan,
        _ => AskKind::ToolUse,
    }
}

/// `Bash: echo hi`: the tool and the telling part of its input.
fn in_words(tool: &str, request: &Value) -> String {
    let input = request.get("input").unwrap_or(&Value::Null);
    let telling = ["command", "file_path", "url", "pattern", "query"].iter().find_map(|key| text(input, key));
    match telling.or_else(|| text(request, "description")) {
        Some(words) => format!("{tool}: {words}"),
        None => tool.to_owned(),
    }
}
