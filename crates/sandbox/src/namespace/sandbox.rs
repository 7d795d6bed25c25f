//! A sandbox to which programs of the host are shown by names.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use karta_types::SandboxId;

use super::Shared;
use crate::guest::GuestSandbox;
use crate::uplink::Service;
use crate::{Command, Duplex, Error, Place, Process, Sandbox, state};

/// A handle of a sandbox.
pub(super) struct Shown {
    pub(super) inner: GuestSandbox,
    pub(super) shared: Arc<Shared>,
}

/// Where a program of the host is inside; none for a name that can't be a file's.
pub(super) fn inside(name: &str) -> Option<PathBuf> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    plain.then(|| Path::new("/opt/programs").join(name))
}

#[async_trait]
impl Sandbox for Shown {
    fn id(&self) -> SandboxId {
        self.inner.id()
    }

    fn place(&self) -> &Place {
        self.inner.place()
    }

    fn kept(&self) -> &[String] {
        self.inner.kept()
    }

    fn fresh(&self) -> bool {
        self.inner.fresh()
    }

    fn service(&self, service: Service) -> Option<SocketAddr> {
        self.inner.service(service)
    }

    async fn survey(&self) -> Result<Vec<state::Entry>, Error> {
        self.inner.survey().await
    }

    async fn take(&self, paths: Vec<PathBuf>) -> Result<state::Records, Error> {
        self.inner.take(paths).await
    }

    async fn restore(&self, records: state::Records) -> Result<(), Error> {
        self.inner.restore(records).await
    }

    async fn pause(&self) -> Result<(), Error> {
        self.inner.pause().await
    }

    async fn wake(&self) -> Result<(), Error> {
        self.inner.wake().await
    }

    async fn close(&self) -> Result<(), Error> {
        self.inner.close().await
    }

    async fn spawn(&self, command: &Command) -> Result<Process, Error> {
        let mapped = self.shared.programs.get(&command.program).zip(inside(&command.program));
        let Some(((_, leading), program)) = mapped else { return self.inner.spawn(command).await };
        let args = leading.iter().chain(&command.args).cloned().collect();
        let program = program.display().to_string();
        self.inner.spawn(&Command { program, args, ..command.clone() }).await
    }

    async fn connect(&self, port: u16) -> Result<Box<dyn Duplex>, Error> {
        self.inner.connect(port).await
    }

    async fn put(&self, path: &Path, content: &[u8]) -> Result<(), Error> {
        self.inner.put(path, content).await
    }

    async fn find(&self, pattern: &str, limit: u64) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
        self.inner.find(pattern, limit).await
    }

    async fn export(&self, into: &Path) -> Result<(), Error> {
        self.inner.export(into).await
    }
}
