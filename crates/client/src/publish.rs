//! Publishing: a folder's archive goes up, what the build prints comes down.

use std::fmt;

use bytes::Bytes;
use futures_util::Stream;
use karta_types::Problem;
use karta_types::release::{Hashes, LogLine, Release};
use reqwest::{Body, Method, Request};
use serde::de::DeserializeOwned;

use crate::client::{Client, append};
use crate::error::Error;
use crate::frames::{Ask, Frames};
use crate::sse::Frame;

const DOING: &str = "publishing";
/// How many contents are asked after at once.
const HASHES: usize = 8192;

/// How a release is to be published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publish {
    /// Whether it takes new turns at once.
    pub activate: bool,
    /// The preview it is for; it is not made active then.
    pub preview: Option<String>,
    /// The commit it was made of.
    pub commit: Option<String>,
    /// What to say of it.
    pub message: Option<String>,
}

/// What comes while a release is made.
#[derive(Debug, Clone, PartialEq)]
pub enum Published {
    /// Its setup printed a line.
    Log(LogLine),
    /// It is made; the last thing that comes.
    Release(Box<Release>),
}

/// A release on its way. Ask with [`Publication::next`]; nothing is sent before the first time.
pub struct Publication {
    upload: Upload,
    frames: Frames,
}

/// The request, until it is sent: an archive that streams can't be sent twice.
struct Upload(Option<Request>);

impl fmt::Debug for Publication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publication").finish_non_exhaustive()
    }
}

impl Client {
    /// Which of these contents (SHA-256, hexadecimal) the server lacks: those that an archive must carry.
    ///
    /// # Errors
    /// `not_found` while there is no such project (send everything then), or the way there or back failing.
    pub async fn missing(&self, project: &str, hashes: &[String]) -> Result<Vec<String>, Error> {
        let mut missing = Vec::new();
        for some in hashes.chunks(HASHES) {
            let url = self.url(&["projects", project, "releases", "missing"]);
            let request = self.request(Method::POST, url).json(&Hashes { hashes: some.to_vec() });
            let answer: Hashes = self.json("asking which files are missing", request).await?;
            missing.extend(answer.hashes);
        }
        Ok(missing)
    }

    /// Publishes an archive (tar, tar.gz or tar.zst) as a release of `project`, which is made if it is not there.
    ///
    /// # Errors
    /// [`Error::Usage`] if the request can't be made.
    pub fn publish<S, E>(&self, project: &str, how: &Publish, archive: S) -> Result<Publication, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let mut url = self.url(&["projects", project, "releases"]);
        append(&mut url, &[("activate", Some(how.activate.to_string())), ("preview", how.preview.clone())]);
        let mut request = self
            .request(Method::POST, url)
            .header("accept", "text/event-stream")
            .header("content-type", "application/octet-stream");
        for (name, value) in [("karta-commit", &how.commit), ("karta-message", &how.message)] {
            if let Some(value) = value {
                request = request.header(name, escape(value));
            }
        }
        let request = request.body(Body::wrap_stream(archive)).build();
        let request = request.map_err(|why| Error::Usage(format!("making the request: {why}")))?;
        Ok(Publication { upload: Upload(Some(request)), frames: Frames::once(self.clone()) })
    }
}

impl Publication {
    /// The next line, or the release; `None` after the release. An error is the last thing that comes.
    ///
    /// # Errors
    /// The server's refusal, or the way there or back failing: then the server may still have made the release.
    pub async fn next(&mut self) -> Option<Result<Published, Error>> {
        loop {
            let taken = match self.frames.next(&mut self.upload).await? {
                Ok(frame) => take(frame),
                Err(error) => Err(error),
            };
            match taken {
                Ok(None) => {}
                Ok(Some(Published::Log(line))) => return Some(Ok(Published::Log(line))),
                Ok(last @ Some(Published::Release(_))) => {
                    self.frames.end();
                    return last.map(Ok);
                }
                Err(error) => {
                    self.frames.end();
                    return Some(Err(error));
                }
            }
        }
    }
}

impl Ask for Upload {
    fn doing(&self) -> &'static str {
        DOING
    }

    fn request(&mut self, _client: &Client) -> Result<Request, Error> {
        self.0.take().ok_or_else(|| Error::Usage("an archive is sent once".to_owned()))
    }

    fn again(&self, _error: &Error, _failed: u32) -> bool {
        false
    }
}

fn take(frame: Frame) -> Result<Option<Published>, Error> {
    let Frame::Event { name, data, .. } = frame else { return Ok(None) };
    Ok(match name.as_deref() {
        Some("log") => Some(Published::Log(parse(&data)?)),
        Some("release") => Some(Published::Release(parse(&data)?)),
        Some("error") => return Err(Error::Problem(Box::new(parse::<Problem>(&data)?))),
        // Of a newer server.
        _ => None,
    })
}

fn parse<T: DeserializeOwned>(data: &str) -> Result<T, Error> {
    serde_json::from_str(data)
        .map_err(|why| Error::protocol(DOING, format!("the answer is not what was expected: {why}")))
}

/// Percent-encoded: a header holds ASCII alone.
fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            // Writing to a text never fails.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_header_holds_any_text() {
        assert_eq!(super::escape("v1.2-dirty"), "v1.2-dirty");
        assert_eq!(super::escape("Grüße: 100 %\r\n"), "Gr%C3%BC%C3%9Fe%3A%20100%20%25%0D%0A");
    }
}
