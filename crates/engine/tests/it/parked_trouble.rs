//! Parked turns that meet trouble: one that passes is waited for, one that does not ends them.

#![expect(clippy::panic, reason = "a test that can't go on fails")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use karta_types::Body;
use karta_types::session::TurnState;

use crate::fake_opencode::Server;
use crate::parked::Rig;
use crate::parked_http::rig_of;

/// How long anything may take before the test gives up: a place among the processes is waited for itself.
const PATIENCE: Duration = Duration::from_secs(90);

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

/// The record of the only parked turn.
fn record(rig: &Rig) -> PathBuf {
    let parked = std::fs::read_dir(rig.data().join("parked")).unwrap();
    let parked: Vec<_> = parked
        .map(|entry| entry.unwrap())
        .filter(|entry| !entry.file_name().to_str().unwrap().starts_with('.'))
        .collect();
    assert_eq!(parked.len(), 1);
    parked[0].path().join("record")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_waits_for_a_place_outlives_the_server() {
    // Each session has a server of its own.
    let (first, second, started) = (Server::new(), Server::new(), AtomicUsize::new(0));
    let plays = [first.program(), second.program()];
    let plays = Arc::new(move |call| plays[started.fetch_add(1, Ordering::SeqCst)](call));
    let mut rig = rig_of("{}", plays);
    let engine = rig.start_with(0, |settings| settings.limits.processes = 1).await;
    let (waits, request) = rig.asked(&engine).await;
    rig.until_parked().await;
    // Another one has the only place, and does not give it back: saving it takes its time.
    rig.freezer.set_open(false);
    rig.asked(&engine).await;
    until("the other one is about to be saved", || rig.freezer.waiting() == 1).await;
    let record = record(&rig);
    let before = std::fs::read(&record).unwrap();
    rig.answer(&engine, waits, request).await;
    until("what was answered is on record", || std::fs::read(&record).unwrap() != before).await;
    rig.freezer.set_open(true);
    engine.shutdown().await;
    drop(engine);

    let engine = rig.start(0).await;
    let bodies = rig.bodies(&engine, waits, |body| matches!(body, Body::Done { .. })).await;
    let Some(Body::Done { status, text, .. }) = bodies.last() else { panic!("{bodies:?}") };
    assert_eq!((*status, text.as_str()), (TurnState::Completed, "before. approved"), "{bodies:?}");
    let answered = bodies.iter().filter(|body| matches!(body, Body::InputResolved { .. })).count();
    assert_eq!(answered, 1, "{bodies:?}");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_whose_release_may_not_run_any_more_ends_in_one_done() {
    let mut rig = rig_of(r#"{"plugin": ["./here"]}"#, Server::new().program());
    let engine = rig.start(0).await;
    let (session, _) = rig.asked(&engine).await;
    rig.until_parked().await;
    engine.shutdown().await;
    drop(engine);

    // Whoever runs the server has decided that folders start nothing by themselves.
    rig.write("opencode.json", "{}");
    let engine = rig.start_with(0, |settings| settings.folder.hooks = false).await;
    let bodies = rig.bodies(&engine, session, |body| matches!(body, Body::Done { .. })).await;
    let Some(Body::Done { status, .. }) = bodies.last() else { panic!("{bodies:?}") };
    assert_eq!(*status, TurnState::Failed, "{bodies:?}");
    until("what was kept of it is gone", || rig.parked() == 0).await;
    let open = engine.inputs(rig.who(), Some(session), None, 10).await.unwrap();
    assert!(open.data.is_empty());
    engine.shutdown().await;
}
