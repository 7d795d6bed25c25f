//! The workspace as a copy of the release, where no overlay can be had.

use std::io;
use std::path::PathBuf;

use karta_guest::beneath::{Folder, Kind, kind};

use super::super::core::failure;
use super::Done;

/// Most names in one folder.
pub(super) const NAMES: usize = 200_000;
/// The owner's right to execute.
pub(super) const EXECUTE: u32 = 0o100;

/// Copies the whole tree.
pub(super) fn copy(from: &Folder, to: &Folder) -> Done {
    let mut folders = vec![PathBuf::new()];
    while let Some(at) = folders.pop() {
        let copied = || -> io::Result<Vec<PathBuf>> {
            let (source, target) = (from.walk(&at, false)?, to.walk(&at, false)?);
            let mut below = Vec::new();
            for name in source.list(NAMES)? {
                let stat = source.stat(&name)?;
                match kind(&stat) {
                    Kind::Folder => {
                        target.make(&name)?;
                        below.push(at.join(&name));
                    }
                    Kind::File => {
                        let (mut file, stat) = source.read(&name)?;
                        io::copy(&mut file, &mut target.create(&name, stat.st_mode & EXECUTE != 0)?)?;
                    }
                    Kind::Link => target.link(&name, &source.target(&name)?)?,
                    Kind::Other => {}
                }
            }
            Ok(below)
        };
        folders.extend(copied().map_err(|error| failure(&error, &format!("copying `{}`", at.display())))?);
    }
    Ok(())
}
