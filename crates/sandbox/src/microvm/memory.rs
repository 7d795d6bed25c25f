//! The memory of machines: a file without a name that all machines of one snapshot share and none can change.
//!
//! QEMU opens the memory it restores for writing even if it maps it privately. A file on disk would have to be writable for the
//! VMM, and a guest that has broken out could then change what every later session starts from. A sealed memory file can't be
//! written by anybody any more, whoever holds it and however it is opened.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use aws_lc_rs::digest::{Context, SHA256};
use rustix::fs::{MemfdFlags, SealFlags};

/// How much is copied at once.
const BLOCK: usize = 1 << 20;

/// An empty memory of so many bytes.
pub(super) fn create(bytes: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create(c"guest-memory", flags)?);
    file.set_len(bytes)?;
    Ok(file)
}

/// Makes a memory unchangeable for good. Nobody may have it mapped for writing.
pub(super) fn seal(memory: &File) -> io::Result<()> {
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    Ok(rustix::fs::fcntl_add_seals(memory, seals)?)
}

/// Copies what is not empty of one file into another that is empty, and answers the SHA-256 of it: of where it lies and what it is.
/// The target gets the source's length.
pub(super) fn copy(from: &File, to: &File) -> io::Result<[u8; 32]> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; BLOCK];
    let mut at = 0;
    while at < length {
        let start = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but emptiness up to the end.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(start))?;
        // Whole blocks, from a multiple of the block: where file systems see holes differs from one to the next.
        let mut place = start - start % BLOCK as u64;
        while place < end {
            let size = usize::try_from((length - place).min(BLOCK as u64)).unwrap_or(BLOCK);
            let block = &mut buffer[..size];
            from.read_exact_at(block, place)?;
            if block.iter().any(|byte| *byte != 0) {
                to.write_all_at(block, place)?;
                context.update(&place.to_le_bytes());
                context.update(block);
            }
            place += size as u64;
        }
        at = place;
    }
    let mut digest = [0; 32];
    // The algorithm's length and the array's are the same.
    digest.copy_from_slice(context.finish().as_ref());
    Ok(digest)
}

/// Another handle of the same file, for somebody else to hold.
pub(super) fn another(file: &File) -> io::Result<OwnedFd> {
    Ok(file.try_clone()?.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_copy_has_the_same_content_and_keeps_what_is_empty_empty() {
        let memory = create(64 << 20).unwrap();
        for (at, byte) in [(0, 1), (5 << 20, 2), ((64 << 20) - 1, 3)] {
            memory.write_all_at(&[byte], at).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        let digest = copy(&memory, &file).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 64 << 20);
        assert!(file.metadata().unwrap().blocks() * 512 <= 4 << 20);
        let back = create(64 << 20).unwrap();
        assert_eq!(copy(&file, &back).unwrap(), digest);
        let mut byte = [0];
        back.read_exact_at(&mut byte, 5 << 20).unwrap();
        assert_eq!(byte, [2]);
        file.write_all_at(&[9], 5 << 20).unwrap();
        assert_ne!(copy(&file, &create(64 << 20).unwrap()).unwrap(), digest);
    }

    #[test]
    fn what_is_sealed_is_written_by_nobody() {
        let memory = create(1 << 20).unwrap();
        memory.write_all_at(b"before", 0).unwrap();
        seal(&memory).unwrap();
        assert!(memory.write_all_at(b"after", 0).is_err());
        assert!(memory.set_len(0).is_err());
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory));
        let again = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        assert!(again.write_all_at(b"after", 0).is_err(), "not even through another opening");
    }
}
