//! Telling endpoints what happened: signed (Standard Webhooks 1.0), tried again by a schedule, in order for each subject, and to
//! public addresses only.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use karta_store::{DueRow, Outcome};
use karta_types::Timestamp;
use karta_types::webhook::DeliveryState;
use reqwest::{StatusCode, Url};
use serde_json::json;
use serde_json::value::RawValue;

use super::{check_url, context, sealed};
use crate::addresses::Guarded;
use crate::control::encryption;
use crate::{Engine, Error, Principal, Result};

/// How long after each try the next one is; the first is at once.
const SCHEDULE: [Duration; 7] = [
    Duration::from_secs(5),
    Duration::from_mins(5),
    Duration::from_mins(30),
    Duration::from_hours(2),
    Duration::from_hours(5),
    Duration::from_hours(10),
    Duration::from_hours(10),
];
/// How long an endpoint may take to answer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long a claimed delivery is nobody else's: longer than a try takes.
const CLAIM: Duration = Duration::from_mins(1);
/// Deliveries at once.
const AT_ONCE: u32 = 32;
/// How long an endpoint may fail before nothing is sent there any more.
const GIVE_UP: Duration = Duration::from_hours(24 * 5);
/// How long what happened is kept, to be delivered again.
const KEPT: Duration = Duration::from_hours(24 * 30);
/// The longest reason of a failure that is kept, in characters.
const REASON: usize = 300;

/// The client that goes to endpoints. It goes to checked addresses, by no proxy, and follows nobody elsewhere.
pub(crate) fn client(addresses: Guarded) -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .dns_resolver(std::sync::Arc::new(addresses))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(TIMEOUT)
        // Each delivery resolves and checks anew.
        .pool_max_idle_per_host(0)
        .user_agent(concat!("karta-webhooks/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| Error::internal("setting up the client for webhooks", error))
}

/// A signature for each secret, as the `webhook-signature` header has them.
pub fn sign(secrets: &[String], id: &str, timestamp: i64, body: &[u8]) -> String {
    let signature = |secret: &String| {
        let key = STANDARD.decode(secret.trim_start_matches("whsec_")).ok()?;
        let mut signed = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &key));
        signed.update(format!("{id}.{timestamp}.").as_bytes());
        signed.update(body);
        Some(format!("v1,{}", STANDARD.encode(signed.sign())))
    };
    secrets.iter().filter_map(signature).collect::<Vec<_>>().join(" ")
}

/// What is sent.
fn body(due: &DueRow) -> Result<Vec<u8>> {
    let data: &RawValue =
        serde_json::from_str(&due.body).map_err(|error| Error::internal("reading what happened", error))?;
    let payload = json!({ "type": due.kind, "timestamp": due.happened_at, "data": data });
    serde_json::to_vec(&payload).map_err(|error| Error::internal("writing what happened", error))
}

/// How a try went.
enum Tried {
    Taken(StatusCode),
    Refused(Option<StatusCode>, String),
}

impl Engine {
    /// Delivers what is due, of all organisations. Answers how much that was. Runs by itself, twice a second.
    ///
    /// # Errors
    /// The store failed.
    pub async fn deliver(&self) -> Result<usize> {
        let now = self.clock().now();
        if !self.store().deliveries_wait(now).await? {
            return Ok(0);
        }
        let due = self.store().deliveries_claim(now, now.plus(CLAIM), AT_ONCE).await?;
        let count = due.len();
        for done in join_all(due.into_iter().map(|due| self.deliver_one(due))).await {
            done?;
        }
        Ok(count)
    }

    async fn deliver_one(&self, due: DueRow) -> Result<()> {
        let tried = match self.try_once(&due).await {
            Ok(tried) => tried,
            Err(error) => {
                tracing::error!(error = error.chain(), delivery = %due.id, "delivering a webhook");
                Tried::Refused(None, "the delivery could not be prepared; see the server's log".to_owned())
            }
        };
        let now = self.clock().now();
        let outcome = self.outcome(&due, tried, now);
        self.store().delivery_settle(outcome).await?;
        Ok(())
    }

    async fn try_once(&self, due: &DueRow) -> Result<Tried> {
        // An address that was allowed when it was set may not be any more.
        if let Err(refused) = check_url(&due.url, self.settings().webhooks.loopback) {
            return Ok(Tried::Refused(None, refused.to_string()));
        }
        let body = body(due)?;
        let now = self.clock().now();
        let secrets = self.signing_secrets(due, now).await?;
        let id = due.happening.to_string();
        let timestamp = now.as_millis().div_euclid(1000);
        let url: Url = due.url.parse().map_err(|error| Error::internal("reading an address", error))?;
        let request = self
            .webhook_client()
            .post(url)
            .header("content-type", "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", sign(&secrets, &id, timestamp, &body))
            .body(body);
        Ok(match request.send().await {
            // What it says is not read: only whether it took it.
            Ok(answer) if answer.status().is_success() => Tried::Taken(answer.status()),
            Ok(answer) => Tried::Refused(Some(answer.status()), format!("it answered {}", answer.status())),
            Err(error) => Tried::Refused(None, crate::error::chain(&error.without_url())),
        })
    }

    async fn signing_secrets(&self, due: &DueRow, now: Timestamp) -> Result<Vec<String>> {
        let mut secrets = Vec::new();
        for row in self.store().endpoint_secrets(due.org, due.endpoint).await? {
            if row.expires_at.is_none_or(|at| now < at) {
                let context = context(row.org, row.endpoint, row.number);
                let text = encryption::open(self.control().encryption(), &context, &sealed(&row)).await?;
                secrets.push(text.expose().clone());
            }
        }
        Ok(secrets)
    }

    fn outcome(&self, due: &DueRow, tried: Tried, now: Timestamp) -> Outcome {
        let mut outcome = Outcome {
            id: due.id,
            org: due.org,
            endpoint: due.endpoint,
            at: now,
            state: DeliveryState::Delivered,
            next_at: None,
            status: None,
            error: None,
            disable: None,
        };
        let (status, why) = match tried {
            Tried::Taken(status) => {
                outcome.status = Some(status.as_u16());
                return outcome;
            }
            Tried::Refused(status, why) => (status, why),
        };
        outcome.status = status.map(|status| status.as_u16());
        outcome.error = Some(why.chars().take(REASON).collect());
        let before = usize::try_from(due.attempts).unwrap_or(usize::MAX);
        outcome.next_at = SCHEDULE.get(before).map(|pause| now.plus(*pause));
        outcome.state =
            if outcome.next_at.is_some() { DeliveryState::Pending } else { DeliveryState::Failed };
        let long = due.failing_since.is_some_and(|since| now.since(since) >= GIVE_UP);
        let gone = status == Some(StatusCode::GONE);
        if long || gone {
            let why = if gone { "it answered 410 Gone" } else { "it failed for 5 days" };
            let mut told = self.told(&Principal::system(due.org), "webhook.disable", due.endpoint);
            told.reason = Some(why.to_owned());
            outcome.disable = Some((why.to_owned(), told));
        }
        outcome
    }

    /// Wraps signing secrets by this key-encryption key. Answers how many.
    pub(crate) async fn rewrap_webhooks(&self, current: &str) -> Result<u64> {
        let keys = self.control().encryption();
        let mut done = 0;
        loop {
            let rows = self.store().endpoint_secrets_not_under(current, 100).await?;
            if rows.is_empty() {
                return Ok(done);
            }
            for row in rows {
                let context = context(row.org, row.endpoint, row.number);
                let old = (row.kek.as_str(), &*row.wrapped);
                let Some(wrapped) = encryption::rewrap(keys, current, &context, old).await? else {
                    return Ok(done);
                };
                self.store().endpoint_secret_rewrap(&row, current.to_owned(), wrapped).await?;
                done += 1;
            }
        }
    }

    /// Erases what happened long ago.
    pub(crate) async fn forget_happenings(&self) -> Result<()> {
        self.store().happenings_expire(self.clock().now().minus(KEPT)).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_the_standard_says() {
        // The example of the Standard Webhooks specification's reference libraries.
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned();
        let signed =
            sign(&[secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
