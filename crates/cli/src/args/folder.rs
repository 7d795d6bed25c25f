//! What is done with a folder: `karta init`, `karta check`, `karta deploy`; and git's way to a key.

use std::path::PathBuf;

use clap::Args;
use clap_complete::engine::ArgValueCompleter;

use super::ServerArgs;
use crate::complete;

/// Prepare a folder: write a small `karta.toml`, and let git push to the server
///
/// Harness files are never touched, and a `karta.toml` that is there stays as it is. On a terminal it asks what it can't see;
/// elsewhere, or with `--project` and `--harness`, it asks nothing.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The folder: the one with `CLAUDE.md`, `.claude/` or `.opencode/`
    #[arg(default_value = ".")]
    pub(crate) path: PathBuf,
    /// The project's name in addresses [default: the folder's name]
    #[arg(long, value_name = "SLUG")]
    pub(crate) project: Option<String>,
    /// The harness: `claude-code`, `opencode` [default: the one whose files are there]
    #[arg(long, value_name = "ID")]
    pub(crate) harness: Option<String>,
    /// Leave git's configuration of the repository alone
    #[arg(long)]
    pub(crate) no_git: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Say everything that publishing a folder would refuse, offline
///
/// Exits with 0 if nothing would be refused, else with 1.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The folder
    #[arg(default_value = ".")]
    pub(crate) path: PathBuf,
    /// A file that looks like a secret and is none; give it again for more
    #[arg(long = "allow-secret", value_name = "PATH")]
    pub(crate) allow_secrets: Vec<String>,
}

/// Publish a folder as a release, and make it the one that runs
///
/// What git would pack goes up: `.gitignore` and `.kartaignore` are honoured, and of the rest only what the server lacks is sent.
/// The first release makes the project. If anything fails, what runs stays as it is.
#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// The folder
    #[arg(default_value = ".")]
    pub(crate) path: PathBuf,
    /// The project's name in addresses [default: `project` in karta.toml, else the folder's name]
    #[arg(long, value_name = "SLUG", env = "KARTA_PROJECT", add = ArgValueCompleter::new(complete::projects))]
    pub(crate) project: Option<String>,
    /// What to say of the release
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// Don't make it the active release
    #[arg(long)]
    pub(crate) no_activate: bool,
    /// Make a preview of this name instead: it has its own address and ends by itself
    #[arg(long, value_name = "NAME", conflicts_with = "no_activate")]
    pub(crate) preview: Option<String>,
    /// Send this file although it looks like a secret; give it again for more
    #[arg(long = "allow-secret", value_name = "PATH")]
    pub(crate) allow_secrets: Vec<String>,
    /// Say what would be sent, and send nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Answer git's question for a key
#[derive(Debug, Args)]
pub(crate) struct GitCredentialArgs {
    /// What git wants; only `get` is answered
    pub(crate) operation: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
