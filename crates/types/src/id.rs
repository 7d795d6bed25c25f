//! Ids: a prefix that names the kind, then 128 bits: 48 of the time in milliseconds, 10 of the microseconds in it, 70 of chance.
//!
//! `sess_01jd…` sorts by creation, can't be mistaken for a `turn_…`, and tells nothing but its age. The wrong prefix is a parse
//! error that names both prefixes.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::rng::Rng;
use crate::time::Clock;

/// Crockford's base 32, lower case: no `i`, `l`, `o`, `u`.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 128 bits in base 32.
const DIGITS: usize = 26;

/// What an id is an id of. Implemented by the markers that `ids!` makes.
pub trait Kind: 'static {
    /// The part before the underscore.
    const PREFIX: &'static str;
}

/// An identifier of one kind of thing.
pub struct Id<K>(u128, PhantomData<fn() -> K>);

macro_rules! ids {
    ($($(#[$doc:meta])* $kind:ident $alias:ident $prefix:literal;)*) => {
        /// The kinds of ids.
        pub mod kind {
            $(
                $(#[$doc])*
                #[derive(Debug)]
                pub enum $kind {}
                impl super::Kind for $kind {
                    const PREFIX: &'static str = $prefix;
                }
            )*
        }
        $(
            $(#[$doc])*
            pub type $alias = Id<kind::$kind>;
        )*
    };
}

// In alphabetical order. One word per kind; the prefixes are those of the public contract.
ids! {
    /// One entry of the audit log.
    Audit AuditId "aud";
    /// Prepaid credit that was granted.
    Credit CreditId "cred";
    /// A webhook's delivery to one endpoint.
    Delivery DeliveryId "whd";
    /// Where webhooks go.
    Endpoint EndpointId "whe";
    /// Something that happened and is told by webhooks.
    Happening HappeningId "evt";
    /// Money and tokens set aside for work that runs.
    Hold HoldId "hold";
    /// An invitation to an organisation.
    Invitation InvitationId "inv";
    /// An API key's id (not the key).
    Key KeyId "key";
    /// One request to a model provider.
    ModelCall ModelCallId "mc";
    /// A tenant.
    Org OrgId "org";
    /// A person's access token or browser login.
    PersonalAccess PersonalAccessId "pat";
    /// A harness application with its releases.
    Project ProjectId "proj";
    /// A model provider's key (not its text).
    ProviderKey ProviderKeyId "mk";
    /// An immutable snapshot of a project's folder.
    Release ReleaseId "rel";
    /// A question put to a person: an approval, a choice, a plan.
    Request RequestId "req";
    /// One sandbox, from start to tear-down.
    Sandbox SandboxId "sbx";
    /// A light handle on one conversation.
    Session SessionId "sess";
    /// A session token of an end user's browser.
    SessionToken SessionTokenId "st";
    /// One run of the harness, from a message to its `done`.
    Turn TurnId "turn";
    /// A person.
    User UserId "usr";
}

impl<K: Kind> Id<K> {
    /// A new id, now.
    pub fn new(clock: &dyn Clock, rng: &dyn Rng) -> Self {
        let now = clock.now();
        let millis = u128::from(now.as_millis().unsigned_abs()) & ((1 << 48) - 1);
        // Two that are made one after the other sort so, though a server makes many in a millisecond.
        let micros = u128::from(now.as_micros().unsigned_abs() % 1000);
        Self::from_u128((millis << 80) | (micros << 70) | (rng.next_u128() >> 58))
    }

    /// The id with exactly these bits.
    pub const fn from_u128(bits: u128) -> Self {
        Self(bits, PhantomData)
    }

    /// The bits of the id.
    pub const fn as_u128(self) -> u128 {
        self.0
    }
}

impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}
impl<K> Hash for Id<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0u8; DIGITS];
        let mut rest = self.0;
        for digit in digits.iter_mut().rev() {
            *digit = ALPHABET[(rest & 31) as usize];
            rest >>= 5;
        }
        f.write_str(K::PREFIX)?;
        f.write_str("_")?;
        f.write_str(std::str::from_utf8(&digits).map_err(|_| fmt::Error)?)
    }
}

impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not an id of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// Another kind of id, or none.
    #[error("`{given}` is not an id of the form `{expected}_…`")]
    Prefix {
        /// The prefix that was wanted.
        expected: &'static str,
        /// What came instead, cut to a readable length.
        given: String,
    },
    /// The prefix is right, the rest is not 26 digits of base 32.
    #[error("`{expected}_…` must be followed by 26 characters of 0-9 and a-z without i, l, o, u")]
    Digits {
        /// The prefix that was wanted.
        expected: &'static str,
    },
}

impl<K: Kind> FromStr for Id<K> {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let digits =
            text.strip_prefix(K::PREFIX).and_then(|rest| rest.strip_prefix('_')).ok_or_else(|| {
                ParseIdError::Prefix { expected: K::PREFIX, given: text.chars().take(48).collect() }
            })?;
        let wrong = ParseIdError::Digits { expected: K::PREFIX };
        // 26 digits hold 130 bits: the first digit may only use its lower three.
        if digits.len() != DIGITS || digits.as_bytes()[0] > b'7' {
            return Err(wrong);
        }
        let mut bits = 0u128;
        for byte in digits.bytes() {
            let value = ALPHABET.iter().position(|&letter| letter == byte).ok_or_else(|| wrong.clone())?;
            bits = (bits << 5) | value as u128;
        }
        Ok(Self::from_u128(bits))
    }
}

impl<K: Kind> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, K: Kind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "schema")]
impl<K: Kind> utoipa::PartialSchema for Id<K> {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some(format!("An id of the form `{}_…`, opaque to clients.", K::PREFIX)))
            .into()
    }
}
#[cfg(feature = "schema")]
impl<K: Kind> utoipa::ToSchema for Id<K> {
    fn name() -> std::borrow::Cow<'static, str> {
        std::borrow::Cow::Owned(format!("Id_{}", K::PREFIX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_id_reads_back(bits: u128) {
            let id = SessionId::from_u128(bits);
            prop_assert_eq!(id.to_string().parse::<SessionId>(), Ok(id));
        }

        #[test]
        fn text_order_is_bit_order(a: u128, b: u128) {
            let (a, b) = (TurnId::from_u128(a), TurnId::from_u128(b));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = text.parse::<OrgId>();
        }
    }

    #[test]
    fn the_wrong_prefix_names_both() {
        let turn = TurnId::from_u128(7).to_string();
        let error = turn.parse::<SessionId>().unwrap_err().to_string();
        assert!(error.contains("sess_") && error.contains(&turn), "{error}");
    }
}
