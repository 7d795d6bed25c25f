//! What virtual machines cost: beginning, memory, and a first program.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use karta_sandbox::image::Images;
use karta_sandbox::limits::Machines;
use karta_sandbox::{Command, Driver as _, ParkKey, Sandbox, Spec, microvm};
use karta_types::SessionId;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

/// How often each is measured.
const ROUNDS: usize = 20;

pub(crate) async fn run(data: &std::path::Path, memory: u64, at_once: usize) -> anyhow::Result<()> {
    let image = Images::new(data.join("images")).current()?;
    let folder = tempfile::tempdir()?;
    let limits = Machines {
        image: Some(image.folder),
        memory_bytes: memory << 20,
        disk_bytes: 1 << 30,
        warm: 0,
        ..Machines::new(folder.path().join("machines"))
    };
    let release = folder.path().join("release");
    std::fs::create_dir(&release)?;
    std::fs::write(release.join("CLAUDE.md"), "be brief\n")?;
    let make = |limits: Machines| {
        microvm::Driver::new(limits, Arc::new(karta_types::time::System), Arc::new(karta_types::rng::System))
    };
    let driver = make(limits.clone());
    let figures = driver.figures(None, ROUNDS).await?;
    println!("accelerator {}, guest of {memory} MiB, milliseconds", figures.accelerator);
    row("boot to snapshot", &mut [figures.boot]);
    let bare = row("bare restore to answer", &mut figures.bare.clone());
    let ours = row("restore to answer", &mut figures.restore.clone());
    println!("restore is {:.2} times the bare one", f64::from(ours) / f64::from(bare));
    println!(
        "memory of a waiting machine: {} KiB its own, {} KiB shared",
        figures.own >> 10,
        figures.shared >> 10
    );

    let spec = |number| Spec::new(SessionId::from_u128(number), release.clone(), "one".to_owned());
    measure("acquire", &driver, &spec).await?;
    let warm = make(Machines { warm: 1, ..limits.clone() });
    measure("acquire, one waiting", &warm, &spec).await?;
    drop(warm);

    let began = Instant::now();
    let all = (0..at_once).map(|number| {
        let (driver, spec) = (&driver, spec(number as u128));
        async move {
            let began = Instant::now();
            let sandbox = driver.acquire(&spec).await?;
            anyhow::Ok((micros(began), sandbox))
        }
    });
    let done = futures_util::future::join_all(all).await;
    let whole = began.elapsed();
    let well = done.iter().filter(|one| one.is_ok()).count();
    row(
        &format!("acquire, {at_once} at once"),
        &mut done.iter().flatten().map(|(took, _)| *took).collect::<Vec<_>>(),
    );
    println!("{well} of {at_once} well, all in {} ms", whole.as_millis());
    drop(done);

    let sandbox = driver.acquire(&spec(1)).await?;
    let parked = folder.path().join("parked");
    let mut parking = Vec::new();
    let mut reviving = Vec::new();
    let mut held: Box<dyn Sandbox> = sandbox;
    for _ in 0..5 {
        let key = ParkKey::random(&karta_types::rng::System);
        let began = Instant::now();
        held.park(&parked, &key).await?;
        parking.push(micros(began));
        let began = Instant::now();
        held = driver.revive(&spec(1), &parked, &key).await?.sandbox;
        reviving.push(micros(began));
    }
    row("park", &mut parking);
    row("revive", &mut reviving);
    held.close().await?;
    Ok(())
}

async fn measure(
    name: &str,
    driver: &microvm::Driver,
    spec: &(dyn Fn(u128) -> Spec + Sync),
) -> anyhow::Result<()> {
    let (mut acquire, mut first, mut close) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..ROUNDS {
        let began = Instant::now();
        let sandbox = driver.acquire(&spec(number as u128)).await?;
        acquire.push(micros(began));
        let began = Instant::now();
        let command = Command {
            program: "/bin/true".to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: PathBuf::from("/workspace"),
        };
        let mut process = sandbox.spawn(&command).await?;
        process.stdout.read_to_end(&mut Vec::new()).await?;
        process.control.wait().await;
        first.push(micros(began));
        let began = Instant::now();
        sandbox.close().await?;
        close.push(micros(began));
    }
    row(name, &mut acquire);
    row("  first program", &mut first);
    row("  close", &mut close);
    Ok(())
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Prints the middle and the ends; answers the middle in microseconds.
fn row(name: &str, all: &mut [u64]) -> u32 {
    all.sort_unstable();
    let at =
        |hundredth: usize| all.get((all.len() * hundredth / 100).min(all.len().saturating_sub(1))).copied();
    let shown = |hundredth| Duration::from_micros(at(hundredth).unwrap_or_default()).as_secs_f64() * 1000.0;
    println!(
        "{name:<28} p50 {:8.1}  p95 {:8.1}  p99 {:8.1}  of {}",
        shown(50),
        shown(95),
        shown(99),
        all.len()
    );
    at(50).and_then(|middle| u32::try_from(middle).ok()).unwrap_or(1).max(1)
}
