//! Packs of sealed pieces in the blob store, a folder a session.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use karta_types::{OrgId, SessionId};
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::error::{CheckpointError, blobs};
use super::tree::PackId;

/// The top folder.
const TOP: &str = "state";

/// The blob store, as checkpoints use it.
#[derive(Debug, Clone)]
pub(super) struct Blobs {
    pub(super) store: Arc<dyn ObjectStore>,
    /// The folder, where it is one: what a crash left half written there is no object, and is looked for by name.
    pub(super) folder: Option<PathBuf>,
}

fn folder(org: OrgId, session: SessionId) -> Key {
    Key::from_iter([TOP, &org.to_string(), &session.to_string()])
}

fn key(org: OrgId, session: SessionId, pack: PackId) -> Key {
    folder(org, session).join(pack.to_string())
}

impl Blobs {
    /// Puts a pack: all of it is there afterwards, or nothing.
    pub(super) async fn put(
        &self,
        org: OrgId,
        session: SessionId,
        pack: PackId,
        bytes: Vec<u8>,
    ) -> Result<(), CheckpointError> {
        let put = self.store.put(&key(org, session, pack), bytes.into()).await;
        put.map(drop).map_err(blobs("putting a checkpoint into the blob store"))
    }

    /// Reads a part of a pack; none if the pack, or that part of it, is not there.
    pub(super) async fn get(
        &self,
        org: OrgId,
        session: SessionId,
        pack: PackId,
        range: Range<u64>,
    ) -> Result<Option<Bytes>, CheckpointError> {
        let length = range.end.saturating_sub(range.start);
        match self.store.get_range(&key(org, session, pack), range).await {
            Ok(bytes) => Ok(Some(bytes).filter(|bytes| bytes.len() as u64 == length)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            // A pack that was cut short: the range begins or ends beyond it.
            Err(object_store::Error::Generic { source, .. }) if !is_io(&*source) => Ok(None),
            Err(error) => Err(blobs("reading a checkpoint from the blob store")(error)),
        }
    }

    /// Removes a pack. No error if there is none.
    pub(super) async fn remove(
        &self,
        org: OrgId,
        session: SessionId,
        pack: PackId,
    ) -> Result<(), CheckpointError> {
        match self.store.delete(&key(org, session, pack)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(blobs("removing a checkpoint from the blob store")(error)),
        }
    }

    /// The session's packs.
    pub(super) async fn list(
        &self,
        org: OrgId,
        session: SessionId,
    ) -> Result<BTreeSet<PackId>, CheckpointError> {
        let keys = self.keys(folder(org, session)).await?;
        Ok(keys.iter().filter_map(|key| key.filename()?.parse().ok()).collect())
    }

    /// Removes everything of the session.
    pub(super) async fn erase(&self, org: OrgId, session: SessionId) -> Result<(), CheckpointError> {
        self.clear(folder(org, session)).await?;
        self.remove_folder(&[&org.to_string(), &session.to_string()]).await
    }

    /// Removes what a crash left half written of the session. Nobody else may be writing.
    pub(super) async fn remove_partial(&self, org: OrgId, session: SessionId) -> Result<(), CheckpointError> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let folder = folder.join(TOP).join(org.to_string()).join(session.to_string());
        let remove = move || {
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                // The blob store writes beside, as `name#1`, before it moves a whole file into place.
                if entry.file_name().as_encoded_bytes().contains(&b'#') {
                    std::fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        off(remove).await
    }

    async fn remove_folder(&self, names: &[&str]) -> Result<(), CheckpointError> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let folder = names.iter().fold(folder.join(TOP), |folder, name| folder.join(name));
        off(move || std::fs::remove_dir_all(folder)).await
    }

    /// Removes everything of the organisation.
    pub(super) async fn erase_org(&self, org: OrgId) -> Result<(), CheckpointError> {
        self.clear(Key::from_iter([TOP, &org.to_string()])).await?;
        self.remove_folder(&[&org.to_string()]).await
    }

    /// The sessions that something is kept of.
    pub(super) async fn sessions(&self) -> Result<Vec<(OrgId, SessionId)>, CheckpointError> {
        let mut found = Vec::new();
        for org in self.folders(&Key::from(TOP)).await? {
            let Some(id) = org.filename().and_then(|name| name.parse().ok()) else { continue };
            let sessions = self.folders(&org).await?;
            found.extend(sessions.iter().filter_map(|session| Some((id, session.filename()?.parse().ok()?))));
        }
        Ok(found)
    }

    async fn folders(&self, above: &Key) -> Result<Vec<Key>, CheckpointError> {
        let listed = self.store.list_with_delimiter(Some(above)).await;
        Ok(listed.map_err(blobs("listing the blob store"))?.common_prefixes)
    }

    async fn keys(&self, folder: Key) -> Result<Vec<Key>, CheckpointError> {
        let mut all = self.store.list(Some(&folder));
        let mut keys = Vec::new();
        while let Some(found) = all.next().await {
            keys.push(found.map_err(blobs("listing the blob store"))?.location);
        }
        Ok(keys)
    }

    async fn clear(&self, folder: Key) -> Result<(), CheckpointError> {
        for key in self.keys(folder).await? {
            match self.store.delete(&key).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(blobs("removing a checkpoint from the blob store")(error)),
            }
        }
        Ok(())
    }
}

/// Removes files; that there are none is fine.
async fn off<F>(remove: F) -> Result<(), CheckpointError>
where
    F: FnOnce() -> std::io::Result<()> + Send + 'static,
{
    match tokio::task::spawn_blocking(remove).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Ok(Err(source)) => Err(CheckpointError::Blobs {
            doing: "removing a checkpoint from the blob store's folder",
            source: Box::new(source),
        }),
        Err(_) => Err(CheckpointError::Own("removing files broke off")),
    }
}

/// Whether an error came from a disk or a network, rather than from what was asked for.
fn is_io(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .any(<dyn std::error::Error>::is::<std::io::Error>)
}
