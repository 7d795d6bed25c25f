//! The disks of machines: harnesses and releases as read-only file systems, and the session's own.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Error;
use crate::image::{Need, Tool, erofs};

/// What formats the session's disk.
const MKFS: Need =
    Need { program: "mkfs.ext4", purpose: "the disks of sessions are formatted by it", package: "e2fsprogs" };
/// Formatting writes a few megabytes.
const PATIENCE: Duration = Duration::from_mins(1);
/// What a snapshot takes for the size of the disk with the release. The file is sparse: it takes what is in it.
pub(super) const RELEASE: u64 = 4 << 30;
/// Disks consist of such blocks.
const SECTOR: u64 = 4096;

/// The disks that more than one machine uses, by what is in them.
#[derive(Debug, Clone)]
pub(super) struct Disks {
    root: PathBuf,
}

/// A file error, from what was being done with what.
pub(super) fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Error + 'a {
    move |source| Error::File { doing, path: path.to_owned(), source }
}

/// An error of making something, for whoever needed it.
pub(super) fn failed(error: &crate::image::Error) -> Error {
    Error::Unavailable(crate::chain(error))
}

impl Disks {
    /// Those under this folder.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// A read-only file system of this tree, made if it isn't there. `name` stands for its content.
    pub(super) async fn tree(&self, tree: &Path, name: &str) -> Result<PathBuf, Error> {
        let path = self.root.join(format!("{name}.erofs"));
        if used(&path) {
            return Ok(path);
        }
        tokio::fs::create_dir_all(&self.root).await.map_err(at("making", &self.root))?;
        let part = part(&self.root, name);
        let made = erofs::make(tree, &part.0).await.map_err(|error| failed(&error));
        made?;
        tokio::fs::rename(&part.0, &path).await.map_err(at("finishing", &path))?;
        Ok(path)
    }

    /// A release's disk: as long as a snapshot takes it to be.
    pub(super) async fn release(&self, tree: &Path, digest: &str) -> Result<PathBuf, Error> {
        if digest.is_empty() || !digest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(Error::Unavailable("the release's digest is no plain name".to_owned()));
        }
        let path = self.tree(tree, &format!("release-{digest}")).await?;
        let meta = tokio::fs::metadata(&path).await.map_err(at("reading", &path))?;
        if meta.len() > RELEASE {
            return Err(Error::Unavailable(format!(
                "the release takes {} bytes as a disk, and a virtual machine's holds {RELEASE}: publish less",
                meta.len()
            )));
        }
        if meta.len() < RELEASE {
            let file = tokio::fs::OpenOptions::new().write(true).open(&path).await;
            let file = file.map_err(at("opening", &path))?;
            file.set_len(RELEASE).await.map_err(at("enlarging", &path))?;
        }
        Ok(path)
    }

    /// An empty formatted disk of so many bytes, to be copied.
    pub(super) async fn template(&self, bytes: u64) -> Result<PathBuf, Error> {
        let bytes = bytes - bytes % SECTOR;
        let name = format!("session-{bytes}");
        let path = self.root.join(format!("{name}.ext4"));
        if used(&path) {
            return Ok(path);
        }
        tokio::fs::create_dir_all(&self.root).await.map_err(at("making", &self.root))?;
        let part = part(&self.root, &name);
        let file = tokio::fs::File::create(&part.0).await.map_err(at("making", &part.0))?;
        file.set_len(bytes).await.map_err(at("making", &part.0))?;
        drop(file);
        let mkfs = Tool::new(MKFS)
            .map_err(|error| failed(&error))?
            .args(["-q", "-F", "-m", "0", "-b", "4096"])
            // Nothing reads it after a crash, so it needs no journal. What can be set to zero later is, by the guest.
            .args(["-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"])
            .args(["-U", "6b617274-6100-4000-8000-000000000002", "-L", "state"])
            .arg(&part.0);
        let made = mkfs.run("formatting a session's disk", PATIENCE).await.map_err(|error| failed(&error));
        made?;
        tokio::fs::rename(&part.0, &path).await.map_err(at("finishing", &path))?;
        Ok(path)
    }

    /// Removes what makers that are gone have left half made, and the disks that have not been used for longest. Machines that have
    /// one open keep it until they end.
    pub(super) fn sweep(&self) -> Result<(), Error> {
        sweep(&self.root, &|name| {
            KEPT.iter().find(|(start, _)| name.starts_with(start)).map(|(_, most)| *most)
        })
    }

    /// Where they are.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }
}

/// A name for a file that is being made; removed if it isn't finished.
fn part(folder: &Path, name: &str) -> Part {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Part(folder.join(format!("{PART}{}-{number}-{name}", std::process::id())))
}

/// A file without a name in this folder: it is gone when nobody has it open any more, whatever happens.
pub(super) fn unnamed(folder: &Path) -> Result<File, Error> {
    std::fs::create_dir_all(folder).map_err(at("making", folder))?;
    let path = part(folder, "disk");
    let file = File::options().read(true).write(true).create_new(true).open(&path.0);
    file.map_err(at("making a disk in", folder))
}

/// The same file, for reading only.
pub(super) fn read_only(file: &File) -> std::io::Result<OwnedFd> {
    use std::os::fd::AsRawFd as _;
    Ok(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.into())
}

/// What the names of unfinished things hold; their maker's process follows.
pub(super) const PART: &str = ".part-";
/// How many disks of each sort are kept though nothing may use them any more. The numbers differ.
const KEPT: &[(&str, usize)] = &[("release-", 128), ("harness-", 16), ("session-", 8)];

/// Notes that something is used, if it is there.
pub(super) fn used(path: &Path) -> bool {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW};
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    rustix::fs::utimensat(
        CWD,
        path,
        &Timestamps { last_access: now, last_modification: now },
        AtFlags::empty(),
    )
    .is_ok()
}

/// The process whose half-made thing this name is; none if it is no such name.
fn maker(name: &str) -> Option<u32> {
    let (_, rest) = name.split_once(PART)?;
    rest.split('-').next()?.parse().ok()
}

/// Removes from a folder what makers that are gone have left half made, and of each sort (by what `most` answers for a name: how
/// many of those are kept) what has not been used for longest.
pub(super) fn sweep(folder: &Path, most: &dyn Fn(&str) -> Option<usize>) -> Result<(), Error> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    let mut sorts: std::collections::BTreeMap<usize, Vec<_>> = std::collections::BTreeMap::new();
    let remove = |path: &Path| erofs::remove(path).map_err(|error| failed(&error));
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.contains(PART) {
            if maker(&name).is_none_or(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                remove(&entry.path())?;
            }
        } else if let Some(most) = most(&name) {
            let used = entry.metadata().and_then(|meta| meta.modified()).ok();
            sorts.entry(most).or_default().push((used, entry.path()));
        }
    }
    for (most, mut found) in sorts {
        found.sort_unstable_by(|one, other| other.cmp(one));
        for (_, path) in found.into_iter().skip(most) {
            remove(&path)?;
        }
    }
    Ok(())
}

struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // Renamed if all went well.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A copy of a disk, sharing blocks where the file system can, and with what is empty left empty.
pub(super) fn copy(from: &Path, to: &File) -> Result<(), Error> {
    let source = File::open(from).map_err(at("opening", from))?;
    copy_file(&source, to).map_err(at("copying", from))
}

/// The same from a file that is open.
pub(super) fn copy_file(source: &File, to: &File) -> std::io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, source).is_ok() {
        return Ok(());
    }
    let length = source.metadata()?.len();
    to.set_len(length)?;
    extents(source, to, length)
}

fn extents(source: &File, to: &File, length: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < length {
        at = match rustix::fs::seek(source, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(source, rustix::fs::SeekFrom::Hole(at))?;
        while at < end {
            let size = usize::try_from((end - at).min(1 << 20)).unwrap_or(1 << 20);
            let block = &mut buffer[..size];
            source.read_exact_at(block, at)?;
            to.write_all_at(block, at)?;
            at += size as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn what_is_half_made_or_long_unused_goes() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: String| std::fs::write(folder.path().join(name), "").unwrap();
        make(format!("{PART}{}-1-release-a", std::process::id()));
        make(format!("{PART}4194305-1-release-a"));
        make(format!("{PART}nonsense"));
        for number in 0..10 {
            make(format!("session-{number}"));
            let path = folder.path().join(format!("session-{number}"));
            let time = std::time::UNIX_EPOCH + Duration::from_secs(number);
            File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        }
        assert!(used(&folder.path().join("session-0")));
        assert!(!used(&folder.path().join("session-10")));
        make("other".to_owned());
        Disks::new(folder.path().to_owned()).sweep().unwrap();
        let mut left: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|one| one.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mine = format!("{PART}{}-1-release-a", std::process::id());
        let kept = [
            "session-0",
            "session-3",
            "session-4",
            "session-5",
            "session-6",
            "session-7",
            "session-8",
            "session-9",
        ];
        assert_eq!(left, [&[mine.as_str(), "other"], &kept[..]].concat());
    }

    #[tokio::test]
    async fn a_session_s_disk_is_formatted_once_and_takes_little() {
        let folder = tempfile::tempdir().unwrap();
        let disks = Disks::new(folder.path().join("disks"));
        let template = disks.template(1 << 30).await.unwrap();
        assert_eq!(disks.template(1 << 30).await.unwrap(), template);
        let copied = tempfile::tempfile_in(folder.path()).unwrap();
        copy(&template, &copied).unwrap();
        let meta = copied.metadata().unwrap();
        assert_eq!(meta.len(), 1 << 30);
        assert!(meta.blocks() * 512 < 8 << 20, "{} bytes", meta.blocks() * 512);
        let mut magic = [0; 2];
        copied.read_exact_at(&mut magic, 1024 + 56).unwrap();
        assert_eq!(magic, [0x53, 0xef]);
        assert_eq!(std::fs::read_dir(folder.path().join("disks")).unwrap().count(), 1);
    }
}
