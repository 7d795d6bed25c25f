//! A question to the person, from its prompt to the answer. A state machine without IO: lines in, prompts and an answer out.

use std::fmt::Write as _;

use karta_types::event::{AskKind, InputRequired};
use karta_types::message::{Answer, Decision};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::show;
use crate::args::Approve;
use crate::printer::tame;

/// A question while it is asked.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) required: InputRequired,
    questions: Vec<Question>,
    answers: Map<String, Value>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Decide,
    Reason,
    Edit,
    /// The question with this index.
    Choose(usize),
}

/// What a line led to.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Ask on, after saying this, if it says something.
    More(String),
    /// The person has answered.
    Answer(Answer),
}

/// One question of a harness's question tool.
#[derive(Debug, Clone, Deserialize)]
struct Question {
    #[serde(rename = "question")]
    text: String,
    #[serde(default)]
    options: Vec<Choice>,
    #[serde(default, rename = "multiSelect", alias = "multiple")]
    several: bool,
}

#[derive(Debug, Clone, Deserialize)]
struct Choice {
    label: String,
    #[serde(default)]
    description: String,
}

impl Asking {
    pub(super) fn new(required: InputRequired) -> Self {
        let questions: Vec<Question> = match required.kind {
            AskKind::Question => required
                .tool_input
                .get("questions")
                .and_then(|list| Vec::deserialize(list).ok())
                .unwrap_or_default(),
            _ => Vec::new(),
        };
        let stage = if questions.is_empty() { Stage::Decide } else { Stage::Choose(0) };
        Self { required, questions, answers: Map::new(), stage }
    }

    /// What is asked, in full: a person can only approve what they have seen.
    pub(super) fn title(&self) -> String {
        let InputRequired { kind, tool, tool_input, message, .. } = &self.required;
        let (tool, message) = (show::line(tool, 100), tame(message));
        match kind {
            AskKind::ToolUse => format!("{message}\n{tool} {}", show::whole(tool_input)),
            AskKind::Plan => {
                let plan = tool_input.get("plan").and_then(Value::as_str).map(tame);
                format!("{message}\n{}", plan.unwrap_or_else(|| show::whole(tool_input)))
            }
            AskKind::Question if self.questions.is_empty() => {
                format!("{message}\n{}", show::whole(tool_input))
            }
            AskKind::Question => message,
        }
    }

    /// What to type now.
    pub(super) fn prompt(&self) -> String {
        match &self.stage {
            Stage::Decide => {
                let session =
                    if self.has(Decision::ApproveSession) { " · a for the whole session" } else { "" };
                let edit = if self.required.kind == AskKind::ToolUse { " · e edit" } else { "" };
                format!("y yes, once{session} · n no{edit} › ")
            }
            Stage::Reason => "why not? (the agent reads it; may be empty) › ".to_owned(),
            Stage::Edit => format!("{} (empty goes back) › ", self.editing()),
            Stage::Choose(index) => self.questions.get(*index).map(Question::prompt).unwrap_or_default(),
        }
    }

    fn has(&self, decision: Decision) -> bool {
        self.required.options.is_empty() || self.required.options.contains(&decision)
    }

    fn editing(&self) -> &'static str {
        if self.command().is_some() { "new command" } else { "new input as JSON, on one line" }
    }

    /// The one field worth editing by itself.
    fn command(&self) -> Option<&str> {
        self.required.tool_input.get("command").and_then(Value::as_str)
    }

    /// Takes what the person typed.
    pub(super) fn line(&mut self, line: &str) -> Step {
        let line = line.trim();
        match self.stage {
            Stage::Decide => self.decide(line),
            Stage::Reason => {
                let reason = (!line.is_empty()).then(|| line.to_owned());
                Step::Answer(Answer { message: reason, ..plain(Decision::Deny) })
            }
            Stage::Edit => self.edit(line),
            Stage::Choose(index) => self.choose(index, line),
        }
    }

    fn decide(&mut self, line: &str) -> Step {
        match line.to_lowercase().as_str() {
            "y" | "yes" => Step::Answer(plain(Decision::ApproveOnce)),
            "a" if self.has(Decision::ApproveSession) => Step::Answer(plain(Decision::ApproveSession)),
            "n" | "no" => {
                self.stage = Stage::Reason;
                Step::More(String::new())
            }
            "e" if self.required.kind == AskKind::ToolUse => {
                self.stage = Stage::Edit;
                Step::More(String::new())
            }
            _ => Step::More("Please type one of the letters".to_owned()),
        }
    }

    fn edit(&mut self, line: &str) -> Step {
        if line.is_empty() {
            self.stage = Stage::Decide;
            return Step::More(String::new());
        }
        let input = if self.command().is_some() && !line.starts_with('{') {
            let mut input = self.required.tool_input.clone();
            input["command"] = line.into();
            input
        } else {
            match serde_json::from_str::<Map<String, Value>>(line) {
                Ok(input) => Value::Object(input),
                Err(why) => return Step::More(format!("That is no JSON object: {why}")),
            }
        };
        Step::Answer(Answer { updated_input: Some(input), ..plain(Decision::ApproveOnce) })
    }

    fn choose(&mut self, index: usize, line: &str) -> Step {
        let Some(question) = self.questions.get(index) else { return Step::Answer(plain(Decision::Deny)) };
        match line {
            "" => return Step::More("Please type a number or words, or - for no answer".to_owned()),
            "-" => {
                let message = Some("The person did not want to answer.".to_owned());
                return Step::Answer(Answer { message, ..plain(Decision::Deny) });
            }
            _ => {}
        }
        let Some(answer) = question.read(line) else {
            return Step::More(format!("The numbers go from 1 to {}", question.options.len()));
        };
        self.answers.insert(question.text.clone(), answer);
        if index + 1 < self.questions.len() {
            self.stage = Stage::Choose(index + 1);
            return Step::More(String::new());
        }
        let answers = Some(std::mem::take(&mut self.answers));
        Step::Answer(Answer { answers, ..plain(Decision::ApproveOnce) })
    }
}

impl Question {
    fn prompt(&self) -> String {
        let mut text = format!("{}\n", tame(&self.text));
        for (number, choice) in (1..).zip(&self.options) {
            let about = if choice.description.is_empty() { "" } else { ": " };
            let (label, description) = (tame(&choice.label), tame(&choice.description));
            let _ = writeln!(text, "  {number}  {label}{about}{description}");
        }
        let how = match (self.options.is_empty(), self.several) {
            (true, _) => "your answer",
            (false, true) => "numbers, with commas, or your own words",
            (false, false) => "a number, or your own words",
        };
        text + how + " › "
    }

    /// The labels chosen, or the person's own words; `None` for a number that stands for nothing.
    fn read(&self, line: &str) -> Option<Value> {
        let numbers: Result<Vec<usize>, _> = line.split(',').map(|number| number.trim().parse()).collect();
        match numbers {
            Ok(numbers) if !self.options.is_empty() && (self.several || numbers.len() == 1) => {
                let label = |number: &usize| {
                    self.options.get(number.checked_sub(1)?).map(|choice| choice.label.clone())
                };
                let labels: Vec<_> = numbers.iter().map(label).collect::<Option<_>>()?;
                Some(if self.several { labels.into() } else { labels.into_iter().next()?.into() })
            }
            _ => Some(line.into()),
        }
    }
}

/// The answer that was decided beforehand, or where nobody is at the terminal.
pub(super) fn unattended(required: &InputRequired, approve: Option<Approve>) -> Answer {
    let decision = match (approve, required.kind) {
        (None, _) | (_, AskKind::Question) => Decision::Deny,
        (Some(Approve::Session), _) if required.options.contains(&Decision::ApproveSession) => {
            Decision::ApproveSession
        }
        (Some(_), _) => Decision::ApproveOnce,
    };
    let message = (decision == Decision::Deny)
        .then(|| "Nobody is at the terminal who could answer; go on without this.".to_owned());
    Answer { message, ..plain(decision) }
}

const fn plain(decision: Decision) -> Answer {
    Answer { decision, message: None, updated_input: None, answers: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asking(kind: AskKind, tool_input: Value) -> Asking {
        Asking::new(InputRequired {
            request_id: karta_types::RequestId::from_u128(1),
            kind,
            tool: "Bash".into(),
            tool_input,
            message: "Run this?".into(),
            options: vec![Decision::ApproveOnce, Decision::ApproveSession, Decision::Deny],
            expires_at: None,
        })
    }

    fn answer(asking: &mut Asking, lines: &[&str]) -> Answer {
        for line in &lines[..lines.len() - 1] {
            assert!(matches!(asking.line(line), Step::More(_)), "{line}");
        }
        match asking.line(lines[lines.len() - 1]) {
            Step::Answer(answer) => answer,
            Step::More(said) => panic!("asks on: {said}"),
        }
    }

    #[test]
    fn a_tool_is_approved_refused_or_changed() {
        let ask = || asking(AskKind::ToolUse, json!({"command": "rm a", "timeout": 5}));
        assert_eq!(answer(&mut ask(), &["what", "Y"]), plain(Decision::ApproveOnce));
        assert_eq!(answer(&mut ask(), &["a"]), plain(Decision::ApproveSession));
        let refused = answer(&mut ask(), &["n", "use trash"]);
        assert_eq!((refused.decision, refused.message.as_deref()), (Decision::Deny, Some("use trash")));
        let edited = answer(&mut ask(), &["e", "", "e", "trash a"]);
        assert_eq!(edited.updated_input, Some(json!({"command": "trash a", "timeout": 5})));
        let edited = answer(&mut ask(), &["e", "{no", r#"{"command": "ls"}"#]);
        assert_eq!(edited.updated_input, Some(json!({"command": "ls"})));
    }

    #[test]
    fn what_is_not_open_is_not_offered_and_not_taken() {
        let mut ask = asking(AskKind::Plan, json!({"plan": "1. look"}));
        ask.required.options = vec![Decision::ApproveOnce, Decision::Deny];
        assert_eq!(ask.prompt(), "y yes, once · n no › ");
        assert!(ask.title().ends_with("1. look"));
        assert!(matches!(ask.line("a"), Step::More(_)));
        assert!(matches!(ask.line("e"), Step::More(_)));
    }

    #[test]
    fn questions_are_answered_by_number_or_words() {
        let input = json!({"questions": [
            {"question": "Colour?", "header": "C", "options": [{"label": "Red", "description": "warm"}, {"label": "Blue"}]},
            {"question": "Sizes?", "multiSelect": true, "options": [{"label": "S"}, {"label": "M"}, {"label": "L"}]},
        ]});
        let mut ask = asking(AskKind::Question, input.clone());
        assert!(ask.prompt().contains("  1  Red: warm\n  2  Blue\n"));
        let got = answer(&mut ask, &["3", "0", "2", "1,9", "1, 3"]);
        assert_eq!(got.answers, json!({"Colour?": "Blue", "Sizes?": ["S", "L"]}).as_object().cloned());
        let own = answer(&mut asking(AskKind::Question, input.clone()), &["green", "any"]);
        assert_eq!(own.answers, json!({"Colour?": "green", "Sizes?": "any"}).as_object().cloned());
        assert_eq!(answer(&mut asking(AskKind::Question, input), &["-"]).decision, Decision::Deny);
    }

    #[test]
    fn without_a_person_the_answer_is_no_unless_said_otherwise() {
        let tool = asking(AskKind::ToolUse, json!({})).required;
        let question = asking(AskKind::Question, json!({})).required;
        assert_eq!(unattended(&tool, None).decision, Decision::Deny);
        assert_eq!(unattended(&tool, Some(Approve::Once)), plain(Decision::ApproveOnce));
        assert_eq!(unattended(&tool, Some(Approve::Session)), plain(Decision::ApproveSession));
        assert_eq!(unattended(&question, Some(Approve::Session)).decision, Decision::Deny);
    }

    #[test]
    fn the_whole_input_is_shown_and_can_not_hide_anything() {
        let long = format!("echo {} \u{1b}[2K; rm -rf /", "x".repeat(500));
        let title = asking(AskKind::ToolUse, json!({"command": long})).title();
        assert!(title.contains("rm -rf /") && !title.contains('\u{1b}'));
    }
}
