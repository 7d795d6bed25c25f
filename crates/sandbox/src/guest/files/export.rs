//! The workspace as it is now, into a folder of the host.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use karta_guest::beneath::Folder;
use karta_guest::paths::stays;
use karta_guest::proto::message::Request;
use karta_guest::proto::record::{Entry, Item, Kind};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use super::{Failed, Items};
use crate::Error;
use crate::guest::Link;
use crate::paths::plain;

/// Most paths of a workspace.
const PATHS: usize = 200_000;
/// Most bytes of a workspace.
const BYTES: u64 = 16 << 30;
/// How many items wait for the disk.
const WAITING: usize = 16;
/// The owner's right to execute.
const EXECUTE: u32 = 0o100;

/// Copies the workspace into an empty folder.
pub(in crate::guest) async fn export(link: &Link, into: &Path) -> Result<(), Error> {
    let failed = Failed("copying the workspace to", into);
    let mut items = Items::ask(link, &Request::Export, &failed).await?;
    let _ = items.stream.shutdown().await;
    let (sender, receiver) = mpsc::channel(WAITING);
    let folder = into.to_owned();
    let writing = tokio::task::spawn_blocking(move || write(&folder, receiver));
    let read = read(&mut items, &sender, &failed).await;
    drop(sender);
    let written = match writing.await {
        Ok(written) => written,
        Err(error) => Err(io::Error::other(error)),
    };
    // If the disk failed, that is why nothing more was read.
    written.map_err(|source| Error::File { doing: failed.0, path: into.to_owned(), source })?;
    read
}

/// Passes on what the guest sends, once it is known to be harmless.
async fn read(items: &mut Items, to: &mpsc::Sender<Item>, failed: &Failed<'_>) -> Result<(), Error> {
    let (mut paths, mut bytes, mut left) = (0, 0u64, 0u64);
    loop {
        let item = items.next().await?;
        match &item {
            Item::Entry(entry) => {
                paths += 1;
                left = match entry.kind {
                    Kind::File { size } => size,
                    Kind::Folder { .. } | Kind::Link { .. } => 0,
                    Kind::Removed => return Err(items.broken("what was removed is there")),
                };
                bytes = bytes.saturating_add(left);
                if paths > PATHS || bytes > BYTES {
                    return Err(Error::Unavailable(format!(
                        "the workspace is too big to copy (more than {PATHS} paths or {BYTES} bytes): remove what is not needed"
                    )));
                }
                let given = Path::new(OsStr::from_bytes(&entry.path));
                if plain(given).is_none_or(|path| path != given) || entry.path.contains(&0) {
                    return Err(items.broken("a path is not plain"));
                }
            }
            Item::Data(piece) => match left.checked_sub(piece.len() as u64) {
                Some(rest) => left = rest,
                None => return Err(items.broken("a file has more bytes than it said")),
            },
            Item::End => return Ok(()),
            Item::Failed(failure) => return Err(failed.error(failure.clone())),
            Item::Path(_) => return Err(items.broken("it answers what was not asked")),
        }
        if to.send(item).await.is_err() {
            return Ok(());
        }
    }
}

fn write(into: &Path, mut items: mpsc::Receiver<Item>) -> io::Result<()> {
    let top = Folder::open(into)?;
    let mut file: Option<File> = None;
    while let Some(item) = items.blocking_recv() {
        match item {
            Item::Entry(entry) => file = one(&top, &entry)?,
            Item::Data(bytes) => {
                if let Some(file) = &mut file {
                    file.write_all(&bytes)?;
                }
            }
            Item::Path(_) | Item::End | Item::Failed(_) => {}
        }
    }
    Ok(())
}

/// Makes one thing; a file stays open for its bytes. Whatever the order of the guest, nothing that is there is replaced, and no link
/// is followed.
fn one(top: &Folder, entry: &Entry) -> io::Result<Option<File>> {
    let path = PathBuf::from(OsStr::from_bytes(&entry.path));
    let (holder, name) = top.holder(&path, true)?;
    match &entry.kind {
        Kind::File { .. } => return Ok(Some(holder.create(name, entry.mode & EXECUTE != 0)?)),
        Kind::Folder { .. } => {
            holder.make(name)?;
        }
        Kind::Link { target } => {
            let target = OsStr::from_bytes(target);
            if stays(path.parent().unwrap_or_else(|| Path::new("")), Path::new(target)) {
                holder.link(name, target)?;
            } else {
                tracing::warn!(path = %path.display(), "left out of the copy: a link that leads out of the workspace");
            }
        }
        Kind::Removed => {}
    }
    Ok(None)
}
