//! The loop: one thread, nothing in it ever waits but for all at once.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use karta_guest::proto::frame::{Frame, Kind};
use karta_guest::proto::message::{Accepted, Answer, Ended, Failure, Hello, Request};
use karta_guest::proto::{CHUNK, GUEST_STREAMS, HOST_STREAMS, VERSION};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, WaitOptions};

use super::channel::Channel;
use super::child::Confinement;
use super::keeper;
use super::place::Place;
use super::stream::{Got, Stream, non_blocking};
use super::{spawn, sys};

/// How far the machine has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing was mounted.
    Bare,
    /// The system is there; no session.
    Prepared,
    /// It is one session's.
    Ready,
}

/// The agent.
pub(super) struct Agent {
    pub(super) channel: Channel,
    pub(super) signals: OwnedFd,
    pub(super) place: Place,
    pub(super) stage: Stage,
    pub(super) confinement: Confinement,
    pub(super) listeners: Vec<(u16, OwnedFd)>,
    streams: BTreeMap<u32, Stream>,
    /// The highest number the host has used.
    host_last: u32,
    /// The next number of a stream that begins here.
    guest_next: u32,
    /// Children that were not reaped yet: what they are killed by must still mean them.
    pub(super) children: HashSet<Pid>,
    pub(super) frozen: Vec<super::tree::Seen>,
    /// Whether the machine is about to be saved.
    parked: bool,
}

/// Whether the loop goes on.
type Go = io::Result<bool>;

/// What is waited for.
#[derive(Clone, Copy)]
enum Wait {
    Channel,
    Signals,
    Listener(usize),
    Sink(u32),
    Source(u32),
    Keeper(u32),
}

pub(super) fn failure(error: &io::Error, doing: &str) -> Failure {
    Failure { errno: error.raw_os_error().unwrap_or(0), text: format!("{doing}: {error}") }
}

impl Agent {
    pub(super) fn new(channel: OwnedFd, place: Place, stage: Stage) -> io::Result<Self> {
        Ok(Self {
            channel: Channel::new(channel)?,
            signals: sys::children()?,
            place,
            stage,
            confinement: Confinement::default(),
            listeners: Vec::new(),
            streams: BTreeMap::new(),
            host_last: 0,
            guest_next: 2,
            children: HashSet::new(),
            frozen: Vec::new(),
            parked: false,
        })
    }

    /// Serves the host until it is gone. An error says that it broke the protocol.
    pub(super) fn run(&mut self) -> io::Result<()> {
        self.channel.send(Kind::Hello, 0, &Hello { version: VERSION }.encode());
        let mut buffer = vec![0; CHUNK];
        loop {
            if !self.channel.flush() || !self.turn(&mut buffer)? {
                return Ok(());
            }
        }
    }

    fn turn(&mut self, buffer: &mut [u8]) -> Go {
        let ready = self.wait()?;
        for (what, flags) in ready {
            match what {
                Wait::Channel => {
                    if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                        if !self.channel.fill(buffer) {
                            return Ok(false);
                        }
                        while let Some(frame) = self.channel.next_frame()? {
                            if !self.frame(frame)? {
                                self.channel.flush();
                                return Ok(false);
                            }
                        }
                    }
                }
                Wait::Signals => self.reap(),
                Wait::Listener(index) => self.accept(index),
                Wait::Sink(id) => self.sink(id, flags),
                Wait::Source(id) => self.source(id, buffer),
                Wait::Keeper(id) => self.keeper(id),
            }
        }
        Ok(true)
    }

    fn wait(&self) -> io::Result<Vec<(Wait, PollFlags)>> {
        let mut what = vec![Wait::Channel, Wait::Signals];
        let sending = if self.channel.waiting() { PollFlags::OUT } else { PollFlags::empty() };
        let full = self.channel.full();
        // While the host does not take what it asked for, nothing more is asked by it: so answers can't pile up either.
        let hearing = if full { PollFlags::empty() } else { PollFlags::IN };
        let mut polls = vec![
            PollFd::new(self.channel.fd(), sending | hearing),
            PollFd::new(&self.signals, PollFlags::IN),
        ];
        // About to be saved: whatever happens now is told to whoever takes the machine over.
        if self.parked {
            return poll(&what, &mut polls);
        }
        let mut add = |fd, flags, wait| {
            polls.push(PollFd::new(fd, flags));
            what.push(wait);
        };
        if self.streams.values().filter(|stream| stream.accepted).count() < GUEST_STREAMS && !full {
            for (index, (_, listener)) in self.listeners.iter().enumerate() {
                add(listener, PollFlags::IN, Wait::Listener(index));
            }
        }
        for (id, stream) in &self.streams {
            if let Some((sink, waiting)) = stream.writing() {
                // Without anything to write it is watched for whoever reads it going away.
                add(sink, if waiting { PollFlags::OUT } else { PollFlags::empty() }, Wait::Sink(*id));
            }
            if let Some(source) = &stream.source
                && stream.window > 0
                && !full
                && !stream.connecting
            {
                add(&source.fd, PollFlags::IN, Wait::Source(*id));
            }
            if let Some(keeper) = &stream.keeper {
                add(keeper, PollFlags::IN, Wait::Keeper(*id));
            }
        }
        poll(&what, &mut polls)
    }

    fn frame(&mut self, frame: Frame) -> Go {
        let Frame { kind, stream: id, generation, payload } = frame;
        let broken = |what: &'static str| Err(io::Error::other(what));
        if generation < self.channel.generation {
            // Left by whoever had this machine, or the one it was copied from, before.
            return Ok(true);
        }
        if kind == Kind::Open {
            let request = Request::decode(&payload).map_err(io::Error::other)?;
            if generation > self.channel.generation {
                match request {
                    Request::Configure(_) | Request::Prepare(_) => self.forget(),
                    Request::Adopt(_) if self.parked => self.adopt(),
                    _ => return broken("a later generation began without its configuration"),
                }
                self.channel.generation = generation;
            } else if self.parked && request != Request::Unpark {
                return broken("something was asked of a machine that is about to be saved");
            }
            return self.open(id, request);
        }
        if generation > self.channel.generation {
            return broken("a later generation began without its configuration");
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            // News of a stream that is over already cross one another; of one that never was there are none.
            let known = if id % 2 == 1 { id <= self.host_last } else { id > 0 && id < self.guest_next };
            return if known { Ok(true) } else { broken("there was never such a stream") };
        };
        match (kind, &payload[..]) {
            (Kind::Data, bytes) => {
                if !stream.feed(bytes) {
                    return broken("more was sent than was granted");
                }
                self.move_on(id);
            }
            (Kind::Eof, _) => {
                stream.finish();
                self.move_on(id);
            }
            (Kind::Credit, &[a, b, c, d]) => {
                if !stream.grant(u32::from_le_bytes([a, b, c, d])) {
                    return broken("more was granted than there is");
                }
            }
            (Kind::Stop, _) => {
                if stream.close_source() {
                    self.channel.send(Kind::Eof, id, &[0]);
                }
                self.settle(id);
            }
            (Kind::Signal, &[signal]) => {
                if let Some(keeper) = &stream.keeper {
                    let order = if signal == 9 { keeper::KILL } else { keeper::TERMINATE };
                    let _ = rustix::net::send(keeper, &[order], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
                }
            }
            _ => return broken("the host sent what only a guest may send"),
        }
        Ok(true)
    }

    fn open(&mut self, id: u32, request: Request) -> Go {
        if id.is_multiple_of(2) || id <= self.host_last {
            return Err(io::Error::other("a stream was opened twice"));
        }
        self.host_last = id;
        let standing = match self.stage {
            Stage::Ready => true,
            Stage::Prepared => {
                matches!(request, Request::Spawn(_) | Request::Configure(_) | Request::Ping | Request::Sync)
                    || request == Request::Shutdown
            }
            Stage::Bare => {
                matches!(request, Request::Prepare(_) | Request::Ping)
                    || request == Request::Shutdown
                    || (matches!(request, Request::Configure(_)) && !self.place.machine())
            }
        };
        if !standing {
            let text = "the machine is not prepared for this yet".to_owned();
            self.answer(id, Err(Failure { errno: 0, text }));
            return Ok(true);
        }
        if self.streams.len() >= HOST_STREAMS + GUEST_STREAMS + 2 {
            return Err(io::Error::other("too many streams are open"));
        }
        match request {
            Request::Ping => self.answer(id, Ok(Vec::new())),
            Request::Prepare(prepare) => {
                let done = self.place.prepare(&prepare);
                if done.is_ok() {
                    self.stage = Stage::Prepared;
                    // What runs before the session does, to warm the machine up, has no more rights than it.
                    self.confinement.user = true;
                }
                self.answer(id, done.map(|()| Vec::new()));
            }
            Request::Configure(configure) => {
                let done = super::configure::configure(self, &configure);
                if done.is_ok() {
                    self.stage = Stage::Ready;
                }
                self.answer(id, done);
            }
            Request::Spawn(program) => {
                self.host_last = id + 2;
                match spawn::spawn(&program, &self.confinement) {
                    Ok(spawn::Spawned { keeper, pid, input, output, error }) => {
                        self.children.insert(pid);
                        let mut stream = Stream::pipes(Some(input), Some(output));
                        (stream.keeper, stream.starting) = (Some(keeper), true);
                        self.streams.insert(id, stream);
                        self.streams.insert(id + 2, Stream::pipes(None, Some(error)));
                    }
                    Err(error) => self.answer(id, Err(failure(&error, "making a process for the program"))),
                }
            }
            Request::Connect { port } => self.connect(id, port),
            Request::Freeze => {
                let done = self.freeze();
                self.answer(id, done.map(|()| Vec::new()));
            }
            Request::Thaw => {
                self.thaw();
                self.answer(id, Ok(Vec::new()));
            }
            Request::Sync => {
                rustix::fs::sync();
                self.answer(id, Ok(Vec::new()));
            }
            Request::Clock(nanos) => {
                let done =
                    super::configure::clock(nanos).map_err(|error| failure(&error, "setting the clock"));
                self.answer(id, done.map(|()| Vec::new()));
            }
            Request::Park => {
                self.answer(id, Ok(Vec::new()));
                self.parked = true;
            }
            Request::Unpark => {
                self.parked = false;
                self.answer(id, Ok(Vec::new()));
            }
            Request::Adopt(nanos) => self.adopted(id, nanos),
            Request::Shutdown => {
                rustix::fs::sync();
                self.answer(id, Ok(Vec::new()));
                return Ok(false);
            }
            Request::Put { .. }
            | Request::Find { .. }
            | Request::Survey
            | Request::Take
            | Request::Restore
            | Request::Export => match super::files::start(&request, &self.place, &self.confinement) {
                Ok(files) => {
                    self.children.insert(files.pid);
                    let mut stream = Stream::pipes(Some(files.input), Some(files.output));
                    stream.worker = Some(files.pid);
                    self.streams.insert(id, stream);
                    self.answer(id, Ok(Vec::new()));
                }
                Err(error) => self.answer(id, Err(failure(&error, "making a process for the files"))),
            },
        }
        Ok(true)
    }

    fn answer(&mut self, id: u32, result: Result<Vec<String>, Failure>) {
        let answer = match result {
            Ok(notes) => Answer::Done(notes),
            Err(failure) => Answer::Failed(failure),
        };
        self.channel.send(Kind::Answer, id, &answer.encode());
    }

    /// Writes what came for a stream, and tells the host what follows from it.
    fn move_on(&mut self, id: u32) {
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
    fn settle(&mut self, id: u32) {
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

    fn sink(&mut self, id: u32, flags: PollFlags) {
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

    fn source(&mut self, id: u32, buffer: &mut [u8]) {
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

    fn keeper(&mut self, id: u32) {
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
            _ => {
                // The keeper was killed: what it watched over came to this process.
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

    fn ended(&mut self, id: u32, how: Ended) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.keeper = None;
        // Nobody is left who reads.
        stream.close_sink();
        self.channel.send(Kind::Exit, id, &how.encode());
        self.settle(id);
    }

    fn connect(&mut self, id: u32, port: u16) {
        let made = || -> io::Result<(OwnedFd, bool)> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
            match rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)) {
                Ok(()) => Ok((socket, false)),
                Err(Errno::INPROGRESS) => Ok((socket, true)),
                Err(error) => Err(error.into()),
            }
        };
        match made() {
            Ok((socket, connecting)) => {
                let mut stream = Stream::socket(socket);
                stream.connecting = connecting;
                self.streams.insert(id, stream);
                if !connecting {
                    self.answer(id, Ok(Vec::new()));
                }
            }
            Err(error) => self.answer(id, Err(failure(&error, "connecting"))),
        }
    }

    fn accept(&mut self, index: usize) {
        let Some((port, listener)) = self.listeners.get(index) else { return };
        let Ok(socket) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        else {
            return;
        };
        let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
        let id = self.guest_next;
        // A machine that has seen two thousand million connections is started anew.
        let Some(next) = id.checked_add(2) else { return };
        self.guest_next = next;
        let opened = Accepted { port: *port }.encode();
        let mut stream = Stream::socket(socket);
        stream.accepted = true;
        self.streams.insert(id, stream);
        self.channel.send(Kind::Open, id, &opened);
    }

    pub(super) fn reap(&mut self) {
        let mut buffer = [0; 1024];
        while rustix::io::read(&self.signals, &mut buffer).is_ok() {}
        while let Ok(Some((pid, _))) = rustix::process::wait(WaitOptions::NOHANG) {
            self.children.remove(&pid);
        }
    }

    /// Everything of an older generation ends: its host is not there any more.
    fn forget(&mut self) {
        // The keepers see their channels close, and end what they watch over.
        self.streams.clear();
        self.thaw();
        self.host_last = 0;
        self.guest_next = 2;
    }

    /// Programs stay, under new numbers; every other stream's host is not there any more.
    fn adopt(&mut self) {
        let mut old = std::mem::take(&mut self.streams);
        let programs: Vec<u32> =
            old.iter().filter(|(_, stream)| stream.keeper.is_some()).map(|(id, _)| *id).collect();
        for (before, number) in programs.into_iter().zip((3..).step_by(4)) {
            // What is over already is told as over.
            let mut main = old.remove(&before).unwrap_or_default();
            let mut errors = old.remove(&(before + 2)).unwrap_or_default();
            main.renew();
            errors.renew();
            self.streams.insert(number, main);
            self.streams.insert(number + 2, errors);
        }
        self.host_last = 0;
        self.guest_next = 2;
        self.parked = false;
    }

    fn adopted(&mut self, id: u32, nanos: i64) {
        if nanos != 0
            && let Err(error) = super::configure::clock(nanos)
        {
            return self.answer(id, Err(failure(&error, "setting the clock")));
        }
        let programs = self.streams.len() / 2;
        self.host_last = self.streams.keys().copied().max().unwrap_or(id).max(id);
        let told = Answer::Adopted(u16::try_from(programs).unwrap_or(u16::MAX));
        self.channel.send(Kind::Answer, id, &told.encode());
        let ids: Vec<u32> = self.streams.keys().copied().collect();
        for id in ids {
            let Some(stream) = self.streams.get(&id) else { continue };
            // The first of a program's two numbers has both directions, the second only one.
            let (deaf, mute) = (stream.sink.is_none() && id % 4 == 3, stream.source.is_none());
            if deaf {
                self.channel.send(Kind::Stop, id, &[]);
            }
            if mute {
                self.channel.send(Kind::Eof, id, &[0]);
            }
            self.settle(id);
        }
    }

    /// Makes the services' listeners.
    pub(super) fn listen(&mut self, address: Ipv4Addr, ports: &[u16]) -> io::Result<()> {
        for port in ports {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
            rustix::net::bind(&socket, &SocketAddrV4::new(address, *port))?;
            rustix::net::listen(&socket, 128)?;
            non_blocking(&socket)?;
            self.listeners.push((*port, socket));
        }
        Ok(())
    }
}

/// Waits until something can be done, and answers what.
fn poll(what: &[Wait], polls: &mut [PollFd<'_>]) -> io::Result<Vec<(Wait, PollFlags)>> {
    loop {
        match rustix::event::poll(polls, None) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let ready = what.iter().zip(polls).filter(|(_, poll)| !poll.revents().is_empty());
    Ok(ready.map(|(what, poll)| (*what, poll.revents())).collect())
}
