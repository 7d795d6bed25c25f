//! The harness process of a session: started with everything it needs, heard, written to, ended.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use karta_harness::launch::{FolderPolicy, Gateway as GatewayAddress};
use karta_harness::{Capabilities, Codec, HistorySource, Input, Launch, Native, Transport};
use karta_sandbox::uplink::Service;
use karta_sandbox::{Command, Place, Sandbox, Spec};
use karta_types::egress::Decision;
use karta_types::message::Content;
use karta_types::session::PermissionMode;
use karta_types::{Body, ErrorCode, RequestId, Secret};
use serde_json::json;

use crate::data::channels::{Pass, SessionChannel};
use crate::data::egress::{Decisions, Egress, told};
use crate::data::releases::Loaded;
use crate::data::transport::{self, Io, IoEvent};
use crate::data::turn::machine::{Effect, Limits, Machine};
use crate::data::turn::run::{Fatal, NewTurn, Runner};
use crate::data::turn::tape::Tape;
use crate::gateway;
use crate::{Error, Result};

/// The certificates that programs inside are to trust, in the temporary folder.
const BUNDLE: &str = "karta-certificates.pem";
/// A history file larger than this is not looked at to decide whether a session can be resumed.
const PROBE: u64 = 64;

/// A harness process that was started, and what the platform knows of it.
pub(super) struct Running {
    pub(super) machine: Machine,
    pub(super) capabilities: Capabilities,
    pub(super) version: u64,
    pub(super) begun: Begun,
    /// How its bytes reach the codec.
    pub(super) transport: Transport,
    /// It was killed; its end is still to be heard of.
    killed: bool,
    pub(super) state: State,
}

/// How the process was started: enough to know it again.
pub(super) struct Begun {
    pub(super) native: Native,
    pub(super) agent: Option<String>,
    pub(super) mode: PermissionMode,
    pub(super) service: Option<SocketAddr>,
    pub(super) place: Place,
    pub(super) token: Secret,
}

/// How to start a harness, and how to understand it.
pub(super) struct Launched {
    pub(super) command: karta_harness::Command,
    pub(super) codec: Box<dyn Codec>,
    /// Which of hooks and MCP servers it may start.
    policy: (bool, bool),
}

/// Whether it runs.
pub(super) enum State {
    /// It does.
    Awake(Box<Awake>),
    /// Its sandbox was saved.
    Asleep(Asleep),
}

/// What a process that runs has.
pub(super) struct Awake {
    pub(super) io: Io,
    pub(super) sandbox: Arc<dyn Sandbox>,
    /// Nothing inside runs until something is to be said to it.
    pub(super) paused: bool,
    pub(super) _pass: Pass,
    pub(super) _room: Option<crate::data::places::Place>,
}

/// What is left to do for a process that is saved.
#[derive(Debug, Default)]
pub(super) struct Asleep {
    /// To be written when it runs again.
    pub(super) pending: Vec<Bytes>,
    /// How many of these are on record.
    pub(super) kept: usize,
    /// Where it serves HTTP, if it does.
    pub(super) port: Option<u16>,
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
        Some(Running { state: State::Awake(awake), .. }) => awake.io.next().await.into(),
        Some(Running { state: State::Asleep(_), killed: true, .. }) => {
            Heard::Exited { status: None, stderr: String::new() }
        }
        _ => std::future::pending().await,
    }
}

impl Awake {
    async fn go_on(&mut self) {
        if std::mem::replace(&mut self.paused, false)
            && let Err(error) = self.sandbox.wake().await
        {
            tracing::error!(error = crate::error::chain(&error), "a sandbox can't go on");
            self.io.kill();
        }
    }
}

impl Running {
    /// One that sleeps.
    pub(super) fn asleep(
        machine: Machine,
        capabilities: Capabilities,
        version: u64,
        begun: Begun,
        transport: Transport,
        asleep: Asleep,
    ) -> Self {
        let state = State::Asleep(asleep);
        Self { machine, capabilities, version, begun, transport, killed: false, state }
    }

    /// Output that is there already.
    pub(super) fn try_hear(&mut self) -> Option<Bytes> {
        self.awake_mut()?.io.try_output()
    }

    /// Whether the process is not ready yet.
    pub(super) fn starting(&self) -> bool {
        self.machine.starting()
    }

    /// The process, if it runs.
    pub(super) fn awake(&self) -> Option<&Awake> {
        match &self.state {
            State::Awake(awake) => Some(awake),
            State::Asleep(_) => None,
        }
    }

    fn awake_mut(&mut self) -> Option<&mut Awake> {
        match &mut self.state {
            State::Awake(awake) => Some(awake),
            State::Asleep(_) => None,
        }
    }

    pub(super) async fn write(&mut self, bytes: Bytes) {
        match &mut self.state {
            // A process that takes no more input is gone, or about to be: its end is heard of.
            State::Awake(awake) => {
                awake.go_on().await;
                let _ = awake.io.send(bytes).await;
            }
            State::Asleep(asleep) => asleep.pending.push(bytes),
        }
    }

    /// Lets it go on if it was stopped for now: what stands still takes no files either.
    async fn go_on(&mut self) {
        if let Some(awake) = self.awake_mut() {
            awake.go_on().await;
        }
    }

    /// Stops a process that nobody has anything to say to, where that can be done.
    pub(super) async fn pause(&mut self) {
        let Some(awake) = self.awake_mut() else { return };
        // If it can't be, it goes on as it is: that costs a little, and nothing is lost. It is not tried again before the next turn.
        if let Err(error) = awake.sandbox.pause().await {
            tracing::warn!(error = crate::error::chain(&error), "pausing a sandbox");
        }
        awake.paused = true;
    }

    /// Whether it is stopped for now.
    pub(super) fn paused(&self) -> bool {
        self.awake().is_some_and(|awake| awake.paused)
    }

    /// Whether it could be stopped for now.
    pub(super) fn pauses(&self) -> bool {
        self.awake().is_some_and(|awake| awake.sandbox.pauses() && !awake.paused) && !self.killed
    }

    /// Whether it was told to end.
    pub(super) const fn killed(&self) -> bool {
        self.killed
    }

    pub(super) fn kill(&mut self) {
        self.killed = true;
        if let Some(awake) = self.awake_mut() {
            awake.io.kill();
        }
    }

    /// Ends the process and waits until it is gone.
    pub(super) async fn end(self) {
        if let State::Awake(awake) = self.state {
            let Awake { io, sandbox, paused, .. } = *awake;
            // One that stands still would hear of no end.
            if paused && let Err(error) = sandbox.wake().await {
                tracing::error!(error = crate::error::chain(&error), "a sandbox can't go on");
            }
            io.end().await;
        }
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
            let same_agent =
                running.capabilities.agent_per_message || running.begun.agent.as_deref() == agent;
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
        let (program, harness) = self.engine.program(release)?;
        let spec = self.spec(release, harness.clone());
        let (sandbox, brought) = self.sandbox(&*driver, &spec, release.row.version).await?;
        let program = inside(&program, harness.as_deref(), sandbox.place().harness.as_deref());
        let pass = self.engine.channels().open(self.engine.rng(), self.channel(), self.way_out.way());
        let native = self.native(release, &*sandbox).await?;
        let place = sandbox.place().clone();
        let begun = Begun {
            native,
            agent: agent.map(str::to_owned),
            mode: self.row.permission_mode,
            place,
            service: sandbox.service(Service::Model),
            token: pass.token.clone(),
        };
        let outside = self.open_way_out(release, &*sandbox).await?;
        let Launched { command, codec, policy } = self.launch(release, &begun, &program, outside)?;
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
        let parks = sandbox.parks();
        let transport = command.transport;
        let io = transport::open(self.engine.tasks(), process, sandbox.clone(), transport.clone(), None);
        let mut effects = Vec::new();
        let (now, mode) = (self.engine.clock().now(), self.row.permission_mode);
        let limits = self.limits(release);
        let mut machine = Machine::new(codec, limits, mode, self.new_request(), now, &mut effects);
        if parks {
            machine.record(Tape::new(now, mode, limits));
        }
        let kept = sandbox.kept().to_vec();
        let awake = Awake { io, sandbox, paused: false, _pass: pass, _room: room };
        let mut running = Running {
            machine,
            capabilities: release.harness.capabilities(),
            version: release.row.version,
            begun,
            transport,
            killed: false,
            state: State::Awake(Box::new(awake)),
        };
        for effect in effects {
            if let Effect::Write(bytes) = effect {
                running.write(bytes).await;
            }
        }
        self.running = Some(running);
        let mut notices = start_notices(release, policy, &kept);
        notices.extend(brought);
        if before > 0 {
            let detail = json!({ "before": before, "waited_ms": waited.as_millis() });
            notices.insert(0, Body::System { subtype: "queued".to_owned(), detail });
        }
        Ok(notices)
    }

    /// What the driver is asked for.
    pub(super) fn spec(&self, release: &Loaded, harness: Option<PathBuf>) -> Spec {
        Spec {
            harness,
            uplink: Arc::new(self.way_out.clone()),
            ..Spec::new(self.row.id, release.path.clone(), release.row.digest.clone())
        }
    }

    /// Where the sandbox is kept from the network, its way out is opened by today's rules. Answers what its programs must know of it.
    pub(super) async fn open_way_out(
        &mut self,
        release: &Loaded,
        sandbox: &dyn Sandbox,
    ) -> Result<Vec<(String, String)>> {
        if sandbox.service(Service::Egress).is_none() {
            return Ok(Vec::new());
        }
        // What was decided on the way out before this one is told. A session that another owner took hears of that by what it writes next.
        if let Err(Fatal::Store(error)) = self.close_way_out().await {
            return Err(error);
        }
        let outside = self.engine.session_egress(&self.row, self.home, release.recipe(), None).await?;
        self.go_out_by(outside, sandbox).await
    }

    /// Leads what comes out of the sandbox this way. Answers what its programs must know of it.
    pub(super) async fn go_out_by(
        &mut self,
        (egress, decisions): (Egress, Decisions),
        sandbox: &dyn Sandbox,
    ) -> Result<Vec<(String, String)>> {
        let Some(address) = sandbox.service(Service::Egress) else { return Ok(Vec::new()) };
        let bundle = sandbox.place().temp.join(BUNDLE);
        if egress.looks() {
            sandbox.put(&bundle, egress.bundle().as_bytes()).await?;
        }
        let outside = egress.environment(&format!("http://{address}"), &bundle.to_string_lossy());
        self.way_out.lead(Some(Arc::new(egress)));
        self.decisions = Some(decisions);
        Ok(outside)
    }

    /// What a program inside reached or was refused is told.
    pub(super) async fn tell_decisions(&mut self, decisions: &[Decision]) -> Result<(), Fatal> {
        let entry = told::entry(&self.engine, self.row.org, self.row.id, decisions);
        // Where there is no room for it, it is not told.
        let _ = self
            .commit(vec![(told::event(decisions), None)], None, |commit| commit.told.extend(entry))
            .await?;
        Ok(())
    }

    /// Nothing goes out from now on; what was decided and not told is.
    pub(super) async fn close_way_out(&mut self) -> Result<(), Fatal> {
        self.way_out.lead(None);
        let Some(mut decisions) = self.decisions.take() else { return Ok(()) };
        while let Some(decided) = decisions.next().await {
            self.tell_decisions(&decided).await?;
        }
        Ok(())
    }

    /// What the session's model calls belong to.
    pub(super) fn channel(&self) -> SessionChannel {
        SessionChannel {
            spender: self.spender(self.row.key),
            meter: self.meter.clone(),
            allowance: self.allowance.clone(),
            gate: self.engine.gate().clone(),
            platform_keys: self.engine.settings().providers.platform_keys,
            used_key: std::sync::Mutex::default(),
            clock: self.engine.shared_clock(),
            exhausted: self.exhausted_to(),
        }
    }

    /// The harness's command line and codec.
    pub(super) fn launch(
        &self,
        release: &Loaded,
        begun: &Begun,
        program: &str,
        outside: Vec<(String, String)>,
    ) -> Result<Launched> {
        let settings = self.engine.settings();
        let recipe = release.recipe();
        // What the operator lets through wins over what the release brings.
        let env: Vec<_> = recipe
            .env
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .chain(outside)
            .chain(self.engine.passed_env())
            .collect();
        let (hooks, mcp) = launch_policy(settings, release);
        let Place { workspace, home, temp, .. } = &begun.place;
        let launch = Launch {
            program,
            version: &release.row.harness.version,
            workspace: &workspace.to_string_lossy(),
            home: &home.to_string_lossy(),
            temp: &temp.to_string_lossy(),
            tree: &release.tree,
            title: self.row.title.as_deref().unwrap_or("Karta"),
            native: begun.native.clone(),
            gateway: &self.address(&begun.token, begun.service),
            agent: begun.agent.as_deref(),
            permission_mode: begun.mode,
            thinking_budget: recipe.defaults.thinking_budget_tokens,
            policy: FolderPolicy { hooks, mcp, denied_tools: &recipe.policy.tools.deny },
            env: &env,
        };
        let (command, codec) = (release.harness.command(&launch)?, release.harness.codec(&launch)?);
        Ok(Launched { command, codec, policy: (hooks, mcp) })
    }

    /// The machine's limits on this release.
    pub(super) fn limits(&self, release: &Loaded) -> Limits {
        let mut limits = self.engine.settings().limits.machine();
        if let Some(seconds) = release.recipe().policy.caps.turn_seconds {
            limits.turn = limits.turn.min(std::time::Duration::from_secs(seconds));
        }
        limits
    }

    pub(super) fn new_request(&self) -> Box<dyn FnMut() -> RequestId + Send> {
        let ids = self.engine.clone();
        Box::new(move || RequestId::new(ids.clock(), ids.rng()))
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

    fn address(&self, token: &Secret, service: Option<SocketAddr>) -> GatewayAddress {
        let (provider, model, small_model) = self.engine.settings().default_model();
        let address = service.unwrap_or_else(|| self.engine.gateway().address());
        GatewayAddress {
            anthropic: gateway::anthropic_url(address),
            openai: gateway::openai_url(address),
            token: token.clone(),
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
            if let Some(running) = &mut self.running {
                running.go_on().await;
            }
            // A file is never left out in silence.
            let Some(Awake { sandbox, .. }) = self.running.as_ref().and_then(Running::awake) else {
                return Err(Error::told(ErrorCode::HarnessFailed, "the harness is gone"));
            };
            let relative = format!("uploads/{name}");
            let path = sandbox.place().workspace.join(&relative);
            sandbox.put(&path, &bytes).await?;
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

/// The harness's program as processes of the sandbox see it.
fn inside(program: &str, folder: Option<&Path>, seen: Option<&Path>) -> String {
    let below = folder.and_then(|folder| Path::new(program).strip_prefix(folder).ok());
    match (below, seen) {
        (Some(below), Some(seen)) => seen.join(below).display().to_string(),
        _ => program.to_owned(),
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
