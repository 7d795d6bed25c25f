//! The control plane's own figures: a key's check, and setting aside and settling.

use std::sync::Arc;
use std::time::Duration;

use karta_engine::control::keys::Environment;
use karta_engine::gate::{Gate, Hold};
use karta_engine::{Builder, Principal, Settings};
use karta_store::{Dearest, Spender, UsageRow, Want};
use karta_types::budget::{Caps, Level, Period};
use karta_types::{ModelCallId, ProjectId, SessionId, Usage};
use tokio::task::JoinSet;

use crate::client::now;
use crate::report::{percentile, say};

const CHECKS: usize = 100_000;
const CALLS: u64 = 20_000;
const SPENDERS: u64 = 64;

pub(crate) async fn run() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let settings = Settings { data: folder.path().join("data"), ..Settings::default() };
    let engine = Builder::new(settings).open().await.map_err(|error| anyhow::anyhow!(error.chain()))?;
    let org = engine.ensure_org("bench").await?;
    let key = engine.bootstrap_key(org, Environment::Test, "bench").await?;
    let mut times = Vec::with_capacity(CHECKS);
    for _ in 0..CHECKS {
        let began = now();
        let who = engine.gate().authenticate(key.expose()).await?;
        times.push(began.elapsed());
        anyhow::ensure!(who.org == org, "the key is of another organisation");
    }
    times.sort_unstable();
    let micros = |part: f64| percentile(&times, part) * 1000.0;
    say(&format!(
        "\nchecking a known key: p50 {:.1} us, p99 {:.1} us ({CHECKS} times)",
        micros(0.5),
        micros(0.99)
    ));

    let caps = Caps { cost_micros: Some(i64::MAX / 4), ..Caps::default() };
    let who = Principal::system(org);
    engine.set_budget(&who, Level::Org, &org.to_string(), Period::Total, caps).await?;
    engine.set_budget(&who, Level::EndUser, "user0", Period::Day, caps).await?;
    let began = now();
    let mut tasks = JoinSet::new();
    for spender in 0..SPENDERS {
        let gate = engine.gate().clone();
        tasks.spawn(async move { spend(&*gate, org, spender).await });
    }
    let mut times: Vec<Duration> = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.append(&mut done??);
    }
    let seconds = began.elapsed().as_secs_f64();
    times.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "a count of calls")]
    let each = times.len() as f64 / seconds;
    say(&format!(
        "reserve and settle of a call, {SPENDERS} at once on shared caps: {each:.0} a second, p50 {:.2} ms, p99 {:.2} ms",
        percentile(&times, 0.5),
        percentile(&times, 0.99)
    ));
    engine.shutdown().await;
    Ok(())
}

async fn spend(gate: &dyn Gate, org: karta_types::OrgId, number: u64) -> anyhow::Result<Vec<Duration>> {
    let spender = Spender {
        org,
        project: ProjectId::from_u128(1),
        key: None,
        token: None,
        end_user: Some(format!("user{}", number % 8)),
        session: SessionId::from_u128(u128::from(number)),
    };
    let clock: Arc<dyn karta_types::Clock> = Arc::new(karta_types::time::System);
    let mut times = Vec::new();
    for call in 0..CALLS / SPENDERS {
        let id = ModelCallId::from_u128(u128::from(number) << 64 | u128::from(call));
        let at = clock.now();
        let want = Want {
            id,
            spender: spender.clone(),
            turn: None,
            release: None,
            provider: "anthropic".to_owned(),
            model: "m".to_owned(),
            input: 1_000,
            output: 1_000,
            least: 1,
            price: Some(Dearest { input: 3_000_000, output: 15_000_000 }),
            at,
            expires_at: at.plus(Duration::from_mins(10)),
        };
        let usage = Usage { input_tokens: 900, output_tokens: 100, ..Usage::default() };
        let began = now();
        let (hold, _) = gate.reserve(want).await.map_err(|(problem, _)| anyhow::anyhow!(problem.detail))?;
        let used = UsageRow {
            id,
            org,
            project: spender.project,
            session: spender.session,
            turn: None,
            key: None,
            token: None,
            end_user: spender.end_user.clone(),
            release: None,
            provider: "anthropic".to_owned(),
            model: "m".to_owned(),
            usage,
            cost: karta_types::Micros::new(4_200),
            priced: true,
            at,
        };
        let hold: Hold = hold;
        gate.settle(hold, used).await?;
        times.push(began.elapsed());
    }
    Ok(times)
}
