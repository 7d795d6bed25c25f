//! The player: the scripted harness's program, without its IO.
//!
//! A host feeds it input lines and asks for the next [`Action`] until that is [`Action::Listen`].

use std::borrow::Cow;
use std::collections::VecDeque;

use super::script::{Script, Step};
use super::wire::{End, Line, Order, Piece, Said, yes};

/// What the host is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write this to standard output.
    Write(Vec<u8>),
    /// Write this to standard error.
    Stderr(String),
    /// Append this to the history file.
    Append(Vec<u8>),
    /// Wait so many milliseconds, but hear input meanwhile.
    Wait(u64),
    /// Wait for input.
    Listen,
    /// End with this status.
    Exit(i32),
}

/// Plays one session.
#[expect(clippy::struct_excessive_bools, reason = "each is a state of its own; a script can reach every mix")]
#[derive(Debug)]
pub struct Player {
    script: Script,
    native: String,
    started: bool,
    /// Turns without a `match` that were played.
    played: usize,
    todo: VecDeque<Step>,
    /// The open question, and what follows a yes and a no.
    asked: Option<(String, Vec<Step>, Vec<Step>)>,
    playing: bool,
    deaf: bool,
    hanging: bool,
    message: String,
    said: String,
    parts: u32,
    calls: u32,
    ready: VecDeque<Action>,
}

impl Player {
    /// Plays `script` in the session `native`, of which `history` was kept.
    ///
    /// # Errors
    /// The script can't be read.
    pub fn new(script: &str, native: &str, history: &[u8]) -> Result<Self, String> {
        let script: Script = serde_json::from_str(script).map_err(|error| error.to_string())?;
        let lines = history.split(|&byte| byte == b'\n');
        let played = lines
            .filter_map(|line| serde_json::from_slice::<Said>(line).ok())
            .filter(|said| said.user)
            .count();
        Ok(Self {
            script,
            native: native.to_owned(),
            started: false,
            played,
            todo: VecDeque::new(),
            asked: None,
            playing: false,
            deaf: false,
            hanging: false,
            message: String::new(),
            said: String::new(),
            parts: 0,
            calls: 0,
            ready: VecDeque::new(),
        })
    }

    /// Takes a line of standard input in.
    pub fn line(&mut self, line: &[u8]) {
        match serde_json::from_slice(line) {
            Ok(Order::Message(text)) if self.playing => {
                // Steered: said back, so that it is seen to have come.
                self.todo.push_front(Step::Say(format!("[steered: {text}]")));
            }
            Ok(Order::Message(text)) => self.begin(text),
            Ok(Order::Answer { request, answer }) => {
                if let Some((_, approved, denied)) = self.asked.take_if(|(open, _, _)| *open == request) {
                    let next = if yes(&answer) { approved } else { denied };
                    for step in next.into_iter().rev() {
                        self.todo.push_front(step);
                    }
                    if let Some(words) = answer.message {
                        self.todo.push_front(Step::Notice(words));
                    }
                }
            }
            Ok(Order::Interrupt) if self.playing && !self.deaf => {
                self.todo.clear();
                self.asked = None;
                self.hanging = false;
                self.end(End::Interrupted);
            }
            _ => {}
        }
    }

    /// What to do next.
    pub fn next_action(&mut self) -> Action {
        if !std::mem::replace(&mut self.started, true) {
            let native = self.native.clone();
            if self.script.start_ms > 0 {
                self.ready.push_back(Action::Wait(self.script.start_ms));
            }
            self.write(&Line::Ready(Cow::Owned(native)));
        }
        loop {
            if let Some(action) = self.ready.pop_front() {
                return action;
            }
            if self.asked.is_some() || self.hanging || !self.playing {
                return Action::Listen;
            }
            match self.todo.pop_front() {
                Some(step) => self.play(step),
                None => self.end(End::Completed),
            }
        }
    }

    fn begin(&mut self, text: String) {
        let matching = |turn: &&super::script::Turn| {
            turn.pattern.as_ref().is_some_and(|pattern| text.contains(pattern.as_str()))
        };
        let turn = self.script.turns.iter().find(matching).or_else(|| {
            let plain: Vec<_> = self.script.turns.iter().filter(|turn| turn.pattern.is_none()).collect();
            plain.get(self.played).or_else(|| plain.last()).copied()
        });
        self.todo = turn.map(|turn| turn.steps.clone().into()).unwrap_or_default();
        self.played += 1;
        self.playing = true;
        self.message.clone_from(&text);
        self.said.clear();
        self.keep(true, text);
        self.write(&Line::Step(0));
    }

    fn play(&mut self, step: Step) {
        match step {
            Step::Say(text) => self.say(&text),
            Step::Echo(_) => self.say(&self.message.clone()),
            Step::Think(text) => {
                self.parts += 1;
                let part = Cow::Owned(format!("p{}", self.parts));
                self.write(&Line::Think(Piece { part, text: text.into() }));
            }
            Step::Repeat { times, say } => {
                self.parts += 1;
                let part = format!("p{}", self.parts);
                for _ in 0..times {
                    self.said.push_str(&say);
                    self.write(&Line::Text(Piece { part: Cow::Borrowed(&part), text: Cow::Borrowed(&say) }));
                }
            }
            Step::Tool { name, input, output, is_error } => {
                self.calls += 1;
                let call = format!("call_{}", self.calls);
                self.write(&Line::ToolUse { call: Cow::Borrowed(&call), tool: name.into(), input });
                self.write(&Line::ToolResult { call: Cow::Borrowed(&call), output, is_error });
            }
            Step::Ask { kind, tool, input, message, approved, denied } => {
                self.calls += 1;
                let request = format!("ask_{}", self.calls);
                let line = Line::Ask {
                    request: request.clone().into(),
                    kind,
                    tool: tool.into(),
                    input,
                    message: message.into(),
                };
                self.write(&line);
                self.asked = Some((request, approved, denied));
            }
            Step::Use { model, usage, cost_micros } => {
                self.write(&Line::Use { model: model.into(), usage, cost_micros });
            }
            Step::WaitMs(millis) => self.ready.push_back(Action::Wait(millis)),
            Step::Notice(text) => self.write(&Line::Notice(text.into())),
            Step::Raw(text) => self.ready.push_back(Action::Write(text.into_bytes())),
            Step::Flood(bytes) => {
                // In blocks, so that the player itself stays small.
                let block = vec![b'x'; 64 << 10];
                for _ in 0..bytes / block.len() {
                    self.ready.push_back(Action::Write(block.clone()));
                }
                self.ready.push_back(Action::Write(b"\n".to_vec()));
            }
            Step::Stderr(text) => self.ready.push_back(Action::Stderr(text)),
            Step::Fail { code, message } => {
                self.todo.clear();
                self.end(End::Failed { code, message: message.into() });
            }
            Step::Exit(status) => self.ready.push_back(Action::Exit(status)),
            Step::Hang(deaf) => {
                self.hanging = true;
                self.deaf = deaf;
            }
        }
    }

    fn say(&mut self, text: &str) {
        self.parts += 1;
        self.said.push_str(text);
        let part = Cow::Owned(format!("p{}", self.parts));
        self.write(&Line::Text(Piece { part, text: Cow::Borrowed(text) }));
    }

    fn end(&mut self, end: End<'_>) {
        self.playing = false;
        let said = std::mem::take(&mut self.said);
        self.keep(false, said);
        self.write(&Line::End(end));
    }

    fn keep(&mut self, user: bool, text: String) {
        if self.script.history
            && let Ok(mut line) = serde_json::to_vec(&Said { user, text })
        {
            line.push(b'\n');
            self.ready.push_back(Action::Append(line));
        }
    }

    /// Lines that follow one another go out together.
    fn write(&mut self, line: &Line<'_>) {
        if let Some(Action::Write(bytes)) = self.ready.back_mut() {
            if serde_json::to_writer(&mut *bytes, line).is_ok() {
                bytes.push(b'\n');
            }
        } else if let Ok(mut bytes) = serde_json::to_vec(line) {
            bytes.push(b'\n');
            self.ready.push_back(Action::Write(bytes));
        }
    }
}
