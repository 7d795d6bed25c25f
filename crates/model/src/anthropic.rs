//! The Messages shape.

use axum::response::Response;
use serde_json::{Value, json};

use crate::play::{event, json as answer, pieces, stream};
use crate::script::{Step, Turn, Usage, human};

/// The messages of a request. Words that the client composes (reminders) are not the human's, nor is text beside a tool's result.
pub(crate) fn turns(body: &Value) -> Vec<Turn> {
    let messages = body.get("messages").and_then(Value::as_array);
    let turn = |message: &Value| {
        // Claude Code also sends messages of the role `system` between the others.
        let role = message.get("role").and_then(Value::as_str).unwrap_or_default();
        let assistant = role == "assistant";
        let words = match message.get("content") {
            Some(Value::String(text)) => human(text).map(str::to_owned),
            Some(Value::Array(blocks)) => {
                let kind = |block: &Value| block.get("type").and_then(Value::as_str).map(str::to_owned);
                let results = blocks.iter().any(|block| kind(block).as_deref() == Some("tool_result"));
                // Clients join messages that follow one another: the last one counts.
                let texts = blocks.iter().rev();
                let last =
                    texts.filter_map(|block| block.get("text").and_then(Value::as_str)).find_map(human);
                // Words beside a tool's result steer; only a script of their own begins anew.
                last.filter(|words| !results || words.contains("SCRIPT:")).map(str::to_owned)
            }
            _ => None,
        };
        Turn { assistant, words: words.filter(|_| role == "user") }
    };
    messages.into_iter().flatten().map(turn).collect()
}

/// Whether the call is a helper of the client (a title, a summary): it has no tools.
pub(crate) fn helper(body: &Value) -> bool {
    body.get("tools").and_then(Value::as_array).is_none_or(Vec::is_empty)
        && body.get("system").is_some_and(|system| system.to_string().to_lowercase().contains("title"))
}

fn usage(used: &Usage, output: u64) -> Value {
    json!({
        "input_tokens": used.input_tokens, "output_tokens": output,
        "cache_read_input_tokens": used.cache_read_tokens, "cache_creation_input_tokens": used.cache_write_tokens,
    })
}

/// The content blocks of a step.
fn blocks(step: &Step, id: &str) -> Vec<Value> {
    let mut blocks = Vec::new();
    if let Some(thinking) = &step.thinking {
        blocks.push(json!({"type": "thinking", "thinking": thinking, "signature": "c2NyaXB0ZWQ="}));
    }
    if let Some(text) = &step.text {
        blocks.push(json!({"type": "text", "text": text}));
    }
    for (index, call) in step.calls().into_iter().enumerate() {
        let id = format!("toolu_{id}_{index}");
        blocks.push(json!({"type": "tool_use", "id": id, "name": call.name, "input": call.input}));
    }
    if blocks.is_empty() {
        blocks.push(json!({"type": "text", "text": ""}));
    }
    blocks
}

fn stop(step: &Step) -> String {
    let natural = if step.calls().is_empty() { "end_turn" } else { "tool_use" };
    step.stop.clone().unwrap_or_else(|| natural.to_owned())
}

pub(crate) fn play(step: &Step, used: Usage, body: &Value, id: &str, cut: bool) -> Response {
    let model = body.get("model").cloned().unwrap_or_default();
    let blocks = blocks(step, id);
    let message = |content: Value, stop: Value, output: u64| {
        json!({
            "id": format!("msg_{id}"), "type": "message", "role": "assistant", "model": model, "content": content,
            "stop_reason": stop, "stop_sequence": null, "usage": usage(&used, output),
        })
    };
    if body.get("stream") != Some(&Value::Bool(true)) {
        return answer(200, &message(Value::Array(blocks), stop(step).into(), used.output_tokens));
    }
    let start = message(json!([]), Value::Null, 1);
    let mut frames =
        vec![event(&json!({"type": "message_start", "message": start})), event(&json!({"type": "ping"}))];
    for (index, block) in blocks.iter().enumerate() {
        let delta =
            |delta: Value| event(&json!({"type": "content_block_delta", "index": index, "delta": delta}));
        let text = |name: &str| block.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (empty, deltas) = match block.get("type").and_then(Value::as_str) {
            Some("thinking") => {
                let mut deltas: Vec<_> = pieces(&text("thinking"))
                    .into_iter()
                    .map(|piece| delta(json!({"type": "thinking_delta", "thinking": piece})))
                    .collect();
                deltas.push(delta(json!({"type": "signature_delta", "signature": text("signature")})));
                (json!({"type": "thinking", "thinking": "", "signature": ""}), deltas)
            }
            Some("tool_use") => {
                let input = block.get("input").map(Value::to_string).unwrap_or_default();
                let deltas = pieces(&input)
                    .into_iter()
                    .map(|piece| delta(json!({"type": "input_json_delta", "partial_json": piece})))
                    .collect();
                (json!({"type": "tool_use", "id": text("id"), "name": text("name"), "input": {}}), deltas)
            }
            _ => {
                let deltas = pieces(&text("text"))
                    .into_iter()
                    .map(|piece| delta(json!({"type": "text_delta", "text": piece})))
                    .collect();
                (json!({"type": "text", "text": ""}), deltas)
            }
        };
        frames.push(event(&json!({"type": "content_block_start", "index": index, "content_block": empty})));
        frames.extend(deltas);
        frames.push(event(&json!({"type": "content_block_stop", "index": index})));
    }
    frames.push(event(&json!({
        "type": "message_delta", "delta": {"stop_reason": stop(step), "stop_sequence": null},
        "usage": usage(&used, used.output_tokens),
    })));
    frames.push(event(&json!({"type": "message_stop"})));
    stream(step, frames, cut)
}

/// An error, as the provider shapes it.
pub(crate) fn error(status: u16, message: Option<&str>) -> Value {
    let (kind, usual) = match status {
        400 => ("invalid_request_error", "Your credit balance is too low to access the API."),
        401 => ("authentication_error", "invalid x-api-key"),
        402 => ("billing_error", "Payment is required."),
        404 => ("not_found_error", "not found"),
        429 => ("rate_limit_error", "This request would exceed the rate limit."),
        529 => ("overloaded_error", "Overloaded"),
        _ => ("api_error", "Internal server error"),
    };
    json!({"type": "error", "error": {"type": kind, "message": message.unwrap_or(usual)}})
}
