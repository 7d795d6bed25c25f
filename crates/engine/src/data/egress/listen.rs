//! Where builds reach their way out: a port of this machine's loopback, as long as the build runs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Egress;
use crate::{Engine, Error, Result};

/// What is waited after a connection could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// A port that leads to a way out. It closes with this.
#[derive(Debug)]
pub(crate) struct Listening {
    address: SocketAddr,
    _end: DropGuard,
}

impl Listening {
    /// Opens a port that leads to `egress`.
    ///
    /// # Errors
    /// There is no free port.
    pub(crate) async fn open(engine: &Engine, egress: Egress) -> Result<Self> {
        let doing = "starting the way out of a build";
        let listener =
            TcpListener::bind(("127.0.0.1", 0)).await.map_err(|error| Error::internal(doing, error))?;
        let address = listener.local_addr().map_err(|error| Error::internal(doing, error))?;
        let (stop, egress) = (CancellationToken::new(), Arc::new(egress));
        let ended = stop.clone();
        engine.tasks().spawn(async move {
            loop {
                match ended.run_until_cancelled(listener.accept()).await {
                    None => return,
                    Some(Ok((client, _))) => egress.serve(Box::new(client)),
                    Some(Err(error)) => {
                        tracing::warn!(%error, "a build's way out can't take a connection");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        });
        Ok(Self { address, _end: stop.drop_guard() })
    }

    /// For `HTTP_PROXY`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}
