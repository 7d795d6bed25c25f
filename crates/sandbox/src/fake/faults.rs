//! Faults on request.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncWrite, DuplexStream};

use super::lock;

/// Makes the next operation of a kind go wrong, once. Clones are the same handle.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<Next>>);

#[derive(Debug, Default)]
struct Next {
    acquire: Option<io::ErrorKind>,
    spawn: Option<io::ErrorKind>,
    put: Option<io::ErrorKind>,
    survey: Option<io::ErrorKind>,
    death: Option<u64>,
}

impl Faults {
    /// The next place can't be prepared.
    pub fn fail_acquire(&self, kind: io::ErrorKind) {
        lock(&self.0).acquire = Some(kind);
    }

    /// The next program doesn't start.
    pub fn fail_spawn(&self, kind: io::ErrorKind) {
        lock(&self.0).spawn = Some(kind);
    }

    /// The next file can't be written: `StorageFull` is a full disk.
    pub fn fail_put(&self, kind: io::ErrorKind) {
        lock(&self.0).put = Some(kind);
    }

    /// The next survey of a place fails.
    pub fn fail_survey(&self, kind: io::ErrorKind) {
        lock(&self.0).survey = Some(kind);
    }

    /// The next program that starts loses its output after this many bytes, in the middle of whatever it writes: the platform sees
    /// the end of the stream, the program a broken pipe.
    pub fn cut_output(&self, bytes: u64) {
        lock(&self.0).death = Some(bytes);
    }

    pub(super) fn acquire(&self) -> io::Result<()> {
        fail(lock(&self.0).acquire.take())
    }

    pub(super) fn spawn(&self) -> io::Result<()> {
        fail(lock(&self.0).spawn.take())
    }

    pub(super) fn put(&self) -> io::Result<()> {
        fail(lock(&self.0).put.take())
    }

    pub(super) fn survey(&self) -> io::Result<()> {
        fail(lock(&self.0).survey.take())
    }

    pub(super) fn death(&self) -> Option<u64> {
        lock(&self.0).death.take()
    }
}

fn fail(kind: Option<io::ErrorKind>) -> io::Result<()> {
    kind.map_or(Ok(()), |kind| Err(kind.into()))
}

/// An output that breaks after so many bytes.
pub(super) struct Dying {
    inner: Option<DuplexStream>,
    left: u64,
}

impl Dying {
    pub(super) fn new(inner: DuplexStream, left: u64) -> Self {
        Self { inner: Some(inner), left }
    }
}

impl AsyncWrite for Dying {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        if most == 0 && !bytes.is_empty() {
            self.inner = None;
        }
        let Some(inner) = &mut self.inner else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        let written = std::task::ready!(Pin::new(inner).poll_write(cx, &bytes[..most]))?;
        self.left -= written as u64;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner = None;
        Poll::Ready(Ok(()))
    }
}
