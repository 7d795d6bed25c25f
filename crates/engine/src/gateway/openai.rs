//! `OpenAI`'s Chat Completions and Responses, as their public reference describes them: key as a bearer token; `usage` in the answer, in
//! the last chunk of a chat stream (when asked for by `stream_options.include_usage`) or in `response.completed`. Cached input is part of
//! the input count and is taken out of it here.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use bytes::Bytes;
use karta_types::Secret;
use serde_json::{Value, json};

use super::bound::Bound;
use super::provider::{Dialect, Route, Seen, count, hidden};

pub(super) const BASE: &str = "https://api.openai.com";
/// As its public reference says: `/v1/chat/completions` and `/v1/responses` under it.
pub(super) const OPENROUTER: &str = "https://openrouter.ai/api";

const CHAT: &str = "/v1/chat/completions";

pub(super) struct OpenAi;

impl Dialect for OpenAi {
    fn prefix(&self) -> &'static str {
        "/openai"
    }

    fn routes(&self) -> &'static [Route] {
        &[
            Route { path: "/v1/chat/completions", metered: true },
            Route { path: "/v1/responses", metered: true },
        ]
    }

    fn authorize(
        &self,
        headers: &mut HeaderMap,
        key: &Secret,
    ) -> Result<(), axum::http::header::InvalidHeaderValue> {
        headers.insert(AUTHORIZATION, hidden(&format!("Bearer {}", key.expose()))?);
        Ok(())
    }

    fn passed(&self) -> &'static [&'static str] {
        &["openai-beta"]
    }

    /// A chat stream says what it used only when asked to. The answer then has one more chunk, with no choices, which clients of
    /// this API know; nothing else of it changes.
    fn prepare(&self, path: &str, body: &Value) -> Option<Bytes> {
        let chat_stream = path == "/v1/chat/completions" && body.get("stream") == Some(&Value::Bool(true));
        let asked = body.pointer("/stream_options/include_usage") == Some(&Value::Bool(true));
        if !chat_stream || asked {
            return None;
        }
        let mut body = body.clone();
        match body.get_mut("stream_options") {
            Some(Value::Object(options)) => {
                options.insert("include_usage".to_owned(), Value::Bool(true));
            }
            _ => body["stream_options"] = json!({"include_usage": true}),
        }
        Some(body.to_string().into())
    }

    fn bound(&self, path: &str, body: &Value, bytes: usize) -> Bound {
        let names: &[&str] =
            if path == CHAT { &["max_completion_tokens", "max_tokens"] } else { &["max_output_tokens"] };
        let limit = names.iter().find_map(|name| body.get(*name).and_then(Value::as_u64));
        // Responses takes no limit below 16, as its public reference says.
        let least = if path == CHAT { 1 } else { 16 };
        // Tools that are not functions are run by the provider; an earlier answer or a stored prompt is input that is not here.
        let tools = body.get("tools").and_then(Value::as_array);
        let acts = tools.into_iter().flatten().any(|tool| {
            !matches!(tool.get("type").and_then(Value::as_str), Some("function" | "custom" | "local_shell"))
        });
        let elsewhere = ["previous_response_id", "conversation", "prompt", "web_search_options"]
            .iter()
            .any(|name| body.get(*name).is_some_and(|value| !value.is_null()));
        Bound::of(body, bytes, limit, least, acts || elsewhere)
    }

    fn limit(&self, path: &str, body: &mut Value, tokens: u64) {
        let name = if path != CHAT {
            "max_output_tokens"
        } else if body.get("max_tokens").is_some_and(Value::is_u64) {
            "max_tokens"
        } else {
            "max_completion_tokens"
        };
        body[name] = tokens.into();
    }

    fn count(&self, _path: &str, _body: &Value) -> Option<(&'static str, Value)> {
        None
    }

    fn observe(&self, seen: &mut Seen, value: &Value) {
        // Responses wraps the whole answer in the events that begin and end it.
        let answer = value.get("response").unwrap_or(value);
        if let Some(model) = answer.get("model").and_then(Value::as_str) {
            seen.model = Some(model.chars().take(200).collect());
        }
        if let Some(usage) = answer.get("usage").filter(|usage| usage.is_object()) {
            let input = count(usage, "prompt_tokens").or_else(|| count(usage, "input_tokens")).unwrap_or(0);
            let output =
                count(usage, "completion_tokens").or_else(|| count(usage, "output_tokens")).unwrap_or(0);
            let cached = ["/prompt_tokens_details/cached_tokens", "/input_tokens_details/cached_tokens"]
                .iter()
                .find_map(|pointer| usage.pointer(pointer).and_then(Value::as_u64))
                .unwrap_or(0)
                .min(input);
            seen.usage.input_tokens = input - cached;
            seen.usage.cache_read_tokens = cached;
            seen.usage.output_tokens = output;
            seen.complete = true;
        }
        let chat = value.pointer("/choices/0/delta/content").and_then(Value::as_str);
        let responses = value.get("delta").and_then(Value::as_str);
        seen.characters += chat.or(responses).map_or(0, |piece| piece.chars().count() as u64);
    }

    fn error(&self, _status: u16, kind: &str, message: &str) -> Value {
        json!({"error": {"message": message, "type": kind, "param": null, "code": kind}})
    }
}
