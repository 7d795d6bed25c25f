//! What is said in a turn: whole messages, tools and their results, and questions.

use bytes::Bytes;
use serde_json::{Value, json};

use super::super::asks::Asked;
use super::super::stream::At;
use super::super::wire;
use super::super::wire::{flag, id, list, text};
use super::{ClaudeCodec, MAX_PLAN, MAX_REMEMBERED, notice};
use crate::codec::{Out, Said};

impl ClaudeCodec {
    pub(super) fn assistant(&mut self, value: &Value, at: At<'_>, out: &mut Out) {
        if let Some(failure) = text(value, "error") {
            // The words of a failed call are not the agent's.
            self.streams.failed(at.parent, out);
            if let Some(turn) = &mut self.turn {
                turn.failure = Some(wire::shortened(failure));
            }
            notice("model_call_failed", value, at.raw, out);
            return;
        }
        let message = value.get("message").unwrap_or(&Value::Null);
        for block in list(message, "content") {
            match text(block, "type").unwrap_or_default() {
                "text" => {
                    self.streams.whole(message, false, text(block, "text").unwrap_or_default(), at, out);
                }
                "thinking" => {
                    self.streams.whole(message, true, text(block, "thinking").unwrap_or_default(), at, out);
                }
                "tool_use" | "server_tool_use" => {
                    let (Some(call), Some(tool)) = (id(block, "id"), id(block, "name")) else { continue };
                    let input = block.get("input").cloned().unwrap_or(Value::Null);
                    self.tool_use(call, tool, input, at.parent, at.raw, out);
                }
                kind if kind.ends_with("_tool_result") => self.tool_result(block, at.raw, out),
                _ => {}
            }
        }
        self.streams.finish(message, at, out);
    }

    fn tool_use(
        &mut self,
        call: &str,
        tool: &str,
        input: Value,
        parent: Option<&str>,
        raw: &Bytes,
        out: &mut Out,
    ) {
        if !self.uses.insert(call) {
            return;
        }
        if tool == "ExitPlanMode" && self.plans.len() < MAX_REMEMBERED && raw.len() <= MAX_PLAN {
            self.plans.insert(call.to_owned(), input.clone());
        }
        let (call, tool, parent) = (call.to_owned(), tool.to_owned(), parent.map(str::to_owned));
        out.say_raw(Said::ToolUse { call, tool, input, parent }, raw);
    }

    fn tool_result(&mut self, block: &Value, raw: &Bytes, out: &mut Out) {
        let Some(call) = id(block, "tool_use_id").filter(|call| self.results.insert(call)) else { return };
        self.plans.remove(call);
        let output = wire::tool_output(block.get("content"));
        out.say_raw(
            Said::ToolResult { call: call.to_owned(), output, is_error: flag(block, "is_error") },
            raw,
        );
    }

    /// Lines of the user: results of tools. The rest of them repeats what the platform or the harness wrote.
    pub(super) fn user(&mut self, value: &Value, raw: &Bytes, out: &mut Out) {
        for block in list(value.get("message").unwrap_or(&Value::Null), "content") {
            if text(block, "type") == Some("tool_result") {
                self.tool_result(block, raw, out);
            }
        }
    }

    pub(super) fn control_response(&mut self, value: &Value, raw: &Bytes, out: &mut Out) {
        let response = value.get("response").unwrap_or(&Value::Null);
        if text(response, "subtype") == Some("error") {
            notice("control_error", response, raw, out);
        } else if text(response, "request_id") == Some("karta_1") && !std::mem::replace(&mut self.ready, true)
        {
            out.say_raw(Said::Ready, raw);
        }
    }

    pub(super) fn control_request(&mut self, value: &Value, raw: &Bytes, out: &mut Out) {
        let Some(request_id) = id(value, "request_id") else { return };
        let request = value.get("request").unwrap_or(&Value::Null);
        if text(request, "subtype") != Some("can_use_tool") {
            out.write_json(&wire::control_error(request_id, "this host does not answer such requests"));
            notice("control_request", request, raw, out);
            return;
        }
        let deny =
            |why: &str| wire::control_success(request_id, &json!({"behavior": "deny", "message": why}));
        if self.turn.is_none() {
            out.write_json(&deny("No turn is running, so nobody can be asked."));
            return;
        }
        let input = request.get("input").cloned().unwrap_or_else(|| json!({}));
        let call = id(request, "tool_use_id");
        // The question of a sub-agent comes before the line that has its call.
        if let (Some(call), Some(tool)) = (call, id(request, "tool_name"))
            && let Some(parent) = id(request, "agent_id").and_then(|agent| self.agents.get(agent)).cloned()
        {
            self.tool_use(call, tool, input.clone(), Some(&parent), raw, out);
        }
        if self.asks.allow_all() && !flag(request, "requires_user_interaction") {
            out.write_json(&wire::control_success(
                request_id,
                &json!({"behavior": "allow", "updatedInput": input}),
            ));
            return;
        }
        match self.asks.take(request_id, request, call.and_then(|call| self.plans.get(call)), raw.len()) {
            Asked::Person(ask) => out.say_raw(Said::Asked { request: request_id.to_owned(), ask }, raw),
            Asked::Again => {}
            Asked::TooMany => out.write_json(&deny("Too many questions are open at once.")),
        }
    }
}
