//! The keys of checkpoints: one an organisation, wrapped by a key-encryption key, and what is derived from it for each session.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use karta_store::{StateKeyRow, Store};
use karta_types::{Clock, OrgId, Rng, Secret, SessionId};

use super::error::CheckpointError;
use crate::control::encryption::{self, KeyEncryption};
use crate::hex::hex;
use crate::{Error, Result};

/// The format of everything that is sealed. Bound to every piece.
const VERSION: u8 = 1;
const KEY: usize = 32;
const NONCE: usize = 12;
const TAG: usize = 16;
/// How hard what is sealed is compressed: as fast as it goes, a turn's end waits for it.
const LEVEL: i32 = 1;
/// Keys wrapped anew in one step.
const STEP: u32 = 100;

/// What a sealed piece is. A piece of one role does not open as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A part of a file.
    Content,
    /// A part of the list of things.
    List,
    /// The root.
    Root,
    /// What is kept of a turn that is parked.
    Parked,
}

impl Role {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Content => "content",
            Self::List => "list",
            Self::Root => "root",
            Self::Parked => "parked",
        }
    }
}

/// The name of a piece: what it holds, by a hash that only the key's owner can compute.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name(pub(super) [u8; KEY]);

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0[..6]))
    }
}

/// Which part of an organisation shares a key. To give single end users keys of their own, answer their name here: a key goes with its
/// part.
const fn part(_session: SessionId) -> &'static str {
    ""
}

/// What a wrapped key is bound to.
fn context(org: OrgId, part: &str, id: &str) -> Vec<u8> {
    format!("state_key\0{org}\0{part}\0{id}").into_bytes()
}

/// The data keys.
pub(super) struct Keys {
    pub(super) store: Store,
    pub(super) wrapping: Arc<dyn KeyEncryption>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) rng: Arc<dyn Rng>,
}

impl Keys {
    /// The session's key, if its organisation has one.
    pub(super) async fn get(
        &self,
        org: OrgId,
        session: SessionId,
    ) -> Result<Option<SessionKey>, CheckpointError> {
        match self.store.state_key_get(org, part(session)).await? {
            Some(row) => self.derived(row, session).await.map(Some),
            None => Ok(None),
        }
    }

    /// The session's key; its organisation's is made if it has none.
    pub(super) async fn get_or_make(
        &self,
        org: OrgId,
        session: SessionId,
    ) -> Result<SessionKey, CheckpointError> {
        if let Some(key) = self.get(org, session).await? {
            return Ok(key);
        }
        let mut bytes = vec![0; KEY];
        self.rng.fill(&mut bytes);
        let data_key = Secret::new(bytes);
        let mut id = [0; 16];
        self.rng.fill(&mut id);
        let id = hex(&id);
        let wrapped = self.wrapping.wrap(&context(org, part(session), &id), data_key.expose()).await;
        let (kek, wrapped) = wrapped.map_err(CheckpointError::Key)?;
        let part = part(session).to_owned();
        let row = StateKeyRow { id, org, part, kek, wrapped, created_at: self.clock.now() };
        let kept = self.store.state_key_add(row).await?;
        self.derived(kept, session).await
    }

    async fn derived(&self, row: StateKeyRow, session: SessionId) -> Result<SessionKey, CheckpointError> {
        let context = context(row.org, &row.part, &row.id);
        let data_key = self.wrapping.unwrap(&row.kek, &context, &row.wrapped).await;
        SessionKey::new(row.id, data_key.map_err(CheckpointError::Key)?.expose(), row.org, session)
    }

    /// Wraps every data key with this key-encryption key. Answers how many were wrapped anew.
    pub(super) async fn rewrap(&self, current: &str) -> Result<u64> {
        let mut done = 0;
        loop {
            let rows = self.store.state_keys_not_under(current, STEP).await?;
            if rows.is_empty() {
                return Ok(done);
            }
            for row in rows {
                let context = context(row.org, &row.part, &row.id);
                let old = (row.kek.as_str(), &*row.wrapped);
                let Some(wrapped) = encryption::rewrap(&*self.wrapping, current, &context, old).await? else {
                    return Ok(done);
                };
                self.store.state_key_rewrap(&row, current.to_owned(), wrapped).await?;
                done += 1;
            }
        }
    }
}

/// What seals one session's checkpoints.
pub(super) struct SessionKey {
    /// The data key's id.
    pub(super) id: String,
    names: hmac::Key,
    seals: RandomizedNonceKey,
    /// Organisation and session, as every piece is bound to them.
    bound: Vec<u8>,
}

impl SessionKey {
    fn new(id: String, data_key: &[u8], org: OrgId, session: SessionId) -> Result<Self, CheckpointError> {
        if data_key.len() != KEY {
            return Err(CheckpointError::Key(Error::internal(
                "reading a data key",
                "it has the wrong length",
            )));
        }
        let root = hmac::Key::new(hmac::HMAC_SHA256, data_key);
        let mut bound = b"karta state\0".to_vec();
        bound.push(VERSION);
        bound.extend_from_slice(format!("{org}\0{session}\0").as_bytes());
        let derive = |purpose: &[u8]| hmac::sign(&root, &[purpose, b"\0", &bound].concat());
        let names = hmac::Key::new(hmac::HMAC_SHA256, derive(b"names").as_ref());
        let seals = RandomizedNonceKey::new(&AES_256_GCM, derive(b"seals").as_ref())
            .map_err(|_| CheckpointError::Own("the cipher takes no key"))?;
        Ok(Self { id, names, seals, bound })
    }

    /// The name of a piece that holds this.
    pub(super) fn name(&self, role: Role, plain: &[u8]) -> Name {
        let mut signing = hmac::Context::with_key(&self.names);
        signing.update(role.as_str().as_bytes());
        signing.update(b"\0");
        signing.update(plain);
        let mut name = [0; KEY];
        name.copy_from_slice(signing.sign().as_ref());
        Name(name)
    }

    fn aad(&self, role: Role, name: &[u8]) -> Vec<u8> {
        [&self.bound, role.as_str().as_bytes(), b"\0", name].concat()
    }

    /// Compresses and seals a piece, appended to `to`. `name` is its name, or the number of a root. Blocking.
    pub(super) fn seal(
        &self,
        role: Role,
        name: &[u8],
        plain: &[u8],
        to: &mut Vec<u8>,
    ) -> Result<(), CheckpointError> {
        let fail = || CheckpointError::Own("sealing failed");
        let mut body = zstd::bulk::compress(plain, LEVEL).map_err(|_| fail())?;
        let aad = self.aad(role, name);
        let nonce =
            self.seals.seal_in_place_append_tag(Aad::from(aad.as_slice()), &mut body).map_err(|_| fail())?;
        to.extend_from_slice(nonce.as_ref());
        to.append(&mut body);
        Ok(())
    }

    /// Opens a sealed piece of at most `most` bytes. None if it is not what was sealed here under this name. Blocking.
    pub(super) fn open(&self, role: Role, name: &[u8], sealed: &[u8], most: usize) -> Option<Vec<u8>> {
        if sealed.len() < NONCE + TAG {
            return None;
        }
        let (nonce, body) = sealed.split_at_checked(NONCE)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let aad = self.aad(role, name);
        let mut body = body.to_vec();
        let length = self.seals.open_in_place(nonce, Aad::from(aad.as_slice()), &mut body).ok()?.len();
        zstd::bulk::decompress(body.get(..length)?, most).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(org: u128, session: u128, byte: u8) -> SessionKey {
        SessionKey::new("k".into(), &[byte; KEY], OrgId::from_u128(org), SessionId::from_u128(session))
            .unwrap()
    }

    #[test]
    fn a_piece_opens_in_its_own_place_alone() {
        let here = key(1, 2, 9);
        let name = here.name(Role::Content, b"what was said");
        let mut sealed = Vec::new();
        here.seal(Role::Content, &name.0, b"what was said", &mut sealed).unwrap();
        assert_eq!(here.open(Role::Content, &name.0, &sealed, 64).unwrap(), b"what was said");
        let other = here.name(Role::Content, b"something else");
        assert!(here.open(Role::List, &name.0, &sealed, 64).is_none(), "another role");
        assert!(here.open(Role::Content, &other.0, &sealed, 64).is_none(), "another name");
        assert!(here.open(Role::Content, &name.0, &sealed, 4).is_none(), "more than was said");
        for (org, session, byte) in [(2, 2, 9), (1, 3, 9), (1, 2, 8)] {
            let there = key(org, session, byte);
            assert!(there.open(Role::Content, &name.0, &sealed, 64).is_none(), "{org} {session} {byte}");
            assert_ne!(
                there.name(Role::Content, b"what was said"),
                name,
                "equal content has another name there"
            );
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(here.open(Role::Content, &name.0, &changed, 64).is_none(), "byte {at}");
            assert!(here.open(Role::Content, &name.0, &sealed[..at], 64).is_none(), "cut at {at}");
        }
    }
}
