//! The load: each row is bounded in time, and the number of its clients.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Args;
use crate::client::{Client, now};
use crate::memory::{cpu, resident};
use crate::report::{Row, percentile, print, say};
use crate::serve::{Place, start};

/// Sessions and streams that memory is counted over.
const IDLE: usize = 2000;
const ALIVE: usize = 500;
const STREAMS: usize = 500;
/// Errors that are shown.
const SHOWN: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Health,
    Create,
    Unary,
    Stream,
}

impl Work {
    const fn name(self) -> &'static str {
        match self {
            Self::Health => "GET /healthz",
            Self::Create => "create session",
            Self::Unary => "unary turn",
            Self::Stream => "100-event turn, SSE",
        }
    }
}

struct Target {
    place: Place,
    create: &'static str,
    pid: Option<u32>,
}

/// What one client measured.
#[derive(Default)]
struct Measured {
    times: Vec<Duration>,
    first: Vec<Duration>,
    events: usize,
    errors: Vec<String>,
}

pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    let create: &'static str = Box::leak(format!("{{\"project\":\"{}\"}}", args.project).into_boxed_str());
    let folder = tempfile::tempdir()?;
    let (_base_child, base) = start(&[OsStr::new("--serve-baseline")]).await?;
    let base = Target { place: base, create, pid: None };
    let (child, target) = if let (Some(url), Some(key)) = (&args.url, &args.key) {
        let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        (None, Target { place: Place { address, key: key.clone() }, create, pid: None })
    } else {
        let (child, place) = start(&[OsStr::new("--serve"), folder.path().as_os_str()]).await?;
        let pid = child.id();
        (Some(child), Target { place, create, pid })
    };
    let (base, target) = (Arc::new(base), Arc::new(target));
    let at_start = target.pid.map(resident);
    let length = Duration::from_secs(args.seconds);
    let mut rows = Vec::new();
    for &clients in &args.clients {
        let mut baseline = measure(&base, Work::Health, clients, length).await?;
        "bare axum".clone_into(&mut baseline.what);
        baseline.of_baseline = 1.0;
        let per_second = baseline.per_second;
        rows.push(baseline);
        for work in [Work::Health, Work::Create, Work::Unary, Work::Stream] {
            let mut row = measure(&target, work, clients, length).await?;
            row.of_baseline = row.per_second / per_second;
            rows.push(row);
        }
    }
    print(&rows, args.json)?;
    if let (Some(pid), Some(at_start)) = (target.pid, at_start) {
        say(&format!("\nresident at start: {} KiB; after the load: {} KiB", at_start, resident(pid)));
    }
    drop(child);
    if args.url.is_none() {
        memory(create).await?;
        crate::control::run().await?;
        crate::releases::run().await?;
    }
    Ok(())
}

async fn measure(target: &Arc<Target>, work: Work, clients: usize, length: Duration) -> anyhow::Result<Row> {
    let cpu_before = target.pid.map_or(0.0, cpu);
    let began = now();
    let until = began + length;
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let target = target.clone();
        tasks.spawn(async move { one(&target, work, until).await });
    }
    let mut all = Measured::default();
    while let Some(done) = tasks.join_next().await {
        let mut measured = done?;
        all.times.append(&mut measured.times);
        all.first.append(&mut measured.first);
        all.errors.append(&mut measured.errors);
        all.events += measured.events;
    }
    let seconds = began.elapsed().as_secs_f64();
    for error in all.errors.iter().take(SHOWN) {
        say(&format!("error: {error}"));
    }
    all.times.sort_unstable();
    all.first.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
    let row = Row {
        what: work.name().to_owned(),
        clients,
        per_second: all.times.len() as f64 / seconds,
        of_baseline: 0.0,
        events: all.events as f64 / seconds,
        p50_ms: percentile(&all.times, 0.5),
        p95_ms: percentile(&all.times, 0.95),
        p99_ms: percentile(&all.times, 0.99),
        first_p50_ms: percentile(&all.first, 0.5),
        errors: all.errors.len(),
        server_cpu: (target.pid.map_or(0.0, cpu) - cpu_before) / seconds,
    };
    Ok(row)
}

async fn one(target: &Target, work: Work, until: Instant) -> Measured {
    let mut measured = Measured::default();
    if let Err(error) = repeat(target, work, until, &mut measured).await {
        measured.errors.push(format!("{error:#}"));
    }
    measured
}

async fn repeat(target: &Target, work: Work, until: Instant, measured: &mut Measured) -> anyhow::Result<()> {
    let mut client = Client::connect(&target.place.address, &target.place.key).await?;
    let path = match work {
        Work::Health => "/healthz".to_owned(),
        Work::Create => "/v1/sessions".to_owned(),
        Work::Unary | Work::Stream => {
            let session = create(&mut client, target.create).await?;
            format!("/v1/sessions/{session}/messages")
        }
    };
    let (method, body) = match work {
        Work::Health => ("GET", ""),
        Work::Create => ("POST", target.create),
        Work::Unary => ("POST", r#"{"text":"hello"}"#),
        Work::Stream => ("POST", r#"{"text":"stream","stream":true}"#),
    };
    while now() < until {
        let began = now();
        let brought = client.send(method, &path, body).await?;
        measured.times.push(began.elapsed());
        if work == Work::Stream {
            measured.first.extend(brought.first.map(|first| first - began));
            measured.events += count(&brought.body, b"\n\n");
            anyhow::ensure!(count(&brought.body, b"event: done\n") == 1, "a stream without its one `done`");
        }
    }
    Ok(())
}

async fn create(client: &mut Client, body: &'static str) -> anyhow::Result<String> {
    let brought = client.send("POST", "/v1/sessions", body).await?;
    let session: serde_json::Value = serde_json::from_slice(&brought.body)?;
    Ok(session["id"].as_str().context("a session without an id")?.to_owned())
}

fn count(bytes: &[u8], wanted: &[u8]) -> usize {
    bytes.windows(wanted.len()).filter(|part| *part == wanted).count()
}

/// What sessions and streams cost in memory, on a fresh server.
async fn memory(create_body: &'static str) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (child, place) = start(&[OsStr::new("--serve"), folder.path().as_os_str()]).await?;
    let pid = child.id().context("the server's process")?;
    let mut client = Client::connect(&place.address, &place.key).await?;
    let start = resident(pid);
    let mut sessions = Vec::new();
    for _ in 0..IDLE {
        sessions.push(create(&mut client, create_body).await?);
    }
    let idle = resident(pid);
    for session in sessions.iter().take(ALIVE) {
        client.send("POST", &format!("/v1/sessions/{session}/messages"), r#"{"text":"hello"}"#).await?;
    }
    let alive = resident(pid);
    let mut streams = Vec::new();
    for session in sessions.iter().rev().take(STREAMS) {
        let client = Client::connect(&place.address, &place.key).await?;
        streams.push(client.open(&format!("/v1/sessions/{session}/events")).await?);
    }
    let streaming = resident(pid);
    let each = |from: u64, to: u64, count: usize| to.saturating_sub(from) * 1024 / count as u64;
    say(&format!("resident memory of a fresh server: {start} KiB"));
    say(&format!("per idle session ({IDLE} that never ran): {} bytes", each(start, idle, IDLE)));
    say(&format!(
        "per live session ({ALIVE} after a turn, process kept): {} bytes",
        each(idle, alive, ALIVE)
    ));
    say(&format!("per open stream ({STREAMS} followers): {} bytes", each(alive, streaming, STREAMS)));
    drop(streams);
    Ok(())
}
