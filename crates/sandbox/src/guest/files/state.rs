//! What a session has made or changed, out of the sandbox and back into it.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use karta_guest::proto::message::{Failure, Request};
use karta_guest::proto::record::{self, Item};
use karta_guest::proto::{CHUNK, message};
use tokio::io::AsyncWriteExt as _;

use super::{Failed, Items};
use crate::Error;
use crate::guest::Link;
use crate::paths::plain;
use crate::state::{Entry, HOME, Kind, Record, Records, WORK};

/// Most things of a session.
const THINGS: usize = 400_000;
/// Most bytes of all their paths and targets.
const TEXTS: usize = 96 << 20;

/// Reads an entry of a guest; the error says what is wrong with it.
fn entry(from: record::Entry) -> Result<Entry, &'static str> {
    let given = PathBuf::from(std::ffi::OsString::from_vec(from.path));
    let path = plain(&given).filter(|path| *path == given && path.as_os_str() == given.as_os_str());
    let path = path.ok_or("a path is not plain")?;
    let mut names = path.iter();
    let work = match names.next() {
        Some(top) if top == HOME => false,
        Some(top) if top == WORK => true,
        _ => return Err("a path is in no folder of the session"),
    };
    if names.next().is_none() || path.as_os_str().as_bytes().contains(&0) {
        return Err("a path is not plain");
    }
    let kind = match from.kind {
        record::Kind::File { size } if i64::try_from(size).is_ok() => Kind::File { size },
        record::Kind::File { .. } => return Err("a file is longer than any can be"),
        record::Kind::Folder { opaque } if work || !opaque => Kind::Folder { opaque },
        record::Kind::Link { target } if !target.is_empty() && !target.contains(&0) => {
            Kind::Link { target: PathBuf::from(std::ffi::OsString::from_vec(target)) }
        }
        record::Kind::Removed if work => Kind::Removed,
        _ => return Err("a thing is what it can't be"),
    };
    if from.mode > 0o777 {
        return Err("a mode says more than who may do what");
    }
    Ok(Entry { path, kind, mode: from.mode, stamp: from.stamp, modified: from.modified })
}

/// Keeps the order: sorted by path, folders before what they hold.
#[derive(Default)]
struct Order {
    last: Option<PathBuf>,
    /// The folders above what comes next.
    above: Vec<PathBuf>,
}

impl Order {
    fn fits(&mut self, entry: &Entry) -> bool {
        if self.last.as_ref().is_some_and(|last| *last >= entry.path) {
            return false;
        }
        self.last = Some(entry.path.clone());
        self.above.retain(|folder| entry.path.starts_with(folder));
        let parent = entry.path.parent();
        let known = parent == Some(Path::new(HOME))
            || parent == Some(Path::new(WORK))
            || parent == self.above.last().map(PathBuf::as_path);
        if matches!(entry.kind, Kind::Folder { .. }) {
            self.above.push(entry.path.clone());
        }
        known
    }
}

/// Everything that the session has made or changed.
pub(in crate::guest) async fn survey(link: &Link) -> Result<Vec<Entry>, Error> {
    let failed = Failed("looking for what the session changed in", Path::new(HOME));
    let mut items = Items::ask(link, &Request::Survey, &failed).await?;
    let _ = items.stream.shutdown().await;
    let (mut entries, mut order, mut texts) = (Vec::new(), Order::default(), 0);
    loop {
        match items.next().await? {
            Item::Entry(from) => {
                let entry = entry(from).map_err(|what| items.broken(what))?;
                if !order.fits(&entry) {
                    return Err(items.broken("what the session changed comes out of order"));
                }
                texts += entry.path.as_os_str().len();
                if let Kind::Link { target } = &entry.kind {
                    texts += target.as_os_str().len();
                }
                if entries.len() == THINGS || texts > TEXTS {
                    return Err(Error::Unavailable(format!(
                        "the session has more than {THINGS} files, or paths that are too long: remove what is not needed"
                    )));
                }
                entries.push(entry);
            }
            Item::End => return Ok(entries),
            Item::Failed(failure) => return Err(failed.error(failure)),
            Item::Data(_) | Item::Path(_) => return Err(items.broken("it answers what was not asked")),
        }
    }
}

/// Things with their content as they come.
struct Taking {
    items: Items,
    /// What was asked for and did not come yet.
    wanted: VecDeque<PathBuf>,
    /// How many bytes of the file that was named last may still come.
    left: u64,
}

/// Asks for things with their content.
pub(in crate::guest) async fn take(link: &Link, paths: Vec<PathBuf>) -> Result<Records, Error> {
    let failed = Failed("taking the files of", Path::new(HOME));
    for path in &paths {
        if plain(path).is_none() || path.as_os_str().len() > message::PATH {
            return Err(Error::Escape(path.display().to_string()));
        }
    }
    let mut items = Items::ask(link, &Request::Take, &failed).await?;
    // The guest reads all of it before it answers.
    for path in &paths {
        if !items.send(&Item::Path(path.as_os_str().as_bytes().to_vec())).await {
            break;
        }
    }
    items.send(&Item::End).await;
    let _ = items.stream.shutdown().await;
    let taking = Taking { items, wanted: paths.into(), left: 0 };
    Ok(stream::unfold(Some(taking), |taking| async {
        let mut taking = taking?;
        match taking.next().await {
            Ok(Some(record)) => Some((Ok(record), Some(taking))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed())
}

impl Taking {
    async fn next(&mut self) -> Result<Option<Record>, Error> {
        match self.items.next().await? {
            Item::Entry(from) => {
                let entry = entry(from).map_err(|what| self.items.broken(what))?;
                loop {
                    match self.wanted.pop_front() {
                        Some(path) if path == entry.path => break,
                        // It is gone meanwhile.
                        Some(_) => {}
                        None => return Err(self.items.broken("it gives what was not asked for")),
                    }
                }
                self.left = if let Kind::File { size } = entry.kind { size } else { 0 };
                Ok(Some(Record::Entry(entry)))
            }
            Item::Data(bytes) => match self.left.checked_sub(bytes.len() as u64) {
                Some(left) => {
                    self.left = left;
                    Ok(Some(Record::Data(Bytes::from(bytes))))
                }
                None => Err(self.items.broken("a file has more bytes than it said")),
            },
            Item::End => Ok(None),
            Item::Failed(failure) => Err(Failed("taking the files of", Path::new(HOME)).error(failure)),
            Item::Path(_) => Err(self.items.broken("it answers what was not asked")),
        }
    }
}

/// An entry of this side as one for the guest.
fn told(entry: Entry) -> record::Entry {
    let bytes = |path: PathBuf| path.into_os_string().into_vec();
    record::Entry {
        path: bytes(entry.path),
        kind: match entry.kind {
            Kind::File { size } => record::Kind::File { size },
            Kind::Folder { opaque } => record::Kind::Folder { opaque },
            Kind::Link { target } => record::Kind::Link { target: bytes(target) },
            Kind::Removed => record::Kind::Removed,
        },
        mode: entry.mode & 0o777,
        stamp: entry.stamp,
        modified: entry.modified,
    }
}

/// Puts things back.
pub(in crate::guest) async fn restore(link: &Link, mut records: Records) -> Result<(), Error> {
    let mut last = PathBuf::from(HOME);
    let mut items = Items::ask(link, &Request::Restore, &Failed("putting back", &last)).await?;
    'records: while let Some(record) = records.next().await {
        match record? {
            Record::Entry(entry) => {
                last.clone_from(&entry.path);
                let text = |path: &Path| path.as_os_str().len() > message::PATH;
                if text(&entry.path) || matches!(&entry.kind, Kind::Link { target } if text(target)) {
                    return Err(Error::Escape(last.display().to_string()));
                }
                if !items.send(&Item::Entry(told(entry))).await {
                    break;
                }
            }
            Record::Data(bytes) => {
                for piece in bytes.chunks(CHUNK) {
                    if !items.send(&Item::Data(piece.to_vec())).await {
                        break 'records;
                    }
                }
            }
        }
    }
    items.send(&Item::End).await;
    let _ = items.stream.shutdown().await;
    // The guest says itself which one it was.
    let home = Path::new(OsStr::new(HOME));
    match items.end(&Failed("putting back", home)).await {
        Err(Error::Escape(_)) => {
            let text = "a path of the records leads out of the session's place".to_owned();
            Err(Failed("putting back", &last).error(Failure { errno: 0, text }))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn given(path: &[u8], kind: record::Kind) -> record::Entry {
        record::Entry { path: path.to_vec(), kind, mode: 0o600, stamp: 1, modified: 2 }
    }

    #[test]
    fn what_no_session_can_have_is_refused() {
        let file = || record::Kind::File { size: 1 };
        assert!(entry(given(b"home/a\n\xff", file())).is_ok());
        assert!(entry(given(b"work/a", record::Kind::Removed)).is_ok());
        let bad: [&[u8]; 11] = [
            b"home",
            b"home/",
            b"/home/a",
            b"home/../a",
            b"home/./a",
            b"home//a",
            b"home/a/",
            b"other/a",
            b"",
            b"home/a\0b",
            b"work",
        ];
        for path in bad {
            assert!(entry(given(path, file())).is_err(), "{path:?}");
        }
        let folder = |opaque| record::Kind::Folder { opaque };
        assert!(entry(given(b"home/a", record::Kind::Removed)).is_err());
        assert!(entry(given(b"home/a", folder(true))).is_err());
        assert!(entry(given(b"work/a", folder(true))).is_ok());
        assert!(entry(given(b"work/a", record::Kind::File { size: u64::MAX })).is_err());
        assert!(entry(given(b"work/a", record::Kind::Link { target: Vec::new() })).is_err());
        assert!(entry(record::Entry { mode: 0o4755, ..given(b"work/a", file()) }).is_err());
    }

    #[test]
    fn the_order_is_kept() {
        let fits = |paths: &[(&str, bool)]| {
            let mut order = Order::default();
            paths.iter().all(|(path, folder)| {
                let kind = if *folder { Kind::Folder { opaque: false } } else { Kind::File { size: 0 } };
                order.fits(&Entry { path: path.into(), kind, mode: 0, stamp: 0, modified: 0 })
            })
        };
        assert!(fits(&[("home/a", true), ("home/a/b", false), ("home/a.b", false), ("work/a", false)]));
        assert!(!fits(&[("home/a", false), ("home/a/b", false)]), "a file holds nothing");
        assert!(!fits(&[("home/a", true), ("home/a", true)]), "nothing comes twice");
        assert!(!fits(&[("work/a", false), ("home/a", false)]));
        assert!(!fits(&[("home/a", true), ("home/b", true), ("home/b/c/d", false)]), "no folder is left out");
    }

    proptest! {
        #[test]
        fn what_is_let_in_can_not_lead_out(path in "(home|work|x)?[a./]{0,12}") {
            if let Ok(entry) = entry(given(path.as_bytes(), record::Kind::File { size: 0 })) {
                prop_assert!(entry.path.components().all(|part| matches!(part, std::path::Component::Normal(_))));
                prop_assert!(entry.path.components().count() > 1);
            }
        }
    }
}
