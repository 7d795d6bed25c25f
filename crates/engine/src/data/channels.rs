//! The model gateway's view of sessions: which token is whose, what may still be spent, what was used.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use karta_store::{Keyring, UsageRow};
use karta_types::{KeyId, OrgId, Problem, ProjectId, Rng, Secret, SessionId};
use tokio::sync::mpsc;

use crate::data::turn::meter::Meter;
use crate::gate::Gate;
use crate::gateway::{Admitted, Authority, Call, Channel, Refused, Trouble, Used};

/// Tokens of processes that run, by their keyed hash.
pub struct Channels {
    keyring: Keyring,
    known: RwLock<HashMap<[u8; 32], Arc<SessionChannel>>>,
}

impl std::fmt::Debug for Channels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channels").finish_non_exhaustive()
    }
}

/// What a session's model calls belong to.
pub struct SessionChannel {
    /// The organisation.
    pub org: OrgId,
    /// The project.
    pub project: ProjectId,
    /// The session.
    pub session: SessionId,
    /// The key that made the session.
    pub key: Option<KeyId>,
    /// The end user the session is for.
    pub end_user: Option<String>,
    /// What the running turn used.
    pub meter: Arc<Meter>,
    /// The control plane.
    pub gate: Arc<dyn Gate>,
    /// Tells the runner that nothing is left.
    pub exhausted: mpsc::Sender<Box<Problem>>,
}

impl std::fmt::Debug for SessionChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionChannel").field("session", &self.session).finish_non_exhaustive()
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

    /// Opens the gateway to a session.
    pub fn open(self: &Arc<Self>, rng: &dyn Rng, channel: SessionChannel) -> Pass {
        let mut bytes = [0; 32];
        rng.fill(&mut bytes);
        let token = format!("karta_model_{}", crate::data::files::hex(&bytes));
        let digest = self.keyring.digest_key(&token);
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(digest, Arc::new(channel));
        Pass { token: Secret::new(token), digest, channels: self.clone() }
    }
}

impl Authority for Channels {
    fn channel(&self, token: &str) -> Option<Arc<dyn Channel>> {
        let digest = self.keyring.digest_key(token);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&digest).map(|channel| channel.clone() as Arc<dyn Channel>)
    }
}

impl SessionChannel {
    async fn check(&self) -> Result<(), Box<Problem>> {
        self.gate.admit(self.org).await.inspect_err(|problem| {
            // Full means that it was told already.
            let _ = self.exhausted.try_send(problem.clone());
        })
    }
}

#[async_trait]
impl Channel for SessionChannel {
    async fn admit(&self, _call: &Call) -> Result<Admitted, Refused> {
        match self.check().await {
            Ok(()) => Ok(Admitted),
            Err(problem) => Err(Refused { level: "org".to_owned(), detail: problem.detail }),
        }
    }

    async fn used(&self, call: &Call, used: Used) {
        let (turn, release) = self.meter.turn();
        self.meter.add(&used.model, &used.usage, used.cost);
        let row = UsageRow {
            id: call.id,
            org: self.org,
            project: self.project,
            session: self.session,
            turn,
            key: self.key,
            end_user: self.end_user.clone(),
            release,
            provider: call.provider.as_str().to_owned(),
            model: used.model,
            usage: used.usage,
            cost: used.cost,
            priced: used.priced,
            at: call.at,
        };
        if let Err(error) = self.gate.record(row).await {
            tracing::error!(session = %self.session, error = error.chain(), "recording usage");
        }
        // Told now rather than at the next call: a turn that has nothing left must not go on. The refusal itself reaches the runner
        // from within the check; here nobody waits for it.
        let _ = self.check().await;
    }

    fn trouble(&self, call: &Call, trouble: Trouble) {
        tracing::warn!(session = %self.session, call = %call.id, ?trouble, "a model call failed");
    }
}
