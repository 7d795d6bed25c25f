//! The data plane's side: asks the control plane, and says what to do when it is gone.
//!
//! Who somebody is, is believed for less than half a second without asking, and for five when nobody answers. Nothing begins unasked:
//! no turn and no model call. What was granted goes on; what it used is handed over in the database if it can't be told.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use karta_store::{Spender, Store, UsageRow, Want};
use karta_types::org_policy::OrgPolicy;
use karta_types::provider_key::KeyProvider;
use karta_types::{
    Clock, ErrorCode, Micros, ModelCallId, OrgId, Problem, ProjectId, Rng, Secret, TurnId, Usage,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::ServiceTokens;
use super::wire::{
    Admit, AskCredential, AskPolicy, AskSecrets, Authenticate, Calls, Credential as WireCredential, Note,
    Nothing, Org, OrgFound, Origins, PATH, Reserve, Reserved, SecretValue, Settle, Used, UsedIn,
};
use crate::control::audit::by_platform;
use crate::gate::{Credential, Gate, Hold, Principal};
use crate::{Error, Result};

/// How long an answer about who somebody is needs no asking: a revocation is known everywhere within a second.
const FRESH: Duration = Duration::from_millis(400);
/// How long it is believed when nobody answers.
const BELIEVED: Duration = Duration::from_secs(5);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long an answer may take: a reservation waits for others.
const ANSWER: Duration = Duration::from_secs(30);
/// Credentials that are remembered.
const KNOWN: usize = 100_000;
/// The longest answer, in bytes.
const MOST: usize = 1 << 20;

/// The control plane, elsewhere.
pub(crate) struct Remote {
    http: reqwest::Client,
    url: String,
    tokens: ServiceTokens,
    store: Store,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    known: RwLock<HashMap<[u8; 32], (Instant, Principal)>>,
    /// Calls that run here: their holds are renewed.
    live: Mutex<HashSet<ModelCallId>>,
    origins: RwLock<HashSet<String>>,
    policies: RwLock<HashMap<OrgId, (Instant, OrgPolicy)>>,
}

/// Why a question has no answer.
enum Trouble {
    /// Nobody answers: the control plane is gone, or on its way back.
    Gone(String),
    /// It answered that it won't.
    Refused(Box<Problem>),
}

impl Trouble {
    fn problem(self) -> Box<Problem> {
        match self {
            Self::Refused(problem) => problem,
            Self::Gone(why) => {
                tracing::warn!(why, "the control plane does not answer");
                let detail = "the control plane can't be reached; nothing runs unmetered";
                Box::new(Problem::new(ErrorCode::Overloaded, detail).with("retry_after", 1))
            }
        }
    }
}

impl From<Trouble> for Error {
    fn from(trouble: Trouble) -> Self {
        Self::Told(trouble.problem())
    }
}

impl Remote {
    /// Asks the control plane at this address.
    ///
    /// # Errors
    /// The client can't be made.
    pub(crate) fn new(
        url: &str,
        tokens: ServiceTokens,
        store: Store,
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
    ) -> Result<Self> {
        let mut http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .tcp_nodelay(true);
        if url.starts_with("http://") {
            // No TLS will be spoken, so a machine without certificate authorities is fine.
            http = http.tls_certs_only(std::iter::empty());
        }
        let http = http
            .build()
            .map_err(|error| Error::internal("setting up the client to the control plane", error))?;
        Ok(Self {
            http,
            url: format!("{}{PATH}", url.trim_end_matches('/')),
            tokens,
            store,
            clock,
            rng,
            known: RwLock::default(),
            live: Mutex::default(),
            origins: RwLock::default(),
            policies: RwLock::default(),
        })
    }

    async fn ask<T: DeserializeOwned>(&self, what: &str, question: &impl Serialize) -> Result<T, Trouble> {
        let gone = |error: &dyn std::error::Error| Trouble::Gone(crate::error::chain(error));
        let token = self.tokens.first().await.map_err(|error| gone(&error))?;
        let request =
            self.http.post(format!("{}/{what}", self.url)).bearer_auth(token.expose()).json(question);
        let mut answer = request.send().await.map_err(|error| gone(&error.without_url()))?;
        let status = answer.status();
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| gone(&error.without_url()))? {
            if body.len() + chunk.len() > MOST {
                return Err(Trouble::Gone("its answer is too long".to_owned()));
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| gone(&error));
        }
        match serde_json::from_slice::<Problem>(&body) {
            // One that refuses us, fails or can't be understood is as good as gone: what it says is not for our callers.
            Ok(problem) if problem.error != ErrorCode::Internal && problem.error != ErrorCode::Forbidden => {
                Err(Trouble::Refused(Box::new(problem)))
            }
            Ok(problem) => Err(Trouble::Gone(problem.to_string())),
            Err(_) => Err(Trouble::Gone(format!("it answered {status}"))),
        }
    }

    /// The organisation with this slug, made if it does not exist.
    ///
    /// # Errors
    /// `overloaded` when the control plane does not answer.
    pub(crate) async fn ensure_org(&self, slug: &str) -> Result<OrgId> {
        Ok(self.ask::<OrgFound>("org", &Org { slug: slug.to_owned() }).await?.id)
    }

    /// Keeps the holds of calls that run here.
    pub(crate) async fn renew(&self) -> Result<()> {
        let calls: Vec<_> =
            self.live.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        if !calls.is_empty() {
            self.ask::<Nothing>("renew", &Calls { calls }).await?;
        }
        Ok(())
    }

    /// Learns where pages come from that have a session token.
    pub(crate) async fn refresh(&self) -> Result<()> {
        let origins: Origins = self.ask("origins", &Nothing {}).await?;
        *self.origins.write().unwrap_or_else(PoisonError::into_inner) = origins.origins.into_iter().collect();
        Ok(())
    }

    fn recall(&self, key: &[u8; 32], within: Duration) -> Option<Principal> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(key).filter(|(at, _)| at.elapsed() < within).map(|(_, principal)| principal.clone())
    }

    fn over(&self, call: ModelCallId) {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(&call);
    }

    /// Tells what was used, or hands it over when nobody answers.
    async fn tell_usage(&self, used: UsageRow) -> Result<()> {
        match self.ask::<Nothing>("settle", &Settle { used: used.clone() }).await {
            Ok(Nothing {}) => Ok(()),
            Err(Trouble::Refused(problem)) => Err(Error::Told(problem)),
            Err(Trouble::Gone(why)) => {
                tracing::warn!(why, call = %used.id, "usage is handed over: the control plane does not answer");
                Ok(self.store.hand_over_usage(used).await?)
            }
        }
    }
}

#[async_trait]
impl Gate for Remote {
    async fn authenticate(&self, token: &str) -> Result<Principal> {
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        if let Some(principal) = self.recall(&key, FRESH) {
            return Ok(principal);
        }
        match self.ask::<Principal>("authenticate", &Authenticate { token: token.to_owned() }).await {
            Ok(principal) => {
                let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
                if known.len() >= KNOWN {
                    known.retain(|_, (at, _)| at.elapsed() < BELIEVED);
                }
                known.insert(key, (Instant::now(), principal.clone()));
                Ok(principal)
            }
            Err(Trouble::Refused(problem)) => {
                self.known.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
                Err(Error::Told(problem))
            }
            Err(gone) => self.recall(&key, BELIEVED).ok_or_else(|| gone.into()),
        }
    }

    async fn admit(&self, spender: &Spender) -> Result<(), Box<Problem>> {
        let admitted = self.ask::<Nothing>("admit", &Admit { spender: spender.clone() }).await;
        admitted.map(|Nothing {}| ()).map_err(Trouble::problem)
    }

    async fn reserve(&self, want: Want) -> Result<(Hold, u64), (Box<Problem>, bool)> {
        let call = want.id;
        // Renewed from the first moment: the answer may be on its way for long.
        self.live.lock().unwrap_or_else(PoisonError::into_inner).insert(call);
        match self.ask("reserve", &Reserve { want }).await {
            Ok(Reserved::Held { output }) => Ok((Hold::of(call), output)),
            Ok(Reserved::Refused { problem, inexact }) => {
                self.over(call);
                Err((problem, inexact))
            }
            Err(trouble) => {
                self.over(call);
                // It may hold all the same. If this is not heard either, the hold ends by itself.
                let _ = self.ask::<Nothing>("release", &Calls { calls: vec![call] }).await;
                Err((trouble.problem(), false))
            }
        }
    }

    async fn note(&self, hold: &Hold, usage: Usage, cost: Micros, priced: bool) -> Result<()> {
        self.ask::<Nothing>("note", &Note { call: hold.call(), usage, cost, priced }).await?;
        Ok(())
    }

    async fn settle(&self, hold: Hold, used: UsageRow) -> Result<()> {
        self.over(hold.call());
        self.tell_usage(used).await
    }

    async fn release(&self, hold: Hold) -> Result<()> {
        self.over(hold.call());
        // When nobody answers, the hold ends by itself: nobody renews it.
        self.ask::<Nothing>("release", &Calls { calls: vec![hold.call()] }).await?;
        Ok(())
    }

    async fn credential(&self, org: OrgId, providers: &[KeyProvider]) -> Result<Option<Credential>> {
        let question = AskCredential { org, providers: providers.to_vec() };
        let found: Option<WireCredential> = self.ask("credential", &question).await?;
        Ok(found.map(|found| Credential {
            id: found.id,
            provider: found.provider,
            key: Secret::new(found.key),
        }))
    }

    async fn secrets(
        &self,
        org: OrgId,
        project: ProjectId,
        names: &[String],
    ) -> Result<Vec<(String, Secret)>> {
        let question = AskSecrets { org, project, names: names.to_vec() };
        let found: Vec<SecretValue> = self.ask("secrets", &question).await?;
        Ok(found.into_iter().map(|found| (found.name, Secret::new(found.value))).collect())
    }

    async fn policy(&self, org: OrgId) -> Result<OrgPolicy> {
        match self.ask::<OrgPolicy>("policy", &AskPolicy { org }).await {
            Ok(policy) => {
                let mut known = self.policies.write().unwrap_or_else(PoisonError::into_inner);
                if known.len() >= KNOWN {
                    known.clear();
                }
                known.insert(org, (Instant::now(), policy.clone()));
                Ok(policy)
            }
            // As who somebody is: believed for a moment while nobody answers.
            Err(Trouble::Gone(why)) => {
                let known = self.policies.read().unwrap_or_else(PoisonError::into_inner);
                let recent = known.get(&org).filter(|(at, _)| at.elapsed() < BELIEVED);
                recent.map(|(_, policy)| policy.clone()).ok_or_else(|| Trouble::Gone(why).into())
            }
            Err(refused) => Err(refused.into()),
        }
    }

    async fn told(&self, org: OrgId, action: &str, resource: String, turn: Option<TurnId>) -> Result<()> {
        let world = (&*self.clock, &*self.rng);
        let entry = by_platform(world, org, action, resource, turn.map(|turn| turn.to_string()));
        Ok(self.store.audit_append(entry).await?)
    }

    async fn used_in(&self, org: OrgId, turn: TurnId) -> Result<(Usage, Micros, Vec<String>)> {
        let used: Used = self.ask("used", &UsedIn { org, turn }).await?;
        Ok((used.usage, used.cost, used.models))
    }

    fn allows_origin(&self, origin: &str) -> bool {
        self.origins.read().unwrap_or_else(PoisonError::into_inner).contains(origin)
    }

    async fn ready(&self) -> Result<()> {
        self.refresh().await
    }

    async fn record(&self, used: UsageRow) -> Result<()> {
        self.tell_usage(used).await
    }
}
