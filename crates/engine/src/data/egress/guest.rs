//! The connection of a program in a sandbox: requests out of it, answers into it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use hyper::header::HeaderMap;
use hyper::{StatusCode, header};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, ReadHalf, WriteHalf};

use super::head::{self, Head, Length};

/// How long a head may take to come, once it began, and a connection to be used at all.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// How long a connection may rest between two requests.
const REST: Duration = Duration::from_secs(90);
/// How long nothing may move in the middle of something.
pub(super) const STALLED: Duration = Duration::from_mins(10);
/// How long the end of a refused request is waited for.
const PARTING: Duration = Duration::from_secs(2);
/// What is read at once.
const PIECE: usize = 32 << 10;
/// The longest line between chunks.
const LINE: usize = 4 << 10;
/// The most lines after the last chunk.
const TRAILERS: usize = 32;

/// A deadline passed.
pub(super) fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what.to_owned())
}

/// What is read of the connection.
#[derive(Debug)]
pub(super) struct Reader<S> {
    half: ReadHalf<S>,
    read: BytesMut,
}

/// What is written to it.
#[derive(Debug)]
pub(super) struct Writer<S> {
    half: WriteHalf<S>,
}

/// Both sides of a connection.
pub(super) fn split<S: AsyncRead + AsyncWrite>(stream: S) -> (Reader<S>, Writer<S>) {
    let (read, write) = tokio::io::split(stream);
    (Reader { half: read, read: BytesMut::new() }, Writer { half: write })
}

/// The connection again, with what was read of it and not used.
pub(super) fn join<S: AsyncRead + AsyncWrite + Unpin>(reader: Reader<S>, writer: Writer<S>) -> Rest<S> {
    Rest { before: reader.read.freeze(), stream: reader.half.unsplit(writer.half) }
}

/// Why there is no head.
#[derive(Debug)]
pub(super) enum NoHead {
    /// The other side ended between requests.
    Ended,
    /// It can't be read: what is wrong with it.
    Wrong(&'static str),
    /// The connection failed.
    Failed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Reader<S> {
    async fn more(&mut self) -> io::Result<usize> {
        self.read.reserve(PIECE);
        self.half.read_buf(&mut self.read).await
    }

    /// The next request's head.
    pub(super) async fn head(&mut self, first: bool) -> Result<Head, NoHead> {
        if self.read.is_empty() {
            let patience = if first { PATIENCE } else { REST };
            match tokio::time::timeout(patience, self.more()).await {
                Ok(Ok(0)) | Err(_) => return Err(NoHead::Ended),
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return Err(NoHead::Failed),
            }
        }
        let whole = async {
            // What was looked through already is not again: it may come byte by byte.
            let mut looked = 0;
            loop {
                let some = &self.read[..self.read.len().min(head::LONGEST)];
                if let Some(end) = head::end(some.get(looked..).unwrap_or_default()) {
                    let head = self.read.split_to(looked + end);
                    return head::read(&head).map_err(NoHead::Wrong);
                }
                if some.len() >= head::LONGEST {
                    return Err(NoHead::Wrong("its head is too long"));
                }
                looked = some.len().saturating_sub(3);
                match self.more().await {
                    Ok(0) | Err(_) => return Err(NoHead::Failed),
                    Ok(_) => {}
                }
            }
        };
        let whole = tokio::time::timeout(PATIENCE, whole).await;
        whole.unwrap_or(Err(NoHead::Wrong("its head takes too long to come")))
    }

    /// The next piece of a body, none at its end. `left` is what is left of it.
    pub(super) async fn piece(&mut self, left: &mut Left) -> io::Result<Option<Bytes>> {
        tokio::time::timeout(STALLED, self.next_piece(left))
            .await
            .unwrap_or_else(|_| Err(late("a body stalls")))
    }

    async fn next_piece(&mut self, left: &mut Left) -> io::Result<Option<Bytes>> {
        if left.chunked && left.bytes == 0 && !left.ended {
            if left.begun {
                self.line_end().await?;
            }
            left.begun = true;
            left.bytes = head::chunk(&self.line().await?)?;
            if left.bytes == 0 {
                self.trailers().await?;
                left.ended = true;
            }
        }
        if left.bytes == 0 {
            left.ended = true;
            return Ok(None);
        }
        if self.read.is_empty() && self.more().await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let most = usize::try_from(left.bytes).unwrap_or(usize::MAX).min(self.read.len());
        let piece = self.read.split_to(most).freeze();
        left.bytes -= piece.len() as u64;
        left.ended = !left.chunked && left.bytes == 0;
        Ok(Some(piece))
    }

    /// Reads on to the end, so that an answer that was just written is not lost with what was not read. Not for long.
    pub(super) async fn read_over(&mut self, most: usize) {
        let all = async {
            let mut read = 0;
            while read <= most {
                self.read.clear();
                match self.more().await {
                    Ok(0) | Err(_) => return,
                    Ok(some) => read += some,
                }
            }
        };
        // What is not read in time is left: the answer was sent, and the connection ends.
        let _ = tokio::time::timeout(PARTING, all).await;
    }

    /// A line, without its end.
    async fn line(&mut self) -> io::Result<BytesMut> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\r\n") {
                let line = self.read.split_to(end);
                self.read.advance(2);
                return Ok(line);
            }
            if self.read.len() > LINE {
                return Err(io::Error::other("a line between chunks is too long"));
            }
            if self.more().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn line_end(&mut self) -> io::Result<()> {
        if self.line().await?.is_empty() {
            Ok(())
        } else {
            Err(io::Error::other("a chunk is longer than it says"))
        }
    }

    /// What comes after the last chunk is read over.
    async fn trailers(&mut self) -> io::Result<()> {
        for _ in 0..TRAILERS {
            if self.line().await?.is_empty() {
                return Ok(());
            }
        }
        Err(io::Error::other("too much comes after the last chunk"))
    }
}

/// What is left of a body.
#[derive(Debug)]
pub(super) struct Left {
    chunked: bool,
    begun: bool,
    bytes: u64,
    /// Whether all of it was read.
    pub(super) ended: bool,
}

impl Left {
    pub(super) const fn of(length: Length) -> Self {
        match length {
            Length::None => Self { chunked: false, begun: false, bytes: 0, ended: true },
            Length::Of(bytes) => Self { chunked: false, begun: false, bytes, ended: false },
            Length::Chunked => Self { chunked: true, begun: false, bytes: 0, ended: false },
        }
    }
}

impl<S: AsyncRead + AsyncWrite> Writer<S> {
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = async {
            self.half.write_all(bytes).await?;
            self.half.flush().await
        };
        tokio::time::timeout(STALLED, written).await.unwrap_or_else(|_| Err(late("an answer is not taken")))
    }

    /// The head of an answer.
    pub(super) async fn head(&mut self, status: StatusCode, headers: &HeaderMap) -> io::Result<()> {
        let reason = status.canonical_reason().unwrap_or("Unknown");
        let mut head = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
        for (name, value) in headers {
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        self.write(&head).await
    }

    /// A whole answer of the gateway itself.
    pub(super) async fn say(&mut self, status: StatusCode, why: &str) -> io::Result<()> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        headers.insert(header::CONTENT_LENGTH, (why.len() + 1).into());
        self.head(status, &headers).await?;
        self.write(format!("{why}\n").as_bytes()).await?;
        self.half.shutdown().await
    }

    pub(super) async fn end(&mut self) {
        // Whoever is gone needs no goodbye.
        let _ = tokio::time::timeout(PATIENCE, self.half.shutdown()).await;
    }
}

/// A stream of which something was read already.
#[derive(Debug)]
pub(super) struct Rest<S> {
    before: Bytes,
    stream: S,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Rest<S> {
    /// Puts something that was read before all else.
    pub(super) fn put_back(self, read: Bytes) -> Rest<Self> {
        Rest { before: read, stream: self }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rest<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.before.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, into);
        }
        let most = into.remaining().min(self.before.len());
        into.put_slice(&self.before.split_to(most));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rest<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Reads a request with its body, sent in these pieces; what is left after it.
    fn read(pieces: Vec<Vec<u8>>) -> Result<(Vec<u8>, Vec<u8>), ()> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (mut inside, out) = tokio::io::duplex(7);
            let send = async {
                for piece in pieces {
                    if inside.write_all(&piece).await.is_err() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                drop(inside);
            };
            // When it is refused, the connection closes.
            let take = async move {
                let (mut reader, _writer) = split(out);
                let head = reader.head(true).await.map_err(drop)?;
                let (mut left, mut body) = (Left::of(head.length), Vec::new());
                while let Some(piece) = reader.piece(&mut left).await.map_err(drop)? {
                    body.extend_from_slice(&piece);
                }
                assert!(left.ended);
                let mut rest = reader.read.to_vec();
                while reader.more().await.map_err(drop)? > 0 {
                    rest = reader.read.to_vec();
                }
                Ok((body, rest))
            };
            let (taken, ()) = tokio::join!(take, send);
            taken
        })
    }

    fn cut(bytes: &[u8], mut cuts: Vec<usize>) -> Vec<Vec<u8>> {
        for cut in &mut cuts {
            *cut %= bytes.len() + 1;
        }
        cuts.sort_unstable();
        let mut from = 0;
        let mut pieces = Vec::new();
        for cut in cuts.into_iter().chain([bytes.len()]) {
            pieces.push(bytes[from..cut].to_vec());
            from = cut;
        }
        pieces
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_body_is_the_same_however_it_comes(
            chunks in proptest::collection::vec("[a-z\r\n]{1,9}", 0..5),
            cuts in proptest::collection::vec(any::<usize>(), 0..8),
        ) {
            let whole: String = chunks.concat();
            let mut chunked = String::from("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
            for chunk in &chunks {
                chunked.extend([&format!("{:x};e=1\r\n", chunk.len()), chunk, "\r\n"]);
            }
            chunked += "0\r\nT: 1\r\n\r\nNEXT";
            let plain = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{whole}NEXT", whole.len());
            for text in [chunked, plain] {
                let (body, rest) = read(cut(text.as_bytes(), cuts.clone())).unwrap();
                prop_assert_eq!(&body, whole.as_bytes());
                prop_assert_eq!(rest, b"NEXT");
            }
        }

        #[test]
        fn no_bytes_make_it_panic_or_wait(
            head in "(POST|GET) / HTTP/1.1\r\nHost: a\r\n(Content-Length: [0-9]{1,3}\r\n|Transfer-Encoding: chunked\r\n)?\r\n",
            body in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'3'), Just(b'f'), any::<u8>()], 0..80),
            cuts in proptest::collection::vec(any::<usize>(), 0..4),
        ) {
            let bytes = [head.as_bytes(), &body].concat();
            let _ = read(cut(&bytes, cuts));
        }
    }
}
