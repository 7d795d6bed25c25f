//! Turns that wait for a person with their whole sandbox saved on disk: they cost no memory, and survive the server.
//!
//! Each is a folder `<data>/parked/<session>`: what the driver saved, and a record of what the platform knew. The record is sealed under
//! the organisation's key, as checkpoints are; in it is the key that the driver has sealed with. The folder is put together beside its
//! place and moved in last; it is moved away again before anything goes on from it. So whatever is in its place after a crash is whole and
//! was not used.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use karta_harness::Native;
use karta_sandbox::ParkKey;
use karta_types::session::Participant;
use karta_types::{ErrorCode, KeyId, OrgId, Secret, Seq, SessionId, SessionTokenId, Timestamp, TurnId};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::tape::Tape;
use crate::data::checkpoints::CheckpointError;
use crate::data::egress::KeptAuthority;
use crate::{Engine, Error, Result};

/// What the driver saves, within a folder.
const MACHINE: &str = "machine";
/// What the platform knows, within a folder.
const RECORD: &str = "record";
/// The largest record that is read back, in bytes.
const RECORD_BYTES: usize = 64 << 20;
/// How many are saved at once: each takes a processor and the disk.
const AT_ONCE: usize = 2;
/// How often a turn is taken up anew after what the server itself did wrong; what it waits for may take as long as it does.
pub(super) const TRIES: u32 = 20;
/// What is left free of the disk: parking must not be what stops turns that run.
const SPARE: u64 = 64 << 20;

/// The folder of what is parked.
#[derive(Debug)]
pub(crate) struct ParkedTurns {
    root: PathBuf,
    /// Bytes that those that are being saved may still write.
    promised: Arc<Mutex<u64>>,
    places: Arc<Semaphore>,
    /// Sessions whose turns could not be taken up: how often, and whether that is tried again in a while.
    failed: Arc<Mutex<HashMap<SessionId, (u32, bool)>>>,
}

/// A turn that is parked, as the platform knew it.
#[derive(Serialize, Deserialize)]
pub(super) struct Record {
    /// The turn.
    pub(super) turn: TurnId,
    /// The key that it came with.
    pub(super) key: Option<KeyId>,
    /// The session token that it came with.
    pub(super) token: Option<SessionTokenId>,
    /// The agent asked for.
    pub(super) asked_agent: Option<String>,
    /// Who spoke.
    pub(super) participant: Option<Participant>,
    /// Whether thinking is shown.
    pub(super) thinking: bool,
    /// When it was accepted.
    pub(super) at: Timestamp,
    /// When it began.
    pub(super) started: Timestamp,
    /// When its first text was heard.
    pub(super) first_text: Option<Timestamp>,
    /// The session's last event before it.
    pub(super) head: Seq,
    /// The release that runs.
    pub(super) version: u64,
    /// The process's agent.
    pub(super) agent: Option<String>,
    /// How the harness began.
    pub(super) native: KeptNative,
    /// The place as the process sees it: workspace, home, temporary files.
    pub(super) place: [PathBuf; 3],
    /// The model token that the process has.
    pub(super) model_token: String,
    /// Everything that the machine was told.
    pub(super) tape: Tape,
    /// Where the process serves HTTP, if it does.
    #[serde(default)]
    pub(super) port: Option<u16>,
    /// What is still to be written to the process, in base 64.
    pub(super) pending: Vec<String>,
    /// What the driver has sealed with, in base 64.
    pub(super) park_key: String,
    /// The certificate authority that programs inside trust.
    pub(super) authority: Option<KeptAuthority>,
}

impl Record {
    /// What the driver has sealed with; none if it is no key.
    pub(super) fn park_key(&self) -> Option<ParkKey> {
        bytes(&self.park_key)?.try_into().ok().map(ParkKey::new)
    }
}

/// [`Native`], to be kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct KeptNative {
    resumed: bool,
    id: String,
}

impl From<&Native> for KeptNative {
    fn from(native: &Native) -> Self {
        match native {
            Native::New(id) => Self { resumed: false, id: id.clone() },
            Native::Resume(id) => Self { resumed: true, id: id.clone() },
        }
    }
}

impl From<KeptNative> for Native {
    fn from(kept: KeptNative) -> Self {
        if kept.resumed { Self::Resume(kept.id) } else { Self::New(kept.id) }
    }
}

/// Bytes as text.
pub(super) fn text(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Text as bytes; none if it is no such text.
pub(super) fn bytes(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// A folder that is being put together. Dropped before it is [kept](Unfinished::keep), it is removed.
#[derive(Debug)]
pub(super) struct Unfinished {
    part: Option<PathBuf>,
    place: PathBuf,
    promised: Arc<Mutex<u64>>,
    bytes: u64,
}

/// A folder that was taken out, to go on from. Removed when this is dropped.
#[derive(Debug)]
pub(super) struct Taken(PathBuf);

impl Unfinished {
    /// Where the driver saves.
    pub(super) fn machine(&self) -> PathBuf {
        self.part.as_deref().unwrap_or(&self.place).join(MACHINE)
    }

    /// Writes the record and puts the folder in its place.
    pub(super) fn keep(mut self, sealed: &[u8]) -> io::Result<()> {
        let Some(part) = &self.part else { return Ok(()) };
        let path = part.join(RECORD);
        fs::write(&path, sealed)?;
        fs::File::open(&path)?.sync_all()?;
        fs::File::open(part)?.sync_all()?;
        fs::rename(part, &self.place)?;
        self.part = None;
        // The name is on the disk when the folder that holds it is.
        self.place.parent().map_or(Ok(()), |root| fs::File::open(root)?.sync_all())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        *promised = promised.saturating_sub(self.bytes);
        drop(promised);
        if let Some(part) = self.part.take() {
            remove(&part);
        }
    }
}

impl Taken {
    /// What the driver saved.
    pub(super) fn machine(&self) -> PathBuf {
        self.0.join(MACHINE)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Removes a folder; what can't be removed now is at the next start.
fn remove(folder: &Path) {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "removing a parked turn");
        }
        _ => {}
    }
}

impl ParkedTurns {
    /// In this folder, which need not be there.
    pub(crate) fn new(root: PathBuf) -> Self {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        Self { root, promised: Arc::default(), places, failed: Arc::default() }
    }

    fn place(&self, session: SessionId) -> PathBuf {
        self.root.join(session.to_string())
    }

    /// A place among those that are saved at once, if there is one.
    pub(super) fn try_enter(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// The same, when there is one.
    pub(super) async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        // Never closed.
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    /// Begins a folder for a session, into which so many bytes at most will be written.
    ///
    /// # Errors
    /// It can't be made; `storage_full` where the disk may not have the room.
    pub(super) fn begin(&self, session: SessionId, bytes: u64) -> Result<Unfinished> {
        let fail = |error| Error::internal("making the folder of a parked turn", error);
        let part = self.root.join(format!(".part-{session}"));
        remove(&part);
        fs::DirBuilder::new().recursive(true).create(&part).map_err(fail)?;
        let place = self.place(session);
        let mut unfinished =
            Unfinished { part: Some(part), place, promised: Arc::clone(&self.promised), bytes: 0 };
        let disk = rustix::fs::statvfs(&self.root).map_err(|error| fail(error.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = promised.saturating_add(bytes).saturating_add(SPARE);
        if free < needed {
            drop(promised);
            return Err(Error::told(
                ErrorCode::StorageFull,
                format!(
                    "to park it takes up to {} MiB of free disk below `{}`, and there are {}",
                    needed >> 20,
                    self.root.display(),
                    free >> 20
                ),
            ));
        }
        *promised += bytes;
        drop(promised);
        unfinished.bytes = bytes;
        Ok(unfinished)
    }

    fn failed(&self) -> MutexGuard<'_, HashMap<SessionId, (u32, bool)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a session's turn could not be taken up. Whether somebody has to see to it that it is tried again: once for all.
    pub(super) fn tries_again(&self, session: SessionId) -> bool {
        let mut failed = self.failed();
        let (tries, waits) = failed.entry(session).or_default();
        let begins = !*waits;
        if begins {
            *tries += 1;
            *waits = true;
        }
        begins
    }

    /// How often a session's turn could not be taken up.
    pub(super) fn tries(&self, session: SessionId) -> u32 {
        self.failed().get(&session).map_or(0, |(tries, _)| *tries)
    }

    /// It is tried now; or it is `again` no more, and forgotten.
    pub(super) fn tried(&self, session: SessionId, again: bool) {
        let mut failed = self.failed();
        if again {
            failed.entry(session).and_modify(|(_, waits)| *waits = false);
        } else {
            failed.remove(&session);
        }
    }

    /// Writes the record of what is in its place anew: all of it or nothing.
    ///
    /// # Errors
    /// It is not in its place, or can't be written.
    pub(super) fn rewrite(&self, session: SessionId, sealed: &[u8]) -> io::Result<()> {
        let place = self.place(session);
        let new = place.join(format!("{RECORD}.new"));
        fs::write(&new, sealed)?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(&new, place.join(RECORD))?;
        fs::File::open(&place)?.sync_all()
    }

    /// Whether the session has something parked here.
    pub(super) fn has(&self, session: SessionId) -> bool {
        self.place(session).exists()
    }

    /// The session's record as it lies there, if it has a parked turn.
    fn read(&self, session: SessionId) -> io::Result<Option<Vec<u8>>> {
        use std::os::unix::fs::OpenOptionsExt as _;
        // Whatever lies there instead of a file is not followed or waited for.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or_default();
        let path = self.place(session).join(RECORD);
        let file = match fs::File::options().read(true).custom_flags(flags).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        let mut sealed = Vec::new();
        file.take(RECORD_BYTES as u64 + 1).read_to_end(&mut sealed)?;
        if sealed.len() > RECORD_BYTES {
            return Err(io::Error::other("it is larger than any that is written"));
        }
        Ok(Some(sealed))
    }

    /// Takes the folder out, to go on from it: from here on it is used up.
    ///
    /// # Errors
    /// It is not there, or can't be moved.
    pub(super) fn take(&self, session: SessionId) -> Result<Taken> {
        let going = self.root.join(format!(".going-{session}"));
        remove(&going);
        // On the disk before anything goes on from it: after a loss of power it must not be found as if it were unused.
        fs::rename(self.place(session), &going)
            .and_then(|()| fs::File::open(&self.root)?.sync_all())
            .map_err(|error| Error::internal("taking a parked turn up again", error))?;
        Ok(Taken(going))
    }

    /// Removes what a session has parked.
    pub(crate) fn erase(&self, session: SessionId) {
        // Under another name first: a folder half removed must not be found by a start that comes between.
        drop(self.take(session));
    }

    /// The sessions that have something parked here.
    pub(crate) fn sessions(&self) -> Vec<SessionId> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// After a crash: removes what was not finished, and what `keep` does not know.
    pub(crate) fn reap(&self, keep: &dyn Fn(SessionId) -> bool) {
        let Ok(entries) = fs::read_dir(&self.root) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let known = name.to_str().and_then(|name| name.parse().ok()).is_some_and(keep);
            if !known {
                remove(&entry.path());
            }
        }
    }
}

impl Engine {
    /// A record, sealed for this session under its organisation's key.
    ///
    /// # Errors
    /// It can't be written as text, or sealed.
    pub(super) async fn seal_record(
        &self,
        org: OrgId,
        session: SessionId,
        record: &Record,
    ) -> Result<Vec<u8>> {
        let plain = serde_json::to_vec(record).map(Secret::new);
        let plain = plain.map_err(|error| Error::internal("writing the record of a parked turn", error))?;
        Ok(self.checkpoints().seal_parked(org, session, plain).await?)
    }

    /// The record of a session's parked turn; none if there is none. One that can't be read is as good as none, and told in the log.
    ///
    /// # Errors
    /// The database failed.
    pub(super) async fn read_record(&self, org: OrgId, session: SessionId) -> Result<Option<Record>> {
        let parked = self.parked().clone();
        let read = tokio::task::spawn_blocking(move || parked.read(session)).await;
        let read = read.unwrap_or_else(|error| Err(io::Error::other(error)));
        let doing = "reading the record of a parked turn";
        let opened = match read {
            Ok(None) => return Ok(None),
            Err(error) => Err(Error::internal(doing, error)),
            Ok(Some(sealed)) => {
                match self.checkpoints().open_parked(org, session, sealed, RECORD_BYTES).await {
                    // What may be read another time is not lost.
                    Err(error @ CheckpointError::Store(_)) => return Err(error.into()),
                    Err(error @ CheckpointError::Key(_)) if self.parked().tries(session) < TRIES => {
                        return Err(error.into());
                    }
                    Err(error) => Err(error.into()),
                    Ok(None) => Err(Error::internal(doing, "it is not as it was written")),
                    Ok(Some(plain)) => {
                        serde_json::from_slice(plain.expose()).map_err(|error| Error::internal(doing, error))
                    }
                }
            }
        };
        match opened {
            Ok(record) => Ok(Some(record)),
            Err(error) => {
                tracing::error!(%session, error = error.chain(), "a parked turn is lost");
                Ok(None)
            }
        }
    }

    /// The turn that a session has parked here, if it can be read.
    ///
    /// # Errors
    /// The database failed.
    pub(crate) async fn parked_turn(&self, org: OrgId, session: SessionId) -> Result<Option<TurnId>> {
        Ok(self.read_record(org, session).await?.map(|record| record.turn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(folder: &Path) -> ParkedTurns {
        ParkedTurns::new(folder.join("parked"))
    }

    #[test]
    fn what_was_not_kept_is_nowhere_and_what_was_is_used_once() {
        let folder = tempfile::tempdir().unwrap();
        let parked = parked(folder.path());
        let session = SessionId::from_u128(1);
        drop(parked.begin(session, 1).unwrap());
        assert!(parked.read(session).unwrap().is_none());
        assert_eq!(fs::read_dir(folder.path().join("parked")).unwrap().count(), 0);

        let unfinished = parked.begin(session, 1).unwrap();
        fs::create_dir(unfinished.machine()).unwrap();
        unfinished.keep(b"sealed").unwrap();
        assert_eq!(parked.read(session).unwrap().unwrap(), b"sealed");
        let taken = parked.take(session).unwrap();
        assert!(taken.machine().is_dir());
        assert!(parked.take(session).is_err());
        drop(taken);
        assert_eq!(fs::read_dir(folder.path().join("parked")).unwrap().count(), 0);
    }

    #[test]
    fn a_start_keeps_only_what_belongs_to_a_turn() {
        let folder = tempfile::tempdir().unwrap();
        let parked = parked(folder.path());
        let (kept, lost) = (SessionId::from_u128(1), SessionId::from_u128(2));
        for session in [kept, lost] {
            parked.begin(session, 1).unwrap().keep(b"").unwrap();
        }
        std::mem::forget(parked.begin(SessionId::from_u128(3), 1).unwrap());
        parked.reap(&|session| session == kept);
        let left: Vec<_> = fs::read_dir(folder.path().join("parked"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, [kept.to_string().as_str()]);
    }

    #[test]
    fn nothing_begins_that_the_disk_may_not_have_room_for() {
        let folder = tempfile::tempdir().unwrap();
        let parked = parked(folder.path());
        let (one, other) = (SessionId::from_u128(1), SessionId::from_u128(2));
        let disk = rustix::fs::statvfs(folder.path()).unwrap();
        // Others write to the same disk meanwhile: nothing here is as near as that.
        let most = disk.f_bavail * disk.f_frsize / 8 * 5;
        assert!(parked.begin(one, 2 * most).unwrap_err().problem().detail.contains("MiB of free disk"));
        let first = parked.begin(one, most).unwrap();
        assert!(parked.begin(other, most).is_err(), "what is promised counts");
        assert_eq!(fs::read_dir(folder.path().join("parked")).unwrap().count(), 1, "nothing is left of it");
        drop(first);
        parked.begin(other, most).unwrap().keep(b"sealed").unwrap();
        assert!(parked.begin(one, most).is_ok(), "what was kept is not promised any more");
    }

    #[test]
    fn what_is_no_record_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let parked = parked(folder.path());
        let session = SessionId::from_u128(1);
        parked.begin(session, 1).unwrap().keep(b"sealed").unwrap();
        let record = parked.place(session).join(RECORD);
        fs::File::options().write(true).open(&record).unwrap().set_len(1 << 40).unwrap();
        assert!(parked.read(session).is_err(), "endless");
        fs::remove_file(&record).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &record).unwrap();
        assert!(parked.read(session).is_err(), "a link");
        fs::remove_file(&record).unwrap();
        fs::create_dir(&record).unwrap();
        assert!(parked.read(session).is_err(), "a folder");
    }
}
