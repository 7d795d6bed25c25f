//! Sandboxes that lie.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use karta_sandbox::state::{Entry, Kind, Record, Records};

use super::support::*;
use crate::data::checkpoints::{CheckpointError, Limits, Pace};

fn file(path: &str, size: u64) -> Record {
    Record::Entry(Entry {
        path: path.into(),
        kind: Kind::File { size },
        mode: 0o644,
        stamp: 1,
        modified: PAST,
    })
}

fn data(length: usize) -> Record {
    Record::Data(Bytes::from(vec![7; length]))
}

fn says(records: Vec<Record>) -> Lie {
    Arc::new(move |_: Vec<PathBuf>| -> Records {
        Box::pin(stream::iter(records.clone().into_iter().map(Ok)))
    })
}

#[tokio::test]
async fn what_a_sandbox_may_not_say_ends_the_checkpoint_and_leaves_the_last() {
    let lies: Vec<(&str, Vec<Record>)> = vec![
        ("content before any file", vec![data(1)]),
        ("a file that was not asked for", vec![file("home/b", 1), data(1)]),
        ("a path that climbs", vec![file("home/../../etc/passwd", 1), data(1)]),
        ("a path outside", vec![file("/etc/passwd", 1), data(1)]),
        ("a file twice", vec![file("home/a", 1), data(1), file("home/a", 1), data(1)]),
        ("more than it said", vec![file("home/a", 1), data(2)]),
        ("no bytes", vec![file("home/a", 1), Record::Data(Bytes::new())]),
        ("too much at once", vec![file("home/a", 1 << 20), data((64 << 10) + 1)]),
        (
            "permissions that are none",
            vec![Record::Entry(Entry {
                path: "home/a".into(),
                kind: Kind::File { size: 1 },
                mode: 0o6755,
                stamp: 0,
                modified: 0,
            })],
        ),
    ];
    let world = World::new().await;
    let owner = world.session(world.org(1).await, 5).await;
    let checkpoints = world.checkpoints();
    let machine = Machine::new(1);
    machine.file("home/a", b"first");
    save(&checkpoints, owner, &machine).await;
    let kept = machine.state();
    machine.file("home/a", b"other");
    for (what, records) in lies {
        *machine.lie.lock().unwrap() = Some(says(records));
        let refused = checkpoints.save(owner, turn(2), Pace::Turn, &machine).await.expect_err(what);
        assert!(matches!(refused, CheckpointError::Unfit(_)), "{what}: {refused}");
        assert_eq!(load(&world.checkpoints(), owner).await.1.state(), kept, "{what}");
    }
    *machine.lie.lock().unwrap() = None;
    assert!(save(&checkpoints, owner, &machine).await.changed, "the truth is kept all the same");
}

#[tokio::test]
async fn an_endless_stream_ends_at_the_quota() {
    let world = World::new().await;
    let owner = world.session(world.org(1).await, 5).await;
    let checkpoints = world.with(Limits { bytes: 1 << 20, ..LIMITS });
    let machine = Machine::new(1);
    machine.file("home/a", b"a");
    let endless: Lie = Arc::new(|_| {
        let begin = stream::iter([Ok(file("home/a", u64::MAX))]);
        Box::pin(begin.chain(stream::repeat_with(|| Ok(data(64 << 10)))))
    });
    *machine.lie.lock().unwrap() = Some(endless);
    let refused = checkpoints.save(owner, turn(1), Pace::Turn, &machine).await.unwrap_err();
    assert!(matches!(refused, CheckpointError::Refused { what: "bytes", most: 1_048_576, .. }), "{refused}");
}

#[tokio::test]
async fn growth_beyond_the_quota_is_refused_and_the_last_checkpoint_stays() {
    let world = World::new().await;
    let owner = world.session(world.org(1).await, 5).await;
    let checkpoints = world.with(Limits { bytes: 1000, files: 4, ..LIMITS });
    let machine = Machine::new(1);
    machine.file("home/a", &[1; 900]);
    save(&checkpoints, owner, &machine).await;
    let kept = machine.state();
    machine.file("home/b", &[1; 101]);
    let refused = checkpoints.save(owner, turn(2), Pace::Turn, &machine).await.unwrap_err();
    assert!(
        matches!(refused, CheckpointError::Refused { what: "bytes", have: 1001, most: 1000 }),
        "{refused}"
    );
    machine.remove("home/b");
    for number in 0..4 {
        machine.file(&format!("home/c{number}"), b"");
    }
    let refused = checkpoints.save(owner, turn(2), Pace::Turn, &machine).await.unwrap_err();
    assert!(matches!(refused, CheckpointError::Refused { what: "files", have: 5, most: 4 }), "{refused}");
    assert_eq!(load(&world.checkpoints(), owner).await.1.state(), kept);
    machine.remove("home/c0");
    assert!(save(&checkpoints, owner, &machine).await.changed, "once it is small enough it is kept");
}

#[tokio::test]
async fn files_that_change_while_they_are_read_are_read_again() {
    let world = World::new().await;
    let owner = world.session(world.org(1).await, 5).await;
    let checkpoints = world.checkpoints();
    let machine = Machine::new(1);
    for name in ["home/shorter", "home/gone", "home/became", "home/same"] {
        machine.file(name, &[7; 100]);
    }
    let link = Entry {
        path: "home/became".into(),
        kind: Kind::Link { target: "x".into() },
        mode: 0o777,
        stamp: 9,
        modified: 0,
    };
    let lie = says(vec![
        Record::Entry(link),
        file("home/same", 100),
        data(100),
        file("home/shorter", 100),
        data(40),
    ]);
    *machine.lie.lock().unwrap() = Some(lie);
    save(&checkpoints, owner, &machine).await;
    let there = load(&world.checkpoints(), owner).await.1.state();
    let sizes: Vec<_> =
        there.iter().map(|(path, (_, bytes))| (path.to_str().unwrap(), bytes.len())).collect();
    assert_eq!(sizes, [("home/same", 100), ("home/shorter", 40)]);
    *machine.lie.lock().unwrap() = None;
    save(&checkpoints, owner, &machine).await;
    assert_eq!(load(&world.checkpoints(), owner).await.1.state(), machine.state());
}

#[tokio::test]
async fn a_sandbox_that_stalls_is_given_up() {
    let world = World::new().await;
    let owner = world.session(world.org(1).await, 5).await;
    let checkpoints = world.with(Limits { seconds: 1, ..LIMITS });
    let machine = Machine::new(1);
    machine.file("home/a", b"a");
    *machine.lie.lock().unwrap() = Some(Arc::new(|_| Box::pin(stream::pending())));
    let late = checkpoints.save(owner, turn(1), Pace::Turn, &machine).await.unwrap_err();
    assert!(matches!(late, CheckpointError::Late(_)), "{late}");
}
