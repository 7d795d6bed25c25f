//! `karta releases`, `karta rollback`, `karta previews`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;

use super::ServerArgs;
use crate::complete;

/// Show, compare, activate and delete a project's releases
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
        /// The project, by id or slug [default: this folder's]
        #[arg(add = ArgValueCompleter::new(complete::projects))]
        project: Option<String>,
        /// How many
        #[arg(short = 'n', long = "limit", default_value_t = 20, value_name = "N")]
        limit: usize,
    },
    /// Show which release was made active when, by whom and why
    History {
        /// The project, by id or slug [default: this folder's]
        #[arg(add = ArgValueCompleter::new(complete::projects))]
        project: Option<String>,
    },
    /// Show what a release holds and how it was made
    #[command(allow_missing_positional = true)]
    Show {
        /// The project, by id or slug [default: this folder's]
        #[arg(add = ArgValueCompleter::new(complete::project_or_version))]
        project: Option<String>,
        /// Its number: 3 or v3
        #[arg(value_parser = version, value_name = "VERSION")]
        #[arg(add = ArgValueCompleter::new(complete::versions))]
        release: u64,
    },
    /// Make a release the active one, or the canary; turns that run end on theirs
    #[command(allow_missing_positional = true)]
    Activate {
        /// The project, by id or slug [default: this folder's]
        #[arg(add = ArgValueCompleter::new(complete::project_or_version))]
        project: Option<String>,
        /// Its number: 3 or v3
        #[arg(value_parser = version, value_name = "VERSION")]
        #[arg(add = ArgValueCompleter::new(complete::versions))]
        release: u64,
        /// For so many of a hundred new sessions only, 1 to 99: `promote` or `abort` it later
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=99))]
        percent: Option<u8>,
        /// Why, for the history and the audit log
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Make the canary the active release
    Promote {
        /// The project, by id or slug [default: this folder's]
        #[arg(add = ArgValueCompleter::new(complete::projects))]
        project: Option<String>,
        /// Why, for the history and the audit log
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// End the canary: new sessions all run on the active release again
    Abort {
        /// The project, by id or slug [default: this folder's]
        #[arg(add = ArgValueCompleter::new(complete::projects))]
        project: Option<String>,
        /// Why, for the history and the audit log
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Show what changed from one release to another
    ///
    /// Releases are written 3 or v3; the project is this folder's if none is named.
    #[command(override_usage = "karta releases diff [OPTIONS] [PROJECT] <BEFORE> <AFTER>")]
    Diff {
        // Clap knows no optional word before two that are required; what it would say of this one misleads.
        #[arg(value_name = "RELEASE", required = true, num_args = 2..=3, hide = true)]
        #[arg(add = ArgValueCompleter::new(complete::words_of_diff))]
        words: Vec<String>,
    },
    /// Delete a release's files; its record stays. What is in use can't be deleted
    #[command(allow_missing_positional = true)]
    Delete {
        /// The project, by id or slug [default: this folder's]
        #[arg(add = ArgValueCompleter::new(complete::project_or_version))]
        project: Option<String>,
        /// Its number: 3 or v3
        #[arg(value_parser = version, value_name = "VERSION")]
        #[arg(add = ArgValueCompleter::new(complete::versions))]
        release: u64,
    },
    /// Download a release's files as a tar.gz
    #[command(allow_missing_positional = true)]
    Download {
        /// The project, by id or slug [default: this folder's]
        #[arg(add = ArgValueCompleter::new(complete::project_or_version))]
        project: Option<String>,
        /// Its number: 3 or v3
        #[arg(value_parser = version, value_name = "VERSION")]
        #[arg(add = ArgValueCompleter::new(complete::versions))]
        release: u64,
        /// Where to; `-` is standard output [default: PROJECT-vN.tar.gz here]
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
}

/// Go back to the release that was active before, at once
#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// The project, by id or slug [default: this folder's]
    #[arg(add = ArgValueCompleter::new(complete::projects))]
    pub(crate) project: Option<String>,
    /// To this release, which was active before: 3 or v3 [default: the one before the active one]
    #[arg(long, value_parser = version, value_name = "VERSION")]
    #[arg(add = ArgValueCompleter::new(complete::versions))]
    pub(crate) to: Option<u64>,
    /// Why, for the history and the audit log
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// List and end previews
///
/// A preview is made by `karta deploy --preview NAME`, and used as the project `SLUG@NAME`.
#[derive(Debug, Args)]
pub(crate) struct PreviewsArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(subcommand)]
    pub(crate) command: PreviewsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PreviewsCommand {
    /// Show the project's previews and when they end by themselves
    List {
        /// The project, by id or slug [default: this folder's]
        #[arg(add = ArgValueCompleter::new(complete::projects))]
        project: Option<String>,
    },
    /// End a preview now, with its sessions
    #[command(allow_missing_positional = true)]
    Remove {
        /// The project, by id or slug [default: this folder's]
        #[arg(add = ArgValueCompleter::new(complete::project_or_preview))]
        project: Option<String>,
        /// The preview's name
        #[arg(add = ArgValueCompleter::new(complete::previews))]
        name: String,
    },
}

/// `3` or `v3`.
pub(crate) fn version(text: &str) -> Result<u64, String> {
    text.strip_prefix('v')
        .unwrap_or(text)
        .parse()
        .map_err(|_| format!("`{text}` is no release: write it like 3 or v3"))
}
