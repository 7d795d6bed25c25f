//! Runs one case: the real process, the adapter's codec, and what was said between them.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context as _, bail};
use karta_harness::claude_code::ClaudeCode;
use karta_harness::launch::{Gateway, Native};
use karta_harness::transcript::{Do, Step};
use karta_harness::{Codec, Harness as _, Launch, Out, Said, Tree};
use karta_types::Secret;
use karta_types::message::Content;

use crate::cases::{Act, Case};
use crate::trim::{annotated, trimmed};

/// A process that says nothing for so long is stuck.
const SILENCE: Duration = Duration::from_mins(1);

pub(crate) fn run(
    case: Case,
    program: &str,
    model: &str,
    root: &Path,
    number: usize,
) -> anyhow::Result<Vec<Step>> {
    let known = case.resume.filter(|from| !from.is_empty());
    let base = root.join(known.unwrap_or(case.name));
    let folder = |name: &str| -> anyhow::Result<String> {
        let path = base.join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path.to_str().context("a path that is not UTF-8")?.to_owned())
    };
    let (workspace, home, temp) = (folder("ws")?, folder("home")?, folder("tmp")?);
    let mut tree = Tree::new();
    for (path, content) in &case.files {
        put(&Path::new(&workspace).join(path), content.as_bytes())?;
        tree.insert(*path, Tree::wanted(path).then(|| content.clone().into_bytes()));
    }
    let session = match known {
        Some(_) => {
            std::fs::read_to_string(base.join("session")).context("its first part was not recorded")?
        }
        None => format!("00000000-0000-4000-8000-0000000000{:02}", number + 10),
    };
    std::fs::write(base.join("session"), &session)?;
    let gateway = Gateway {
        anthropic: if case.reachable { model.to_owned() } else { "http://127.0.0.1:1".to_owned() },
        openai: String::new(),
        token: Secret::new("sk-recorded".to_owned()),
        provider: "anthropic".to_owned(),
        model: "claude-sonnet-4-5".to_owned(),
        small_model: "claude-haiku-4-5".to_owned(),
    };
    let launch = Launch {
        program,
        version: "recorded",
        workspace: &workspace,
        home: &home,
        temp: &temp,
        tree: &tree,
        title: "",
        native: if case.resume.is_some() { Native::Resume(session) } else { Native::New(session) },
        gateway: &gateway,
        agent: case.agent,
        permission_mode: case.mode,
        thinking_budget: None,
        policy: case.policy,
        env: &[],
    };
    let command = ClaudeCode.command(&launch)?;
    for seed in &command.seeds {
        put(Path::new(&seed.path), &seed.content)?;
    }
    let child = Command::new(&command.program)
        .args(&command.args)
        .args((case.name == "max-turns").then_some("--max-turns=1"))
        .env_clear()
        .envs(command.env.iter().cloned())
        .current_dir(&command.cwd)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting `{program}`"))?;
    let mut codec = ClaudeCode.codec(&launch)?;
    let steps = Drive::new(case.name, case.acts, number).run(child, codec.as_mut())?;
    let flat = workspace.replace('/', "-");
    let short = [
        (workspace.as_str(), "/workspace"),
        (home.as_str(), "/home/session"),
        (temp.as_str(), "/temp"),
        (model.trim_start_matches("http://"), "model:80"),
        (flat.as_str(), "-workspace"),
    ];
    Ok(annotated(ClaudeCode.codec(&launch)?.as_mut(), trimmed(steps, &short)))
}

fn put(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    std::fs::create_dir_all(path.parent().context("a file without a folder")?)?;
    Ok(std::fs::write(path, content)?)
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    receive
}

/// The caller of one case.
struct Drive {
    name: &'static str,
    number: usize,
    say: VecDeque<Act>,
    at_text: VecDeque<Act>,
    at_ask: VecDeque<Act>,
    thinking: bool,
    messages: usize,
    /// Everything was said: the process may end.
    over: bool,
}

impl Drive {
    fn new(name: &'static str, acts: Vec<Act>, number: usize) -> Self {
        let (mut say, mut at_text, mut at_ask) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        for act in acts {
            match act {
                Act::Steer(_) | Act::InterruptAtText => at_text.push_back(act),
                Act::Answer(_) | Act::InterruptAtAsk => at_ask.push_back(act),
                other => say.push_back(other),
            }
        }
        Self { name, number, say, at_text, at_ask, thinking: false, messages: 0, over: false }
    }

    fn message(&mut self, text: String) -> Do {
        self.messages += 1;
        Do::Message {
            id: format!("00000000-0000-4000-8000-{:08}{:04}", self.number, self.messages),
            content: vec![Content::Text { text }],
            agent: None,
            thinking: self.thinking,
        }
    }

    /// What the caller does now that this was said.
    fn hears(&mut self, said: Said) -> anyhow::Result<Vec<Do>> {
        let mut todo = Vec::new();
        match said {
            Said::Ready | Said::Ended(_) => loop {
                match self.say.pop_front() {
                    Some(Act::Think) => self.thinking = true,
                    Some(Act::Mode(mode)) => todo.push(Do::Mode { mode }),
                    Some(Act::Say(text)) => {
                        todo.push(self.message(text));
                        break;
                    }
                    _ => {
                        self.over = true;
                        break;
                    }
                }
            },
            Said::Text { .. } => match self.at_text.pop_front() {
                Some(Act::Steer(text)) => todo.push(self.message(text)),
                Some(_) => todo.push(Do::Interrupt),
                None => {}
            },
            Said::Asked { request, .. } => match self.at_ask.pop_front() {
                Some(Act::Answer(answer)) => todo.push(Do::Answer { request, answer }),
                Some(_) => todo.push(Do::Interrupt),
                None => bail!("nobody answers"),
            },
            _ => {}
        }
        Ok(todo)
    }

    fn run(mut self, mut child: Child, codec: &mut dyn Codec) -> anyhow::Result<Vec<Step>> {
        let mut stdin = child.stdin.take();
        let output = lines(child.stdout.take().context("its output")?);
        let errors = lines(child.stderr.take().context("its errors")?);
        let (mut steps, mut out) = (Vec::new(), Out::default());
        codec.start(&mut out);
        // A session that can't be resumed ends before it is ready; the message is on its way by then.
        if self.name == "resume-unknown"
            && let Some(Act::Say(text)) = self.say.pop_front()
        {
            let input = self.message(text);
            codec.input(input.clone().into(), &mut out);
            steps.push(Step::Do(input));
        }
        loop {
            for line in out.writes.drain(..) {
                if let Some(stdin) = &mut stdin {
                    // A process that takes no more is about to end, which is heard of.
                    let _ = stdin.write_all(&line).and_then(|()| stdin.flush());
                }
            }
            let said: Vec<_> = out.said.drain(..).map(|(said, _)| said).collect();
            let mut todo = Vec::new();
            for said in said {
                let shown: String = format!("{said:?}").chars().take(200).collect();
                println!("  {}: {shown}", self.name);
                todo.extend(self.hears(said)?);
            }
            if self.over {
                stdin = None;
            }
            if !todo.is_empty() {
                for input in todo {
                    codec.input(input.clone().into(), &mut out);
                    steps.push(Step::Do(input));
                }
                continue;
            }
            match output.recv_timeout(SILENCE) {
                Ok(line) => {
                    codec.output(line.as_bytes(), &mut out);
                    codec.output(b"\n", &mut out);
                    steps.push(Step::Out { line });
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    child.kill()?;
                    bail!("silence after {:?}", steps.last());
                }
            }
        }
        let status = child.wait()?.code();
        let stderr = errors.iter().collect::<Vec<_>>().join("\n");
        println!("  {}: exit {status:?} {stderr}", self.name);
        steps.push(Step::Exit { status, stderr });
        Ok(steps)
    }
}
