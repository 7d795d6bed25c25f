//! The parts of the agent's messages, as they grow: what of them was said already.

use std::collections::BTreeMap;

use karta_types::Usage;
use serde_json::Value;

use super::heard::Heard;
use super::recent::Recent;
use super::wire::{Delta, Info, Part, ToolState};
use crate::codec::Said;

/// More than this of one kind in one turn is not shown.
const MAX_TRACKED: usize = 8192;
/// Sub-agents of one session's process that are followed.
const MAX_CHILDREN: usize = 1024;

/// What is known of the turn's messages and parts.
#[derive(Debug)]
pub(super) struct Parts {
    /// The agent's messages of this turn, with the model that makes each.
    messages: BTreeMap<String, String>,
    shown: BTreeMap<String, Shown>,
    /// Calls that were ever said: never again.
    called: Recent,
    /// Sessions of sub-agents, each with the call it works for.
    children: BTreeMap<String, Option<String>>,
}

/// What was said of a part.
#[derive(Debug)]
enum Shown {
    Words { reasoning: bool, parent: Option<String>, heard: Heard },
    Tool(Tool),
    Other,
}

#[derive(Debug)]
struct Tool {
    /// The harness's id for the call, which a model may use twice.
    native: String,
    /// Our id for it: the same, or the part's where that was taken.
    call: String,
    name: String,
    input: Value,
    session: String,
    used: bool,
    done: bool,
    child: bool,
}

impl Parts {
    pub(super) const fn new() -> Self {
        Self {
            messages: BTreeMap::new(),
            shown: BTreeMap::new(),
            called: Recent::new(MAX_TRACKED),
            children: BTreeMap::new(),
        }
    }

    /// The turn is over: whatever still comes of it is late. Pieces that waited for a whole text which was never told are said.
    pub(super) fn end_turn(&mut self, say: &mut dyn FnMut(Said)) {
        for (id, shown) in &mut self.shown {
            if let Shown::Words { reasoning, parent, heard } = shown {
                words(*reasoning, id.clone(), &heard.last(), parent.clone(), say);
            }
        }
        self.messages.clear();
        self.shown.clear();
        self.children.clear();
    }

    /// The agent began or changed a message.
    pub(super) fn message(&mut self, info: &Info) {
        if self.messages.len() < MAX_TRACKED {
            self.messages.insert(info.id.clone(), info.model.clone().unwrap_or_default());
        }
    }

    /// A sub-agent's session began. Which call it works for is told exactly later; until then it is the youngest that has none.
    pub(super) fn child(&mut self, id: &str, parent: &str) {
        if self.children.len() >= MAX_CHILDREN || self.children.contains_key(id) {
            return;
        }
        let young = self.shown.values_mut().rev().find_map(|shown| match shown {
            Shown::Tool(tool)
                if tool.name == "task" && !tool.done && !tool.child && tool.session == parent =>
            {
                Some(tool)
            }
            _ => None,
        });
        let call = young.map(|tool| {
            tool.child = true;
            tool.call.clone()
        });
        self.children.insert(id.to_owned(), call);
    }

    /// Whether this is the session of a sub-agent.
    pub(super) fn is_child(&self, session: &str) -> bool {
        self.children.contains_key(session)
    }

    /// Name and input of a call, if it was said.
    pub(super) fn call(&self, native: &str) -> Option<(&str, &Value)> {
        self.tool_of(native).filter(|tool| tool.used).map(|tool| (tool.name.as_str(), &tool.input))
    }

    /// Whether a call is known and about to be said.
    pub(super) fn is_pending(&self, native: &str) -> bool {
        self.tool_of(native).is_some_and(|tool| !tool.used)
    }

    /// The youngest call with this id.
    fn tool_of(&self, native: &str) -> Option<&Tool> {
        self.shown.values().rev().find_map(|shown| match shown {
            Shown::Tool(tool) if tool.native == native => Some(tool),
            _ => None,
        })
    }

    fn parent_of(&self, session: &str) -> Option<String> {
        self.children.get(session).cloned().flatten()
    }

    /// A piece of a part.
    pub(super) fn delta(&mut self, delta: &Delta, say: &mut dyn FnMut(Said)) {
        if delta.field != "text" || !self.messages.contains_key(&delta.message) {
            return;
        }
        if let Some(Shown::Words { reasoning, parent, heard }) = self.shown.get_mut(&delta.part) {
            words(*reasoning, delta.part.clone(), heard.piece(&delta.piece), parent.clone(), say);
        }
    }

    /// Something may have been missed: where in its text a piece belongs is not known until the stream tells the text whole.
    pub(super) fn lose_place(&mut self) {
        for shown in self.shown.values_mut() {
            if let Shown::Words { heard, .. } = shown {
                heard.lose_place();
            }
        }
    }

    /// A part was made or changed.
    pub(super) fn part(&mut self, part: Part, say: &mut dyn FnMut(Said)) {
        self.told(part, true, say);
    }

    /// A part as the server tells it when it is asked, whatever of it was heard. Its stream may still bring pieces that are in it.
    pub(super) fn missed(&mut self, part: Part, say: &mut dyn FnMut(Said)) {
        self.told(part, false, say);
    }

    fn told(&mut self, part: Part, by_stream: bool, say: &mut dyn FnMut(Said)) {
        let Some(model) = self.messages.get(&part.message) else { return };
        let fresh = !self.shown.contains_key(&part.id);
        if fresh && self.shown.len() >= MAX_TRACKED {
            return;
        }
        match part.kind.as_str() {
            "text" | "reasoning" if !part.synthetic => self.words(&part, by_stream, say),
            "tool" => self.tool(part, say),
            "step-start" if fresh => {
                say(Said::StepStart { description: model.clone() });
                self.shown.insert(part.id, Shown::Other);
            }
            "step-finish" if fresh => {
                say(Said::StepFinish { usage: usage(&part) });
                self.shown.insert(part.id, Shown::Other);
            }
            _ => {}
        }
    }

    /// The sessions of the turn's sub-agents.
    pub(super) fn children(&self) -> impl Iterator<Item = &String> {
        self.children.keys()
    }

    /// The whole text of a part so far: what pieces did not bring is said now.
    fn words(&mut self, part: &Part, by_stream: bool, say: &mut dyn FnMut(Said)) {
        let parent = self.parent_of(&part.session);
        let reasoning = part.kind == "reasoning";
        let heard = if by_stream { Heard::default() } else { Heard::elsewhere() };
        let fresh = Shown::Words { reasoning, parent, heard };
        let shown = self.shown.entry(part.id.clone()).or_insert(fresh);
        let Shown::Words { reasoning, parent, heard } = shown else { return };
        let whole = part.text.as_deref().unwrap_or_default();
        let rest = if by_stream { heard.whole(whole) } else { heard.asked(whole) };
        words(*reasoning, part.id.clone(), rest, parent.clone(), say);
    }

    fn tool(&mut self, part: Part, say: &mut dyn FnMut(Said)) {
        let (Some(name), Some(native), Some(state)) = (part.tool, part.call, part.state) else { return };
        let parent = self.parent_of(&part.session);
        if !self.shown.contains_key(&part.id) {
            let free = [&native, &part.id].into_iter().find(|id| self.called.insert(id)).cloned();
            let Some(call) = free else { return };
            let (input, session) = (Value::Null, part.session);
            let tool = Tool { native, call, name, input, session, used: false, done: false, child: false };
            self.shown.insert(part.id.clone(), Shown::Tool(tool));
        }
        let Some(Shown::Tool(tool)) = self.shown.get_mut(&part.id) else { return };
        if tool.done || state.status == "pending" {
            return;
        }
        if !std::mem::replace(&mut tool.used, true) {
            tool.input = state.input.clone();
            let (call, tool, input) = (tool.call.clone(), tool.name.clone(), state.input.clone());
            say(Said::ToolUse { call, tool, input, parent });
        }
        if let Some(child) = state.metadata.get("sessionId").and_then(Value::as_str)
            && (self.children.contains_key(child) || self.children.len() < MAX_CHILDREN)
            && child.len() <= part.id.len().max(200)
        {
            tool.child = true;
            self.children.insert(child.to_owned(), Some(tool.call.clone()));
        }
        if let Some((output, is_error)) = result(state) {
            tool.done = true;
            say(Said::ToolResult { call: tool.call.clone(), output, is_error });
        }
    }

    /// A part was taken back.
    pub(super) fn removed(&mut self, part: &str, say: &mut dyn FnMut(Said)) {
        if let Some(Shown::Words { reasoning, heard, .. }) = self.shown.get(part)
            && heard.any_said()
        {
            say(Said::Discarded { part: part.to_owned(), reasoning: *reasoning });
            self.shown.remove(part);
        }
    }
}

fn words(reasoning: bool, part: String, text: &str, parent: Option<String>, say: &mut dyn FnMut(Said)) {
    if text.is_empty() {
        return;
    }
    let text = text.to_owned();
    say(if reasoning { Said::Reasoning { part, text, parent } } else { Said::Text { part, text, parent } });
}

/// What a tool answered, if it has.
pub(super) fn result(state: ToolState) -> Option<(Value, bool)> {
    match state.status.as_str() {
        "completed" => Some((state.output, false)),
        "error" => Some((state.error.map_or(state.output, Value::String), true)),
        _ => None,
    }
}

fn usage(part: &Part) -> Usage {
    let Some(tokens) = &part.tokens else { return Usage::default() };
    Usage {
        input_tokens: tokens.input,
        output_tokens: tokens.output.saturating_add(tokens.reasoning),
        cache_read_tokens: tokens.cache.read,
        cache_write_tokens: tokens.cache.write,
    }
}
