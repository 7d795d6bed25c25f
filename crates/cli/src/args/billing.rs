//! `karta billing`.

use clap::{Args, Subcommand};

use super::ServerArgs;

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
