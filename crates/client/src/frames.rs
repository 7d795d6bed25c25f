//! Frames of a stream, whichever connections they come over.
//!
//! A connection that is cut or silent is taken up again, with a bounded back-off; how to ask for the rest is the caller's to say
//! ([`Ask`]). Safe to cancel: everything that is under way is held here and not in a future.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use reqwest::{Request, Response};

use crate::client::Client;
use crate::error::Error;
use crate::sse::{Decoder, Frame};

/// The longest event that is read, in bytes.
const MAX_EVENT: usize = 16 << 20;

/// How a stream is asked for, at first and again.
pub(crate) trait Ask {
    /// What is being done, for errors.
    fn doing(&self) -> &'static str;

    /// The request for everything that has not been seen.
    fn request(&mut self, client: &Client) -> Result<Request, Error>;

    /// Whether asking again can help after this error; `failed` attempts went before it.
    fn again(&self, error: &Error, failed: u32) -> bool;
}

enum State {
    Cut,
    Connecting(BoxFuture<'static, Result<Response, Error>>),
    Open(BoxStream<'static, reqwest::Result<Bytes>>),
    /// Nothing can be read on; said once.
    Broken(Error),
    Ended,
}

/// The frames, in order.
pub(crate) struct Frames {
    client: Client,
    /// Attempts in a row without hearing anything, before this gives up.
    attempts: u32,
    state: State,
    /// Failed attempts since the server was last heard.
    failed: u32,
    decoder: Decoder,
    /// Read and not yet given out.
    ready: VecDeque<Frame>,
}

impl Frames {
    /// Taken up again as often as the client's [`crate::Retry`] says.
    pub(crate) fn new(client: Client) -> Self {
        let attempts = client.retry.attempts;
        Self {
            client,
            attempts,
            state: State::Cut,
            failed: 0,
            decoder: Decoder::new(MAX_EVENT),
            ready: VecDeque::new(),
        }
    }

    /// Never taken up again: for what can't be asked for twice.
    pub(crate) fn once(client: Client) -> Self {
        Self { attempts: 0, ..Self::new(client) }
    }

    /// Whether the connection is cut and being taken up again.
    pub(crate) const fn reconnecting(&self) -> bool {
        self.failed > 0
    }

    /// Nothing more comes.
    pub(crate) fn end(&mut self) {
        self.state = State::Ended;
        self.ready.clear();
    }

    /// The next frame; an error is the last thing that comes.
    pub(crate) async fn next(&mut self, ask: &mut (dyn Ask + Send)) -> Option<Result<Frame, Error>> {
        let doing = ask.doing();
        loop {
            if let Some(frame) = self.ready.pop_front() {
                self.failed = 0;
                return Some(Ok(frame));
            }
            match &mut self.state {
                State::Ended => return None,
                State::Broken(_) => {
                    if let State::Broken(error) = std::mem::replace(&mut self.state, State::Ended) {
                        return Some(Err(error));
                    }
                }
                State::Cut => match ask.request(&self.client) {
                    Ok(request) => self.state = State::Connecting(self.connect(doing, request)),
                    Err(error) => self.state = State::Broken(error),
                },
                State::Connecting(connecting) => {
                    let connected = connecting.await;
                    match connected.and_then(|response| event_stream(doing, response)) {
                        Ok(response) => {
                            self.decoder = Decoder::new(MAX_EVENT);
                            self.state = State::Open(response.bytes_stream().boxed());
                        }
                        Err(error) if self.failed < self.attempts && ask.again(&error, self.failed) => {
                            self.cut();
                        }
                        Err(error) => self.state = State::Broken(error),
                    }
                }
                State::Open(bytes) => {
                    let chunk = tokio::time::timeout(self.client.retry.silence, bytes.next()).await;
                    if let Ok(Some(Ok(chunk))) = chunk {
                        let mut frames = Vec::new();
                        let broken = self.decoder.push(&chunk, &mut frames).err();
                        self.ready.extend(frames);
                        if let Some(broken) = broken {
                            // What was whole before the break still counts, but there is no way on.
                            self.state = State::Broken(Error::protocol(doing, broken.to_string()));
                        }
                    } else if self.failed < self.attempts {
                        self.cut();
                    } else {
                        let error = match chunk {
                            Ok(Some(Err(why))) => Error::transport(doing, why),
                            Ok(_) if self.attempts == 0 => {
                                Error::protocol(doing, "the server closed the stream before its end")
                            }
                            Ok(_) => Error::protocol(doing, "the server keeps closing the stream"),
                            Err(_) => Error::protocol(doing, "the server says nothing"),
                        };
                        self.state = State::Broken(error);
                    }
                }
            }
        }
    }

    fn cut(&mut self) {
        self.failed += 1;
        self.state = State::Cut;
    }

    /// Sends the request, after the pause that is due.
    fn connect(&self, doing: &'static str, request: Request) -> BoxFuture<'static, Result<Response, Error>> {
        let pause = self.failed.checked_sub(1).map(|attempt| self.client.retry.pause(attempt));
        let client = self.client.clone();
        async move {
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            client.execute(doing, request).await
        }
        .boxed()
    }
}

/// Whether what came is an event stream at all, and not a page of something in between.
fn event_stream(doing: &str, response: Response) -> Result<Response, Error> {
    let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.starts_with("text/event-stream") {
        return Ok(response);
    }
    Err(Error::Protocol {
        doing: doing.to_owned(),
        reason: format!("the answer is `{kind}` and no event stream"),
        status: Some(response.status().as_u16()),
    })
}
