//! The one way out of a sandbox.

use crate::Duplex;

/// What a stream out of a sandbox leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// The model gateway: HTTP as the providers speak it.
    Model,
    /// Everything else: an HTTP proxy.
    Egress,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Model, Self::Egress];

    /// The port on the loopback inside the sandbox that leads there.
    pub const fn port(self) -> u16 {
        match self {
            Self::Model => 4180,
            Self::Egress => 4181,
        }
    }

    /// The service behind a port inside the sandbox.
    pub fn of_port(port: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.port() == port)
    }
}

/// Takes the streams that come out of one session's sandbox. Whose they are is known by where they come from, not by what they
/// say.
pub trait Uplink: Send + Sync {
    /// A program inside has connected. Dropping the stream closes it. Must not block.
    fn accept(&self, service: Service, stream: Box<dyn Duplex>);
}

/// Leads nowhere: every stream is closed at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nowhere;

impl Uplink for Nowhere {
    fn accept(&self, _service: Service, stream: Box<dyn Duplex>) {
        drop(stream);
    }
}
