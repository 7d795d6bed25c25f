//! What can be said on the command line: clap types and nothing else. Commands take what [`crate::settings`] makes of them.

mod account;
mod admin;
mod billing;
mod chat;
mod completions;
mod folder;
mod harness;
mod image;
mod people;
mod policy;
mod projects;
mod releases;
mod server;
mod webhooks;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub(crate) use account::{
    AuditArgs, AuditCommand, BudgetArgs, BudgetCommand, KeysArgs, KeysCommand, ProviderKeysArgs,
    ProviderKeysCommand, ServerArgs, TokenArgs, TokenCommand, UsageArgs,
};
pub(crate) use admin::{AdminArgs, AdminCommand};
pub(crate) use billing::{BillingArgs, BillingCommand};
pub(crate) use chat::{Approve, ChatArgs};
pub(crate) use completions::CompletionsArgs;
pub(crate) use folder::{CheckArgs, DeployArgs, GitCredentialArgs, InitArgs};
pub(crate) use harness::{HarnessArgs, HarnessCommand, Wanted};
pub(crate) use image::{ImageArgs, ImageBuildArgs, ImageCommand};
pub(crate) use people::{LoginArgs, LogoutArgs, MembersArgs, MembersCommand, WhoamiArgs};
pub(crate) use policy::{EgressArgs, EgressCommand, PolicyArgs, PolicyCommand, SecretsArgs, SecretsCommand};
pub(crate) use projects::{LogsArgs, ProjectsArgs, ProjectsCommand};
pub(crate) use releases::{
    PreviewsArgs, PreviewsCommand, ReleasesArgs, ReleasesCommand, RollbackArgs, version,
};
pub(crate) use server::{DemoArgs, DevArgs, DoctorArgs, PlayArgs, ServeArgs};
pub(crate) use webhooks::{WebhooksArgs, WebhooksCommand};

/// Serves a folder that configures a coding agent as a streaming HTTP service
#[derive(Debug, Parser)]
#[command(
    name = "karta",
    version,
    max_term_width = 100,
    propagate_version = true,
    subcommand_required = true
)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArgs {
    /// Print results for machines: JSON on standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print nothing but results and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// When to use colour; `auto` is on a terminal, unless `NO_COLOR` is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Color,
    /// Where everything is kept [default: `$XDG_DATA_HOME/karta` or `~/.local/share/karta`]
    #[arg(long, global = true, value_name = "FOLDER", env = "KARTA_DATA", hide_env_values = true)]
    pub(crate) data: Option<PathBuf>,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

/// Each is described at its arguments.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(DemoArgs),
    Init(InitArgs),
    Dev(DevArgs),
    Chat(ChatArgs),
    Check(CheckArgs),
    Deploy(DeployArgs),
    Logs(LogsArgs),
    Releases(ReleasesArgs),
    Rollback(RollbackArgs),
    Previews(PreviewsArgs),
    Projects(ProjectsArgs),
    Serve(ServeArgs),
    Admin(AdminArgs),
    Login(LoginArgs),
    Logout(LogoutArgs),
    Whoami(WhoamiArgs),
    Members(MembersArgs),
    Keys(KeysArgs),
    Budget(BudgetArgs),
    Usage(UsageArgs),
    Billing(BillingArgs),
    ProviderKeys(ProviderKeysArgs),
    Secrets(SecretsArgs),
    Policy(PolicyArgs),
    Egress(EgressArgs),
    Token(TokenArgs),
    Webhooks(WebhooksArgs),
    Audit(AuditArgs),
    Harness(HarnessArgs),
    Image(ImageArgs),
    Doctor(DoctorArgs),
    #[command(hide = true)]
    Play(PlayArgs),
    #[command(hide = true)]
    GitCredential(GitCredentialArgs),
    Completions(CompletionsArgs),
}
