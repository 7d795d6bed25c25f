//! What a project did, line by line: builds and turns.

use std::fmt;

use karta_types::page::Page;
use karta_types::release::LogLine;
use reqwest::{Method, Request, Url};
use serde::Deserialize;

use crate::client::{Client, append};
use crate::error::Error;
use crate::frames::{Ask, Frames};
use crate::sse::Frame;

const DOING: &str = "following the log";

/// Every kind of line that [`LogLine`] can hold. Others come from a newer server and are passed over.
const KNOWN: &[&str] = &["build", "turn"];

/// Which lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// `build` or `turn`.
    pub kind: Option<String>,
    /// Of one release.
    pub version: Option<u64>,
    /// Those behind this place; without it, the newest.
    pub after: Option<String>,
    /// How many at most.
    pub limit: Option<u32>,
}

/// A log that goes on, whichever connections it comes over. Ask with [`LogStream::next`].
pub struct LogStream {
    place: Place,
    frames: Frames,
}

/// What was seen, and so what is asked for next.
struct Place {
    url: Url,
    after: Option<String>,
}

impl fmt::Debug for LogStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogStream").field("after", &self.place.after).finish_non_exhaustive()
    }
}

impl Client {
    /// Lines of a project's log, oldest first.
    ///
    /// # Errors
    /// The server's refusal, or the way there or back failing.
    pub async fn logs(&self, project: &str, filter: &LogFilter) -> Result<Page<LogLine>, Error> {
        let mut url = self.log(project, filter);
        append(&mut url, &[("after", filter.after.clone())]);
        self.json("reading the log", self.request(Method::GET, url)).await
    }

    /// Lines of a project's log as they come, for ever; at first those that [`Client::logs`] answers. Nothing is sent before the
    /// stream is first asked for a line.
    pub fn follow_logs(&self, project: &str, filter: &LogFilter) -> LogStream {
        let place = Place { url: self.log(project, filter), after: filter.after.clone() };
        LogStream { place, frames: Frames::new(self.clone()) }
    }

    fn log(&self, project: &str, filter: &LogFilter) -> Url {
        let mut url = self.url(&["projects", project, "logs"]);
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        append(
            &mut url,
            &[
                ("kind", filter.kind.clone()),
                ("version", number(filter.version)),
                ("limit", number(filter.limit.map(u64::from))),
            ],
        );
        url
    }
}

impl LogStream {
    /// Whether the connection is cut and being taken up again.
    pub const fn reconnecting(&self) -> bool {
        self.frames.reconnecting()
    }

    /// The next line; an error is the last thing a stream says. Safe to cancel.
    ///
    /// # Errors
    /// A refusal that repeating won't change, an answer that can't be read, or more failed attempts in a row than
    /// [`crate::Retry::attempts`].
    pub async fn next(&mut self) -> Option<Result<LogLine, Error>> {
        loop {
            let taken = match self.frames.next(&mut self.place).await? {
                Ok(frame) => self.place.take(frame),
                Err(error) => Err(error),
            };
            match taken {
                Ok(None) => {}
                Ok(Some(line)) => return Some(Ok(line)),
                Err(error) => {
                    self.frames.end();
                    return Some(Err(error));
                }
            }
        }
    }
}

impl Ask for Place {
    fn doing(&self) -> &'static str {
        DOING
    }

    fn request(&mut self, client: &Client) -> Result<Request, Error> {
        let mut url = self.url.clone();
        append(&mut url, &[("after", self.after.clone())]);
        let request = client.request(Method::GET, url).header("accept", "text/event-stream");
        request.build().map_err(|why| Error::transport(DOING, why))
    }

    fn again(&self, error: &Error, _failed: u32) -> bool {
        error.retryable()
    }
}

impl Place {
    fn take(&mut self, frame: Frame) -> Result<Option<LogLine>, Error> {
        #[derive(Deserialize)]
        struct Unknown {
            cursor: String,
            kind: String,
        }
        let Frame::Event { data, .. } = frame else { return Ok(None) };
        match serde_json::from_str::<LogLine>(&data) {
            Ok(line) => {
                self.after = Some(line.cursor.clone());
                Ok(Some(line))
            }
            Err(why) => match serde_json::from_str::<Unknown>(&data) {
                Ok(unknown) if !KNOWN.contains(&unknown.kind.as_str()) => {
                    self.after = Some(unknown.cursor);
                    Ok(None)
                }
                _ => Err(Error::protocol(DOING, format!("a line can't be read: {why}"))),
            },
        }
    }
}
