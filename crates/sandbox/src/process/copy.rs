//! Private copies of a release: shared blocks where the file system can, else bytes; never a hard link, never through a link.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;

use super::manifest::{Entry, Manifest};
use karta_guest::beneath::{Folder, Kind, kind};
use karta_guest::paths::stays;

/// Most paths a release may have.
const PATHS: usize = 200_000;
/// Most bytes a release may have.
const BYTES: u64 = 16 << 30;
/// Most levels of folders.
const LEVELS: usize = 60;
/// The owner's right to execute.
const EXECUTE: u32 = 0o100;

/// Reads a release: what lies under each of its paths. With `into`, an empty folder, everything is copied there on the way.
pub(super) fn release(from: &Folder, into: Option<&Folder>) -> io::Result<Manifest> {
    let mut manifest = Manifest::new();
    let mut bytes = 0u64;
    let mut folders = vec![PathBuf::new()];
    while let Some(at) = folders.pop() {
        let source = from.walk(&at, false)?;
        let target = into.map(|into| into.walk(&at, true)).transpose()?;
        for name in source.list(PATHS)? {
            let path = at.join(&name);
            let stat = source.stat(&name)?;
            let entry = match kind(&stat) {
                Kind::Folder => {
                    if path.components().count() > LEVELS {
                        return Err(too_big(&format!(
                            "`{}` lies deeper than {LEVELS} folders",
                            path.display()
                        )));
                    }
                    if let Some(target) = &target {
                        target.make(&name)?;
                    }
                    folders.push(path.clone());
                    Entry::Folder
                }
                Kind::File => {
                    let entry =
                        file(&source, &name, target.as_ref().map(|target| (target, name.as_os_str())))?;
                    if let Entry::File { size, .. } = entry {
                        bytes = bytes.saturating_add(size);
                    }
                    entry
                }
                Kind::Link => {
                    let link = source.target(&name)?;
                    if !stays(&at, Path::new(&link)) {
                        tracing::warn!(path = %path.display(), "left out of the copy: a link that leads out of the release");
                        continue;
                    }
                    if let Some(target) = &target {
                        target.link(&name, &link)?;
                    }
                    Entry::Link { target: link }
                }
                Kind::Other => {
                    tracing::warn!(path = %path.display(), "left out of the copy: a pipe, socket or device");
                    continue;
                }
            };
            manifest.insert(path, entry);
            if manifest.len() > PATHS {
                return Err(too_big(&format!("it has more than {PATHS} paths")));
            }
            if bytes > BYTES {
                return Err(too_big(&format!("it has more than {BYTES} bytes")));
            }
        }
    }
    Ok(manifest)
}

fn too_big(what: &str) -> io::Error {
    io::Error::other(format!(
        "the release is too big ({what}): keep what the harness does not need out of its folder"
    ))
}

/// Reads one file; with `into`, copies it to that new name.
pub(super) fn file(from: &Folder, name: &OsStr, into: Option<(&Folder, &OsStr)>) -> io::Result<Entry> {
    let (mut source, stat) = from.read(name)?;
    let executable = stat.st_mode & EXECUTE != 0;
    let mut copy = into.map(|(folder, name)| folder.create(name, executable)).transpose()?;
    if let Some(target) = &copy
        && rustix::fs::ioctl_ficlone(target, &source).is_ok()
    {
        // The blocks are shared now; what is left is to learn the content.
        copy = None;
    }
    let (hash, size) = content(&mut source, copy.as_mut())?;
    Ok(Entry::File { hash, size, executable })
}

fn content(source: &mut File, mut copy: Option<&mut File>) -> io::Result<([u8; 32], u64)> {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 128 << 10];
    let mut size = 0u64;
    loop {
        let length = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        // A file that grows as it is read must end too.
        size = size.saturating_add(length as u64);
        if size > BYTES {
            return Err(too_big(&format!("one file has more than {BYTES} bytes")));
        }
        hash.update(&buffer[..length]);
        if let Some(copy) = copy.as_deref_mut() {
            copy.write_all(&buffer[..length])?;
        }
    }
    let mut sum = [0; 32];
    sum.copy_from_slice(hash.finish().as_ref());
    Ok((sum, size))
}
