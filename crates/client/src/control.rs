//! Keys, budgets, providers' keys, session tokens, the audit log.

use bytes::Bytes;
use futures_util::Stream;
use karta_types::audit::{Entry, Verdict};
use karta_types::budget::{Budget, Caps, Level, Period};
use karta_types::key::{ApiKey, NewApiKey};
use karta_types::org_policy::OrgPolicy;
use karta_types::page::Page;
use karta_types::provider_key::{KeyProvider, ProviderKey};
use karta_types::scope::Scope;
use karta_types::session_token::NewSessionToken;
use karta_types::tool_secret::ToolSecret;
use karta_types::{KeyId, Secret, SessionId, SessionTokenId, Timestamp};
use reqwest::Method;
use serde::Serialize;
use serde_json::json;

use crate::client::append;
use crate::{Client, Error};

/// A key to be made.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CreateKey {
    /// For people.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// The one project it is for, by id or slug.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// When it ends by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Whether it is a test key.
    pub test: bool,
}

/// A session token to be minted.
#[derive(Debug, Clone, Default, Serialize)]
pub struct MintToken {
    /// The project, by id or slug.
    pub project: String,
    /// The end user.
    pub end_user_id: String,
    /// The one session it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// Where pages that use it come from.
    pub origins: Vec<String>,
    /// Seconds that it is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// The most that what it does may cost, in micro-dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cost_micros: Option<i64>,
}

impl Client {
    /// The organisation's keys, oldest first.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn keys(&self, cursor: Option<&str>) -> Result<Page<ApiKey>, Error> {
        let mut url = self.url(&["keys"]);
        append(&mut url, &[("cursor", cursor.map(str::to_owned))]);
        self.json("listing keys", self.request(Method::GET, url)).await
    }

    /// Makes a key.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn create_key(&self, new: &CreateKey) -> Result<NewApiKey, Error> {
        self.json("making a key", self.request(Method::POST, self.url(&["keys"])).json(new)).await
    }

    /// Replaces a key. The old one ends after the overlap, in seconds.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn rotate_key(&self, id: KeyId, overlap: u64) -> Result<NewApiKey, Error> {
        let url = self.url(&["keys", &id.to_string(), "rotate"]);
        let body = json!({ "overlap_seconds": overlap });
        self.json("replacing a key", self.request(Method::POST, url).json(&body)).await
    }

    /// Ends a key at once.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn revoke_key(&self, id: KeyId) -> Result<(), Error> {
        let url = self.url(&["keys", &id.to_string()]);
        self.send("revoking a key", self.request(Method::DELETE, url)).await.map(drop)
    }

    /// The organisation's budgets.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn budgets(&self) -> Result<Page<Budget>, Error> {
        self.json("listing budgets", self.request(Method::GET, self.url(&["budgets"]))).await
    }

    /// Sets a budget.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn set_budget(
        &self,
        level: Level,
        id: &str,
        period: Period,
        caps: Caps,
    ) -> Result<Budget, Error> {
        let body = json!({
            "period": period, "input_tokens": caps.input_tokens, "output_tokens": caps.output_tokens,
            "total_tokens": caps.total_tokens, "cost_micros": caps.cost_micros,
        });
        let url = self.url(&["budgets", level.as_str(), id]);
        self.json("setting a budget", self.request(Method::PUT, url).json(&body)).await
    }

    /// Removes a budget.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn remove_budget(&self, level: Level, id: &str, period: Period) -> Result<(), Error> {
        let mut url = self.url(&["budgets", level.as_str(), id]);
        append(&mut url, &[("period", Some(period.to_string()))]);
        self.send("removing a budget", self.request(Method::DELETE, url)).await.map(drop)
    }

    /// The organisation's keys for model providers, without their texts.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn provider_keys(&self) -> Result<Page<ProviderKey>, Error> {
        self.json("listing provider keys", self.request(Method::GET, self.url(&["provider-keys"]))).await
    }

    /// Sets the organisation's key for a provider.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn set_provider_key(
        &self,
        provider: KeyProvider,
        key: &Secret,
        region: Option<&str>,
    ) -> Result<ProviderKey, Error> {
        let url = self.url(&["provider-keys", provider.as_str()]);
        let body = match region {
            Some(region) => json!({ "key": key.expose(), "region": region }),
            None => json!({ "key": key.expose() }),
        };
        self.json("setting a provider key", self.request(Method::PUT, url).json(&body)).await
    }

    /// Erases the organisation's key for a provider.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn erase_provider_key(&self, provider: KeyProvider) -> Result<(), Error> {
        let url = self.url(&["provider-keys", provider.as_str()]);
        self.send("erasing a provider key", self.request(Method::DELETE, url)).await.map(drop)
    }

    /// The secrets of a project, without their values.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn secrets(&self, project: &str) -> Result<Page<ToolSecret>, Error> {
        let url = self.url(&["projects", project, "secrets"]);
        self.json("listing secrets", self.request(Method::GET, url)).await
    }

    /// Sets a secret of a project.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn set_secret(&self, project: &str, name: &str, value: &Secret) -> Result<ToolSecret, Error> {
        let url = self.url(&["projects", project, "secrets", name]);
        let body = json!({ "value": value.expose() });
        self.json("setting a secret", self.request(Method::PUT, url).json(&body)).await
    }

    /// Removes a secret of a project.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn remove_secret(&self, project: &str, name: &str) -> Result<(), Error> {
        let url = self.url(&["projects", project, "secrets", name]);
        self.send("removing a secret", self.request(Method::DELETE, url)).await.map(drop)
    }

    /// What the organisation demands of all its sessions.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn policy(&self) -> Result<OrgPolicy, Error> {
        self.json("reading the policy", self.request(Method::GET, self.url(&["policy"]))).await
    }

    /// Sets what the organisation demands of all its sessions, all of it.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn set_policy(&self, policy: &OrgPolicy) -> Result<OrgPolicy, Error> {
        self.json("setting the policy", self.request(Method::PUT, self.url(&["policy"])).json(policy)).await
    }

    /// Mints a session token.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn mint_token(&self, new: &MintToken) -> Result<NewSessionToken, Error> {
        let url = self.url(&["session-tokens"]);
        self.json("minting a session token", self.request(Method::POST, url).json(new)).await
    }

    /// Ends a session token before its time.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn revoke_token(&self, id: SessionTokenId) -> Result<(), Error> {
        let url = self.url(&["session-tokens", &id.to_string()]);
        self.send("revoking a session token", self.request(Method::DELETE, url)).await.map(drop)
    }

    /// The organisation's audit log, newest first.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn audit(&self, action: Option<&str>, limit: u32) -> Result<Page<Entry>, Error> {
        let mut url = self.url(&["audit"]);
        append(&mut url, &[("action", action.map(str::to_owned)), ("limit", Some(limit.to_string()))]);
        self.json("reading the audit log", self.request(Method::GET, url)).await
    }

    /// Checks the organisation's audit log.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn audit_verify(&self) -> Result<Verdict, Error> {
        let url = self.url(&["audit", "verify"]);
        self.json("checking the audit log", self.request(Method::GET, url)).await
    }

    /// The organisation's audit log after a place, as lines of JSON, oldest first.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn audit_export(
        &self,
        after: u64,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + use<>, Error> {
        let mut url = self.url(&["audit", "export"]);
        append(&mut url, &[("after", Some(after.to_string()))]);
        let doing = "exporting the audit log";
        let answer = self.send(doing, self.request(Method::GET, url)).await?;
        Ok(futures_util::StreamExt::map(answer.bytes_stream(), move |part| {
            part.map_err(|why| Error::transport(doing, why))
        }))
    }
}
