//! One request and its answer, seen whole: judged, secrets put in, sent, secrets taken out of what comes back.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response};
use karta_types::egress::Place;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Gateway;
use super::answer::Telling;
use super::guest::{Left, Reader, STALLED, Writer, late};
use super::head::{Head, Length};
use super::judge::Refusal;
use super::outside::{Body, Line, Unreached};
use super::secrets::Written;
use super::serve::note;
use super::swap::Swap;

/// The largest body that secrets are put into and whose length is said before.
const WHOLE: u64 = 1 << 20;
/// Pieces of a body on their way.
const ON_THE_WAY: usize = 2;

/// Where a request goes.
pub(super) struct Wanted<'a> {
    /// The host.
    pub(super) place: &'a Place,
    /// Whether by TLS.
    pub(super) tls: bool,
    /// The path and its query.
    pub(super) target: &'a str,
}

/// How it went.
pub(super) enum Outcome {
    /// The answer was passed on; whether another request may follow.
    Done {
        /// Whether it may.
        goes_on: bool,
    },
    /// It must not be: nothing was answered yet.
    Refused(Refusal),
    /// The host does not answer: nothing was answered yet.
    Gone(String),
}

impl From<Unreached> for Outcome {
    fn from(unreached: Unreached) -> Self {
        match unreached {
            Unreached::Forbidden(why) => Self::Refused(Refusal::of(why)),
            Unreached::Gone(why) => Self::Gone(why),
        }
    }
}

fn refused(why: impl Into<String>) -> Outcome {
    Outcome::Refused(Refusal::of(why))
}

/// A body on its way out.
enum Sent {
    /// There is all of it.
    Whole(Bytes),
    /// It comes in pieces, looked through.
    Pieces(Box<Swap>, Length),
}

/// Serves one request.
pub(super) async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    gateway: &Gateway,
    reader: &mut Reader<S>,
    writer: &mut Writer<S>,
    line: &mut Option<Line>,
    head: Head,
    wanted: &Wanted<'_>,
) -> io::Result<Outcome> {
    let Wanted { place, tls, target } = *wanted;
    // Whoever is behind the host's name must not take the request for another's.
    let default = if tls { 443 } else { 80 };
    if head.host.as_deref().is_some_and(|host| Place::read(host, Some(default)).as_ref() != Some(place)) {
        return Ok(refused("its `Host` header names another host"));
    }
    let path = target.split('?').next().unwrap_or_default();
    let by = match gateway.rules.whole(place, &head.method, path, &head.headers) {
        Ok(by) => by,
        Err(refusal) => return Ok(Outcome::Refused(refusal)),
    };
    let Head { method, mut headers, length, goes_on, chunks, expects, .. } = head;
    let near = matches!(place.host.as_str(), "localhost" | "127.0.0.1");
    let safe = tls || (gateway.outside.loopback && near);
    let written = Written::of(&headers);
    let (put_target, in_target) = match gateway.secrets.put_in_target(target, place, safe) {
        Ok(put) => put,
        Err(why) => return Ok(refused(why)),
    };
    let in_headers = match gateway.secrets.put_in(&mut headers, place, safe) {
        Ok(put) => put,
        Err(why) => return Ok(refused(why)),
    };
    let secret = safe && gateway.secrets.any_for(place);
    if secret {
        // What comes back must be readable here, and whole.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    if in_target || in_headers {
        headers.remove(header::RANGE);
    }
    // The place first: a body is not asked for that nobody would take.
    let fresh = !ready(line, place, tls).await;
    if fresh {
        match gateway.outside.line(place, tls).await {
            Ok(made) => *line = Some(made),
            Err(unreached) => return Ok(unreached.into()),
        }
    }
    if expects && length != Length::None {
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let mut left = Left::of(length);
    let at_once = matches!(length, Length::Of(bytes) if bytes <= WHOLE) && !gateway.secrets.is_empty();
    let _room = if at_once { Some(gateway.whole.acquire().await.map_err(io::Error::other)?) } else { None };
    let sent = match sent(gateway, reader, &mut left, place, (safe, written), length).await? {
        Ok(sent) => sent,
        Err(why) => return Ok(refused(why)),
    };
    headers.insert(header::HOST, host_header(place, default)?);
    note(gateway, true, place, Some((&method, target)), Some(by), None);
    let ask = Ask { method: &method, target: &put_target, headers };
    let telling = Telling { gateway, place, secret, headless: method == "HEAD", chunks, goes_on };
    let outcome = match sent {
        Sent::Whole(bytes) => whole(gateway, line, ask, bytes, (fresh, wanted), telling, writer).await,
        Sent::Pieces(swap, length) => {
            let outgoing = Outgoing { gateway, reader, left: &mut left, place, safe };
            pieces(line, ask, (*swap, length), outgoing, telling, writer).await
        }
    };
    let goes_on = matches!(outcome, Ok(Outcome::Done { goes_on: true })) && left.ended;
    if !goes_on {
        *line = None;
    }
    Ok(match outcome? {
        Outcome::Done { .. } => Outcome::Done { goes_on },
        other => other,
    })
}

/// Whether the connection that is there can take another request to this place.
async fn ready(line: &mut Option<Line>, place: &Place, tls: bool) -> bool {
    let Some(known) = line.as_mut().filter(|known| known.place == *place && known.tls == tls) else {
        return false;
    };
    known.to.ready().await.is_ok()
}

fn host_header(place: &Place, default: u16) -> io::Result<HeaderValue> {
    let text = if place.port == default { place.host.to_string() } else { place.to_string() };
    HeaderValue::from_str(&text).map_err(io::Error::other)
}

/// The body as it goes out; why it must not, if so.
async fn sent<S: AsyncRead + AsyncWrite + Unpin>(
    gateway: &Gateway,
    reader: &mut Reader<S>,
    left: &mut Left,
    place: &Place,
    (safe, written): (bool, Option<Written>),
    length: Length,
) -> io::Result<Result<Sent, String>> {
    let mut swap = gateway.secrets.going(place, safe, written);
    match length {
        Length::None => Ok(Ok(Sent::Whole(Bytes::new()))),
        Length::Of(bytes) if bytes <= WHOLE && !swap.is_idle() => {
            let mut whole = Vec::new();
            while let Some(piece) = reader.piece(left).await? {
                whole.extend_from_slice(&piece);
            }
            Ok(match swap.whole(&whole) {
                Ok(whole) => Ok(Sent::Whole(whole.into())),
                Err(found) => Err(gateway.secrets.refusal(&found, place, safe)),
            })
        }
        // Its length is said already: nothing is put in.
        Length::Of(_) => Ok(Ok(Sent::Pieces(Box::new(gateway.secrets.going(place, safe, None)), length))),
        Length::Chunked => Ok(Ok(Sent::Pieces(Box::new(swap), length))),
    }
}

/// A request on its way out.
struct Ask<'a> {
    method: &'a str,
    target: &'a str,
    headers: HeaderMap,
}

impl Ask<'_> {
    fn build(&self, body: Body) -> io::Result<Request<Body>> {
        let request = Request::builder().method(self.method).uri(self.target).body(body);
        let mut request = request.map_err(io::Error::other)?;
        *request.headers_mut() = self.headers.clone();
        Ok(request)
    }
}

/// What still has to be read of a request's body.
struct Outgoing<'a, S> {
    gateway: &'a Gateway,
    reader: &'a mut Reader<S>,
    left: &'a mut Left,
    place: &'a Place,
    safe: bool,
}

type Pieces = mpsc::Sender<io::Result<Frame<Bytes>>>;

/// Why a body did not go out whole.
enum Cut {
    /// The program ended it, or sent what can't be read.
    Broken(io::Error),
    /// It must not go on.
    Refused(String),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Outgoing<'_, S> {
    /// Reads the body and hands it on until its end.
    async fn pump(&mut self, mut swap: Swap, to: Pieces) -> Result<(), Cut> {
        let done = self.pump_all(&mut swap, &to).await;
        if let Err(cut) = &done {
            // The host must not take what came for the whole.
            let why = match cut {
                Cut::Broken(error) => io::Error::new(error.kind(), error.to_string()),
                Cut::Refused(why) => io::Error::other(why.clone()),
            };
            // A host that takes no more has its connection cut all the same.
            let _ = tokio::time::timeout(STALLED, to.send(Err(why))).await;
        }
        done
    }

    async fn pump_all(&mut self, swap: &mut Swap, to: &Pieces) -> Result<(), Cut> {
        loop {
            let piece = self.reader.piece(self.left).await.map_err(Cut::Broken)?;
            let ended = piece.is_none();
            let piece = match piece {
                Some(piece) if swap.is_idle() => Ok(piece),
                Some(piece) => swap.piece(&piece).map(Bytes::from),
                None => swap.end().map(Bytes::from),
            };
            let piece = piece
                .map_err(|found| Cut::Refused(self.gateway.secrets.refusal(&found, self.place, self.safe)))?;
            if !piece.is_empty() {
                let handed = tokio::time::timeout(STALLED, to.send(Ok(Frame::data(piece)))).await;
                match handed {
                    Ok(Ok(())) => {}
                    // The host has heard enough: its answer says why. What is left is not read.
                    Ok(Err(_)) => return Ok(()),
                    Err(_) => return Err(Cut::Broken(late("the host takes no more of a body"))),
                }
            }
            if ended {
                return Ok(());
            }
        }
    }
}

/// Sends a request of which there is all, and passes its answer on.
async fn whole<S: AsyncRead + AsyncWrite + Unpin>(
    gateway: &Gateway,
    line: &mut Option<Line>,
    mut ask: Ask<'_>,
    bytes: Bytes,
    (fresh, wanted): (bool, &Wanted<'_>),
    telling: Telling<'_>,
    writer: &mut Writer<S>,
) -> io::Result<Outcome> {
    if !bytes.is_empty() || matches!(ask.method, "POST" | "PUT" | "PATCH") {
        ask.headers.insert(header::CONTENT_LENGTH, bytes.len().into());
    }
    let body = || -> Body {
        if bytes.is_empty() {
            return Empty::new().map_err(|never| match never {}).boxed();
        }
        Full::new(bytes.clone()).map_err(|never| match never {}).boxed()
    };
    let mut answer = in_time(asked(line, ask.build(body())?)).await;
    // A connection that rested may have been closed meanwhile: then nothing was done.
    let untouched = |error: &hyper::Error| {
        error.is_canceled()
            || error.is_closed()
            || (error.is_incomplete_message() && matches!(ask.method, "GET" | "HEAD"))
    };
    if !fresh && matches!(&answer, Err(Failed::Http(error)) if untouched(error)) {
        match gateway.outside.line(wanted.place, wanted.tls).await {
            Ok(made) => *line = Some(made),
            Err(unreached) => return Ok(unreached.into()),
        }
        answer = in_time(asked(line, ask.build(body())?)).await;
    }
    match answer {
        Ok(answer) => telling.pass(answer, writer).await,
        Err(failed) => Ok(failed.into()),
    }
}

/// Sends a request as its body comes, and passes its answer on, which may begin before that ends.
async fn pieces<S: AsyncRead + AsyncWrite + Unpin>(
    line: &mut Option<Line>,
    mut ask: Ask<'_>,
    (swap, length): (Swap, Length),
    mut outgoing: Outgoing<'_, S>,
    telling: Telling<'_>,
    writer: &mut Writer<S>,
) -> io::Result<Outcome> {
    match length {
        Length::Of(bytes) => ask.headers.insert(header::CONTENT_LENGTH, bytes.into()),
        _ => ask.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked")),
    };
    let (to, pieces) = mpsc::channel(ON_THE_WAY);
    let request = ask.build(StreamBody::new(ReceiverStream::new(pieces)).boxed())?;
    let begun = AtomicBool::new(false);
    let answering = async {
        match asked(line, request).await {
            Ok(answer) => {
                begun.store(true, Ordering::Relaxed);
                telling.pass(answer, writer).await
            }
            Err(failed) => Ok(failed.into()),
        }
    };
    let (mut answering, mut pumping) = (pin!(answering), pin!(outgoing.pump(swap, to)));
    let mut pumped = false;
    loop {
        tokio::select! {
            biased;
            done = &mut pumping, if !pumped => match done {
                Ok(()) => pumped = true,
                Err(Cut::Refused(why)) if !begun.load(Ordering::Relaxed) => return Ok(refused(why)),
                Err(Cut::Refused(why)) => return Err(io::Error::other(why)),
                Err(Cut::Broken(error)) => return Err(error),
            },
            done = &mut answering => return done,
            () = tokio::time::sleep(STALLED), if pumped && !begun.load(Ordering::Relaxed) => {
                return Ok(Failed::Late.into());
            }
        }
    }
}

/// Why there is no answer.
enum Failed {
    Http(hyper::Error),
    Late,
}

impl From<Failed> for Outcome {
    fn from(failed: Failed) -> Self {
        Self::Gone(match failed {
            Failed::Http(error) => format!("it gives no answer that can be read: {error}"),
            Failed::Late => "it does not answer".to_owned(),
        })
    }
}

async fn asked(line: &mut Option<Line>, request: Request<Body>) -> Result<Response<Incoming>, Failed> {
    let Some(line) = line else { return Err(Failed::Late) };
    line.to.send_request(request).await.map_err(Failed::Http)
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    tokio::time::timeout(STALLED, answer).await.unwrap_or(Err(Failed::Late))
}
