//! Turns: admitted, run, folded.

pub mod admit;
mod commit;
pub mod fold;
pub mod machine;
pub mod meter;
mod park;
pub(crate) mod parked;
mod process;
pub mod run;
pub mod settle;
mod state;
mod tape;

pub use admit::{Accepted, OnBusy, SendMessage};
pub use fold::{Answer, Fold};

pub(crate) use process::too_many_processes;
