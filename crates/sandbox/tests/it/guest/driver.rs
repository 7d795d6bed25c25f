//! A driver whose machines are ordinary processes, so that the laws of drivers can be tried on the link and the program inside.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use karta_sandbox::guest::{GuestSandbox, WeakSandbox};
use karta_sandbox::uplink::Service;
use karta_sandbox::{Command, Driver, Duplex, Error, Place, Process, Sandbox, Spec, state};
use karta_types::session::Isolation;
use karta_types::{SandboxId, SessionId};

use super::sandbox_in;
use crate::support::World;

/// The driver.
pub(crate) struct Plain {
    root: PathBuf,
    running: tokio::sync::Mutex<HashMap<SessionId, WeakSandbox>>,
}

impl Plain {
    pub(crate) fn new(world: &World) -> Self {
        Self { root: world.folder.path().join("machines"), running: tokio::sync::Mutex::default() }
    }

    fn folder(&self, session: SessionId) -> PathBuf {
        self.root.join(session.to_string())
    }
}

#[async_trait]
impl Driver for Plain {
    fn id(&self) -> &'static str {
        "plain"
    }

    fn isolation(&self) -> Isolation {
        Isolation::None
    }

    async fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    fn keeps(&self) -> bool {
        false
    }

    async fn acquire(&self, spec: &Spec) -> Result<Box<dyn Sandbox>, Error> {
        let mut running = self.running.lock().await;
        if let Some(sandbox) = running.get(&spec.session).and_then(WeakSandbox::upgrade) {
            return Ok(boxed(sandbox));
        }
        let folder = self.folder(spec.session);
        std::fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink(&spec.release, folder.join("release")).unwrap();
        let sandbox = sandbox_in(&folder, spec.uplink.clone()).await;
        running.insert(spec.session, sandbox.downgrade());
        Ok(boxed(sandbox))
    }

    async fn erase(&self, session: SessionId) -> Result<(), Error> {
        let running = self.running.lock().await.remove(&session);
        if let Some(sandbox) = running.and_then(|sandbox| sandbox.upgrade()) {
            sandbox.close().await?;
        }
        let _ = std::fs::remove_dir_all(self.folder(session));
        Ok(())
    }

    async fn reap(
        &self,
        keep: &(dyn for<'a> Fn(&'a SessionId) -> bool + Send + Sync),
    ) -> Result<usize, Error> {
        let lost: Vec<SessionId> =
            self.running.lock().await.keys().filter(|session| !keep(session)).copied().collect();
        for session in &lost {
            self.erase(*session).await?;
        }
        Ok(lost.len())
    }
}

/// A sandbox in which the programs of the laws have names.
pub(crate) struct Mapped<S>(pub(crate) S);

#[async_trait]
impl<S: std::ops::Deref<Target = dyn Sandbox> + Send + Sync> Sandbox for Mapped<S> {
    fn id(&self) -> SandboxId {
        self.0.id()
    }

    fn place(&self) -> &Place {
        self.0.place()
    }

    fn kept(&self) -> &[String] {
        self.0.kept()
    }

    fn fresh(&self) -> bool {
        self.0.fresh()
    }

    fn service(&self, service: Service) -> Option<SocketAddr> {
        self.0.service(service)
    }

    async fn survey(&self) -> Result<Vec<state::Entry>, Error> {
        self.0.survey().await
    }

    async fn take(&self, paths: Vec<PathBuf>) -> Result<state::Records, Error> {
        self.0.take(paths).await
    }

    async fn restore(&self, records: state::Records) -> Result<(), Error> {
        self.0.restore(records).await
    }

    async fn close(&self) -> Result<(), Error> {
        self.0.close().await
    }

    async fn spawn(&self, command: &Command) -> Result<Process, Error> {
        let script = match command.program.as_str() {
            "copy" => "exec cat",
            "seven" => "exit 7",
            "forever" => "exec sleep 1000",
            _ => return self.0.spawn(command).await,
        };
        let args = vec!["-c".to_owned(), script.to_owned()];
        self.0.spawn(&Command { program: "/bin/sh".to_owned(), args, ..command.clone() }).await
    }

    async fn connect(&self, port: u16) -> Result<Box<dyn Duplex>, Error> {
        self.0.connect(port).await
    }

    async fn put(&self, path: &Path, content: &[u8]) -> Result<(), Error> {
        self.0.put(path, content).await
    }

    async fn find(&self, pattern: &str, limit: u64) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
        self.0.find(pattern, limit).await
    }

    async fn export(&self, into: &Path) -> Result<(), Error> {
        self.0.export(into).await
    }
}

fn boxed(sandbox: GuestSandbox) -> Box<dyn Sandbox> {
    Box::new(Mapped(Box::new(sandbox) as Box<dyn Sandbox>))
}
