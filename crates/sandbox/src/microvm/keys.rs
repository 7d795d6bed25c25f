//! Which machines are alike: those that may begin as copies of one snapshot.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::command::Shape;
use super::disks::Disk;
use super::{Shared, blocking, boot, disks, lock};
use crate::Error;
use crate::image::{hex, tree_digest};

/// What a snapshot is known by: a digest of all that is in it.
pub(super) type Key = String;

/// A kind of machine.
#[derive(Debug, Clone)]
pub(super) struct Kind {
    /// What its snapshot is known by.
    pub(super) key: Key,
    /// How big it is and how it runs.
    pub(super) shape: Shape,
    /// The disk with the harness.
    pub(super) harness: Option<Arc<Disk>>,
    /// The formatted disk for sessions, to be copied.
    pub(super) session: Arc<Disk>,
}

/// The digests of harness folders that were looked at. Installed versions are never changed.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<HashMap<PathBuf, String>>);

/// The kind of machine for this harness.
pub(super) async fn kind(shared: &Shared, harness: Option<&Path>) -> Result<Kind, Error> {
    let base = shared.base().await?;
    let shape = boot::shape(shared).await?;
    let harness = match harness {
        Some(folder) => {
            let digest = digest(&shared.kinds, folder).await?;
            Some((shared.disks.tree(folder, &format!("harness-{digest}")).await?, digest))
        }
        None => None,
    };
    let session = shared.disks.template(shared.limits.disk_bytes).await?;
    let of = format!(
        "{} {} {shape:?} {} {} {}",
        base.id,
        harness.as_ref().map_or("none", |(_, digest)| digest),
        shared.limits.disk_bytes,
        disks::RELEASE,
        shared.host().await?.version(),
    );
    let key = hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, of.as_bytes()).as_ref());
    let harness = harness.map(|(disk, _)| Arc::new(disk));
    Ok(Kind { key, shape, harness, session: Arc::new(session) })
}

async fn digest(known: &Known, folder: &Path) -> Result<String, Error> {
    if let Some(digest) = lock(&known.0).get(folder) {
        return Ok(digest.clone());
    }
    let reading = folder.to_owned();
    let (digest, _) = blocking(move || tree_digest(&reading).map_err(|error| disks::failed(&error))).await?;
    let digest = hex(&digest);
    lock(&known.0).insert(folder.to_owned(), digest.clone());
    Ok(digest)
}
