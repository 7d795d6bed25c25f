//! Work on a session's files, by items over a stream.

mod export;
mod state;

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use karta_guest::proto::message::{Base, Failure, Request};
use karta_guest::proto::record::{Decoder, Item, Kind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub(super) use export::export;
pub(super) use state::{restore, survey, take};

use super::Link;
use super::link::io_error;
use super::sandbox::PATIENCE;
use super::stream::Joined;
use crate::Error;
use crate::paths::Pattern;

/// The number by which a guest says that the session put something in the way of a path.
const ESCAPE: i32 = 18;
/// Most files a search answers.
const FOUND: usize = 256;
/// Most bytes of all of them.
const FOUND_BYTES: u64 = 512 << 20;

/// How long writing a file, or searching, may take: the session can stop what does it, as it does so with the session's rights.
const WORK: Duration = Duration::from_mins(2);
/// How much is read at once.
const BUFFER: usize = 64 << 10;

/// Items of a guest.
struct Items {
    stream: Joined,
    decoder: Decoder,
    buffer: Vec<u8>,
    link: Link,
}

impl Items {
    /// Asks for work on files.
    async fn ask(link: &Link, request: &Request, failed: &Failed<'_>) -> Result<Self, Error> {
        let stream = link.stream(request, PATIENCE).await?.map_err(|failure| failed.error(failure))?;
        Ok(Self { stream, decoder: Decoder::default(), buffer: vec![0; BUFFER], link: link.clone() })
    }

    /// The next item. That none comes is a failure: the last one says that it is the last.
    async fn next(&mut self) -> Result<Item, Error> {
        loop {
            match self.decoder.next_item() {
                Ok(Some(item)) => return Ok(item),
                Ok(None) => {}
                Err(malformed) => return Err(self.broken(malformed.0)),
            }
            match self.stream.read(&mut self.buffer).await {
                Ok(0) => {
                    return Err(Error::Unavailable("work on the session's files ended early".to_owned()));
                }
                Ok(length) => self.decoder.push(&self.buffer[..length]),
                Err(_) => return Err(self.link.gone()),
            }
        }
    }

    /// Sends one. False if the guest takes no more: then it says why.
    async fn send(&mut self, item: &Item) -> bool {
        let mut bytes = Vec::new();
        item.encode(&mut bytes);
        self.stream.write_all(&bytes).await.is_ok()
    }

    /// The guest lies: nothing more of it is believed.
    fn broken(&self, what: &str) -> Error {
        let reason = format!("the program inside the sandbox broke the protocol: {what}");
        self.link.close(&reason);
        Error::Unavailable(reason)
    }

    /// That nothing follows but the end.
    async fn end(&mut self, failed: &Failed<'_>) -> Result<(), Error> {
        match self.next().await? {
            Item::End => Ok(()),
            Item::Failed(failure) => Err(failed.error(failure)),
            _ => Err(self.broken("it answers what was not asked")),
        }
    }
}

/// What was being done where, for errors.
struct Failed<'a>(&'static str, &'a Path);

impl Failed<'_> {
    fn error(&self, failure: Failure) -> Error {
        if failure.errno == ESCAPE {
            return Error::Escape(self.1.display().to_string());
        }
        Error::File { doing: self.0, path: self.1.to_owned(), source: io_error(failure) }
    }
}

/// Does work that somebody waits for, who has no other limit.
async fn in_time<T>(failed: &Failed<'_>, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(WORK, work).await.unwrap_or_else(|_| {
        let text = "it took too long: a program of the session may have stopped it";
        let source = io::Error::new(io::ErrorKind::TimedOut, text);
        Err(Error::File { doing: failed.0, path: failed.1.to_owned(), source })
    })
}

/// Writes a file.
pub(super) async fn put(
    link: &Link,
    base: Base,
    relative: &Path,
    path: &Path,
    content: &[u8],
) -> Result<(), Error> {
    let failed = Failed("writing", path);
    let request =
        Request::Put { base, path: relative.as_os_str().as_bytes().to_vec(), size: content.len() as u64 };
    let work = async {
        let mut items = Items::ask(link, &request, &failed).await?;
        // If the guest takes no more, it says why.
        let _ = items.stream.write_all(content).await;
        let _ = items.stream.shutdown().await;
        items.end(&failed).await
    };
    in_time(&failed, work).await
}

/// The files of the home that match.
pub(super) async fn find(
    link: &Link,
    home: &Path,
    pattern: &str,
    limit: u64,
) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
    let failed = Failed("searching", home);
    in_time(&failed, search(link, home, pattern, limit, &failed)).await
}

async fn search(
    link: &Link,
    home: &Path,
    pattern: &str,
    limit: u64,
    failed: &Failed<'_>,
) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
    let wanted = crate::paths::pattern(pattern)?;
    let request = Request::Find { pattern: pattern.as_bytes().to_vec(), limit };
    let mut items = Items::ask(link, &request, failed).await?;
    let mut found: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    let (mut left, mut total) = (0, 0u64);
    loop {
        match items.next().await? {
            Item::Entry(entry) => {
                let path = crate::paths::plain(Path::new(std::ffi::OsStr::from_bytes(&entry.path)));
                let Some(path) = path.filter(|path| Pattern::matches(&wanted, path)) else {
                    return Err(items.broken("it found what was not looked for"));
                };
                let Kind::File { size } = entry.kind else {
                    return Err(items.broken("it found what is no file"));
                };
                if size > limit || found.len() == FOUND {
                    return Err(items.broken("it found more than was asked for"));
                }
                left = size;
                found.push((home.join(path), Vec::new()));
            }
            Item::Data(bytes) => {
                let length = bytes.len() as u64;
                let (Some((_, content)), true) = (found.last_mut(), length <= left) else {
                    return Err(items.broken("a file has more bytes than it said"));
                };
                left -= length;
                total += length;
                if total > FOUND_BYTES {
                    return Err(Error::Unavailable(format!(
                        "the files that match `{pattern}` have more than {FOUND_BYTES} bytes"
                    )));
                }
                content.extend(bytes);
            }
            Item::End => return Ok(found),
            Item::Failed(failure) => return Err(failed.error(failure)),
            Item::Path(_) => return Err(items.broken("it answers what was not asked")),
        }
    }
}
