//! What can be said to the commands that serve.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

/// Serve a folder while you work on it: the next turn uses what you just saved
#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// The folder: the one with `CLAUDE.md`, `.claude/` or `.opencode/`
    #[arg(default_value = ".")]
    pub(crate) path: PathBuf,
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4747", env = "KARTA_LISTEN")]
    pub(crate) listen: SocketAddr,
    /// The project's name in addresses [default: `project` in karta.toml, else the folder's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) project: Option<String>,
    /// Settings file
    #[arg(long, value_name = "FILE", env = "KARTA_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Don't run the hooks that the folder declares
    #[arg(long)]
    pub(crate) no_hooks: bool,
    /// Don't start the MCP servers that the folder declares
    #[arg(long)]
    pub(crate) no_mcp: bool,
    /// Answer model calls with the built-in scripted model instead of a provider
    #[arg(long)]
    pub(crate) scripted_model: bool,
}

/// Serve folders as projects
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Folders to serve, each as a project of its name
    pub(crate) paths: Vec<PathBuf>,
    /// How sessions are kept apart [default: microvm, or as the settings say]
    #[arg(long, value_name = "HOW", value_parser = ["process", "namespace", "microvm"])]
    pub(crate) isolation: Option<String>,
    /// Which planes to be: all, control or data [default: all, or as the settings say]
    #[arg(long, value_name = "PLANE", value_parser = ["all", "control", "data"])]
    pub(crate) plane: Option<String>,
    /// Where to listen [default: 127.0.0.1:4747, or as the settings say]
    #[arg(long, value_name = "ADDRESS", env = "KARTA_LISTEN")]
    pub(crate) listen: Option<SocketAddr>,
    /// Settings file
    #[arg(long, value_name = "FILE", env = "KARTA_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

/// See it work: serves an example and runs a first turn with an approval
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Which harness to show
    #[arg(long, value_name = "ID", default_value = "claude-code", value_parser = ["claude-code", "opencode"])]
    pub(crate) harness: String,
    /// Where to listen; port 0 takes any
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4747", env = "KARTA_LISTEN")]
    pub(crate) listen: SocketAddr,
    /// End after the first turn
    #[arg(long)]
    pub(crate) once: bool,
}

/// Check this machine: what is ready, and how to mend what is not
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {}

/// Play a scripted harness's file
#[derive(Debug, Args)]
pub(crate) struct PlayArgs {
    /// What the scripted harness's adapter says
    pub(crate) args: Vec<String>,
}
