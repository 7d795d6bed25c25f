//! What a session's running turn has used so far: filled by the model gateway, read when the turn ends.

use std::sync::Mutex;

use karta_types::usage::Metered;
use karta_types::{KeyId, Micros, SessionTokenId, TurnId, Usage};

/// The meter of one session.
#[derive(Debug, Default)]
pub struct Meter(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    turn: Option<TurnId>,
    release: Option<u64>,
    key: Option<KeyId>,
    token: Option<SessionTokenId>,
    usage: Usage,
    cost: Micros,
    models: Vec<String>,
}

impl Meter {
    /// A turn begins: counting starts at nothing.
    pub fn begin(&self, turn: TurnId, release: u64, key: Option<KeyId>, token: Option<SessionTokenId>) {
        if let Ok(mut state) = self.0.lock() {
            *state = State { turn: Some(turn), release: Some(release), key, token, ..State::default() };
        }
    }

    /// The turn that runs and the release it is pinned to.
    pub fn turn(&self) -> (Option<TurnId>, Option<u64>) {
        self.0.lock().map_or((None, None), |state| (state.turn, state.release))
    }

    /// The key that the running turn came with.
    pub fn key(&self) -> Option<KeyId> {
        self.0.lock().ok().and_then(|state| state.key)
    }

    /// The session token that it came with.
    pub fn token(&self) -> Option<SessionTokenId> {
        self.0.lock().ok().and_then(|state| state.token)
    }

    /// What the turn had used before the server was started again.
    pub fn take_back(&self, usage: &Usage, cost: Micros, models: &[String]) {
        if let Ok(mut state) = self.0.lock() {
            state.usage.add(usage);
            state.cost = state.cost.saturating_add(cost);
            state.models.extend_from_slice(models);
        }
    }

    /// Counts one model call.
    pub fn add(&self, model: &str, usage: &Usage, cost: Micros) {
        if let Ok(mut state) = self.0.lock() {
            state.usage.add(usage);
            state.cost = state.cost.saturating_add(cost);
            if !state.models.iter().any(|known| known == model) && state.models.len() < 32 {
                state.models.push(model.to_owned());
            }
        }
    }

    /// The turn is over: what it used, and which models it called.
    pub fn end(&self) -> (Metered, Vec<String>) {
        self.0.lock().map_or_else(
            |_| (Metered::default(), Vec::new()),
            |mut state| {
                let state = std::mem::take(&mut *state);
                (Metered::new(&state.usage, state.cost), state.models)
            },
        )
    }
}
