//! What an image is.

use serde::{Deserialize, Serialize};

use super::digest;

/// What an image was made from and what came out. Nothing of the machine or the moment is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The form of this file.
    pub format: u32,
    /// The release of Debian.
    pub suite: String,
    /// The packages that were asked for.
    pub packages: Vec<String>,
    /// What the kernel was taken from: a package with its digest, or the digest of a file.
    pub kernel: String,
    /// The SHA-256 of the guest program.
    pub guest: String,
    /// The SHA-256 of everything that the base is made from and that is known before it is made.
    pub inputs: String,
    /// The SHA-256 of the base's tree.
    pub tree: String,
    /// The bytes of the base's tree.
    pub tree_bytes: u64,
    /// The files.
    pub parts: Vec<Part>,
}

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
}

/// The form of manifest that this version writes and reads.
pub(super) const FORMAT: u32 = 1;

impl Manifest {
    /// The image's id.
    pub fn id(&self) -> String {
        // Fields are written in their order here; a plain structure of texts and numbers can always be written.
        digest::hex(&digest::bytes(&serde_json::to_vec(self).unwrap_or_default()))
    }
}
