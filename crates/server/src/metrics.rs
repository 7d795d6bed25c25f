//! Numbers for Prometheus.

use axum::http::{Method, StatusCode};
use karta_engine::Engine;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Request {
    method: String,
    status: u16,
}

/// What is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    alive: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("karta");
        let requests = Family::default();
        registry.register("http_requests", "Requests answered", requests.clone());
        let alive = Gauge::default();
        registry.register("sessions_alive", "Sessions with a runner in this process", alive.clone());
        Self { registry, requests, alive }
    }

    /// A request was answered. Unknown methods count as one, so that nobody can make up series.
    pub fn count(&self, method: &Method, status: StatusCode) {
        let known =
            matches!(method.as_str(), "GET" | "POST" | "PUT" | "PATCH" | "DELETE" | "HEAD" | "OPTIONS");
        let method = if known { method.as_str() } else { "other" }.to_owned();
        self.requests.get_or_create(&Request { method, status: status.as_u16() }).inc();
    }

    /// The page that Prometheus reads.
    pub fn page(&self, engine: &Engine) -> String {
        self.alive.set(i64::try_from(engine.alive()).unwrap_or(i64::MAX));
        let mut page = String::new();
        // Writing to a string can't fail.
        let _ = encode(&mut page, &self.registry);
        page
    }
}
