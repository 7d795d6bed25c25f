//! Building an image: whole or not at all, by one builder at a time.

use std::path::{Path, PathBuf};

use super::digest::{self, hex};
use super::manifest::{FORMAT, Manifest, Part};
use super::{BASE, Error, GUEST, INITRAMFS, Image, Images, KERNEL, MANIFEST, ROOT, UNFINISHED};
use super::{at, base, cpio, erofs, kernel};

/// The packages of the base when nobody says others.
const PACKAGES: &[&str] = &["ca-certificates", "git", "nodejs", "python3-minimal", "ripgrep"];

/// What an image is made from.
#[derive(Debug, Clone, Default)]
pub struct Recipe {
    /// The release of Debian; none for the host's own.
    pub suite: Option<String>,
    /// Apt's list of sources; none for the host's own.
    pub sources: Option<PathBuf>,
    /// Packages beside those that are always there: certificates, Git, Node.js, Python, ripgrep.
    pub packages: Vec<String>,
    /// A kernel of the caller's own (an ELF file with a PVH entry); none for the one that is fetched.
    pub kernel: Option<PathBuf>,
    /// Whether all is made anew, with the packages of today, even if the same inputs have made an image already.
    pub rebuild: bool,
}

/// How a build gets on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Another builder is at work.
    Waiting,
    /// The kernel is fetched.
    Kernel,
    /// The base system is made.
    Base,
    /// The base system of an earlier image is taken over.
    Reusing,
    /// The base becomes a file system.
    Packing,
}

pub(super) async fn build(
    images: &Images,
    recipe: &Recipe,
    tell: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Image, Error> {
    if std::env::consts::ARCH != "x86_64" {
        return Err(Error::Machine(std::env::consts::ARCH));
    }
    let suite = recipe.suite.clone().map_or_else(base::suite, Ok)?;
    let mut packages: Vec<String> = PACKAGES.iter().map(|name| (*name).to_owned()).collect();
    packages.extend(recipe.packages.iter().cloned());
    packages.sort();
    packages.dedup();
    if let Some(name) = packages.iter().chain([&suite]).find(|name| !base::is_name(name)) {
        return Err(Error::Tool {
            doing: "reading what to build".to_owned(),
            said: format!(
                "`{name}` is not the name of a package or suite: write letters, digits, `+`, `-`, `.`"
            ),
        });
    }
    let _lock = lock(images, tell).await?;
    let (own, sweeping) = (recipe.kernel.clone(), images.clone());
    let kernel_source = blocking(move || {
        sweeping.sweep()?;
        kernel::source(own.as_deref())
    })
    .await?;
    let wanted = Manifest {
        format: FORMAT,
        inputs: hex(&digest::bytes(format!("{} {suite} {}", base::FORM, packages.join(" ")).as_bytes())),
        suite,
        packages,
        kernel: kernel_source,
        guest: hex(&digest::bytes(GUEST)),
        tree: String::new(),
        tree_bytes: 0,
        parts: Vec::new(),
    };
    let looking = images.clone();
    let known = if recipe.rebuild { Vec::new() } else { blocking(move || looking.list()).await? };
    let same_base = |image: &&Image| image.manifest.inputs == wanted.inputs;
    let same_kernel = |image: &&Image| image.manifest.kernel == wanted.kernel;
    if let Some(image) = known.iter().filter(same_base).filter(same_kernel).find(|image| image.is_current()) {
        return Ok(image.clone());
    }
    let work = images.root.join(format!("{UNFINISHED}build"));
    tokio::fs::create_dir(&work).await.map_err(at("making", &work))?;
    let folder = work.join("image");
    tokio::fs::create_dir(&folder).await.map_err(at("making", &folder))?;

    if let Some(image) = known.iter().find(same_kernel) {
        link(image.kernel(), folder.join(KERNEL)).await?;
    } else if let Some(own) = recipe.kernel.clone() {
        let to = folder.join(KERNEL);
        blocking(move || kernel::take(&own, &to)).await?;
    } else {
        tell(Progress::Kernel);
        kernel::fetch(&work, &folder.join(KERNEL)).await?;
    }
    let root = folder.join(ROOT);
    if let Some(image) = known.iter().find(same_base) {
        tell(Progress::Reusing);
        link(image.base(), folder.join(BASE)).await?;
        let (from, to) = (image.root(), root.clone());
        blocking(move || link_tree(&from, &to)).await?;
    } else {
        tell(Progress::Base);
        base::make(&wanted.suite, &wanted.packages, recipe.sources.as_deref(), &work, &root).await?;
        tell(Progress::Packing);
        erofs::make(&root, &folder.join(BASE)).await?;
    }
    let images = images.clone();
    blocking(move || finish(&images, &work, &folder, wanted)).await
}

/// Waits for the right to build.
async fn lock(images: &Images, tell: &(dyn Fn(Progress) + Send + Sync)) -> Result<std::fs::File, Error> {
    let trying = images.clone();
    if let Some(file) = blocking(move || trying.try_lock()).await? {
        return Ok(file);
    }
    tell(Progress::Waiting);
    let path = images.root.join(super::LOCK);
    blocking(move || {
        let file = std::fs::File::create(&path).map_err(at("opening", &path))?;
        file.lock().map_err(at("locking", &path))?;
        Ok(file)
    })
    .await
}

/// Writes what is left to write and gives the folder its name.
fn finish(images: &Images, work: &Path, folder: &Path, mut manifest: Manifest) -> Result<Image, Error> {
    let initramfs = folder.join(INITRAMFS);
    std::fs::write(&initramfs, cpio::initramfs(GUEST)).map_err(at("writing", &initramfs))?;
    let (tree, bytes) = digest::tree(&folder.join(ROOT))?;
    (manifest.tree, manifest.tree_bytes) = (hex(&tree), bytes);
    for name in [KERNEL, INITRAMFS, BASE] {
        let path = folder.join(name);
        let bytes = std::fs::metadata(&path).map_err(at("reading", &path))?.len();
        let sha256 = hex(&digest::file(&path)?);
        sync(&path)?;
        manifest.parts.push(Part { name: name.to_owned(), bytes, sha256 });
    }
    let path = folder.join(MANIFEST);
    let text = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
    std::fs::write(&path, text).map_err(at("writing", &path))?;
    sync(&path)?;
    let home = images.root.join(manifest.id());
    if home.exists() {
        // The same came out again: the one that is there may be in use.
        let known = Image::open(&home);
        if known.is_ok() {
            let again = home.join(MANIFEST);
            // Made just now as well: it is the newest.
            let touched = std::fs::copy(&path, folder.join("manifest.new"))
                .and_then(|_| std::fs::rename(folder.join("manifest.new"), &again));
            touched.map_err(at("writing", &again))?;
            erofs::remove(work)?;
            return known;
        }
        images.discard(&home)?;
    }
    std::fs::rename(folder, &home).map_err(at("finishing", &home))?;
    erofs::remove(work)?;
    sync(&images.root)?;
    Image::open(&home)
}

fn sync(path: &Path) -> Result<(), Error> {
    std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(at("writing", path))
}

async fn link(from: PathBuf, to: PathBuf) -> Result<(), Error> {
    tokio::fs::hard_link(&from, &to).await.map_err(at("taking over", &from))
}

/// The same tree at another place, its files shared: nobody writes them.
fn link_tree(from: &Path, to: &Path) -> Result<(), Error> {
    let permissions = std::fs::metadata(from).map_err(at("reading", from))?.permissions();
    std::fs::create_dir(to).map_err(at("making", to))?;
    for entry in std::fs::read_dir(from).map_err(at("reading", from))? {
        let entry = entry.map_err(at("reading", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().map_err(at("reading", &source))?.is_dir() {
            link_tree(&source, &target)?;
        } else {
            std::fs::hard_link(&source, &target).map_err(at("taking over", &source))?;
        }
    }
    std::fs::set_permissions(to, permissions).map_err(at("making", to))
}

/// Runs file work where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Error::Tool { doing: "working with files".to_owned(), said: error.to_string() })
    })
}
