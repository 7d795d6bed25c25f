//! The host's end of the channel to a guest: many streams over one, each with a window of its own.
//!
//! The guest is hostile. What it may make the host hold is bounded by windows that the host grants and by the number of streams; what
//! it may make the host say (credits) is kept as one number for each stream until it is said. A frame that no honest guest sends
//! ends the link, with an error that names it.

mod entry;
mod shared;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use karta_guest::proto::HOST_STREAMS;
use karta_guest::proto::frame;
use karta_guest::proto::message::{Answer, Failure, Request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;

use super::stream::{Incoming, Joined, Outgoing};
use crate::uplink::Uplink;
use crate::{Error, Exit};
use entry::Entry;
pub(super) use shared::Shared;
use shared::{read, task, write};

/// How many bytes of one stream wait on the host's side to be sent.
pub(super) const HELD: usize = 64 << 10;
/// Most requests that wait for their answer alone.
const REQUESTS: usize = 64;

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

    /// Lets the guest fall silent, so that its machine can be saved: everything that it has said was received when this answers, and
    /// nothing more is sent to it. Fails where something of the host's is still on its way; then all goes on as before.
    pub(super) async fn park(&self, patience: Duration) -> Result<(), Error> {
        let (_, answer) = self.open(&Request::Park, true, None)?;
        let parked = match self.answer(&Request::Park, answer, patience).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(failure)) => Error::Unavailable(format!("falling silent failed: {}", failure.text)),
            Err(error) => error,
        };
        self.unpark(patience).await;
        Err(parked)
    }

    /// The machine was not saved: all goes on. A guest that can't go on is lost, and so is the link.
    pub(super) async fn unpark(&self, patience: Duration) {
        match self.request(&Request::Unpark, patience).await {
            Ok(_) => {
                self.0.shared.lock().silent = false;
                self.0.shared.work.notify_one();
            }
            Err(error) => self.close(&format!("the sandbox could not be saved, nor go on: {error}")),
        }
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
        if state.silent && *request != Request::Unpark {
            return Err(Error::Unavailable(format!(
                "{} must wait: the sandbox is being saved",
                name(request)
            )));
        }
        if *request == Request::Park && state.busy() {
            return Err(Error::Unavailable(
                "something is on its way into the sandbox: try again later".to_owned(),
            ));
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
        // Requests that are only answered have room of their own: a machine must be stopped even if many streams lead into it.
        let like = state.entries.iter().filter(|(id, entry)| **id % 2 == 1 && entry.unary == unary);
        if like.filter(|(_, entry)| !entry.over()).count() + 2 > if unary { REQUESTS } else { HOST_STREAMS } {
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
        // From this request on nothing is sent: the rest of a frame that the saving cuts in two would be lost, and all after it garbled.
        state.silent |= *request == Request::Park;
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
