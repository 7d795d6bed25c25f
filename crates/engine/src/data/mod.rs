//! The data plane: runs agents.

mod allowance;
pub mod channels;
pub mod checkpoints;
pub(crate) mod egress;
pub mod git;
pub(crate) mod health;
pub mod history;
pub mod hub;
pub mod inputs;
pub mod journal;
pub mod places;
pub(crate) mod player;
pub mod projects;
pub mod recovery;
pub mod releases;
pub mod seats;
pub mod sessions;
pub mod stream;
pub mod transport;
pub mod turn;
mod uplink;
mod workspaces;
