//! The archive on its way up, and the build on its way down.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures_util::stream;
use karta_client::{Client, Publication, Publish, Published};
use karta_release::{Entry, Files, Hash, archive};
use karta_types::release::{Line, LogLine, Release};
use tokio::sync::mpsc;

use super::Sent;
use crate::printer::{DIM, FRAME, Printer, count, size, tame};

/// Pieces of this size go up.
const PIECE: usize = 64 << 10;
/// So many pieces wait for the network.
const WAITING: usize = 8;

/// Everything that one attempt needs.
pub(super) struct Upload<'a> {
    pub(super) client: &'a Client,
    pub(super) slug: &'a str,
    pub(super) path: &'a Path,
    pub(super) files: &'a Files,
    pub(super) how: &'a Publish,
    pub(super) printer: &'a Printer,
}

/// How far it is.
#[derive(Default)]
struct Progress {
    bytes: AtomicU64,
    whole: AtomicBool,
}

/// How many contents go up and how many bytes they are: the missing ones, or all files.
pub(super) fn amount(files: &Files, missing: Option<&BTreeSet<Hash>>) -> (u64, u64) {
    let mut seen = BTreeSet::new();
    let mut sum = (0, 0);
    for (_, entry) in files.iter() {
        if let Entry::File { hash, size, .. } = entry
            && missing.is_none_or(|missing| missing.contains(hash) && seen.insert(*hash))
        {
            sum = (sum.0 + 1, sum.1 + size);
        }
    }
    sum
}

impl Upload<'_> {
    /// Sends what is missing, or everything, and follows the build to its end.
    pub(super) async fn send(&self, missing: Option<BTreeSet<Hash>>) -> anyhow::Result<(Release, Sent)> {
        let (files, bytes) = amount(self.files, missing.as_ref());
        let what = format!("{files} of {}, {}", count(self.files.len() as u64, "file"), size(bytes));
        if files > 0 {
            self.printer.doing(format!("sending {what}"));
        }
        let progress = Arc::new(Progress::default());
        let (sender, pieces) = mpsc::channel(WAITING);
        let (path, all) = (self.path.to_owned(), self.files.clone());
        let packing = tokio::task::spawn_blocking(move || {
            let mut to = Pieces { sender, piece: Vec::with_capacity(PIECE) };
            let packed = archive::pack(&path, &all, missing.as_ref(), &mut to).and_then(|()| to.flush());
            if let Err(why) = &packed {
                // The request must not end as if it were whole.
                to.break_off(why);
            }
            packed
        });
        let publication = self.client.publish(self.slug, self.how, counted(pieces, Arc::clone(&progress)))?;
        let followed = self.printer.working(self.follow(publication, &what, &progress)).await;
        // That it could not be packed is why the rest failed; that nobody wanted more of it is not.
        match packing.await.context("packing the folder")? {
            Err(why) if why.kind() != io::ErrorKind::BrokenPipe => {
                return Err(anyhow::Error::new(why).context("packing the folder"));
            }
            _ => {}
        }
        Ok((followed?, Sent { files, bytes: progress.bytes.load(Ordering::Relaxed) }))
    }

    async fn follow(
        &self,
        mut publication: Publication,
        what: &str,
        progress: &Progress,
    ) -> anyhow::Result<Release> {
        let mut tick = tokio::time::interval(FRAME);
        loop {
            tokio::select! {
                next = publication.next() => match next {
                    Some(Ok(Published::Log(line))) => self.show(&line),
                    Some(Ok(Published::Release(release))) => return Ok(*release),
                    Some(Err(error)) => return Err(error.into()),
                    None => bail!("the server did not say what became of the release"),
                },
                _ = tick.tick() => {
                    let sent = size(progress.bytes.load(Ordering::Relaxed));
                    self.printer.progress(if progress.whole.load(Ordering::Relaxed) {
                        format!("{sent} sent; the server checks and builds")
                    } else {
                        format!("sending {what}: {sent} packed and sent")
                    });
                }
            }
        }
    }

    fn show(&self, line: &LogLine) {
        if let Line::Build { text } = &line.line {
            self.printer.note(&format!("  {DIM}build │{DIM:#} {}", tame(text.trim_end())));
        }
    }
}

/// The pieces, counted as they go.
fn counted(
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    progress: Arc<Progress>,
) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold((pieces, progress), |(mut pieces, progress)| async move {
        let Some(piece) = pieces.recv().await else {
            progress.whole.store(true, Ordering::Relaxed);
            return None;
        };
        let length = piece.as_ref().map_or(0, Bytes::len);
        progress.bytes.fetch_add(length as u64, Ordering::Relaxed);
        Some((piece, (pieces, progress)))
    })
}

/// What is written comes out in pieces, no faster than they are taken.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
}

impl Pieces {
    fn break_off(&self, why: &io::Error) {
        // Whoever took the pieces may be gone; then that is broken off already.
        let _ = self.sender.blocking_send(Err(io::Error::new(why.kind(), why.to_string())));
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        let sent = self.sender.blocking_send(Ok(Bytes::from(piece)));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_comes_out_whole_and_in_bounded_pieces() {
        let (sender, mut pieces) = mpsc::channel(WAITING);
        let written: Vec<u8> = (0..200_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        let mut to = Pieces { sender, piece: Vec::new() };
        to.write_all(&written).unwrap();
        to.flush().unwrap();
        drop(to);
        let mut read = Vec::new();
        while let Ok(piece) = pieces.try_recv() {
            let piece = piece.unwrap();
            assert!(piece.len() <= PIECE);
            read.extend_from_slice(&piece);
        }
        assert!(read == written);
    }

    #[test]
    fn a_reader_that_is_gone_ends_the_writing() {
        let (sender, pieces) = mpsc::channel(WAITING);
        drop(pieces);
        let mut to = Pieces { sender, piece: Vec::new() };
        assert_eq!(to.write_all(&vec![0; 2 * PIECE]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
