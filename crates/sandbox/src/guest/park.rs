//! A link that is put aside with its machine and taken up again, by this server or a later one.
//!
//! The guest must not notice. So first nothing more is sent, and an answer to a last question tells that all that was sent has
//! arrived. Then the machine stands still and is saved; the channel ends, and what the guest had said until then has been read.
//! What both sides know of each stream at that moment is kept, with the bytes on their way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use karta_guest::proto::frame::Decoder;
use karta_guest::proto::message::Request;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::link::{Entry, Link, Program, Shared, State};
use super::stream::{Incoming, Joined};
use crate::Error;
use crate::uplink::Uplink;

/// How long the channel of a machine that was saved may take to end.
const DRAIN: Duration = Duration::from_secs(20);

/// A link as it was when its machine stood still.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parked {
    generation: u64,
    host_last: u32,
    guest_last: u32,
    /// What had come of a frame.
    rest: String,
    streams: Vec<Stream>,
}

/// One stream.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stream {
    id: u32,
    /// What it is to whoever takes it up.
    role: Role,
    received: String,
    granted: u32,
    used: u32,
    incoming_over: Option<bool>,
    sending: String,
    window: u32,
    finish: bool,
    finished: bool,
    refused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Role {
    /// Standard input and output of a program that runs.
    Program,
    /// Its standard error.
    Error,
    /// Something that nobody takes up: a connection, a file on its way.
    Lost,
}

/// A link that sends nothing. Dropping it lets it go on.
pub(super) struct Hold<'a>(&'a Arc<Shared>);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.only = None;
        state.parking = false;
        drop(state);
        self.0.work.notify_one();
    }
}

impl Shared {
    /// Sends to this stream alone, and takes the end of the channel for what was wanted.
    fn only(&self, id: u32) {
        let mut state = self.lock();
        state.only = Some(id);
        state.parking = true;
        drop(state);
        self.work.notify_one();
    }

    /// Takes everything out of the streams; none if the link has ended otherwise.
    fn parked(&self) -> Option<Parked> {
        let mut state = self.lock();
        state.ended.is_none().then(|| Parked::of(&mut state, self.generation))
    }

    /// Whether the end of the channel was expected; if so, the rest is kept.
    pub(super) fn drained(&self, rest: &[u8]) -> bool {
        let mut state = self.lock();
        if !state.parking {
            return false;
        }
        state.rest = Some(rest.to_vec());
        drop(state);
        self.drained.send_replace(true);
        true
    }
}

impl Link {
    /// Sends nothing from now on, and waits until all that was sent has arrived.
    pub(super) async fn hold(&self, patience: Duration) -> Result<Hold<'_>, Error> {
        let shared = self.shared();
        let busy = |state: &State| {
            state.entries.values().any(|entry| entry.opening.is_some() || entry.answer.is_some())
        };
        if busy(&shared.lock()) {
            return Err(Error::Unavailable(
                "something is being started in the sandbox: try again".to_owned(),
            ));
        }
        let hold = Hold(shared);
        let (id, answer) = self.open(&Request::Ping, true, None)?;
        shared.only(id);
        self.answer(&Request::Ping, answer, patience).await?.map_err(|failure| {
            Error::Unavailable(format!("the program inside the sandbox does not answer: {}", failure.text))
        })?;
        Ok(hold)
    }

    /// What is known of it once its machine has been saved and has ended. The link is over.
    pub(super) async fn seal(&self, hold: Hold<'_>) -> Result<Parked, Error> {
        let shared = self.shared();
        let mut drained = shared.drained.subscribe();
        let whole = tokio::time::timeout(DRAIN, drained.wait_for(|drained| *drained)).await;
        if whole.is_err() {
            return Err(Error::Unavailable("the channel of the saved machine did not end".to_owned()));
        }
        let parked = shared.parked().ok_or_else(|| self.gone())?;
        drop(hold);
        shared.end("the sandbox was parked");
        Ok(parked)
    }
}

fn hex(bytes: &[u8]) -> String {
    crate::image::hex(bytes)
}

fn bytes(text: &str) -> Result<Vec<u8>, Error> {
    let wrong = || Error::Unavailable("what was kept of a sandbox is damaged".to_owned());
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return Err(wrong());
    }
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| {
            std::str::from_utf8(pair)
                .ok()
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .ok_or_else(wrong)
        })
        .collect()
}

impl Parked {
    /// Takes everything out of a state, so that nobody reads it twice.
    fn of(state: &mut State, generation: u64) -> Self {
        let mut streams = Vec::new();
        let mut ids: Vec<u32> = state.entries.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let errors = id
                .checked_sub(2)
                .and_then(|program| state.entries.get(&program))
                .is_some_and(|program| program.exit.is_some());
            let Some(entry) = state.entries.get_mut(&id) else { continue };
            if entry.opening.is_some() {
                // It was never sent.
                continue;
            }
            let role = match (entry.exit.is_some(), errors) {
                (true, _) => Role::Program,
                (false, true) => Role::Error,
                (false, false) => Role::Lost,
            };
            let received: Vec<u8> = entry.received.drain(..).flatten().collect();
            streams.push(Stream {
                id,
                role,
                received: hex(&received),
                granted: entry.granted,
                used: entry.used,
                incoming_over: entry.incoming_over,
                sending: hex(&entry.sending.split()),
                window: entry.window,
                finish: entry.finish,
                finished: entry.finished,
                refused: entry.refused,
            });
        }
        let rest = state.rest.take().unwrap_or_default();
        Self {
            generation,
            host_last: state.host_last,
            guest_last: state.guest_last,
            rest: hex(&rest),
            streams,
        }
    }

    /// Takes the link up over a new channel to the same machine: with the programs that run in it, in the order in which they were
    /// started.
    pub(crate) fn revive<C>(self, channel: C, uplink: Arc<dyn Uplink>) -> Result<(Link, Vec<Program>), Error>
    where
        C: AsyncRead + AsyncWrite + Send + 'static,
    {
        let mut state = State { host_last: self.host_last, guest_last: self.guest_last, ..State::default() };
        let mut exits = HashMap::new();
        let mut order = Vec::new();
        for stream in &self.streams {
            let mut entry = stream.entry()?;
            if stream.role == Role::Program {
                let exit = watch::Sender::new(None);
                exits.insert(stream.id, exit.subscribe());
                entry.exit = Some(exit);
                order.push(stream.id);
            }
            // What was to be said when it stood still, is said now.
            entry.dirty = true;
            state.dirty.push_back(stream.id);
            state.entries.insert(stream.id, entry);
        }
        let mut decoder = Decoder::default();
        decoder.push(&bytes(&self.rest)?);
        let link = Link::with(channel, self.generation, uplink, state, decoder);
        let shared = link.shared();
        let programs = order
            .into_iter()
            .filter_map(|id| {
                let (stdout, stdin) = Joined::new(shared, id).split();
                let stderr = Incoming::new(Arc::clone(shared), id + 2);
                Some(Program { id, stdin, stdout, stderr, exit: exits.remove(&id)? })
            })
            .collect();
        shared.work.notify_one();
        Ok((link, programs))
    }
}

impl Stream {
    fn entry(&self) -> Result<Entry, Error> {
        let mut entry = Entry {
            granted: self.granted,
            used: self.used,
            incoming_over: self.incoming_over,
            window: self.window,
            finish: self.finish,
            finished: self.finished,
            refused: self.refused,
            ..Entry::new()
        };
        if self.role == Role::Lost {
            entry.reading = false;
            entry.stop = self.incoming_over.is_none();
            entry.finish = true;
            return Ok(entry);
        }
        let received = bytes(&self.received)?;
        if !received.is_empty() {
            entry.received.push_back(Bytes::from(received));
        }
        entry.sending.extend_from_slice(&bytes(&self.sending)?);
        Ok(entry)
    }
}
