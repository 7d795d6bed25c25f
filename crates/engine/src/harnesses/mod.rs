//! Where harnesses are installed, and how they get there.
//!
//! A harness is a program of somebody else's, so it comes the most boring way there is: the npm client fetches one package, by
//! exact version and integrity, into `<data>/harnesses/<id>/<version>`. Never globally, never with the package's scripts, never
//! by a URL of our own. A version is either there whole or not at all: it is put together beside its place and moved in last.

mod catalogue;
mod doctor;
mod install;
mod npm;

pub use catalogue::{Harnesses, Installed, Missing, Record, Status, Version};
pub use doctor::Check;
pub use install::{Error, Progress};
pub use npm::Npm;

/// The harness with this id, of all that this version knows.
pub fn find(id: &str) -> Option<&'static dyn karta_harness::Harness> {
    karta_harness::registry::find(id)
}
