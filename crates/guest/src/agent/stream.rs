//! One stream: bytes of the host into a descriptor, bytes of a descriptor to the host.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use karta_guest::proto::WINDOW;
use rustix::io::Errno;
use rustix::process::Pid;

/// What bytes of the host go into.
#[derive(Debug)]
pub(super) struct Sink {
    fd: Rc<OwnedFd>,
    socket: bool,
    pending: VecDeque<u8>,
    /// Whether no more bytes come: when the last is written, it is closed.
    last: bool,
}

/// Where bytes for the host come from.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) fd: Rc<OwnedFd>,
    socket: bool,
}

/// One stream.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) sink: Option<Sink>,
    pub(super) source: Option<Source>,
    /// How many bytes the host may still send.
    granted: u32,
    /// How many bytes were used since the last grant.
    used: u32,
    /// How many of the bytes that wait for the sink an earlier host sent: it has no use for their room.
    earlier: usize,
    /// How many bytes may still be sent.
    pub(super) window: u32,
    /// The channel to the keeper of a program.
    pub(super) keeper: Option<OwnedFd>,
    /// The keeper itself.
    pub(super) keeps: Option<Pid>,
    /// The process that does the work of a request.
    pub(super) worker: Option<Pid>,
    /// Whether a connection is still being made.
    pub(super) connecting: bool,
    /// Whether the host still waits to be told that the program runs.
    pub(super) starting: bool,
    /// Whether a guest's program opened it.
    pub(super) accepted: bool,
}

/// What reading a source gave.
pub(super) enum Got {
    /// Bytes.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// No more come; whether it broke.
    Over(bool),
}

/// What the loop has to tell the host after a sink was worked on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// So many more bytes may be sent.
    pub(super) credit: Option<u32>,
    /// No more bytes are wanted.
    pub(super) stop: bool,
}

impl Stream {
    /// One that writes to `sink` and reads from `source`, pipes both.
    pub(super) fn pipes(sink: Option<OwnedFd>, source: Option<OwnedFd>) -> Self {
        Self {
            sink: sink.map(|fd| Sink {
                fd: Rc::new(fd),
                socket: false,
                pending: VecDeque::new(),
                last: false,
            }),
            source: source.map(|fd| Source { fd: Rc::new(fd), socket: false }),
            granted: WINDOW,
            window: WINDOW,
            ..Self::default()
        }
    }

    /// One over a connection.
    pub(super) fn socket(socket: OwnedFd) -> Self {
        let fd = Rc::new(socket);
        Self {
            sink: Some(Sink { fd: Rc::clone(&fd), socket: true, pending: VecDeque::new(), last: false }),
            source: Some(Source { fd, socket: true }),
            granted: WINDOW,
            window: WINDOW,
            ..Self::default()
        }
    }

    /// Another host has it from here on, and knows nothing of what was granted before.
    pub(super) fn renew(&mut self) {
        (self.granted, self.window, self.used) = (WINDOW, WINDOW, 0);
        self.earlier = self.sink.as_ref().map_or(0, |sink| sink.pending.len());
        self.starting = false;
    }

    /// Whether nothing can happen on it any more.
    pub(super) fn over(&self) -> bool {
        self.sink.is_none() && self.source.is_none() && self.keeper.is_none()
    }

    /// The descriptor to write to, and whether there is something to write.
    pub(super) fn writing(&self) -> Option<(&OwnedFd, bool)> {
        self.sink.as_ref().map(|sink| (&*sink.fd, self.connecting || !sink.pending.is_empty()))
    }

    /// Takes bytes of the host. False if it sent more than it may.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> bool {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let Some(left) = self.granted.checked_sub(length) else { return false };
        self.granted = left;
        match &mut self.sink {
            Some(sink) if !sink.last => sink.pending.extend(bytes),
            Some(_) => return false,
            // What nobody reads any more.
            None => self.used += length,
        }
        true
    }

    /// Writes what can be written.
    pub(super) fn drain(&mut self) -> Moved {
        let mut stop = false;
        if let Some(sink) = &mut self.sink
            && !self.connecting
        {
            while !sink.pending.is_empty() {
                match write(sink) {
                    Ok(0) | Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => {}
                    Ok(written) => {
                        sink.pending.drain(..written);
                        let earlier = self.earlier.min(written);
                        self.earlier -= earlier;
                        self.used += u32::try_from(written - earlier).unwrap_or(0);
                    }
                    Err(_) => {
                        stop = !sink.last;
                        let earlier = std::mem::take(&mut self.earlier);
                        self.used += u32::try_from(sink.pending.len() - earlier).unwrap_or(0);
                        self.close_sink();
                        break;
                    }
                }
            }
        }
        if self.sink.as_ref().is_some_and(|sink| sink.last && sink.pending.is_empty()) && !self.connecting {
            self.close_sink();
        }
        let credit = (self.used >= WINDOW / 2).then(|| {
            let used = std::mem::take(&mut self.used);
            self.granted += used;
            used
        });
        Moved { credit, stop }
    }

    /// No more bytes come from the host.
    pub(super) fn finish(&mut self) {
        if let Some(sink) = &mut self.sink {
            sink.last = true;
        }
    }

    /// Gives the sink up. Answers whether the host has to be told.
    pub(super) fn close_sink(&mut self) -> bool {
        let Some(sink) = self.sink.take() else { return false };
        if sink.socket {
            let _ = rustix::net::shutdown(&*sink.fd, rustix::net::Shutdown::Write);
        }
        !sink.last
    }

    /// Gives the source up. Answers whether there was one.
    pub(super) fn close_source(&mut self) -> bool {
        let Some(source) = self.source.take() else { return false };
        if source.socket {
            let _ = rustix::net::shutdown(&*source.fd, rustix::net::Shutdown::Read);
        }
        true
    }

    /// Reads from the source, as much as the host lets it, into `buffer`.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Got {
        let Some(source) = &self.source else { return Got::Nothing };
        let most = buffer.len().min(self.window as usize);
        if most == 0 || self.connecting {
            return Got::Nothing;
        }
        match rustix::io::read(&*source.fd, &mut buffer[..most]) {
            Ok(0) => Got::Over(false),
            Ok(length) => {
                self.window -= u32::try_from(length).unwrap_or(self.window);
                Got::Bytes(length)
            }
            Err(Errno::AGAIN | Errno::INTR) => Got::Nothing,
            Err(_) => Got::Over(true),
        }
    }

    /// The host lets it send more. False if it grants what can't be.
    pub(super) fn grant(&mut self, bytes: u32) -> bool {
        match self.window.checked_add(bytes) {
            Some(window) if window <= WINDOW => {
                self.window = window;
                true
            }
            _ => false,
        }
    }
}

fn write(sink: &Sink) -> Result<usize, Errno> {
    let (front, back) = sink.pending.as_slices();
    if sink.socket {
        // A connection that broke must not end this process by a signal.
        let bytes = if front.is_empty() { back } else { front };
        rustix::net::send(&*sink.fd, bytes, rustix::net::SendFlags::NOSIGNAL)
    } else {
        rustix::io::writev(sink.fd.as_fd(), &[IoSlice::new(front), IoSlice::new(back)])
    }
}

/// Lets a descriptor never block.
pub(super) fn non_blocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}
