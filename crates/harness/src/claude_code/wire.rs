//! The words of the wire: looking into lines of the process, and making lines for it. Nothing here keeps state.

use karta_types::Usage;
use karta_types::message::Content;
use karta_types::session::PermissionMode;
use serde_json::{Map, Value, json};

/// Ids longer than this are not ids: what carries them is not listened to.
const MAX_ID: usize = 200;

/// Messages for people are cut here.
const MAX_MESSAGE: usize = 600;

/// The model of messages that the harness writes itself.
pub(super) const SYNTHETIC: &str = "<synthetic>";

/// A text field.
pub(super) fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

/// A field that is an id: short and not empty.
pub(super) fn id<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    text(value, key).filter(|id| !id.is_empty() && id.len() <= MAX_ID)
}

/// A field that is a count.
pub(super) fn number(value: &Value, key: &str) -> Option<u64> {
    value.get(key)?.as_u64()
}

/// An HTTP status.
pub(super) fn status(value: &Value, key: &str) -> Option<u16> {
    number(value, key).and_then(|status| u16::try_from(status).ok())
}

/// A field that is true.
pub(super) fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}

/// The items of a list, none if it is no list.
pub(super) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Puts the counts of a `usage` object over those known so far.
pub(super) fn count(usage: &mut Usage, wire: &Value) {
    let put = |to: &mut u64, key| *to = number(wire, key).unwrap_or(*to);
    put(&mut usage.input_tokens, "input_tokens");
    put(&mut usage.output_tokens, "output_tokens");
    put(&mut usage.cache_read_tokens, "cache_read_input_tokens");
    put(&mut usage.cache_write_tokens, "cache_creation_input_tokens");
}

/// What a tool said: text blocks are put together, anything else stays as it is.
pub(super) fn tool_output(content: Option<&Value>) -> Value {
    let Some(content) = content else { return Value::Null };
    let Some(blocks) = content.as_array() else { return content.clone() };
    let texts: Option<Vec<&str>> = blocks
        .iter()
        .map(|block| text(block, "text").filter(|_| text(block, "type") == Some("text")))
        .collect();
    texts.map_or_else(|| content.clone(), |texts| Value::String(texts.join("\n")))
}

/// A message for people, cut to a decent length.
pub(super) fn shortened(message: &str) -> String {
    let message = message.trim();
    if message.len() <= MAX_MESSAGE {
        return message.to_owned();
    }
    let end = (0..=MAX_MESSAGE).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
    format!("{}…", &message[..end])
}

/// The harness's word for a mode.
pub(super) const fn mode_word(mode: PermissionMode) -> &'static str {
    match mode {
        PermissionMode::Default => "default",
        PermissionMode::AcceptEdits => "acceptEdits",
        PermissionMode::Plan => "plan",
        PermissionMode::DenyAll => "dontAsk",
        PermissionMode::AllowAll => "bypassPermissions",
    }
}

/// A request of ours.
pub(super) fn control_request(id: &str, request: &Value) -> Value {
    json!({"type": "control_request", "request_id": id, "request": request})
}

/// Our answer to a request of the process.
pub(super) fn control_success(id: &str, response: &Value) -> Value {
    json!({"type": "control_response", "response": {"subtype": "success", "request_id": id, "response": response}})
}

/// Our refusal of a request of the process.
pub(super) fn control_error(id: &str, error: &str) -> Value {
    json!({"type": "control_response", "response": {"subtype": "error", "request_id": id, "error": error}})
}

/// A message of the user. Words alone go as one text, so that a slash command at their start is one.
pub(super) fn user_message(uuid: &str, content: &[Content]) -> Value {
    let words = |part: &Content| match part {
        Content::Text { text } => Some(text.clone()),
        Content::File { name, .. } => Some(format!("[attached file: {name}]")),
        Content::Image { .. } => None,
    };
    let all: Option<Vec<String>> = content.iter().map(words).collect();
    let content = all.map_or_else(
        || Value::Array(content.iter().map(|part| block(part, words(part))).collect()),
        |texts| Value::String(texts.join("\n\n")),
    );
    json!({
        "type": "user",
        "message": {"role": "user", "content": content},
        "parent_tool_use_id": null,
        "session_id": "",
        "uuid": uuid,
    })
}

fn block(part: &Content, words: Option<String>) -> Value {
    match part {
        Content::Image { media_type, data } => {
            json!({"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}})
        }
        Content::Text { .. } | Content::File { .. } => {
            json!({"type": "text", "text": words.unwrap_or_default()})
        }
    }
}

/// The answers to questions, put into the input of the tool that asked them. Several choices become one text.
pub(super) fn with_answers(mut input: Value, answers: &Map<String, Value>) -> Value {
    let texts = answers.iter().map(|(question, answer)| {
        let text = match answer {
            Value::String(one) => one.clone(),
            Value::Array(many) => {
                let many = many.iter().map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned));
                many.collect::<Vec<_>>().join(", ")
            }
            other => other.to_string(),
        };
        (question.clone(), Value::String(text))
    });
    let texts = Value::Object(texts.collect());
    match &mut input {
        Value::Object(fields) => {
            fields.insert("answers".to_owned(), texts);
            input
        }
        _ => json!({"answers": texts}),
    }
}
