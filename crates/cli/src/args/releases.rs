//! `karta releases` and `karta rollback`.

use clap::{Args, Subcommand};

use super::ServerArgs;

/// Show a project's releases and which was active when; make one active
#[derive(Debug, Args)]
pub(crate) struct ReleasesArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(subcommand)]
    pub(crate) command: ReleasesCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReleasesCommand {
    /// Show the project's releases, newest first
    List {
        /// The project, by id or slug
        project: String,
    },
    /// Show which release was made active when, by whom and why
    History {
        /// The project, by id or slug
        project: String,
    },
    /// Make a release the active one; turns that run end on theirs
    Activate {
        /// The project, by id or slug
        project: String,
        /// Its number: 3 or v3
        #[arg(value_parser = version, value_name = "VERSION")]
        release: u64,
        /// Why, for the history and the audit log
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

/// Go back to the release that was active before, at once
#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// The project, by id or slug
    pub(crate) project: String,
    /// To this release, which was active before: 3 or v3 [default: the one before the active one]
    #[arg(long, value_parser = version, value_name = "VERSION")]
    pub(crate) to: Option<u64>,
    /// Why, for the history and the audit log
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

fn version(text: &str) -> Result<u64, String> {
    text.strip_prefix('v').unwrap_or(text).parse().map_err(|_| "write it like 3 or v3".to_owned())
}
