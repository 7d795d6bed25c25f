//! Short forms of long things, fit for a terminal.

use karta_types::usage::Metered;
use serde_json::Value;

use crate::printer::tame;

/// The fields that tell best what a tool call is about, best first.
const TELLING: &[&str] = &[
    "command",
    "file_path",
    "filePath",
    "path",
    "pattern",
    "url",
    "query",
    "skill",
    "description",
    "prompt",
];

/// One line of at most `most` characters.
pub(super) fn line(text: &str, most: usize) -> String {
    // A bounded piece is enough for a bounded line.
    let piece: String = text.chars().take(most.saturating_mul(4)).collect();
    let words = tame(&piece.replace(['\n', '\t'], " "));
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    if words.chars().count() <= most && piece.len() == text.len() {
        return words;
    }
    let mut cut: String = words.chars().take(most.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// What a tool is called with, on one line.
pub(super) fn input(input: &Value, most: usize) -> String {
    let telling = TELLING.iter().find_map(|field| input.get(field).and_then(Value::as_str));
    match (telling, input) {
        (Some(text), _) => line(text, most),
        (None, Value::Object(fields)) if fields.is_empty() => String::new(),
        (None, Value::Null) => String::new(),
        (None, other) => line(&other.to_string(), most),
    }
}

/// What a tool would run with, nothing left out.
pub(super) fn whole(input: &Value) -> String {
    match input {
        // A single text reads best as it is.
        Value::Object(fields) if fields.len() == 1 => match fields.iter().next() {
            Some((name, Value::String(text))) => format!("{}: {}", tame(name), tame(text)),
            _ => tame(&input.to_string()),
        },
        other => tame(&format!("{other:#}")),
    }
}

/// What a tool said: its first line, and how many more there are.
pub(super) fn output(output: &Value, most: usize) -> String {
    let text = match output {
        Value::String(text) => text.clone(),
        Value::Array(blocks)
            if blocks.iter().all(|block| block.get("text").is_some_and(Value::is_string)) =>
        {
            let texts: Vec<_> = blocks.iter().filter_map(|block| block["text"].as_str()).collect();
            texts.join("\n")
        }
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let first = line(lines.next().unwrap_or("(nothing)"), most);
    match lines.count() {
        0 => first,
        1 => format!("{first} (+1 line)"),
        more => format!("{first} (+{more} lines)"),
    }
}

/// What a turn took, on one line.
pub(in crate::commands) fn usage(usage: &Metered, duration_ms: u64) -> String {
    let mut parts = vec![
        format!("{} in", thousands(usage.input_tokens)),
        format!("{} out", thousands(usage.output_tokens)),
    ];
    let cached = usage.cache_read_tokens.saturating_add(usage.cache_write_tokens);
    if cached > 0 {
        parts.push(format!("{} cached", thousands(cached)));
    }
    parts.push(usage.cost_micros.to_string());
    parts.push(format!("{}.{} s", duration_ms / 1000, duration_ms % 1000 / 100));
    parts.join(" · ")
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use karta_types::{Micros, Usage};
    use serde_json::json;

    #[test]
    fn tool_calls_fit_on_a_line() {
        assert_eq!(input(&json!({"description": "d", "command": "ls\n -la"}), 20), "ls -la");
        assert_eq!(input(&json!({"x": 1}), 20), r#"{"x":1}"#);
        assert_eq!(input(&json!({}), 20), "");
        assert_eq!(line(&"ab ".repeat(1000), 10), "ab ab ab …");
        assert_eq!(line("\u{1b}]0;title\u{7}x", 20), "]0;titlex");
    }

    #[test]
    fn outputs_are_a_line_and_a_count() {
        assert_eq!(output(&json!("one\n\ntwo\nthree\n"), 20), "one (+2 lines)");
        assert_eq!(
            output(&json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), 20),
            "a (+1 line)"
        );
        assert_eq!(output(&json!(""), 20), "(nothing)");
        assert_eq!(output(&json!({"ok": true}), 20), r#"{"ok":true}"#);
    }

    #[test]
    fn usage_reads_like_a_receipt() {
        let used = Usage {
            input_tokens: 1_234_567,
            output_tokens: 56,
            cache_read_tokens: 900,
            cache_write_tokens: 1,
        };
        let metered = Metered::new(&used, Micros::new(12_300));
        assert_eq!(usage(&metered, 3_270), "1,234,567 in · 56 out · 901 cached · $0.012300 · 3.2 s");
    }
}
