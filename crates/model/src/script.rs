//! Scripts: what to say, step by step, and faults on the way.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What one model call answers. Everything is optional.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// Words, streamed in small pieces.
    pub text: Option<String>,
    /// Thoughts, before the words.
    pub thinking: Option<String>,
    /// Tool calls, after the words.
    pub tools: Vec<ToolCall>,
    /// One tool call, in short.
    pub tool: Option<String>,
    /// The input of that one.
    pub input: Option<Value>,
    /// The stop reason, if another than follows from the rest.
    pub stop: Option<String>,
    /// Fail with this HTTP status, in the provider's own shape.
    pub status: Option<u16>,
    /// The error's message.
    pub message: Option<String>,
    /// Seconds to say in `retry-after`.
    pub retry_after: Option<u32>,
    /// Break the connection after so many pieces of the stream.
    pub cut_after_chunks: Option<usize>,
    /// Fail or break only so many times; then play the rest of the step.
    pub times: Option<u32>,
    /// Wait before answering.
    pub delay_ms: u64,
    /// Wait between pieces.
    pub chunk_delay_ms: u64,
    /// What to say was used.
    pub usage: Option<Usage>,
}

/// A tool call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    /// The tool.
    pub name: String,
    /// Its input.
    #[serde(default)]
    pub input: Value,
}

/// Tokens, by class.
#[expect(clippy::struct_field_names, reason = "the names that providers and the API use")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Usage {
    /// Fresh input.
    pub input_tokens: u64,
    /// Output.
    pub output_tokens: u64,
    /// Read from the cache.
    pub cache_read_tokens: u64,
    /// Written to the cache.
    pub cache_write_tokens: u64,
}

/// What to say to words without a script.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Words that must occur, in any case of letters.
    pub contains: String,
    /// The steps.
    pub steps: Vec<Step>,
}

impl Step {
    /// A step that only speaks.
    pub fn text(words: impl Into<String>) -> Self {
        Self { text: Some(words.into()), ..Self::default() }
    }

    /// All its tool calls.
    pub(crate) fn calls(&self) -> Vec<ToolCall> {
        let short = self.tool.iter().map(|name| ToolCall {
            name: name.clone(),
            input: self.input.clone().unwrap_or_else(|| Value::Object(serde_json::Map::new())),
        });
        self.tools.iter().cloned().chain(short).collect()
    }

    /// What it used: stated, or a small number that follows from the words.
    pub(crate) fn used(&self, prompt: &str) -> Usage {
        self.usage.unwrap_or_else(|| {
            let words = |text: &Option<String>| {
                text.as_deref().map_or(0, |text| text.split_whitespace().count() as u64)
            };
            Usage {
                input_tokens: 100 + (prompt.len() as u64 / 4).min(4000),
                output_tokens: words(&self.text) + words(&self.thinking) + 20 * self.calls().len() as u64,
                ..Usage::default()
            }
        })
    }
}

/// One message of a request, as far as scripts care.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Whether the model said it.
    pub(crate) assistant: bool,
    /// Human words in it; none if it only carries tool results.
    pub(crate) words: Option<String>,
}

/// The step to play now, and the words that led to it.
pub(crate) fn choose(turns: &[Turn], rules: &[Rule], helper: bool) -> (Step, String, usize) {
    let last = turns.iter().rposition(|turn| !turn.assistant && turn.words.is_some());
    let words = last.and_then(|at| turns[at].words.clone()).unwrap_or_default();
    let index = last.map_or(0, |at| turns[at..].iter().filter(|turn| turn.assistant).count());
    if helper {
        return (Step::text("A short title"), words, index);
    }
    let steps = scripted(&words).or_else(|| {
        let small = words.to_lowercase();
        rules.iter().find(|rule| small.contains(&rule.contains.to_lowercase())).map(|rule| rule.steps.clone())
    });
    let step = if let Some(steps) = steps {
        steps.into_iter().nth(index).unwrap_or_else(|| Step::text("Done."))
    } else {
        let said: String = words.trim().chars().take(80).collect();
        Step::text(format!("You said: {said}"))
    };
    (step, words, index)
}

/// The script in the words: the JSON array after the first `SCRIPT:` (later ones are within it). Words after it are ignored.
fn scripted(words: &str) -> Option<Vec<Step>> {
    let json = &words[words.find("SCRIPT:")? + "SCRIPT:".len()..];
    let mut values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
    let value = values.next()?.ok()?;
    Some(
        serde_json::from_value(value)
            .unwrap_or_else(|error| vec![Step::text(format!("The script can't be read: {error}"))]),
    )
}

/// A text block of a message: human words, unless the harness put it there by itself.
pub(crate) fn human(text: &str) -> Option<&str> {
    let text = text.trim();
    (!text.is_empty() && !text.starts_with("<system-reminder>")).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(words: &str) -> Turn {
        Turn { assistant: false, words: Some(words.to_owned()) }
    }

    #[test]
    fn answers_since_the_last_words_choose_the_step() {
        let script = r#"go SCRIPT: [{"text":"one"},{"text":"two"}] and more"#;
        let assistant = || Turn { assistant: true, words: None };
        let results = || Turn { assistant: false, words: None };
        let say = |turns: &[Turn]| choose(turns, &[], false).0.text.unwrap();
        assert_eq!(say(&[user(script)]), "one");
        assert_eq!(say(&[user(script), assistant(), results()]), "two");
        assert_eq!(say(&[user(script), assistant(), results(), assistant(), results()]), "Done.");
        assert_eq!(say(&[user(script), assistant(), user("hello")]), "You said: hello");
    }

    #[test]
    fn rules_match_in_any_case() {
        let rules = [Rule { contains: "Refund".into(), steps: vec![Step::text("Yes.")] }];
        assert_eq!(choose(&[user("a REFUND please")], &rules, false).0.text.unwrap(), "Yes.");
    }
}
