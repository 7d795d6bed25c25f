//! `karta webhooks`.

use clap::{Args, Subcommand};
use karta_types::webhook::{DeliveryState, Happened};
use karta_types::{DeliveryId, EndpointId};

use super::ServerArgs;

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
