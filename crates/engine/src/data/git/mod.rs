//! `git push karta`: the real `git receive-pack`, with objects in quarantine until the platform has published what was pushed.
//!
//! A project's repository is a memory of what was pushed, so that the next push is small: it can be thrown away at any time, and is made
//! anew by the next push. What runs is never read from it.
//!
//! [`session`] runs one `receive-pack` and lets its hook ask ([`hook`]); [`push`] says what a push means ([`plan`] is the pure half);
//! [`tree`] reads commits; [`repositories`] keeps the folders; [`program`] is git itself, in an environment with nothing of this machine's.

mod hook;
mod plan;
mod program;
mod push;
mod repositories;
mod session;
mod tree;

pub use program::version;
pub use session::{Incoming, Said};

pub(crate) use repositories::Repositories;
