//! The disks of machines: harnesses and releases as read-only file systems, and the session's own.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Timespec, Timestamps, UTIME_NOW};

use crate::Error;
use crate::image::{Need, Tool, erofs};
use crate::live::Live;

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
    pub(super) async fn tree(&self, tree: &Path, name: &str) -> Result<Disk, Error> {
        self.sized(tree, name, None).await
    }

    /// The same, in a file of this length if it fits.
    async fn sized(&self, tree: &Path, name: &str, length: Option<u64>) -> Result<Disk, Error> {
        let path = self.root.join(format!("{name}.erofs"));
        if let Some(disk) = Disk::used(&path, length).await? {
            return Ok(disk);
        }
        tokio::fs::create_dir_all(&self.root).await.map_err(at("making", &self.root))?;
        let part = part(&self.root, name);
        let made = erofs::make(tree, &part.path).await.map_err(|error| failed(&error));
        made?;
        part.finish(path, length).await
    }

    /// A release's disk: as long as a snapshot takes it to be.
    pub(super) async fn release(&self, tree: &Path, digest: &str) -> Result<Disk, Error> {
        if digest.is_empty() || !digest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(Error::Unavailable("the release's digest is no plain name".to_owned()));
        }
        self.sized(tree, &format!("release-{digest}"), Some(RELEASE)).await
    }

    /// An empty formatted disk of so many bytes, to be copied.
    pub(super) async fn template(&self, bytes: u64) -> Result<Disk, Error> {
        let bytes = bytes - bytes % SECTOR;
        let name = format!("session-{bytes}");
        let path = self.root.join(format!("{name}.ext4"));
        if let Some(disk) = Disk::used(&path, Some(bytes)).await? {
            return Ok(disk);
        }
        tokio::fs::create_dir_all(&self.root).await.map_err(at("making", &self.root))?;
        let part = part(&self.root, &name);
        let file = tokio::fs::File::create(&part.path).await.map_err(at("making", &part.path))?;
        file.set_len(bytes).await.map_err(at("making", &part.path))?;
        drop(file);
        let mkfs = Tool::new(MKFS)
            .map_err(|error| failed(&error))?
            .args(["-q", "-F", "-m", "0", "-b", "4096"])
            // Nothing reads it after a crash, so it needs no journal. What can be set to zero later is, by the guest.
            .args(["-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"])
            .args(["-U", "6b617274-6100-4000-8000-000000000002", "-L", "state"])
            .arg(&part.path);
        let made = mkfs.run("formatting a session's disk", PATIENCE).await.map_err(|error| failed(&error));
        made?;
        part.finish(path, Some(bytes)).await
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

/// A disk that is open: whatever becomes of its name, it stays what it is.
#[derive(Debug)]
pub(super) struct Disk {
    path: PathBuf,
    file: File,
}

impl Disk {
    /// Opens one that has a name.
    pub(super) fn open(path: PathBuf) -> Result<Self, Error> {
        let file = File::open(&path).map_err(at("opening", &path))?;
        Ok(Self { path, file })
    }

    /// Opens one and notes that it is used; none if it isn't there in this length, so that it has to be made.
    async fn used(path: &Path, length: Option<u64>) -> Result<Option<Self>, Error> {
        let path = path.to_owned();
        super::blocking(move || {
            let disk = match Self::open(path) {
                Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    return Ok(None);
                }
                other => other?,
            };
            // Where it is noted too late it may be removed; it is open by now.
            let _ = rustix::fs::futimens(&disk.file, &NOW);
            let found = disk.file.metadata().map_err(at("reading", &disk.path))?.len();
            Ok(length.is_none_or(|length| length == found).then_some(disk))
        })
        .await
    }

    /// How many bytes it has.
    pub(super) fn length(&self) -> Result<u64, Error> {
        self.file.metadata().map(|meta| meta.len()).map_err(at("reading", &self.path))
    }

    /// Another opening of it, for reading only.
    pub(super) fn again(&self) -> Result<OwnedFd, Error> {
        read_only(&self.file).map_err(at("opening", &self.path))
    }

    /// Copies it, sharing blocks where the file system can, and with what is empty left empty.
    pub(super) fn copy(&self, to: &File) -> Result<(), Error> {
        copy_file(&self.file, to).map_err(at("copying", &self.path))
    }
}

/// A name for something that is being made; removed if it isn't finished.
fn part(folder: &Path, name: &str) -> Part {
    let name = unfinished(name);
    Part { path: folder.join(&name), _live: Live::new(name) }
}

/// A name of its own for something that is being made under this name.
pub(super) fn unfinished(name: &str) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PART}{}-{number}-{name}", std::process::id())
}

/// A file without a name in this folder: it is gone when nobody has it open any more, whatever happens.
pub(super) fn unnamed(folder: &Path) -> Result<File, Error> {
    std::fs::create_dir_all(folder).map_err(at("making", folder))?;
    let path = part(folder, "disk");
    let file = File::options().read(true).write(true).create_new(true).open(&path.path);
    file.map_err(at("making a disk in", folder))
}

/// The same file, for reading only.
pub(super) fn read_only(file: &File) -> std::io::Result<OwnedFd> {
    use std::os::fd::AsRawFd as _;
    Ok(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.into())
}

/// What the names of unfinished things hold; their maker's process follows.
const PART: &str = ".part-";
/// How many disks of each sort are kept though nothing may use them any more. The numbers differ.
const KEPT: &[(&str, usize)] = &[("release-", 128), ("harness-", 16), ("session-", 8)];

/// Notes that something is used, if it is there.
pub(super) fn used(path: &Path) -> bool {
    rustix::fs::utimensat(rustix::fs::CWD, path, &NOW, rustix::fs::AtFlags::empty()).is_ok()
}

const NOW: Timestamps = {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    Timestamps { last_access: now, last_modification: now }
};

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
            let made = match maker(&name) {
                // An earlier server may have had the same number.
                Some(pid) if pid == std::process::id() => crate::live::is(&name),
                Some(pid) => Path::new(&format!("/proc/{pid}")).exists(),
                None => false,
            };
            if !made {
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

struct Part {
    path: PathBuf,
    /// Until it is finished or removed.
    _live: Live,
}

impl Part {
    /// Gives it its name, in a file of this length if it fits.
    async fn finish(self, path: PathBuf, length: Option<u64>) -> Result<Disk, Error> {
        super::blocking(move || {
            // Open before it has its name: from then on it may be removed.
            let file = File::options().read(true).write(true).open(&self.path);
            let file = file.map_err(at("opening", &self.path))?;
            let found = file.metadata().map_err(at("reading", &self.path))?.len();
            if let Some(length) = length {
                if found > length {
                    return Err(Error::Unavailable(format!(
                        "the release takes {found} bytes as a disk, and a virtual machine's holds {length}: publish less"
                    )));
                }
                file.set_len(length).map_err(at("enlarging", &self.path))?;
            }
            std::fs::rename(&self.path, &path).map_err(at("finishing", &path))?;
            // From now on nobody writes it.
            let file = read_only(&file).map(File::from).map_err(at("opening", &path))?;
            Ok(Disk { path, file })
        })
        .await
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Renamed if all went well.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A copy of a file, sharing blocks where the file system can, and with what is empty left empty.
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
        let mine = unfinished("release-a");
        let live = Live::new(mine.clone());
        make(mine.clone());
        make(unfinished("release-a"));
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
        drop(live);
    }

    #[tokio::test]
    async fn what_is_gone_is_made_again_and_what_is_open_stays() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("file"), "content").unwrap();
        let disks = Disks::new(folder.path().join("disks"));
        let first = disks.release(&tree, "a").await.unwrap();
        let number = |disk: &Disk| disk.file.metadata().unwrap().ino();
        assert_eq!(number(&disks.release(&tree, "a").await.unwrap()), number(&first));
        // As a sweep would, at any moment.
        std::fs::remove_file(&first.path).unwrap();
        let again = File::from(first.again().unwrap());
        assert_eq!(again.metadata().unwrap().len(), RELEASE);
        assert!(again.write_all_at(b"x", 0).is_err());
        let next = disks.release(&tree, "a").await.unwrap();
        assert!(number(&next) != number(&first) && next.path.exists());
        let (mut one, mut other) = ([0; 4096], [0; 4096]);
        again.read_exact_at(&mut one, 0).unwrap();
        next.file.read_exact_at(&mut other, 0).unwrap();
        assert!(one == other);
        // One of another length is no such disk.
        File::options().write(true).open(&next.path).unwrap().set_len(8192).unwrap();
        let last = disks.release(&tree, "a").await.unwrap();
        assert_eq!(last.file.metadata().unwrap().len(), RELEASE);
    }

    #[tokio::test]
    async fn a_session_s_disk_is_formatted_once_and_takes_little() {
        let folder = tempfile::tempdir().unwrap();
        let disks = Disks::new(folder.path().join("disks"));
        let template = disks.template(1 << 30).await.unwrap();
        let number = |disk: &Disk| disk.file.metadata().unwrap().ino();
        assert_eq!(number(&disks.template(1 << 30).await.unwrap()), number(&template));
        let copied = tempfile::tempfile_in(folder.path()).unwrap();
        template.copy(&copied).unwrap();
        let meta = copied.metadata().unwrap();
        assert_eq!(meta.len(), 1 << 30);
        assert!(meta.blocks() * 512 < 8 << 20, "{} bytes", meta.blocks() * 512);
        let mut magic = [0; 2];
        copied.read_exact_at(&mut magic, 1024 + 56).unwrap();
        assert_eq!(magic, [0x53, 0xef]);
        assert_eq!(std::fs::read_dir(folder.path().join("disks")).unwrap().count(), 1);
    }
}
