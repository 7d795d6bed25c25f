//! JSON with comments and trailing commas, as people write it in `opencode.json` and `karta.jsonc`.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// Reads a text. The error says line and column of the text as it was written.
///
/// # Errors
/// It is no JSON, even without its comments.
pub fn parse(text: &str) -> Result<Value, String> {
    serde_json::from_slice(&plain(text)).map_err(|error| error.to_string())
}

/// A step from a value to one below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The value of this key.
    Key(String),
    /// The item of this number, from 0.
    Index(usize),
}

/// An object's members as they stand in its text: keys and values.
#[derive(Debug)]
pub struct Members<'a>(pub Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// Where a part of a text stands in it, in bytes.
pub fn offset(text: &str, part: &str) -> usize {
    (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize)
}

/// Where the value stands that these steps lead to, in a text that [`parse`] reads; as far as they lead. With `key` it is the last
/// step's key that is looked for.
pub fn find(text: &str, steps: &[Step], key: bool) -> usize {
    let plain = plain(text);
    let Ok(plain) = std::str::from_utf8(&plain) else { return 0 };
    let Ok(mut here) = serde_json::from_str::<&RawValue>(plain) else { return 0 };
    for (index, step) in steps.iter().enumerate() {
        let next = match step {
            Step::Index(at) => serde_json::from_str::<Vec<&RawValue>>(here.get())
                .ok()
                .and_then(|items| items.get(*at).map(|item| (*item, *item))),
            Step::Key(name) => serde_json::from_str::<Members<'_>>(here.get()).ok().and_then(|members| {
                // The last of the same name is the one that counts.
                let named = |(key, _): &(&RawValue, _)| {
                    serde_json::from_str::<String>(key.get()).is_ok_and(|key| key == *name)
                };
                members.0.into_iter().rfind(named)
            }),
        };
        let Some((name, value)) = next else { break };
        here = if key && index + 1 == steps.len() { name } else { value };
    }
    offset(plain, here.get())
}

/// Line and column, from 1, of a place in a text; the column is in characters.
pub fn line_and_column(text: &str, at: usize) -> (u64, u64) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line as u64, column as u64)
}

/// The same text as plain JSON: comments and trailing commas become blanks, so every other byte keeps its place.
pub fn plain(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    // A comma before a bracket counts as trailing only behind a value.
    let (mut at, mut comma, mut value) = (0, None, false);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => {
                (comma, value) = (None, true);
                at = end_of_string(&bytes, at);
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                let end = bytes[at..].iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |n| at + n);
                blank(&mut bytes[at..end]);
                at = end;
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let close = bytes[at + 2..].windows(2).position(|pair| pair == b"*/");
                let end = close.map_or(bytes.len(), |n| at + 2 + n + 2);
                blank(&mut bytes[at..end]);
                at = end;
                continue;
            }
            b',' => {
                comma = value.then_some(at);
                value = false;
            }
            b'}' | b']' => {
                if let Some(comma) = comma.take() {
                    bytes[comma] = b' ';
                }
                value = true;
            }
            b'{' | b'[' | b':' => (comma, value) = (None, false),
            byte if byte.is_ascii_whitespace() => {}
            _ => (comma, value) = (None, true),
        }
        at += 1;
    }
    bytes
}

fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn blank(bytes: &mut [u8]) {
    for byte in bytes {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn comments_and_trailing_commas_are_no_fault() {
        let text = "{ // one\n \"a\": [1, 2, ], /* two,\n */ \"b\": \"// no, [comment,]\\\"\", }";
        assert_eq!(parse(text), Ok(json!({"a": [1, 2], "b": "// no, [comment,]\""})));
    }

    #[test]
    fn a_fault_is_where_it_was_written() {
        let fault = parse("{\n  // a comment\n  \"a\": nope\n}").unwrap_err();
        assert!(fault.contains("line 3 column 9"), "{fault}");
        for text in ["{,}", "[,]", "[1,,]", "{\"a\":,}"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn steps_lead_to_a_place() {
        let text = "{ // é\n  \"a\": {\"b\": [1, {\"c\": 2}], },\n}";
        let key = |name: &str| Step::Key(name.to_owned());
        let at = |steps: &[Step], of_key| line_and_column(text, find(text, steps, of_key));
        assert_eq!(at(&[], false), (1, 1));
        assert_eq!(at(&[key("a")], true), (2, 3));
        assert_eq!(at(&[key("a")], false), (2, 8));
        assert_eq!(at(&[key("a"), key("b"), Step::Index(1), key("c")], false), (2, 24));
        assert_eq!(at(&[key("a"), key("none"), key("b")], false), (2, 8), "as far as it leads");
    }

    proptest! {
        #[test]
        fn plain_json_stays_as_it_is(text in "[ -~é\n]{0,40}") {
            let value = json!({"a": text, "b": [text.clone(), 1, null]});
            prop_assert_eq!(parse(&value.to_string()), Ok(value));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[{}\\[\\],:\"/*\\\\ \na1é]{0,60}") {
            let _ = parse(&text);
        }
    }
}
