//! What a link's tasks and streams share, and the tasks: one reads, one writes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use karta_guest::proto::frame::{Decoder, Frame, Kind};
use karta_guest::proto::message::{Accepted, Answer, Ended, Hello};
use karta_guest::proto::{GUEST_STREAMS, HOST_STREAMS, VERSION, WINDOW};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::super::stream::Joined;
use super::entry::{Entry, State};
use crate::uplink::{Service, Uplink};
use crate::{Error, Exit};

/// Most streams of a guest that are remembered, those among them that only wait for the host to read their end.
const REMEMBERED: usize = 1024;
/// How many bytes are written at once.
const BATCH: usize = 64 << 10;

/// What the tasks and the streams share.
pub(in crate::guest) struct Shared {
    pub(in crate::guest) state: Mutex<State>,
    /// Something is to be sent.
    pub(in crate::guest) work: Notify,
    pub(in crate::guest) generation: u64,
    pub(in crate::guest) uplink: Arc<dyn Uplink>,
    pub(in crate::guest) hello: watch::Sender<bool>,
    pub(in crate::guest) ended: watch::Sender<Option<Arc<str>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl Shared {
    pub(in crate::guest) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves these plain tables whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::guest) fn gone(&self) -> Error {
        let reason = self.lock().ended.clone();
        Error::Unavailable(reason.as_deref().unwrap_or("the sandbox was closed").to_owned())
    }

    /// Notes that a stream has something to send.
    pub(in crate::guest) fn touch(&self, state: &mut State, id: u32) {
        if let Some(entry) = state.entries.get_mut(&id)
            && !entry.dirty
        {
            entry.dirty = true;
            state.dirty.push_back(id);
            self.work.notify_one();
        }
    }

    pub(in crate::guest) fn signal(&self, id: u32, signal: u8) {
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
    pub(in crate::guest) fn unread(&self, id: u32) {
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
    pub(in crate::guest) fn unwritten(&self, id: u32) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(&id) else { return };
        entry.writer = None;
        if !entry.finish {
            entry.finish = true;
            self.touch(&mut state, id);
        }
    }

    /// Ends everything, once.
    pub(in crate::guest) fn end(&self, reason: &str) {
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
    pub(in crate::guest) fn gather(&self, batch: &mut Vec<u8>) {
        let mut state = self.lock();
        while batch.len() < BATCH {
            let Some(id) = state.next_dirty() else { return };
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

    pub(in crate::guest) fn frame(self: &Arc<Self>, frame: Frame) -> Result<(), &'static str> {
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
    pub(in crate::guest) fn accept(self: &Arc<Self>, id: u32, payload: &[u8]) -> Result<(), &'static str> {
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

#[expect(clippy::disallowed_methods, reason = "the link owns its tasks and ends them with itself")]
pub(in crate::guest) fn task(
    shared: &Shared,
    future: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let mut ended = shared.ended.subscribe();
    // When one of the two ends the link, so does the other: the guest is told by the end of the channel.
    tokio::spawn(async move {
        tokio::select! {
            () = future => {}
            _ = ended.wait_for(Option::is_some) => {}
        }
    })
}

pub(in crate::guest) async fn read(shared: Arc<Shared>, mut channel: impl AsyncRead + Unpin) {
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

pub(in crate::guest) async fn write(shared: Arc<Shared>, mut channel: impl AsyncWrite + Unpin) {
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
