//! Work on a session's files, by records over a stream.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use karta_guest::proto::message::{Base, Request};
use karta_guest::proto::record::{Decoder, Item};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Link;
use super::link::io_error;
use super::sandbox::PATIENCE;
use super::stream::Joined;
use crate::Error;

/// The number by which a guest says that the session put something in the way of a path.
const ESCAPE: i32 = 18;

/// Items of a guest.
pub(super) struct Items {
    pub(super) stream: Joined,
    decoder: Decoder,
}

impl Items {
    pub(super) fn new(stream: Joined) -> Self {
        Self { stream, decoder: Decoder::default() }
    }

    /// The next item. That none comes is a failure: the last one says that it is the last.
    pub(super) async fn next(&mut self, link: &Link) -> Result<Item, Error> {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.decoder.next_item() {
                Ok(Some(item)) => return Ok(item),
                Ok(None) => {}
                Err(malformed) => return Err(broken(link, malformed.0)),
            }
            match self.stream.read(&mut buffer).await {
                Ok(0) => {
                    return Err(Error::Unavailable("work on the session's files ended early".to_owned()));
                }
                Ok(length) => self.decoder.push(&buffer[..length]),
                Err(_) => return Err(link.gone()),
            }
        }
    }
}

/// The guest lies: nothing more is believed.
pub(super) fn broken(link: &Link, what: &str) -> Error {
    let reason = format!("the program inside the sandbox broke the protocol: {what}");
    link.close(&reason);
    Error::Unavailable(reason)
}

pub(super) async fn put(
    link: &Link,
    base: Base,
    relative: &Path,
    path: &Path,
    content: &[u8],
) -> Result<(), Error> {
    let request =
        Request::Put { base, path: relative.as_os_str().as_bytes().to_vec(), size: content.len() as u64 };
    let failed = |source| Error::File { doing: "writing", path: path.to_owned(), source };
    let stream = link.stream(&request, PATIENCE).await?.map_err(|failure| failed(io_error(failure)))?;
    let mut items = Items::new(stream);
    // If the guest takes no more, it says why.
    let _ = items.stream.write_all(content).await;
    let _ = items.stream.shutdown().await;
    match items.next(link).await? {
        Item::End => Ok(()),
        Item::Failed(failure) if failure.errno == ESCAPE => Err(Error::Escape(path.display().to_string())),
        Item::Failed(failure) => Err(failed(io_error(failure))),
        _ => Err(broken(link, "it answers what was not asked")),
    }
}
