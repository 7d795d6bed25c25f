//! Records sessions of the real OpenCode: its server runs in a place of its own, driven through the platform's own transport.

mod cases;
mod trim;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use karta_engine::data::transport::{self, Io, IoEvent};
use karta_engine::tasks::Tasks;
use karta_harness::launch::{Gateway, Native};
use karta_harness::opencode::OpenCode;
use karta_harness::transcript::{Do, Step};
use karta_harness::{Codec, Harness as _, Launch, Out, Said, Tree};
use karta_model::{Options, Server};
use karta_sandbox::registry::{Config, build};
use karta_sandbox::{Command, Driver, Sandbox, Spec};
use karta_types::message::Content;
use karta_types::{Secret, SessionId};
use tokio::time::{Instant, timeout};

use self::cases::{Act, Case, What, When};
use crate::trim::annotated;

/// A server that says nothing for so long is stuck.
const SILENCE: Duration = Duration::from_mins(1);
/// What comes after the last turn is heard for so long.
const LAST: Duration = Duration::from_millis(800);

/// Records the cases that are asked for, each into a file of the folder. Answers the names of those that failed.
pub(crate) async fn record(
    program: &str,
    folder: &Path,
    only: &[String],
) -> anyhow::Result<Vec<&'static str>> {
    let root = tempfile::tempdir()?;
    let config = Config {
        root: root.path().join("sessions"),
        machines: karta_sandbox::limits::Machines::new(root.path().join("machines")),
        programs: HashMap::new(),
        functions: HashMap::new(),
        clock: Arc::new(karta_types::time::System),
        rng: Arc::new(karta_types::rng::System),
    };
    let driver = build("process", config)?;
    let mut native = HashMap::new();
    let mut failed = Vec::new();
    for (number, case) in cases::all().into_iter().enumerate() {
        let named = |name: &str| only.iter().any(|one| one == name);
        // What a case resumes must have been recorded in the same run.
        if !(only.is_empty() || named(case.name) || (case.name == "tools" && named("resume"))) {
            continue;
        }
        println!("== {}", case.name);
        let name = case.name;
        let recorded = run(case, program, root.path(), driver.as_ref(), number, &mut native).await;
        match recorded {
            Ok(steps) => crate::write(&folder.join(format!("{name}.jsonl")), &steps)?,
            Err(error) => {
                println!("!! {name}: {error:#}");
                failed.push(name);
            }
        }
    }
    Ok(failed)
}

async fn run(
    case: Case,
    program: &str,
    root: &Path,
    driver: &dyn Driver,
    number: usize,
    native: &mut HashMap<&'static str, (SessionId, String)>,
) -> anyhow::Result<Vec<Step>> {
    let model = Server::start(Options::default()).await.context("starting the scripted model")?;
    let steps = with_model(case, program, root, driver, number, native, &model.base_url()).await;
    model.shutdown().await;
    steps
}

async fn with_model(
    case: Case,
    program: &str,
    root: &Path,
    driver: &dyn Driver,
    number: usize,
    native: &mut HashMap<&'static str, (SessionId, String)>,
    model: &str,
) -> anyhow::Result<Vec<Step>> {
    let known = case.resume.and_then(|from| native.get(from).cloned());
    let session =
        known.as_ref().map_or_else(|| SessionId::from_u128(number as u128 + 1), |(session, _)| *session);
    let release = root.join("releases").join(case.name);
    let mut tree = Tree::new();
    std::fs::create_dir_all(&release)?;
    for (path, content) in &case.files {
        let file = release.join(path);
        std::fs::create_dir_all(file.parent().context("a file without a folder")?)?;
        std::fs::write(file, content)?;
        tree.insert(*path, Tree::wanted(path).then(|| content.clone().into_bytes()));
    }
    let spec = Spec::new(session, release, "recorded".to_owned());
    let sandbox: Arc<dyn Sandbox> = driver.acquire(&spec).await?.into();
    let place = sandbox.place().clone();
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path that is not UTF-8");
    let (workspace, home, temp) = (text(&place.workspace)?, text(&place.home)?, text(&place.temp)?);
    let gateway = Gateway {
        anthropic: model.to_owned(),
        openai: format!("{model}/v1"),
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
        title: "Karta",
        native: match (case.resume, known) {
            (Some(_), Some((_, id))) => Native::Resume(id),
            (Some(missing), None) => Native::Resume(missing.to_owned()),
            (None, _) => Native::New("00000000-0000-4000-8000-000000000000".to_owned()),
        },
        gateway: &gateway,
        agent: None,
        permission_mode: case.mode,
        thinking_budget: None,
        policy: karta_harness::launch::FolderPolicy::default(),
        env: &[],
    };
    let command = OpenCode.command(&launch)?;
    for seed in &command.seeds {
        sandbox.put(Path::new(&seed.path), &seed.content).await?;
    }
    let process = sandbox
        .spawn(&Command {
            program: command.program,
            args: command.args,
            env: command.env,
            cwd: command.cwd.into(),
        })
        .await?;
    let tasks = Tasks::default();
    let io = transport::open(&tasks, process, sandbox.clone(), command.transport, None);
    let mut codec = OpenCode.codec(&launch)?;
    let name = case.name;
    let drive = Drive { name, acts: case.acts.into(), workspace: workspace.clone(), ..Drive::default() };
    let (steps, id) = drive.run(io, codec.as_mut()).await?;
    tasks.shutdown(Duration::from_secs(20)).await;
    if let Some(id) = id {
        native.insert(name, (session, id));
    }
    let short = [
        (workspace.as_str(), "/workspace"),
        (home.as_str(), "/home/session"),
        (temp.as_str(), "/temp"),
        (workspace.trim_start_matches('/'), "workspace"),
        (model.trim_start_matches("http://"), "model:80"),
    ];
    let steps = trim::trimmed(steps, &short);
    let replayed = trim::resumed(&steps, &launch.native);
    let again =
        Launch { native: replayed, workspace: "/workspace", home: "/home/session", temp: "/temp", ..launch };
    Ok(annotated(OpenCode.codec(&again)?.as_mut(), steps))
}

/// What was heard of the running turn.
#[derive(Default)]
struct Heard {
    text: bool,
    retrying: bool,
}

/// The caller of one case.
#[derive(Default)]
struct Drive {
    name: &'static str,
    acts: std::collections::VecDeque<Act>,
    workspace: String,
    thinking: bool,
    messages: usize,
    /// No turn runs and no history is waited for.
    resting: bool,
    /// The question that waits.
    asked: Option<String>,
    heard: Heard,
    /// When the act that is next became the next.
    since: Option<Instant>,
    steps: Vec<Step>,
    native: Option<String>,
}

impl Drive {
    async fn run(mut self, mut io: Io, codec: &mut dyn Codec) -> anyhow::Result<(Vec<Step>, Option<String>)> {
        let (mut out, mut line) = (Out::default(), Vec::new());
        codec.start(&mut out);
        (self.resting, self.since) = (true, Some(Instant::now()));
        loop {
            self.hear(&mut out);
            for bytes in out.writes.drain(..) {
                // A server that takes no more is about to end, which is heard of.
                let _ = io.send(bytes).await;
            }
            if let Some(input) = self.next() {
                codec.input(input.clone().into(), &mut out);
                self.steps.push(Step::Do(input));
                continue;
            }
            let over = self.acts.is_empty() && self.resting;
            let patience = match self.acts.front() {
                _ if over => LAST,
                Some(Act { when: When::After(pause), .. }) => *pause,
                _ => SILENCE,
            };
            match timeout(patience, io.next()).await {
                Ok(IoEvent::Output(bytes)) => {
                    for byte in bytes {
                        if byte != b'\n' {
                            line.push(byte);
                            continue;
                        }
                        let whole = String::from_utf8_lossy(&std::mem::take(&mut line)).into_owned();
                        if !trim::wanted(&whole) {
                            continue;
                        }
                        codec.output(format!("{whole}\n").as_bytes(), &mut out);
                        self.steps.push(Step::Out { line: whole });
                    }
                }
                Ok(IoEvent::Exited { status, stderr }) => {
                    println!("  {}: exit {status:?} {stderr}", self.name);
                    self.steps.push(Step::Exit { status, stderr: String::new() });
                    return Ok((self.steps, self.native));
                }
                Err(_) if over => break,
                Err(_) if patience < SILENCE => {}
                Err(_) => bail!("silence after {:?}", self.steps.last()),
            }
        }
        io.end().await;
        Ok((self.steps, self.native))
    }

    fn hear(&mut self, out: &mut Out) {
        if let Some(native) = out.native_session.take() {
            self.native = Some(native);
        }
        for (said, _) in out.said.drain(..) {
            let shown: String = format!("{said:?}").chars().take(160).collect();
            println!("  {}: {shown}", self.name);
            match said {
                Said::Ended(_) | Said::History(_) => {
                    self.resting = true;
                    self.asked = None;
                }
                Said::Text { .. } => self.heard.text = true,
                Said::Retrying { .. } => self.heard.retrying = true,
                Said::Asked { request, .. } => self.asked = Some(request),
                _ => {}
            }
        }
    }

    /// What the caller does now.
    fn next(&mut self) -> Option<Do> {
        loop {
            let due = match self.acts.front()?.when {
                When::Rest => self.resting,
                When::Text => self.heard.text,
                When::Ask => self.asked.is_some(),
                When::Retry => self.heard.retrying,
                When::After(pause) => self.since.is_some_and(|since| since.elapsed() >= pause),
            };
            if !due {
                return None;
            }
            let act = self.acts.pop_front()?;
            self.since = Some(Instant::now());
            return Some(match act.what {
                What::Think => {
                    self.thinking = true;
                    continue;
                }
                What::Say(text, agent) => {
                    self.messages += 1;
                    (self.resting, self.heard) = (false, Heard::default());
                    let text = text.replace("WORKSPACE", &self.workspace);
                    Do::Message {
                        id: format!("m{}", self.messages),
                        content: vec![Content::Text { text }],
                        agent: agent.map(str::to_owned),
                        thinking: self.thinking,
                    }
                }
                What::Answer(answer) => Do::Answer { request: self.asked.take().unwrap_or_default(), answer },
                What::Interrupt => Do::Interrupt,
                What::Mode(mode) => Do::Mode { mode },
                What::History => {
                    self.resting = false;
                    Do::History
                }
            });
        }
    }
}
