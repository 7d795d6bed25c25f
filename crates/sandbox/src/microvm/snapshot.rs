//! Snapshots: a machine that has booted and waits to become somebody's, kept to be continued many times.
//!
//! One is made for each combination of image, harness and size. It is memory and the state of devices; on disk it lies with a
//! SHA-256 of both, so that what a crash or a full disk has damaged is found and made anew.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::disks::at;
use super::{disks, memory};
use crate::Error;
use crate::image::erofs;
use crate::live::Live;

/// Memory and state in a snapshot's folder, and what they should be. The last is written last.
const MEMORY: &str = "memory";
const STATE: &str = "state";
const RECORD: &str = "snapshot.json";
/// How many snapshots are kept though nothing may use them any more.
const KEPT: usize = 12;
/// The state of the devices of a small machine is some fifty kilobytes.
const LONGEST: u64 = 64 << 20;

/// What a snapshot should be.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// The length of the memory.
    bytes: u64,
    /// The SHA-256 of the memory, as [`memory::copy`] makes it.
    memory: String,
    /// The SHA-256 of the state.
    state: String,
}

/// A snapshot that machines can be continued from.
#[derive(Debug)]
pub(super) struct Snapshot {
    memory: File,
    state: Vec<u8>,
}

impl Snapshot {
    /// One from a machine that has ended: its memory, and the state that it wrote. The memory can't be changed from here on.
    pub(super) fn of(memory: File, state: &File) -> Result<Self, Error> {
        let failed = |source| Error::File { doing: "finishing a snapshot in", path: PathBuf::new(), source };
        memory::seal(&memory).map_err(failed)?;
        let length = state.metadata().map_err(failed)?.len();
        if length == 0 || length > LONGEST {
            return Err(Error::Unavailable(format!("the machine's state is {length} bytes, which can't be")));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        state.read_exact_at(&mut bytes, 0).map_err(failed)?;
        Ok(Self { memory, state: bytes })
    }

    /// The memory, for one more machine.
    pub(super) fn memory(&self) -> std::io::Result<OwnedFd> {
        memory::another(&self.memory)
    }

    /// The state, for one more machine: read once from its beginning.
    pub(super) fn state(&self) -> std::io::Result<OwnedFd> {
        let file = File::from(rustix::fs::memfd_create(c"guest-state", rustix::fs::MemfdFlags::CLOEXEC)?);
        file.write_all_at(&self.state, 0)?;
        Ok(file.into())
    }

    /// Writes it to a folder, whole or not at all.
    pub(super) fn save(&self, folder: &Path) -> Result<(), Error> {
        let name = disks::unfinished(&folder.file_name().unwrap_or_default().to_string_lossy());
        let part = folder.with_file_name(&name);
        let _live = Live::new(name);
        let remove = |path: &Path| erofs::remove(path).map_err(|error| disks::failed(&error));
        std::fs::create_dir_all(&part).map_err(at("making", &part))?;
        let path = part.join(MEMORY);
        let file = File::create(&path).map_err(at("making", &path))?;
        let digest = memory::copy(&self.memory, &file).map_err(at("writing", &path))?;
        file.sync_all().map_err(at("writing", &path))?;
        let bytes = self.memory.metadata().map_err(at("writing", &path))?.len();
        let record = Record { bytes, memory: hex(&digest), state: self.digest() };
        write(&part.join(STATE), &self.state)?;
        write(&part.join(RECORD), &serde_json::to_vec(&record).unwrap_or_default())?;
        // What is there is damaged, or as good.
        remove(folder)?;
        std::fs::rename(&part, folder).map_err(at("finishing", folder))
    }

    /// Reads one that is whole; none if there is none, or it is damaged.
    pub(super) fn load(folder: &Path) -> Result<Option<Self>, Error> {
        let Ok(record) = std::fs::read(folder.join(RECORD)) else { return Ok(None) };
        let Ok(record) = serde_json::from_slice::<Record>(&record) else { return Ok(None) };
        let path = folder.join(MEMORY);
        let (Ok(file), Ok(meta)) = (File::open(&path), std::fs::metadata(folder.join(STATE))) else {
            return Ok(None);
        };
        if file.metadata().map_err(at("reading", &path))?.len() != record.bytes || meta.len() > LONGEST {
            return Ok(None);
        }
        let state = match std::fs::read(folder.join(STATE)) {
            // It is being removed just now: the next one is made.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(at("reading", folder))?,
        };
        let memory = memory::create(record.bytes).map_err(at("reading", &path))?;
        let digest = memory::copy(&file, &memory).map_err(at("reading", &path))?;
        let snapshot = Self { memory, state };
        if hex(&digest) != record.memory || snapshot.digest() != record.state {
            return Ok(None);
        }
        memory::seal(&snapshot.memory).map_err(at("reading", &path))?;
        disks::used(folder);
        Ok(Some(snapshot))
    }

    fn digest(&self) -> String {
        hex(digest(&SHA256, &self.state).as_ref())
    }
}

/// Removes snapshots that are half made, and those that have not been used for longest.
pub(super) fn sweep(folder: &Path) -> Result<(), Error> {
    disks::sweep(folder, &|_| Some(KEPT))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    use std::io::Write as _;
    let written = File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(at("writing", path))
}

fn hex(bytes: &[u8]) -> String {
    crate::image::hex(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_is_no_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("key");
        let memory = memory::create(8 << 20).unwrap();
        memory.write_all_at(b"memory", 3 << 20).unwrap();
        let state = tempfile::tempfile().unwrap();
        state.write_all_at(b"state", 0).unwrap();
        assert!(Snapshot::load(&home).unwrap().is_none());
        let made = Snapshot::of(memory, &state).unwrap();
        made.save(&home).unwrap();
        made.save(&home).unwrap();
        let read = Snapshot::load(&home).unwrap().unwrap();
        assert_eq!(read.state, b"state");
        let mut bytes = [0; 6];
        read.memory.read_exact_at(&mut bytes, 3 << 20).unwrap();
        assert_eq!(&bytes, b"memory");
        for (name, place) in [(MEMORY, 5 << 20), (STATE, 0)] {
            made.save(&home).unwrap();
            let file = File::options().write(true).open(home.join(name)).unwrap();
            file.write_all_at(b"X", place).unwrap();
            assert!(Snapshot::load(&home).unwrap().is_none(), "{name}");
        }
        made.save(&home).unwrap();
        std::fs::write(home.join(RECORD), b"{").unwrap();
        assert!(Snapshot::load(&home).unwrap().is_none());
    }
}
