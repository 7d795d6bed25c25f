//! The streams of a link as readers and writers.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Buf as _;
use karta_guest::proto::WINDOW;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::link::{HELD, Shared};

/// What comes out of the sandbox. Dropping it tells the guest that nobody reads any more.
#[derive(Debug)]
pub(super) struct Incoming {
    shared: Arc<Shared>,
    id: u32,
    /// Whether the end of the sandbox is an error here, and not just the end.
    strict: bool,
}

/// What goes into the sandbox. Dropping it ends the stream.
#[derive(Debug)]
pub(super) struct Outgoing {
    shared: Arc<Shared>,
    id: u32,
}

/// Both.
#[derive(Debug)]
pub(super) struct Joined {
    incoming: Incoming,
    outgoing: Outgoing,
}

impl Incoming {
    pub(super) fn new(shared: Arc<Shared>, id: u32) -> Self {
        Self { shared, id, strict: false }
    }
}

impl Joined {
    pub(super) fn new(shared: &Arc<Shared>, id: u32) -> Self {
        Self {
            incoming: Incoming { shared: Arc::clone(shared), id, strict: true },
            outgoing: Outgoing { shared: Arc::clone(shared), id },
        }
    }

    /// The output and the input of a program: its end, however it comes, is just the end of what it says.
    pub(super) fn split(self) -> (Incoming, Outgoing) {
        let Self { mut incoming, outgoing } = self;
        incoming.strict = false;
        (incoming, outgoing)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.shared.unread(self.id);
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.shared.unwritten(self.id);
    }
}

impl AsyncRead for Incoming {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let Some(entry) = state.entries.get_mut(&self.id) else { return Poll::Ready(Ok(())) };
        if let Some(piece) = entry.received.front_mut() {
            let length = piece.len().min(into.remaining());
            into.put_slice(&piece[..length]);
            piece.advance(length);
            if piece.is_empty() {
                entry.received.pop_front();
            }
            entry.used += u32::try_from(length).unwrap_or(0);
            if entry.used >= WINDOW / 2 && state.ended.is_none() {
                self.shared.touch(state, self.id);
            }
            return Poll::Ready(Ok(()));
        }
        let broken = |what: &str| Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, what)));
        match (entry.incoming_over, &state.ended) {
            (Some(true), _) if self.strict => broken("the connection inside the sandbox broke"),
            (None, Some(reason)) if self.strict => broken(reason),
            (Some(_), _) | (None, Some(_)) => Poll::Ready(Ok(())),
            (None, None) => {
                entry.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Outgoing {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let gone = |what: &str| Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, what)));
        if let Some(reason) = &state.ended {
            return gone(reason);
        }
        let Some(entry) = state.entries.get_mut(&self.id).filter(|entry| !entry.refused && !entry.finish)
        else {
            return gone("nobody inside the sandbox reads this any more");
        };
        let length = bytes.len().min(HELD - entry.sending.len().min(HELD));
        if length == 0 && !bytes.is_empty() {
            entry.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        entry.sending.extend_from_slice(&bytes[..length]);
        self.shared.touch(state, self.id);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.unwritten(self.id);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Joined {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.incoming).poll_read(context, into)
    }
}

impl AsyncWrite for Joined {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.outgoing).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.outgoing).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.outgoing).poll_shutdown(context)
    }
}
