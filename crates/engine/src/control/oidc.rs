//! Sign-in by a provider of identities: `OpenID` Connect Core 1.0, authorization code with PKCE (RFC 7636, S256).
//!
//! What begins a sign-in (state, nonce, verifier) travels in a sealed cookie: nothing is kept here until somebody is known.

use std::sync::Mutex;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use karta_store::{AccessKind, PersonRow};
use karta_types::{ErrorCode, OrgId, Rng, Timestamp, UserId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::control::members::email;
use crate::control::sign_in::SignedIn;
use crate::gate::Origin;
use crate::settings::{Oidc, Settings};
use crate::{Engine, Error, Result};

/// What sealed cookies are sealed for.
const CONTEXT: &[u8] = b"oidc sign-in";
/// How long a sign-in may take.
const PATIENCE: Duration = Duration::from_mins(10);
/// How long what the provider says of itself is believed.
const FRESH: Duration = Duration::from_hours(1);
/// The most that is read of one answer, in bytes.
const MOST: usize = 1 << 20;
/// Seconds that clocks may differ.
const LEEWAY: u64 = 60;
/// Signatures that are taken: none with a shared secret, and not `none`.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// The provider.
#[derive(Debug)]
pub struct OidcProvider {
    settings: Oidc,
    /// Where people come back to.
    redirect: String,
    http: reqwest::Client,
    known: Mutex<Option<(Timestamp, Metadata)>>,
}

/// What it says of itself (`OpenID` Connect Discovery 1.0, 3).
#[derive(Debug, Clone, Deserialize)]
struct Metadata {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    /// Absent means `client_secret_basic` alone.
    #[serde(default)]
    token_endpoint_auth_methods_supported: Vec<String>,
}

/// What the sealed cookie holds.
#[derive(Debug, Serialize, Deserialize)]
struct Begun {
    state: String,
    nonce: String,
    verifier: String,
    org: Option<String>,
    until: i64,
}

/// How a sign-in begins.
#[derive(Debug)]
pub struct Beginning {
    /// Where the browser goes.
    pub url: String,
    /// What it brings back, sealed: a cookie for [`PATIENCE`].
    pub cookie: String,
}

#[derive(Deserialize)]
struct Answer {
    id_token: String,
}

#[derive(Debug, Deserialize)]
struct Claims {
    sub: String,
    nonce: Option<String>,
    #[serde(default)]
    aud: Audience,
    azp: Option<String>,
    email: Option<String>,
    #[serde(default)]
    email_verified: bool,
    name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Audience {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

impl Audience {
    /// Whether the token is for us and, if for others too, was given to us.
    fn is_for(&self, client: &str, given_to: Option<&str>) -> bool {
        let named = given_to.is_none_or(|azp| azp == client);
        match self {
            Self::None => false,
            Self::One(one) => one == client && named,
            Self::Many(many) => {
                many.iter().any(|one| one == client) && named && (many.len() == 1 || given_to.is_some())
            }
        }
    }
}

fn refused(why: impl Into<String>) -> Error {
    Error::told(ErrorCode::Unauthorized, why)
}

impl OidcProvider {
    /// From the settings, if they name one.
    ///
    /// # Errors
    /// `invalid_request` when something that goes with it is missing.
    pub(crate) fn from_settings(settings: &Settings) -> Result<Option<Self>> {
        let Some(oidc) = settings.oidc.clone() else { return Ok(None) };
        let Some(base) = &settings.public_url else {
            return Err(Error::invalid(
                "/public_url",
                "`[oidc]` needs `public_url`: the provider sends people back to it, at /login/oidc/callback",
            ));
        };
        let loopback =
            |url: &str| url.starts_with("http://127.0.0.1:") || url.starts_with("http://localhost:");
        if !oidc.issuer.starts_with("https://") && !loopback(&oidc.issuer) {
            return Err(Error::invalid("/oidc/issuer", "an issuer begins with https://"));
        }
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_secs(20));
        // No TLS will be spoken to one on this machine.
        let http =
            if loopback(&oidc.issuer) { http.no_proxy().tls_certs_only(std::iter::empty()) } else { http };
        let http =
            http.build().map_err(|error| Error::internal("setting up the client for sign-in", error))?;
        let redirect = format!("{}/login/oidc/callback", base.trim_end_matches('/'));
        Ok(Some(Self { settings: oidc, redirect, http, known: Mutex::new(None) }))
    }

    async fn metadata(&self, now: Timestamp) -> Result<Metadata> {
        if let Ok(known) = self.known.lock()
            && let Some((at, metadata)) = &*known
            && now.since(*at) < FRESH
        {
            return Ok(metadata.clone());
        }
        let url = format!("{}/.well-known/openid-configuration", self.settings.issuer.trim_end_matches('/'));
        let metadata: Metadata = read(self.http.get(url), "reading what the provider says of itself").await?;
        if metadata.issuer != self.settings.issuer {
            return Err(Error::internal(
                "signing in",
                format!("the provider calls itself `{}`, not `{}`", metadata.issuer, self.settings.issuer),
            ));
        }
        if let Ok(mut known) = self.known.lock() {
            *known = Some((now, metadata.clone()));
        }
        Ok(metadata)
    }

    /// Checks an identity token against the provider's keys (Core 1.0, 3.1.3.7).
    async fn check(&self, metadata: &Metadata, token: &str, nonce: &str) -> Result<Claims> {
        let wrong = || refused("the provider's identity token is not valid");
        let header = decode_header(token).map_err(|_| wrong())?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(wrong());
        }
        let keys: JwkSet = read(self.http.get(&metadata.jwks_uri), "reading the provider's keys").await?;
        let fits = |key: &&Jwk| match (&header.kid, &key.common.key_id) {
            (Some(wanted), Some(id)) => wanted == id,
            (None, _) => keys.keys.len() == 1,
            (Some(_), None) => false,
        };
        let key = keys.keys.iter().find(fits).ok_or_else(wrong)?;
        // A key that says what it is for is used for nothing else.
        if key.common.key_algorithm.is_some_and(|known| known.to_string() != format!("{:?}", header.alg)) {
            return Err(wrong());
        }
        let key = DecodingKey::from_jwk(key).map_err(|_| wrong())?;
        let mut checks = Validation::new(header.alg);
        checks.set_issuer(&[&self.settings.issuer]);
        // The audience can be one or many: looked at below.
        checks.validate_aud = false;
        checks.leeway = LEEWAY;
        checks.set_required_spec_claims(&["exp", "iss", "sub", "aud"]);
        let claims = decode::<Claims>(token, &key, &checks).map_err(|_| wrong())?.claims;
        if claims.nonce.as_deref() != Some(nonce)
            || !claims.aud.is_for(&self.settings.client_id, claims.azp.as_deref())
        {
            return Err(wrong());
        }
        Ok(claims)
    }
}

async fn read<T: DeserializeOwned>(request: reqwest::RequestBuilder, doing: &'static str) -> Result<T> {
    let fail = |error: reqwest::Error| Error::internal(doing, error.without_url());
    let mut response = request.send().await.map_err(fail)?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(fail)? {
        if body.len() + chunk.len() > MOST {
            return Err(Error::internal(doing, "the answer is too long"));
        }
        body.extend_from_slice(&chunk);
    }
    if !status.is_success() {
        // What it says may hold what we sent: the status is enough.
        return Err(Error::internal(doing, format!("it answered {status}")));
    }
    serde_json::from_slice(&body).map_err(|error| Error::internal(doing, error))
}

fn random(rng: &dyn Rng) -> String {
    let mut bytes = [0; 32];
    rng.fill(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Engine {
    /// What people know the provider of identities as, if there is one.
    pub fn oidc_name(&self) -> Option<&str> {
        self.oidc().map(|oidc| oidc.settings.name.as_str())
    }

    /// Begins a sign-in, for one organisation if somebody is in many.
    ///
    /// # Errors
    /// `not_found` when no provider is configured; the provider can't be reached.
    pub async fn begin_oidc(&self, org: Option<String>) -> Result<Beginning> {
        let oidc = self.oidc().ok_or_else(|| Error::not_found("single sign-on here"))?;
        let now = self.clock().now();
        let metadata = oidc.metadata(now).await?;
        let begun = Begun {
            state: random(self.rng()),
            nonce: random(self.rng()),
            verifier: random(self.rng()),
            org,
            until: now.plus(PATIENCE).as_micros(),
        };
        let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, begun.verifier.as_bytes()));
        let mut url = reqwest::Url::parse(&metadata.authorization_endpoint)
            .map_err(|error| Error::internal("reading where the provider signs people in", error))?;
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &oidc.settings.client_id)
            .append_pair("redirect_uri", &oidc.redirect)
            .append_pair("scope", "openid email profile")
            .append_pair("state", &begun.state)
            .append_pair("nonce", &begun.nonce)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        let plain =
            serde_json::to_vec(&begun).map_err(|error| Error::internal("beginning a sign-in", error))?;
        let cookie = URL_SAFE_NO_PAD.encode(self.keyring().seal(CONTEXT, &plain)?);
        Ok(Beginning { url: url.into(), cookie })
    }

    /// Ends a sign-in: checks what came back, gets the identity, and finds who that is here. Invitations for an address that the
    /// provider has verified are taken up.
    ///
    /// # Errors
    /// `unauthorized` for what does not fit together; `forbidden` for somebody who is in no organisation, or in many when none was
    /// named: then the problem lists them in `orgs`.
    pub async fn finish_oidc(
        &self,
        cookie: &str,
        state: &str,
        code: &str,
        origin: Origin,
    ) -> Result<SignedIn> {
        let oidc = self.oidc().ok_or_else(|| Error::not_found("single sign-on here"))?;
        let again = || refused("the sign-in took too long or was begun elsewhere; begin again");
        let sealed = URL_SAFE_NO_PAD.decode(cookie).map_err(|_| again())?;
        let plain = self.keyring().open(CONTEXT, &sealed).map_err(|_| again())?;
        let begun: Begun = serde_json::from_slice(&plain).map_err(|_| again())?;
        let now = self.clock().now();
        if now.as_micros() >= begun.until || state != begun.state {
            return Err(again());
        }
        let metadata = oidc.metadata(now).await?;
        let mut form = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", oidc.redirect.as_str()),
            ("client_id", oidc.settings.client_id.as_str()),
            ("code_verifier", begun.verifier.as_str()),
        ];
        let mut request = oidc.http.post(&metadata.token_endpoint);
        if let Some(secret) = &oidc.settings.client_secret {
            let methods = &metadata.token_endpoint_auth_methods_supported;
            if methods.iter().any(|method| method == "client_secret_post") {
                form.push(("client_secret", secret.expose()));
            } else {
                request = request.basic_auth(&oidc.settings.client_id, Some(secret.expose()));
            }
        }
        let request = request.form(&form);
        let answer: Answer = read(request, "exchanging the code of a sign-in").await?;
        let claims = oidc.check(&metadata, &answer.id_token, &begun.nonce).await?;
        let (person, address) = self.who_is(&oidc.settings.issuer, claims, now).await?;
        if let Some(address) = &address {
            for row in self.store().invitations_for(address, now).await? {
                self.join(&row, Some(person), "", &origin).await?;
            }
        }
        let org = self.one_org(person, begun.org.as_deref()).await?;
        self.sign_in(org, person, "sign_in.oidc", AccessKind::Browser, origin).await
    }

    /// Who somebody at the provider is here, and their address if the provider verified it.
    async fn who_is(&self, issuer: &str, claims: Claims, now: Timestamp) -> Result<(UserId, Option<String>)> {
        let verified = claims.email.as_deref().filter(|_| claims.email_verified);
        let address = verified.map(|address| email(address, "/email")).transpose()?;
        if let Some(person) = self.store().identity_get(issuer, &claims.sub).await? {
            return Ok((person, address));
        }
        let Some(address) = address else {
            return Err(Error::told(
                ErrorCode::Forbidden,
                "the provider does not say that your e-mail address is yours, so nobody here can be found by it",
            ));
        };
        let invited = !self.store().invitations_for(&address, now).await?.is_empty();
        if !invited && self.store().person_by_email(&address).await?.is_none() {
            return Err(nowhere());
        }
        let name = claims.name.unwrap_or_else(|| address.split('@').next().unwrap_or_default().to_owned());
        let name: String = name.chars().filter(|letter| !letter.is_control()).take(100).collect();
        let id = UserId::new(self.clock(), self.rng());
        let person = PersonRow { id, email: address.clone(), name, created_at: now };
        match self.store().identity_link(issuer.to_owned(), claims.sub, person).await {
            Ok(person) => Ok((person, Some(address))),
            Err(karta_store::Error::Conflict(_)) => Err(Error::told(
                ErrorCode::Forbidden,
                "your e-mail address belongs to another identity at this provider; ask whoever runs the server",
            )),
            Err(other) => Err(other.into()),
        }
    }

    async fn one_org(&self, person: UserId, wanted: Option<&str>) -> Result<OrgId> {
        let mut orgs = self.store().memberships(person).await?;
        if let Some(slug) = wanted {
            orgs.retain(|(org, _)| org.slug == slug);
        }
        match orgs.as_slice() {
            [] => Err(nowhere()),
            [(org, _)] => Ok(org.id),
            many => {
                let slugs: Vec<_> = many.iter().map(|(org, _)| org.slug.clone()).collect();
                let problem = karta_types::Problem::new(ErrorCode::Forbidden, "choose an organisation")
                    .with("orgs", slugs);
                Err(problem.into())
            }
        }
    }
}

fn nowhere() -> Error {
    Error::told(ErrorCode::Forbidden, "you are in no organisation here; ask for an invitation")
}
