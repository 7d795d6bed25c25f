//! Bytes between a harness process and its codec.
//!
//! [`open`] takes a process over and gives an [`Io`]: what it writes, in order and then its end; what it is sent; its death. Nothing
//! here grows without a limit: a process that is not read is not read from, one that does not read is killed.

mod http;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use karta_harness::Transport;
use karta_sandbox::{Control, Exit, Process, Sandbox};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::tasks::Tasks;

/// Chunks of output that wait for the codec.
const OUTPUT: usize = 64;
/// Writes that wait for the process.
const INPUT: usize = 256;
/// The largest chunk, in bytes, and the smallest room that is read into. Most sessions are silent most of the time: room grows with
/// what is said.
const CHUNK: usize = 64 << 10;
const ROOM: usize = 1 << 10;
/// How much of the end of standard error is kept, in bytes.
const TAIL: usize = 16 << 10;
/// How long a process may leave its input unread.
const UNREAD: Duration = Duration::from_secs(10);
/// How long each step of an orderly end may take.
const GRACE: Duration = Duration::from_secs(5);
/// How long after its end a process's last output is waited for: a child of its may hold the pipe.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// What is heard of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IoEvent {
    /// Bytes for the codec.
    Output(Bytes),
    /// The process is gone. The last event.
    Exited {
        /// Its exit status; none when a signal ended it.
        status: Option<i32>,
        /// The end of its standard error.
        stderr: String,
    },
}

/// The process takes no more input: it is gone, or about to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the process takes no more input")]
pub struct Gone;

/// A process's bytes and its end. Dropping it kills the process and everything it started.
#[derive(Debug)]
pub struct Io {
    output: mpsc::Receiver<Heard>,
    input: Option<mpsc::Sender<Bytes>>,
    exit: Option<oneshot::Receiver<(Exit, String)>>,
    signals: Signals,
    /// Of a process that serves HTTP.
    ties: Option<Arc<http::Ties>>,
    /// Keeps the process: dropped with this.
    _held: mpsc::Sender<()>,
}

/// Bytes for the codec. If they answer a request, it counts as answered when they are taken out.
type Heard = (Bytes, Option<http::Waited>);

/// What the parts of one process's plumbing tell one another.
#[derive(Debug, Clone, Default)]
struct Signals {
    /// End it now.
    kill: CancellationToken,
    /// End it in good order.
    end: CancellationToken,
    /// It is gone: what still reads stops.
    gone: CancellationToken,
}

/// Takes a process over. Its tasks end when it is gone or the [`Io`] is dropped. `port` is where one serves HTTP that has said so before;
/// it says it only once.
pub fn open(
    tasks: &Tasks,
    process: Process,
    sandbox: Arc<dyn Sandbox>,
    transport: Transport,
    port: Option<u16>,
) -> Io {
    let Process { stdin, stdout, stderr, control } = process;
    let (to_codec, output) = mpsc::channel(OUTPUT);
    let (input, to_process) = mpsc::channel(INPUT);
    let (exited, exit) = oneshot::channel();
    let (held, holding) = mpsc::channel(1);
    let signals = Signals::default();
    let (read_out, read_err) = (CancellationToken::new(), CancellationToken::new());
    let tail = Arc::new(Mutex::new(VecDeque::new()));

    let ties = match transport {
        Transport::Stdio => {
            tasks.spawn(write_all(stdin, to_process, signals.clone()));
            let (mut stdout, done) = (Reader::new(stdout, &signals), read_out.clone().drop_guard());
            tasks.spawn(async move {
                let _done = done;
                while let Some(chunk) = stdout.next().await
                    && to_codec.send((chunk, None)).await.is_ok()
                {}
            });
            None
        }
        Transport::Http(how) => {
            let ties = Arc::new(http::Ties::new(port));
            let server =
                http::Server { how, sandbox, to_codec, signals: signals.clone(), ties: Arc::clone(&ties) };
            tasks.spawn(server.run(stdin, stdout, to_process, read_out.clone().drop_guard()));
            Some(ties)
        }
    };
    let end_by_term = ties.is_some();
    let (kept, done) = (tail.clone(), read_err.clone().drop_guard());
    let mut stderr = Reader::new(stderr, &signals);
    tasks.spawn(async move {
        let _done = done;
        while let Some(chunk) = stderr.next().await {
            keep_tail(&kept, &chunk);
        }
    });
    let stop = signals.clone();
    tasks.spawn(async move {
        let Some((exit, control)) = wait_for_end(control, &stop, holding, end_by_term).await else {
            stop.gone.cancel();
            return;
        };
        // What it left behind may hold its pipes.
        control.kill();
        let last = async {
            read_out.cancelled().await;
            read_err.cancelled().await;
        };
        let _ = tokio::time::timeout(LAST_OUTPUT, last).await;
        stop.gone.cancel();
        let bytes: Vec<u8> = tail.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let _ = exited.send((exit, String::from_utf8_lossy(&bytes).into_owned()));
    });
    Io { output, input: Some(input), exit: Some(exit), signals, ties, _held: held }
}

impl Io {
    /// What is heard next; never again after the end. Cancelling loses nothing.
    pub async fn next(&mut self) -> IoEvent {
        if let Some((bytes, _answered)) = self.output.recv().await {
            return IoEvent::Output(bytes);
        }
        let Some(exit) = &mut self.exit else { return std::future::pending().await };
        let (status, stderr) = match exit.await {
            Ok((exit, stderr)) => (exit.status, stderr),
            Err(_) => (None, String::new()),
        };
        self.exit = None;
        IoEvent::Exited { status, stderr }
    }

    /// Output that is there already.
    pub fn try_output(&mut self) -> Option<Bytes> {
        self.output.try_recv().ok().map(|(bytes, _answered)| bytes)
    }

    /// Sends bytes to the process. Waits while it is behind; one that stays so is killed.
    ///
    /// # Errors
    /// The process takes no more input; its end is heard of.
    pub async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        let Some(input) = &self.input else { return Err(Gone) };
        if let Some(ties) = &self.ties {
            ties.asked(&bytes);
        }
        match input.send_timeout(bytes, UNREAD).await {
            Ok(()) => Ok(()),
            Err(error) => {
                if matches!(error, mpsc::error::SendTimeoutError::Timeout(_)) {
                    self.kill();
                }
                Err(Gone)
            }
        }
    }

    /// The port on which the process serves, if it does and has said so.
    pub fn port(&self) -> Option<u16> {
        self.ties.as_ref().and_then(|ties| ties.port())
    }

    /// Whether the process was asked for something that only the connection of now can answer.
    pub fn waits(&self) -> bool {
        self.ties.as_ref().is_some_and(|ties| ties.waits())
    }

    /// The sandbox is about to be saved: that connections into it break off means nothing.
    pub fn hold(&self) {
        if let Some(ties) = &self.ties {
            ties.stand(http::Standing::Held);
        }
    }

    /// The sandbox was not saved. What broke off meanwhile is told.
    pub fn hold_no_more(&self) {
        if let Some(ties) = &self.ties {
            ties.stand(http::Standing::Open);
        }
    }

    /// What the process has written and nobody has heard yet, when its sandbox was saved and nothing more comes.
    pub async fn rest(mut self) -> Vec<Bytes> {
        self.input = None;
        if let Some(ties) = &self.ties {
            ties.stand(http::Standing::LetGo);
        }
        let mut rest = Vec::new();
        let all = async {
            while let Some((bytes, _answered)) = self.output.recv().await {
                rest.push(bytes);
            }
        };
        // The end of the stream may be lost with the sandbox; what came before it was there by then.
        let _ = tokio::time::timeout(LAST_OUTPUT, all).await;
        rest
    }

    /// Kills the process and everything it started. Its end is heard of.
    pub fn kill(&self) {
        self.signals.kill.cancel();
    }

    /// Ends the process in good order, by and by more firmly, and waits until it is gone.
    pub async fn end(mut self) {
        self.input = None;
        self.signals.end.cancel();
        while self.exit.is_some() {
            self.next().await;
        }
    }
}

/// Waits for the process to end, and ends it when that is asked for: its input is closed or it is told to (SIGTERM), then it is told
/// to, then it is killed. `None` when nobody holds the process any more: it is dropped, and so killed.
async fn wait_for_end(
    mut control: Box<dyn Control>,
    signals: &Signals,
    mut holding: mpsc::Receiver<()>,
    end_by_term: bool,
) -> Option<(Exit, Box<dyn Control>)> {
    let ladder = async {
        signals.end.cancelled().await;
        if !end_by_term {
            tokio::time::sleep(GRACE).await;
        }
    };
    let asked = tokio::select! {
        exit = control.wait() => return Some((exit, control)),
        () = signals.kill.cancelled() => false,
        () = ladder => true,
        _ = holding.recv() => return None,
    };
    if asked {
        control.terminate();
        tokio::select! {
            exit = control.wait() => return Some((exit, control)),
            () = signals.kill.cancelled() => {}
            () = tokio::time::sleep(GRACE) => {}
            _ = holding.recv() => return None,
        }
    }
    control.kill();
    Some((control.wait().await, control))
}

/// Reads to the end, or until the process is gone and nothing is left to read.
struct Reader<R> {
    from: R,
    buffer: BytesMut,
    room: usize,
    gone: CancellationToken,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    fn new(from: R, signals: &Signals) -> Self {
        Self { from, buffer: BytesMut::new(), room: ROOM, gone: signals.gone.clone() }
    }

    async fn next(&mut self) -> Option<Bytes> {
        if self.buffer.spare_capacity_mut().len() < ROOM {
            self.buffer.reserve(self.room);
        }
        let read = tokio::select! {
            biased;
            read = self.from.read_buf(&mut self.buffer) => read,
            () = self.gone.cancelled() => return None,
        };
        match read {
            Ok(0) | Err(_) => None,
            Ok(_) => {
                if self.buffer.spare_capacity_mut().is_empty() {
                    self.room = (self.room * 2).min(CHUNK);
                }
                Some(self.buffer.split().freeze())
            }
        }
    }
}

/// Writes what is sent until nothing more will be, then closes.
async fn write_all(mut to: impl AsyncWrite + Unpin, mut from: mpsc::Receiver<Bytes>, signals: Signals) {
    let write = async {
        while let Some(bytes) = from.recv().await {
            to.write_all(&bytes).await?;
            if from.is_empty() {
                to.flush().await?;
            }
        }
        to.shutdown().await
    };
    tokio::select! {
        // A failure means that the process closed its input; its end, or its silence, is seen elsewhere.
        _ = write => {}
        () = signals.gone.cancelled() => {}
    }
}

fn keep_tail(tail: &Mutex<VecDeque<u8>>, chunk: &[u8]) {
    let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    tail.extend(&chunk[chunk.len().saturating_sub(TAIL)..]);
    let over = tail.len().saturating_sub(TAIL);
    tail.drain(..over);
}

#[cfg(test)]
mod tests;
