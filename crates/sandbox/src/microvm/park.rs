//! A machine put aside on disk with all that runs in it, and taken up again. What is on the disk is sealed from the first byte on.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use karta_types::SandboxId;
use serde::{Deserialize, Serialize};

use super::boot::{MEBIBYTE, Parts};
use super::disks::at;
use super::keys::Key;
use super::qmp::Qmp;
use super::vm::{self, ANSWER, Kept, Origin, READ, SAVE, Vm};
use super::{Shared, blocking, boot, disks, keys, memory, place, streams};
use crate::guest::{GuestSandbox, Setup, adopt};
use crate::sealed::{Opening, Sealing, is_damage};
use crate::{Error, ParkKey, Process, Spec};

/// The state of the machine with its memory, the session's disk, and which machine it was: names of files, and what they are sealed for.
const STATE: &str = "state";
const DISK: &str = "disk";
const MACHINE: &str = "machine";
/// The longest text that says which machine it was.
const LONGEST: u64 = 64 << 10;

/// What it takes to save a machine.
#[derive(Debug)]
pub(super) struct What {
    /// The file that is the session's disk.
    pub(super) session: File,
    /// The machine's memory in MiB.
    pub(super) memory: u64,
    /// The kind of machine.
    pub(super) key: Key,
    /// The release in it.
    pub(super) digest: String,
}

impl What {
    /// The most bytes of the machine's state: its memory, a few for each page, and its devices.
    const fn state(&self) -> u64 {
        let memory = self.memory * MEBIBYTE;
        memory + memory / 64 + 16 * MEBIBYTE
    }

    /// The most bytes that saving it takes now.
    pub(super) fn bytes(&self) -> u64 {
        // One that can't be asked can't be saved either.
        let disk = self.session.metadata().map_or(0, |meta| meta.blocks().saturating_mul(512));
        self.state().saturating_add(disk).saturating_add(disk / 1024)
    }
}

/// Which machine was saved.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Machine {
    key: Key,
    digest: String,
}

/// Stops a machine and writes it into a folder that is made. If that fails, the folder is gone again; the machine stands still, or it is
/// not known what it does, which the control stream tells.
pub(super) async fn save(control: &mut Qmp, what: &What, into: &Path, key: &ParkKey) -> Result<(), Error> {
    vm::command(control, "stop").await?;
    tokio::fs::create_dir(into).await.map_err(at("making", into))?;
    let off = Arc::new(AtomicBool::new(false));
    let saved = tokio::time::timeout(SAVE, write(control, what, into, key, &off)).await;
    off.store(true, Ordering::Relaxed);
    let saved = saved.unwrap_or_else(|_| Err(vm::late("the machine was not saved", SAVE)));
    if saved.is_err()
        && let Err(error) = tokio::fs::remove_dir_all(into).await
    {
        tracing::warn!(%error, folder = %into.display(), "what is left of a machine that was not saved");
    }
    saved
}

async fn write(
    control: &mut Qmp,
    what: &What,
    into: &Path,
    key: &ParkKey,
    off: &Arc<AtomicBool>,
) -> Result<(), Error> {
    let path = into.join(STATE);
    let (folder, sealing) = (into.to_owned(), key.clone());
    let state = blocking(move || create(&folder, STATE, &sealing)).await?;
    let (ours, theirs) = streams::incoming().map_err(at("making a pipe for", &path))?;
    let mut copying = pin!(vm::copy_out(control, theirs));
    let mut draining = pin!(streams::drain(ours, state, what.state()));
    let state = tokio::select! {
        copied = &mut copying => {
            copied.map_err(|error| vm::unsaved(&error))?;
            draining.await.map_err(at("writing", &path))?
        }
        drained = &mut draining => {
            // Where nobody takes it any more, the machine monitor has to notice before anything else is asked of it.
            let copied = copying.await;
            let state = drained.map_err(at("writing", &path))?;
            copied.map_err(|error| vm::unsaved(&error))?;
            state
        }
    };
    let session = what.session.try_clone().map_err(at("reading the disk for", into))?;
    let machine = Machine { key: what.key.clone(), digest: what.digest.clone() };
    let (into, key, off) = (into.to_owned(), key.clone(), Arc::clone(off));
    blocking(move || {
        finish(state, &into.join(STATE))?;
        let mut disk = create(&into, DISK, &key)?;
        streams::write_disk(&session, &mut disk, &off).map_err(at("writing", &into.join(DISK)))?;
        finish(disk, &into.join(DISK))?;
        let mut record = create(&into, MACHINE, &key)?;
        let text = serde_json::to_vec(&machine).unwrap_or_default();
        record.write_all(&text).map_err(at("writing", &into.join(MACHINE)))?;
        finish(record, &into.join(MACHINE))?;
        // The names too: what is found after the power went is whole.
        File::open(&into).and_then(|folder| folder.sync_all()).map_err(at("writing", &into))
    })
    .await
}

/// A new sealed file in this folder.
fn create(folder: &Path, name: &str, key: &ParkKey) -> Result<Sealing<File>, Error> {
    let path = folder.join(name);
    let made = File::options().write(true).create_new(true).mode(0o600).open(&path);
    made.and_then(|file| Sealing::begin(file, key, name)).map_err(at("making", &path))
}

fn finish(sealing: Sealing<File>, path: &Path) -> Result<(), Error> {
    sealing.finish().and_then(|file| file.sync_all()).map_err(at("writing", path))
}

/// A sealed file of this folder. Whatever lies there instead of it is not waited for.
fn open(folder: &Path, name: &str, key: &ParkKey) -> Result<Opening<File>, Error> {
    let path = folder.join(name);
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(&path).map_err(at("opening", &path))?;
    let meta = file.metadata().map_err(at("reading", &path))?;
    if !meta.is_file() {
        return Err(damaged());
    }
    Opening::begin(file, meta.len(), key, name).map_err(unread(&path))
}

fn damaged() -> Error {
    Error::Unavailable(
        "what was kept of the parked machine is not as it was written: begin from a checkpoint".to_owned(),
    )
}

fn unread(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    |error| if is_damage(&error) { damaged() } else { at("reading", path)(error) }
}

/// Takes a machine up again, and its folder away.
pub(super) async fn revive(
    shared: &Arc<Shared>,
    spec: &Spec,
    from: &Path,
    key: &ParkKey,
) -> Result<(GuestSandbox, Vec<Process>), Error> {
    let revived = taken(shared, spec, from, key).await;
    if let Err(error) = tokio::fs::remove_dir_all(from).await {
        tracing::warn!(%error, "what a parked machine was kept in could not be removed");
    }
    revived
}

async fn taken(
    shared: &Arc<Shared>,
    spec: &Spec,
    from: &Path,
    key: &ParkKey,
) -> Result<(GuestSandbox, Vec<Process>), Error> {
    let kind = keys::kind(shared, spec.harness.as_deref()).await?;
    let (reading, opening) = (from.to_owned(), key.clone());
    let machine = blocking(move || {
        let path = reading.join(MACHINE);
        let mut text = Vec::new();
        let mut record = open(&reading, MACHINE, &opening)?;
        record.by_ref().take(LONGEST).read_to_end(&mut text).map_err(unread(&path))?;
        serde_json::from_slice::<Machine>(&text).map_err(|_| damaged())
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
    let (folder, reading, shape) = (shared.disks.root().to_owned(), from.to_owned(), kind.shape);
    let (harness, key) = (kind.harness.is_some(), key.clone());
    let (parts, state, ram) = blocking(move || {
        let path = reading.join(DISK);
        // As every disk of a machine that runs: in plain, and without a name.
        let session = disks::unnamed(&folder)?;
        let length = kind.session.length()?;
        streams::read_disk(&mut open(&reading, DISK, &key)?, &session, length).map_err(unread(&path))?;
        let parts = boot::parts(&base, &folder, &kind, session)?;
        release.copy(&parts.release)?;
        let ram = memory::create(shape.memory * MEBIBYTE).map_err(at("making memory for", &path))?;
        Ok((parts, open(&reading, STATE, &key)?, OwnedFd::from(ram)))
    })
    .await?;
    let Parts { drives, session, .. } = parts;
    let host = shared.host().await?;
    let room = host.room(shape.memory).await?;
    let path = from.join(STATE);
    let (ours, theirs) = streams::outgoing().map_err(at("making a pipe for", &path))?;
    let starting = Vm::start(host, room, shape, Origin::State(theirs), ram, drives);
    // What is killed reads no more, which ends it.
    let feeding = blocking(move || streams::feed(state, ours).map_err(unread(&path)));
    // It stands still until all of its state was found to be as it was written.
    let begun = tokio::time::timeout(READ + ANSWER, async { tokio::try_join!(starting, feeding) });
    let (mut vm, ()) =
        begun.await.unwrap_or_else(|_| Err(vm::late("the machine's state was not taken", READ)))?;
    vm.go_on().await?;
    let (running, control, stream) = vm.into_parts()?;
    let now = shared.clock.now().as_micros().saturating_mul(1000);
    let (link, processes) = adopt(stream, shared.generation(), Arc::clone(&spec.uplink), now).await?;
    let kept = What { session, memory: shape.memory, key: machine.key, digest: machine.digest };
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::UnixStream;

    use super::*;

    /// A monitor that answers everything, and tells of a migration what it is told to, once the pipe has taken so many bytes.
    async fn monitor(stream: UnixStream, told: Option<&str>) {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            let line: Value = serde_json::from_str(&line).unwrap();
            write.write_all(b"{\"return\":{}}\n").await.unwrap();
            match (line["execute"].as_str(), told) {
                (Some("migrate"), Some(told)) => {
                    let event = format!("{{\"event\":\"MIGRATION\",\"data\":{{\"status\":\"{told}\"}}}}\n");
                    write.write_all(event.as_bytes()).await.unwrap();
                }
                (Some("migrate"), None) => tokio::time::advance(SAVE + Duration::from_secs(1)).await,
                _ => {}
            }
        }
    }

    async fn saved(told: Option<&'static str>) -> (Result<(), Error>, bool, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let session = tempfile::tempfile().unwrap();
        let what = What { session, memory: 1, key: "kind".to_owned(), digest: "one".to_owned() };
        let into = folder.path().join("machine");
        let saving = async {
            let mut control = Qmp::open(ours, &[]).await.unwrap();
            let saved = save(&mut control, &what, &into, &ParkKey::new([1; 32])).await;
            (saved, control.is_settled())
        };
        let ((saved, settled), ()) = tokio::join!(saving, monitor(theirs, told));
        (saved, settled, folder)
    }

    fn is_empty(folder: &tempfile::TempDir) -> bool {
        folder.path().read_dir().unwrap().next().is_none()
    }

    #[tokio::test]
    async fn a_save_that_takes_too_long_leaves_a_monitor_that_is_not_settled() {
        tokio::time::pause();
        let (saved, settled, folder) = saved(None).await;
        assert!(saved.unwrap_err().to_string().contains("not saved within"));
        assert!(!settled, "it may still be copying");
        assert!(is_empty(&folder));
    }

    #[tokio::test]
    async fn a_save_that_fails_leaves_nothing_and_a_monitor_that_can_go_on() {
        let (saved, settled, folder) = saved(Some("failed")).await;
        assert!(saved.is_err());
        assert!(settled && is_empty(&folder));
    }

    #[tokio::test]
    async fn what_is_saved_is_three_sealed_files() {
        let (saved, settled, folder) = saved(Some("completed")).await;
        saved.unwrap();
        assert!(settled);
        let into = folder.path().join("machine");
        for name in [STATE, DISK, MACHINE] {
            assert!(open(&into, name, &ParkKey::new([1; 32])).unwrap().read_to_end(&mut Vec::new()).is_ok());
            let other = ParkKey::new([2; 32]);
            assert!(open(&into, name, &other).unwrap().read_to_end(&mut Vec::new()).is_err());
        }
    }
}
