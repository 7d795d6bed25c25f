//! Keys, and what is sealed with them.
//!
//! Three files in the key folder, made at the first start: `pepper` keys the hashes of credentials, `seal` the sealing of journal and
//! replies, `sign` signs the ends of the audit log. Sealing is AES-256-GCM under a key that is derived for each record from its context, so no two records share a key and a
//! record that is moved does not open.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, RandomizedNonceKey};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use karta_types::{Rng, Secret};

use crate::{Error, Result};

const KEY: usize = 32;
const NONCE: usize = 12;

/// The keys of one data directory.
#[derive(Clone)]
pub struct Keyring(Arc<Keys>);

struct Keys {
    pepper: hmac::Key,
    seal: hmac::Key,
    sign: Ed25519KeyPair,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keyring(…)")
    }
}

impl Keyring {
    /// Reads the keys, or makes them.
    ///
    /// # Errors
    /// A file can't be read or made, or is not a key.
    pub fn load_or_create(folder: &Path, rng: &dyn Rng) -> Result<Self> {
        let fail = |error: std::io::Error| Error::Key {
            path: folder.display().to_string(),
            reason: error.to_string(),
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail)?;
        let pepper = load(&folder.join("pepper"), rng)?;
        let seal = load(&folder.join("seal"), rng)?;
        let sign = load(&folder.join("sign"), rng)?;
        Self::of(&pepper, &seal, &sign).ok_or_else(|| Error::Key {
            path: folder.join("sign").display().to_string(),
            reason: "is no signing key; restore it from a backup".to_owned(),
        })
    }

    /// Keys for a test, in memory only.
    pub fn in_memory(rng: &dyn Rng) -> Self {
        let make = || {
            let mut key = vec![0; KEY];
            rng.fill(&mut key);
            Secret::new(key)
        };
        // A seed of the right length always makes a key.
        Self::of(&make(), &make(), &make()).unwrap_or_else(|| unreachable!("32 bytes are a key"))
    }

    fn of(pepper: &Secret<Vec<u8>>, seal: &Secret<Vec<u8>>, sign: &Secret<Vec<u8>>) -> Option<Self> {
        Some(Self(Arc::new(Keys {
            pepper: hmac::Key::new(hmac::HMAC_SHA256, pepper.expose()),
            seal: hmac::Key::new(hmac::HMAC_SHA256, seal.expose()),
            sign: Ed25519KeyPair::from_seed_unchecked(sign.expose()).ok()?,
        })))
    }

    /// Signs a message of this installation (Ed25519).
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign.sign(message).as_ref().to_vec()
    }

    /// Whether this installation signed the message.
    pub fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0.sign.public_key().as_ref()).verify(message, signature).is_ok()
    }

    /// The keyed hash that a credential is stored and found by.
    pub fn digest_key(&self, token: &str) -> [u8; 32] {
        let tag = hmac::sign(&self.0.pepper, token.as_bytes());
        let mut digest = [0; 32];
        digest.copy_from_slice(tag.as_ref());
        digest
    }

    /// Seals bytes for a context. Random nonce, bytes, tag.
    ///
    /// # Errors
    /// The cipher failed.
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        let key = self.key_for(context)?;
        let mut sealed = Vec::with_capacity(NONCE + plain.len() + 16);
        sealed.extend_from_slice(&[0; NONCE]);
        sealed.extend_from_slice(plain);
        let mut body = sealed.split_off(NONCE);
        let nonce = key
            .seal_in_place_append_tag(Aad::from(context), &mut body)
            .map_err(|_| Error::Sealed("a record"))?;
        sealed.copy_from_slice(nonce.as_ref());
        sealed.append(&mut body);
        Ok(sealed)
    }

    /// Opens what was sealed for the same context.
    ///
    /// # Errors
    /// It was sealed for another context or with another key, or was changed.
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
        let wrong = || Error::Sealed("a record");
        let (nonce, body) = sealed.split_at_checked(NONCE).ok_or_else(wrong)?;
        let nonce = aws_lc_rs::aead::Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong())?;
        let mut body = body.to_vec();
        let plain = self
            .key_for(context)?
            .open_in_place(nonce, Aad::from(context), &mut body)
            .map_err(|_| wrong())?
            .len();
        body.truncate(plain);
        Ok(body)
    }

    fn key_for(&self, context: &[u8]) -> Result<RandomizedNonceKey> {
        let derived = hmac::sign(&self.0.seal, context);
        RandomizedNonceKey::new(&AES_256_GCM, derived.as_ref()).map_err(|_| Error::Sealed("a record"))
    }
}

fn load(path: &Path, rng: &dyn Rng) -> Result<Secret<Vec<u8>>> {
    let fail = |reason: String| Error::Key { path: path.display().to_string(), reason };
    match fs::read(path) {
        Ok(key) if key.len() == KEY => Ok(Secret::new(key)),
        Ok(key) => Err(fail(format!("has {} bytes, a key has {KEY}; restore it from a backup", key.len()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut key = vec![0; KEY];
            rng.fill(&mut key);
            // Written beside and linked into place: whole or not there, and never over another.
            let beside = path.with_extension("new");
            let written = fs::File::options()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&beside)
                .and_then(|mut file| file.write_all(&key).and_then(|()| file.sync_all()))
                .and_then(|()| fs::rename(&beside, path));
            written.map_err(|error| fail(error.to_string()))?;
            Ok(Secret::new(key))
        }
        Err(error) => Err(fail(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karta_types::rng::Seeded;

    #[test]
    fn opens_only_in_its_own_context() {
        let keys = Keyring::in_memory(&Seeded::new(3));
        let sealed = keys.seal(b"here", b"plain text").unwrap();
        assert_eq!(keys.open(b"here", &sealed).unwrap(), b"plain text");
        assert!(keys.open(b"there", &sealed).is_err());
        assert!(keys.open(b"here", &sealed[..11]).is_err());
        let mut changed = sealed.clone();
        changed[20] ^= 1;
        assert!(keys.open(b"here", &changed).is_err());
        assert!(!sealed.windows(5).any(|part| part == b"plain"));
    }

    #[test]
    fn keys_are_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let first = Keyring::load_or_create(&path, &Seeded::new(1)).unwrap();
        let again = Keyring::load_or_create(&path, &Seeded::new(2)).unwrap();
        assert_eq!(first.digest_key("x"), again.digest_key("x"));
        fs::write(path.join("seal"), b"short").unwrap();
        assert!(Keyring::load_or_create(&path, &Seeded::new(2)).is_err());
    }
}
