//! Anthropic's Messages API, as its public reference describes it: `/v1/messages` and `/v1/messages/count_tokens`, key in `x-api-key`,
//! usage in `message_start` (input) and `message_delta` (running totals), cache classes apart from `input_tokens`.

use axum::http::HeaderMap;
use bytes::Bytes;
use karta_types::Secret;
use serde_json::{Value, json};

use super::bound::Bound;
use super::provider::{Dialect, Route, Seen, count, hidden, name};

pub(super) const BASE: &str = "https://api.anthropic.com";

pub(super) struct Anthropic;

impl Dialect for Anthropic {
    fn prefix(&self) -> &'static str {
        "/anthropic"
    }

    fn routes(&self) -> &'static [Route] {
        &[
            Route { path: "/v1/messages", metered: true },
            Route { path: "/v1/messages/count_tokens", metered: false },
        ]
    }

    fn authorize(
        &self,
        headers: &mut HeaderMap,
        key: &Secret,
    ) -> Result<(), axum::http::header::InvalidHeaderValue> {
        headers.insert(name("x-api-key"), hidden(key.expose())?);
        Ok(())
    }

    fn passed(&self) -> &'static [&'static str] {
        &["anthropic-version", "anthropic-beta"]
    }

    fn prepare(&self, _path: &str, _body: &Value) -> Option<Bytes> {
        None
    }

    fn bound(&self, _path: &str, body: &Value, bytes: usize) -> Bound {
        let limit = body.get("max_tokens").and_then(Value::as_u64);
        // An answer has to be longer than the thinking it is allowed.
        let thinking = body.pointer("/thinking/budget_tokens").and_then(Value::as_u64).unwrap_or(0);
        let unbounded = acts_by_itself(body) || body.get("container").is_some_and(|it| !it.is_null());
        Bound::of(body, bytes, limit, thinking + 1, unbounded)
    }

    fn limit(&self, _path: &str, body: &mut Value, tokens: u64) {
        body["max_tokens"] = tokens.into();
    }

    /// What the provider does by itself during the call is in no count.
    fn count(&self, path: &str, body: &Value) -> Option<(&'static str, Value)> {
        if path != "/v1/messages" || acts_by_itself(body) {
            return None;
        }
        let mut asked = serde_json::Map::new();
        for field in ["model", "messages", "system", "tools", "tool_choice", "thinking"] {
            if let Some(value) = body.get(field) {
                asked.insert(field.to_owned(), value.clone());
            }
        }
        Some(("/v1/messages/count_tokens", asked.into()))
    }

    fn observe(&self, seen: &mut Seen, value: &Value) {
        match value.get("type").and_then(Value::as_str) {
            Some("message_start") => {
                if let Some(message) = value.get("message") {
                    read_model(seen, message);
                    read_usage(seen, message.get("usage"));
                }
            }
            Some("message_delta") => {
                read_usage(seen, value.get("usage"));
                seen.complete = true;
            }
            Some("content_block_delta") => {
                let delta = value.get("delta");
                for field in ["text", "thinking", "partial_json"] {
                    let piece = delta.and_then(|delta| delta.get(field)).and_then(Value::as_str);
                    seen.characters += piece.map_or(0, |piece| piece.chars().count() as u64);
                }
            }
            Some("message") => {
                read_model(seen, value);
                read_usage(seen, value.get("usage"));
                seen.complete = true;
            }
            _ => {}
        }
    }

    fn error(&self, _status: u16, kind: &str, message: &str) -> Value {
        json!({"type": "error", "error": {"type": kind, "message": message}})
    }
}

/// Whether the provider searches, fetches or runs things by itself: what those bring is input that the request does not show.
fn acts_by_itself(body: &Value) -> bool {
    let servers =
        body.get("mcp_servers").and_then(Value::as_array).is_some_and(|servers| !servers.is_empty());
    let tools = body.get("tools").and_then(Value::as_array);
    let acts = ["web_search_", "web_fetch_", "code_execution_", "mcp_toolset", "tool_search_"];
    servers
        || tools.into_iter().flatten().any(|tool| {
            let kind = tool.get("type").and_then(Value::as_str).unwrap_or_default();
            acts.iter().any(|start| kind.starts_with(start))
        })
}

fn read_model(seen: &mut Seen, message: &Value) {
    if let Some(model) = message.get("model").and_then(Value::as_str) {
        seen.model = Some(model.chars().take(200).collect());
    }
}

/// Each number is a running total: the last one said holds.
fn read_usage(seen: &mut Seen, usage: Option<&Value>) {
    let Some(usage) = usage else { return };
    let set = |field: &mut u64, name: &str| {
        if let Some(number) = count(usage, name) {
            *field = number;
        }
    };
    set(&mut seen.usage.input_tokens, "input_tokens");
    set(&mut seen.usage.output_tokens, "output_tokens");
    set(&mut seen.usage.cache_read_tokens, "cache_read_input_tokens");
    set(&mut seen.usage.cache_write_tokens, "cache_creation_input_tokens");
    if let Some(long) = usage.pointer("/cache_creation/ephemeral_1h_input_tokens").and_then(Value::as_u64) {
        seen.long_writes = long;
    }
}
