//! The model gateway: the only way from a harness to a model provider.
//!
//! It listens on loopback. A harness is given a base URL and a token that is good for its session only; the provider's key is put in
//! here and nowhere else. Answers pass byte for byte; what they used is read on the side, from the provider's own words. To add a
//! provider: a file here and one line in [`provider::ALL`].

mod anthropic;
mod bound;
pub(crate) mod cloud;
mod forward;
mod openai;
pub mod prices;
mod provider;
mod server;
mod sse;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use karta_types::{Clock, Micros, ModelCallId, OrgId, Problem, Rng, Secret, Timestamp, Usage};

pub use bound::Bound;
use karta_store::Dearest;
pub use prices::Prices;
pub use provider::Provider;
pub use server::{Gateway, anthropic_url, openai_url};

use crate::gate::Hold;

/// How the gateway is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The providers it reaches.
    pub upstreams: Vec<Upstream>,
    /// What models cost.
    pub prices: Prices,
    /// Where access tokens of Google's service accounts are had.
    pub google_tokens: String,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long an answer may pause.
    pub idle_timeout: Duration,
}

/// A provider, and the platform's key for it.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Which.
    pub provider: Provider,
    /// Where: the routes of its API are appended to it.
    pub base_url: String,
    /// The platform's key; absent where organisations bring their own.
    pub key: Option<Secret>,
}

/// What went wrong while starting.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address can't be listened on.
    #[error("listening on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The client to the providers can't be made.
    #[error("setting up the client to the providers")]
    Client(#[source] reqwest::Error),
}

/// An organisation's own key, and where it is good.
#[derive(Debug, Clone)]
pub struct Own {
    /// The provider, which may be another one of the same dialect.
    pub provider: Provider,
    /// Its text.
    pub key: Secret,
}

/// One model call.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its id.
    pub id: ModelCallId,
    /// The provider.
    pub provider: Provider,
    /// The model asked for.
    pub model: String,
    /// Whether the answer is a stream.
    pub streaming: bool,
    /// When it began.
    pub at: Timestamp,
}

/// What a call used.
#[derive(Debug, Clone)]
pub struct Used {
    /// The model, as the provider names it.
    pub model: String,
    /// Tokens.
    pub usage: Usage,
    /// The cost at list price; nothing when the model has none.
    pub cost: Micros,
    /// Whether the model has a list price.
    pub priced: bool,
    /// Whether the provider said all of it. If its answer was cut, output is estimated from what came.
    pub complete: bool,
}

/// What went wrong with a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The provider answered with this status.
    Status(u16),
    /// The provider can't be reached, or its answer broke off.
    Broken(String),
}

/// The call may leave.
#[derive(Debug)]
pub struct Admitted {
    /// What was set aside for it.
    pub hold: Hold,
    /// The most output it may have, all answers together.
    pub output: u64,
}

/// The call may not leave.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Why, with the level, the cap and what is missing.
    pub problem: Box<Problem>,
    /// Whether knowing its input exactly could let it leave.
    pub inexact: bool,
}

/// The way by which a call came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The gateway's own port, which every program on this host can reach.
    Port,
    /// The stream out of one sandbox, known by a number that nobody inside ever sees.
    Sandbox(u128),
}

/// Knows whose token is whose.
pub trait Authority: Send + Sync {
    /// The session that the token is good for when it comes by this way, from memory.
    fn channel(&self, token: &str, way: Way) -> Option<Arc<dyn Channel>>;
}

/// One session, as the gateway sees it.
#[async_trait]
pub trait Channel: Send + Sync {
    /// The organisation, if it may have prices of its own.
    fn org(&self) -> Option<OrgId> {
        None
    }
    /// The organisation's own key for a provider of this dialect. `None`: the platform's is used, where there is one.
    async fn credential(&self, provider: Provider) -> Result<Option<Own>, Box<Problem>>;
    /// May this call leave? Asked before a byte of it does.
    async fn admit(&self, call: &Call, bound: &Bound, price: Option<Dearest>) -> Result<Admitted, Refused>;
    /// It may not leave, and that is final: the turn ends.
    fn refused(&self, refused: Refused);
    /// What the provider has said so far: should we die now, that is on record.
    async fn noted(&self, hold: &Hold, used: &Used);
    /// What the call used. Awaited before the last bytes of the answer are passed on.
    async fn used(&self, call: &Call, hold: Hold, used: Used);
    /// The call used nothing.
    async fn unused(&self, hold: Hold);
    /// The call went wrong.
    fn trouble(&self, call: &Call, trouble: Trouble);
}

/// What the gateway works with.
struct Shared {
    config: Config,
    google: cloud::Google,
    authority: Arc<dyn Authority>,
    client: reqwest::Client,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
}

impl Config {
    /// From the platform's settings.
    ///
    /// # Errors
    /// The embedded price list can't be read: a mistake in the build.
    pub fn from_settings(settings: &crate::Settings) -> Result<Self, String> {
        let mut upstreams = Vec::new();
        let configured = [
            (Provider::Anthropic, &settings.providers.anthropic),
            (Provider::OpenAi, &settings.providers.openai),
            (Provider::OpenRouter, &None),
            (Provider::Bedrock, &None),
            (Provider::Vertex, &None),
        ];
        for (provider, configured) in configured {
            let base = configured.as_ref().and_then(|configured| configured.base_url.as_deref());
            upstreams.push(Upstream {
                provider,
                base_url: base.unwrap_or_else(|| provider.default_base()).trim_end_matches('/').to_owned(),
                key: configured.as_ref().map(|configured| configured.key.clone()),
            });
        }
        Ok(Self {
            listen: settings.gateway_listen,
            upstreams,
            prices: Prices::list()?.with(settings.prices.clone()).with_orgs(settings.org_prices.clone()),
            google_tokens: cloud::GOOGLE_TOKENS.to_owned(),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_mins(5),
        })
    }
}
