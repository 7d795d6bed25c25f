//! Read-only file systems in files, the same bytes for the same tree.

use std::path::Path;
use std::time::Duration;

use super::tool::{Need, Tool};
use super::{Error, at};

/// What makes them.
pub(crate) const MKFS: Need = Need {
    program: "mkfs.erofs",
    purpose: "the read-only disks of virtual machines are made by it",
    package: "erofs-utils",
};
/// The id of every such file system: it is looked for by nobody, and it would be the only thing that differs.
const UUID: &str = "6b617274-6100-4000-8000-000000000001";
/// A tree of a few gigabytes on a slow disk.
const PATIENCE: Duration = Duration::from_mins(10);

/// Makes `file` from the tree: all owned by root, one time for all, nothing compressed, so that reading it costs nothing.
pub(crate) async fn make(tree: &Path, file: &Path) -> Result<(), Error> {
    // It writes into a file that is there without making it shorter.
    match tokio::fs::remove_file(file).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(at("replacing", file)(error));
        }
        _ => {}
    }
    let mkfs =
        Tool::new(MKFS)?.args(["-T0", "-U", UUID, "--all-root", "-x-1", "--quiet"]).arg(file).arg(tree);
    mkfs.run("making a read-only file system", PATIENCE).await.map(drop)
}

/// Removes a file or a whole tree, whatever permissions its folders have. No error if there is none.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at("removing", path)(error)),
    };
    if !meta.is_dir() {
        return std::fs::remove_file(path).map_err(at("removing", path));
    }
    if meta.permissions().mode() & 0o700 != 0o700 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
            .map_err(at("removing", path))?;
    }
    for entry in std::fs::read_dir(path).map_err(at("removing", path))? {
        remove(&entry.map_err(at("removing", path))?.path())?;
    }
    std::fs::remove_dir(path).map_err(at("removing", path))
}
