//! Turns that wait for a person with their whole sandbox saved on disk: they cost no memory, and survive the server.
//!
//! Each is a folder `<data>/parked/<session>`: what the driver saved, and a sealed record of what the platform knew. The folder is put
//! together beside its place and moved in last; it is moved away again before anything goes on from it. So whatever is in its place
//! after a crash is whole and was not used.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use karta_harness::Native;
use karta_store::Keyring;
use karta_types::session::Participant;
use karta_types::{KeyId, Seq, SessionId, SessionTokenId, Timestamp, TurnId};
use serde::{Deserialize, Serialize};

use super::tape::Tape;
use crate::{Error, Result};

/// What the driver saves, within a folder.
const MACHINE: &str = "machine";
/// What the platform knows, within a folder.
const RECORD: &str = "record";
/// The largest record that is read back, in bytes.
const RECORD_BYTES: u64 = 64 << 20;

/// The folder of what is parked.
#[derive(Debug)]
pub(crate) struct ParkedTurns {
    root: PathBuf,
    keyring: Keyring,
}

/// A turn that is parked, as the platform knew it.
#[derive(Debug, Serialize, Deserialize)]
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
    /// What is still to be written to the process, in base 64.
    pub(super) pending: Vec<String>,
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
    pub(crate) const fn new(root: PathBuf, keyring: Keyring) -> Self {
        Self { root, keyring }
    }

    fn place(&self, session: SessionId) -> PathBuf {
        self.root.join(session.to_string())
    }

    fn context(session: SessionId) -> Vec<u8> {
        format!("parked turn {session}").into_bytes()
    }

    /// Begins a folder for a session.
    ///
    /// # Errors
    /// It can't be made.
    pub(super) fn begin(&self, session: SessionId) -> Result<Unfinished> {
        let part = self.root.join(format!(".part-{session}"));
        remove(&part);
        fs::DirBuilder::new()
            .recursive(true)
            .create(&part)
            .map_err(|error| Error::internal("making the folder of a parked turn", error))?;
        Ok(Unfinished { part: Some(part), place: self.place(session) })
    }

    /// A record, sealed for this session.
    ///
    /// # Errors
    /// It can't be written as text, or sealed.
    pub(super) fn seal(&self, session: SessionId, record: &Record) -> Result<Vec<u8>> {
        let plain = serde_json::to_vec(record)
            .map_err(|error| Error::internal("writing the record of a parked turn", error))?;
        Ok(self.keyring.seal(&Self::context(session), &plain)?)
    }

    /// The session's record, if it has a parked turn.
    ///
    /// # Errors
    /// It is there and can't be read.
    pub(super) fn read(&self, session: SessionId) -> Result<Option<Record>> {
        let path = self.place(session).join(RECORD);
        let doing = "reading the record of a parked turn";
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::internal(doing, error)),
            Ok(meta) if meta.len() > RECORD_BYTES => {
                return Err(Error::internal(
                    doing,
                    io::Error::other("it is larger than any that is written"),
                ));
            }
            Ok(_) => {}
        }
        let sealed = fs::read(&path).map_err(|error| Error::internal(doing, error))?;
        let plain = self.keyring.open(&Self::context(session), &sealed)?;
        serde_json::from_slice(&plain).map(Some).map_err(|error| Error::internal(doing, error))
    }

    /// The turn that a session has parked here, if any.
    pub(crate) fn holds(&self, session: SessionId) -> Option<TurnId> {
        match self.read(session) {
            Ok(record) => record.map(|record| record.turn),
            Err(error) => {
                tracing::error!(%session, error = error.chain(), "a parked turn is lost");
                None
            }
        }
    }

    /// Takes the folder out, to go on from it: from here on it is used up.
    ///
    /// # Errors
    /// It is not there, or can't be moved.
    pub(super) fn take(&self, session: SessionId) -> Result<Taken> {
        let going = self.root.join(format!(".going-{session}"));
        remove(&going);
        fs::rename(self.place(session), &going)
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

#[cfg(test)]
mod tests {
    use karta_types::rng::System;

    use super::*;

    fn parked(folder: &Path) -> ParkedTurns {
        ParkedTurns::new(folder.join("parked"), Keyring::in_memory(&System))
    }

    #[test]
    fn what_was_not_kept_is_nowhere_and_what_was_is_used_once() {
        let folder = tempfile::tempdir().unwrap();
        let parked = parked(folder.path());
        let session = SessionId::from_u128(1);
        drop(parked.begin(session).unwrap());
        assert!(parked.read(session).unwrap().is_none());
        assert_eq!(fs::read_dir(folder.path().join("parked")).unwrap().count(), 0);

        let unfinished = parked.begin(session).unwrap();
        fs::create_dir(unfinished.machine()).unwrap();
        unfinished.keep(b"not sealed").unwrap();
        assert!(parked.read(session).is_err(), "only what was sealed for the session is taken");
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
            parked.begin(session).unwrap().keep(b"").unwrap();
        }
        std::mem::forget(parked.begin(SessionId::from_u128(3)).unwrap());
        parked.reap(&|session| session == kept);
        let left: Vec<_> = fs::read_dir(folder.path().join("parked"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, [kept.to_string().as_str()]);
    }
}
