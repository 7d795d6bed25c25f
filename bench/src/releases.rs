//! What publishing and flipping cost, beside what the disk asks for the same files.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use karta_engine::data::releases::{Publish, Published};
use karta_engine::{Builder, Engine, Principal, Settings};
use karta_release::archive;
use karta_release::folder::{self, Choice};

use crate::client::now;
use crate::report::{percentile, say};

/// Files of the folder, and bytes of each.
const FILES: usize = 1000;
const SIZE: usize = 4 << 10;
/// How often each is done; the middle one counts.
const TIMES: usize = 5;
/// Flips, there and back.
const FLIPS: usize = 500;

pub(crate) async fn run() -> anyhow::Result<()> {
    let place = tempfile::tempdir()?;
    let settings = Settings { data: place.path().join("data"), ..Settings::default() };
    let engine = Builder::new(settings).open().await.map_err(|error| anyhow::anyhow!(error.chain()))?;
    let who = Principal::system(engine.ensure_org("bench").await?);
    let mut rows: [Vec<Duration>; 4] = Default::default();
    for time in 0..TIMES {
        let at = place.path().join(format!("folder{time}"));
        write(&at, time)?;
        let began = now();
        copy(&at, &place.path().join(format!("copy{time}")))?;
        rows[0].push(began.elapsed());
        let project = format!("project{time}");
        for (row, expected) in [(1, true), (2, false), (3, true)] {
            if row == 3 {
                std::fs::write(at.join("dir1/file1.md"), format!("changed {time}"))?;
            }
            let began = now();
            let published = deploy(&engine, &who, &project, &at).await?;
            rows[row].push(began.elapsed());
            anyhow::ensure!(published.fresh == expected, "row {row} published what it should");
        }
    }
    let middle = |row: &mut Vec<Duration>| {
        row.sort_unstable();
        percentile(row, 0.5)
    };
    let [disk, cold, unchanged, one] = rows.each_mut().map(middle);
    say(&format!("\n{FILES} files of {SIZE} bytes, the middle of {TIMES}:"));
    say(&format!("copying them and flushing each to the disk: {disk:.0} ms (the baseline)"));
    for (what, took) in [("cold", cold), ("one file changed", one), ("unchanged", unchanged)] {
        say(&format!(
            "reading, packing and publishing them, {what}: {took:.0} ms, {:.2} of the baseline",
            took / disk
        ));
    }
    let (mut flips, mut back) = (Vec::new(), Vec::new());
    engine.activate(&who, "project0", 1, None).await?;
    for _ in 0..FLIPS {
        for version in [2, 1, 2] {
            let began = now();
            engine.activate(&who, "project0", version, None).await?;
            flips.push(began.elapsed());
        }
        let began = now();
        engine.roll_back(&who, "project0", None, None).await?;
        back.push(began.elapsed());
    }
    for (what, times) in [("activation", &mut flips), ("rollback", &mut back)] {
        times.sort_unstable();
        say(&format!(
            "{what}: p50 {:.2} ms, p99 {:.2} ms ({} times)",
            percentile(times, 0.5),
            percentile(times, 0.99),
            times.len()
        ));
    }
    engine.shutdown().await;
    Ok(())
}

/// Everything that `karta deploy` does, without the way between client and server.
async fn deploy(engine: &Engine, who: &Principal, project: &str, at: &Path) -> anyhow::Result<Published> {
    let picked = folder::pick(at, &Choice::default())?;
    let hashes = picked.files.hashes().iter().map(ToString::to_string).collect();
    // A project that is not there has none of it.
    let missing = engine.missing_contents(who, project, hashes).await.ok();
    let only: Option<BTreeSet<_>> =
        missing.map(|hashes| hashes.iter().filter_map(|hash| hash.parse().ok()).collect());
    let mut archived = Vec::new();
    archive::pack(&picked.root, &picked.files, only.as_ref(), &mut archived)?;
    let how = Publish { activate: true, ..Publish::default() };
    Ok(engine.publish(who, project, Box::new(std::io::Cursor::new(archived)), how, None).await?)
}

fn write(at: &Path, seed: usize) -> anyhow::Result<()> {
    std::fs::create_dir_all(at)?;
    std::fs::write(at.join("karta.script.json"), r#"{"turns":[{"steps":[{"say":"Hello"}]}]}"#)?;
    for file in 0..FILES - 1 {
        let path = at.join(format!("dir{}/file{file}.md", file % 20));
        std::fs::create_dir_all(path.parent().unwrap_or(at))?;
        let line = format!("{seed} {file} some words of an instruction that an agent reads\n");
        std::fs::write(path, line.repeat(SIZE / line.len()))?;
    }
    Ok(())
}

/// The least that keeping the same files can cost.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let picked = folder::pick(from, &Choice::default())?;
    for (path, _) in picked.files.iter() {
        let target = to.join(path);
        std::fs::create_dir_all(target.parent().unwrap_or(to))?;
        let mut file = std::fs::File::create(target)?;
        file.write_all(&std::fs::read(from.join(path))?)?;
        file.sync_all()?;
    }
    Ok(())
}
