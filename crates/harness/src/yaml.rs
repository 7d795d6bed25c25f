//! The part of YAML that people write in front matter, as typed values.
//!
//! [`crate::frontmatter`] reads texts, as forgiving as the harnesses; here it matters whether a value is a text, a number or a list,
//! because a harness refuses the one where it wants the other. What is beyond this part (anchors, tags, dates, lists of tables) is
//! not guessed at: then nothing is known of the whole block.

use serde_json::{Map, Number, Value};

/// Why a block has no values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// No reader of YAML could read it: the line within the block, from 1, and why.
    Broken(usize, &'static str),
    /// It is beyond what is read here.
    Beyond,
}

/// Reads a block of `key: value`.
pub(crate) fn parse(block: &str) -> Result<Map<String, Value>, Trouble> {
    let lines: Vec<&str> = block.lines().collect();
    let mut reader = Reader { lines: &lines, at: 0 };
    let map = reader.map(0)?;
    if reader.peek().is_some() { Err(Trouble::Beyond) } else { Ok(map) }
}

/// The line within the block, from 1, on which a key of the outermost table stands.
pub(crate) fn line_of(block: &str, key: &str) -> Option<usize> {
    let is = |line: &str| key_value(line).is_some_and(|(name, _)| name == key && indent(line) == 0);
    block.lines().position(is).map(|at| at + 1)
}

struct Reader<'a> {
    lines: &'a [&'a str],
    at: usize,
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

/// Cuts at the colon behind a plain or quoted key.
fn key_value(line: &str) -> Option<(String, &str)> {
    let line = line.trim();
    if let Some(quote @ ('"' | '\'')) = line.chars().next() {
        let end = line[1..].find(quote)? + 1;
        let rest = line[end + 1..].trim_start().strip_prefix(':')?;
        return (rest.is_empty() || rest.starts_with(' ')).then(|| (line[1..end].to_owned(), rest));
    }
    let colon = line
        .match_indices(':')
        .map(|(at, _)| at)
        .find(|at| matches!(line[at + 1..].chars().next(), None | Some(' ')))?;
    let plain = !line.starts_with(['[', '{', '&', '*', '!', '|', '>', '%', '@', '`', '?', '-', ',', '#']);
    (plain && colon > 0).then(|| (line[..colon].trim_end().to_owned(), &line[colon + 1..]))
}

/// Without the comment behind it. A quoted text is left whole: it is cut at its own end.
fn without_comment(text: &str) -> &str {
    let text = text.trim();
    if text.starts_with(['"', '\'']) {
        return text;
    }
    text.find(" #").map_or(text, |at| text[..at].trim_end())
}

impl<'a> Reader<'a> {
    /// The next line that says something.
    fn peek(&mut self) -> Option<&'a str> {
        while self.lines.get(self.at).is_some_and(|line| is_blank(line)) {
            self.at += 1;
        }
        self.lines.get(self.at).copied()
    }

    fn map(&mut self, level: usize) -> Result<Map<String, Value>, Trouble> {
        let mut map = Map::new();
        while let Some(line) = self.peek() {
            if line.trim_start_matches(' ').starts_with('\t') || indent(line) > level {
                return Err(Trouble::Beyond);
            }
            if indent(line) < level {
                break;
            }
            let (key, rest) = key_value(line).ok_or(Trouble::Beyond)?;
            self.at += 1;
            let value = self.value(without_comment(rest), level)?;
            if key == "<<" || map.insert(key, value).is_some() {
                return Err(Trouble::Beyond);
            }
        }
        Ok(map)
    }

    fn value(&mut self, text: &str, level: usize) -> Result<Value, Trouble> {
        match text.chars().next() {
            None => self.below(level),
            Some('|' | '>') => {
                while self
                    .lines
                    .get(self.at)
                    .is_some_and(|line| line.trim().is_empty() || indent(line) > level)
                {
                    self.at += 1;
                }
                Ok(Value::String(String::new()))
            }
            Some('&' | '*' | '!' | '%' | '@' | '`' | '?') => Err(Trouble::Beyond),
            Some('[' | '{') => {
                let whole = self.joined(text, level);
                let mut flow = Flow { rest: &whole };
                flow.value().filter(|_| flow.rest.trim().is_empty()).ok_or_else(|| {
                    let open = whole.matches(['[', '{']).count() > whole.matches([']', '}']).count();
                    if open { Trouble::Broken(self.at, "a bracket is not closed") } else { Trouble::Beyond }
                })
            }
            Some(quote @ ('"' | '\'')) => match quoted(text, quote) {
                Some((value, rest)) if rest.trim().is_empty() || rest.trim_start().starts_with('#') => {
                    Ok(Value::String(value))
                }
                Some(_) => Err(Trouble::Beyond),
                None if self.lines[self.at..].iter().any(|line| line.contains(quote)) => Err(Trouble::Beyond),
                None => Err(Trouble::Broken(self.at, "a quote is not closed")),
            },
            Some(_) => {
                let whole = self.joined(text, level);
                // More lines, or a colon in them, make it a text for both harnesses.
                if whole.len() > text.len() || text.contains(": ") || text.ends_with(':') {
                    return Ok(Value::String(whole));
                }
                scalar(text).ok_or(Trouble::Beyond)
            }
        }
    }

    /// The text with the lines that belong to it, joined.
    fn joined(&mut self, text: &str, level: usize) -> String {
        let mut whole = text.to_owned();
        while let Some(line) = self.peek().filter(|line| indent(line) > level) {
            whole.push(' ');
            whole.push_str(without_comment(line));
            self.at += 1;
        }
        whole
    }

    /// What stands below a key without a value.
    fn below(&mut self, level: usize) -> Result<Value, Trouble> {
        let Some(line) = self.peek() else { return Ok(Value::Null) };
        let (inner, item) = (indent(line), line.trim_start().starts_with("- ") || line.trim() == "-");
        match (item, inner) {
            (true, inner) if inner >= level => self.list(inner).map(Value::Array),
            (false, inner) if inner > level && key_value(line).is_some() => {
                self.map(inner).map(Value::Object)
            }
            (false, inner) if inner > level => Err(Trouble::Beyond),
            _ => Ok(Value::Null),
        }
    }

    fn list(&mut self, level: usize) -> Result<Vec<Value>, Trouble> {
        let mut items = Vec::new();
        while let Some(line) = self.peek().filter(|line| indent(line) == level) {
            let Some(item) = line.trim_start().strip_prefix('-') else { break };
            let item = without_comment(item);
            self.at += 1;
            if item.is_empty() || key_value(item).is_some() {
                return Err(Trouble::Beyond);
            }
            items.push(self.value(item, level)?);
        }
        Ok(items)
    }
}

/// A quoted text, and what follows it.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut plain = String::new();
    let mut letters = text.char_indices().skip(1).peekable();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' if quote == '"' => plain.push(letters.next()?.1),
            _ if letter == quote
                && quote == '\''
                && letters.peek().is_some_and(|(_, next)| *next == quote) =>
            {
                letters.next();
                plain.push(quote);
            }
            _ if letter == quote => return Some((plain, &text[at + 1..])),
            other => plain.push(other),
        }
    }
    None
}

/// Lists and tables on one line.
struct Flow<'a> {
    rest: &'a str,
}

impl Flow<'_> {
    fn take(&mut self, letter: char) -> bool {
        let rest = self.rest.trim_start();
        let taken = rest.strip_prefix(letter);
        self.rest = taken.unwrap_or(rest);
        taken.is_some()
    }

    fn value(&mut self) -> Option<Value> {
        if self.take('[') {
            let mut items = Vec::new();
            while !self.take(']') {
                items.push(self.value()?);
                if !self.take(',') && !self.rest.starts_with(']') {
                    return None;
                }
            }
            return Some(Value::Array(items));
        }
        if self.take('{') {
            let mut map = Map::new();
            while !self.take('}') {
                let key = self.word(&[':', ',', '}'])?;
                let value = if self.take(':') { self.value()? } else { Value::Null };
                map.insert(key, value);
                if !self.take(',') && !self.rest.starts_with('}') {
                    return None;
                }
            }
            return Some(Value::Object(map));
        }
        match self.rest.chars().next()? {
            '"' | '\'' => self.word(&[]).map(Value::String),
            _ => scalar(&self.word(&[',', ']', '}'])?),
        }
    }

    /// A quoted text, or a plain one up to one of these letters.
    fn word(&mut self, ends: &[char]) -> Option<String> {
        self.rest = self.rest.trim_start();
        if let Some(quote @ ('"' | '\'')) = self.rest.chars().next() {
            let (value, rest) = quoted(self.rest, quote)?;
            self.rest = rest;
            return Some(value);
        }
        let end = self.rest.find(ends)?;
        let word = self.rest[..end].trim();
        self.rest = &self.rest[end..];
        (!word.is_empty()).then(|| word.to_owned())
    }
}

/// A plain value; nothing where readers of YAML differ, or make a date of it.
fn scalar(text: &str) -> Option<Value> {
    match text {
        "~" | "null" | "Null" | "NULL" => return Some(Value::Null),
        "true" | "True" | "TRUE" => return Some(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Some(Value::Bool(false)),
        _ => {}
    }
    if !text.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first)) {
        return Some(Value::String(text.to_owned()));
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        && digits.matches('.').count() <= 1
        && digits.starts_with(|first: char| first.is_ascii_digit())
        && (digits.len() == 1 || !digits.starts_with('0') || digits.starts_with("0."));
    if plain {
        let whole = text.parse::<i64>().ok().map(Number::from);
        return whole.or_else(|| Number::from_f64(text.parse().ok()?)).map(Value::Number);
    }
    // A word that only begins like a number is a text; a date or an octal is what somebody may read otherwise.
    let wordy = digits.contains(|letter: char| letter.is_ascii_alphabetic() && !"eExXoObB".contains(letter));
    (wordy && !digits.starts_with('0')).then(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(block: &str) -> Value {
        Value::Object(parse(block).unwrap())
    }

    #[test]
    fn values_have_their_types() {
        assert_eq!(
            read(
                "a: x # why\nb: 5\nc: 0.5\nd: -3\ne: true\nf:\ng: ~\nh: \"5\" # text\ni: 'it''s'\nj: yes\nk: gpt-5 # x\nl: 3d\n'q': 1"
            ),
            json!({"a": "x", "b": 5, "c": 0.5, "d": -3, "e": true, "f": null, "g": null, "h": "5", "i": "it's", "j": "yes",
                "k": "gpt-5", "l": "3d", "q": 1})
        );
        assert_eq!(
            read("a: use this: when needed\nb: one\n  two"),
            json!({"a": "use this: when needed", "b": "one two"})
        );
        assert_eq!(
            read("a: |\n  x\n\n  y: 1\nb: >-\n  z"),
            json!({"a": "", "b": ""}),
            "block texts are texts"
        );
    }

    #[test]
    fn lists_and_tables_nest() {
        assert_eq!(
            read(
                "a: [x, 5, \"b, c\"]\nb:\n  - x\n  - 'y'\nc:\n- 1\nd:\n  bash:\n    \"git *\": allow\n    '*': ask\n  edit: deny\ne: {a: true, b: [1]}\nf: []\ng: {}"
            ),
            json!({"a": ["x", 5, "b, c"], "b": ["x", "y"], "c": [1],
                "d": {"bash": {"git *": "allow", "*": "ask"}, "edit": "deny"}, "e": {"a": true, "b": [1]}, "f": [], "g": {}})
        );
        assert_eq!(read("a: [x,\n  y]"), json!({"a": ["x", "y"]}));
        assert_eq!(line_of("# c\na: 1\nb:\n  c: 2", "b"), Some(3));
        assert_eq!(line_of("a:\n  b: 1", "b"), None);
    }

    #[test]
    fn what_is_broken_is_told_and_what_is_beyond_is_not_guessed() {
        assert_eq!(parse("a: 1\nb: [x"), Err(Trouble::Broken(2, "a bracket is not closed")));
        assert_eq!(parse("a: \"x\nb: 1"), Err(Trouble::Broken(1, "a quote is not closed")));
        for beyond in [
            "a: &x 1",
            "a: *x",
            "a: !t x",
            "a: 2026-01-01",
            "a: 0x10",
            "a: 010",
            "a: 1_000",
            "a: 1:30",
            "a: \"x\n  y\"",
            "a:\n  - b: 1",
            "a\n",
            "- a",
            "a: 1\na: 2",
            "<<: x",
            "a:\n\tb: 1",
            "  a: 1",
            "a: [x]]",
        ] {
            assert_eq!(parse(beyond), Err(Trouble::Beyond), "{beyond}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([-a-c:|>\\[\\]{}\"' ,#é0-9.]{0,10}\n?){0,8}") {
            let _ = parse(&text);
            let _ = line_of(&text, "a");
        }
    }
}
