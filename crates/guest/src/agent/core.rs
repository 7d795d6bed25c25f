//! The loop: one thread, nothing in it ever waits but for all at once.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;

use karta_guest::proto::frame::{Frame, Kind};
use karta_guest::proto::message::{Answer, Failure, Hello, Request};
use karta_guest::proto::{CHUNK, GUEST_STREAMS, HOST_STREAMS, VERSION};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::process::{Pid, WaitOptions};

use super::channel::Channel;
use super::child::Confinement;
use super::keeper;
use super::place::Place;
use super::stream::Stream;
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
    pub(super) streams: BTreeMap<u32, Stream>,
    /// The highest number the host has used.
    pub(super) host_last: u32,
    /// The next number of a stream that begins here.
    pub(super) guest_next: u32,
    /// Children that were not reaped yet: what they are killed by must still mean them.
    pub(super) children: HashSet<Pid>,
    pub(super) frozen: Vec<super::tree::Seen>,
    /// Whether the machine is about to be saved.
    pub(super) parked: bool,
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
            if !self.channel.flush() {
                return Ok(());
            }
            match self.turn(&mut buffer) {
                Ok(true) => {}
                // What was answered before the end is still told.
                over => {
                    self.channel.flush();
                    return over.map(|_| ());
                }
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
                Wait::Signals => {
                    // Its channel closes before what it watched over comes to this process; now it has.
                    if self.reap() {
                        self.end_orphans();
                    }
                }
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
                        (stream.keeper, stream.keeps, stream.starting) = (Some(keeper), Some(pid), true);
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

    pub(super) fn answer(&mut self, id: u32, result: Result<Vec<String>, Failure>) {
        let answer = match result {
            Ok(notes) => Answer::Done(notes),
            Err(failure) => Answer::Failed(failure),
        };
        self.channel.send(Kind::Answer, id, &answer.encode());
    }

    /// Reaps the children that have ended. Answers whether one of them was killed, or gave up: what it left came to this process.
    pub(super) fn reap(&mut self) -> bool {
        let mut buffer = [0; 1024];
        while rustix::io::read(&self.signals, &mut buffer).is_ok() {}
        let mut killed = false;
        while let Ok(Some((pid, how))) = rustix::process::wait(WaitOptions::NOHANG) {
            let left = how.signaled() || how.exit_status() == Some(keeper::GAVE_UP);
            killed |= self.children.remove(&pid) && left;
        }
        killed
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
