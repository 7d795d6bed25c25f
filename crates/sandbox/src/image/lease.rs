//! Leases: what sandboxes run from is not removed.
//!
//! A lease is a shared lock on an image's folder, held by an open descriptor: the kernel takes it back with the process that holds it,
//! however that ends, so that no lease is left by a crash. Who removes an image needs the folder for itself.

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{Error, at};

/// The right to run from an image. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Lease {
    _folder: File,
}

impl Lease {
    /// Takes the image in this folder. None if it is gone, or about to be.
    pub(crate) fn take(folder: &Path) -> Result<Option<Self>, Error> {
        Self::locked(folder, File::try_lock_shared)
    }

    /// Takes the image in this folder for whoever removes it. None if somebody runs from it, or it is gone.
    pub(super) fn alone(folder: &Path) -> Result<Option<Self>, Error> {
        Self::locked(folder, File::try_lock)
    }

    fn locked(
        folder: &Path,
        lock: impl FnOnce(&File) -> Result<(), TryLockError>,
    ) -> Result<Option<Self>, Error> {
        let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        let file = match File::open(folder) {
            Err(error) if gone(&error) => return Ok(None),
            other => other.map_err(at("opening", folder))?,
        };
        match lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(at("locking", folder)(error)),
        }
        // Between the two it may have been removed, and even another one made there.
        let held = file.metadata().map_err(at("looking at", folder))?;
        match std::fs::metadata(folder) {
            Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => {
                Ok(Some(Self { _folder: file }))
            }
            Ok(_) => Ok(None),
            Err(error) if gone(&error) => Ok(None),
            Err(error) => Err(at("looking at", folder)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_leased_is_nobody_elses_to_remove() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("image");
        assert!(Lease::take(&folder).unwrap().is_none(), "there is none");
        std::fs::create_dir(&folder).unwrap();
        let (one, other) = (Lease::take(&folder).unwrap(), Lease::take(&folder).unwrap());
        assert!(one.is_some() && other.is_some(), "many may run from it");
        drop(one);
        assert!(Lease::alone(&folder).unwrap().is_none());
        drop(other);
        let alone = Lease::alone(&folder).unwrap().unwrap();
        assert!(Lease::take(&folder).unwrap().is_none(), "it is being removed");
        drop(alone);
        assert!(Lease::take(&folder).unwrap().is_some());
    }

    #[test]
    fn a_folder_that_was_exchanged_meanwhile_is_not_taken() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("image");
        std::fs::create_dir(&folder).unwrap();
        let exchanged = Lease::locked(&folder, |file| {
            std::fs::rename(&folder, root.path().join("gone")).unwrap();
            std::fs::create_dir(&folder).unwrap();
            file.try_lock_shared()
        });
        assert!(exchanged.unwrap().is_none());
    }
}
