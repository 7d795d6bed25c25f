//! JSON with comments and trailing commas, as people write it in `opencode.json` and `karta.jsonc`.

use serde_json::Value;

/// Reads a text. The error says line and column of the text as it was written.
///
/// # Errors
/// It is no JSON, even without its comments.
pub fn parse(text: &str) -> Result<Value, String> {
    serde_json::from_slice(&plain(text)).map_err(|error| error.to_string())
}

/// The same text as plain JSON: comments and trailing commas become blanks, so every other byte keeps its place.
pub fn plain(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    let (mut at, mut comma) = (0, None);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => {
                comma = None;
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
            b',' => comma = Some(at),
            b'}' | b']' => {
                if let Some(comma) = comma.take() {
                    bytes[comma] = b' ';
                }
            }
            byte if byte.is_ascii_whitespace() => {}
            _ => comma = None,
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
        assert!(parse("{,}").is_err() || parse("{,}") == Ok(json!({})));
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
