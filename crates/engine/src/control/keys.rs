//! Credentials: `kt_live_` or `kt_test_` for API keys, `kt_user_` for people, then 32 random base-62 characters and 6 of checksum.
//!
//! A key has 190 bits of chance, so a keyed hash (HMAC-SHA-256) is enough to store it by; slow hashes protect passwords. The
//! checksum lets secret scanners tell a real key from look-alikes, and lets us refuse garbage without asking the store.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use karta_store::{KeyRow, Keyring, Store};
use karta_types::scope::Scopes;
use karta_types::{Clock, ErrorCode, KeyId, OrgId, ProjectId, Rng, Secret, Timestamp};

use crate::gate::{Actor, Origin, Principal};
use crate::{Error, Result};

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const RANDOM: usize = 32;
const CHECK: usize = 6;

/// Live keys and test keys are the same but for their prefix: a test key in a public place is no incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// `kt_live_`
    Live,
    /// `kt_test_`
    Test,
}

impl Environment {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Live => "kt_live_",
            Self::Test => "kt_test_",
        }
    }
}

/// What a personal access begins with.
pub(crate) const PERSONAL: &str = "kt_user_";

/// A new credential's text.
pub(crate) fn generate(prefix: &str, rng: &dyn Rng) -> String {
    let mut key = prefix.to_owned();
    let mut byte = [0u8; 1];
    while key.len() < prefix.len() + RANDOM {
        rng.fill(&mut byte);
        // 248 is the largest multiple of 62 in a byte: above it some letters would come more often.
        if byte[0] < 248 {
            key.push(char::from(ALPHABET[usize::from(byte[0] % 62)]));
        }
    }
    let check = checksum(&key);
    key.push_str(&check);
    key
}

/// CRC-32 (IEEE) of the key so far, in base 62.
fn checksum(text: &str) -> String {
    let mut crc = u32::MAX;
    for byte in text.bytes() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    crc = !crc;
    let mut digits = [b'0'; CHECK];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(crc % 62) as usize];
        crc /= 62;
    }
    digits.iter().map(|&digit| char::from(digit)).collect()
}

/// Whether the text has the form of a key, checksum included.
pub fn well_formed(token: &str) -> bool {
    let prefixes = ["kt_live_", "kt_test_", PERSONAL];
    let Some(rest) = prefixes.iter().find_map(|prefix| token.strip_prefix(prefix)) else {
        return false;
    };
    rest.len() == RANDOM + CHECK
        && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && token.split_at(token.len() - CHECK).1 == checksum(token.split_at(token.len() - CHECK).0)
}

/// What a new key is for.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// For people.
    pub name: String,
    /// Live or test.
    pub environment: Environment,
    /// What it may do.
    pub scopes: Scopes,
    /// The one project it is for.
    pub project: Option<ProjectId>,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
}

/// Makes a key, to be kept. Its text is in the answer and nowhere else.
pub fn mint(
    keyring: &Keyring,
    clock: &dyn Clock,
    rng: &dyn Rng,
    org: OrgId,
    by: Option<String>,
    new: NewKey,
) -> (KeyRow, Secret) {
    let text = generate(new.environment.prefix(), rng);
    let row = KeyRow {
        id: KeyId::new(clock, rng),
        org,
        name: new.name,
        prefix: text[..12].to_owned(),
        last4: text[text.len() - 4..].to_owned(),
        digest: keyring.digest_key(&text),
        scopes: new.scopes,
        project: new.project,
        created_at: clock.now(),
        expires_at: new.expires_at,
        revoked_at: None,
        last_used_at: None,
        created_by: by,
        replaces: None,
    };
    (row, Secret::new(text))
}

/// Keys that were seen, by their keyed hash: the hot path asks nobody.
#[derive(Debug, Default)]
pub struct Cache {
    known: RwLock<HashMap<[u8; 32], Arc<Known>>>,
    used: Mutex<HashMap<KeyId, (OrgId, Timestamp)>>,
}

#[derive(Debug)]
struct Known {
    principal: Principal,
    expires_at: Option<Timestamp>,
    /// The minute that its use was last noted in.
    noted: AtomicI64,
}

impl Cache {
    /// Whose token this is.
    ///
    /// # Errors
    /// `unauthorized` for what is no key, is unknown, expired or revoked: always the same words.
    pub async fn authenticate(
        &self,
        store: &Store,
        keyring: &Keyring,
        clock: &dyn Clock,
        token: &str,
    ) -> Result<Principal> {
        let refused = || Error::told(ErrorCode::Unauthorized, "the bearer token is not a valid key");
        if !well_formed(token) {
            return Err(refused());
        }
        let digest = keyring.digest_key(token);
        if let Some(known) = self.get(&digest) {
            return self.check(&known, clock).ok_or_else(refused);
        }
        let (principal, expires_at) = if token.starts_with(PERSONAL) {
            let holder = store.access_by_digest(&digest).await?.ok_or_else(refused)?;
            let principal = Principal {
                org: holder.org,
                actor: Actor::User(holder.person),
                scopes: holder.role.scopes(),
                role: Some(holder.role),
                project: None,
                restriction: None,
                origin: Origin::default(),
            };
            (principal, Some(holder.expires_at))
        } else {
            let row = store.key_by_digest(&digest).await?.ok_or_else(refused)?;
            if row.revoked_at.is_some() {
                return Err(refused());
            }
            let principal = Principal {
                org: row.org,
                actor: Actor::Key(row.id),
                scopes: row.scopes,
                role: None,
                project: row.project,
                restriction: None,
                origin: Origin::default(),
            };
            (principal, row.expires_at)
        };
        let known = Arc::new(Known { principal, expires_at, noted: AtomicI64::new(0) });
        self.insert(digest, known.clone());
        self.check(&known, clock).ok_or_else(refused)
    }

    /// Forgets everything: after a revocation the store is asked again.
    pub fn clear(&self) {
        if let Ok(mut map) = self.known.write() {
            map.clear();
        }
    }

    /// Forgets these keys, by their keyed hash.
    pub fn forget(&self, digests: &[[u8; 32]]) {
        if let Ok(mut map) = self.known.write() {
            for digest in digests {
                map.remove(digest);
            }
        }
    }

    /// Keys that were used since this was asked last, with their organisations and the time.
    pub fn take_used(&self) -> Vec<(OrgId, KeyId, Timestamp)> {
        let used = self.used.lock().map(|mut used| std::mem::take(&mut *used)).unwrap_or_default();
        used.into_iter().map(|(id, (org, at))| (org, id, at)).collect()
    }

    fn check(&self, known: &Known, clock: &dyn Clock) -> Option<Principal> {
        let now = clock.now();
        if known.expires_at.is_some_and(|expires| now >= expires) {
            return None;
        }
        let minute = now.as_millis() / 60_000;
        // Once a minute and key: the hot path takes no lock.
        if known.noted.swap(minute, Ordering::Relaxed) != minute
            && let Actor::Key(id) = known.principal.actor
            && let Ok(mut used) = self.used.lock()
        {
            used.insert(id, (known.principal.org, now));
        }
        Some(known.principal.clone())
    }

    fn get(&self, digest: &[u8; 32]) -> Option<Arc<Known>> {
        self.known.read().ok()?.get(digest).cloned()
    }

    fn insert(&self, digest: [u8; 32], known: Arc<Known>) {
        if let Ok(mut map) = self.known.write() {
            // Only keys that exist get here, but an organisation may own very many.
            if map.len() >= 100_000 {
                map.clear();
            }
            map.insert(digest, known);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karta_types::rng::Seeded;

    #[test]
    fn a_key_knows_its_checksum() {
        let rng = Seeded::new(1);
        for prefix in [Environment::Live.prefix(), Environment::Test.prefix(), PERSONAL] {
            let key = generate(prefix, &rng);
            assert!(well_formed(&key), "{key}");
            assert_eq!(key.len(), 8 + RANDOM + CHECK);
            let mut broken = key.clone().into_bytes();
            broken[20] = if broken[20] == b'a' { b'b' } else { b'a' };
            assert!(!well_formed(&String::from_utf8(broken).unwrap()));
        }
        assert!(!well_formed("kt_live_é"));
        assert!(!well_formed(""));
    }
}
