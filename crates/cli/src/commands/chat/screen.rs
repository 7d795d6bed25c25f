//! Events on a terminal: words stream, thinking is faint, tool calls are a line each.
//!
//! The agent's words are the result and go to standard output; the rest goes to standard error. Where standard output is a
//! terminal both meet on it, so the screen knows which column it is in.

use std::io::{IsTerminal as _, Write};

use karta_types::event::{Chunk, InputRequired};
use karta_types::message::Decision;
use karta_types::session::TurnState;
use karta_types::{Body, Event, Problem};

use super::show;
use crate::printer::{CLEAR, CYAN, DIM, FRAMES, Printer, RED, YELLOW, tame};

/// How long a line about a tool gets.
const WIDTH: usize = 100;

/// What the words on the current line are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Column {
    /// At the start of a line.
    Start,
    /// Behind words of this part.
    Words(String),
    /// Behind thoughts of this part.
    Thoughts(String),
    /// Behind the sign of life.
    Sign,
    /// Behind a prompt; what the person types is there too.
    Prompt,
}

/// The terminal, or what stands for it.
#[expect(clippy::struct_excessive_bools, reason = "each is one property of the terminal, and all combine")]
pub(super) struct Screen {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    json: bool,
    quiet: bool,
    /// Words go out as they come. Otherwise whole at the end, because what was printed to a file can't be taken back.
    stream: bool,
    /// There may be a sign of life.
    lively: bool,
    column: Column,
    frame: usize,
}

impl Screen {
    pub(super) fn new(printer: &Printer, json: bool) -> Self {
        let (out, err) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        Self {
            out: Box::new(printer.out()),
            err: Box::new(printer.err()),
            json,
            quiet: printer.quiet(),
            stream: out && !json,
            lively: err && !printer.quiet(),
            column: Column::Start,
            frame: 0,
        }
    }

    /// Shows an event.
    pub(super) fn event(&mut self, event: &Event) -> anyhow::Result<()> {
        if self.json {
            self.settle();
            let text = serde_json::to_string(event)?;
            writeln!(self.out, "{text}")?;
            self.out.flush()?;
        }
        match &event.body {
            Body::Text { part, parent_tool_use_id: None } => self.words(part)?,
            Body::Reasoning { part, parent_tool_use_id: None } => self.thoughts(part),
            Body::ToolUse { tool_name, tool_input, parent_tool_use_id, .. } => {
                let indent = if parent_tool_use_id.is_some() { "  " } else { "" };
                let (name, input) = (show::line(tool_name, 60), show::input(tool_input, WIDTH));
                self.say(&format!("{indent}{CYAN}●{CYAN:#} {name} {DIM}{input}{DIM:#}"));
            }
            Body::ToolResult { output, is_error, truncated, .. } => {
                let cut = if *truncated { " (cut)" } else { "" };
                let style = if *is_error { RED } else { DIM };
                let mark = if *is_error { "failed: " } else { "" };
                self.say(&format!("  {style}└ {mark}{}{cut}{style:#}", show::output(output, WIDTH)));
            }
            Body::AgentChanged { to, .. } => {
                let to =
                    to.as_deref().map_or_else(|| "the default agent".to_owned(), |to| show::line(to, 60));
                self.say(&format!("{CYAN}→{CYAN:#} {to} takes over"));
            }
            Body::Error(problem) => self.problem(problem),
            Body::Gap { from_seq, to_seq } => {
                self.say(&format!("{YELLOW}gap{YELLOW:#}: events {from_seq} to {to_seq} are no longer kept"));
            }
            Body::Done { status, text, usage, duration_ms, .. } => {
                if !self.stream && !self.json {
                    self.settle();
                    writeln!(self.out, "{}", text.trim_end())?;
                    self.out.flush()?;
                }
                let ended = match status {
                    TurnState::Completed => String::new(),
                    other => format!("{YELLOW}{}{YELLOW:#} · ", other.as_str().replace('_', " ")),
                };
                self.say(&format!("{ended}{DIM}{}{DIM:#}", show::usage(usage, *duration_ms)));
            }
            // A sub-agent's words are its caller's to pass on; the rest is for machines.
            Body::Text { .. }
            | Body::Reasoning { .. }
            | Body::TurnStart { .. }
            | Body::StepStart { .. }
            | Body::StepFinish { .. }
            | Body::InputRequired(_)
            | Body::InputResolved { .. }
            | Body::System { .. } => {}
        }
        Ok(())
    }

    fn words(&mut self, part: &Chunk) -> anyhow::Result<()> {
        if part.discarded {
            self.say(&format!("{DIM}(taken back: the model is asked again){DIM:#}"));
            return Ok(());
        }
        if !self.stream {
            return Ok(());
        }
        if self.column != Column::Words(part.id.clone()) {
            self.settle();
        }
        let text = tame(&part.text);
        self.out.write_all(text.as_bytes())?;
        self.out.flush()?;
        self.column = Column::Words(part.id.clone());
        if text.ends_with('\n') {
            self.column = Column::Start;
        }
        Ok(())
    }

    fn thoughts(&mut self, part: &Chunk) {
        if self.quiet || self.json || part.discarded {
            return;
        }
        if self.column != Column::Thoughts(part.id.clone()) {
            self.settle();
        }
        let text = tame(&part.text);
        let _ = write!(self.err, "{DIM}{text}{DIM:#}");
        let _ = self.err.flush();
        self.column = if text.ends_with('\n') { Column::Start } else { Column::Thoughts(part.id.clone()) };
    }

    fn problem(&mut self, problem: &Problem) {
        self.settle();
        // Even when nothing else is said: this is why.
        let _ = writeln!(self.err, "{RED}error{RED:#}: {}", tame(&problem.to_string()));
        let _ = writeln!(self.err, "  {CYAN}hint{CYAN:#}: {}", problem.error.help());
    }

    /// Shows an error that is not the end.
    pub(super) fn error(&mut self, error: &anyhow::Error) {
        self.settle();
        let _ = writeln!(self.err, "{RED}error{RED:#}: {}", tame(&format!("{error:#}")));
    }

    /// Says something beside the conversation.
    pub(super) fn note(&mut self, text: &str) {
        self.say(&format!("{DIM}{text}{DIM:#}"));
    }

    /// Tells how a question was answered by itself.
    pub(super) fn decided(&mut self, required: &InputRequired, decision: Decision) {
        let how = match decision {
            Decision::Deny => "denied, nobody is at the terminal (`--approve` changes that)",
            Decision::ApproveOnce => "approved once, by `--approve`",
            Decision::ApproveSession => "approved for the session, by `--approve`",
        };
        let (tool, input) = (show::line(&required.tool, 60), show::input(&required.tool_input, WIDTH));
        self.say(&format!("{YELLOW}?{YELLOW:#} {tool} {input}: {how}"));
    }

    /// Puts a question; [`Screen::prompt`] follows.
    pub(super) fn question(&mut self, title: &str) {
        self.settle();
        // Asked even when quiet: an answer is needed.
        let _ = writeln!(self.err, "{YELLOW}?{YELLOW:#} {}", title.replace('\n', "\n  "));
    }

    /// Asks for a line.
    pub(super) fn prompt(&mut self, text: &str) {
        self.settle();
        let _ = write!(self.err, "{CYAN}{text}{CYAN:#}");
        let _ = self.err.flush();
        self.column = Column::Prompt;
    }

    /// The person has pressed return.
    pub(super) fn entered(&mut self) {
        self.column = Column::Start;
    }

    /// To the start of a line, if not there.
    pub(super) fn newline(&mut self) {
        self.settle();
    }

    /// Moves the sign of life, where there is room for one.
    pub(super) fn tick(&mut self, reconnecting: bool) {
        if !self.lively || !matches!(self.column, Column::Start | Column::Sign) {
            return;
        }
        self.frame = (self.frame + 1) % FRAMES.len();
        let doing = if reconnecting { "connection lost, taking it up again" } else { "working" };
        let _ = write!(self.err, "{CLEAR}{CYAN}{}{CYAN:#} {DIM}{doing}{DIM:#}", FRAMES[self.frame]);
        let _ = self.err.flush();
        self.column = Column::Sign;
    }

    /// Ends what stands on the line.
    pub(super) fn settle(&mut self) {
        match std::mem::replace(&mut self.column, Column::Start) {
            Column::Start => {}
            Column::Sign => {
                let _ = write!(self.err, "{CLEAR}");
            }
            Column::Words(_) => {
                let _ = writeln!(self.out);
            }
            Column::Thoughts(_) | Column::Prompt => {
                let _ = writeln!(self.err);
            }
        }
        let _ = self.err.flush();
    }

    fn say(&mut self, text: &str) {
        self.settle();
        if !self.quiet {
            let _ = writeln!(self.err, "{text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};

    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Paper {
        fn text(&self) -> String {
            let bytes = self.0.lock().unwrap().clone();
            anstream::adapter::strip_str(std::str::from_utf8(&bytes).unwrap()).to_string()
        }
    }

    /// A terminal: both streams meet on one paper.
    fn terminal() -> (Screen, Paper) {
        let paper = Paper::default();
        let screen = Screen {
            out: Box::new(paper.clone()),
            err: Box::new(paper.clone()),
            json: false,
            quiet: false,
            stream: true,
            lively: true,
            column: Column::Start,
            frame: 0,
        };
        (screen, paper)
    }

    fn show(screen: &mut Screen, kind: &str, data: &Value) {
        let event = json!({"type": kind, "data": data, "seq": 1, "turn_id": null, "timestamp": 0, "source": "scripted",
            "session_id": "sess_01jd0000000000000000000001"});
        screen.event(&serde_json::from_value(event).unwrap()).unwrap();
    }

    fn part(id: &str, text: &str) -> Value {
        json!({"part": {"id": id, "text": text}})
    }

    #[test]
    fn a_turn_reads_from_top_to_bottom() {
        let (mut screen, paper) = terminal();
        show(&mut screen, "reasoning", &part("r", "Hm, "));
        show(&mut screen, "reasoning", &part("r", "a file."));
        show(&mut screen, "text", &part("a", "I will "));
        show(&mut screen, "text", &part("a", "look\u{1b}[2J."));
        let call = json!({"tool_use_id": "t", "tool_name": "Read", "tool_input": {"file_path": "/a"}});
        show(&mut screen, "tool_use", &call);
        let result = json!({"tool_use_id": "t", "output": "x\ny", "is_error": false, "truncated": false});
        show(&mut screen, "tool_result", &result);
        let failed = json!({"tool_use_id": "t", "output": "no", "is_error": true, "truncated": true});
        show(&mut screen, "tool_result", &failed);
        show(&mut screen, "text", &part("b", "Done.\n"));
        show(&mut screen, "text", &json!({"part": {"id": "s", "text": "inner"}, "parent_tool_use_id": "t"}));
        let usage = json!({"input_tokens": 1, "output_tokens": 2, "total_tokens": 3, "cache_read_tokens": 0,
            "cache_write_tokens": 0, "cost_micros": 4});
        let done = json!({"status": "interrupted", "text": "…", "usage": usage, "cost_micros": 4,
            "stop_reason": null, "duration_ms": 1500});
        show(&mut screen, "done", &done);
        assert_eq!(
            paper.text(),
            "Hm, a file.\nI will look[2J.\n● Read /a\n  └ x (+1 line)\n  └ failed: no (cut)\nDone.\n\
             interrupted · 1 in · 2 out · $0.000004 · 1.5 s\n"
        );
    }

    #[test]
    fn the_sign_of_life_never_touches_words() {
        let (mut screen, paper) = terminal();
        show(&mut screen, "text", &part("a", "half a"));
        screen.tick(false);
        assert_eq!(paper.text(), "half a");
        show(&mut screen, "text", &part("a", " line\n"));
        screen.tick(true);
        assert!(paper.text().ends_with("connection lost, taking it up again"));
        screen.prompt("y/n ");
        screen.tick(false);
        assert!(paper.text().ends_with("y/n "), "{:?}", paper.text());
    }
}
