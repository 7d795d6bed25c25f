//! JSON with comments as values with places.

use karta_harness::jsonc::{self, Members};
use serde_json::value::RawValue;

use super::document::Document;
use super::node::{Key, Node, Value};

/// Reads a document, which must be an object. What can't be read is a fault of it.
pub(super) fn parse(document: &mut Document<'_>) -> Vec<(Key, Node)> {
    // Comments become blanks, so every place stays what it is.
    let plain = jsonc::plain(document.text);
    let text = match std::str::from_utf8(&plain) {
        Ok(text) if text.trim().is_empty() => return Vec::new(),
        Ok(text) => text,
        Err(_) => {
            document.fault(0, "it is not UTF-8", None);
            return Vec::new();
        }
    };
    match serde_json::from_str::<&RawValue>(text) {
        Ok(raw) => {
            let mut reader = Reader { text, document };
            match reader.node(raw) {
                Node { value: Value::Table(members), .. } => members,
                node => {
                    let message = format!("it must hold one object, not {}", node.value.name());
                    document.fault(node.at, message, None);
                    Vec::new()
                }
            }
        }
        Err(error) => {
            let line_start: usize =
                text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or(&message);
            document.fault(line_start + error.column().saturating_sub(1), message, None);
            Vec::new()
        }
    }
}

struct Reader<'t, 'd, 'x> {
    text: &'t str,
    document: &'d mut Document<'x>,
}

impl<'t> Reader<'t, '_, '_> {
    fn node(&mut self, raw: &'t RawValue) -> Node {
        let text = raw.get();
        let at = jsonc::offset(self.text, text);
        let value = match text.as_bytes().first() {
            Some(b'{') => serde_json::from_str::<Members<'_>>(text).ok().map(|members| self.table(members)),
            Some(b'[') => serde_json::from_str::<Vec<&RawValue>>(text)
                .ok()
                .map(|items| Value::List(items.into_iter().map(|item| self.node(item)).collect())),
            Some(b'"') => serde_json::from_str(text).ok().map(Value::Text),
            Some(b't' | b'f') => serde_json::from_str(text).ok().map(Value::Flag),
            Some(b'n') => Some(Value::Other("null")),
            _ => serde_json::from_str(text).ok().map(Value::Whole),
        };
        Node { at, value: value.unwrap_or(Value::Other("a number with a point, or too large")) }
    }

    fn table(&mut self, members: Members<'t>) -> Value {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        for (key, value) in members.0 {
            let at = jsonc::offset(self.text, key.get());
            let name: String = serde_json::from_str(key.get()).unwrap_or_default();
            if entries.iter().any(|(other, _)| other.name == name) {
                self.document.fault(at, format!("the key `{name}` is there twice"), None);
            }
            let node = self.node(value);
            entries.push((Key { at, name }, node));
        }
        Value::Table(entries)
    }
}
