//! What comes back: passed on as it comes, without what secrets stand for.

use std::io;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};
use karta_types::egress::Place;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Gateway;
use super::exchange::Outcome;
use super::guest::{STALLED, Writer, late};
use super::head;

/// How an answer is passed on.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about the request")]
pub(super) struct Telling<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) place: &'a Place,
    /// Whether a secret may have gone there.
    pub(super) secret: bool,
    /// Whether it has a head only.
    pub(super) headless: bool,
    /// Whether the program knows chunks.
    pub(super) chunks: bool,
    /// Whether the program may ask again.
    pub(super) goes_on: bool,
}

/// How long an answer's body is said to be.
enum Said {
    Nothing,
    Length,
    Chunks,
    ToTheEnd,
}

impl Telling<'_> {
    /// Passes an answer on, whole.
    pub(super) async fn pass<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        answer: Response<Incoming>,
        writer: &mut Writer<S>,
    ) -> io::Result<Outcome> {
        let (parts, mut body) = answer.into_parts();
        let status = parts.status;
        if status.is_informational() {
            return Ok(Outcome::Gone("it wants to speak something else than HTTP".to_owned()));
        }
        let coded = parts.headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
        if self.secret && coded && !self.headless {
            // What can't be read here could hold a secret.
            return Ok(Outcome::Gone("it answers in a coding that was not asked for".to_owned()));
        }
        let mut swap = self.gateway.secrets.coming(self.place);
        let length = parts.headers.get(header::CONTENT_LENGTH).cloned();
        let mut headers = cleaned(parts.headers);
        if self.secret {
            self.gateway.secrets.take_out(&mut headers, self.place);
        }
        let looked = self.secret && !swap.is_idle();
        let said = if self.headless || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            if let Some(length) = length.filter(|_| self.headless) {
                headers.insert(header::CONTENT_LENGTH, length);
            }
            Said::Nothing
        } else if let Some(length) = body.size_hint().exact().filter(|_| !looked) {
            headers.insert(header::CONTENT_LENGTH, length.into());
            Said::Length
        } else if self.chunks {
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            Said::Chunks
        } else {
            Said::ToTheEnd
        };
        let goes_on = self.goes_on && !matches!(said, Said::ToTheEnd);
        if !goes_on {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        } else if !self.chunks {
            headers.insert(header::CONNECTION, HeaderValue::from_static("keep-alive"));
        }
        writer.head(status, &headers).await?;
        while let Some(piece) = next(&mut body).await? {
            let piece = if looked { Bytes::from(swap.piece(&piece).map_err(never)?) } else { piece };
            put(&said, &piece, writer).await?;
        }
        if looked {
            put(&said, &swap.end().map_err(never)?, writer).await?;
        }
        if matches!(said, Said::Chunks) {
            writer.write(b"0\r\n\r\n").await?;
        }
        Ok(Outcome::Done { goes_on })
    }
}

/// Nothing that comes back is refused: it is taken out.
fn never(_: super::swap::Found) -> io::Error {
    io::Error::other("an answer can't be looked through")
}

/// The next piece of a body. What comes after it (trailers) is left out.
async fn next(body: &mut Incoming) -> io::Result<Option<Bytes>> {
    loop {
        let frame =
            tokio::time::timeout(STALLED, body.frame()).await.map_err(|_| late("an answer stalls"))?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => return Err(io::Error::other(error)),
            Some(Ok(frame)) => {
                if let Ok(piece) = frame.into_data() {
                    return Ok(Some(piece));
                }
            }
        }
    }
}

async fn put<S: AsyncRead + AsyncWrite + Unpin>(
    said: &Said,
    piece: &[u8],
    writer: &mut Writer<S>,
) -> io::Result<()> {
    match said {
        _ if piece.is_empty() => Ok(()),
        Said::Nothing => Ok(()),
        Said::Length | Said::ToTheEnd => writer.write(piece).await,
        Said::Chunks => {
            let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
            chunk.extend_from_slice(piece);
            chunk.extend_from_slice(b"\r\n");
            writer.write(&chunk).await
        }
    }
}

/// The headers of an answer without those that say how it comes, or where else to ask.
fn cleaned(mut headers: HeaderMap) -> HeaderMap {
    head::strip(&mut headers);
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::ALT_SVC);
    headers
}
