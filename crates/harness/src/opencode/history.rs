//! The conversation so far, as the running server tells it.

use karta_types::Timestamp;
use karta_types::message::{Message, Part, Role};
use serde::Deserialize;
use serde_json::Value;

use super::parts::result;
use super::wire;

#[derive(Debug, Deserialize)]
struct Entry {
    info: wire::Info,
    #[serde(default)]
    parts: Vec<Value>,
}

/// Reads the body of `GET /session/{id}/message`; what is not understood is left out.
pub(super) fn read(body: Value) -> Vec<Message> {
    let Value::Array(entries) = body else { return Vec::new() };
    entries.into_iter().filter_map(|entry| Entry::deserialize(entry).ok()).filter_map(message).collect()
}

fn message(entry: Entry) -> Option<Message> {
    let role = match entry.info.role.as_str() {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => return None,
    };
    let mut parts = Vec::new();
    for part in entry.parts {
        if let Ok(part) = wire::Part::deserialize(part) {
            add(&mut parts, part);
        }
    }
    let words: Vec<&str> = parts
        .iter()
        .filter_map(|part| match part {
            Part::Text { text } => Some(text.as_str()),
            _ => None,
        })
        .collect();
    let created = entry.info.time.created.and_then(|millis| millis.checked_mul(1000));
    Some(Message {
        id: entry.info.id,
        role,
        text: words.join("\n"),
        parts,
        created_at: created.map(Timestamp::from_micros),
    })
}

fn add(parts: &mut Vec<Part>, part: wire::Part) {
    match part.kind.as_str() {
        "text" if !part.synthetic => parts.extend(part.text.map(|text| Part::Text { text })),
        "reasoning" => parts.extend(part.text.map(|text| Part::Reasoning { text })),
        "tool" => {
            let (Some(tool_name), Some(tool_use_id), Some(state)) = (part.tool, part.call, part.state) else {
                return;
            };
            let tool_input = state.input.clone();
            parts.push(Part::ToolUse { tool_use_id: tool_use_id.clone(), tool_name, tool_input });
            if let Some((output, is_error)) = result(state) {
                parts.push(Part::ToolResult { tool_use_id, output, is_error });
            }
        }
        _ => {}
    }
}
