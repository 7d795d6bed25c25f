//! `karta projects` and `karta logs`.

use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;

use super::ServerArgs;
use super::releases::version;
use crate::complete;

/// List, make and delete projects
#[derive(Debug, Args)]
pub(crate) struct ProjectsArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(subcommand)]
    pub(crate) command: ProjectsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProjectsCommand {
    /// Show projects and what runs in them
    List,
    /// Make a project without a release; `karta deploy` makes one by itself
    Create {
        /// Its name in addresses: small letters, digits, dashes
        slug: String,
        /// Its name for people [default: the same]
        #[arg(long, value_name = "TEXT")]
        name: Option<String>,
    },
    /// Erase a project with its releases, previews and sessions
    Delete {
        /// The project, by id or slug
        #[arg(add = ArgValueCompleter::new(complete::projects))]
        project: String,
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
    },
}

/// Show what a project did: its builds and its turns, oldest first
///
/// Times are UTC. A turn's line says how it ended and what it used, never what was said.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The project, by id or slug; `SLUG@NAME` for a preview [default: this folder's]
    #[arg(add = ArgValueCompleter::new(complete::projects))]
    pub(crate) project: Option<String>,
    /// Go on with what comes, until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only builds, or only turns
    #[arg(long, value_name = "KIND", value_parser = ["build", "turn"])]
    pub(crate) kind: Option<String>,
    /// Only of this release: 3 or v3
    #[arg(long, value_parser = version, value_name = "VERSION")]
    #[arg(add = ArgValueCompleter::new(complete::versions))]
    pub(crate) release: Option<u64>,
    /// How many of the newest lines, 200 at most
    #[arg(short = 'n', long = "lines", value_name = "N", default_value_t = 50)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=200))]
    pub(crate) lines: u32,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
