//! The scripted harness inside the server: for demos, tests and measuring the platform alone.

use std::sync::Arc;

use karta_sandbox::{Driver, fake};
use karta_types::{Clock, Rng};

/// A driver that runs the scripted player as a task.
pub(crate) fn driver(clock: Arc<dyn Clock>, rng: Arc<dyn Rng>) -> Arc<dyn Driver> {
    let functions = std::collections::HashMap::new();
    Arc::new(fake::Driver::new(functions, clock, rng))
}
