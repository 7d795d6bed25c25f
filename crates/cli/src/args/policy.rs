//! `karta secrets`, `karta policy` and `karta egress`.

use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;
use karta_types::SessionId;

use super::ServerArgs;
use crate::complete;

/// List, set and remove secrets for a project's tools
///
/// A folder declares in karta.toml where each may go; its value never enters a sandbox.
#[derive(Debug, Args)]
pub(crate) struct SecretsArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// The project, by id or slug [default: this folder's]
    #[arg(short, long, global = true, value_name = "PROJECT", add = ArgValueCompleter::new(complete::projects))]
    pub(crate) project: Option<String>,
    #[command(subcommand)]
    pub(crate) command: SecretsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SecretsCommand {
    /// Show which secrets are set, without their values
    List,
    /// Set a secret, read from standard input; the one before it is erased
    Set {
        /// The variable that stands for it, as `[env]` of karta.toml names it
        name: String,
    },
    /// Remove a secret
    Remove {
        /// The variable that stands for it
        name: String,
    },
}

/// Show and change what the organisation demands of all its sessions
#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(subcommand)]
    pub(crate) command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Show the policy
    Show,
    /// Change what is named; the rest stays
    Set {
        /// The least isolation that sessions run in: none, process, namespace, microvm; any is what each release asks for
        #[arg(long, value_name = "ISOLATION", value_parser = ["any", "none", "process", "namespace", "microvm"])]
        isolation: Option<String>,
        /// What releases may let their sessions reach, like `GET api.example.com/v1/*`; give it again for more
        #[arg(long, value_name = "RULE", conflicts_with_all = ["egress_allow_any", "egress_allow_none"])]
        egress_allow: Vec<String>,
        /// Releases may let their sessions reach whatever they ask for
        #[arg(long)]
        egress_allow_any: bool,
        /// Sessions reach nothing, whatever releases ask for
        #[arg(long, conflicts_with = "egress_allow_any")]
        egress_allow_none: bool,
        /// What no session reaches; give it again for more
        #[arg(long, value_name = "RULE", conflicts_with = "egress_deny_none")]
        egress_deny: Vec<String>,
        /// Nothing is forbidden
        #[arg(long)]
        egress_deny_none: bool,
    },
}

/// Show what a session reached outside its sandbox
#[derive(Debug, Args)]
pub(crate) struct EgressArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(subcommand)]
    pub(crate) command: EgressCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EgressCommand {
    /// Show what was let through and what was refused
    Show {
        /// The session
        session: SessionId,
    },
    /// Print the lines of karta.toml that what was let through needs
    Propose {
        /// The session
        session: SessionId,
    },
}
