//! `karta login`, `logout`, `admin`, `members`, `keys`, `budget`, `usage`, `provider-keys`, `token`, `webhooks`, `audit`.

use clap::{Args, Subcommand};
use karta_types::billing::SubscriptionStatus;
use karta_types::budget::{Level, Period};
use karta_types::provider_key::KeyProvider;
use karta_types::scope::Scopes;
use karta_types::webhook::{DeliveryState, Happened};
use karta_types::{DeliveryId, EndpointId, InvitationId, KeyId, Role, SessionId, SessionTokenId, UserId};

/// Which server.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// The server's address [default: of the running `karta dev` or `karta serve`]
    #[arg(long, global = true, value_name = "URL", env = "KARTA_URL")]
    pub(crate) url: Option<String>,
    /// The API key; better given as `KARTA_API_KEY`, because other users of this machine can see command lines
    #[arg(long, global = true, value_name = "KEY", env = "KARTA_API_KEY", hide_env_values = true)]
    pub(crate) key: Option<String>,
}

/// Sign this terminal in: somebody approves it in a browser
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// The server's address [default: of the running `karta dev` or `karta serve`]
    #[arg(long, value_name = "URL", env = "KARTA_URL")]
    pub(crate) url: Option<String>,
}

/// End this terminal's sign-in
#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// The server's address [default: the one signed in to last]
    #[arg(long, value_name = "URL", env = "KARTA_URL")]
    pub(crate) url: Option<String>,
}

/// Show who this terminal acts as
#[derive(Debug, Args)]
pub(crate) struct WhoamiArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// What whoever runs the server does on its machine
#[derive(Debug, Args)]
pub(crate) struct AdminArgs {
    #[command(subcommand)]
    pub(crate) command: AdminCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Grant an organisation prepaid credit, which its use is drawn from
    Credit {
        /// The organisation
        #[arg(long, value_name = "SLUG", default_value = "default")]
        org: String,
        /// How much, in micro-dollars: 5000000 is five dollars
        amount: i64,
        /// When what is left of it is gone, like `2027-01-01T00:00:00Z` [default: never]
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
        /// What for
        #[arg(long, default_value = "", value_name = "TEXT")]
        note: String,
        /// Settings file of the server
        #[arg(long, value_name = "FILE", env = "KARTA_CONFIG")]
        config: Option<std::path::PathBuf>,
    },
    /// Set an organisation's subscription by hand, where no Stripe does
    Subscription {
        /// The organisation
        #[arg(long, value_name = "SLUG", default_value = "default")]
        org: String,
        /// The plan's name
        plan: String,
        /// trialing, active, `past_due` or canceled; only the first two may run
        status: SubscriptionStatus,
        /// Settings file of the server
        #[arg(long, value_name = "FILE", env = "KARTA_CONFIG")]
        config: Option<std::path::PathBuf>,
    },
    /// Print the SQL that gives a PostgreSQL role what a data plane of its own needs, and nothing else
    Grants {
        /// The role that the data plane connects as
        role: String,
    },
    /// Make an organisation's first owner: prints a link that signs them in, once, and a key. For a member, prints a new link
    Bootstrap {
        /// The owner's address
        #[arg(long, value_name = "ADDRESS")]
        email: String,
        /// The organisation
        #[arg(long, value_name = "SLUG", default_value = "default")]
        org: String,
        /// Settings file of the server
        #[arg(long, value_name = "FILE", env = "KARTA_CONFIG")]
        config: Option<std::path::PathBuf>,
    },
}

/// List, invite, change and remove people
#[derive(Debug, Args)]
pub(crate) struct MembersArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(subcommand)]
    pub(crate) command: MembersCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MembersCommand {
    /// Show the organisation's people
    List,
    /// Invite somebody and print the link, once
    Invite {
        /// Their address
        email: String,
        /// What they will be: owner, admin, developer, billing or viewer
        #[arg(long, default_value = "developer")]
        role: Role,
    },
    /// Show invitations that were not yet taken up
    Invitations,
    /// Take an invitation back
    Uninvite {
        /// The invitation's id
        id: InvitationId,
    },
    /// Give somebody another role
    Change {
        /// The person's id
        id: UserId,
        /// What they are from now on: owner, admin, developer, billing or viewer
        role: Role,
    },
    /// Remove somebody; their sign-ins end at once
    Remove {
        /// The person's id
        id: UserId,
    },
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
        #[arg(long, value_name = "PROJECT")]
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
    #[arg(long, value_name = "PROJECT")]
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

/// Show what is paid: subscription, credit, statements
#[derive(Debug, Args)]
pub(crate) struct BillingArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(subcommand)]
    pub(crate) command: BillingCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BillingCommand {
    /// Show the subscription, the plans and the credit
    Show,
    /// Print a month's statement
    Statement {
        /// The month, like 2026-11
        month: String,
        /// As `csv`, `json`, or an `html` page to print
        #[arg(long, default_value = "csv", value_parser = ["csv", "json", "html"])]
        format: String,
    },
    /// Begin to subscribe: prints where a person pays
    Checkout {
        /// The plan
        plan: String,
    },
}

/// List, make and remove webhook endpoints; look at deliveries and repeat them
#[derive(Debug, Args)]
pub(crate) struct WebhooksArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(subcommand)]
    pub(crate) command: WebhooksCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WebhooksCommand {
    /// Show endpoints
    List,
    /// Make an endpoint and print its signing secret, once
    Create {
        /// Its address: a public one, by https
        #[arg(value_name = "URL")]
        address: String,
        /// What it is told, like `turn.completed`; give it again for more [default: everything]
        #[arg(long = "event", value_name = "KIND")]
        events: Vec<Happened>,
    },
    /// Take up an endpoint that was disabled
    Enable {
        /// The endpoint's id
        id: EndpointId,
    },
    /// Send nothing to an endpoint for now
    Disable {
        /// The endpoint's id
        id: EndpointId,
    },
    /// Remove an endpoint
    Remove {
        /// The endpoint's id
        id: EndpointId,
    },
    /// Make a new signing secret and print it, once; both sign for an overlap
    Rotate {
        /// The endpoint's id
        id: EndpointId,
        /// Hours that both sign
        #[arg(long, default_value_t = 24, value_name = "HOURS")]
        overlap: u64,
    },
    /// Show an endpoint's newest deliveries
    Deliveries {
        /// The endpoint's id
        id: EndpointId,
        /// Only those that are pending, delivered or failed
        #[arg(long)]
        state: Option<DeliveryState>,
        /// How many
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Deliver again: one, or everything that was given up since a time
    Redeliver {
        /// The endpoint's id
        id: EndpointId,
        /// The delivery
        #[arg(required_unless_present = "since")]
        delivery: Option<DeliveryId>,
        /// Everything that was given up and happened since this time, like `2026-11-01T00:00:00Z`
        #[arg(long, value_name = "TIME", conflicts_with = "delivery")]
        since: Option<String>,
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
