//! The front matter of Markdown files that define agents, skills and commands.
//!
//! Not YAML, but the part of it that people write there: `key: value`, quoted strings, `[a, b]`, lists with dashes, one level of
//! nested keys, and block text (`|`, `>`). What it doesn't understand it skips, as harnesses do; only a block that is opened and
//! never closed is an error.

use std::collections::BTreeMap;

/// A value of the front matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// One text; numbers and booleans too.
    Text(String),
    /// A list.
    List(Vec<String>),
    /// Keys below a key, in order.
    Map(Vec<(String, String)>),
}

/// The front matter of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrontMatter(BTreeMap<String, Field>);

/// Cuts a file into its front matter and its body. A file without front matter has an empty one.
///
/// # Errors
/// The front matter is opened but not closed.
pub fn split(text: &str) -> Result<(FrontMatter, &str), String> {
    let (block, body) = cut(text)?;
    Ok((block.map(FrontMatter::parse).unwrap_or_default(), body))
}

/// The text of the front matter, if the file has one; its first line is the file's second.
///
/// # Errors
/// As [`split`].
pub(crate) fn block(text: &str) -> Result<Option<&str>, String> {
    cut(text).map(|(block, _)| block)
}

fn cut(text: &str) -> Result<(Option<&str>, &str), String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let Some(rest) = after_fence(text) else {
        return Ok((None, text));
    };
    let mut at = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Ok((Some(&rest[..at]), &rest[at + line.len()..]));
        }
        at += line.len();
    }
    Err("line 1: the front matter that `---` opens is not closed by another `---`".to_owned())
}

fn after_fence(text: &str) -> Option<&str> {
    let end = text.find('\n')?;
    (text[..end].trim_end() == "---").then(|| &text[end + 1..])
}

impl FrontMatter {
    /// The field, as it was written.
    pub fn get(&self, key: &str) -> Option<&Field> {
        self.0.get(key)
    }

    /// The field as one text, trimmed; `None` if it is absent, empty or not a text.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.0.get(key)? {
            Field::Text(text) => Some(text.trim()).filter(|text| !text.is_empty()),
            Field::List(_) | Field::Map(_) => None,
        }
    }

    /// The field as a list: a list, or a text with commas.
    pub fn list(&self, key: &str) -> Vec<String> {
        match self.0.get(key) {
            Some(Field::List(items)) => items.clone(),
            Some(Field::Text(text)) => outside_brackets(text).into_iter().map(str::to_owned).collect(),
            Some(Field::Map(_)) | None => Vec::new(),
        }
    }

    fn parse(block: &str) -> Self {
        let lines: Vec<&str> = block.lines().collect();
        let mut fields = BTreeMap::new();
        let mut at = 0;
        while let Some(line) = lines.get(at) {
            at += 1;
            if indent(line) > 0 || skipped(line) {
                continue;
            }
            let Some((key, value)) = key_value(line) else { continue };
            let end = at + lines[at..].iter().take_while(|line| belongs(line)).count();
            let below = &lines[at..end];
            at = end;
            fields.insert(key, read(value, below));
        }
        Self(fields)
    }
}

/// Whether a line belongs to the key above it: indented, blank, or an item of a list that is not indented.
fn belongs(line: &str) -> bool {
    line.trim().is_empty() || indent(line) > 0 || line == "-" || line.starts_with("- ")
}

fn skipped(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches([' ', '\t']).len()
}

/// `key: value`, where the key may be quoted. Text such as `https://x` is not a key.
fn key_value(line: &str) -> Option<(String, &str)> {
    let line = line.trim();
    let colon = match line.chars().next()? {
        quote @ ('"' | '\'') => 1 + line[1..].find(quote)? + 1,
        _ => line
            .find(':')
            .filter(|at| line[at + 1..].is_empty() || line[at + 1..].starts_with([' ', '\t']))?,
    };
    let (key, value) = (line[..colon].trim(), line[colon..].trim_start().strip_prefix(':')?);
    let key = scalar(key);
    (!key.is_empty()).then(|| (key, value.trim()))
}

fn read(value: &str, below: &[&str]) -> Field {
    let folded = |lines: &[&str]| lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    match value.chars().next() {
        Some(style @ ('|' | '>'))
            if value[1..].trim_matches(['+', '-', ' ']).parse::<u8>().is_ok()
                || value[1..].trim_matches(['+', '-', ' ']).is_empty() =>
        {
            Field::Text(block_text(style, below))
        }
        Some('[') => {
            let whole = format!("{value} {}", folded(below));
            let inner = whole.trim().trim_start_matches('[').trim_end_matches(']');
            Field::List(
                outside_brackets(inner).into_iter().map(scalar).filter(|item| !item.is_empty()).collect(),
            )
        }
        None | Some('#') => {
            let below: Vec<&str> = below.iter().copied().filter(|line| !skipped(line)).collect();
            match below.first() {
                None => Field::Text(String::new()),
                Some(first) if first.trim() == "-" || first.trim().starts_with("- ") => {
                    let items = below.iter().filter_map(|line| line.trim().strip_prefix('-'));
                    Field::List(
                        items.map(|item| scalar(item.trim())).filter(|item| !item.is_empty()).collect(),
                    )
                }
                Some(first) if key_value(first).is_some() => {
                    let level = indent(first);
                    let own = below.iter().filter(|line| indent(line) == level);
                    Field::Map(
                        own.filter_map(|line| key_value(line))
                            .map(|(key, value)| (key, scalar(value)))
                            .collect(),
                    )
                }
                Some(_) => Field::Text(folded(&below)),
            }
        }
        Some(_) if below.iter().any(|line| !skipped(line)) => {
            Field::Text(scalar(&format!("{value} {}", folded(below))))
        }
        Some(_) => Field::Text(scalar(value)),
    }
}

/// Block text: `|` keeps the lines, `>` joins them (a blank line stays a break).
fn block_text(style: char, below: &[&str]) -> String {
    let margin =
        below.iter().filter(|line| !line.trim().is_empty()).map(|line| indent(line)).min().unwrap_or(0);
    let lines = below.iter().map(|line| line.get(margin..).unwrap_or("").trim_end());
    let text = if style == '|' {
        lines.collect::<Vec<_>>().join("\n")
    } else {
        lines.fold(String::new(), |mut text, line| {
            if line.is_empty() {
                text.push('\n');
            } else {
                if !text.is_empty() && !text.ends_with('\n') {
                    text.push(' ');
                }
                text.push_str(line);
            }
            text
        })
    };
    text.trim_end().to_owned()
}

/// A plain or quoted text; a comment after it is dropped.
fn scalar(text: &str) -> String {
    let text = text.trim();
    if let Some(inner) = text.strip_prefix('"') {
        let mut plain = String::new();
        let mut letters = inner.chars();
        while let Some(letter) = letters.next() {
            match letter {
                '"' => break,
                '\\' => match letters.next() {
                    Some('n') => plain.push('\n'),
                    Some('t') => plain.push('\t'),
                    Some(other) => plain.push(other),
                    None => break,
                },
                other => plain.push(other),
            }
        }
        return plain;
    }
    if let Some(inner) = text.strip_prefix('\'') {
        let mut plain = String::new();
        let mut letters = inner.chars().peekable();
        while let Some(letter) = letters.next() {
            if letter == '\'' && letters.next_if_eq(&'\'').is_none() {
                break;
            }
            plain.push(letter);
        }
        return plain;
    }
    text.find(" #").map_or(text, |comment| text[..comment].trim_end()).to_owned()
}

/// Cuts at commas that stand outside brackets: `Bash(git log, git diff), Read` is two.
fn outside_brackets(text: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0usize, 0, Vec::new());
    for (at, letter) in text.char_indices() {
        match letter {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(text[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[from..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(block: &str) -> FrontMatter {
        split(&format!("---\n{block}\n---\nbody")).unwrap().0
    }

    #[test]
    fn plain_and_quoted_texts() {
        let all = fields(
            "name: reviewer # who\nmodel: \"a \\\"b\\\": c\"\n'odd key': 'it''s'\nurl: https://x/y\nempty:",
        );
        assert_eq!(all.text("name"), Some("reviewer"));
        assert_eq!(all.text("model"), Some("a \"b\": c"));
        assert_eq!(all.text("odd key"), Some("it's"));
        assert_eq!(all.text("url"), Some("https://x/y"));
        assert_eq!(all.text("empty"), None);
    }

    #[test]
    fn lists_in_every_spelling() {
        let all = fields(
            "a: Read, Bash(git log, git diff)\nb: [Read, \"Grep\"]\nc:\n  - Read\n  - Grep\nd:\n- Read\n- Grep\nlast: x",
        );
        assert_eq!(all.list("a"), ["Read", "Bash(git log, git diff)"]);
        for key in ["b", "c", "d"] {
            assert_eq!(all.list(key), ["Read", "Grep"], "{key}");
        }
        assert_eq!(all.text("last"), Some("x"));
        assert!(all.list("absent").is_empty());
    }

    #[test]
    fn nested_keys_and_block_texts() {
        let all = fields(
            "tools:\n  write: false\n  bash: ask\nfolded: >-\n  one\n  two\n\n  three\nkept: |\n  one\n    two\nrunning: one\n  two",
        );
        assert_eq!(
            all.get("tools"),
            Some(&Field::Map(vec![("write".into(), "false".into()), ("bash".into(), "ask".into())]))
        );
        assert_eq!(all.text("folded"), Some("one two\nthree"));
        assert_eq!(all.text("kept"), Some("one\n  two"));
        assert_eq!(all.text("running"), Some("one two"));
    }

    #[test]
    fn the_body_is_what_follows() {
        assert_eq!(split("---\r\nname: a\r\n---\r\nbody\n").unwrap().1, "body\n");
        assert_eq!(split("no front matter").unwrap(), (FrontMatter::default(), "no front matter"));
        assert!(split("---\nname: a\n").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(---\n)?([-a-z:|>\\[\\]\"' ,#é\n\t]{0,12}\n?){0,12}(---\n)?") {
            let _ = split(&text);
        }
    }
}
