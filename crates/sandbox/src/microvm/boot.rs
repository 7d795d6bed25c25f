//! The first machine of a kind, which boots and becomes a snapshot, and the others, which begin from it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use karta_guest::proto::message::{Prepare, Request};
use serde::{Deserialize, Serialize};

use super::command::{Accelerator, Shape};
use super::disks::{self, Disk, at};
use super::keys::Kind;
use super::pool::Spare;
use super::snapshot::Snapshot;
use super::vm::{Drives, Origin, Vm};
use super::{DISKS, Shared, blocking, memory};
use crate::Error;
use crate::guest::Link;
use crate::image::{Image, Images, Lease};
use crate::uplink::Nowhere;

/// How long a machine may take from its kernel to the guest's first word. By software on a busy host it is seconds.
const BOOT: Duration = Duration::from_mins(2);
/// The same where the processor should run it: if it takes longer, it doesn't.
const TRIAL: Duration = Duration::from_secs(10);
/// How long a guest may take to mount its system.
const PREPARE: Duration = Duration::from_mins(1);
/// Memory is given in such pieces.
pub(super) const MEBIBYTE: u64 = 1 << 20;
/// The generation of machines that become snapshots.
pub(super) const FIRST: u64 = 1;

/// The image that machines are made from.
#[derive(Debug)]
pub(super) struct Base {
    /// Its id.
    pub(super) id: String,
    /// Open from the start, for as long as machines are made from it.
    kernel: Disk,
    initramfs: Disk,
    disk: Disk,
    /// It stays as long.
    _lease: Lease,
}

impl Base {
    /// The image in this folder, or the newest there is.
    pub(super) fn open(images: &Images, named: Option<&Path>) -> Result<Self, Error> {
        let image =
            named.map_or_else(|| images.current(), Image::open).map_err(|error| disks::failed(&error))?;
        if !image.is_current() {
            return Err(Error::Unavailable(format!(
                "the image `{}` was made by another Karta: run `karta image build`",
                image.folder.display()
            )));
        }
        let gone = || {
            Error::Unavailable(format!("the image `{}` is being removed: try again", image.folder.display()))
        };
        let lease = Lease::take(&image.folder).map_err(|error| disks::failed(&error))?.ok_or_else(gone)?;
        Ok(Self {
            id: image.id(),
            kernel: Disk::open(image.kernel())?,
            initramfs: Disk::open(image.initramfs())?,
            disk: Disk::open(image.base())?,
            _lease: lease,
        })
    }
}

/// How machines are made here.
pub(super) async fn shape(shared: &Shared) -> Result<Shape, Error> {
    let (accelerator, _) = shared.accelerator.get_or_try_init(|| probe(shared)).await?;
    Ok(sized(shared, *accelerator))
}

fn sized(shared: &Shared, accelerator: Accelerator) -> Shape {
    let memory = (shared.limits.memory_bytes / MEBIBYTE).max(128);
    // Emulated processors of one machine get in each other's way; of the others, as many as it may use.
    let processors = match accelerator {
        Accelerator::Tcg => 1,
        Accelerator::Kvm => shared.limits.cpu_hundredths.div_ceil(100).clamp(1, 16),
    };
    Shape { accelerator, memory, processors }
}

/// What was found out about the processor.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    /// The start of the host, and the image, the VMM and the device that it was tried with.
    with: String,
    /// What runs machines.
    accelerator: Accelerator,
    /// Why not the processor.
    why: Option<String>,
}

/// Finds out by booting whether the processor runs machines; once for each start of the host, and
/// again when the device has changed hands.
async fn probe(shared: &Shared) -> Result<(Accelerator, Option<String>), Error> {
    let base = shared.base().await?;
    let host = shared.host().await?;
    let start = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let with = format!("{} {} {} {}", start.trim(), base.id, host.version(), host.device());
    let path = shared.limits.root.join("accelerator.json");
    let known =
        tokio::fs::read(&path).await.ok().and_then(|text| serde_json::from_slice::<Found>(&text).ok());
    if let Some(found) = known.filter(|found| found.with == with) {
        return Ok((found.accelerator, found.why));
    }
    let why = if let Err(why) = host.has_kvm() {
        Some(why)
    } else {
        let shape = Shape { memory: 256, ..sized(shared, Accelerator::Kvm) };
        match booted(shared, shape, None, None, TRIAL).await {
            Ok((mut vm, ..)) => {
                vm.end().await;
                None
            }
            Err(error) => Some(format!("a trial machine did not boot with /dev/kvm ({error})")),
        }
    };
    let accelerator = if why.is_none() { Accelerator::Kvm } else { Accelerator::Tcg };
    let found = Found { with, accelerator, why };
    // If it can't be noted, it is found out again.
    let _ = tokio::fs::create_dir_all(&shared.limits.root).await;
    let _ = tokio::fs::write(&path, serde_json::to_vec(&found).unwrap_or_default()).await;
    Ok((accelerator, found.why))
}

/// A machine that has booted, with its guest's link and its memory.
async fn booted(
    shared: &Shared,
    shape: Shape,
    harness: Option<Arc<Disk>>,
    session: Option<Arc<Disk>>,
    patience: Duration,
) -> Result<(Vm, Link, File), Error> {
    let base = shared.base().await?;
    let folder = shared.disks.root().to_owned();
    let host = shared.host().await?;
    let made = blocking(move || {
        let ram = memory::create(shape.memory * MEBIBYTE)
            .map_err(|error| Error::Unavailable(format!("there is no memory for a machine ({error})")))?;
        let release = disks::unnamed(&folder)?;
        release.set_len(disks::RELEASE).map_err(at("making a disk in", &folder))?;
        let state = disks::unnamed(&folder)?;
        match &session {
            Some(template) => template.copy(&state)?,
            None => state.set_len(MEBIBYTE).map_err(at("making a disk in", &folder))?,
        }
        let empty = || -> Result<OwnedFd, Error> {
            let file = disks::unnamed(&folder)?;
            file.set_len(MEBIBYTE).map_err(at("making a disk in", &folder))?;
            disks::read_only(&file).map_err(at("making a disk in", &folder))
        };
        let drives = Drives {
            base: base.disk.again()?,
            harness: harness.as_deref().map_or_else(empty, Disk::again)?,
            release: disks::read_only(&release).map_err(at("making a disk in", &folder))?,
            session: state.into(),
        };
        let origin = Origin::Boot { kernel: base.kernel.again()?, initramfs: base.initramfs.again()? };
        Ok((origin, drives, ram))
    });
    let ((origin, drives, ram), room) = tokio::try_join!(made, host.room(shape.memory))?;
    let given = memory::another(&ram)
        .map_err(|error| Error::Unavailable(format!("there is no memory for a machine ({error})")))?;
    let mut vm = Vm::start(host, room, shape, origin, given, drives).await?;
    let stream = vm.take_guest()?;
    let link = Link::start(stream, FIRST, Arc::new(Nowhere));
    if let Err(error) = link.hello(patience).await {
        return Err(vm.failed(error).await);
    }
    Ok((vm, link, ram))
}

/// The snapshot of a kind: read, or made by booting a machine.
pub(super) async fn snapshot(shared: &Shared, kind: &Kind) -> Result<Arc<Snapshot>, Error> {
    let folder = shared.limits.root.join("snapshots").join(&kind.key);
    let reading = folder.clone();
    if let Some(snapshot) = blocking(move || Snapshot::load(&reading)).await? {
        return Ok(Arc::new(snapshot));
    }
    let snapshot = Arc::new(booted_snapshot(shared, kind).await?);
    let saving = Arc::clone(&snapshot);
    blocking(move || {
        if let Err(error) = saving.save(&folder) {
            // It can be used; the next start of the server makes it again.
            tracing::warn!(error = crate::chain(&error), "a snapshot could not be kept on disk");
        }
        Ok(())
    })
    .await?;
    Ok(snapshot)
}

/// A snapshot made by booting a machine.
pub(super) async fn booted_snapshot(shared: &Shared, kind: &Kind) -> Result<Snapshot, Error> {
    let (vm, link, ram) =
        booted(shared, kind.shape, kind.harness.clone(), Some(Arc::clone(&kind.session)), BOOT).await?;
    let prepare =
        Prepare { base: DISKS[0].to_owned(), harness: kind.harness.as_ref().map(|_| DISKS[1].to_owned()) };
    link.request(&Request::Prepare(prepare), PREPARE).await?;
    link.request(&Request::Sync, PREPARE).await?;
    let state = File::from(
        rustix::fs::memfd_create(c"guest-state", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|error| Error::Unavailable(format!("there is no memory for a snapshot ({error})")))?,
    );
    vm.freeze(&state).await?;
    drop(link);
    blocking(move || Snapshot::of(ram, &state)).await
}

/// What a machine that goes on from a state is made of, besides its memory and its state.
pub(super) struct Parts {
    pub(super) drives: Drives,
    /// The file that is its disk for the release.
    pub(super) release: File,
    /// The file that is the session's disk.
    pub(super) session: File,
}

/// Disks for a machine of a kind, with this one for the session. It may block.
pub(super) fn parts(base: &Base, folder: &Path, kind: &Kind, session: File) -> Result<Parts, Error> {
    let making = |error| at("making a disk in", folder)(error);
    let release = disks::unnamed(folder)?;
    release.set_len(disks::RELEASE).map_err(making)?;
    let harness = if let Some(disk) = &kind.harness {
        disk.again()?
    } else {
        let file = disks::unnamed(folder)?;
        file.set_len(MEBIBYTE).map_err(making)?;
        disks::read_only(&file).map_err(making)?
    };
    let drives = Drives {
        base: base.disk.again()?,
        harness,
        release: disks::read_only(&release).map_err(making)?,
        session: session.try_clone().map_err(making)?.into(),
    };
    Ok(Parts { drives, release, session })
}

/// A machine of a kind, from its snapshot.
pub(super) async fn restore(shared: &Shared, kind: &Kind, snapshot: &Arc<Snapshot>) -> Result<Spare, Error> {
    let base = shared.base().await?;
    let folder = shared.disks.root().to_owned();
    let (snapshot, kind) = (Arc::clone(snapshot), kind.clone());
    let shape = kind.shape;
    let made = blocking(move || {
        let failed = |error| Error::Unavailable(format!("there is no memory for a machine ({error})"));
        let session = disks::unnamed(&folder)?;
        kind.session.copy(&session)?;
        let parts = parts(&base, &folder, &kind, session)?;
        let origin = Origin::State(snapshot.state().map_err(failed)?);
        Ok((origin, snapshot.memory().map_err(failed)?, parts))
    });
    let host = shared.host().await?;
    let ((origin, memory, parts), room) = tokio::try_join!(made, host.room(shape.memory))?;
    let Parts { drives, release, session } = parts;
    let vm = Vm::start(host, room, shape, origin, memory, drives).await?;
    Ok(Spare { vm, release, session })
}
