//! Webhooks: endpoints and their deliveries, as the API manages them. How they are sent is in [`send`].

pub mod send;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
pub use karta_store::EndpointPatch;
use karta_store::{DeliveryRow, EndpointRow, EndpointSecretRow};
use karta_types::page::Page;
use karta_types::webhook::{Delivery, DeliveryState, Endpoint, Happened, NewEndpoint};
use karta_types::{DeliveryId, EndpointId, ErrorCode, OrgId, Timestamp};
use reqwest::Url;

use crate::control::audit::digest;
use crate::control::encryption::{self, Sealed};
use crate::{Engine, Error, Principal, Result};

/// The most endpoints of one organisation.
const MAX_ENDPOINTS: usize = 50;
/// The longest that an old secret signs beside a new one.
const MAX_OVERLAP: Duration = Duration::from_hours(24 * 7);
const SECRET: usize = 32;
const MAX_DESCRIPTION: usize = 500;

/// What a signing secret is sealed for.
fn context(org: OrgId, endpoint: EndpointId, number: u64) -> Vec<u8> {
    format!("webhook secret {org} {endpoint} {number}").into_bytes()
}

fn sealed(row: &EndpointSecretRow) -> Sealed {
    Sealed { kek: row.kek.clone(), wrapped: row.wrapped.clone(), sealed: row.sealed.clone() }
}

/// An endpoint to be made.
#[derive(Debug, Clone, Default)]
pub struct NewWebhook {
    /// Its address.
    pub url: String,
    /// What it is told; empty is everything.
    pub events: Vec<Happened>,
    /// For people.
    pub description: String,
}

/// Checks an address as far as that can be done without asking anybody: the rest is checked when it is connected to.
fn check_url(text: &str, loopback: bool) -> Result<()> {
    let wrong = |why: &str| Error::invalid("/url", why.to_owned());
    let url: Url = text.parse().map_err(|error| wrong(&format!("not an address: {error}")))?;
    if text.len() > 2000 || !url.username().is_empty() || url.password().is_some() || url.fragment().is_some()
    {
        return Err(wrong("an address has at most 2,000 characters, no user, no password and no fragment"));
    }
    let host = url.host_str().unwrap_or_default();
    let literal = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().ok();
    let here = host == "localhost" || literal.is_some_and(|address| address.is_loopback());
    if loopback && here {
        return Ok(());
    }
    if url.scheme() != "https" {
        return Err(wrong("an endpoint's address begins with https://"));
    }
    if literal.is_some() || here || !host.contains('.') {
        return Err(wrong(
            "an endpoint's address names a public host, not a number or a host of this network",
        ));
    }
    Ok(())
}

impl Engine {
    /// The organisation's endpoints.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn webhooks(&self, who: &Principal) -> Result<Vec<Endpoint>> {
        Ok(self.store().endpoint_list(who.org).await?.into_iter().map(show).collect())
    }

    /// An endpoint.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn webhook(&self, who: &Principal, id: EndpointId) -> Result<Endpoint> {
        Ok(show(self.webhook_row(who, id).await?))
    }

    async fn webhook_row(&self, who: &Principal, id: EndpointId) -> Result<EndpointRow> {
        let row = self.store().endpoint_get(who.org, id).await?;
        row.ok_or_else(|| Error::not_found("webhook endpoint"))
    }

    /// Makes an endpoint.
    ///
    /// # Errors
    /// `invalid_request` for an address that is none or not public, or when there are too many.
    pub async fn create_webhook(&self, who: &Principal, new: NewWebhook) -> Result<NewEndpoint> {
        check_url(&new.url, self.settings().webhooks.loopback)?;
        check_description(&new.description)?;
        if self.store().endpoint_list(who.org).await?.len() >= MAX_ENDPOINTS {
            return Err(Error::invalid("", format!("an organisation has at most {MAX_ENDPOINTS} endpoints")));
        }
        let row = EndpointRow {
            id: EndpointId::new(self.clock(), self.rng()),
            org: who.org,
            url: new.url,
            events: new.events,
            description: new.description,
            created_by: who.actor.to_string(),
            created_at: self.clock().now(),
            disabled_at: None,
            disabled_why: None,
            failing_since: None,
        };
        let (secret, text) = self.signing_secret(who.org, row.id, 1).await?;
        let record = show(row.clone());
        let mut told = self.told(who, "webhook.create", row.id);
        told.after = Some(digest(&record)?);
        self.store().endpoint_insert(row, secret, told).await?;
        Ok(NewEndpoint { record, secret: text })
    }

    async fn signing_secret(
        &self,
        org: OrgId,
        endpoint: EndpointId,
        number: u64,
    ) -> Result<(EndpointSecretRow, String)> {
        let mut bytes = [0; SECRET];
        self.rng().fill(&mut bytes);
        let text = format!("whsec_{}", STANDARD.encode(bytes));
        let context = context(org, endpoint, number);
        let sealed =
            encryption::seal(self.control().encryption(), self.rng(), &context, text.as_bytes()).await?;
        let row = EndpointSecretRow {
            endpoint,
            org,
            number,
            kek: sealed.kek,
            wrapped: sealed.wrapped,
            sealed: sealed.sealed,
            created_at: self.clock().now(),
            expires_at: None,
        };
        Ok((row, text))
    }

    /// Changes an endpoint.
    ///
    /// # Errors
    /// As [`Engine::create_webhook`], and `not_found`.
    pub async fn change_webhook(
        &self,
        who: &Principal,
        id: EndpointId,
        patch: EndpointPatch,
    ) -> Result<Endpoint> {
        let before = self.webhook(who, id).await?;
        if let Some(url) = &patch.url {
            check_url(url, self.settings().webhooks.loopback)?;
        }
        check_description(patch.description.as_deref().unwrap_or_default())?;
        let mut told = self.told(who, "webhook.change", id);
        told.before = Some(digest(&before)?);
        match self.store().endpoint_patch(who.org, id, patch, self.clock().now(), told).await {
            Err(karta_store::Error::NotFound) => Err(Error::not_found("webhook endpoint")),
            done => {
                done?;
                self.webhook(who, id).await
            }
        }
    }

    /// Removes an endpoint; what it was not told yet, it never is.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn remove_webhook(&self, who: &Principal, id: EndpointId) -> Result<()> {
        let before = self.webhook(who, id).await?;
        let mut told = self.told(who, "webhook.remove", id);
        told.before = Some(digest(&before)?);
        self.store().endpoint_remove(who.org, id, told).await?;
        Ok(())
    }

    /// Makes a new signing secret. For `overlap` both sign, so that nothing is refused while the receiver changes over.
    ///
    /// # Errors
    /// `not_found`; `invalid_request` for an overlap of more than a week.
    pub async fn rotate_webhook_secret(
        &self,
        who: &Principal,
        id: EndpointId,
        overlap: Duration,
    ) -> Result<NewEndpoint> {
        let record = self.webhook(who, id).await?;
        if overlap > MAX_OVERLAP {
            return Err(Error::invalid("/overlap_seconds", "at most 7 days"));
        }
        let last = self.store().endpoint_secrets(who.org, id).await?.first().map_or(0, |row| row.number);
        let (secret, text) = self.signing_secret(who.org, id, last + 1).await?;
        let told = self.told(who, "webhook.rotate_secret", id);
        let until = self.clock().now().plus(overlap);
        match self.store().endpoint_secret_rotate(secret, until, told).await {
            Err(karta_store::Error::Conflict(_)) => Err(Error::told(
                ErrorCode::RequestInProgress,
                "somebody else made a new secret at the same moment",
            )),
            done => {
                done?;
                Ok(NewEndpoint { record, secret: text })
            }
        }
    }

    /// The endpoint's deliveries, newest first.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn deliveries(
        &self,
        who: &Principal,
        id: EndpointId,
        state: Option<DeliveryState>,
        before: Option<DeliveryId>,
        limit: u32,
    ) -> Result<Page<Delivery>> {
        self.webhook(who, id).await?;
        let rows = self.store().delivery_list(who.org, id, state, before, limit + 1).await?;
        let more = rows.len() > limit as usize;
        let data: Vec<_> = rows.into_iter().take(limit as usize).map(show_delivery).collect();
        let next_cursor = data.last().filter(|_| more).map(|last| last.id.to_string());
        Ok(Page { data, next_cursor })
    }

    /// Delivers again what was delivered or given up.
    ///
    /// # Errors
    /// `not_found` when it, or what it tells, is not kept any more.
    pub async fn redeliver(&self, who: &Principal, id: EndpointId, delivery: DeliveryId) -> Result<Delivery> {
        self.webhook(who, id).await?;
        let told = self.told(who, "webhook.redeliver", delivery);
        let now = self.clock().now();
        if self.store().delivery_again(who.org, id, Ok(delivery), now, told).await? == 0 {
            return Err(Error::not_found("delivery"));
        }
        let row = self.store().delivery_get(who.org, id, delivery).await?;
        row.map(show_delivery).ok_or_else(|| Error::not_found("delivery"))
    }

    /// Delivers again everything that was given up and happened since. Answers how much that is.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn redeliver_since(&self, who: &Principal, id: EndpointId, since: Timestamp) -> Result<u64> {
        self.webhook(who, id).await?;
        let told = self.told(who, "webhook.redeliver", id);
        Ok(self.store().delivery_again(who.org, id, Err(since), self.clock().now(), told).await?)
    }
}

fn check_description(text: &str) -> Result<()> {
    if text.chars().count() > MAX_DESCRIPTION {
        return Err(Error::invalid("/description", format!("at most {MAX_DESCRIPTION} characters")));
    }
    Ok(())
}

fn show(row: EndpointRow) -> Endpoint {
    Endpoint {
        id: row.id,
        url: row.url,
        events: row.events,
        description: row.description,
        created_by: row.created_by,
        created_at: row.created_at,
        disabled_at: row.disabled_at,
        disabled_reason: row.disabled_why,
        failing_since: row.failing_since,
    }
}

fn show_delivery(row: DeliveryRow) -> Delivery {
    Delivery {
        id: row.id,
        endpoint_id: row.endpoint,
        event_id: row.happening,
        event: row.kind,
        state: row.state,
        attempts: row.attempts,
        happened_at: row.happened_at,
        next_attempt_at: row.next_at.filter(|_| row.state == DeliveryState::Pending),
        last_attempt_at: row.last_at,
        last_status: row.status.and_then(|status| u16::try_from(status).ok()),
        last_error: row.error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_lead_inside_are_refused_before_anybody_is_asked() {
        for url in [
            "http://hook.example.com/",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://10.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://localhost/",
            "https://intranet/",
            "https://a:b@hook.example.com/",
            "ftp://hook.example.com/",
            "https://hook.example.com/#x",
            "https://",
            "hook.example.com",
            "http://169.254.169.254/latest",
        ] {
            assert!(check_url(url, false).is_err(), "{url}");
        }
        assert!(check_url("https://hook.example.com:8443/in?x=1", false).is_ok());
        assert!(
            check_url("http://127.0.0.1:9/in", true).is_ok()
                && check_url("http://10.0.0.1/in", true).is_err()
        );
    }
}
