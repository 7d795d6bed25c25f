//! Budgets: never overspent, never refused while there is room.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use karta_store::{BudgetRow, Dearest, Keyring, Reserved, Short, Spender, UsageRow, Want};
use karta_types::budget::{Amount, Caps, Level, Period, Unit};
use karta_types::{KeyId, Micros, ModelCallId, ProjectId, SessionId, Timestamp, Usage};

use karta_types::rng::Seeded;

use crate::{Rig, at, open};

const DAY: i64 = 24 * 60 * 60 * 1_000_000;
/// A dollar for a million tokens of input, ten for output: micro-dollars a token.
const PRICE: Dearest = Dearest { input: 1_000_000, output: 10_000_000 };

impl Rig {
    fn spender(&self, user: &str) -> Spender {
        Spender {
            org: self.org,
            project: ProjectId::from_u128(9),
            key: Some(KeyId::from_u128(8)),
            token: None,
            end_user: Some(user.to_owned()),
            session: SessionId::from_u128(7),
        }
    }

    async fn budget(
        &self,
        level: Level,
        subject: &str,
        period: Period,
        caps: Caps,
        now: Timestamp,
    ) -> BudgetRow {
        let row = BudgetRow {
            org: self.org,
            level,
            subject: subject.to_owned(),
            period,
            span: String::new(),
            caps,
            settled: Amount::default(),
            reserved: Amount::default(),
            source: "api".to_owned(),
            updated_at: now,
        };
        self.store.budget_set(row, self.told()).await.unwrap()
    }

    async fn org_budget(&self, caps: Caps) -> BudgetRow {
        self.budget(Level::Org, &self.org.to_string(), Period::Total, caps, at(1)).await
    }

    async fn state(&self, level: Level, subject: &str) -> BudgetRow {
        self.store.budget_get(self.org, level, subject).await.unwrap().remove(0)
    }

    async fn org_state(&self) -> BudgetRow {
        self.state(Level::Org, &self.org.to_string()).await
    }
}

fn want(rig: &Rig, number: u128, user: &str, input: u64, output: u64) -> Want {
    Want {
        id: ModelCallId::from_u128(number),
        spender: rig.spender(user),
        turn: None,
        release: None,
        provider: "anthropic".into(),
        model: "m".into(),
        input,
        output,
        least: 1,
        price: Some(PRICE),
        at: at(10),
        expires_at: at(1000),
    }
}

fn used(want: &Want, input: u64, output: u64) -> UsageRow {
    UsageRow {
        id: want.id,
        org: want.spender.org,
        project: want.spender.project,
        session: want.spender.session,
        turn: None,
        key: want.spender.key,
        token: None,
        end_user: want.spender.end_user.clone(),
        release: None,
        provider: want.provider.clone(),
        model: want.model.clone(),
        usage: Usage { input_tokens: input, output_tokens: output, ..Usage::default() },
        cost: PRICE.cost(input, output),
        priced: true,
        at: want.at,
    }
}

fn cost(micros: i64) -> Caps {
    Caps { cost_micros: Some(micros), ..Caps::default() }
}

async fn held(rig: &Rig, want: &Want) -> u64 {
    match rig.store.hold(want.clone()).await.unwrap() {
        Reserved::Held { output } => output,
        Reserved::Short(short) => panic!("{short:?}"),
    }
}

async fn short(rig: &Rig, want: &Want) -> Short {
    match rig.store.hold(want.clone()).await.unwrap() {
        Reserved::Held { output } => panic!("{output} held"),
        Reserved::Short(short) => *short,
    }
}

#[tokio::test]
async fn what_is_held_is_settled_to_what_was_used_once() {
    let rig = Rig::new().await;
    rig.org_budget(cost(2_000)).await;
    let call = want(&rig, 1, "u", 100, 50);
    assert_eq!(held(&rig, &call).await, 50);
    assert_eq!(rig.org_state().await.reserved, Amount::new(100, 50, Micros::new(600)));
    assert!(rig.store.hold_settle(used(&call, 80, 20)).await.unwrap());
    assert!(!rig.store.hold_settle(used(&call, 80, 20)).await.unwrap(), "the same call again");
    let state = rig.org_state().await;
    assert_eq!((state.settled, state.reserved), (Amount::new(80, 20, Micros::new(280)), Amount::default()));
    assert_eq!(rig.store.hold_count().await.unwrap(), 0);
    // Given back.
    let call = want(&rig, 2, "u", 100, 50);
    held(&rig, &call).await;
    rig.store.hold_release(call.id).await.unwrap();
    rig.store.hold_release(call.id).await.unwrap();
    assert_eq!(rig.org_state().await.reserved, Amount::default());
}

#[tokio::test]
async fn output_is_lowered_to_what_there_is_room_for() {
    let rig = Rig::new().await;
    rig.org_budget(cost(1_000)).await;
    // 100 of input cost 100; the other 900 pay for 90 of output.
    assert_eq!(held(&rig, &want(&rig, 1, "u", 100, 5_000)).await, 90);
    let refused = short(&rig, &want(&rig, 2, "u", 1, 1)).await;
    assert_eq!(
        (refused.level, refused.unit, refused.cap, refused.settled, refused.reserved, refused.short),
        (Level::Org, Unit::CostMicros, 1_000, 0, 1_000, 11)
    );
    let total = Caps { total_tokens: Some(150), ..Caps::default() };
    rig.budget(Level::EndUser, "v", Period::Total, total, at(1)).await;
    rig.org_budget(Caps { output_tokens: Some(1_000_000), ..Caps::default() }).await;
    assert_eq!(held(&rig, &want(&rig, 3, "v", 100, 5_000)).await, 50);
    assert_eq!(short(&rig, &want(&rig, 4, "v", 1, 1)).await.level, Level::EndUser);
    assert_eq!(held(&rig, &want(&rig, 5, "w", 1, 1)).await, 1, "another user has room");
}

#[tokio::test]
async fn a_budget_counts_what_was_before_it_and_a_day_begins_anew() {
    let rig = Rig::new().await;
    let call = want(&rig, 1, "u", 100, 10);
    held(&rig, &call).await;
    rig.store.hold_settle(used(&call, 100, 10)).await.unwrap();
    held(&rig, &want(&rig, 2, "u", 50, 5)).await;
    let row = rig.budget(Level::EndUser, "u", Period::Day, cost(1_000), at(20)).await;
    assert_eq!(
        (row.settled, row.reserved),
        (Amount::new(100, 10, Micros::new(200)), Amount::new(50, 5, Micros::new(100)))
    );
    assert_eq!(short(&rig, &want(&rig, 3, "u", 800, 1)).await.short, 110);
    let tomorrow = Want { at: at(10 + DAY), ..want(&rig, 4, "u", 800, 1) };
    held(&rig, &tomorrow).await;
    // What was held yesterday and is settled today changes nothing of today.
    rig.store.hold_settle(used(&want(&rig, 2, "u", 50, 5), 50, 5)).await.unwrap();
    let state = rig.state(Level::EndUser, "u").await;
    assert_eq!((state.settled, state.reserved), (Amount::default(), Amount::new(800, 1, Micros::new(810))));
}

#[tokio::test]
async fn an_expired_hold_is_settled_to_what_the_provider_had_said() {
    let rig = Rig::new().await;
    rig.org_budget(cost(10_000)).await;
    let (noted, silent) = (want(&rig, 1, "u", 100, 50), want(&rig, 2, "u", 100, 50));
    held(&rig, &noted).await;
    held(&rig, &silent).await;
    let usage = Usage { input_tokens: 90, output_tokens: 1, ..Usage::default() };
    rig.store.hold_note(noted.id, usage, Micros::new(100), true).await.unwrap();
    assert_eq!(rig.store.hold_sweep(at(999)).await.unwrap(), 0);
    rig.store.hold_renew(vec![silent.id], at(2000)).await.unwrap();
    assert_eq!(rig.store.hold_sweep(at(1000)).await.unwrap(), 1);
    assert_eq!(rig.store.hold_sweep(at(2000)).await.unwrap(), 1);
    let state = rig.org_state().await;
    assert_eq!((state.settled, state.reserved), (Amount::new(90, 1, Micros::new(100)), Amount::default()));
    assert!(!rig.store.hold_settle(used(&noted, 90, 40)).await.unwrap(), "never charged twice");
}

#[tokio::test]
async fn what_has_no_price_is_never_free_by_accident() {
    let rig = Rig::new().await;
    rig.org_budget(cost(10_000)).await;
    let unpriced = Want { price: None, ..want(&rig, 1, "u", 1, 1) };
    assert!(short(&rig, &unpriced).await.unpriced);
    rig.org_budget(Caps { total_tokens: Some(100), ..Caps::default() }).await;
    held(&rig, &unpriced).await;
}

/// The bar: a thousand calls at once of several end users against shared caps.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_at_once_never_pass_a_cap_and_none_is_refused_while_there_is_room() {
    const CALLS: u64 = 1_000;
    const EACH: i64 = 150;
    let rig = Arc::new(Rig::new().await);
    rig.org_budget(cost(400 * EACH)).await;
    for user in 0..5 {
        rig.budget(Level::EndUser, &format!("u{user}"), Period::Total, cost(100 * EACH), at(1)).await;
    }
    let over = Arc::new(AtomicBool::new(false));
    let mut watchers = tokio::task::JoinSet::new();
    watchers.spawn({
        let (rig, over) = (rig.clone(), over.clone());
        async move {
            let mut looks = 0;
            while !over.load(Ordering::Relaxed) {
                for row in rig.store.budget_list(rig.org).await.unwrap() {
                    let sum = row.settled.cost_micros.get() + row.reserved.cost_micros.get();
                    assert!(sum <= row.caps.cost_micros.unwrap(), "{row:?}");
                }
                looks += 1;
            }
            looks
        }
    });
    // Two servers on one database.
    let other = open(rig.folder.path(), Keyring::in_memory(&Seeded::new(7))).await;
    let granted = Arc::new(AtomicU64::new(0));
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..CALLS {
        let (rig, granted) = (rig.clone(), granted.clone());
        let store = if number % 2 == 0 { rig.store.clone() } else { other.clone() };
        calls.spawn(async move {
            // 100 of input and 5 of output: 150 micro-dollars.
            let user = format!("u{}", number % 5);
            let call = Want { least: 5, ..want(&rig, u128::from(number) + 1, &user, 100, 5) };
            match store.hold(call.clone()).await.unwrap() {
                Reserved::Held { output } => {
                    assert_eq!(output, 5);
                    tokio::task::yield_now().await;
                    // One in ten is cut off before it cost anything.
                    if number % 10 == 0 {
                        store.hold_release(call.id).await.unwrap();
                    } else {
                        assert!(store.hold_settle(used(&call, 100, 5)).await.unwrap());
                        granted.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Reserved::Short(short) => {
                    let left = short.cap - short.settled - short.reserved;
                    assert!(left < EACH, "refused while there was room: {short:?}");
                }
            }
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    over.store(true, Ordering::Relaxed);
    assert!(watchers.join_next().await.unwrap().unwrap() > 0);
    let state = rig.org_state().await;
    let granted = granted.load(Ordering::Relaxed);
    assert_eq!(state.settled.cost_micros.get(), i64::try_from(granted).unwrap() * EACH);
    assert_eq!((state.reserved, rig.store.hold_count().await.unwrap()), (Amount::default(), 0));
    // What was given back can be spent after all: to the last micro-dollar, and then no more.
    let mut number = 10_000;
    while state_left(&rig).await >= EACH {
        number += 1;
        let user = format!("u{}", number % 5);
        let call = Want { least: 5, ..want(&rig, number, &user, 100, 5) };
        if let Reserved::Held { .. } = rig.store.hold(call.clone()).await.unwrap() {
            rig.store.hold_settle(used(&call, 100, 5)).await.unwrap();
        }
    }
    assert_eq!(rig.org_state().await.settled.cost_micros.get(), 400 * EACH);
    let spender = rig.spender("u1");
    assert_eq!(rig.store.budget_short(&spender, at(10)).await.unwrap().unwrap().level, Level::Org);
}

async fn state_left(rig: &Rig) -> i64 {
    rig.org_state().await.left(Unit::CostMicros).unwrap()
}
