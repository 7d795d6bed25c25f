//! What the session has made or changed: by the overlay's own books, or by comparing the workspace with the release.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use karta_guest::beneath::{Folder, Kind, kind};
use karta_guest::paths::plain;
use karta_guest::proto::message::{Failure, PATH};
use karta_guest::proto::record::{self, Decoder, Entry, Item};
use rustix::fs::Stat;

use super::super::core::failure;
use super::copy::{EXECUTE, NAMES};
use super::{Done, Folders, Out, Stop, send};

/// The top folder of paths in the home.
pub(super) const HOME: &str = "home";
/// The top folder of paths in the workspace.
pub(super) const WORK: &str = "work";
/// Most levels of folders.
const LEVELS: usize = 60;
/// Most things.
const THINGS: usize = 400_000;
/// Most bytes of all paths that are asked for.
const ASKED: usize = 64 << 20;

/// Where entries go, as they are found.
struct Finder<'a> {
    out: &'a mut Out,
    count: usize,
    /// Folders that are told as soon as something in them is.
    waiting: Vec<Entry>,
}

/// Sends an entry for each thing, sorted by path.
pub(super) fn survey(folders: &Folders, out: &mut Out) -> Done {
    let mut finder = Finder { out, count: 0, waiting: Vec::new() };
    finder.tree(&folders.home, Path::new(HOME), false)?;
    match &folders.upper {
        Some(upper) => finder.tree(upper, Path::new(WORK), true),
        None => finder.compare(&folders.work, Some(&folders.release), Path::new(WORK)),
    }
}

/// Sends everything in the workspace with its content.
pub(super) fn export(folders: &Folders, out: &mut Out) -> Done {
    all(&folders.work, Path::new(""), out, &mut 0)
}

fn all(folder: &Folder, at: &Path, out: &mut Out, count: &mut usize) -> Done {
    for name in list(folder, at)? {
        let path = at.join(&name);
        fits(&path, count)?;
        send::thing(out, folder, &name, &path, false)?;
        if let Ok(child) = folder.child(&name) {
            all(&child, &path, out, count)?;
        }
    }
    Ok(())
}

fn list(folder: &Folder, at: &Path) -> Result<Vec<std::ffi::OsString>, Failure> {
    folder.list(NAMES).map_err(|error| failure(&error, &format!("listing `{}`", at.display())))
}

/// Whether a path may be told at all.
fn fits(path: &Path, count: &mut usize) -> Result<(), Failure> {
    *count += 1;
    let what = if *count > THINGS {
        format!("the session has more than {THINGS} files")
    } else if path.components().count() > LEVELS {
        format!("the session has folders more than {LEVELS} levels deep")
    } else if path.as_os_str().len() >= PATH {
        format!("the session has a path of more than {PATH} bytes")
    } else {
        return Ok(());
    };
    Err(Failure { errno: libc::E2BIG, text: format!("{what}: remove what is not needed") })
}

impl Finder<'_> {
    fn tell(&mut self, entry: Entry) -> Done {
        for folder in self.waiting.drain(..) {
            self.out.entry(folder)?;
        }
        self.out.entry(entry)
    }

    /// Everything in a tree.
    fn tree(&mut self, folder: &Folder, at: &Path, marks: bool) -> Done {
        for name in list(folder, at)? {
            let path = at.join(&name);
            fits(&path, &mut self.count)?;
            let Ok(stat) = folder.stat(&name) else { continue };
            let Some(entry) = send::plain(folder, &name, &path, &stat, marks) else { continue };
            self.tell(entry)?;
            if kind(&stat) == Kind::Folder
                && let Ok(child) = folder.child(&name)
            {
                self.tree(&child, &path, marks)?;
            }
        }
        Ok(())
    }

    /// Everything in which the workspace differs from the release.
    fn compare(&mut self, work: &Folder, release: Option<&Folder>, at: &Path) -> Done {
        let mut names = list(work, at)?;
        if let Some(release) = release {
            names.extend(list(release, at)?);
            names.sort_unstable();
            names.dedup();
        }
        for name in names {
            let path = at.join(&name);
            fits(&path, &mut self.count)?;
            let was = release.and_then(|release| Some((release, release.stat(&name).ok()?)));
            let was = was.filter(|(_, stat)| kind(stat) != Kind::Other);
            let is = work.stat(&name).ok().filter(|stat| kind(stat) != Kind::Other);
            let Some(is) = is else {
                if was.is_some() {
                    self.tell(send::removed(&path))?;
                }
                continue;
            };
            let Some(entry) = send::plain(work, &name, &path, &is, false) else { continue };
            if kind(&is) == Kind::Folder {
                let below = was
                    .filter(|(_, stat)| kind(stat) == Kind::Folder)
                    .and_then(|(release, _)| release.child(&name).ok());
                let waiting = self.waiting.len();
                if below.is_some() && entry.mode == 0o700 {
                    self.waiting.push(entry);
                } else {
                    self.tell(entry)?;
                }
                if let Ok(child) = work.child(&name) {
                    self.compare(&child, below.as_ref(), &path)?;
                }
                // Nothing in it differs.
                self.waiting.truncate(waiting);
            } else if !was.is_some_and(|(release, was)| same(work, &is, release, &was, &name)) {
                self.tell(entry)?;
            }
        }
        Ok(())
    }
}

/// Whether a file or link is as the release has it.
fn same(work: &Folder, is: &Stat, release: &Folder, was: &Stat, name: &OsStr) -> bool {
    match (kind(is), kind(was)) {
        (Kind::Link, Kind::Link) => {
            matches!((work.target(name), release.target(name)), (Ok(is), Ok(was)) if is == was)
        }
        (Kind::File, Kind::File) => {
            let mode = if was.st_mode & EXECUTE == 0 { 0o600 } else { 0o700 };
            is.st_size == was.st_size
                && is.st_mode & 0o777 == mode
                && work
                    .read(name)
                    .and_then(|(is, _)| Ok((is, release.read(name)?.0)))
                    .and_then(|(is, was)| equal(is, was))
                    .unwrap_or(false)
        }
        _ => false,
    }
}

fn equal(one: File, other: File) -> io::Result<bool> {
    let mut one = io::BufReader::with_capacity(64 << 10, one);
    let mut other = io::BufReader::with_capacity(64 << 10, other);
    loop {
        let (a, b) = (io::BufRead::fill_buf(&mut one)?, io::BufRead::fill_buf(&mut other)?);
        let length = a.len().min(b.len());
        if a[..length] != b[..length] {
            return Ok(false);
        }
        if length == 0 {
            return Ok(a.is_empty() && b.is_empty());
        }
        io::BufRead::consume(&mut one, length);
        io::BufRead::consume(&mut other, length);
    }
}

/// Sends the things that are asked for, with their content.
pub(super) fn take(folders: &Folders, input: &mut File, out: &mut Out) -> Done {
    for path in asked(input)? {
        let path = Path::new(OsStr::from_bytes(&path));
        let Some((home, below)) = split(path) else {
            return Err(Failure { errno: libc::EXDEV, text: "a path leads nowhere".to_owned() }.into());
        };
        let (base, marks) = match (&folders.upper, home) {
            (_, true) => (&folders.home, false),
            (Some(upper), false) => (upper, true),
            (None, false) => (&folders.work, false),
        };
        let held = base.holder(&below, false);
        if let Ok((holder, name)) = held
            && holder.stat(name).is_ok()
        {
            send::thing(out, &holder, name, path, marks)?;
        } else if !home
            && !marks
            && folders.release.holder(&below, false).is_ok_and(|(f, n)| f.stat(n).is_ok())
        {
            out.entry(send::removed(path))?;
        }
    }
    Ok(())
}

/// All paths that are asked for.
fn asked(input: &mut File) -> Result<Vec<Vec<u8>>, Stop> {
    let mut items = Items::new(input);
    let (mut paths, mut bytes) = (Vec::new(), 0);
    loop {
        match items.next()? {
            Item::Path(path) => {
                bytes += path.len();
                if paths.len() == THINGS || bytes > ASKED {
                    return Err(
                        Failure { errno: libc::E2BIG, text: "too much is asked for".to_owned() }.into()
                    );
                }
                paths.push(path);
            }
            Item::End => return Ok(paths),
            _ => return Err(Stop::Gone),
        }
    }
}

/// A path's place: whether it is in the home, and where there.
pub(super) fn split(path: &Path) -> Option<(bool, PathBuf)> {
    let path = plain(path)?;
    let mut names = path.iter();
    let home = match names.next()? {
        top if top == HOME => true,
        top if top == WORK => false,
        _ => return None,
    };
    let below = names.as_path();
    (!below.as_os_str().is_empty()).then(|| (home, below.to_owned()))
}

/// Items of the host.
pub(super) struct Items<'a> {
    input: &'a mut File,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl<'a> Items<'a> {
    pub(super) fn new(input: &'a mut File) -> Self {
        Self { input, decoder: Decoder::default(), buffer: vec![0; record::ITEM] }
    }

    /// The next one. That the host ends without saying so means that it gave up.
    pub(super) fn next(&mut self) -> Result<Item, Stop> {
        loop {
            if let Some(item) = self.decoder.next_item().map_err(|_| Stop::Gone)? {
                return Ok(item);
            }
            match self.input.read(&mut self.buffer) {
                Ok(0) => return Err(Stop::Gone),
                Ok(length) => self.decoder.push(&self.buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Stop::Gone),
            }
        }
    }
}
