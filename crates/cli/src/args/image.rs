//! `karta image`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Make and list the images that isolated sandboxes start from
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    pub(crate) command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Make an image from packages, or find the one that the same inputs have made
    ///
    /// A kernel, an initramfs and a small read-only Debian with Git, Node.js, Python, ripgrep and certificates. The kernel is
    /// fetched by pip, the rest by mmdebstrap from this host's own package sources.
    Build(ImageBuildArgs),
    /// Show the images there are, newest first
    List,
    /// Remove all images but the newest, and what interrupted builds have left
    Prune,
}

/// What goes into an image.
#[derive(Debug, Args)]
pub(crate) struct ImageBuildArgs {
    /// The release of Debian [default: the host's]
    #[arg(long)]
    pub(crate) suite: Option<String>,
    /// Apt's list of sources for it [default: the host's]
    #[arg(long, value_name = "FILE")]
    pub(crate) sources: Option<PathBuf>,
    /// A package beside those that are always there; may be given more than once
    #[arg(long = "package", value_name = "NAME")]
    pub(crate) packages: Vec<String>,
    /// A kernel of your own: an ELF file with a PVH entry [default: a pinned one, fetched]
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// Make all of it anew, with the packages of today
    #[arg(long)]
    pub(crate) rebuild: bool,
}
