//! The data plane: runs agents.

pub mod channels;
pub mod files;
pub mod history;
pub mod hub;
pub mod inputs;
pub mod journal;
pub mod places;
pub(crate) mod player;
pub mod projects;
pub mod recovery;
pub mod seats;
pub mod sessions;
pub mod stream;
pub mod transport;
pub mod turn;
