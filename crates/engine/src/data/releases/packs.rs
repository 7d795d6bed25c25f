//! The blob store: where the content of releases is kept, a folder unless another store is configured.
//!
//! A pack is what one publish brought: a partial archive (see `karta_release::archive`) that lists all files of its release and holds
//! those contents that no earlier pack of the project has. Packs never change; the database knows which pack holds what.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use karta_types::ProjectId;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{GetResultPayload, ObjectStore, ObjectStoreExt as _, WriteMultipart};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::{Error, Result};

/// How much of a pack is handed to the store at once.
const PART: usize = 1 << 20;

/// Packs by project and name.
#[derive(Debug, Clone)]
pub(crate) struct Packs(Arc<dyn ObjectStore>);

fn failed(doing: &'static str) -> impl FnOnce(object_store::Error) -> Error {
    move |error| {
        let full = std::iter::successors(std::error::Error::source(&error), |error| error.source())
            .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
            .any(crate::error::is_full);
        if full { Error::storage_full() } else { Error::internal(doing, error) }
    }
}

fn key(project: ProjectId, name: &str) -> Key {
    Key::from_iter(["packs", &project.to_string(), name])
}

impl Packs {
    /// Packs in a folder, which is made.
    ///
    /// # Errors
    /// It can't be made.
    pub(crate) fn in_folder(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)
            .map_err(|error| Error::internal("making the blob store's folder", error))?;
        // What was put must be there after the end of power, as the record that points to it is.
        let store = LocalFileSystem::new_with_prefix(folder)
            .map_err(failed("opening the blob store"))?
            .with_fsync(true)
            .with_automatic_cleanup(true);
        Ok(Self(Arc::new(store)))
    }

    /// The blob store itself.
    pub(crate) fn store(&self) -> Arc<dyn ObjectStore> {
        self.0.clone()
    }

    /// Puts a file of this machine: all of it is there afterwards, or nothing.
    ///
    /// # Errors
    /// `storage_full`; the store failed.
    pub(crate) async fn put(&self, project: ProjectId, name: &str, file: &Path) -> Result<()> {
        let mut file =
            tokio::fs::File::open(file).await.map_err(|error| Error::internal("reading a pack", error))?;
        let upload =
            self.0.put_multipart(&key(project, name)).await.map_err(failed("putting into the blob store"))?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, 5 * PART);
        let mut part = vec![0; PART];
        loop {
            match file.read(&mut part).await {
                Ok(0) => break,
                Ok(length) => upload.write(&part[..length]),
                Err(error) => {
                    upload.abort().await.map_err(failed("putting into the blob store"))?;
                    return Err(Error::internal("reading a pack", error));
                }
            }
            upload.wait_for_capacity(2).await.map_err(failed("putting into the blob store"))?;
        }
        upload.finish().await.map_err(failed("putting into the blob store"))?;
        Ok(())
    }

    /// A pack, to be read where blocking is allowed.
    ///
    /// # Errors
    /// There is none of this name; the store failed.
    pub(crate) async fn get(&self, project: ProjectId, name: &str) -> Result<Box<dyn Read + Send>> {
        let found = self.0.get(&key(project, name)).await.map_err(failed("reading the blob store"))?;
        Ok(match found.payload {
            GetResultPayload::File(file, _) => Box::new(std::io::BufReader::new(file)),
            GetResultPayload::Stream(stream) => {
                let stream = stream.map(|part| part.map_err(std::io::Error::other));
                Box::new(SyncIoBridge::new(StreamReader::<_, Bytes>::new(stream)))
            }
        })
    }

    /// The names of a project's packs.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) async fn list(&self, project: ProjectId) -> Result<Vec<String>> {
        let folder = Key::from_iter(["packs", &project.to_string()]);
        let mut all = self.0.list(Some(&folder));
        let mut names = Vec::new();
        while let Some(found) = all.next().await {
            let found = found.map_err(failed("listing the blob store"))?;
            names.extend(found.location.filename().map(str::to_owned));
        }
        Ok(names)
    }

    /// Removes a pack. No error if there is none.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) async fn remove(&self, project: ProjectId, name: &str) -> Result<()> {
        match self.0.delete(&key(project, name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed("removing from the blob store")(error)),
        }
    }
}
