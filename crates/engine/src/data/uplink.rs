//! What comes out of a sandbox, and where it goes.

use std::sync::{Arc, Mutex, PoisonError};

use karta_sandbox::Duplex;
use karta_sandbox::uplink::{Service, Uplink};

use crate::Engine;
use crate::data::egress::{Egress, KeptAuthority};
use crate::gateway::Way;

/// The one way out of one sandbox. Clones are the same.
#[derive(Clone)]
pub(crate) struct WayOut(Arc<Inner>);

struct Inner {
    engine: Engine,
    way: Way,
    egress: Mutex<Option<Arc<Egress>>>,
}

impl WayOut {
    /// For the sandbox whose model calls come by this way. Everything else is closed until it is [let out](WayOut::lead).
    pub(crate) fn new(engine: Engine, way: Way) -> Self {
        Self(Arc::new(Inner { engine, way, egress: Mutex::new(None) }))
    }

    /// The way by which model calls come.
    pub(crate) fn way(&self) -> Way {
        self.0.way
    }

    /// The authority whose certificates the programs inside trust, to be kept.
    pub(crate) fn authority(&self) -> Option<KeptAuthority> {
        self.0.egress.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|egress| egress.authority())
    }

    /// Everything else goes out here from now on. What was going out elsewhere ends.
    pub(crate) fn lead(&self, egress: Option<Arc<Egress>>) {
        *self.0.egress.lock().unwrap_or_else(PoisonError::into_inner) = egress;
    }
}

impl Uplink for WayOut {
    fn accept(&self, service: Service, stream: Box<dyn Duplex>) {
        match service {
            Service::Model => self.0.engine.gateway().serve(stream, self.0.way),
            Service::Egress => {
                let egress = self.0.egress.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(egress) = egress {
                    egress.serve(stream);
                }
            }
        }
    }
}
