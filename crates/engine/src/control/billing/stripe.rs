//! Payments by Stripe: customers, Checkout, meter events, and its webhooks.
//!
//! A webhook tells only that something changed: what it is now is asked for, so that events which come twice, late or in another order
//! than they happened end in the same state (as Stripe's documentation on webhooks advises).

use std::time::Duration;

use aws_lc_rs::hmac;
use karta_store::{SubscriptionRow, UsageKey};
use karta_types::billing::SubscriptionStatus;
use karta_types::{ErrorCode, OrgId, Secret, Timestamp};
use serde::Deserialize;
use serde_json::Value;

use super::told_of;
use crate::control::usage::Query;
use crate::settings::{self, Settings};
use crate::{Engine, Error, Principal, Result};

/// How old a signature may be, in seconds (Stripe's libraries take the same).
const TOLERANCE: i64 = 300;
/// The most that is read of one answer, in bytes.
const MOST: usize = 1 << 20;
/// Days whose usage is told again when it grew: Stripe takes meter events of the last 35 days.
const DAYS: u64 = 34;

/// The client to Stripe.
#[derive(Debug)]
pub struct Stripe {
    settings: settings::Stripe,
    http: reqwest::Client,
}

/// An event of a webhook, as far as it is looked at.
#[derive(Deserialize)]
struct Event {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    data: EventData,
}

#[derive(Deserialize)]
struct EventData {
    object: Value,
}

impl Stripe {
    /// From the settings, if they name it.
    ///
    /// # Errors
    /// `invalid_request` when a secret is missing.
    pub(crate) fn from_settings(settings: &Settings) -> Result<Option<Self>> {
        let Some(stripe) = settings.billing.stripe.clone() else { return Ok(None) };
        let missing = |secret: &Secret| secret.expose().is_empty();
        if settings.plane != settings::Plane::Data
            && (missing(&stripe.key) || missing(&stripe.webhook_secret))
        {
            return Err(Error::invalid(
                "/billing/stripe",
                "`[billing.stripe]` needs its secrets: set KARTA_STRIPE_KEY and KARTA_STRIPE_WEBHOOK_SECRET",
            ));
        }
        let here = stripe.base_url.starts_with("http://127.0.0.1:");
        let mut http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_secs(30));
        if here {
            // No TLS will be spoken to one on this machine.
            http = http.no_proxy().tls_certs_only(std::iter::empty());
        }
        let http = http.build().map_err(|error| Error::internal("setting up the client to Stripe", error))?;
        Ok(Some(Self { settings: stripe, http }))
    }

    /// Sends a request and reads its answer. `once` makes it safe to repeat.
    async fn send(&self, request: reqwest::RequestBuilder, once: Option<&str>) -> Result<Value> {
        let doing = "asking Stripe";
        let fail = |error: reqwest::Error| Error::internal(doing, error.without_url());
        let mut request = request.bearer_auth(self.settings.key.expose());
        if let Some(once) = once {
            request = request.header("Idempotency-Key", once);
        }
        let mut answer = request.send().await.map_err(fail)?;
        let status = answer.status();
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(fail)? {
            if body.len() + chunk.len() > MOST {
                return Err(Error::internal(doing, "the answer is too long"));
            }
            body.extend_from_slice(&chunk);
        }
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        if !status.is_success() {
            let why = value.pointer("/error/message").and_then(Value::as_str).unwrap_or("no reason given");
            let why: String = why.chars().take(300).collect();
            return Err(Error::internal(doing, format!("it answered {status}: {why}")));
        }
        Ok(value)
    }

    async fn post(&self, path: &str, form: &[(&str, &str)], once: Option<&str>) -> Result<Value> {
        self.send(self.http.post(format!("{}{path}", self.settings.base_url)).form(form), once).await
    }

    async fn get(&self, path: &str) -> Result<Value> {
        self.send(self.http.get(format!("{}{path}", self.settings.base_url)), None).await
    }

    /// Whether Stripe signed this body lately.
    fn signed(&self, header: &str, body: &[u8], now: Timestamp) -> bool {
        let secret = self.settings.webhook_secret.expose();
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let parts = || header.split(',').filter_map(|part| part.trim().split_once('='));
        let Some(at) = parts().find(|(name, _)| *name == "t").map(|(_, at)| at) else { return false };
        let Ok(seconds) = at.parse::<i64>() else { return false };
        let now = now.as_millis().div_euclid(1000);
        if now.abs_diff(seconds) > TOLERANCE.unsigned_abs() {
            return false;
        }
        let message = [at.as_bytes(), b".", body].concat();
        parts().filter(|(name, _)| *name == "v1").any(|(_, signature)| {
            unhex(signature).is_some_and(|signature| hmac::verify(&key, &message, &signature).is_ok())
        })
    }

    fn plan_of(&self, subscription: &Value) -> String {
        let items = subscription.pointer("/items/data").and_then(Value::as_array);
        let prices = items.into_iter().flatten().filter_map(|item| item.pointer("/price/id")?.as_str());
        let named = |price: &str| self.settings.plans.iter().find(|(_, known)| known.as_str() == price);
        let found = prices.clone().find_map(named).map(|(name, _)| name.clone());
        found.unwrap_or_else(|| prices.clone().next().unwrap_or("unknown").chars().take(100).collect())
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<_>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let pairs = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    pairs.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).ok()).collect()
}

fn status_of(text: &str) -> SubscriptionStatus {
    match text {
        "trialing" => SubscriptionStatus::Trialing,
        "active" => SubscriptionStatus::Active,
        "canceled" | "incomplete_expired" => SubscriptionStatus::Canceled,
        // `past_due`, `unpaid`, `incomplete`, `paused`, and what may come: something is due.
        _ => SubscriptionStatus::PastDue,
    }
}

/// A time of a subscription: at its top, or, since the API of 2025, at its items.
fn time_of(subscription: &Value, name: &str) -> Option<Timestamp> {
    let item = || subscription.pointer("/items/data/0").and_then(|item| item.get(name));
    let seconds = subscription.get(name).filter(|value| !value.is_null()).or_else(item)?.as_i64()?;
    Some(Timestamp::from_micros(seconds.checked_mul(1_000_000)?))
}

impl Engine {
    /// Begins to subscribe to a plan: answers where the person pays. `base` is where this server is reached.
    ///
    /// # Errors
    /// `not_found` when no payments are configured or the plan is none.
    pub async fn checkout(&self, who: &Principal, plan: &str, base: &str) -> Result<String> {
        let stripe = self.stripe().ok_or_else(|| Error::not_found("billing here: none is configured"))?;
        let price = stripe.settings.plans.get(plan).ok_or_else(|| Error::not_found("plan"))?;
        let customer = self.customer(stripe, who).await?;
        let org = who.org.to_string();
        let back = format!("{base}/console");
        let mut form = vec![
            ("mode", "subscription"),
            ("customer", customer.as_str()),
            ("client_reference_id", org.as_str()),
            ("success_url", back.as_str()),
            ("cancel_url", back.as_str()),
            ("line_items[0][price]", price.as_str()),
            ("line_items[0][quantity]", "1"),
        ];
        if let Some(usage) = &stripe.settings.usage_price {
            // A metered price takes no quantity.
            form.push(("line_items[1][price]", usage));
        }
        let session = stripe.post("/v1/checkout/sessions", &form, None).await?;
        let url = session.get("url").and_then(Value::as_str);
        let url =
            url.ok_or_else(|| Error::internal("asking Stripe", "the Checkout session has no address"))?;
        let told = self.told(who, "billing.checkout", plan);
        self.store().audit_append(told).await?;
        Ok(url.to_owned())
    }

    async fn customer(&self, stripe: &Stripe, who: &Principal) -> Result<String> {
        if let Some(customer) = self.store().customer_get(who.org).await? {
            return Ok(customer);
        }
        let org = self.org(who).await?;
        let id = org.id.to_string();
        let form = [("name", org.name.as_str()), ("metadata[org]", id.as_str())];
        // The same organisation twice at once is one customer.
        let made = stripe.post("/v1/customers", &form, Some(&format!("customer-{id}"))).await?;
        let customer = made.get("id").and_then(Value::as_str);
        let customer = customer.ok_or_else(|| Error::internal("asking Stripe", "the customer has no id"))?;
        self.store().customer_set(org.id, customer.to_owned()).await?;
        Ok(customer.to_owned())
    }

    /// Takes an event of Stripe's webhook.
    ///
    /// # Errors
    /// `unauthorized` for what Stripe did not sign lately; anything else means that it is to be sent again.
    pub async fn stripe_event(&self, signature: &str, body: &[u8]) -> Result<()> {
        let stripe = self.stripe().ok_or_else(|| Error::not_found("billing here: none is configured"))?;
        let now = self.clock().now();
        if !stripe.signed(signature, body, now) {
            return Err(Error::told(ErrorCode::Unauthorized, "the signature is not Stripe's, or too old"));
        }
        let event: Event = serde_json::from_slice(body)
            .map_err(|error| Error::invalid("", format!("not an event: {error}")))?;
        if self.store().stripe_event_known(&event.id).await? {
            return Ok(());
        }
        let text = |name: &str| event.data.object.get(name).and_then(Value::as_str);
        let subscription = match event.kind.as_str() {
            "checkout.session.completed" | "invoice.paid" | "invoice.payment_failed" => text("subscription"),
            kind if kind.starts_with("customer.subscription.") => text("id"),
            _ => None,
        };
        if let (Some(subscription), Some(customer)) = (subscription, text("customer")) {
            self.sync_subscription(stripe, subscription, customer).await?;
        }
        self.store().stripe_event_done(event.id, event.kind, now).await?;
        Ok(())
    }

    async fn sync_subscription(&self, stripe: &Stripe, id: &str, customer: &str) -> Result<()> {
        // Not ours, or of another installation with the same account.
        let Some(org) = self.store().customer_org(customer).await? else { return Ok(()) };
        let plain = |id: &str| id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !plain(id) || id.is_empty() {
            return Err(Error::invalid("/data/object", "not a subscription's id"));
        }
        // The time before the look: of two looks the later one counts.
        let synced_at = self.clock().now();
        let now = stripe.get(&format!("/v1/subscriptions/{id}")).await?;
        if now.get("customer").and_then(Value::as_str) != Some(customer) {
            return Err(Error::internal("asking Stripe", "the subscription is another customer's"));
        }
        let status = status_of(now.get("status").and_then(Value::as_str).unwrap_or_default());
        let before = self.store().subscription_get(org).await?;
        // One that was canceled does not end another that runs: somebody subscribed anew.
        if let Some(before) = &before
            && before.status.may_run()
            && status == SubscriptionStatus::Canceled
            && before.subscription.as_deref().is_some_and(|known| known != id)
        {
            return Ok(());
        }
        let row = SubscriptionRow {
            org,
            plan: stripe.plan_of(&now),
            status,
            period_start: time_of(&now, "current_period_start"),
            period_end: time_of(&now, "current_period_end"),
            subscription: Some(id.to_owned()),
            synced_at,
        };
        let told = told_of(self, org, "billing.subscribed", format!("{} {}", row.plan, status.as_str()));
        self.store().subscription_set(row, told).await?;
        Ok(())
    }

    /// Tells Stripe what was used since it was told last. Runs by itself every hour.
    ///
    /// # Errors
    /// Stripe or the store failed; what was told stays told.
    pub async fn report_usage(&self) -> Result<()> {
        let Some(stripe) = self.stripe().filter(|stripe| stripe.settings.usage_price.is_some()) else {
            return Ok(());
        };
        for (org, customer) in self.store().customers().await? {
            self.report_usage_of(stripe, org, &customer).await?;
        }
        Ok(())
    }

    async fn report_usage_of(&self, stripe: &Stripe, org: OrgId, customer: &str) -> Result<()> {
        let now = self.clock().now();
        let from = now.minus(Duration::from_hours(24 * DAYS));
        let query = Query { from: Some(from), to: None, project: None, group_by: vec![UsageKey::Day] };
        for row in self.usage(&Principal::system(org), query).await? {
            let Some(day) = row.keys.get("day") else { continue };
            let (used, told) = (row.metered.cost_micros.get(), self.store().metered_get(org, day).await?);
            // The first day is cut by `from`: it was told whole when it was later.
            if used <= told || *day == from.day() {
                continue;
            }
            let (value, identifier) = ((used - told).to_string(), format!("{org}-{day}-{told}"));
            let noon: Option<Timestamp> =
                serde_json::from_value(Value::from(format!("{day}T12:00:00Z"))).ok();
            let at = noon.map_or(now, |noon| noon.min(now)).as_millis().div_euclid(1000).to_string();
            let form = [
                ("event_name", stripe.settings.meter.as_str()),
                ("payload[stripe_customer_id]", customer),
                ("payload[value]", value.as_str()),
                // The same part of the same day told twice counts once.
                ("identifier", identifier.as_str()),
                ("timestamp", at.as_str()),
            ];
            stripe.post("/v1/billing/meter_events", &form, Some(&identifier)).await?;
            self.store().metered_set(org, day.clone(), told, used).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_is_read_and_nothing_else() {
        assert_eq!(unhex("00ff10"), Some(vec![0, 255, 16]));
        for none in ["0", "zz", "0g", "é0"] {
            assert_eq!(unhex(none), None, "{none}");
        }
    }

    #[test]
    fn what_stripe_may_say_later_is_something_due() {
        assert!(status_of("active").may_run() && status_of("trialing").may_run());
        for status in
            ["past_due", "unpaid", "incomplete", "paused", "canceled", "incomplete_expired", "", "new"]
        {
            assert!(!status_of(status).may_run(), "{status}");
        }
    }
}
