//! A folder on disk: walked, digested, copied into a release. Blocking; callers run it off the runtime.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use karta_harness::Tree;
use karta_harness::tree::MAX_LOADED;

/// Folders that are never part of a release.
const SKIPPED: &[&str] = &[".git", ".karta", ".hg", ".svn"];
/// The most files of a release.
const MAX_FILES: usize = 100_000;
/// The most bytes of a release.
const MAX_BYTES: u64 = 2 << 30;

/// Why a folder can't become a release.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("{doing} `{path}`", path = path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The folder breaks a rule.
    #[error("{0}")]
    Refused(String),
}

fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::File { doing, path: path.to_owned(), source }
}

/// One entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    File { executable: bool, size: u64 },
    Link { target: String },
}

/// A folder's files, walked but not read.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    entries: BTreeMap<String, Entry>,
}

impl Folder {
    /// Walks a folder.
    ///
    /// # Errors
    /// It is no folder, can't be read, is too large, or holds a name or link that a release can't carry.
    pub fn walk(root: &Path) -> Result<Self, Error> {
        let meta = fs::metadata(root).map_err(at("opening the folder", root))?;
        if !meta.is_dir() {
            return Err(Error::Refused(format!("`{}` is not a folder", root.display())));
        }
        let mut folder = Self { root: root.to_owned(), entries: BTreeMap::new() };
        let mut bytes = 0;
        let mut open = vec![String::new()];
        while let Some(inside) = open.pop() {
            let path = root.join(&inside);
            for entry in fs::read_dir(&path).map_err(at("listing", &path))? {
                let entry = entry.map_err(at("listing", &path))?;
                let name = entry.file_name().into_string().map_err(|name| {
                    Error::Refused(format!("the name {} in `{inside}` is not UTF-8", name.display()))
                })?;
                let relative = if inside.is_empty() { name.clone() } else { format!("{inside}/{name}") };
                let kind = entry.file_type().map_err(at("looking at", &entry.path()))?;
                if kind.is_dir() {
                    if !SKIPPED.contains(&name.as_str()) {
                        open.push(relative);
                    }
                    continue;
                }
                let entry = if kind.is_symlink() {
                    Entry::Link { target: inner_link(root, &relative)? }
                } else if kind.is_file() {
                    let meta = entry.metadata().map_err(at("looking at", &entry.path()))?;
                    bytes += meta.len();
                    Entry::File { executable: meta.permissions().mode() & 0o111 != 0, size: meta.len() }
                } else {
                    return Err(Error::Refused(format!("`{relative}` is neither file, folder nor link")));
                };
                folder.entries.insert(relative, entry);
                if folder.entries.len() > MAX_FILES || bytes > MAX_BYTES {
                    return Err(Error::Refused(format!(
                        "the folder is too large: at most {MAX_FILES} files and {MAX_BYTES} bytes"
                    )));
                }
            }
        }
        Ok(folder)
    }

    /// What adapters read of it.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn tree(&self) -> Result<Tree, Error> {
        let mut tree = Tree::new();
        for (path, entry) in &self.entries {
            let wanted =
                matches!(entry, Entry::File { size, .. } if *size <= MAX_LOADED) && Tree::wanted(path);
            let content = if wanted {
                let full = self.root.join(path);
                Some(fs::read(&full).map_err(at("reading", &full))?)
            } else {
                None
            };
            tree.insert(path.clone(), content);
        }
        Ok(tree)
    }

    /// SHA-256 over paths, kinds and contents in order, in hexadecimal.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn digest(&self, extra: &str) -> Result<String, Error> {
        let mut all = Context::new(&SHA256);
        let mut field = |bytes: &[u8]| {
            all.update(&(bytes.len() as u64).to_le_bytes());
            all.update(bytes);
        };
        field(extra.as_bytes());
        for (path, entry) in &self.entries {
            field(path.as_bytes());
            match entry {
                Entry::Link { target } => {
                    field(b"link");
                    field(target.as_bytes());
                }
                Entry::File { executable, .. } => {
                    field(if *executable { b"exec" } else { b"file" });
                    field(hash_file(&self.root.join(path))?.as_ref());
                }
            }
        }
        Ok(hex(all.finish().as_ref()))
    }

    /// Copies the files to `target`, which must not exist: first beside it, then moved, so that it is whole or not there.
    ///
    /// # Errors
    /// A file can't be copied; nothing is left then.
    pub fn copy_to(&self, target: &Path, scratch: &str) -> Result<(), Error> {
        let temporary = target.with_extension(scratch);
        let copied = self.copy_into(&temporary).and_then(|()| {
            match fs::rename(&temporary, target) {
                // Somebody else made the same release: theirs is as good.
                Err(_) if target.is_dir() => Ok(()),
                moved => moved.map_err(at("putting the release at", target)),
            }
        });
        if temporary.exists() {
            // Left over from a failure above, which is what is told.
            let _ = fs::remove_dir_all(&temporary);
        }
        copied
    }

    fn copy_into(&self, temporary: &Path) -> Result<(), Error> {
        fs::create_dir_all(temporary).map_err(at("making", temporary))?;
        for (path, entry) in &self.entries {
            let to = temporary.join(path);
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(at("making", parent))?;
            }
            match entry {
                Entry::Link { target } => {
                    std::os::unix::fs::symlink(target, &to).map_err(at("linking", &to))?;
                }
                Entry::File { executable, .. } => {
                    fs::copy(self.root.join(path), &to).map_err(at("copying to", &to))?;
                    let mode = if *executable { 0o755 } else { 0o644 };
                    fs::set_permissions(&to, fs::Permissions::from_mode(mode))
                        .map_err(at("setting the mode of", &to))?;
                }
            }
        }
        Ok(())
    }

    /// A cheap number that changes when the folder does: names, sizes, times of change.
    pub fn fingerprint(root: &Path) -> Option<u64> {
        let folder = Self::walk(root).ok()?;
        let mut sum = 0xcbf2_9ce4_8422_2325_u64;
        let mut mix = |bytes: &[u8]| {
            for byte in bytes {
                sum = (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        };
        for path in folder.entries.keys() {
            mix(path.as_bytes());
            if let Ok(meta) = fs::symlink_metadata(root.join(path)) {
                for number in
                    [meta.mtime(), meta.mtime_nsec(), meta.size().cast_signed(), i64::from(meta.mode())]
                {
                    mix(&number.to_le_bytes());
                }
            }
        }
        Some(sum)
    }
}

/// A link's target, if it stays inside the folder.
fn inner_link(root: &Path, path: &str) -> Result<String, Error> {
    let full = root.join(path);
    let target = fs::read_link(&full).map_err(at("reading the link", &full))?;
    let refused = || Error::Refused(format!("the link `{path}` leads out of the folder"));
    let text = target.to_str().ok_or_else(refused)?.to_owned();
    let mut depth = path.matches('/').count();
    for part in target.components() {
        match part {
            std::path::Component::Normal(_) => depth += 1,
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => depth = depth.checked_sub(1).ok_or_else(refused)?,
            std::path::Component::RootDir | std::path::Component::Prefix(_) => return Err(refused()),
        }
    }
    Ok(text)
}

fn hash_file(path: &Path) -> Result<aws_lc_rs::digest::Digest, Error> {
    let mut file = fs::File::open(path).map_err(at("reading", path))?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = file.read(&mut buffer).map_err(at("reading", path))?;
        if read == 0 {
            return Ok(context.finish());
        }
        context.update(&buffer[..read]);
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
