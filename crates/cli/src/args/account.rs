//! `karta keys`, `budget`, `usage`, `provider-keys`, `token`, `audit`.

use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;
use karta_types::budget::{Level, Period};
use karta_types::provider_key::KeyProvider;
use karta_types::scope::Scopes;
use karta_types::{KeyId, SessionId, SessionTokenId};

use crate::complete;

/// Which server.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerArgs {
    /// The server's address [default: of the running `karta dev` or `karta serve`]
    #[arg(long, global = true, value_name = "URL", env = "KARTA_URL")]
    pub(crate) url: Option<String>,
    /// The API key; better given as `KARTA_API_KEY`, because other users of this machine can see command lines
    #[arg(long, global = true, value_name = "KEY", env = "KARTA_API_KEY", hide_env_values = true)]
    pub(crate) key: Option<String>,
}

/// List, make, replace and revoke API keys
#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(subcommand)]
    pub(crate) command: KeysCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Show the organisation's keys, without their texts
    List,
    /// Make a key and print its text, once
    Create {
        /// A name, for people
        name: String,
        /// What it may do: any of read, write, admin
        #[arg(long, default_value = "read,write", value_name = "SCOPES")]
        scopes: Scopes,
        /// The one project it is for [default: all of them]
        #[arg(long, value_name = "PROJECT", add = ArgValueCompleter::new(complete::projects))]
        project: Option<String>,
        /// Make a test key (`kt_test_…`)
        #[arg(long)]
        test: bool,
    },
    /// Make a key with the same rights; the old one ends after an overlap
    Rotate {
        /// The key's id
        id: KeyId,
        /// Hours that both are good
        #[arg(long, default_value_t = 24, value_name = "HOURS")]
        overlap: u64,
    },
    /// End a key at once
    Revoke {
        /// The key's id
        id: KeyId,
    },
}

/// Show, set and remove caps on tokens and cost
#[derive(Debug, Args)]
pub(crate) struct BudgetArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(subcommand)]
    pub(crate) command: BudgetCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BudgetCommand {
    /// Show caps, what was used, what is set aside and what is left
    List,
    /// Set caps; those that are not named are lifted
    Set {
        /// Whose: org, project, key, `end_user` or session
        level: Level,
        /// The id of whom (or the slug of an organisation or project)
        id: String,
        /// How long it holds: day, month or total
        #[arg(long, default_value = "total")]
        period: Period,
        /// Cap on cost, in micro-dollars: 5000000 is five dollars
        #[arg(long, value_name = "MICROS")]
        cost_micros: Option<i64>,
        /// Cap on input tokens, cache classes included
        #[arg(long, value_name = "TOKENS")]
        input_tokens: Option<u64>,
        /// Cap on output tokens
        #[arg(long, value_name = "TOKENS")]
        output_tokens: Option<u64>,
        /// Cap on all tokens
        #[arg(long, value_name = "TOKENS")]
        total_tokens: Option<u64>,
    },
    /// Remove a cap
    Remove {
        /// Whose: org, project, key, `end_user` or session
        level: Level,
        /// The id of whom
        id: String,
        /// Which of its caps: day, month or total
        #[arg(long, default_value = "total")]
        period: Period,
    },
}

/// Show turns, tokens and cost
#[derive(Debug, Args)]
pub(crate) struct UsageArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Apart by any of day, project, model, key, `end_user`
    #[arg(long, default_value = "day", value_name = "GROUPS")]
    pub(crate) by: String,
    /// Of this project only
    #[arg(long, value_name = "PROJECT", add = ArgValueCompleter::new(complete::projects))]
    pub(crate) project: Option<String>,
}

/// Show, set and erase the organisation's own keys for model providers
#[derive(Debug, Args)]
pub(crate) struct ProviderKeysArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(subcommand)]
    pub(crate) command: ProviderKeysCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProviderKeysCommand {
    /// Show which providers have a key
    List,
    /// Set a provider's key, read from standard input; the one before it is erased
    Set {
        /// anthropic, openai, openrouter, bedrock (a Bedrock API key) or vertex (a service account's key file)
        provider: KeyProvider,
        /// The cloud's region, for bedrock and vertex: us-east-1, global
        #[arg(long, value_name = "REGION")]
        region: Option<String>,
    },
    /// Erase a provider's key
    Erase {
        /// The provider
        provider: KeyProvider,
    },
}

/// Mint and revoke session tokens for end users' browsers
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(subcommand)]
    pub(crate) command: TokenCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Mint a token and print it, once
    Mint {
        /// The project it is for
        #[arg(add = ArgValueCompleter::new(complete::projects))]
        project: String,
        /// The end user: every session it touches is theirs
        end_user: String,
        /// The one session it is for [default: all of the end user's]
        #[arg(long, value_name = "ID")]
        session: Option<SessionId>,
        /// A page's origin that may use it, like `https://app.example.com`; give it again for more
        #[arg(long = "origin", value_name = "ORIGIN")]
        origins: Vec<String>,
        /// Minutes that it is good, 60 at most
        #[arg(long, default_value_t = 15, value_name = "MINUTES")]
        minutes: u64,
        /// The most that what it does may cost, in micro-dollars [default: as much as the budgets allow]
        #[arg(long, value_name = "MICROS")]
        max_cost_micros: Option<i64>,
    },
    /// End a token before its time
    Revoke {
        /// The token's id
        id: SessionTokenId,
    },
}

/// Read, export and check the audit log
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(subcommand)]
    pub(crate) command: AuditCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Show the newest entries
    List {
        /// Of this action only, like `key.create`
        #[arg(long)]
        action: Option<String>,
        /// How many
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Print every entry as a line of JSON, oldest first
    Export {
        /// After this place
        #[arg(long, default_value_t = 0, value_name = "SEQ")]
        after: u64,
    },
    /// Check the whole chain and its signatures; exits with 1 and names the rows if something is wrong
    Verify,
}
