//! Webhooks: where they go, what is told, and what became of it.

mod deliveries;
mod endpoints;
pub(crate) mod outbox;

pub use deliveries::{DeliveryRow, DueRow, Outcome};
pub use endpoints::{EndpointPatch, EndpointRow, EndpointSecretRow};
