//! Checkpoints in the engine: opened, kept in order, and an organisation's made unreadable.

use std::path::PathBuf;
use std::sync::Arc;

use karta_store::{Keyring, Store};
use karta_types::{Clock, OrgId, Rng};
use object_store::ObjectStore;

use super::{Checkpoints, Limits};
use crate::control::audit::by_platform;
use crate::control::encryption::{KeyEncryption, LocalKeys, NoKeys};
use crate::data::releases::Packs;
use crate::data::turn::parked::ParkedTurns;
use crate::settings::{Plane, Settings};
use crate::{Engine, Error, Result};

/// What is told in the audit log of a destroyed key.
const DESTROYED: &str = "state_key.destroyed";

/// Opens the checkpoints of this server. Their data keys are wrapped by keys of their own, in `keys/state`, which a data plane has too.
///
/// # Errors
/// A key can't be read or made.
pub(crate) fn open(
    settings: &Settings,
    store: &Store,
    blobs: Arc<dyn ObjectStore>,
    folder: PathBuf,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
) -> Result<Checkpoints> {
    let wrapping: Arc<dyn KeyEncryption> = if settings.plane == Plane::Control {
        Arc::new(NoKeys)
    } else {
        Arc::new(LocalKeys::open(&settings.data.join("keys").join("state"), clock.clone(), rng.clone())?)
    };
    let limits = Limits {
        bytes: settings.state.session_bytes,
        files: settings.state.session_files,
        keep: settings.state.keep,
        seconds: settings.state.seconds,
    };
    Ok(Checkpoints::new(store.clone(), blobs, Some(folder), wrapping, clock, rng, limits))
}

/// Destroys an organisation's state keys on the store, whether a server runs or not, and erases what they opened. The organisation is named
/// by its id or its slug. Answers how many checkpoints there were.
///
/// # Errors
/// `not_found` for the organisation; a store can't be opened or written.
pub async fn shred(settings: &Settings, org: &str) -> Result<u64> {
    let (clock, rng) = (Arc::new(karta_types::time::System), Arc::new(karta_types::rng::System));
    let keyring = Keyring::load_or_create(&settings.data.join("keys"), &*rng)?;
    let store = Store::open(settings.store_options(keyring)).await?;
    let done = async {
        let id = match org.parse::<OrgId>() {
            Ok(id) => id,
            Err(_) => store.org_by_slug(org).await?.ok_or_else(|| Error::not_found("organisation"))?.id,
        };
        let blobs = settings.releases.blobs.clone().unwrap_or_else(|| settings.data.join("blobs"));
        let packs = Packs::in_folder(&blobs)?;
        let told = by_platform((&*clock, &*rng), id, DESTROYED, id, None);
        let checkpoints = open(settings, &store, packs.store(), blobs, clock.clone(), rng.clone())?;
        let parked = ParkedTurns::new(settings.data.join("parked"));
        let destroyed = checkpoints.destroy_key(id, told).await?;
        erase_parked(&parked, &store, id).await?;
        Ok(destroyed)
    };
    let done = done.await;
    store.close().await;
    done
}

/// Removes the organisation's turns that are parked on this host: nobody can read them any more.
async fn erase_parked(parked: &ParkedTurns, store: &Store, org: OrgId) -> Result<()> {
    for session in parked.sessions() {
        if store.session_get(org, session).await?.is_some() {
            parked.erase(session);
        }
    }
    Ok(())
}

impl Engine {
    /// Destroys an organisation's state keys: every copy of what its sessions have made is unreadable from then on, and what lies here is
    /// erased. Its sessions begin anew; a machine that runs goes on with what is in it. Answers how many checkpoints there were.
    ///
    /// # Errors
    /// A store can't be written.
    pub async fn destroy_state_key(&self, org: OrgId) -> Result<u64> {
        let told = by_platform((self.clock(), self.rng()), org, DESTROYED, org, None);
        let destroyed = self.checkpoints().destroy_key(org, told).await?;
        erase_parked(self.parked(), self.store(), org).await?;
        Ok(destroyed)
    }

    /// Makes a new key that wraps the organisations' state keys, and wraps each of them with it. Answers how many.
    ///
    /// # Errors
    /// One can't be unwrapped; those before it are done.
    pub async fn rotate_state_keys(&self) -> Result<u64> {
        self.checkpoints().rotate().await
    }

    /// Removes what a crash left, and wraps keys anew when it is time.
    pub(crate) async fn keep_state(&self) -> Result<()> {
        let swept = self.checkpoints().sweep().await?;
        if swept > 0 {
            tracing::warn!(sessions = swept, "removed checkpoints of sessions that are gone");
        }
        if self.checkpoints().is_due() {
            let keys = self.rotate_state_keys().await?;
            tracing::info!(keys, "a new key wraps the organisations' state keys");
        }
        Ok(())
    }
}
