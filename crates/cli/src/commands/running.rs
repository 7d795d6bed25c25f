//! A server that this process runs: started, announced, and stopped in good order.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use karta_engine::control::keys::Environment;
use karta_engine::settings::{Plane, Provider};
use karta_engine::{Builder, Engine, Settings};
use karta_model::{Options, Rule};
use karta_server::Server;
use karta_types::release::{Release, ReleaseState};
use karta_types::{OrgId, Secret};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::printer::{CYAN, DIM, Printer, YELLOW};
use crate::settings::SERVER_FILE;

/// The organisation of a server that nobody set up otherwise.
pub(super) const ORG: &str = "default";

/// What runs.
pub(super) struct Running {
    pub(super) engine: Engine,
    pub(super) org: OrgId,
    pub(super) server: Server,
    pub(super) url: String,
}

/// Starts engine and server.
pub(super) async fn start(settings: Settings, listen: SocketAddr) -> anyhow::Result<Running> {
    tracing_to_stderr();
    let mut builder = Builder::new(settings).with_env(std::env::vars());
    if let Ok(program) = std::env::current_exe() {
        builder = builder.with_program(program);
    }
    let engine = builder.open().await.map_err(|error| anyhow::anyhow!(error.chain()))?;
    let org = engine.ensure_org(ORG).await?;
    let server = match Server::start(engine.clone(), listen).await {
        Ok(server) => server,
        Err(error) => {
            engine.shutdown().await;
            if error.kind() == std::io::ErrorKind::AddrInUse {
                bail!(
                    "{listen} is taken: something listens there already; stop it, or choose another by `--listen 127.0.0.1:0`"
                );
            }
            return Err(error).with_context(|| format!("listening on {listen}"));
        }
    };
    let url = format!("http://{}", server.address());
    Ok(Running { engine, org, server, url })
}

fn tracing_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("KARTA_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    // A second server in one process (in tests) keeps the first's.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

impl Running {
    /// The key for this machine's own use: the last one if it is still good, else a new one. Written to the data directory, so that
    /// `karta chat` finds it.
    pub(super) async fn own_key(&self, project: Option<&str>) -> anyhow::Result<Secret> {
        let path = self.engine.data_dir().join(SERVER_FILE);
        if self.engine.settings().plane == Plane::Data {
            // It can't make keys; whoever uses it has one of the control plane's.
            let content = json!({ "url": self.url, "key": "", "project": project });
            crate::settings::write_private(&path, &content.to_string())?;
            return Ok(Secret::new(String::new()));
        }
        let known = std::fs::read(&path).ok().and_then(|text| {
            let value: serde_json::Value = serde_json::from_slice(&text).ok()?;
            value.get("key")?.as_str().map(str::to_owned)
        });
        let key = match known {
            Some(key) if self.engine.gate().authenticate(&key).await.is_ok() => Secret::new(key),
            _ => self.engine.bootstrap_key(self.org, Environment::Test, "this machine").await?,
        };
        let content = json!({ "url": self.url, "key": key.expose(), "project": project });
        crate::settings::write_private(&path, &content.to_string())?;
        Ok(key)
    }

    /// Serves until told to stop, then ends every turn in writing.
    pub(super) async fn until_stopped(self, printer: &Printer) -> anyhow::Result<ExitCode> {
        let mut terminate = signal(SignalKind::terminate()).context("listening for signals")?;
        tokio::select! {
            done = tokio::signal::ctrl_c() => done.context("listening for Ctrl-C")?,
            _ = terminate.recv() => {}
        }
        printer.note("Stopping");
        self.server.shutdown().await;
        Ok(ExitCode::SUCCESS)
    }
}

/// Puts the built-in scripted model in the place of the providers.
pub(super) async fn use_scripted_model(
    settings: &mut Settings,
    rules: Vec<Rule>,
) -> anyhow::Result<karta_model::Server> {
    let options = Options { rules, ..Options::default() };
    let model = karta_model::Server::start(options).await.context("starting the scripted model server")?;
    let upstream = Provider { key: Secret::new("scripted".to_owned()), base_url: Some(model.base_url()) };
    settings.providers.anthropic = Some(upstream.clone());
    settings.providers.openai = Some(upstream);
    settings.model.name.get_or_insert_with(|| "scripted-1".to_owned());
    settings.model.small.get_or_insert_with(|| "scripted-small-1".to_owned());
    Ok(model)
}

/// A project's name from its folder's.
pub(super) fn slug_of(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let slug: String =
        name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
    let slug: String = slug.trim_matches('-').chars().take(63).collect();
    if slug.is_empty() { "app".to_owned() } else { slug }
}

/// A folder's project: what its `karta.toml` says, else the folder's own name. A file with faults says nothing here: publishing
/// tells of them.
pub(super) fn project_of(path: &Path) -> String {
    let text = std::fs::read_to_string(path.join(karta_release::manifest::FILE)).unwrap_or_default();
    let said = karta_release::manifest::parse(&text).ok().and_then(|said| said.project);
    said.unwrap_or_else(|| slug_of(path))
}

/// The folder, as an absolute path.
pub(super) fn folder(path: &Path) -> anyhow::Result<std::path::PathBuf> {
    let path = path.canonicalize().with_context(|| format!("opening the folder `{}`", path.display()))?;
    if !path.is_dir() {
        bail!("`{}` is not a folder", path.display());
    }
    Ok(path)
}

/// A folder to be served: one with something in it.
pub(super) fn served_folder(path: &Path) -> anyhow::Result<std::path::PathBuf> {
    let path = folder(path)?;
    let mut inside = path.read_dir().with_context(|| format!("reading the folder `{}`", path.display()))?;
    if inside.next().is_none() {
        bail!("`{}` is empty: it needs a harness's own files; `karta init` says which", path.display());
    }
    Ok(path)
}

/// Says what a release holds, and what it starts by itself.
pub(super) fn announce(release: &Release, settings: &Settings, printer: &Printer) {
    let names = |list: Vec<&str>| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    let found = &release.found;
    let agents = names(found.agents.iter().map(|agent| agent.name.as_str()).collect());
    printer.note(&format!(
        "  {DIM}harness{DIM:#} {} {}  {DIM}agents{DIM:#} {agents}  {DIM}skills{DIM:#} {}  {DIM}commands{DIM:#} {}",
        release.harness.kind,
        release.harness.version,
        found.skills.len(),
        found.commands.len(),
    ));
    for (what, list, on, flag) in [
        ("hook", &found.hooks, settings.folder.hooks, "--no-hooks"),
        ("MCP server", &found.mcp_servers, settings.folder.mcp, "--no-mcp"),
    ] {
        for started in list {
            let name = crate::printer::tame(&started.name);
            let command = crate::printer::tame(&started.command);
            let note =
                if on { format!("runs by itself; off with `{flag}`") } else { "switched off".to_owned() };
            printer.note(&format!("  {YELLOW}{what}{YELLOW:#} {name}: {command} {DIM}({note}){DIM:#}"));
        }
    }
    for warning in &found.warnings {
        printer.note(&format!("  {YELLOW}warning{YELLOW:#} {}", crate::printer::tame(warning)));
    }
}

/// A line that works when pasted.
pub(super) fn curl(url: &str, project: &str, key: &Secret) -> String {
    format!(
        "curl -N {url}/v1/projects/{project}/messages -H 'Authorization: Bearer {}' -H 'Content-Type: application/json' \
         -d '{{\"text\": \"Hello\", \"stream\": true}}'",
        key.expose()
    )
}

/// Names the missing harness and the command that installs it.
pub(super) fn hint_harness(engine: &Engine, release: &Release, printer: &Printer) {
    if let Some(harness) = karta_engine::harnesses::find(&release.harness.kind)
        && harness.package().is_some()
        && let Err(missing) = engine.harnesses().program(harness, Some(&release.harness.version))
    {
        printer.note(&format!("  {YELLOW}missing{YELLOW:#} {missing}"));
    }
}

/// Says that the folder is not what runs, because somebody rolled back, and how to make it so.
pub(super) fn hint_inactive(project: &str, release: &Release, printer: &Printer) {
    if release.state != ReleaseState::Active {
        printer.note(&format!(
            "  {YELLOW}not active{YELLOW:#}: another release was chosen since; for this one `karta releases activate {project} v{}`",
            release.version
        ));
    }
}

/// A headline.
pub(super) fn headline(text: &str, printer: &Printer) {
    printer.note(&format!("{CYAN}{text}{CYAN:#}"));
}
