//! What one session may use in all, where its release caps that: counted before a call leaves, so that it is never passed.
//!
//! A session has one owner at a time, so this is kept in memory beside it; it begins with what its finished turns used, by the record.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use karta_store::Dearest;
use karta_types::policy::Caps;
use karta_types::usage::Metered;
use karta_types::{ErrorCode, Micros, ModelCallId, Problem, SessionId, Usage};

use crate::gateway::Bound;

/// One session's allowance.
#[derive(Debug)]
pub(crate) struct Allowance {
    session: SessionId,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    caps: Caps,
    cost: i64,
    tokens: u64,
    /// What calls that run may use at most.
    held: HashMap<ModelCallId, (i64, u64)>,
}

impl State {
    fn held_cost(&self) -> i64 {
        self.held.values().fold(0, |sum, (cost, _)| sum.saturating_add(*cost))
    }

    fn held_tokens(&self) -> u64 {
        self.held.values().fold(0, |sum, (_, tokens)| sum.saturating_add(*tokens))
    }
}

/// What was set aside for a call that has not left yet; given back unless it does.
#[derive(Debug)]
pub(crate) struct Taken<'a> {
    allowance: &'a Allowance,
    call: Option<ModelCallId>,
    /// How much output there is room for.
    pub(crate) output: u64,
}

impl Taken<'_> {
    /// The call leaves: from now on it is settled or given back by its id.
    pub(crate) fn leaves(mut self) {
        self.call = None;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(call) = self.call {
            self.allowance.unused(call);
        }
    }
}

/// Whether a session that has used so much may begin another turn.
///
/// # Errors
/// `budget_exhausted`.
pub(crate) fn check(session: SessionId, caps: &Caps, used: &Metered) -> Result<(), Box<Problem>> {
    if let Some(cap) = caps.session_cost_micros.filter(|cap| used.cost_micros >= *cap) {
        return Err(short(session, "cost_micros", cap.get(), used.cost_micros.get(), 0));
    }
    match caps.session_total_tokens.filter(|cap| used.total_tokens >= *cap) {
        Some(cap) => Err(short(session, "total_tokens", signed(cap), signed(used.total_tokens), 0)),
        None => Ok(()),
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn short(session: SessionId, unit: &str, cap: i64, settled: i64, reserved: i64) -> Box<Problem> {
    let detail = format!(
        "the session's cap of {cap} {unit}, which its release sets, has no room: {settled} used, {reserved} set aside"
    );
    Box::new(
        Problem::new(ErrorCode::BudgetExhausted, detail)
            .with("level", "session")
            .with("id", session.to_string())
            .with("unit", unit)
            .with("cap", cap)
            .with("settled", settled)
            .with("reserved", reserved)
            .with("left", (cap - settled - reserved).max(0)),
    )
}

impl Allowance {
    /// Of a session whose finished turns used so much.
    pub(crate) fn new(session: SessionId, used: &Metered) -> Self {
        let state = State { cost: used.cost_micros.get(), tokens: used.total_tokens, ..State::default() };
        Self { session, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The caps of the release that the next turn runs on.
    pub(crate) fn cap(&self, caps: &Caps) {
        self.lock().caps = caps.clone();
    }

    /// Sets a call's bound aside. Answers how much output there is room for.
    ///
    /// # Errors
    /// `budget_exhausted` when there is not even room for the least that is of use.
    pub(crate) fn take(
        &self,
        call: ModelCallId,
        bound: &Bound,
        price: Option<Dearest>,
    ) -> Result<Taken<'_>, Box<Problem>> {
        let mut state = self.lock();
        let mut output = bound.output;
        if let Some(cap) = state.caps.session_total_tokens {
            let held = state.held_tokens();
            let room = cap.saturating_sub(state.tokens).saturating_sub(held).checked_sub(bound.input);
            match room.filter(|room| *room >= bound.least) {
                Some(room) => output = output.min(room),
                None => {
                    return Err(short(
                        self.session,
                        "total_tokens",
                        signed(cap),
                        signed(state.tokens),
                        signed(held),
                    ));
                }
            }
        }
        if let Some(cap) = state.caps.session_cost_micros {
            let held = state.held_cost();
            let left = cap.get().saturating_sub(state.cost).saturating_sub(held);
            let room = price.and_then(|price| price.affords(left, bound.input));
            match room.filter(|room| *room >= bound.least) {
                Some(room) => output = output.min(room),
                None => return Err(short(self.session, "cost_micros", cap.get(), state.cost, held)),
            }
        }
        let cost = price.map_or(Micros::ZERO, |price| price.cost(bound.input, output));
        state.held.insert(call, (cost.get(), bound.input.saturating_add(output)));
        Ok(Taken { allowance: self, call: Some(call), output })
    }

    /// A call used this, in the place of what was set aside for it.
    pub(crate) fn used(&self, call: ModelCallId, usage: &Usage, cost: Micros) {
        let metered = Metered::new(usage, cost);
        let mut state = self.lock();
        state.held.remove(&call);
        state.cost = state.cost.saturating_add(cost.get());
        state.tokens = state.tokens.saturating_add(metered.total_tokens);
    }

    /// A call used nothing.
    pub(crate) fn unused(&self, call: ModelCallId) {
        self.lock().held.remove(&call);
    }

    /// Whether anything is left.
    ///
    /// # Errors
    /// `budget_exhausted`.
    pub(crate) fn check(&self) -> Result<(), Box<Problem>> {
        let state = self.lock();
        let usage = Usage { input_tokens: state.tokens, ..Usage::default() };
        check(self.session, &state.caps, &Metered::new(&usage, Micros::new(state.cost)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(input: u64, output: u64, least: u64) -> Bound {
        Bound { input, counted: true, output, least, answers: 1, long_cache: false }
    }

    fn call(number: u128) -> ModelCallId {
        ModelCallId::from_u128(number)
    }

    /// What there is room for; the call leaves.
    fn take(allowance: &Allowance, number: u128, bound: &Bound, price: Option<Dearest>) -> Option<u64> {
        let taken = allowance.take(call(number), bound, price).ok()?;
        let output = taken.output;
        taken.leaves();
        Some(output)
    }

    #[test]
    fn what_never_leaves_is_given_back() {
        let allowance = Allowance::new(SessionId::from_u128(1), &Metered::default());
        allowance.cap(&Caps { session_total_tokens: Some(10), ..Caps::default() });
        drop(allowance.take(call(1), &bound(1, 9, 1), None).unwrap());
        assert_eq!(take(&allowance, 2, &bound(1, 9, 1), None), Some(9));
        assert_eq!(take(&allowance, 3, &bound(1, 9, 1), None), None);
    }

    #[test]
    fn calls_at_once_never_pass_the_cap_and_fill_it() {
        let allowance = Allowance::new(SessionId::from_u128(1), &Metered::default());
        allowance.cap(&Caps { session_total_tokens: Some(100), ..Caps::default() });
        assert_eq!(take(&allowance, 1, &bound(10, 50, 1), None), Some(50));
        assert_eq!(
            take(&allowance, 2, &bound(10, 50, 1), None),
            Some(30),
            "limited to what there is room for"
        );
        assert!(allowance.take(call(3), &bound(1, 1, 0), None).is_err());
        allowance.unused(call(2));
        allowance.used(
            call(1),
            &Usage { input_tokens: 10, output_tokens: 5, ..Usage::default() },
            Micros::ZERO,
        );
        assert_eq!(take(&allowance, 3, &bound(5, 100, 1), None), Some(80));
        allowance.used(
            call(3),
            &Usage { input_tokens: 5, output_tokens: 80, ..Usage::default() },
            Micros::ZERO,
        );
        assert_eq!(allowance.check().unwrap_err().more["left"], 0);
    }

    #[test]
    fn a_cap_of_cost_needs_a_price() {
        let allowance = Allowance::new(SessionId::from_u128(1), &Metered::default());
        allowance.cap(&Caps { session_cost_micros: Some(Micros::new(10)), ..Caps::default() });
        assert!(allowance.take(call(1), &bound(1, 1, 1), None).is_err());
        let price = Some(Dearest { input: 1_000_000, output: 1_000_000 });
        assert_eq!(take(&allowance, 1, &bound(4, 100, 1), price), Some(6));
        assert!(allowance.take(call(2), &bound(1, 1, 1), price).is_err());
    }
}
