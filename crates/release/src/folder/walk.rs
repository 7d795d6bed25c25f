//! Going through a folder, level by level, sorted, without following a link.

use std::fs;
use std::path::Path;
use std::rc::Rc;

use super::{Error, at};
use crate::names::{self, Rule};

/// What stands under a name.
pub(super) enum Kind {
    Folder,
    File,
    Link,
    /// Pipes, sockets, devices.
    Other,
}

/// What is done on the way.
pub(super) trait Visit {
    /// What is known of a folder once it was entered.
    type Level;

    /// A folder is entered, from the level above it; the root's path is empty.
    fn enter(&mut self, folder: &str, above: Option<Rc<Self::Level>>) -> Result<Self::Level, Error>;

    /// Something is there. The answer for a folder says whether it is entered.
    fn meet(&mut self, level: &Self::Level, path: &str, kind: &Kind) -> Result<bool, Error>;
}

/// Goes through a folder.
pub(super) fn walk<V: Visit>(root: &Path, visit: &mut V) -> Result<(), Error> {
    let meta = fs::metadata(root).map_err(at("opening the folder", root))?;
    if !meta.is_dir() {
        return Err(Error::NoFolder(root.to_owned()));
    }
    let mut open = vec![(String::new(), None::<Rc<V::Level>>)];
    while let Some((folder, above)) = open.pop() {
        let level = Rc::new(visit.enter(&folder, above)?);
        let place = if folder.is_empty() { root.to_owned() } else { root.join(&folder) };
        let mut entries = fs::read_dir(&place)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(at("listing", &place))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        // The stack gives back what was put last: the folders go on it the other way round.
        let mut below = Vec::new();
        for entry in entries {
            let name = entry.file_name();
            let join =
                |name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
            let Some(name) = name.to_str() else {
                return Err(Error::Refused { path: join(&name.to_string_lossy()), rule: Rule::NotUtf8 });
            };
            let path = join(name);
            let kind = entry.file_type().map_err(at("looking at", &entry.path()))?;
            let kind = if kind.is_dir() {
                Kind::Folder
            } else if kind.is_symlink() {
                Kind::Link
            } else if kind.is_file() {
                Kind::File
            } else {
                Kind::Other
            };
            if visit.meet(&level, &path, &kind)? && matches!(kind, Kind::Folder) {
                if path.matches('/').count() >= names::MAX_DEPTH {
                    return Err(Error::Refused { path, rule: Rule::Deep });
                }
                below.push((path, Some(level.clone())));
            }
        }
        open.extend(below.into_iter().rev());
    }
    Ok(())
}
