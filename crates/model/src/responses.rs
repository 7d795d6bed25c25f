//! The Responses shape.

use axum::response::Response;
use serde_json::{Value, json};

use crate::play::{event, json as answer, pieces, stream};
use crate::script::{Step, Turn, Usage, human};

/// The items of a request.
pub(crate) fn turns(body: &Value) -> Vec<Turn> {
    match body.get("input") {
        Some(Value::String(text)) => vec![Turn { assistant: false, words: human(text).map(str::to_owned) }],
        Some(Value::Array(items)) => items.iter().map(turn).collect(),
        _ => Vec::new(),
    }
}

fn turn(item: &Value) -> Turn {
    let assistant = item.get("role").and_then(Value::as_str) == Some("assistant")
        || item.get("type").and_then(Value::as_str) == Some("function_call");
    let user = item.get("role").and_then(Value::as_str) == Some("user");
    let words = match item.get("content") {
        Some(Value::String(text)) => human(text).map(str::to_owned),
        Some(Value::Array(parts)) => {
            let texts: Vec<_> = parts
                .iter()
                .filter_map(|part| part.get("text").and_then(Value::as_str).and_then(human))
                .collect();
            (!texts.is_empty()).then(|| texts.join("\n"))
        }
        _ => None,
    };
    Turn { assistant, words: words.filter(|_| user) }
}

fn items(step: &Step, id: &str) -> Vec<Value> {
    let mut items = Vec::new();
    if let Some(text) = &step.text {
        items.push(
            json!({"type": "message", "id": format!("msg_{id}"), "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": text, "annotations": []}]}),
        );
    }
    for (index, call) in step.calls().into_iter().enumerate() {
        items.push(json!({"type": "function_call", "id": format!("fc_{id}_{index}"), "status": "completed",
            "call_id": format!("call_{id}_{index}"), "name": call.name, "arguments": call.input.to_string()}));
    }
    items
}

pub(crate) fn play(step: &Step, used: Usage, body: &Value, id: &str, cut: bool) -> Response {
    let items = items(step, id);
    let input = used.input_tokens + used.cache_read_tokens;
    let response = |status: &str, output: &[Value], used_too: bool| {
        let usage = json!({
            "input_tokens": input, "output_tokens": used.output_tokens, "total_tokens": input + used.output_tokens,
            "input_tokens_details": {"cached_tokens": used.cache_read_tokens},
            "output_tokens_details": {"reasoning_tokens": 0},
        });
        json!({
            "id": format!("resp_{id}"), "object": "response", "created_at": 0, "status": status,
            "model": body.get("model"), "output": output, "usage": if used_too { usage } else { Value::Null },
        })
    };
    if body.get("stream") != Some(&Value::Bool(true)) {
        return answer(200, &response("completed", &items, true));
    }
    let mut frames = Vec::new();
    let mut push = |mut value: Value| {
        value["sequence_number"] = frames.len().into();
        frames.push(event(&value));
    };
    push(json!({"type": "response.created", "response": response("in_progress", &[], false)}));
    push(json!({"type": "response.in_progress", "response": response("in_progress", &[], false)}));
    for (index, item) in items.iter().enumerate() {
        let mut begun = item.clone();
        begun["status"] = "in_progress".into();
        let message = item.get("type") == Some(&json!("message"));
        if message {
            begun["content"] = json!([]);
        } else {
            begun["arguments"] = "".into();
        }
        push(json!({"type": "response.output_item.added", "output_index": index, "item": begun}));
        let item_id = item["id"].clone();
        if message {
            let text = item["content"][0]["text"].as_str().unwrap_or_default();
            let part = |text: &str| json!({"type": "output_text", "text": text, "annotations": []});
            let at = |kind: &str, more: Value| {
                let mut value =
                    json!({"type": kind, "item_id": item_id, "output_index": index, "content_index": 0});
                if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
                    value.extend(more);
                }
                value
            };
            push(at("response.content_part.added", json!({"part": part("")})));
            for piece in pieces(text) {
                push(at("response.output_text.delta", json!({"delta": piece})));
            }
            push(at("response.output_text.done", json!({"text": text})));
            push(at("response.content_part.done", json!({"part": part(text)})));
        } else {
            let arguments = item["arguments"].as_str().unwrap_or_default();
            for piece in pieces(arguments) {
                push(json!({"type": "response.function_call_arguments.delta", "item_id": item_id,
                    "output_index": index, "delta": piece}));
            }
            push(json!({"type": "response.function_call_arguments.done", "item_id": item_id,
                "output_index": index, "arguments": arguments}));
        }
        push(json!({"type": "response.output_item.done", "output_index": index, "item": item}));
    }
    push(json!({"type": "response.completed", "response": response("completed", &items, true)}));
    stream(step, frames, cut)
}
