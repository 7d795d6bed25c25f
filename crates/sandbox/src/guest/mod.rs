//! A sandbox with a program of the platform inside: the host's side of it.
//!
//! Drivers that isolate make a [`Machine`] and a [`Link`] to the guest in it, and hand both to a [`GuestSandbox`], which is a
//! [`Sandbox`](crate::Sandbox) in all that goes through the link. The sandbox lives as long as any handle of it; with the last one
//! the link and the machine are dropped, and with them everything inside.

mod files;
mod link;
mod sandbox;
mod stream;

use std::path::Path;

use async_trait::async_trait;

pub use link::Link;
pub use sandbox::{GuestSandbox, Setup, WeakSandbox, adopt};

use crate::{Error, ParkKey};

/// What holds a guest: the virtual machine or the namespaces. Dropping it kills it and removes what it had on the host, without
/// waiting.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Lets no instruction run inside until [`Machine::wake`]. No error if it is so already.
    async fn pause(&self) -> Result<(), Error>;
    /// Lets everything go on.
    async fn wake(&self) -> Result<(), Error>;
    /// Whether [`Machine::save`] works.
    fn saves(&self) -> bool {
        false
    }
    /// The most bytes that [`Machine::save`] writes now.
    fn save_bytes(&self) -> u64 {
        0
    }
    /// Saves it, memory and all, into this folder (made; must not exist), sealed with this key, and ends it. On failure it may go on or
    /// have ended.
    async fn save(&self, _into: &Path, _key: &ParkKey) -> Result<(), Error> {
        Err(Error::Unavailable("this driver can't save what runs".to_owned()))
    }
    /// Ends it and waits until nothing of it is left on the host. No error if it has ended.
    async fn close(&self) -> Result<(), Error>;
}
