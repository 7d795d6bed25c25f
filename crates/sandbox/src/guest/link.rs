//! The host's end of the channel to a guest: many streams over one, each with a window of its own.
//!
//! The guest is hostile. What it may make the host hold is bounded by windows that the host grants and by the number of streams; what
//! it may make the host say (credits) is kept as one number for each stream until it is said. A frame that no honest guest sends
//! ends the link, with an error that names it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use karta_guest::proto::frame::{self, Decoder, Frame, Kind};
use karta_guest::proto::message::{Accepted, Answer, Ended, Failure, Hello, Request};
use karta_guest::proto::{CHUNK, GUEST_STREAMS, HOST_STREAMS, VERSION, WINDOW};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;

use super::stream::{Incoming, Joined, Outgoing};
use crate::uplink::{Service, Uplink};
use crate::{Error, Exit};

/// How many bytes of one stream wait on the host's side to be sent.
pub(super) const HELD: usize = 64 << 10;
/// Most streams of a guest that are remembered, those among them that only wait for the host to read their end.
const REMEMBERED: usize = 1024;
/// How many bytes are written at once.
const BATCH: usize = 64 << 10;

/// The host's end of a channel to a guest. Clones are the same link; when the last is gone, so is the channel.
#[derive(Debug, Clone)]
pub struct Link(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Handle {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.shared.end("the sandbox was closed");
    }
}

/// What the tasks and the streams share.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Something is to be sent.
    work: Notify,
    generation: u64,
    uplink: Arc<dyn Uplink>,
    hello: watch::Sender<bool>,
    ended: watch::Sender<Option<Arc<str>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("generation", &self.generation).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) entries: HashMap<u32, Entry>,
    /// Streams with something to send, in order.
    dirty: VecDeque<u32>,
    host_last: u32,
    guest_last: u32,
    /// Whether programs of before may be told of.
    adopts: bool,
    /// Why the link has ended.
    pub(super) ended: Option<Arc<str>>,
}

/// One stream.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about one of two directions")]
pub(super) struct Entry {
    /// What opens it, until it is sent.
    opening: Option<Vec<u8>>,
    answer: Option<oneshot::Sender<Answer>>,
    /// Whether the answer is all that comes.
    unary: bool,
    exit: Option<watch::Sender<Option<Exit>>>,
    signal: Option<u8>,
    dirty: bool,

    pub(super) received: VecDeque<Bytes>,
    /// How many bytes the guest may still send.
    granted: u32,
    /// How many bytes were read and not granted anew.
    pub(super) used: u32,
    /// Whether the guest sends no more; whether it broke.
    pub(super) incoming_over: Option<bool>,
    pub(super) reader: Option<Waker>,
    /// Whether somebody may still read.
    reading: bool,
    stop: bool,

    pub(super) sending: BytesMut,
    window: u32,
    pub(super) writer: Option<Waker>,
    pub(super) finish: bool,
    finished: bool,
    /// Whether the guest takes no more.
    pub(super) refused: bool,
}

impl Entry {
    fn new() -> Self {
        Self {
            opening: None,
            answer: None,
            unary: false,
            exit: None,
            signal: None,
            dirty: false,
            received: VecDeque::new(),
            granted: WINDOW,
            used: 0,
            incoming_over: None,
            reader: None,
            reading: true,
            stop: false,
            sending: BytesMut::new(),
            window: WINDOW,
            writer: None,
            finish: false,
            finished: false,
            refused: false,
        }
    }

    /// Whether nothing more of it comes or goes.
    fn over(&self) -> bool {
        self.opening.is_none()
            && self.answer.is_none()
            && self.exit.is_none()
            && self.incoming_over.is_some()
            && self.finished
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// A program that was started.
pub(super) struct Program {
    pub(super) id: u32,
    pub(super) stdin: Outgoing,
    pub(super) stdout: Incoming,
    pub(super) stderr: Incoming,
    pub(super) exit: watch::Receiver<Option<Exit>>,
}

/// A failure of the guest as an error of this side.
pub(super) fn io_error(failure: Failure) -> io::Error {
    let kind = if failure.errno > 0 {
        io::Error::from_raw_os_error(failure.errno).kind()
    } else {
        io::ErrorKind::Other
    };
    io::Error::new(kind, failure.text)
}

impl Link {
    /// A link over a channel to a guest. Every frame carries `generation`: 1 for a machine of its own, more for each further copy of one
    /// machine. The first request must be [`Request::Prepare`] or [`Request::Configure`].
    pub fn start<C>(channel: C, generation: u64, uplink: Arc<dyn Uplink>) -> Self
    where
        C: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(channel);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Notify::new(),
            generation,
            uplink,
            hello: watch::Sender::new(false),
            ended: watch::Sender::new(None),
        });
        let tasks = [
            task(&shared, read(Arc::clone(&shared), reader)),
            task(&shared, write(Arc::clone(&shared), writer)),
        ];
        Self(Arc::new(Handle { shared, tasks }))
    }

    /// Waits until the guest says that it is there, which it does once after it was started, not after it was copied.
    pub async fn hello(&self, patience: Duration) -> Result<(), Error> {
        let mut hello = self.0.shared.hello.subscribe();
        let mut ended = self.0.shared.ended.subscribe();
        let said = async {
            tokio::select! {
                said = hello.wait_for(|said| *said) => said.is_ok(),
                _ = ended.wait_for(Option::is_some) => false,
            }
        };
        match tokio::time::timeout(patience, said).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.gone()),
            Err(_) => Err(Error::Unavailable(format!(
                "the program inside the sandbox did not answer within {} s of its start",
                patience.as_secs()
            ))),
        }
    }

    /// Waits for the end of the link and says why it came.
    pub async fn ended(&self) -> Arc<str> {
        let mut ended = self.0.shared.ended.subscribe();
        let reason = ended.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or_else(|| Arc::from("the sandbox was closed"))
    }

    /// Ends it.
    pub fn close(&self, reason: &str) {
        for task in &self.0.tasks {
            task.abort();
        }
        self.0.shared.end(reason);
    }

    pub(super) fn gone(&self) -> Error {
        self.0.shared.gone()
    }

    /// Asks for something that is answered by yes or no. Answers what whoever runs the server should know.
    pub async fn request(&self, request: &Request, patience: Duration) -> Result<Vec<String>, Error> {
        let (_, answer) = self.open(request, true, None)?;
        self.answer(request, answer, patience).await?.map_err(|failure| {
            Error::Unavailable(format!("{} inside the sandbox failed: {}", name(request), failure.text))
        })
    }

    /// Asks for something with bytes both ways.
    pub(super) async fn stream(
        &self,
        request: &Request,
        patience: Duration,
    ) -> Result<Result<Joined, Failure>, Error> {
        let (id, answer) = self.open(request, false, None)?;
        let joined = Joined::new(&self.0.shared, id);
        Ok(self.answer(request, answer, patience).await?.map(|_| joined))
    }

    /// Starts a program.
    pub(super) async fn spawn(
        &self,
        request: &Request,
        patience: Duration,
    ) -> Result<Result<Program, Failure>, Error> {
        let end = watch::Sender::new(None);
        let exit = end.subscribe();
        let (id, answer) = self.open(request, false, Some(end))?;
        let (stdout, stdin) = Joined::new(&self.0.shared, id).split();
        let program =
            Program { id, stdin, stdout, stderr: Incoming::new(Arc::clone(&self.0.shared), id + 2), exit };
        // Whoever gives up before it runs, gives it up.
        let unwanted = Unwanted(Some((Arc::clone(&self.0.shared), id)));
        let started = self.answer(request, answer, patience).await?;
        unwanted.keep();
        Ok(started.map(|_| program))
    }

    /// Lets the guest fall silent, so that its machine can be saved: everything that it has said was received when this answers. Fails
    /// where something of the host's is still on its way.
    pub(super) async fn park(&self, patience: Duration) -> Result<(), Error> {
        let busy = {
            let state = self.0.shared.lock();
            state.entries.values().any(|entry| {
                entry.opening.is_some() || entry.answer.is_some() || !entry.sending.is_empty() || entry.dirty
            })
        };
        if busy {
            return Err(Error::Unavailable(
                "something is on its way into the sandbox: try again later".to_owned(),
            ));
        }
        self.request(&Request::Park, patience).await.map(|_| ())
    }

    /// A guest whose machine was saved goes on: its programs, in the order of their start. `generation` must be higher than any before.
    pub(super) async fn adopt<C>(
        channel: C,
        generation: u64,
        uplink: Arc<dyn Uplink>,
        clock: i64,
        patience: Duration,
    ) -> Result<(Self, Vec<Program>), Error>
    where
        C: AsyncRead + AsyncWrite + Send + 'static,
    {
        let link = Self::start(channel, generation, uplink);
        let request = Request::Adopt(clock);
        let (_, answer) = link.open(&request, true, None)?;
        let adopted = match tokio::time::timeout(patience, answer).await {
            Ok(Ok(Answer::Adopted(programs))) => u32::from(programs),
            Ok(Ok(Answer::Failed(failure))) => {
                return Err(Error::Unavailable(format!(
                    "going on inside the sandbox failed: {}",
                    failure.text
                )));
            }
            Ok(Ok(Answer::Done(_)) | Err(_)) => return Err(link.gone()),
            Err(_) => {
                return Err(Error::Unavailable(format!(
                    "the program inside the sandbox did not go on within {} s",
                    patience.as_secs()
                )));
            }
        };
        let shared = &link.0.shared;
        let mut programs = Vec::new();
        for id in (3..).step_by(4).take(adopted as usize) {
            let exit = match shared.lock().entries.get(&id).and_then(|entry| entry.exit.as_ref()) {
                Some(exit) => exit.subscribe(),
                // It has ended since.
                None => watch::Sender::new(Some(Exit { status: None, signal: Some(9) })).subscribe(),
            };
            let (stdout, stdin) = Joined::new(shared, id).split();
            programs.push(Program {
                id,
                stdin,
                stdout,
                stderr: Incoming::new(Arc::clone(shared), id + 2),
                exit,
            });
        }
        Ok((link, programs))
    }

    /// Sends a signal to a program and all it started.
    pub(super) fn signal(&self, id: u32, signal: u8) {
        self.0.shared.signal(id, signal);
    }

    fn open(
        &self,
        request: &Request,
        unary: bool,
        exit: Option<watch::Sender<Option<Exit>>>,
    ) -> Result<(u32, oneshot::Receiver<Answer>), Error> {
        let shared = &self.0.shared;
        let mut state = shared.lock();
        if state.ended.is_some() {
            drop(state);
            return Err(self.gone());
        }
        let opening = request.encode();
        if opening.len() > frame::OPEN {
            return Err(Error::Unavailable(format!(
                "{} needs more than {} bytes of arguments and environment",
                name(request),
                frame::OPEN
            )));
        }
        let spawn = exit.is_some();
        let open = state.entries.iter().filter(|(id, entry)| **id % 2 == 1 && !entry.over()).count();
        if open + 2 > HOST_STREAMS {
            return Err(Error::Unavailable(format!(
                "{HOST_STREAMS} streams lead into the sandbox already: end some of its processes"
            )));
        }
        let id = if state.host_last == 0 { 1 } else { state.host_last.saturating_add(2) };
        if id > u32::MAX - 4 {
            return Err(Error::Unavailable("the sandbox is too old: close it".to_owned()));
        }
        state.host_last = if spawn { id + 2 } else { id };
        let (answer, answered) = oneshot::channel();
        state.adopts |= matches!(request, Request::Adopt(_));
        let entry = Entry { opening: Some(opening), answer: Some(answer), unary, exit, ..Entry::new() };
        state.entries.insert(id, entry);
        if spawn {
            state.entries.insert(id + 2, Entry { finished: true, ..Entry::new() });
        }
        shared.touch(&mut state, id);
        Ok((id, answered))
    }

    async fn answer(
        &self,
        request: &Request,
        answer: oneshot::Receiver<Answer>,
        patience: Duration,
    ) -> Result<Result<Vec<String>, Failure>, Error> {
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(Answer::Done(notes))) => Ok(Ok(notes)),
            Ok(Ok(Answer::Adopted(_))) => Err(Error::Unavailable(
                "the program inside the sandbox answers what was not asked".to_owned(),
            )),
            Ok(Ok(Answer::Failed(failure))) => Ok(Err(failure)),
            Ok(Err(_)) => Err(self.gone()),
            Err(_) => Err(Error::Unavailable(format!(
                "{} inside the sandbox took longer than {} s",
                name(request),
                patience.as_secs()
            ))),
        }
    }
}

/// A program that nobody waits for any more is killed.
struct Unwanted(Option<(Arc<Shared>, u32)>);

impl Unwanted {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unwanted {
    fn drop(&mut self) {
        if let Some((shared, id)) = self.0.take() {
            shared.signal(id, 9);
        }
    }
}

/// What a request does, for errors.
fn name(request: &Request) -> &'static str {
    match request {
        Request::Ping => "answering",
        Request::Prepare(_) => "mounting the system",
        Request::Configure(_) => "making the session's place",
        Request::Spawn(_) => "starting a program",
        Request::Connect { .. } => "connecting to a port",
        Request::Put { .. } => "writing a file",
        Request::Find { .. } => "searching the home",
        Request::Survey => "looking for what the session changed",
        Request::Take => "taking the session's files",
        Request::Restore => "putting the session's files back",
        Request::Export => "copying the workspace",
        Request::Freeze => "stopping the session's processes",
        Request::Thaw => "letting the session's processes go on",
        Request::Sync => "writing the disks",
        Request::Clock(_) => "setting the clock",
        Request::Shutdown => "ending",
        Request::Park => "falling silent",
        Request::Unpark | Request::Adopt(_) => "going on",
    }
}

#[expect(clippy::disallowed_methods, reason = "the link owns its tasks and ends them with itself")]
fn task(shared: &Shared, future: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    let mut ended = shared.ended.subscribe();
    // When one of the two ends the link, so does the other: the guest is told by the end of the channel.
    tokio::spawn(async move {
        tokio::select! {
            () = future => {}
            _ = ended.wait_for(Option::is_some) => {}
        }
    })
}

async fn read(shared: Arc<Shared>, mut channel: impl AsyncRead + Unpin) {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; BATCH];
    let reason = loop {
        let length = match channel.read(&mut buffer).await {
            Ok(0) => break "the sandbox has ended".to_owned(),
            Ok(length) => length,
            Err(error) => break format!("reading from the sandbox failed: {error}"),
        };
        decoder.push(&buffer[..length]);
        let broken = loop {
            match decoder.next_frame() {
                Ok(None) => break None,
                Ok(Some(frame)) => {
                    if let Err(what) = shared.frame(frame) {
                        break Some(what);
                    }
                }
                Err(malformed) => break Some(malformed.0),
            }
        };
        if let Some(what) = broken {
            break format!("the program inside the sandbox broke the protocol: {what}");
        }
    };
    shared.end(&reason);
}

async fn write(shared: Arc<Shared>, mut channel: impl AsyncWrite + Unpin) {
    let mut batch = Vec::new();
    loop {
        // Asked for before looking, so that what comes in between is not missed.
        let more = shared.work.notified();
        shared.gather(&mut batch);
        if batch.is_empty() {
            more.await;
            continue;
        }
        let written = async {
            channel.write_all(&batch).await?;
            channel.flush().await
        };
        if let Err(error) = written.await {
            shared.end(&format!("writing to the sandbox failed: {error}"));
            return;
        }
        batch.clear();
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves these plain tables whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn gone(&self) -> Error {
        let reason = self.lock().ended.clone();
        Error::Unavailable(reason.as_deref().unwrap_or("the sandbox was closed").to_owned())
    }

    /// Notes that a stream has something to send.
    pub(super) fn touch(&self, state: &mut State, id: u32) {
        if let Some(entry) = state.entries.get_mut(&id)
            && !entry.dirty
        {
            entry.dirty = true;
            state.dirty.push_back(id);
            self.work.notify_one();
        }
    }

    fn signal(&self, id: u32, signal: u8) {
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(&id)
            && entry.exit.is_some()
            && entry.signal != Some(9)
        {
            entry.signal = Some(signal);
            self.touch(&mut state, id);
        }
    }

    /// Nobody reads this stream any more.
    pub(super) fn unread(&self, id: u32) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(&id) else { return };
        entry.reading = false;
        entry.reader = None;
        entry.received.clear();
        if entry.incoming_over.is_none() {
            entry.stop = true;
            self.touch(&mut state, id);
        }
        state.settle(id);
    }

    /// Nobody writes to this stream any more.
    pub(super) fn unwritten(&self, id: u32) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(&id) else { return };
        entry.writer = None;
        if !entry.finish {
            entry.finish = true;
            self.touch(&mut state, id);
        }
    }

    /// Ends everything, once.
    fn end(&self, reason: &str) {
        let mut state = self.lock();
        if state.ended.is_some() {
            return;
        }
        let reason: Arc<str> = Arc::from(reason);
        state.ended = Some(Arc::clone(&reason));
        state.dirty.clear();
        for entry in state.entries.values_mut() {
            entry.answer = None;
            if let Some(exit) = entry.exit.take() {
                // Whatever ran inside was killed with it.
                exit.send_replace(Some(Exit { status: None, signal: Some(9) }));
            }
            entry.wake();
        }
        drop(state);
        self.ended.send_replace(Some(reason));
    }

    /// Collects what is to be sent.
    fn gather(&self, batch: &mut Vec<u8>) {
        let mut state = self.lock();
        while batch.len() < BATCH {
            let Some(id) = state.dirty.pop_front() else { return };
            let Some(entry) = state.entries.get_mut(&id) else { continue };
            entry.dirty = false;
            let more = entry.emit(id, self.generation, batch);
            if more {
                self.touch(&mut state, id);
            }
            state.settle(id);
        }
        // The rest has its turn with the next batch.
        self.work.notify_one();
    }

    fn frame(self: &Arc<Self>, frame: Frame) -> Result<(), &'static str> {
        let Frame { kind, stream: id, generation, payload } = frame;
        if kind == Kind::Hello {
            let hello = Hello::decode(&payload).map_err(|malformed| malformed.0)?;
            if hello.version != VERSION {
                return Err("it speaks another version: build the image anew with this program");
            }
            self.hello.send_replace(true);
            return Ok(());
        }
        if generation < self.generation {
            // Left by an older machine of which this one is a copy.
            return Ok(());
        }
        if generation > self.generation {
            return Err("it is of a later generation than this host");
        }
        if kind == Kind::Open {
            return self.accept(id, &payload);
        }
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(entry) = state.entries.get_mut(&id) else {
            let last = if id % 2 == 1 { state.host_last } else { state.guest_last };
            // News of what is over already cross one another; of what never was there are none.
            return if id > 0 && id <= last { Ok(()) } else { Err("there was never such a stream") };
        };
        if entry.opening.is_some() {
            return Err("it answers what was not asked yet");
        }
        match (kind, &payload[..]) {
            (Kind::Answer, bytes) => {
                let answer = Answer::decode(bytes).map_err(|malformed| malformed.0)?;
                let Some(asked) = entry.answer.take() else { return Err("it answers twice") };
                let over = entry.unary || matches!(answer, Answer::Failed(_));
                let program = entry.exit.is_some();
                if let Answer::Adopted(programs) = answer {
                    if !std::mem::take(&mut state.adopts) || usize::from(programs) * 2 > HOST_STREAMS {
                        return Err("it has programs that it can't have");
                    }
                    state.adopt(programs);
                }
                let Some(entry) = state.entries.get_mut(&id) else { return Ok(()) };
                let _ = asked.send(answer);
                if over {
                    entry.wake();
                    state.entries.remove(&id);
                    if program && let Some(mut entry) = state.entries.remove(&(id + 2)) {
                        entry.wake();
                    }
                }
            }
            _ if entry.unary => return Err("it sends bytes where none belong"),
            (Kind::Data, bytes) => {
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                if entry.incoming_over.is_some() {
                    return Err("bytes come after their end");
                }
                entry.granted =
                    entry.granted.checked_sub(length).ok_or("it sends more than it was granted")?;
                if entry.reading {
                    entry.received.push_back(Bytes::from(payload));
                    if let Some(reader) = entry.reader.take() {
                        reader.wake();
                    }
                }
            }
            (Kind::Eof, [broke]) => {
                if entry.incoming_over.is_some() {
                    return Err("a stream ends twice");
                }
                entry.incoming_over = Some(*broke != 0);
                if let Some(reader) = entry.reader.take() {
                    reader.wake();
                }
                state.settle(id);
            }
            (Kind::Credit, &[a, b, c, d]) => {
                let window = entry.window.checked_add(u32::from_le_bytes([a, b, c, d]));
                entry.window =
                    window.filter(|window| *window <= WINDOW).ok_or("it grants more than there is")?;
                if !entry.sending.is_empty() {
                    self.touch(state, id);
                }
            }
            (Kind::Stop, _) => {
                entry.refuse();
                self.touch(state, id);
            }
            (Kind::Exit, how) => {
                let ended = Ended::decode(how).map_err(|malformed| malformed.0)?;
                if entry.answer.is_some() {
                    return Err("a program ends before it began");
                }
                let Some(exit) = entry.exit.take() else { return Err("what ends is no program") };
                exit.send_replace(Some(match ended {
                    Ended::Status(status) => Exit { status: Some(status), signal: None },
                    Ended::Signal(signal) => Exit { status: None, signal: Some(signal) },
                    Ended::Unknown => Exit { status: None, signal: Some(9) },
                }));
                entry.refuse();
                self.touch(state, id);
            }
            _ => return Err("it sends what only a host may send"),
        }
        Ok(())
    }

    /// A program inside has connected to a service.
    fn accept(self: &Arc<Self>, id: u32, payload: &[u8]) -> Result<(), &'static str> {
        let accepted = Accepted::decode(payload).map_err(|malformed| malformed.0)?;
        let service = Service::of_port(accepted.port).ok_or("there is no such service")?;
        let mut state = self.lock();
        if id == 0 || id % 2 == 1 || id <= state.guest_last {
            return Err("a stream is opened twice");
        }
        state.guest_last = id;
        let of_guest = || state.entries.iter().filter(|(id, _)| **id % 2 == 0);
        if of_guest().filter(|(_, entry)| !entry.over()).count() >= GUEST_STREAMS {
            return Err("it opens too many streams");
        }
        let refused = of_guest().count() >= REMEMBERED;
        state.entries.insert(id, Entry::new());
        drop(state);
        let stream = Joined::new(self, id);
        if refused {
            // Dropping it closes it.
            drop(stream);
        } else {
            self.uplink.accept(service, Box::new(stream));
        }
        Ok(())
    }
}

impl State {
    /// The streams of programs that ran before, as the guest numbers them.
    fn adopt(&mut self, programs: u16) {
        for id in (3..).step_by(4).take(usize::from(programs)) {
            self.entries.insert(id, Entry { exit: Some(watch::Sender::new(None)), ..Entry::new() });
            self.entries.insert(id + 2, Entry { finished: true, ..Entry::new() });
            self.host_last = id + 2;
        }
    }

    /// Forgets a stream that is over and that nobody reads any more.
    fn settle(&mut self, id: u32) {
        if self.entries.get(&id).is_some_and(|entry| entry.over() && !entry.reading && !entry.dirty) {
            self.entries.remove(&id);
        }
    }
}

impl Entry {
    /// The guest takes no more.
    fn refuse(&mut self) {
        self.refused = true;
        self.sending.clear();
        self.finish = true;
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    /// Writes what this stream has to send, at most one piece of data. Answers whether there is more.
    fn emit(&mut self, id: u32, generation: u64, batch: &mut Vec<u8>) -> bool {
        // Only a payload that its kind has no room for is refused, and none of these is.
        let mut say = |kind, payload: &[u8]| {
            let _ = frame::encode(batch, kind, id, generation, payload);
        };
        if let Some(opening) = self.opening.take() {
            say(Kind::Open, &opening);
        }
        if let Some(signal) = self.signal.take() {
            say(Kind::Signal, &[signal]);
        }
        if self.used >= WINDOW / 2 && self.incoming_over.is_none() {
            say(Kind::Credit, &self.used.to_le_bytes());
            self.granted += std::mem::take(&mut self.used);
        }
        if std::mem::take(&mut self.stop) && self.incoming_over.is_none() {
            say(Kind::Stop, &[]);
        }
        if self.unary || self.finished {
            return false;
        }
        let length = self.sending.len().min(CHUNK).min(self.window as usize);
        if length > 0 {
            say(Kind::Data, &self.sending[..length]);
            self.sending.advance(length);
            self.window -= u32::try_from(length).unwrap_or(self.window);
            if let Some(writer) = self.writer.take() {
                writer.wake();
            }
        }
        if self.sending.is_empty() && self.finish {
            say(Kind::Eof, &[0]);
            self.finished = true;
        }
        !self.sending.is_empty() && self.window > 0
    }
}
