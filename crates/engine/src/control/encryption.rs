//! Envelope encryption: every secret under a data key of its own, every data key wrapped by a key-encryption key.
//!
//! A secret is bound to its organisation, kind and id: moved to another row it does not open. To keep key-encryption keys elsewhere (a
//! cloud's key service), implement [`KeyEncryption`]; [`LocalKeys`] keeps them in files beside the other keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use karta_types::{Clock, Rng, Secret, Timestamp};

use crate::hex::hex;
use crate::{Error, Result};

const KEY: usize = 32;
/// How long a key-encryption key wraps before a new one takes over.
const AGE: Duration = Duration::from_hours(24 * 90);
const NONCE: usize = 12;

/// Wraps data keys.
#[async_trait]
pub trait KeyEncryption: Send + Sync {
    /// The key-encryption key that wraps now.
    fn current(&self) -> String;
    /// Wraps a data key for a context, with the current key. Answers which that was.
    async fn wrap(&self, context: &[u8], data_key: &[u8]) -> Result<(String, Vec<u8>)>;
    /// Unwraps a data key.
    ///
    /// # Errors
    /// The key-encryption key is not there, or the context is another one.
    async fn unwrap(&self, kek: &str, context: &[u8], wrapped: &[u8]) -> Result<Secret<Vec<u8>>>;
    /// Makes a new current key. Older ones go on unwrapping.
    async fn rotate(&self) -> Result<String>;
    /// Whether the current key has wrapped for long enough.
    fn is_due(&self) -> bool;
}

/// A secret, sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The key-encryption key.
    pub kek: String,
    /// The wrapped data key.
    pub wrapped: Vec<u8>,
    /// The secret under the data key.
    pub sealed: Vec<u8>,
}

/// Seals a secret for a context under a new data key.
///
/// # Errors
/// The data key can't be wrapped.
pub async fn seal(keys: &dyn KeyEncryption, rng: &dyn Rng, context: &[u8], plain: &[u8]) -> Result<Sealed> {
    let mut bytes = vec![0; KEY];
    rng.fill(&mut bytes);
    let data_key = Secret::new(bytes);
    let sealed = encrypt(data_key.expose(), context, plain)?;
    let (kek, wrapped) = keys.wrap(context, data_key.expose()).await?;
    Ok(Sealed { kek, wrapped, sealed })
}

/// Opens what was sealed for this context.
///
/// # Errors
/// It was sealed for another context, or its key-encryption key is gone.
pub async fn open(keys: &dyn KeyEncryption, context: &[u8], sealed: &Sealed) -> Result<Secret> {
    let data_key = keys.unwrap(&sealed.kek, context, &sealed.wrapped).await?;
    let plain = decrypt(data_key.expose(), context, &sealed.sealed)?;
    String::from_utf8(plain)
        .map(Secret::new)
        .map_err(|_| Error::internal("opening a secret", "it is no text"))
}

/// Wraps a data key anew. None if that is no longer done with `current`: another key-encryption key was made meanwhile, by another
/// server or by a clock that was ahead, and whoever made it wraps with it.
///
/// # Errors
/// The data key can't be unwrapped, or not be wrapped.
pub async fn rewrap(
    keys: &dyn KeyEncryption,
    current: &str,
    context: &[u8],
    (kek, wrapped): (&str, &[u8]),
) -> Result<Option<Vec<u8>>> {
    let data_key = keys.unwrap(kek, context, wrapped).await?;
    let (kek, wrapped) = keys.wrap(context, data_key.expose()).await?;
    Ok((kek == current).then_some(wrapped))
}

fn encrypt(key: &[u8], context: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
    let fail = |_| Error::internal("sealing a secret", "the cipher failed");
    let mut body = plain.to_vec();
    let cipher = RandomizedNonceKey::new(&AES_256_GCM, key).map_err(fail)?;
    let nonce = cipher.seal_in_place_append_tag(Aad::from(context), &mut body).map_err(fail)?;
    let mut sealed = nonce.as_ref().to_vec();
    sealed.append(&mut body);
    Ok(sealed)
}

fn decrypt(key: &[u8], context: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
    let wrong = || Error::internal("opening a secret", "it was sealed with another key or for another row");
    let (nonce, body) = sealed.split_at_checked(NONCE).ok_or_else(wrong)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong())?;
    let mut body = body.to_vec();
    let cipher = RandomizedNonceKey::new(&AES_256_GCM, key).map_err(|_| wrong())?;
    let length = cipher.open_in_place(nonce, Aad::from(context), &mut body).map_err(|_| wrong())?.len();
    body.truncate(length);
    Ok(body)
}

/// No key at all: a data plane opens nothing that is sealed so.
#[derive(Debug, Clone, Copy)]
pub struct NoKeys;

impl NoKeys {
    fn none<T>() -> Result<T> {
        Err(Error::internal("opening a secret", "a data plane has no key-encryption key"))
    }
}

#[async_trait]
impl KeyEncryption for NoKeys {
    fn current(&self) -> String {
        String::new()
    }

    async fn wrap(&self, _: &[u8], _: &[u8]) -> Result<(String, Vec<u8>)> {
        Self::none()
    }

    async fn unwrap(&self, _: &str, _: &[u8], _: &[u8]) -> Result<Secret<Vec<u8>>> {
        Self::none()
    }

    async fn rotate(&self) -> Result<String> {
        Self::none()
    }

    fn is_due(&self) -> bool {
        false
    }
}

type Keys = BTreeMap<String, Arc<Secret<Vec<u8>>>>;

/// Key-encryption keys in files, one each, named by when they were made.
pub struct LocalKeys {
    folder: PathBuf,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    keys: RwLock<Keys>,
}

impl std::fmt::Debug for LocalKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalKeys").finish_non_exhaustive()
    }
}

impl LocalKeys {
    /// Reads the keys of a folder; makes the first.
    ///
    /// # Errors
    /// A file can't be read or made, or is not a key.
    pub fn open(folder: &Path, clock: Arc<dyn Clock>, rng: Arc<dyn Rng>) -> Result<Self> {
        let keys = Self { folder: folder.to_owned(), clock, rng, keys: RwLock::default() };
        std::fs::create_dir_all(folder).map_err(|error| keys.fail(error))?;
        keys.read()?;
        if keys.current().is_empty() {
            keys.make()?;
        }
        Ok(keys)
    }

    fn fail(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        let error = error.into();
        Error::internal(
            "keeping key-encryption keys",
            format!("the folder `{}`: {error}", self.folder.display()),
        )
    }

    fn read(&self) -> Result<()> {
        let mut found = Keys::new();
        for entry in std::fs::read_dir(&self.folder).map_err(|error| self.fail(error))? {
            let entry = entry.map_err(|error| self.fail(error))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with("kek_") {
                continue;
            }
            let key = std::fs::read(entry.path()).map_err(|error| self.fail(error))?;
            if key.len() != KEY {
                return Err(self.fail(format!("`{name}` is no key; restore it from a backup")));
            }
            found.insert(name, Arc::new(Secret::new(key)));
        }
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(())
    }

    fn make(&self) -> Result<String> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut key = vec![0; KEY];
        self.rng.fill(&mut key);
        let mut unique = [0; 4];
        self.rng.fill(&mut unique);
        // Names sort by when the keys were made: the last one is the current one. So a new one is later than all others, also those that
        // another server made, and also where the clock went back.
        self.read()?;
        let made = made(&self.current()).map_or(i64::MIN, |last| last.saturating_add(1));
        let name = format!("kek_{:016x}{}", self.clock.now().as_micros().max(made), hex(&unique));
        let beside = self.folder.join(format!("new_{name}"));
        std::fs::File::options()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&beside)
            .and_then(|mut file| file.write_all(&key).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&beside, self.folder.join(&name)))
            .map_err(|error| self.fail(error))?;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.insert(name.clone(), Arc::new(Secret::new(key)));
        Ok(name)
    }

    fn get(&self, kek: &str) -> Result<Arc<Secret<Vec<u8>>>> {
        let known = || self.keys.read().unwrap_or_else(PoisonError::into_inner).get(kek).cloned();
        if let Some(key) = known() {
            return Ok(key);
        }
        // Another server on the same folder may have made it.
        self.read()?;
        known().ok_or_else(|| self.fail(format!("the key `{kek}` is not there; restore it from a backup")))
    }
}

#[async_trait]
impl KeyEncryption for LocalKeys {
    fn current(&self) -> String {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.keys().next_back().cloned().unwrap_or_default()
    }

    async fn wrap(&self, context: &[u8], data_key: &[u8]) -> Result<(String, Vec<u8>)> {
        let kek = self.current();
        let wrapped = encrypt(self.get(&kek)?.expose(), context, data_key)?;
        Ok((kek, wrapped))
    }

    async fn unwrap(&self, kek: &str, context: &[u8], wrapped: &[u8]) -> Result<Secret<Vec<u8>>> {
        decrypt(self.get(kek)?.expose(), context, wrapped).map(Secret::new)
    }

    async fn rotate(&self) -> Result<String> {
        self.make()
    }

    fn is_due(&self) -> bool {
        let made = made(&self.current());
        made.is_none_or(|made| self.clock.now().since(Timestamp::from_micros(made)) > AGE)
    }
}

/// When a key was made, by its name: microseconds since 1970.
fn made(name: &str) -> Option<i64> {
    i64::from_str_radix(name.get(4..20)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use karta_types::rng::Seeded;
    use karta_types::time::{Fixed, System};

    #[tokio::test]
    async fn a_secret_opens_in_its_own_row_only_and_outlives_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let rng = Arc::new(Seeded::new(5));
        let keys = LocalKeys::open(folder.path(), Arc::new(System), rng.clone()).unwrap();
        let sealed = seal(&keys, &*rng, b"org_1/provider_key/mk_1", b"sk-marked").await.unwrap();
        assert!(!format!("{sealed:?}").contains("sk-marked"));
        assert!(open(&keys, b"org_2/provider_key/mk_1", &sealed).await.is_err());
        let first = keys.current();
        let second = keys.rotate().await.unwrap();
        assert!(second > first && keys.current() == second);
        assert_eq!(open(&keys, b"org_1/provider_key/mk_1", &sealed).await.unwrap().expose(), "sk-marked");
        assert!(!keys.is_due(), "a new one has its time before it");
        let again = LocalKeys::open(folder.path(), Arc::new(System), rng).unwrap();
        assert_eq!(again.current(), second);
        assert_eq!(open(&again, b"org_1/provider_key/mk_1", &sealed).await.unwrap().expose(), "sk-marked");
        std::fs::remove_file(folder.path().join(&first)).unwrap();
        let without = LocalKeys::open(folder.path(), Arc::new(System), Arc::new(Seeded::new(6))).unwrap();
        let lost = open(&without, b"org_1/provider_key/mk_1", &sealed).await.unwrap_err();
        assert!(lost.chain().contains("restore it from a backup"), "{}", lost.chain());
    }

    #[tokio::test]
    async fn a_new_key_is_the_current_one_also_where_the_clock_went_back() {
        let folder = tempfile::tempdir().unwrap();
        let at = |micros| Arc::new(Fixed::new(Timestamp::from_micros(micros)));
        let rng = Arc::new(Seeded::new(7));
        let ahead = LocalKeys::open(folder.path(), at(2_000_000), rng.clone()).unwrap();
        let behind = LocalKeys::open(folder.path(), at(1_000_000), rng.clone()).unwrap();
        let made = behind.rotate().await.unwrap();
        assert_eq!(behind.current(), made);
        // The other server has not read of it, and makes a later one all the same.
        let later = ahead.rotate().await.unwrap();
        assert!(later > made && ahead.current() == later);
        assert!(!behind.is_due());
        // Who learns of a key that is later than its own by unwrapping stops, and leaves the rest to whoever made it.
        let sealed = seal(&ahead, &*rng, b"row", b"text").await.unwrap();
        assert_eq!(rewrap(&behind, &made, b"row", (&sealed.kek, &sealed.wrapped)).await.unwrap(), None);
        let again = rewrap(&ahead, &later, b"row", (&sealed.kek, &sealed.wrapped)).await.unwrap().unwrap();
        let again = Sealed { wrapped: again, ..sealed };
        assert_eq!(open(&behind, b"row", &again).await.unwrap().expose(), "text");
    }
}
