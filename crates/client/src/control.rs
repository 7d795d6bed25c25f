//! Keys, budgets, providers' keys, session tokens, the audit log.

use bytes::Bytes;
use futures_util::Stream;
use karta_types::audit::{Entry, Verdict};
use karta_types::billing::{Billing, Credit};
use karta_types::budget::{Budget, Caps, Level, Period};
use karta_types::key::{ApiKey, NewApiKey};
use karta_types::page::Page;
use karta_types::person::{DeviceGrant, Invitation, Member, NewAccess, NewInvitation};
use karta_types::provider_key::{KeyProvider, ProviderKey};
use karta_types::scope::Scope;
use karta_types::session_token::NewSessionToken;
use karta_types::webhook::{Delivery, DeliveryState, Endpoint, Happened, NewEndpoint};
use karta_types::{
    DeliveryId, EndpointId, InvitationId, KeyId, Role, Secret, SessionId, SessionTokenId, Timestamp, UserId,
};
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

    /// The organisation's people, by id.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn members(&self, cursor: Option<&str>) -> Result<Page<Member>, Error> {
        let mut url = self.url(&["members"]);
        append(&mut url, &[("cursor", cursor.map(str::to_owned))]);
        self.json("listing members", self.request(Method::GET, url)).await
    }

    /// Gives somebody another role.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn change_member(&self, id: UserId, role: Role) -> Result<Member, Error> {
        let url = self.url(&["members", &id.to_string()]);
        self.json("changing a role", self.request(Method::PATCH, url).json(&json!({ "role": role }))).await
    }

    /// Removes somebody from the organisation.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn remove_member(&self, id: UserId) -> Result<(), Error> {
        let url = self.url(&["members", &id.to_string()]);
        self.send("removing a member", self.request(Method::DELETE, url)).await.map(drop)
    }

    /// Invitations that were not yet taken up.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn invitations(&self) -> Result<Page<Invitation>, Error> {
        self.json("listing invitations", self.request(Method::GET, self.url(&["invitations"]))).await
    }

    /// Invites somebody.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn invite(&self, email: &str, role: Role) -> Result<NewInvitation, Error> {
        let body = json!({ "email": email, "role": role });
        self.json("inviting somebody", self.request(Method::POST, self.url(&["invitations"])).json(&body))
            .await
    }

    /// Takes an invitation back.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn revoke_invitation(&self, id: InvitationId) -> Result<(), Error> {
        let url = self.url(&["invitations", &id.to_string()]);
        self.send("taking an invitation back", self.request(Method::DELETE, url)).await.map(drop)
    }

    /// Ends the personal access token that this client has.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn sign_out(&self) -> Result<(), Error> {
        let url = self.url(&["whoami", "sign-out"]);
        self.send("signing out", self.request(Method::POST, url)).await.map(drop)
    }

    /// Begins to sign in: a person decides at the address in the answer.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn begin_device(&self) -> Result<DeviceGrant, Error> {
        let request = self.request(Method::POST, self.page(&["login", "device"]));
        self.json("beginning to sign in", request).await
    }

    /// Asks whether the person has decided. While nobody has, the problem's `reason` is `authorization_pending` or `slow_down`.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn take_device(&self, device_code: &str) -> Result<NewAccess, Error> {
        let request = self.request(Method::POST, self.page(&["login", "device", "token"]));
        self.json("signing in", request.json(&json!({ "device_code": device_code }))).await
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

    /// The organisation's webhook endpoints.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn webhooks(&self) -> Result<Page<Endpoint>, Error> {
        self.json("listing webhooks", self.request(Method::GET, self.url(&["webhook-endpoints"]))).await
    }

    /// Makes a webhook endpoint; no kinds is all of them.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn create_webhook(&self, url: &str, events: &[Happened]) -> Result<NewEndpoint, Error> {
        let body = json!({ "url": url, "events": events });
        let request = self.request(Method::POST, self.url(&["webhook-endpoints"]));
        self.json("making a webhook", request.json(&body)).await
    }

    /// Takes a webhook endpoint up or out of use.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn enable_webhook(&self, id: EndpointId, enabled: bool) -> Result<Endpoint, Error> {
        let url = self.url(&["webhook-endpoints", &id.to_string()]);
        let request = self.request(Method::PATCH, url).json(&json!({ "enabled": enabled }));
        self.json("changing a webhook", request).await
    }

    /// Removes a webhook endpoint.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn remove_webhook(&self, id: EndpointId) -> Result<(), Error> {
        let url = self.url(&["webhook-endpoints", &id.to_string()]);
        self.send("removing a webhook", self.request(Method::DELETE, url)).await.map(drop)
    }

    /// Makes a new signing secret; for the overlap, in seconds, both sign.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn rotate_webhook(&self, id: EndpointId, overlap: u64) -> Result<NewEndpoint, Error> {
        let url = self.url(&["webhook-endpoints", &id.to_string(), "rotate-secret"]);
        let body = json!({ "overlap_seconds": overlap });
        self.json("replacing a signing secret", self.request(Method::POST, url).json(&body)).await
    }

    /// An endpoint's newest deliveries.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn deliveries(
        &self,
        id: EndpointId,
        state: Option<DeliveryState>,
        limit: u32,
    ) -> Result<Page<Delivery>, Error> {
        let mut url = self.url(&["webhook-endpoints", &id.to_string(), "deliveries"]);
        let state = state.map(|state| state.as_str().to_owned());
        append(&mut url, &[("state", state), ("limit", Some(limit.to_string()))]);
        self.json("listing deliveries", self.request(Method::GET, url)).await
    }

    /// Delivers one again.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn redeliver(&self, id: EndpointId, delivery: DeliveryId) -> Result<Delivery, Error> {
        let parts = [id.to_string(), delivery.to_string()];
        let url = self.url(&["webhook-endpoints", &parts[0], "deliveries", &parts[1], "redeliver"]);
        self.json("delivering again", self.request(Method::POST, url)).await
    }

    /// Delivers again everything that was given up and happened since. Answers how much.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn redeliver_since(&self, id: EndpointId, since: Timestamp) -> Result<u64, Error> {
        let url = self.url(&["webhook-endpoints", &id.to_string(), "redeliver"]);
        let request = self.request(Method::POST, url).json(&json!({ "since": since }));
        let answer: serde_json::Value = self.json("delivering again", request).await?;
        Ok(answer.get("count").and_then(serde_json::Value::as_u64).unwrap_or_default())
    }

    /// Subscription, plans and credit.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn billing(&self) -> Result<Billing, Error> {
        self.json("reading what is paid", self.request(Method::GET, self.url(&["billing"]))).await
    }

    /// Credit that was granted.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn credits(&self) -> Result<Page<Credit>, Error> {
        self.json("listing credit", self.request(Method::GET, self.url(&["billing", "credit"]))).await
    }

    /// Begins to subscribe: answers where a person pays.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn checkout(&self, plan: &str) -> Result<String, Error> {
        let request = self.request(Method::POST, self.url(&["billing", "checkout"]));
        let answer: serde_json::Value =
            self.json("subscribing", request.json(&json!({ "plan": plan }))).await?;
        Ok(answer.get("url").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned())
    }

    /// A month's statement, in a form: `json`, `csv` or `html`.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn statement(&self, month: &str, form: &str) -> Result<String, Error> {
        let mut url = self.url(&["billing", "statements", month]);
        append(&mut url, &[("format", Some(form.to_owned()))]);
        let doing = "reading a statement";
        let answer = self.send(doing, self.request(Method::GET, url)).await?;
        answer.text().await.map_err(|why| Error::transport(doing, why))
    }
}
