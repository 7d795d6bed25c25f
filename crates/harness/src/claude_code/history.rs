//! The harness's own record of a session: one JSON object a line, most of it not conversation.

use std::collections::{HashMap, HashSet};

use karta_types::Timestamp;
use karta_types::message::{Message, Part, Role};
use serde_json::Value;

use super::wire::{SYNTHETIC, flag, list, text, tool_output};

/// Words that the harness writes in the user's name.
const NOT_THE_USER: [&str; 5] = [
    "<local-command-caveat>",
    "<local-command-stdout>",
    "<local-command-stderr>",
    "<task-notification>",
    "[Request interrupted by user",
];

/// Reads the conversation. Lines that can't be read are passed over, as the harness does: the last one may be cut.
pub(super) fn read(bytes: &[u8]) -> Vec<Message> {
    let mut history = History::default();
    for line in bytes.split(|&byte| byte == b'\n') {
        let Ok(line) = serde_json::from_slice::<Value>(line) else { continue };
        let skipped =
            ["isMeta", "isSidechain", "isCompactSummary", "isApiErrorMessage", "isVisibleInTranscriptOnly"];
        let uuid = text(&line, "uuid").unwrap_or_default();
        if skipped.iter().any(|key| flag(&line, key)) || !history.seen.insert(uuid.to_owned()) {
            continue;
        }
        match text(&line, "type") {
            Some("user") => history.user(uuid, &line),
            Some("assistant") => history.assistant(&line),
            _ => {}
        }
    }
    history.messages
}

#[derive(Default)]
struct History {
    messages: Vec<Message>,
    seen: HashSet<String>,
    /// The message of each tool call, where its result goes too.
    calls: HashMap<String, usize>,
}

impl History {
    fn assistant(&mut self, line: &Value) {
        let message = line.get("message").unwrap_or(&Value::Null);
        let Some(id) = text(message, "id").filter(|_| text(message, "model") != Some(SYNTHETIC)) else {
            return;
        };
        if self.messages.last().is_none_or(|last| last.id != id || last.role != Role::Assistant) {
            self.push(id, Role::Assistant, line);
        }
        let at = self.messages.len().saturating_sub(1);
        let Some(last) = self.messages.last_mut() else { return };
        for block in list(message, "content") {
            match text(block, "type").unwrap_or_default() {
                "text" => say(last, text(block, "text").unwrap_or_default()),
                "thinking" => {
                    let text = text(block, "thinking").unwrap_or_default().to_owned();
                    last.parts.push(Part::Reasoning { text });
                }
                "tool_use" | "server_tool_use" => {
                    let call = text(block, "id").unwrap_or_default();
                    self.calls.insert(call.to_owned(), at);
                    last.parts.push(Part::ToolUse {
                        tool_use_id: call.to_owned(),
                        tool_name: text(block, "name").unwrap_or_default().to_owned(),
                        tool_input: block.get("input").cloned().unwrap_or(Value::Null),
                    });
                }
                _ => {}
            }
        }
    }

    fn user(&mut self, uuid: &str, line: &Value) {
        let content = line.get("message").and_then(|message| message.get("content")).unwrap_or(&Value::Null);
        let mut words: Vec<String> = content.as_str().and_then(spoken).into_iter().collect();
        for block in content.as_array().into_iter().flatten() {
            match text(block, "type").unwrap_or_default() {
                "text" => words.extend(text(block, "text").and_then(spoken)),
                "image" => words.push("[image]".to_owned()),
                "tool_result" => self.tool_result(block),
                _ => {}
            }
        }
        if words.is_empty() {
            return;
        }
        self.push(uuid, Role::User, line);
        if let Some(last) = self.messages.last_mut() {
            for words in &words {
                say(last, words);
            }
        }
    }

    fn tool_result(&mut self, block: &Value) {
        let call = text(block, "tool_use_id").unwrap_or_default();
        let Some(message) = self.calls.remove(call).and_then(|at| self.messages.get_mut(at)) else { return };
        message.parts.push(Part::ToolResult {
            tool_use_id: call.to_owned(),
            output: tool_output(block.get("content")),
            is_error: flag(block, "is_error"),
        });
    }

    fn push(&mut self, id: &str, role: Role, line: &Value) {
        let created_at =
            line.get("timestamp").cloned().and_then(|at| serde_json::from_value::<Timestamp>(at).ok());
        self.messages.push(Message {
            id: id.to_owned(),
            role,
            text: String::new(),
            parts: Vec::new(),
            created_at,
        });
    }
}

fn say(message: &mut Message, words: &str) {
    if !message.text.is_empty() {
        message.text.push('\n');
    }
    message.text.push_str(words);
    message.parts.push(Part::Text { text: words.to_owned() });
}

/// What the user said, if it was the user. A command is stored in tags and was typed with a slash.
fn spoken(words: &str) -> Option<String> {
    let trimmed = words.trim_start();
    if NOT_THE_USER.iter().any(|mark| trimmed.starts_with(mark)) {
        return None;
    }
    if trimmed.starts_with("<command-") {
        let name = tagged(trimmed, "command-name")?;
        let args = tagged(trimmed, "command-args").unwrap_or_default();
        return Some(format!("{name} {args}").trim_end().to_owned());
    }
    Some(words.to_owned())
}

fn tagged<'a>(words: &'a str, tag: &str) -> Option<&'a str> {
    let (_, rest) = words.split_once(&format!("<{tag}>"))?;
    Some(rest.split_once(&format!("</{tag}>"))?.0.trim())
}
