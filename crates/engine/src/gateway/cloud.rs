//! Claude by way of a cloud: the same Messages API with another address, another name for the model and another credential.
//!
//! Amazon Bedrock serves it at `bedrock-mantle.<region>.api.aws/anthropic` with a Bedrock API key in `x-api-key` (AWS, "Inference using
//! Anthropic Messages API"). Google Vertex AI takes the model in the path and `anthropic_version` in the body, with an access token that a
//! service account signs for (Anthropic, "Claude on Vertex AI"; RFC 7523). Both stream the same events.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use axum::http::header::{AUTHORIZATION, HeaderMap, InvalidHeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use karta_types::provider_key::KeyProvider;
use karta_types::{Clock, Secret, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::provider::{Dialect, Provider, hidden};

/// What Vertex AI wants in the body.
const VERTEX_VERSION: &str = "vertex-2023-10-16";
/// What an access token is for.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// Where access tokens are had. Fixed: the address in a key is whatever its owner wrote there.
pub(super) const GOOGLE_TOKENS: &str = "https://oauth2.googleapis.com/token";
/// How long before its end an access token is no longer used.
const MARGIN: Duration = Duration::from_mins(2);
/// The most access tokens that are remembered.
const KNOWN: usize = 10_000;
/// How long an exchange may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// A cloud's key with its region: what is sealed as the provider's key.
#[derive(Serialize, Deserialize)]
pub(crate) struct CloudKey {
    region: String,
    key: String,
}

/// The parts of a service account's key file that are used.
#[derive(Deserialize)]
struct ServiceAccount {
    client_email: String,
    private_key: String,
    project_id: String,
}

fn plain(text: &str, more: &[u8]) -> bool {
    !text.is_empty()
        && text.len() <= 200
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
}

impl CloudKey {
    /// Checks a key and its region, and makes of them the text that is sealed.
    ///
    /// # Errors
    /// The field that is wrong, and why.
    pub(crate) fn check(
        provider: KeyProvider,
        region: Option<&str>,
        key: &str,
    ) -> Result<String, (&'static str, &'static str)> {
        let region =
            region.ok_or(("/region", "a cloud's key needs its region, like `us-east-1` or `global`"))?;
        if !plain(region, b"-") {
            return Err(("/region", "a region has letters, digits and hyphens"));
        }
        if provider == KeyProvider::Vertex {
            let account: ServiceAccount = serde_json::from_str(key)
                .map_err(|_| ("/key", "the key for vertex is a service account's key file, as JSON"))?;
            if rsa(&account.private_key).is_none() || !plain(&account.project_id, b"-:.") {
                return Err(("/key", "the service account's private key or project can't be read"));
            }
        }
        let sealed = Self { region: region.to_owned(), key: key.to_owned() };
        serde_json::to_string(&sealed).map_err(|_| ("/key", "the key can't be kept"))
    }
}

/// A private key in PEM (PKCS #8), as key files have it.
fn rsa(pem: &str) -> Option<RsaKeyPair> {
    let body = pem.split_once("-----BEGIN PRIVATE KEY-----")?.1.split_once("-----END PRIVATE KEY-----")?.0;
    let text: String = body.chars().filter(|letter| !letter.is_whitespace()).collect();
    RsaKeyPair::from_pkcs8(&STANDARD.decode(text).ok()?).ok()
}

/// Why there is no way out.
pub(super) enum NoWay {
    /// The key is not one, or was refused.
    Key(&'static str),
    /// Nobody answered where access tokens are had.
    Unreachable,
    /// The model's name can't stand in an address.
    Model,
}

/// How a call goes out: where, as what, and with which credential.
#[derive(Debug)]
pub(super) struct Way {
    provider: Provider,
    base: String,
    key: Secret,
    /// At Vertex AI: project, region and model.
    place: Option<(String, String, String)>,
}

impl Way {
    /// The way to this provider with this key.
    pub(super) async fn find(
        provider: Provider,
        base: &str,
        key: Secret,
        model: &str,
        google: &Google,
        clock: &dyn Clock,
    ) -> Result<Self, NoWay> {
        if !matches!(provider, Provider::Bedrock | Provider::Vertex) {
            return Ok(Self { provider, base: base.to_owned(), key, place: None });
        }
        let wrong = || NoWay::Key("the organisation's key for this cloud can't be read; set it anew");
        let CloudKey { region, key } = serde_json::from_str(key.expose()).map_err(|_| wrong())?;
        if provider == Provider::Bedrock {
            let base = base.replace("{region}", &region);
            return Ok(Self { provider, base, key: Secret::new(key), place: None });
        }
        if !plain(model, b"-_.@") {
            return Err(NoWay::Model);
        }
        let account: ServiceAccount = serde_json::from_str(&key).map_err(|_| wrong())?;
        let token = google.token(&account, clock).await?;
        // The region `global` has no place in the host's name.
        let base = if region == "global" {
            base.replace("{region}-", "")
        } else {
            base.replace("{region}", &region)
        };
        let place = Some((account.project_id, region, vertex_model(model)));
        Ok(Self { provider, base, key: token, place })
    }

    /// The address of a route.
    pub(super) fn url(&self, path: &str, streaming: bool) -> String {
        let Some((project, region, model)) = &self.place else { return format!("{}{path}", self.base) };
        let method = match path {
            "/v1/messages/count_tokens" => "count-tokens:rawPredict".to_owned(),
            _ if streaming => format!("{model}:streamRawPredict"),
            _ => format!("{model}:rawPredict"),
        };
        format!("{}/v1/projects/{project}/locations/{region}/publishers/anthropic/models/{method}", self.base)
    }

    /// The body as the cloud wants it. `None` leaves it byte for byte.
    pub(super) fn body(&self, path: &str, asked: &Value) -> Option<Value> {
        let name = asked.get("model").and_then(Value::as_str).unwrap_or_default();
        let mut body = asked.clone();
        let fields = body.as_object_mut()?;
        match (&self.place, self.provider) {
            (Some((.., model)), _) => {
                fields.insert("anthropic_version".to_owned(), VERTEX_VERSION.into());
                // The model is in the address, but for counting.
                fields.remove("model");
                if path == "/v1/messages/count_tokens" {
                    fields.insert("model".to_owned(), model.clone().into());
                }
            }
            (None, Provider::Bedrock) => {
                fields.insert("model".to_owned(), bedrock_model(name).into());
            }
            (None, _) => return None,
        }
        Some(body)
    }

    /// Puts the credential in.
    pub(super) fn authorize(
        &self,
        headers: &mut HeaderMap,
        dialect: &dyn Dialect,
    ) -> Result<(), InvalidHeaderValue> {
        if self.place.is_some() {
            headers.insert(AUTHORIZATION, hidden(&format!("Bearer {}", self.key.expose()))?);
            return Ok(());
        }
        dialect.authorize(headers, &self.key)
    }
}

/// `claude-sonnet-4-5` is `anthropic.claude-sonnet-4-5` there; what is named as there already stays.
fn bedrock_model(name: &str) -> String {
    if name.contains("anthropic.") { name.to_owned() } else { format!("anthropic.{name}") }
}

/// `claude-sonnet-4-5-20250929` is `claude-sonnet-4-5@20250929` there.
fn vertex_model(name: &str) -> String {
    match name.rsplit_once('-') {
        Some((model, date)) if date.len() == 8 && date.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{model}@{date}")
        }
        _ => name.to_owned(),
    }
}

/// Access tokens of service accounts.
pub(super) struct Google {
    url: String,
    http: reqwest::Client,
    known: Mutex<HashMap<[u8; 32], (Timestamp, Secret)>>,
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    expires_in: u64,
}

impl Google {
    pub(super) fn new(url: String, http: reqwest::Client) -> Self {
        Self { url, http, known: Mutex::default() }
    }

    async fn token(&self, account: &ServiceAccount, clock: &dyn Clock) -> Result<Secret, NoWay> {
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, account.private_key.as_bytes()).as_ref());
        let now = clock.now();
        if let Some((until, token)) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key)
            && now < *until
        {
            return Ok(token.clone());
        }
        let refused = || NoWay::Key("Google refused the service account's key");
        let assertion = self.assertion(account, now).ok_or_else(refused)?;
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
            ("assertion", assertion.as_str()),
        ];
        let answer = self.http.post(&self.url).form(&form).timeout(PATIENCE).send().await;
        let answer = answer.map_err(|_| NoWay::Unreachable)?;
        if answer.status().is_client_error() {
            return Err(refused());
        }
        let granted: Granted = answer.json().await.map_err(|_| NoWay::Unreachable)?;
        let token = Secret::new(granted.access_token);
        let until = now.plus(Duration::from_secs(granted.expires_in).saturating_sub(MARGIN));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN {
            known.retain(|_, (until, _)| now < *until);
        }
        known.insert(key, (until, token.clone()));
        Ok(token)
    }

    /// What the account signs to get a token (RFC 7523, 3).
    fn assertion(&self, account: &ServiceAccount, now: Timestamp) -> Option<String> {
        let pair = rsa(&account.private_key)?;
        let now = now.as_millis() / 1000;
        let header = json!({"alg": "RS256", "typ": "JWT"});
        let claims = json!({
            "iss": account.client_email, "scope": SCOPE, "aud": self.url, "iat": now, "exp": now + 3600,
        });
        let signed = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).ok()?;
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_have_the_clouds_names() {
        assert_eq!(bedrock_model("claude-sonnet-4-5"), "anthropic.claude-sonnet-4-5");
        assert_eq!(bedrock_model("us.anthropic.claude-x"), "us.anthropic.claude-x");
        assert_eq!(vertex_model("claude-sonnet-4-5-20250929"), "claude-sonnet-4-5@20250929");
        assert_eq!(vertex_model("claude-opus-4-6"), "claude-opus-4-6");
    }

    #[test]
    fn a_key_can_not_lead_elsewhere() {
        let check = |provider, region: Option<&str>, key| {
            CloudKey::check(provider, region, key).map_err(|(at, _)| at)
        };
        assert_eq!(check(KeyProvider::Bedrock, None, "k"), Err("/region"));
        for region in ["", "us.evil.example/", "a@b", "us-east-1#", "é"] {
            assert_eq!(check(KeyProvider::Bedrock, Some(region), "k"), Err("/region"), "{region}");
        }
        assert!(check(KeyProvider::Bedrock, Some("us-east-1"), "bedrock-key").is_ok());
        for key in ["k", "{}", r#"{"client_email": "a", "private_key": "b", "project_id": "p"}"#] {
            assert_eq!(check(KeyProvider::Vertex, Some("global"), key), Err("/key"), "{key}");
        }
    }
}
