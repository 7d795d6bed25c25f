//! A session's folder, where there is no disk of its own: how much is in it, and its end.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

/// Most folders of one session's that are looked into: who makes more uses too much as well.
const FOLDERS: usize = 200_000;

/// How many bytes of the host's file system a folder takes; none if it holds too much to be looked at.
pub(super) fn size(folder: &Path) -> Option<u64> {
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    let mut looked = 0;
    while let Some(folder) = folders.pop() {
        looked += 1;
        if looked > FOLDERS {
            return None;
        }
        // What goes away meanwhile, or can't be read, takes what was counted with it.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            bytes += meta.blocks() * 512;
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Some(bytes)
}

/// Removes a folder, also one whose content forbids it.
pub(super) fn remove(folder: &Path) {
    if fs::remove_dir_all(folder).is_ok() || !folder.exists() {
        return;
    }
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let _ = fs::set_permissions(&folder, fs::Permissions::from_mode(0o700));
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    if let Err(error) = fs::remove_dir_all(folder) {
        tracing::warn!(%error, folder = %folder.display(), "what a sandbox left could not be removed; it is tried again later");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_measured_and_removed_whatever_its_modes() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("session");
        fs::create_dir_all(folder.join("a/b")).unwrap();
        fs::write(folder.join("a/b/file"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/", folder.join("out")).unwrap();
        let bytes = size(&folder).unwrap();
        assert!((100_000..1_000_000).contains(&bytes), "{bytes}");
        fs::set_permissions(folder.join("a"), fs::Permissions::from_mode(0o000)).unwrap();
        remove(&folder);
        assert!(!folder.exists());
        remove(&folder);
    }
}
