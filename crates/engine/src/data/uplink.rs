//! What comes out of a session's sandbox, and where it goes.

use karta_sandbox::Duplex;
use karta_sandbox::uplink::{Service, Uplink};

use crate::Engine;
use crate::gateway::Way;

/// The one way out of one sandbox.
pub(crate) struct SessionUplink {
    engine: Engine,
    way: Way,
}

impl SessionUplink {
    /// For the sandbox whose calls come by this way.
    pub(crate) const fn new(engine: Engine, way: Way) -> Self {
        Self { engine, way }
    }
}

impl Uplink for SessionUplink {
    fn accept(&self, service: Service, stream: Box<dyn Duplex>) {
        match service {
            Service::Model => self.engine.gateway().serve(stream, self.way),
            Service::Egress => drop(stream),
        }
    }
}
