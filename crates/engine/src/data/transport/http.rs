//! A process that serves HTTP, as lines of JSON ([`karta_harness::frame::http`]).
//!
//! The process says its port on standard output. Its event stream is opened first and opened again when it breaks off; every request
//! has a connection of its own, so a slow one holds nothing up.
//!
//! No connection outlives a sandbox that is saved. What was heard before is told, the end of the connections is not; whoever takes the
//! process over knows its port, opens the event stream anew and makes requests when that is open, so that nothing they cause is missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Response, Uri};
use hyper_util::rt::TokioIo;
use karta_harness::frame::http::{Request, ToCodec};
use karta_harness::frame::lines::{Line, Lines, MAX_LINE};
use karta_harness::launch::HttpTransport;
use karta_sandbox::Sandbox;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::DropGuard;

use super::{Reader, Signals};

/// What a body or an event may have, in bytes: a line with it stays within the limit of lines.
const MAX_BODY: usize = MAX_LINE - 1024;
/// A line of standard output longer than this is cut in the log.
const MAX_LOG: usize = 4096;
/// Requests that are made at once.
const MAX_REQUESTS: usize = 64;
/// The longest that a request may ask to wait.
const MAX_DELAY: Duration = Duration::from_mins(1);
/// How often a broken event stream is opened again before the process is given up.
const ATTEMPTS: u32 = 5;
/// How long a broken event stream may be the sign of a process that is about to end.
const DYING: Duration = Duration::from_millis(300);
/// How long what was heard before the sandbox was saved may take to come out of a connection that does not end with it.
const LAST_HEARD: Duration = Duration::from_millis(200);
/// The first pause before the event stream is opened again; each is twice the last.
const PAUSE: Duration = Duration::from_millis(100);

/// What the runner and the connections of one server know of one another.
#[derive(Debug)]
pub(super) struct Ties {
    port: watch::Sender<Option<u16>>,
    standing: watch::Sender<Standing>,
    /// Requests that were written and are not answered, long ones apart.
    asked: AtomicUsize,
}

/// Whether connections are to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// They are.
    Open,
    /// The sandbox is being saved: perhaps not.
    Held,
    /// It was saved.
    LetGo,
}

impl Ties {
    pub(super) fn new(port: Option<u16>) -> Self {
        let standing = watch::Sender::new(Standing::Open);
        Self { port: watch::Sender::new(port), standing, asked: AtomicUsize::new(0) }
    }

    pub(super) fn port(&self) -> Option<u16> {
        *self.port.borrow()
    }

    pub(super) fn stand(&self, standing: Standing) {
        self.standing.send_replace(standing);
    }

    pub(super) fn waits(&self) -> bool {
        self.asked.load(Ordering::SeqCst) > 0
    }

    /// These requests are about to be made.
    pub(super) fn asked(&self, written: &[u8]) {
        self.asked.fetch_add(requests(written).count(), Ordering::SeqCst);
    }

    /// Waits until the sandbox was saved or goes on; whether it does.
    async fn goes_on(&self) -> bool {
        let mut standing = self.standing.subscribe();
        let known = standing.wait_for(|standing| *standing != Standing::Held).await;
        known.is_ok_and(|standing| *standing == Standing::Open)
    }

    async fn let_go(&self) {
        let mut standing = self.standing.subscribe();
        // The sender is a part of this: it can't be gone.
        let _ = standing.wait_for(|standing| *standing == Standing::LetGo).await;
    }
}

/// A request that is waited for, until this is dropped.
#[derive(Debug)]
pub(super) struct Waited(Arc<Ties>);

impl Drop for Waited {
    fn drop(&mut self) {
        self.0.asked.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The lines of what was written.
fn requests(written: &[u8]) -> impl Iterator<Item = &[u8]> {
    written.split(|&byte| byte == b'\n').filter(|line| !line.is_empty())
}

/// What one server needs.
pub(super) struct Server {
    pub(super) how: HttpTransport,
    pub(super) sandbox: Arc<dyn Sandbox>,
    pub(super) to_codec: mpsc::Sender<super::Heard>,
    pub(super) signals: Signals,
    pub(super) ties: Arc<Ties>,
}

impl Server {
    /// Serves until the process is gone. Its standard input stays open till then.
    pub(super) async fn run(
        self,
        _stdin: Box<dyn AsyncWrite + Send + Unpin>,
        stdout: Box<dyn AsyncRead + Send + Unpin>,
        requests: mpsc::Receiver<Bytes>,
        read: DropGuard,
    ) {
        let (reached, ready) = watch::channel(false);
        let log = async {
            self.log(stdout).await;
            drop(read);
        };
        let last_heard = async {
            self.ties.let_go().await;
            tokio::time::sleep(LAST_HEARD).await;
        };
        let serve = async {
            tokio::select! {
                () = self.signals.gone.cancelled() => {}
                () = self.events(&reached) => {}
                () = last_heard => {}
            }
        };
        let answer = async {
            tokio::select! {
                () = self.signals.gone.cancelled() => {}
                () = self.requests(requests, ready) => {}
                () = self.ties.let_go() => {}
            }
        };
        tokio::join!(log, serve, answer);
    }

    async fn tell(&self, line: &ToCodec) -> bool {
        self.tell_answer(line, None).await
    }

    async fn tell_answer(&self, line: &ToCodec, waited: Option<Waited>) -> bool {
        let Ok(mut bytes) = serde_json::to_vec(line) else { return true };
        bytes.push(b'\n');
        self.to_codec.send((bytes.into(), waited)).await.is_ok()
    }

    /// Reads standard output: the announcement, and lines for the log.
    async fn log(&self, stdout: Box<dyn AsyncRead + Send + Unpin>) {
        let mut lines = Lines::with_limit(MAX_LOG);
        let mut stdout = Reader::new(stdout, &self.signals);
        while let Some(chunk) = stdout.next().await {
            let mut found = Vec::new();
            lines.feed(&chunk, |line| found.push(line));
            for line in found {
                let Line::Whole(line) = line else { continue };
                let line = String::from_utf8_lossy(&line);
                match line.strip_prefix(&self.how.announced_by).and_then(port_of) {
                    Some(port) => {
                        let first = |known: &mut Option<u16>| known.replace(port).is_none();
                        self.ties.port.send_if_modified(|known| known.is_none() && first(known));
                    }
                    None => {
                        self.tell(&ToCodec::Log { log: line.into_owned() }).await;
                    }
                }
            }
        }
    }

    /// Waits for the port; `None` when it can't be told any more.
    async fn announced(&self) -> Option<u16> {
        self.ties.port.subscribe().wait_for(Option::is_some).await.ok().and_then(|port| *port)
    }

    /// Keeps the event stream open.
    async fn events(&self, reached: &watch::Sender<bool>) {
        let Some(port) = self.announced().await else { return };
        let mut failures = 0;
        loop {
            let closed = match self.stream(port, &mut failures, reached).await {
                Ok(closed) | Err(closed) => closed,
            };
            if !self.ties.goes_on().await {
                return;
            }
            // The stream of a process that dies breaks off first; its end says more.
            tokio::time::sleep(DYING).await;
            let spent = failures >= ATTEMPTS;
            // One that was never open has not broken off: whoever took the process over goes on where he was, if it opens at last.
            if (spent || *reached.borrow()) && !self.tell(&ToCodec::Closed { closed }).await {
                return;
            }
            if spent {
                // Nothing is heard of it any more, whatever it does.
                self.signals.kill.cancel();
                return;
            }
            tokio::time::sleep(PAUSE * 2u32.pow(failures)).await;
            failures += 1;
        }
    }

    /// Opens the event stream and reads it to its end; answers why it ended.
    async fn stream(
        &self,
        port: u16,
        failures: &mut u32,
        reached: &watch::Sender<bool>,
    ) -> Result<String, String> {
        let request = self.request(Method::GET, &self.how.events, port, Bytes::new())?;
        let (mut response, connection) = self.send(port, request, || ()).await?;
        if !response.status().is_success() {
            return Err(format!("the event stream was answered {}", response.status()));
        }
        let mut connection = std::pin::pin!(connection.fuse());
        let mut events = Events::default();
        let mut ready = false;
        loop {
            let frame = tokio::select! {
                frame = response.body_mut().frame() => frame,
                () = &mut connection => continue,
            };
            let Some(frame) = frame else { return Ok("it ended".to_owned()) };
            let frame = frame.map_err(|error| error.to_string())?;
            let Ok(data) = frame.into_data() else { continue };
            // The first bytes say that the server has begun to listen to its own events.
            if !std::mem::replace(&mut ready, true) {
                *failures = 0;
                self.tell(&ToCodec::Ready { ready: true }).await;
                reached.send_replace(true);
            }
            for line in events.feed(&data) {
                if self.to_codec.send((line, None)).await.is_err() {
                    return Ok("nobody listens".to_owned());
                }
            }
        }
    }

    /// Makes requests as they come, several at once. None before the event stream is open: it would not tell what they cause.
    async fn requests(&self, mut lines: mpsc::Receiver<Bytes>, mut ready: watch::Receiver<bool>) {
        let Some(port) = self.announced().await else { return };
        if ready.wait_for(|ready| *ready).await.is_err() {
            return;
        }
        let mut running = FuturesUnordered::new();
        loop {
            let free = running.len() < MAX_REQUESTS;
            tokio::select! {
                write = lines.recv(), if free => match write {
                    Some(write) => {
                        for line in requests(&write) {
                            let waited = Waited(Arc::clone(&self.ties));
                            if let Ok(request) = serde_json::from_slice::<Request>(line) {
                                running.push(self.answered(port, request, waited));
                            }
                        }
                    }
                    None => return,
                },
                Some((answer, waited)) = running.next(), if !running.is_empty() => {
                    // A connection that broke off because the sandbox was saved says nothing.
                    if matches!(answer, ToCodec::Failed { .. }) && !self.ties.goes_on().await {
                        return;
                    }
                    self.tell_answer(&answer, waited).await;
                }
            }
        }
    }

    /// The answer to a request, which is waited for unless it is a long one.
    async fn answered(&self, port: u16, request: Request, waited: Waited) -> (ToCodec, Option<Waited>) {
        let (id, mut waited) = (request.id, Some(waited));
        if request.delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(request.delay_ms).min(MAX_DELAY)).await;
        }
        let answer = match self.fetch(port, request, &mut waited).await {
            Ok((status, body)) => ToCodec::Answer { id, status, body },
            Err(error) => ToCodec::Failed { id, error },
        };
        (answer, waited)
    }

    async fn fetch(
        &self,
        port: u16,
        request: Request,
        waited: &mut Option<Waited>,
    ) -> Result<(u16, Value), String> {
        let long = request.long;
        let method = Method::from_bytes(request.method.as_bytes()).map_err(|error| error.to_string())?;
        let body = if request.body.is_null() { Bytes::new() } else { request.body.to_string().into() };
        let request = self.request(method, &request.path, port, body)?;
        let under_way = || {
            if long {
                *waited = None;
            }
        };
        let (response, connection) = self.send(port, request, under_way).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_BODY).collect();
        let mut connection = std::pin::pin!(connection.fuse());
        let mut body = std::pin::pin!(body);
        let body = loop {
            tokio::select! {
                body = &mut body => break body.map_err(|error| error.to_string())?,
                () = &mut connection => {}
            }
        };
        Ok((status, serde_json::from_slice(&body.to_bytes()).unwrap_or_default()))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        port: u16,
        body: Bytes,
    ) -> Result<hyper::Request<Full<Bytes>>, String> {
        let uri: Uri = path.parse().map_err(|error| format!("`{path}` is no path: {error}"))?;
        let mut request = hyper::Request::builder()
            .method(method)
            .uri(uri)
            .header(HOST, format!("127.0.0.1:{port}"))
            .header(ACCEPT, "application/json, text/event-stream");
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some((user, password)) = &self.how.basic_auth {
            request = request.header(AUTHORIZATION, basic(user, password));
        }
        request.body(Full::new(body)).map_err(|error| error.to_string())
    }

    /// Sends a request on a connection of its own, and tells when it is under way. The connection must be driven while the body is read.
    async fn send(
        &self,
        port: u16,
        request: hyper::Request<Full<Bytes>>,
        under_way: impl FnOnce(),
    ) -> Result<(Response<Incoming>, impl Future<Output = ()> + Send), String> {
        let stream = self.sandbox.connect(port).await.map_err(|error| chain(&error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
        let mut connection = Box::pin(connection.map(drop));
        let mut response = std::pin::pin!(sender.send_request(request));
        let mut open = true;
        let mut under_way = Some(under_way);
        let response = loop {
            tokio::select! {
                // Handed over first, then written, as far as there is room; then it is under way.
                biased;
                response = &mut response => break response.map_err(|error| chain(&error))?,
                () = &mut connection, if open => open = false,
                tell = async { under_way.take() }, if under_way.is_some() => tell.into_iter().for_each(|tell| tell()),
            }
        };
        let rest = async move {
            if open {
                connection.await;
            }
        };
        Ok((response, rest))
    }
}

/// The port of `http://127.0.0.1:44817`.
fn port_of(url: &str) -> Option<u16> {
    url.trim().trim_end_matches('/').rsplit(':').next()?.parse().ok()
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// An error with what is behind it.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source())
        .fold(error.to_string(), |text, error| format!("{text}: {error}"))
}

/// Cuts a stream of server-sent events into lines for the codec.
#[derive(Default)]
struct Events {
    lines: Lines,
    data: BytesMut,
    dropped: usize,
}

impl Events {
    fn feed(&mut self, bytes: &[u8]) -> Vec<Bytes> {
        let mut found = Vec::new();
        let (data, dropped) = (&mut self.data, &mut self.dropped);
        self.lines.feed(bytes, |line| match line {
            Line::TooLong(bytes) => *dropped += bytes,
            Line::Whole(line) if line.is_empty() => found.extend(take(data, dropped)),
            Line::Whole(line) => {
                let Some(rest) = line.strip_prefix(b"data:") else { return };
                let rest = rest.strip_prefix(b" ").unwrap_or(rest);
                if data.len() + rest.len() > MAX_BODY || *dropped > 0 {
                    *dropped += data.len() + rest.len();
                    data.clear();
                    return;
                }
                if !data.is_empty() {
                    data.extend_from_slice(b" ");
                }
                data.extend_from_slice(rest);
            }
        });
        found
    }
}

/// The event that is complete now, as a line. One over the limit becomes a line that says so and is none of the protocol's.
fn take(data: &mut BytesMut, dropped: &mut usize) -> Option<Bytes> {
    let event = data.split();
    if *dropped > 0 {
        let bytes = std::mem::take(dropped);
        return Some(format!("an event of {bytes} bytes is over the limit\n").into());
    }
    if event.is_empty() {
        return None;
    }
    let mut line = BytesMut::with_capacity(event.len() + 12);
    line.extend_from_slice(b"{\"event\":");
    line.extend_from_slice(&event);
    line.extend_from_slice(b"}\n");
    Some(line.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&[u8]]) -> Vec<String> {
        let mut events = Events::default();
        let lines = chunks.iter().flat_map(|chunk| events.feed(chunk));
        lines.map(|line| String::from_utf8(line.to_vec()).unwrap()).collect()
    }

    #[test]
    fn events_come_out_as_lines_however_they_are_cut() {
        let stream = b"data: {\"a\":1}\n\n: ping\r\nevent: x\r\ndata: {\"b\":\r\ndata: 2}\r\n\r\n\n";
        let whole = ["{\"event\":{\"a\":1}}\n", "{\"event\":{\"b\": 2}}\n"];
        assert_eq!(cut(&[stream]), whole);
        assert_eq!(cut(&stream.chunks(1).collect::<Vec<_>>()), whole);
    }

    #[test]
    fn an_event_over_the_limit_is_told_and_not_kept() {
        let big = vec![b'x'; MAX_LINE];
        let lines = cut(&[b"data: ", &big, b"\n\ndata: 1\n\n"]);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("an event of ") && serde_json::from_str::<Value>(&lines[0]).is_err());
        assert_eq!(lines[1], "{\"event\":1}\n");
    }

    #[test]
    fn the_port_is_read_from_the_announcement() {
        assert_eq!(port_of("http://127.0.0.1:44817"), Some(44817));
        assert_eq!(port_of("http://127.0.0.1:44817/ "), Some(44817));
        assert_eq!(port_of("somewhere"), None);
    }
}
