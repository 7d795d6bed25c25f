//! The drivers there are, by name.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use karta_types::{Clock, Rng};

use crate::limits::Machines;
use crate::{Driver, Error, fake, microvm, namespace, process};

/// The names a configuration may use.
pub const DRIVERS: &[&str] = &["process", "namespace", "microvm", "fake"];

/// What the drivers need; each takes its part.
pub struct Config {
    /// Where the places are: `<data>/sessions`.
    pub root: PathBuf,
    /// For the drivers that isolate: their limits and places.
    pub machines: Machines,
    /// For `process` and `namespace`: names of programs mapped to the real program and the arguments that go before the others.
    pub programs: HashMap<String, (PathBuf, Vec<String>)>,
    /// For `fake`: names of programs mapped to the functions that play them.
    pub functions: HashMap<String, fake::Program>,
    /// The time, for ids.
    pub clock: Arc<dyn Clock>,
    /// The randomness, for ids.
    pub rng: Arc<dyn Rng>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("root", &self.root)
            .field("programs", &self.programs)
            .finish_non_exhaustive()
    }
}

/// Makes the driver of this name. An unknown name, or one this version doesn't have, is [`Error::Unavailable`].
pub fn build(name: &str, config: Config) -> Result<Arc<dyn Driver>, Error> {
    let Config { root, machines, programs, functions, clock, rng } = config;
    match name {
        "process" => Ok(Arc::new(process::Driver::new(root, programs, clock, rng)?)),
        "fake" => Ok(Arc::new(fake::Driver::new(functions, clock, rng))),
        "namespace" => Ok(Arc::new(namespace::Driver::new(machines, programs, clock, rng)?)),
        "microvm" => Ok(Arc::new(microvm::Driver::new(machines, clock, rng))),
        other => Err(Error::Unavailable(format!(
            "there is no driver `{}`; use one of {}",
            other.chars().take(48).collect::<String>(),
            DRIVERS.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
        ))),
    }
}
