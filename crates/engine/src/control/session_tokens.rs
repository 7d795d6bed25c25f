//! Session tokens: what a backend gives an end user's browser. A JWT (RFC 7519) signed with `EdDSA` (RFC 8037), good for minutes, for one
//! project, one end user, the pages it is meant for, and if wanted one session.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use karta_store::{SessionTokenRow, Store, TokenKeyRow};
use karta_types::scope::{Scope, Scopes};
use karta_types::session_token::NewSessionToken;
use karta_types::{Clock, ErrorCode, KeyId, OrgId, ProjectId, Rng, SessionId, SessionTokenId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::control::encryption::{self, KeyEncryption, Sealed};
use crate::gate::{Actor, Origin, Principal, Restriction};
use crate::hex::hex;
use crate::{Engine, Error, Result};

/// How long a token is good, if nobody says.
pub const TTL: Duration = Duration::from_mins(15);
/// The longest.
pub const MAX_TTL: Duration = Duration::from_hours(1);
/// How long a key signs before another one takes over.
const KEY_AGE: Duration = Duration::from_hours(24 * 30);
const ISSUER: &str = "karta";
const CONTEXT: &[u8] = b"token_key";

/// What is in a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claims {
    iss: String,
    jti: SessionTokenId,
    /// The project.
    aud: ProjectId,
    /// The end user.
    sub: String,
    org: OrgId,
    /// The key that minted it.
    key: KeyId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sid: Option<SessionId>,
    /// Allowed origins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    org_in: Vec<String>,
    /// Seconds since 1970.
    iat: i64,
    exp: i64,
}

/// What a token is to be for.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// The project, by id or slug.
    pub project: String,
    /// The end user.
    pub end_user: String,
    /// The one session it is for.
    pub session: Option<SessionId>,
    /// Where pages that use it come from.
    pub origins: Vec<String>,
    /// How long it is good.
    pub ttl: Duration,
    /// The most that what it does may cost, in micro-dollars.
    pub cap: Option<i64>,
}

struct SigningKey {
    id: String,
    private: EncodingKey,
    made: Timestamp,
}

/// The keys that sign and verify, and what was revoked.
#[derive(Default)]
pub struct Tokens {
    signing: RwLock<Option<Arc<SigningKey>>>,
    verifying: RwLock<HashMap<String, (DecodingKey, Vec<u8>)>>,
    revoked: RwLock<HashSet<SessionTokenId>>,
    origins: RwLock<HashSet<String>>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

fn refused() -> Error {
    Error::told(ErrorCode::Unauthorized, "the bearer token is not a valid key")
}

/// Whether a text looks like a JWT rather than a key.
pub fn looks_like(token: &str) -> bool {
    token.starts_with("eyJ") && token.matches('.').count() == 2
}

impl Tokens {
    /// Whose token this is. Answered from memory.
    ///
    /// # Errors
    /// `unauthorized`, always in the same words.
    pub fn authenticate(&self, clock: &dyn Clock, token: &str) -> Result<Principal> {
        let header = decode_header(token).map_err(|_| refused())?;
        let kid = header.kid.filter(|_| header.alg == Algorithm::EdDSA).ok_or_else(refused)?;
        let mut checks = Validation::new(Algorithm::EdDSA);
        // Time comes from our clock, and the audience is checked by the route.
        checks.validate_exp = false;
        checks.validate_aud = false;
        checks.set_issuer(&[ISSUER]);
        let claims = {
            let keys = self.verifying.read().unwrap_or_else(PoisonError::into_inner);
            let (key, _) = keys.get(&kid).ok_or_else(refused)?;
            decode::<Claims>(token, key, &checks).map_err(|_| refused())?.claims
        };
        let now = clock.now().as_millis() / 1000;
        let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner).contains(&claims.jti);
        if now >= claims.exp || revoked {
            return Err(refused());
        }
        Ok(Principal {
            org: claims.org,
            actor: Actor::Token { id: claims.jti, key: claims.key },
            scopes: [Scope::Read, Scope::Write].into_iter().collect::<Scopes>(),
            role: None,
            project: Some(claims.aud),
            restriction: Some(Arc::new(Restriction {
                end_user: claims.sub,
                session: claims.sid,
                origins: claims.org_in,
            })),
            origin: Origin::default(),
        })
    }

    /// Whether a browser on a page from here may read our answers.
    pub fn allows_origin(&self, origin: &str) -> bool {
        self.origins.read().unwrap_or_else(PoisonError::into_inner).contains(origin)
    }

    /// Where pages come from that may.
    pub(crate) fn origins(&self) -> Vec<String> {
        self.origins.read().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// The public keys, as a JWK set (RFC 7517, RFC 8037).
    pub fn jwks(&self) -> Value {
        let keys = self.verifying.read().unwrap_or_else(PoisonError::into_inner);
        let mut keys: Vec<_> = keys
            .iter()
            .map(|(kid, (_, public))| {
                json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": URL_SAFE_NO_PAD.encode(public)})
            })
            .collect();
        keys.sort_by_key(|key| key["kid"].to_string());
        json!({ "keys": keys })
    }

    fn signing(&self) -> Option<Arc<SigningKey>> {
        self.signing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Learns the keys and what was revoked, from the record.
    pub(crate) async fn refresh(&self, store: &Store, clock: &dyn Clock) -> Result<()> {
        let now = clock.now();
        let revoked: HashSet<_> = store.session_tokens_revoked(now).await?.into_iter().collect();
        let origins: HashSet<_> = store.session_token_origins(now).await?.into_iter().collect();
        let rows = store.token_keys().await?;
        let same = {
            let known = self.verifying.read().unwrap_or_else(PoisonError::into_inner);
            known.len() == rows.len() && rows.iter().all(|row| known.contains_key(&row.id))
        };
        if !same {
            let keys = rows
                .iter()
                .map(|row| (row.id.clone(), (DecodingKey::from_ed_der(&row.public), row.public.clone())));
            *self.verifying.write().unwrap_or_else(PoisonError::into_inner) = keys.collect();
        }
        *self.revoked.write().unwrap_or_else(PoisonError::into_inner) = revoked;
        *self.origins.write().unwrap_or_else(PoisonError::into_inner) = origins;
        Ok(())
    }

    /// A key to sign with, made when there is none or it has signed long enough.
    async fn ensure_key(
        &self,
        store: &Store,
        keys: &dyn KeyEncryption,
        clock: &dyn Clock,
        rng: &dyn Rng,
    ) -> Result<Arc<SigningKey>> {
        let young = |made: Timestamp| clock.now().since(made) < KEY_AGE;
        if let Some(key) = self.signing().filter(|key| young(key.made)) {
            return Ok(key);
        }
        let row = store.token_keys().await?.into_iter().find(|row| young(row.created_at));
        let row = match row {
            Some(row) => row,
            None => make_key(store, keys, clock, rng).await?,
        };
        let sealed = Sealed { kek: row.kek, wrapped: row.wrapped, sealed: row.sealed };
        let private = encryption::open(keys, CONTEXT, &sealed).await?;
        let private = STANDARD
            .decode(private.expose())
            .map_err(|error| Error::internal("reading the key that signs session tokens", error))?;
        let key = Arc::new(SigningKey {
            id: row.id,
            private: EncodingKey::from_ed_der(&private),
            made: row.created_at,
        });
        *self.signing.write().unwrap_or_else(PoisonError::into_inner) = Some(key.clone());
        self.refresh(store, clock).await?;
        Ok(key)
    }
}

async fn make_key(
    store: &Store,
    keys: &dyn KeyEncryption,
    clock: &dyn Clock,
    rng: &dyn Rng,
) -> Result<TokenKeyRow> {
    let fail = |_| Error::internal("making a key that signs session tokens", "the key could not be made");
    let mut seed = [0; 32];
    rng.fill(&mut seed);
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(fail)?;
    let private = pair
        .to_pkcs8v1()
        .map_err(|_| fail(aws_lc_rs::error::KeyRejected::from(aws_lc_rs::error::Unspecified)))?;
    let sealed = encryption::seal(keys, rng, CONTEXT, STANDARD.encode(private.as_ref()).as_bytes()).await?;
    let mut id = [0; 8];
    rng.fill(&mut id);
    let row = TokenKeyRow {
        id: hex(&id),
        public: pair.public_key().as_ref().to_vec(),
        kek: sealed.kek,
        wrapped: sealed.wrapped,
        sealed: sealed.sealed,
        created_at: clock.now(),
    };
    store.token_key_insert(row.clone()).await?;
    Ok(row)
}

impl Engine {
    /// Mints a token.
    ///
    /// # Errors
    /// `not_found` for the project or session; `invalid_request` for a time, an end user or an origin that is none; `forbidden` for
    /// anybody but a key.
    pub async fn mint_session_token(&self, who: &Principal, new: NewToken) -> Result<NewSessionToken> {
        let Actor::Key(key) = who.actor else {
            return Err(Error::told(ErrorCode::Forbidden, "session tokens are minted with an API key"));
        };
        if new.ttl.is_zero() || new.ttl > MAX_TTL {
            return Err(Error::invalid("/ttl_seconds", "a token is good for 1 second to 1 hour"));
        }
        if new.cap.is_some_and(|cap| cap < 0) {
            return Err(Error::invalid("/max_cost_micros", "a cap is not negative"));
        }
        if new.end_user.is_empty() || new.end_user.len() > 256 {
            return Err(Error::invalid("/end_user_id", "an end user's id has 1 to 256 bytes"));
        }
        for (at, origin) in new.origins.iter().enumerate() {
            if !is_origin(origin) || at >= 16 {
                return Err(Error::invalid(
                    &format!("/origins/{at}"),
                    "at most 16 origins, each a scheme, a host and maybe a port, like `https://app.example.com`",
                ));
            }
        }
        let project = self.project_row(who, &new.project).await?;
        if let Some(id) = new.session {
            let row = self.session_row(who, id).await?;
            if row.project != project.id || row.end_user_id.as_deref() != Some(&new.end_user) {
                return Err(Error::not_found("session of this end user"));
            }
        }
        let now = self.clock().now();
        let row = SessionTokenRow {
            id: SessionTokenId::new(self.clock(), self.rng()),
            org: who.org,
            project: project.id,
            key,
            end_user: new.end_user,
            session: new.session,
            origins: new.origins,
            cap: new.cap,
            created_at: now,
            expires_at: now.plus(new.ttl),
        };
        let signing = self
            .control()
            .tokens()
            .ensure_key(self.store(), self.control().encryption(), self.clock(), self.rng())
            .await?;
        let claims = Claims {
            iss: ISSUER.to_owned(),
            jti: row.id,
            aud: row.project,
            sub: row.end_user.clone(),
            org: row.org,
            key,
            sid: row.session,
            org_in: row.origins.clone(),
            iat: now.as_millis() / 1000,
            exp: row.expires_at.as_millis() / 1000,
        };
        let header = Header { kid: Some(signing.id.clone()), ..Header::new(Algorithm::EdDSA) };
        let token = encode(&header, &claims, &signing.private)
            .map_err(|error| Error::internal("signing a session token", error))?;
        let told = self.told(who, "session_token.mint", row.id);
        self.store().session_token_insert(row.clone(), told).await?;
        self.control().tokens().refresh(self.store(), self.clock()).await?;
        Ok(NewSessionToken {
            id: row.id,
            token,
            project: row.project,
            end_user_id: row.end_user,
            session_id: row.session,
            origins: row.origins,
            expires_at: row.expires_at,
        })
    }

    /// Ends a token before its time.
    ///
    /// # Errors
    /// `not_found` when there is none, or it is over.
    pub async fn revoke_session_token(&self, who: &Principal, id: SessionTokenId) -> Result<()> {
        let told = self.told(who, "session_token.revoke", id);
        if !self.store().session_token_revoke(who.org, id, self.clock().now(), told).await? {
            return Err(Error::not_found("session token"));
        }
        self.control().tokens().refresh(self.store(), self.clock()).await
    }

    /// The public keys of session tokens, as a JWK set.
    pub fn jwks(&self) -> Value {
        self.control().tokens().jwks()
    }

    /// Whether a browser on a page from here may read our answers.
    pub fn allows_origin(&self, origin: &str) -> bool {
        self.settings().cors_origins.iter().any(|allowed| allowed == origin)
            || self.gate().allows_origin(origin)
    }

    /// Signs with a new key from now on. Tokens of the old ones stay good until their time.
    ///
    /// # Errors
    /// The store can't be written.
    pub async fn rotate_token_key(&self) -> Result<()> {
        let tokens = self.control().tokens();
        let old: Vec<_> = self.store().token_keys().await?;
        make_key(self.store(), self.control().encryption(), self.clock(), self.rng()).await?;
        *tokens.signing.write().unwrap_or_else(PoisonError::into_inner) = None;
        // A key that stopped signing longer ago than any token lives is of no more use.
        let past = |row: &&TokenKeyRow| self.clock().now().since(row.created_at) > KEY_AGE + 2 * MAX_TTL;
        let useless: Vec<_> = old.iter().filter(past).map(|row| row.id.clone()).collect();
        self.store().token_keys_forget(useless).await?;
        tokens.refresh(self.store(), self.clock()).await
    }
}

fn is_origin(text: &str) -> bool {
    let Some(host) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
        return false;
    };
    !host.is_empty()
        && host.len() <= 253
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']'))
}
