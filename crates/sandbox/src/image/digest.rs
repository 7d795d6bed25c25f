//! SHA-256 of bytes, files and trees.

use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256, digest};

use super::{Error, at};

/// A SHA-256.
pub(super) type Sha256 = [u8; 32];

/// In hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Of bytes.
pub(super) fn bytes(content: &[u8]) -> Sha256 {
    finish(digest(&SHA256, content).as_ref())
}

/// Of a file's content.
pub(super) fn file(path: &Path) -> Result<Sha256, Error> {
    let mut file = std::fs::File::open(path).map_err(at("reading", path))?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(at("reading", path))?;
        if read == 0 {
            return Ok(finish(context.finish().as_ref()));
        }
        context.update(&buffer[..read]);
    }
}

/// Of a tree: names, kinds, permissions and contents; no times, no owners. With the bytes of its files.
pub(crate) fn tree(root: &Path) -> Result<(Sha256, u64), Error> {
    let mut context = Context::new(&SHA256);
    let mut total = 0;
    let mut open = vec![PathBuf::new()];
    while let Some(relative) = open.pop() {
        let path = root.join(&relative);
        let meta = std::fs::symlink_metadata(&path).map_err(at("reading", &path))?;
        let (kind, held) = if meta.is_dir() {
            let mut children = Vec::new();
            for entry in std::fs::read_dir(&path).map_err(at("reading", &path))? {
                children.push(relative.join(entry.map_err(at("reading", &path))?.file_name()));
            }
            children.sort();
            // Taken from the end, so that the order is that of the names.
            open.extend(children.into_iter().rev());
            (b'd', Sha256::default())
        } else if meta.is_symlink() {
            let target = std::fs::read_link(&path).map_err(at("reading", &path))?;
            (b'l', bytes(target.as_os_str().as_bytes()))
        } else if meta.is_file() {
            total += meta.len();
            (b'f', file(&path)?)
        } else {
            (b'o', Sha256::default())
        };
        let name = relative.as_os_str().as_bytes();
        context.update(&[kind]);
        context.update(&(meta.permissions().mode() & 0o7777).to_le_bytes());
        context.update(&(name.len() as u64).to_le_bytes());
        context.update(name);
        context.update(&held);
    }
    Ok((finish(context.finish().as_ref()), total))
}

fn finish(digest: &[u8]) -> Sha256 {
    let mut bytes = Sha256::default();
    // The algorithm's length and the array's are the same.
    bytes.copy_from_slice(digest);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_known_by_its_content_alone() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, order: [&str; 3]| {
            let root = folder.path().join(name);
            std::fs::create_dir(&root).unwrap();
            for file in order {
                std::fs::write(root.join(file), file).unwrap();
            }
            std::os::unix::fs::symlink("a", root.join("link")).unwrap();
            root
        };
        let one = make("one", ["a", "b", "c"]);
        let other = make("other", ["c", "a", "b"]);
        let digest = tree(&one).unwrap();
        assert_eq!(digest, tree(&other).unwrap());
        assert_eq!(digest.1, 3);
        std::fs::set_permissions(other.join("a"), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_ne!(digest, tree(&other).unwrap());
        std::fs::remove_file(one.join("link")).unwrap();
        std::os::unix::fs::symlink("b", one.join("link")).unwrap();
        assert_ne!(digest, tree(&one).unwrap());
    }
}
