//! The model gateway's view of sessions: which token is whose, what may still be spent, what was used.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use async_trait::async_trait;
use karta_store::{Dearest, Keyring, Spender, UsageRow, Want};
use karta_types::provider_key::KeyProvider;
use karta_types::{Clock, ErrorCode, Problem, ProviderKeyId, Rng, Secret, TurnId};
use tokio::sync::mpsc;

use crate::control::budgets::HOLD;
use crate::data::allowance::Allowance;
use crate::data::turn::meter::Meter;
use crate::gate::{Gate, Hold};
use crate::gateway::{Admitted, Authority, Bound, Call, Channel, Own, Provider, Refused, Trouble, Used, Way};

/// Tokens of processes that run, by their keyed hash.
pub struct Channels {
    keyring: Keyring,
    known: RwLock<HashMap<[u8; 32], Opened>>,
}

impl std::fmt::Debug for Channels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channels").finish_non_exhaustive()
    }
}

/// A session, and the one way by which its token is good.
type Opened = (Way, Arc<SessionChannel>);

/// What a session's model calls belong to.
pub struct SessionChannel {
    /// Whom what is spent belongs to.
    pub spender: Spender,
    /// What the running turn used.
    pub meter: Arc<Meter>,
    /// What the session may use in all.
    pub(crate) allowance: Arc<Allowance>,
    /// The control plane.
    pub gate: Arc<dyn Gate>,
    /// Whether organisations without a key of their own use the platform's.
    pub platform_keys: bool,
    /// The own key that the running turn was seen to use.
    pub used_key: Mutex<Option<(Option<TurnId>, ProviderKeyId)>>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Tells the runner that nothing is left.
    pub exhausted: mpsc::Sender<Box<Problem>>,
}

impl std::fmt::Debug for SessionChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionChannel").field("session", &self.spender.session).finish_non_exhaustive()
    }
}

/// A token that is good while this lives.
#[derive(Debug)]
pub struct Pass {
    /// What the harness sends.
    pub token: Secret,
    digest: [u8; 32],
    channels: Arc<Channels>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.channels.known.write().unwrap_or_else(PoisonError::into_inner).remove(&self.digest);
    }
}

impl Channels {
    /// None yet.
    pub fn new(keyring: Keyring) -> Self {
        Self { keyring, known: RwLock::default() }
    }

    /// Opens the gateway to a session, for calls that come by this way only.
    pub fn open(self: &Arc<Self>, rng: &dyn Rng, channel: SessionChannel, way: Way) -> Pass {
        let mut bytes = [0; 32];
        rng.fill(&mut bytes);
        self.open_again(Secret::new(format!("karta_model_{}", crate::hex::hex(&bytes))), channel, way)
    }

    /// Opens it for a token that a harness has already.
    pub fn open_again(self: &Arc<Self>, token: Secret, channel: SessionChannel, way: Way) -> Pass {
        let digest = self.keyring.digest_key(token.expose());
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(digest, (way, Arc::new(channel)));
        Pass { token, digest, channels: self.clone() }
    }
}

impl Authority for Channels {
    fn channel(&self, token: &str, way: Way) -> Option<Arc<dyn Channel>> {
        let digest = self.keyring.digest_key(token);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let (bound, channel) = known.get(&digest)?;
        (*bound == way).then(|| channel.clone() as Arc<dyn Channel>)
    }
}

impl SessionChannel {
    fn tell(&self, problem: Box<Problem>) {
        // Full means that it was told already.
        let _ = self.exhausted.try_send(problem);
    }

    /// What a turn spends belongs to the key that it came with.
    fn spender(&self) -> Spender {
        let token = self.meter.token();
        Spender { key: self.meter.key().or(self.spender.key), token, ..self.spender.clone() }
    }

    fn log(&self, doing: &'static str, result: crate::Result<()>) {
        if let Err(error) = result {
            tracing::error!(session = %self.spender.session, error = error.chain(), "{doing}");
        }
    }
}

#[async_trait]
impl Channel for SessionChannel {
    fn org(&self) -> Option<karta_types::OrgId> {
        Some(self.spender.org)
    }

    async fn credential(&self, provider: Provider) -> Result<Option<Own>, Box<Problem>> {
        let wanted: &[KeyProvider] = match provider {
            Provider::Anthropic | Provider::Bedrock | Provider::Vertex => {
                &[KeyProvider::Anthropic, KeyProvider::Bedrock, KeyProvider::Vertex]
            }
            Provider::OpenAi | Provider::OpenRouter => &[KeyProvider::Openai, KeyProvider::Openrouter],
        };
        let found = self.gate.credential(self.spender.org, wanted).await.map_err(|error| {
            if error.code() == ErrorCode::Overloaded {
                return Box::new(error.problem());
            }
            tracing::error!(session = %self.spender.session, error = error.chain(), "opening a provider key");
            let detail = "the organisation's provider key can't be opened; set it anew";
            Box::new(Problem::new(ErrorCode::ProviderKeyRejected, detail))
        })?;
        if found.is_none() && !self.platform_keys {
            let detail = "this server lends no key of its own: set one with `karta provider-keys set`";
            return Err(Box::new(Problem::new(ErrorCode::ProviderKeyRejected, detail)));
        }
        let Some(found) = found else { return Ok(None) };
        let use_now = Some((self.meter.turn().0, found.id));
        let before =
            std::mem::replace(&mut *self.used_key.lock().unwrap_or_else(PoisonError::into_inner), use_now);
        // Once for each turn.
        if before != use_now {
            let resource = format!("{}/{}", found.provider, found.id);
            let turn = self.meter.turn().0;
            let told = self.gate.told(self.spender.org, "provider_key.use", resource, turn).await;
            self.log("telling the audit log of a key's use", told);
        }
        let provider = match found.provider {
            KeyProvider::Openrouter => Provider::OpenRouter,
            KeyProvider::Bedrock => Provider::Bedrock,
            KeyProvider::Vertex => Provider::Vertex,
            _ => provider,
        };
        Ok(Some(Own { provider, key: found.key }))
    }

    async fn admit(&self, call: &Call, bound: &Bound, price: Option<Dearest>) -> Result<Admitted, Refused> {
        let (turn, release) = self.meter.turn();
        let taken = self
            .allowance
            .take(call.id, bound, price)
            .map_err(|problem| Refused { problem, inexact: !bound.counted })?;
        let want = Want {
            id: call.id,
            spender: self.spender(),
            turn,
            release,
            provider: call.provider.as_str().to_owned(),
            model: call.model.clone(),
            input: bound.input,
            output: taken.output,
            least: bound.least,
            price,
            at: call.at,
            expires_at: self.clock.now().plus(HOLD),
        };
        match self.gate.reserve(want).await {
            Ok((hold, output)) => {
                taken.leaves();
                Ok(Admitted { hold, output })
            }
            Err((problem, inexact)) => Err(Refused { problem, inexact: inexact && !bound.counted }),
        }
    }

    fn refused(&self, refused: Refused) {
        self.tell(refused.problem);
    }

    async fn noted(&self, hold: &Hold, used: &Used) {
        self.log("noting usage", self.gate.note(hold, used.usage, used.cost, used.priced).await);
    }

    async fn used(&self, call: &Call, hold: Hold, used: Used) {
        let (turn, release) = self.meter.turn();
        self.meter.add(&used.model, &used.usage, used.cost);
        self.allowance.used(call.id, &used.usage, used.cost);
        let row = UsageRow {
            id: call.id,
            org: self.spender.org,
            project: self.spender.project,
            session: self.spender.session,
            turn,
            key: self.spender().key,
            token: self.meter.token(),
            end_user: self.spender.end_user.clone(),
            release,
            provider: call.provider.as_str().to_owned(),
            model: used.model,
            usage: used.usage,
            cost: used.cost,
            priced: used.priced,
            at: call.at,
        };
        self.log("recording usage", self.gate.settle(hold, row).await);
        // Told now rather than at the next call: a turn that has nothing left must not go on.
        let left = match self.allowance.check() {
            Ok(()) => self.gate.admit(&self.spender()).await,
            exhausted => exhausted,
        };
        if let Err(problem) = left
            && problem.error == ErrorCode::BudgetExhausted
        {
            self.tell(problem);
        }
    }

    async fn unused(&self, hold: Hold) {
        self.allowance.unused(hold.call());
        self.log("giving a hold back", self.gate.release(hold).await);
    }

    fn trouble(&self, call: &Call, trouble: Trouble) {
        tracing::warn!(session = %self.spender.session, call = %call.id, ?trouble, "a model call failed");
    }
}
