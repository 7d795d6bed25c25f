//! `karta admin`.

use clap::{Args, Subcommand};
use karta_types::billing::SubscriptionStatus;

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
    /// Make everything that an organisation's sessions have made unreadable, in every copy of the blob store; for good
    Shred {
        /// The organisation, by its slug or id
        org: String,
        /// Do it, without being asked
        #[arg(long)]
        yes: bool,
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
