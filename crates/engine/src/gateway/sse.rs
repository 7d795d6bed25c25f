//! Watches an event stream go by without changing it.

use serde_json::Value;

/// An event's data longer than this is not looked into.
const MAX_EVENT: usize = 1 << 20;

/// Reads `data:` lines out of any chunking; bounded, whatever comes.
#[derive(Debug, Default)]
pub(super) struct Watcher {
    line: Vec<u8>,
    data: Vec<u8>,
    overlong: bool,
}

impl Watcher {
    /// Takes the next bytes in and calls `each` for every event's data that is JSON.
    pub(super) fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&Value)) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            self.keep(&rest[..end]);
            rest = &rest[end + 1..];
            self.end_line(&mut each);
        }
        self.keep(rest);
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.line.len() + bytes.len() > MAX_EVENT {
            self.overlong = true;
            self.line.clear();
        }
        if !self.overlong {
            self.line.extend_from_slice(bytes);
        }
    }

    fn end_line(&mut self, each: &mut impl FnMut(&Value)) {
        let line = std::mem::take(&mut self.line);
        let overlong = std::mem::take(&mut self.overlong);
        let text = line.strip_suffix(b"\r").unwrap_or(&line);
        if text.is_empty() && !overlong {
            if let Ok(value) = serde_json::from_slice(&self.data) {
                each(&value);
            }
            self.data.clear();
        } else if let Some(data) = text.strip_prefix(b"data:") {
            let data = data.strip_prefix(b" ").unwrap_or(data);
            if self.data.len() + data.len() <= MAX_EVENT {
                self.data.extend_from_slice(data);
            }
        }
        // The buffer is used again for the next line.
        self.line = line;
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn watch(chunks: &[&[u8]]) -> Vec<Value> {
        let mut watcher = Watcher::default();
        let mut seen = Vec::new();
        for chunk in chunks {
            watcher.feed(chunk, |value| seen.push(value.clone()));
        }
        seen
    }

    const STREAM: &[u8] =
        b"event: a\ndata: {\"a\":1}\n\n: note\n\ndata: [DONE]\n\ndata:{\"b\":\r\ndata: 2}\r\n\r\ndata: {\"c\"\n\n";

    #[test]
    fn reads_what_is_json() {
        assert_eq!(watch(&[STREAM]), [serde_json::json!({"a":1}), serde_json::json!({"b":2})]);
    }

    proptest! {
        #[test]
        fn any_chunking_is_the_same(cut in 0..STREAM.len(), other in 0..STREAM.len()) {
            let (a, b) = (cut.min(other), cut.max(other));
            prop_assert_eq!(watch(&[&STREAM[..a], &STREAM[a..b], &STREAM[b..]]), watch(&[STREAM]));
        }

        #[test]
        fn garbage_is_harmless(bytes: Vec<u8>) {
            let _ = watch(&[&bytes]);
        }
    }
}
