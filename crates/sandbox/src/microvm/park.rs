//! A machine put aside on disk with all that runs in it, and taken up again.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use karta_types::SandboxId;
use serde::{Deserialize, Serialize};

use super::boot::{MEBIBYTE, Parts};
use super::disks::at;
use super::keys::Key;
use super::qmp::Qmp;
use super::vm::{self, Kept, Origin, Vm};
use super::{Shared, blocking, boot, disks, keys, memory, place};
use crate::guest::{GuestSandbox, Setup, adopt};
use crate::{Error, Process, Spec};

/// The state of the machine with its memory, the session's disk, and which machine it was.
const STATE: &str = "state";
const DISK: &str = "disk";
const MACHINE: &str = "machine.json";

/// What it takes to save a machine.
#[derive(Debug)]
pub(super) struct What {
    /// The file that is the session's disk.
    pub(super) session: File,
    /// The kind of machine.
    pub(super) key: Key,
    /// The release in it.
    pub(super) digest: String,
}

/// Which machine was saved.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Machine {
    key: Key,
    digest: String,
}

/// Stops a machine and writes it into a folder that is made. If that fails, it stands still and the folder is gone again.
pub(super) async fn save(control: &mut Qmp, what: &What, into: &Path) -> Result<(), Error> {
    vm::command(control, "stop").await?;
    tokio::fs::create_dir(into).await.map_err(at("making", into))?;
    let saved = write(control, what, into).await;
    if saved.is_err() {
        // What went wrong is of more interest than what is left of it.
        let _ = tokio::fs::remove_dir_all(into).await;
    }
    saved
}

async fn write(control: &mut Qmp, what: &What, into: &Path) -> Result<(), Error> {
    let path = into.join(STATE);
    let create = |path: &Path| {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(at("making", path))
    };
    let state = create(&path)?;
    vm::save(control, &state).await?;
    let disk = into.join(DISK);
    let target = create(&disk)?;
    let session = what.session.try_clone().map_err(at("reading", &disk))?;
    let machine = Machine { key: what.key.clone(), digest: what.digest.clone() };
    let into = into.to_owned();
    blocking(move || {
        disks::copy_file(&session, &target).map_err(at("writing", &disk))?;
        for file in [&state, &target] {
            file.sync_all().map_err(at("writing", &into))?;
        }
        let record = into.join(MACHINE);
        std::fs::write(&record, serde_json::to_vec(&machine).unwrap_or_default())
            .and_then(|()| File::open(&record)?.sync_all())
            .map_err(at("writing", &record))?;
        // The names too: what is found after the power went is whole.
        File::open(&into).and_then(|folder| folder.sync_all()).map_err(at("writing", &into))
    })
    .await
}

/// Takes a machine up again, and its folder away.
pub(super) async fn revive(
    shared: &Arc<Shared>,
    spec: &Spec,
    from: &Path,
) -> Result<(GuestSandbox, Vec<Process>), Error> {
    let revived = taken(shared, spec, from).await;
    if let Err(error) = tokio::fs::remove_dir_all(from).await {
        tracing::warn!(%error, "what a parked machine was kept in could not be removed");
    }
    revived
}

async fn taken(
    shared: &Arc<Shared>,
    spec: &Spec,
    from: &Path,
) -> Result<(GuestSandbox, Vec<Process>), Error> {
    let kind = keys::kind(shared, spec.harness.as_deref()).await?;
    let reading = from.to_owned();
    let machine = blocking(move || {
        let path = reading.join(MACHINE);
        let text = std::fs::read(&path).map_err(at("reading", &path))?;
        serde_json::from_slice::<Machine>(&text)
            .map_err(|_| Error::Unavailable("what was kept of a machine is damaged".to_owned()))
    })
    .await?;
    let differs = |what: &str| {
        Err(Error::Unavailable(format!(
            "the parked machine had {what} than machines have now: begin from a checkpoint"
        )))
    };
    if machine.key != kind.key {
        return differs("another image, harness, size or QEMU");
    }
    if machine.digest != spec.digest {
        return differs("another release");
    }
    let base = shared.base().await?;
    let release = shared.disks.release(&spec.release, &spec.digest).await?;
    let (folder, from, shape) = (shared.disks.root().to_owned(), from.to_owned(), kind.shape);
    let harness = kind.harness.is_some();
    let (parts, state, ram) = blocking(move || {
        let path = from.join(DISK);
        let session = File::options().read(true).write(true).open(&path).map_err(at("opening", &path))?;
        let parts = boot::parts(&base, &folder, &kind, session)?;
        release.copy(&parts.release)?;
        let path = from.join(STATE);
        let state = File::open(&path).map_err(at("opening", &path))?;
        let ram = memory::create(shape.memory * MEBIBYTE).map_err(at("making memory for", &path))?;
        Ok((parts, OwnedFd::from(state), OwnedFd::from(ram)))
    })
    .await?;
    let Parts { drives, session, .. } = parts;
    let origin = Origin::State(state);
    let host = shared.host().await?;
    let room = host.room(shape.memory).await?;
    let mut vm = Vm::start(host, room, shape, origin, ram, drives).await?;
    vm.go_on().await?;
    let (running, control, stream) = vm.into_parts()?;
    let now = shared.clock.now().as_micros().saturating_mul(1000);
    let (link, processes) = adopt(stream, shared.generation(), Arc::clone(&spec.uplink), now).await?;
    let kept = What { session, key: machine.key, digest: machine.digest };
    let machine = Kept::new(running, control, link.clone(), Arc::clone(&shared.clock), kept);
    let setup = Setup {
        id: SandboxId::new(&*shared.clock, &*shared.rng),
        place: place(harness),
        link,
        machine: Box::new(machine),
        kept: Vec::new(),
        fresh: false,
        services: std::net::Ipv4Addr::LOCALHOST,
    };
    Ok((GuestSandbox::new(setup), processes))
}
