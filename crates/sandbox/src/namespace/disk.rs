//! A session's disk: a file with an ext4 file system in it, whose size is the quota.
//!
//! The file has no name. It goes with the last mount of it, so nothing has to be removed, whoever ends how.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::Error;

/// A new disk of so many bytes, in a file of the file system under `root`.
pub(super) fn make(root: &Path, bytes: u64) -> Result<OwnedFd, Error> {
    let template = template(root, bytes)?;
    let from = File::open(&template).map_err(at("opening the template of a disk", &template))?;
    let disk = nameless(root).map_err(at("making a disk in", root))?;
    copy(&from, &disk, bytes).map_err(at("making a disk in", root))?;
    Ok(disk.into())
}

/// The formatted disk that all of this size are copies of.
fn template(root: &Path, bytes: u64) -> Result<PathBuf, Error> {
    let folder = root.join("templates");
    let template = folder.join(format!("state-{bytes}.ext4"));
    if template.exists() {
        return Ok(template);
    }
    fs::create_dir_all(&folder).map_err(at("making", &folder))?;
    // Formatted under a name of its own, so that nobody takes a half one and two that are made at once are not one.
    let part = folder.join(format!("state-{bytes}.{}.part", unique()));
    let format = || -> io::Result<()> {
        File::create(&part)?.set_len(bytes)?;
        let features = "^has_journal,^resize_inode,^metadata_csum_seed";
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0", "-O", features, "-E", "lazy_itable_init=1,nodiscard"])
            .arg(&part)
            .env_clear()
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .output()?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr).trim().chars().take(300).collect::<String>();
            return Err(io::Error::other(format!("`mkfs.ext4` failed: {said}")));
        }
        fs::rename(&part, &template)
    };
    format().map_err(|error| {
        let _ = fs::remove_file(&part);
        if error.kind() == io::ErrorKind::NotFound {
            return Error::Unavailable("`mkfs.ext4` is missing: run `apt install e2fsprogs`".to_owned());
        }
        at("formatting", &template)(error)
    })?;
    Ok(template)
}

/// The same for nobody else now.
fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn nameless(root: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let owner = Mode::RUSR | Mode::WUSR;
    match rustix::fs::openat(CWD, root, flags | OFlags::TMPFILE, owner) {
        Ok(file) => Ok(file.into()),
        // Not every file system can; then it has a name for a moment.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let path = root.join(format!("disk-{}.part", unique()));
            let file = rustix::fs::openat(CWD, &path, flags | OFlags::CREATE | OFlags::EXCL, owner)?;
            fs::remove_file(&path)?;
            Ok(file.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Copies what is written in a file with holes.
fn copy(from: &File, to: &File, bytes: u64) -> io::Result<()> {
    to.set_len(bytes)?;
    let mut at = 0;
    loop {
        let mut start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole from here on.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        at = rustix::fs::seek(from, SeekFrom::Hole(start))?;
        let mut target = start;
        while start < at {
            let length = usize::try_from(at - start).unwrap_or(usize::MAX);
            let copied = rustix::fs::copy_file_range(from, Some(&mut start), to, Some(&mut target), length)?;
            if copied == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn at<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + use<'a> {
    move |source| Error::File { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_sparse_copy_of_its_template_without_a_name() {
        use std::os::unix::fs::MetadataExt as _;
        let root = tempfile::tempdir().unwrap();
        let disk = File::from(make(root.path(), 256 << 20).unwrap());
        let meta = disk.metadata().unwrap();
        assert_eq!((meta.len(), meta.nlink()), (256 << 20, 0));
        assert!(meta.blocks() * 512 < 16 << 20, "{} blocks", meta.blocks());
        let mut names = fs::read_dir(root.path().join("templates")).unwrap().flatten();
        let template = names.next().unwrap().path();
        assert!(names.next().is_none());
        let same = |one: &File, other: &File| {
            use std::os::unix::fs::FileExt as _;
            let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
            one.read_exact_at(&mut left, 0).unwrap();
            other.read_exact_at(&mut right, 0).unwrap();
            left == right
        };
        assert!(same(&File::open(template).unwrap(), &disk));
    }
}
