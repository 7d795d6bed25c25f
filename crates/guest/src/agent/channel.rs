//! The byte stream to the host.

use std::io;
use std::os::fd::OwnedFd;

use karta_guest::proto::frame::{self, Decoder, Frame, Kind};
use rustix::io::Errno;

use super::stream::non_blocking;

/// From how many waiting bytes on nothing more is read for the host.
const HIGH: usize = 256 << 10;

/// The channel.
#[derive(Debug)]
pub(super) struct Channel {
    fd: OwnedFd,
    decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
    /// The generation this machine is of.
    pub(super) generation: u64,
}

impl Channel {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        non_blocking(&fd)?;
        Ok(Self { fd, decoder: Decoder::default(), out: Vec::new(), sent: 0, generation: 0 })
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Puts a frame behind the others.
    pub(super) fn send(&mut self, kind: Kind, stream: u32, payload: &[u8]) {
        // Only a payload that its kind has no room for is refused, and no caller makes one.
        let _ = frame::encode(&mut self.out, kind, stream, self.generation, payload);
    }

    /// Whether bytes wait to be sent.
    pub(super) fn waiting(&self) -> bool {
        self.sent < self.out.len()
    }

    /// Whether so much waits that nothing should be added.
    pub(super) fn full(&self) -> bool {
        self.out.len() - self.sent >= HIGH
    }

    /// Sends what can be sent. False if the host is gone.
    pub(super) fn flush(&mut self) -> bool {
        while self.waiting() {
            match rustix::io::write(&self.fd, &self.out[self.sent..]) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(written) => self.sent += written,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        if !self.waiting() {
            self.out.clear();
            self.out.shrink_to(HIGH);
            self.sent = 0;
        } else if self.sent >= HIGH {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        true
    }

    /// Reads what is there. False if the host is gone.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> bool {
        match rustix::io::read(&self.fd, &mut *buffer) {
            Ok(0) => false,
            Ok(length) => {
                self.decoder.push(&buffer[..length]);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }

    /// The next frame; an error ends everything.
    pub(super) fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        self.decoder.next_frame().map_err(io::Error::other)
    }
}
