//! The control plane: who may, how much, what it cost.

pub mod keys;
pub mod local;
pub mod replies;
pub mod usage;
