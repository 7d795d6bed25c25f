//! The Chat Completions shape.

use axum::response::Response;
use serde_json::{Value, json};

use crate::play::{data, json as answer, pieces, stream};
use crate::script::{Step, Turn, Usage, human};

/// The messages of a request.
pub(crate) fn turns(body: &Value) -> Vec<Turn> {
    let messages = body.get("messages").and_then(Value::as_array);
    let turn = |message: &Value| {
        let role = message.get("role").and_then(Value::as_str).unwrap_or_default();
        let words = match message.get("content") {
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
        Turn { assistant: role == "assistant", words: words.filter(|_| role == "user") }
    };
    messages.into_iter().flatten().map(turn).collect()
}

/// Whether the call is a helper of the client: no tools, and a system prompt about a title.
pub(crate) fn helper(body: &Value) -> bool {
    let system = body.pointer("/messages/0/content").map(Value::to_string).unwrap_or_default();
    body.get("tools").and_then(Value::as_array).is_none_or(Vec::is_empty) && system.contains("title")
}

fn usage(used: &Usage) -> Value {
    let prompt = used.input_tokens + used.cache_read_tokens;
    json!({
        "prompt_tokens": prompt, "completion_tokens": used.output_tokens,
        "total_tokens": prompt + used.output_tokens,
        "prompt_tokens_details": {"cached_tokens": used.cache_read_tokens},
    })
}

fn finish(step: &Step) -> &str {
    match step.stop.as_deref() {
        Some("max_tokens") => "length",
        Some(other) => other,
        None if step.calls().is_empty() => "stop",
        None => "tool_calls",
    }
}

pub(crate) fn play(step: &Step, used: Usage, body: &Value, id: &str, cut: bool) -> Response {
    let model = body.get("model").cloned().unwrap_or_default();
    let calls: Vec<_> = step
        .calls()
        .into_iter()
        .enumerate()
        .map(|(index, call)| {
            json!({"index": index, "id": format!("call_{id}_{index}"), "type": "function",
                "function": {"name": call.name, "arguments": call.input.to_string()}})
        })
        .collect();
    if body.get("stream") != Some(&Value::Bool(true)) {
        let mut message = json!({"role": "assistant", "content": step.text});
        if !calls.is_empty() {
            message["tool_calls"] = Value::Array(calls);
        }
        return answer(
            200,
            &json!({
                "id": format!("chatcmpl-{id}"), "object": "chat.completion", "created": 0, "model": model,
                "choices": [{"index": 0, "message": message, "finish_reason": finish(step)}], "usage": usage(&used),
            }),
        );
    }
    let chunk = |choices: Value, usage: Value| {
        let mut chunk = json!({
            "id": format!("chatcmpl-{id}"), "object": "chat.completion.chunk", "created": 0, "model": model,
            "choices": choices,
        });
        if !usage.is_null() {
            chunk["usage"] = usage;
        }
        data(&chunk)
    };
    let delta =
        |delta: Value| chunk(json!([{"index": 0, "delta": delta, "finish_reason": null}]), Value::Null);
    let mut frames = vec![delta(json!({"role": "assistant", "content": ""}))];
    for (text, field) in [(&step.thinking, "reasoning_content"), (&step.text, "content")] {
        for piece in text.iter().flat_map(|text| pieces(text)) {
            frames.push(delta(json!({ field: piece })));
        }
    }
    for call in calls {
        frames.push(delta(json!({ "tool_calls": [call] })));
    }
    frames.push(chunk(json!([{"index": 0, "delta": {}, "finish_reason": finish(step)}]), Value::Null));
    if body.pointer("/stream_options/include_usage") == Some(&Value::Bool(true)) {
        frames.push(chunk(json!([]), usage(&used)));
    }
    frames.push("data: [DONE]\n\n".into());
    stream(step, frames, cut)
}

/// An error, as the provider shapes it.
pub(crate) fn error(status: u16, message: Option<&str>) -> Value {
    let (kind, usual) = match status {
        400 => ("insufficient_quota", "You exceeded your current quota."),
        401 => ("invalid_api_key", "Incorrect API key provided."),
        404 => ("not_found", "not found"),
        429 => ("rate_limit_exceeded", "Rate limit reached."),
        529 => ("overloaded", "Provider is overloaded"),
        _ => ("server_error", "The server had an error."),
    };
    json!({"error": {"message": message.unwrap_or(usual), "type": kind, "param": null, "code": kind}})
}
