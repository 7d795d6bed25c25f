//! A sandbox that is kept apart by the kernel, with what real programs leave in it.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use karta_sandbox::limits::Machines;
use karta_sandbox::state::{Entry, Kind, Record};
use karta_sandbox::{Command, Driver as _, Sandbox, Spec, namespace};
use karta_types::rng::Seeded;
use karta_types::time::System;
use tokio::io::AsyncReadExt as _;

use super::support::*;
use crate::data::checkpoints::Pace;

async fn sh(sandbox: &dyn Sandbox, text: &str) -> String {
    let command = Command {
        program: "/bin/sh".to_owned(),
        args: vec!["-ec".to_owned(), format!("exec 2>&1\n{text}")],
        env: vec![
            ("PATH".to_owned(), "/usr/bin:/bin".to_owned()),
            ("HOME".to_owned(), "/home/agent".to_owned()),
        ],
        cwd: sandbox.place().workspace.clone(),
    };
    let mut process = sandbox.spawn(&command).await.unwrap();
    let mut said = String::new();
    process.stdout.read_to_string(&mut said).await.unwrap();
    let exit = process.control.wait().await;
    assert_eq!(exit.status, Some(0), "{said}");
    said
}

/// Everything that was made, without what is each machine's own.
async fn made(sandbox: &dyn Sandbox) -> BTreeMap<PathBuf, (Entry, Vec<u8>)> {
    let survey = sandbox.survey().await.unwrap();
    let files = survey.iter().filter(|entry| matches!(entry.kind, Kind::File { .. }));
    let paths = files.map(|entry| entry.path.clone()).collect();
    let mut content: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    let mut last = PathBuf::new();
    for record in sandbox.take(paths).await.unwrap().try_collect::<Vec<_>>().await.unwrap() {
        match record {
            Record::Entry(entry) => last = entry.path,
            Record::Data(bytes) => content.entry(last.clone()).or_default().extend_from_slice(&bytes),
        }
    }
    let all = survey.into_iter().map(|entry| {
        let bytes = content.remove(&entry.path).unwrap_or_default();
        (entry.path.clone(), (Entry { stamp: 0, ..entry }, bytes))
    });
    all.collect()
}

#[tokio::test]
async fn what_programs_made_in_a_machine_is_in_the_next() {
    let world = World::new().await;
    let owner = world.session(world.org(1).await, 5).await;
    let release = world.folder.path().join("release");
    std::fs::create_dir_all(release.join("src")).unwrap();
    for name in ["README", "src/a", "src/b"] {
        std::fs::write(release.join(name), name).unwrap();
    }
    let machines = Machines { disk_bytes: 256 << 20, ..Machines::new(world.folder.path().join("machines")) };
    let (clock, rng) = (Arc::new(System), Arc::new(Seeded::new(4)));
    let driver = namespace::Driver::new(machines, HashMap::new(), clock, rng).unwrap();
    driver.check().await.unwrap();
    let spec = Spec::new(owner.session, release, "digest".to_owned());
    let checkpoints = world.checkpoints();

    let first = driver.acquire(&spec).await.unwrap();
    assert!(first.fresh());
    let script = "mkdir -p $HOME/.claude/projects/x; seq 1 50000 > $HOME/.claude/projects/x/a.jsonl; chmod 600 $HOME/.claude/projects/x/a.jsonl
        ln -s /etc/passwd $HOME/link; ln -s nowhere 'odd name
'; mkfifo $HOME/pipe; : > $HOME/empty; mkdir -m 700 $HOME/bare
        echo changed > README; rm src/a; rm -r src; mkdir src; echo new > src/c; head -c 5000000 /dev/urandom > big; ln big hard
        touch -d @1000000000.123456789 src/c";
    sh(&*first, script).await;
    let before = made(&*first).await;
    let saved = checkpoints.save(owner, turn(1), Pace::Turn, &*first).await.unwrap();
    assert!(saved.changed && saved.taken > 10_000_000, "{saved:?}");
    first.close().await.unwrap();
    drop(first);

    let next = driver.acquire(&spec).await.unwrap();
    assert!(next.fresh());
    let loaded = checkpoints.load(owner, 0, &*next).await.unwrap().unwrap();
    assert_eq!(loaded.files, before.len() as u64);
    let after = made(&*next).await;
    let paths = before.keys().chain(after.keys());
    let differ: Vec<_> = paths.filter(|path| before.get(*path) != after.get(*path)).collect();
    assert!(differ.is_empty(), "{differ:?}");
    let seen = sh(&*next, "cat README src/c; ls src; readlink $HOME/link; tail -n 1 $HOME/.claude/projects/x/a.jsonl; wc -c < big; ls -A $HOME").await;
    assert_eq!(seen, "changed\nnew\nc\n/etc/passwd\n50000\n5000000\n.claude\nbare\nempty\nlink\n");

    // Only what changes from here on is put.
    let same = checkpoints.save(owner, turn(2), Pace::Rest, &*next).await.unwrap();
    assert!(!same.changed && same.stored == 0, "{same:?}");
    sh(&*next, "echo 50001 >> $HOME/.claude/projects/x/a.jsonl").await;
    let more = checkpoints.save(owner, turn(2), Pace::Turn, &*next).await.unwrap();
    assert!(more.changed && more.stored < 200_000, "{more:?}");
    let found =
        checkpoints.find(owner.org, owner.session, ".claude/projects/*/a.jsonl", 1 << 20).await.unwrap();
    assert!(found[0].1.ends_with(b"50000\n50001\n"));
    next.close().await.unwrap();
    world.check_packs(owner).await;
}
