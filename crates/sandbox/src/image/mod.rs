//! Images: what isolated sandboxes start from. A kernel, an initramfs with nothing but the guest program, and a read-only base
//! system, made from packages by their ordinary clients.
//!
//! An image is a folder named by its digest, which covers what it was made from and what came out. The same inputs make the same
//! digest: times, owners, order and file system ids are fixed, and what package managers log or cache is left out.

mod base;
mod build;
mod cpio;
mod digest;
pub(crate) mod erofs;
mod kernel;
mod lease;
mod manifest;
mod tool;

use std::path::{Path, PathBuf};

pub use build::{Progress, Recipe};
pub(crate) use digest::{hex, tree as tree_digest};
pub(crate) use lease::Lease;
pub use manifest::Manifest;
pub(crate) use tool::{Need, Tool, find as find_program};

/// The kernel in an image's folder.
pub(crate) const KERNEL: &str = "kernel";
/// The initramfs in an image's folder.
pub(crate) const INITRAMFS: &str = "initramfs";
/// The base system in an image's folder, as a file system.
pub(crate) const BASE: &str = "base.erofs";
/// The base system in an image's folder, as a tree.
pub(crate) const ROOT: &str = "root";
/// What an image is. Written last: where it is, the rest is.
pub(crate) const MANIFEST: &str = "manifest.json";
/// Held by whoever builds or removes.
const LOCK: &str = ".lock";
/// What the names of unfinished folders begin with.
const UNFINISHED: &str = ".part-";

/// The program that is the first process of every guest.
pub(crate) const GUEST: &[u8] = include_bytes!(env!("KARTA_GUEST"));

/// What went wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that makes images is not installed.
    #[error("`{program}` was not found, and {purpose}; install it: `apt-get install {package}`")]
    Missing {
        /// The program.
        program: &'static str,
        /// What it is needed for.
        purpose: &'static str,
        /// The package of Debian that has it.
        package: &'static str,
    },
    /// A program failed.
    #[error("{doing} failed: {said}")]
    Tool {
        /// What was being done.
        doing: String,
        /// What it printed last, or why it did not run.
        said: String,
    },
    /// A file operation failed.
    #[error("{doing} `{path}`", path = path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A kernel can't be used.
    #[error("the kernel `{path}` can't be used: {why}", path = path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is no image, or not this one.
    #[error("there is no image{which}: run `karta image build`")]
    None {
        /// ` sha256…` or nothing.
        which: String,
    },
    /// An image is there, but not whole or not for this program.
    #[error("the image `{path}` can't be used ({why}): run `karta image build`", path = path.display())]
    Unusable {
        /// Its folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Images are not made for this machine.
    #[error("images are made for x86-64 machines only, and this is {0}: use the driver `process` here")]
    Machine(&'static str),
}

/// A file error, from what was being done with what.
fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Error + 'a {
    move |source| Error::File { doing, path: path.to_owned(), source }
}

/// A finished image.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its folder.
    pub folder: PathBuf,
    /// What it is.
    pub manifest: Manifest,
    /// Bytes on disk.
    pub size: u64,
}

impl Image {
    /// The image in this folder. Its parts are there in the sizes that were recorded; their content is taken as it is.
    ///
    /// # Errors
    /// [`Error::None`] or [`Error::Unusable`], which says what to do.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(MANIFEST);
        let unusable = |why: String| Error::Unusable { path: folder.to_owned(), why };
        let bytes = std::fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::None { which: format!(" in `{}`", folder.display()) },
            _ => at("reading", &path)(error),
        })?;
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|error| unusable(format!("its manifest: {error}")))?;
        let mut size = manifest.tree_bytes;
        for part in &manifest.parts {
            let length = std::fs::metadata(folder.join(&part.name)).map(|meta| meta.len());
            if length.as_ref().ok() != Some(&part.bytes) {
                return Err(unusable(format!("`{}` is missing or not {} bytes long", part.name, part.bytes)));
            }
            size += part.bytes;
        }
        Ok(Self { folder: folder.to_owned(), manifest, size })
    }

    /// Its id: a digest of what it was made from and what came out.
    pub fn id(&self) -> String {
        self.manifest.id()
    }

    /// The kernel.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join(KERNEL)
    }

    /// The initramfs.
    pub fn initramfs(&self) -> PathBuf {
        self.folder.join(INITRAMFS)
    }

    /// The base system as a file system in a file.
    pub fn base(&self) -> PathBuf {
        self.folder.join(BASE)
    }

    /// The base system as a tree.
    pub fn root(&self) -> PathBuf {
        self.folder.join(ROOT)
    }

    /// Whether the guest in it is the one of this program: host and guest speak the same protocol then.
    pub fn is_current(&self) -> bool {
        self.manifest.guest == digest::hex(&digest::bytes(GUEST))
    }
}

/// What [`Images::prune`] did.
#[derive(Debug, Clone)]
pub struct Pruned {
    /// What was removed.
    pub removed: Vec<Image>,
    /// What was left, and why.
    pub left: Vec<(Image, Left)>,
}

/// Why an image is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It is the newest that this program can use.
    Newest,
    /// A server runs sandboxes from it.
    InUse,
}

impl Left {
    /// In words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Newest => "it is the newest",
            Self::InUse => "a server runs sandboxes from it",
        }
    }
}

/// The images of a data directory.
#[derive(Debug, Clone)]
pub struct Images {
    root: PathBuf,
}

impl Images {
    /// The images under `root` (`<data>/images`), which need not exist yet.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// All that are whole, newest first.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn list(&self) -> Result<Vec<Image>, Error> {
        let entries = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(at("reading", &self.root)(error)),
        };
        let mut images = Vec::new();
        for entry in entries.flatten() {
            // What is half there is no image; building again replaces it.
            let Ok(image) = Image::open(&entry.path()) else { continue };
            let made = std::fs::metadata(image.folder.join(MANIFEST)).and_then(|meta| meta.modified());
            images.push((made.ok(), image));
        }
        images.sort_by(|(one, left), (other, right)| {
            other.cmp(one).then_with(|| left.folder.cmp(&right.folder))
        });
        Ok(images.into_iter().map(|(_, image)| image).collect())
    }

    /// The newest whose guest is this program's.
    ///
    /// # Errors
    /// There is none; the text says what to do.
    pub fn current(&self) -> Result<Image, Error> {
        let images = self.list()?;
        let stale = images.first().cloned();
        images.into_iter().find(Image::is_current).ok_or_else(|| {
            stale.map_or_else(
                || Error::None { which: String::new() },
                |image| Error::Unusable { path: image.folder, why: "another Karta has made it".to_owned() },
            )
        })
    }

    /// Removes all but the newest current image and those that sandboxes run from, and what interrupted builds have left.
    ///
    /// # Errors
    /// Something can't be removed.
    pub fn prune(&self) -> Result<Pruned, Error> {
        let Some(_lock) = self.try_lock()? else {
            return Err(Error::Tool {
                doing: "removing images".to_owned(),
                said: "a build is going on; wait for it, then try again".to_owned(),
            });
        };
        let keep = self.current().ok().map(|image| image.folder);
        let mut pruned = Pruned { removed: Vec::new(), left: Vec::new() };
        for image in self.list()? {
            if Some(&image.folder) == keep.as_ref() {
                pruned.left.push((image, Left::Newest));
            } else if let Some(_alone) = Lease::alone(&image.folder)? {
                self.discard(&image.folder)?;
                pruned.removed.push(image);
            } else {
                pruned.left.push((image, Left::InUse));
            }
        }
        self.sweep()?;
        Ok(pruned)
    }

    /// Removes a folder in two steps: under its second name it is no image, whatever happens on the way.
    fn discard(&self, folder: &Path) -> Result<(), Error> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let gone = self.root.join(format!("{UNFINISHED}{name}"));
        erofs::remove(&gone)?;
        std::fs::rename(folder, &gone).map_err(at("removing", folder))?;
        erofs::remove(&gone)
    }

    /// Removes what interrupted builds have left. The lock must be held.
    fn sweep(&self) -> Result<(), Error> {
        for entry in std::fs::read_dir(&self.root).map_err(at("reading", &self.root))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                erofs::remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// The right to build and remove; none if another process has it.
    fn try_lock(&self) -> Result<Option<std::fs::File>, Error> {
        std::fs::create_dir_all(&self.root).map_err(at("making", &self.root))?;
        let path = self.root.join(LOCK);
        let file = std::fs::File::create(&path).map_err(at("opening", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(at("locking", &path)(error)),
        }
    }

    /// Builds an image, or finds the one that the same inputs have made already.
    ///
    /// # Errors
    /// What is missing or failed; the text says what to do.
    pub async fn build(
        &self,
        recipe: &Recipe,
        tell: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Image, Error> {
        build::build(self, recipe, tell).await
    }
}
