//! What happens on streams: bytes that can be written or read, and programs that start and end.

use std::io;

use karta_guest::proto::frame::Kind;
use karta_guest::proto::message::{Ended, Failure};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::Signal;

use super::core::{Agent, failure};
use super::keeper;
use super::stream::{Got, Stream};

impl Agent {
    /// Writes what came for a stream, and tells the host what follows from it.
    pub(super) fn move_on(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let moved = stream.drain();
        if let Some(credit) = moved.credit {
            self.channel.send(Kind::Credit, id, &credit.to_le_bytes());
        }
        if moved.stop {
            self.channel.send(Kind::Stop, id, &[]);
        }
        self.settle(id);
    }

    /// Forgets a stream on which nothing can happen any more.
    pub(super) fn settle(&mut self, id: u32) {
        if !self.streams.get(&id).is_some_and(Stream::over) {
            return;
        }
        if let Some(stream) = self.streams.remove(&id)
            && let Some(worker) = stream.worker
            && self.children.contains(&worker)
        {
            let _ = rustix::process::kill_process(worker, Signal::KILL);
        }
    }

    pub(super) fn sink(&mut self, id: u32, flags: PollFlags) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.connecting {
            stream.connecting = false;
            let outcome =
                stream.writing().map_or(Ok(Ok(())), |(socket, _)| rustix::net::sockopt::socket_error(socket));
            match outcome {
                Ok(Ok(())) => self.answer(id, Ok(Vec::new())),
                Ok(Err(error)) | Err(error) => {
                    self.streams.remove(&id);
                    self.answer(id, Err(failure(&error.into(), "connecting")));
                    return;
                }
            }
        } else if flags.intersects(PollFlags::ERR | PollFlags::HUP) {
            // Whoever read is gone: what waits can't be written any more.
            if stream.close_sink() {
                self.channel.send(Kind::Stop, id, &[]);
            }
            self.settle(id);
            return;
        }
        self.move_on(id);
    }

    pub(super) fn source(&mut self, id: u32, buffer: &mut [u8]) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match stream.read(buffer) {
            Got::Bytes(length) => self.channel.send(Kind::Data, id, &buffer[..length]),
            Got::Nothing => {}
            Got::Over(broke) => {
                stream.source = None;
                self.channel.send(Kind::Eof, id, &[u8::from(broke)]);
                self.settle(id);
            }
        }
    }

    pub(super) fn keeper(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Some(keeper) = &stream.keeper else { return };
        let mut news = [0; 4096];
        let length = match rustix::net::recv(keeper, &mut news, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Ok((length, _)) => length,
            Err(_) => 0,
        };
        match news[..length].split_first() {
            Some((&keeper::STARTED, _)) => {
                stream.starting = false;
                self.answer(id, Ok(Vec::new()));
            }
            Some((&keeper::FAILED, [a, b, c, d, doing @ ..])) => {
                let error = io::Error::from_raw_os_error(i32::from_ne_bytes([*a, *b, *c, *d]));
                let doing = String::from_utf8_lossy(doing).into_owned();
                self.streams.remove(&id);
                self.streams.remove(&(id + 2));
                self.answer(id, Err(failure(&error, &doing)));
            }
            Some((&keeper::ENDED, how)) => {
                self.ended(id, Ended::decode(how).unwrap_or(Ended::Unknown));
            }
            Some((&keeper::HELP, _)) => {
                if let Some(keeper) = stream.keeps {
                    self.help(keeper);
                }
            }
            _ => {
                // The keeper was killed or gave up: what it watched over came to this process.
                if stream.starting {
                    let text = "what watches over the program was killed".to_owned();
                    self.answer(id, Err(Failure { errno: 0, text }));
                    self.streams.remove(&id);
                    self.streams.remove(&(id + 2));
                } else {
                    self.ended(id, Ended::Unknown);
                }
                self.end_orphans();
            }
        }
    }

    pub(super) fn ended(&mut self, id: u32, how: Ended) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.keeper = None;
        // Nobody is left who reads.
        stream.close_sink();
        self.channel.send(Kind::Exit, id, &how.encode());
        self.settle(id);
    }
}
