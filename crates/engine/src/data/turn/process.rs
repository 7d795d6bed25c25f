//! The harness process of a session: started with everything it needs, heard, written to, ended.

use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use karta_harness::launch::{FolderPolicy, Gateway as GatewayAddress};
use karta_harness::{Capabilities, HistorySource, Input, Launch, Native};
use karta_sandbox::{Command, Sandbox, Spec};
use karta_types::message::Content;
use karta_types::{Body, ErrorCode, RequestId};
use serde_json::json;

use crate::data::channels::{Pass, SessionChannel};
use crate::data::releases::Loaded;
use crate::data::transport::{self, Io, IoEvent};
use crate::data::turn::machine::{Effect, Limits, Machine};
use crate::data::turn::run::{NewTurn, Runner};
use crate::{Error, Result};

/// A history file larger than this is not looked at to decide whether a session can be resumed.
const PROBE: u64 = 64;

/// A process that runs.
pub(super) struct Running {
    pub(super) machine: Machine,
    pub(super) capabilities: Capabilities,
    version: u64,
    agent: Option<String>,
    /// It was killed; its end is still to be heard of.
    killed: bool,
    io: Io,
    sandbox: Arc<dyn Sandbox>,
    _pass: Pass,
    _room: Option<crate::data::places::Place>,
}

/// What was heard of a process.
pub(super) enum Heard {
    /// It wrote this.
    Output(Bytes),
    /// It is gone.
    Exited {
        /// Its status.
        status: Option<i32>,
        /// The end of its standard error.
        stderr: String,
    },
}

impl From<IoEvent> for Heard {
    fn from(event: IoEvent) -> Self {
        match event {
            IoEvent::Output(bytes) => Self::Output(bytes),
            IoEvent::Exited { status, stderr } => Self::Exited { status, stderr },
        }
    }
}

/// What the process says next; never, if there is none.
pub(super) async fn hear(running: Option<&mut Running>) -> Heard {
    match running {
        Some(running) => running.io.next().await.into(),
        None => std::future::pending().await,
    }
}

impl Running {
    /// Output that is there already.
    pub(super) fn try_hear(&mut self) -> Option<Bytes> {
        self.io.try_output()
    }

    /// Whether the process is not ready yet.
    pub(super) fn starting(&self) -> bool {
        self.machine.starting()
    }

    pub(super) async fn write(&mut self, bytes: Bytes) {
        // A process that takes no more input is gone, or about to be: its end is heard of.
        let _ = self.io.send(bytes).await;
    }

    pub(super) fn kill(&mut self) {
        self.killed = true;
        self.io.kill();
    }

    /// Ends the process and waits until it is gone.
    pub(super) async fn end(self) {
        self.io.end().await;
    }
}

impl Runner {
    /// A process for this release and agent: the one that runs, or a new one that goes on where the last ended. Answers what to
    /// tell about the start.
    pub(super) async fn ensure_process(
        &mut self,
        release: &Arc<Loaded>,
        agent: Option<&str>,
    ) -> Result<Vec<Body>> {
        if let Some(running) = &self.running {
            let same_agent = running.capabilities.agent_per_message || running.agent.as_deref() == agent;
            if running.version == release.row.version
                && same_agent
                && !running.machine.gone()
                && !running.killed
            {
                return Ok(Vec::new());
            }
        }
        if let Some(old) = self.running.take() {
            old.end().await;
        }
        self.leave_other(release.row.version).await?;
        let asked = self.engine.clock().now();
        let (before, room) = self.engine.process_place(release.harness.id(), self.row.org).await?;
        let waited = self.engine.clock().now().since(asked);
        let driver = self.engine.driver(release.harness.id());
        let spec = Spec::new(self.row.id, release.path.clone(), release.row.digest.clone());
        let (sandbox, brought) = self.sandbox(&*driver, &spec, release.row.version).await?;
        let program = self.engine.program(release)?;
        let pass = self.engine.channels().open(
            self.engine.rng(),
            SessionChannel {
                spender: self.spender(self.row.key),
                meter: self.meter.clone(),
                allowance: self.allowance.clone(),
                gate: self.engine.gate().clone(),
                platform_keys: self.engine.settings().providers.platform_keys,
                used_key: std::sync::Mutex::default(),
                clock: self.engine.shared_clock(),
                exhausted: self.exhausted_to(),
            },
        );
        let native = self.native(release, &*sandbox).await?;
        let address = self.address(&pass);
        let place = sandbox.place().clone();
        let (workspace, home, temp) =
            (place.workspace.to_string_lossy(), place.home.to_string_lossy(), place.temp.to_string_lossy());
        let settings = self.engine.settings();
        let recipe = release.recipe();
        // What the operator lets through wins over what the release brings.
        let env: Vec<_> = recipe
            .env
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .chain(self.engine.passed_env())
            .collect();
        let (hooks, mcp) = launch_policy(settings, release);
        let title = self.row.title.clone().unwrap_or_else(|| "Karta".to_owned());
        let launch = Launch {
            program: &program,
            version: &release.row.harness.version,
            workspace: &workspace,
            home: &home,
            temp: &temp,
            tree: &release.tree,
            title: &title,
            native,
            gateway: &address,
            agent,
            permission_mode: self.row.permission_mode,
            thinking_budget: recipe.defaults.thinking_budget_tokens,
            policy: FolderPolicy { hooks, mcp, denied_tools: &recipe.policy.tools.deny },
            env: &env,
        };
        let command = release.harness.command(&launch)?;
        let codec = release.harness.codec(&launch)?;
        for seed in &command.seeds {
            sandbox.put(&PathBuf::from(&seed.path), &seed.content).await?;
        }
        let process = sandbox
            .spawn(&Command {
                program: command.program,
                args: command.args,
                env: command.env,
                cwd: command.cwd.into(),
            })
            .await?;
        let io = transport::open(self.engine.tasks(), process, sandbox.clone(), command.transport);
        let mut limits = settings.limits.machine();
        if let Some(seconds) = recipe.policy.caps.turn_seconds {
            limits.turn = limits.turn.min(std::time::Duration::from_secs(seconds));
        }
        let ids = self.engine.clone();
        let new_request = Box::new(move || RequestId::new(ids.clock(), ids.rng()));
        let mut effects = Vec::new();
        let machine = Machine::new(
            codec,
            limits,
            self.row.permission_mode,
            new_request,
            self.engine.clock().now(),
            &mut effects,
        );
        let kept = sandbox.kept().to_vec();
        let mut running = Running {
            machine,
            capabilities: release.harness.capabilities(),
            version: release.row.version,
            agent: agent.map(str::to_owned),
            killed: false,
            io,
            sandbox,
            _pass: pass,
            _room: room,
        };
        for effect in effects {
            if let Effect::Write(bytes) = effect {
                running.write(bytes).await;
            }
        }
        self.running = Some(running);
        let mut notices = start_notices(release, (hooks, mcp), &kept);
        notices.extend(brought);
        if before > 0 {
            let detail = json!({ "before": before, "waited_ms": waited.as_millis() });
            notices.insert(0, Body::System { subtype: "queued".to_owned(), detail });
        }
        Ok(notices)
    }

    /// New, or the one that the harness has kept: looked for where the harness keeps it, so that a crash between two writes
    /// can't make us wrong.
    async fn native(&mut self, release: &Loaded, sandbox: &dyn Sandbox) -> Result<Native> {
        let chosen = uuid_text(self.row.id.as_u128());
        let id = self.row.native.clone().unwrap_or_else(|| chosen.clone());
        match release.harness.history_source(&id) {
            HistorySource::File(pattern) => {
                let found = sandbox.find(&pattern, PROBE).await?;
                Ok(if found.is_empty() { Native::New(chosen) } else { Native::Resume(id) })
            }
            HistorySource::Ask => Ok(self.row.native.clone().map_or(Native::New(chosen), Native::Resume)),
        }
    }

    fn address(&self, pass: &Pass) -> GatewayAddress {
        let (provider, model, small_model) = self.engine.settings().default_model();
        GatewayAddress {
            anthropic: self.engine.gateway().anthropic_url(),
            openai: self.engine.gateway().openai_url(),
            token: pass.token.clone(),
            provider,
            model,
            small_model,
        }
    }

    /// The message as the harness takes it. Files are put into the workspace; the harness is told where.
    pub(super) async fn input(&mut self, new: &NewTurn) -> Result<Input> {
        let mut content = Vec::with_capacity(new.content.len());
        for (index, part) in new.content.iter().enumerate() {
            let Content::File { name, data, .. } = part else {
                content.push(part.clone());
                continue;
            };
            let pointer = format!("/content/{index}/data");
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(data)
                .map_err(|_| Error::invalid(&pointer, "not base 64"))?;
            let plain = !name.is_empty()
                && name.len() <= 200
                && !name.starts_with('.')
                && !name.contains(['/', '\\', '\0']);
            if !plain {
                let pointer = format!("/content/{index}/name");
                return Err(Error::invalid(
                    &pointer,
                    "a file's name holds no folder and does not begin with a dot",
                ));
            }
            let Some(running) = &self.running else { continue };
            let relative = format!("uploads/{name}");
            let path = running.sandbox.place().workspace.join(&relative);
            running.sandbox.put(&path, &bytes).await?;
            content.push(Content::Text { text: format!("[The user attached a file: {relative}]") });
        }
        Ok(Input::Message {
            id: uuid_text(new.id.as_u128()),
            content,
            agent: new.agent.clone(),
            thinking: new.thinking,
        })
    }
}

fn launch_policy(settings: &crate::Settings, release: &Loaded) -> (bool, bool) {
    let policy = &release.recipe().policy;
    (settings.folder.hooks && policy.hooks, settings.folder.mcp && policy.mcp)
}

/// What the folder starts by itself, and what a new release left alone, for those who ask for `system` events.
fn start_notices(release: &Loaded, (hooks, mcp): (bool, bool), kept: &[String]) -> Vec<Body> {
    let found = &release.row.found;
    let mut notices = Vec::new();
    if !found.hooks.is_empty() || !found.mcp_servers.is_empty() {
        let names = |list: &[karta_types::release::Started]| -> Vec<String> {
            list.iter().map(|started| started.name.clone()).collect()
        };
        notices.push(Body::System {
            subtype: "folder_starts".to_owned(),
            detail: json!({
                "hooks": names(&found.hooks), "hooks_on": hooks,
                "mcp_servers": names(&found.mcp_servers), "mcp_on": mcp,
            }),
        });
    }
    if !kept.is_empty() {
        notices.push(Body::System { subtype: "files_kept".to_owned(), detail: json!({ "files": kept }) });
    }
    notices
}

/// 128 bits in the form of a UUID (version 8: our own), which harnesses want for their ids.
fn uuid_text(bits: u128) -> String {
    let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x8 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

impl crate::settings::Limits {
    /// The machine's part of the limits.
    pub(crate) const fn machine(&self) -> Limits {
        use std::time::Duration;
        Limits {
            start: Duration::from_secs(self.start_seconds),
            silence: Duration::from_secs(self.silence_seconds),
            retry: Duration::from_secs(self.retry_seconds),
            approval: Duration::from_secs(self.approval_seconds),
            turn: Duration::from_secs(self.turn_seconds),
            output: self.output_bytes,
        }
    }
}

/// The problem of a server that runs as many processes as it may.
pub(crate) fn too_many_processes(limit: usize) -> Error {
    Error::told(
        ErrorCode::Overloaded,
        format!("{limit} harness processes run already, the most this server is set to"),
    )
}
