//! What is measured, as processes of their own.

use std::path::Path;
use std::process::Stdio;

use anyhow::Context as _;
use karta_engine::control::keys::Environment;
use karta_engine::{Builder, Settings};
use karta_server::Server;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// Where a server is, told on its first line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) address: String,
    pub(crate) key: String,
}

/// A turn that says one word, and one of a hundred events.
const SCRIPT: &str = r#"{"turns":[
  {"match":"stream","steps":[{"repeat":{"times":98,"say":"token "}}]},
  {"steps":[{"say":"Hello"}]}
]}"#;

/// Serves the platform until killed.
pub(crate) async fn platform(data: &Path) -> anyhow::Result<()> {
    let folder = data.join("app");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("karta.script.json"), SCRIPT)?;
    let settings = Settings { data: data.join("data"), ..Settings::default() };
    let engine = Builder::new(settings).open().await.map_err(|error| anyhow::anyhow!(error.chain()))?;
    let org = engine.ensure_org("bench").await?;
    engine.publish_folder(org, "app", &folder).await?;
    let key = engine.bootstrap_key(org, Environment::Test, "bench").await?;
    let server = Server::start(engine, ([127, 0, 0, 1], 0).into()).await?;
    tell(&Place { address: server.address().to_string(), key: key.expose().clone() })?;
    std::future::pending().await
}

/// Serves one fixed answer until killed: what the runtime and the HTTP stack cost by themselves.
pub(crate) async fn baseline() -> anyhow::Result<()> {
    let answer = || async { axum::Json(serde_json::json!({ "ok": true })) };
    let router = axum::Router::new().route("/healthz", axum::routing::get(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    tell(&Place { address: listener.local_addr()?.to_string(), key: String::new() })?;
    axum::serve(listener, router).await?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the parent process reads it")]
fn tell(place: &Place) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(place)?);
    Ok(())
}

/// Starts one of the above. It is killed when dropped.
pub(crate) async fn start(args: &[&std::ffi::OsStr]) -> anyhow::Result<(Child, Place)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(args)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting the server to be measured")?;
    let out = child.stdout.take().context("its output")?;
    let line = BufReader::new(out).lines().next_line().await?.context("the server ended at once")?;
    Ok((child, serde_json::from_str(&line)?))
}
