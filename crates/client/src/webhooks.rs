//! Webhooks: endpoints and deliveries.

use karta_types::page::Page;
use karta_types::webhook::{Delivery, DeliveryState, Endpoint, Happened, NewEndpoint};
use karta_types::{DeliveryId, EndpointId, Timestamp};
use reqwest::Method;
use serde_json::json;

use crate::client::append;
use crate::{Client, Error};

impl Client {
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
}
