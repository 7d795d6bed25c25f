//! Anthropic's Messages API, as its public reference describes it: `/v1/messages` and `/v1/messages/count_tokens`, key in `x-api-key`,
//! usage in `message_start` (input) and `message_delta` (running totals), cache classes apart from `input_tokens`.

use axum::http::HeaderMap;
use bytes::Bytes;
use karta_types::Secret;
use serde_json::{Value, json};

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
}
