//! The same with a harness that serves HTTP: its connections are let go and made again.

#![expect(clippy::panic, reason = "a test that can't go on fails")]

use std::time::Duration;

use karta_engine::sandbox::fake::Program;
use karta_engine::{Engine, Settings};
use karta_types::event::InputRequired;
use karta_types::message::Decision;
use karta_types::session::TurnState;
use karta_types::{Body, RequestId, SessionId};

use crate::fake_opencode::Server;
use crate::parked::{Rig, decide};

/// A folder for OpenCode, and a server in its place.
fn rig() -> (Rig, Server) {
    let server = Server::new();
    (rig_of("{}", server.program()), server)
}

/// A folder with this configuration, and what plays OpenCode.
pub(crate) fn rig_of(configuration: &str, plays: Program) -> Rig {
    let rig = Rig::of(&[("opencode.json", configuration), (".opencode/commands/greet.md", "Hello\n")]);
    let version = karta_harness::registry::find("opencode").unwrap().package().unwrap().default_version;
    let folder = rig.data().join("harnesses/opencode").join(version);
    std::fs::create_dir_all(&folder).unwrap();
    let record = serde_json::json!({"version": version, "package": "p", "program": "run", "integrity": "i", "pinned": true});
    std::fs::write(folder.join("installed.json"), record.to_string()).unwrap();
    std::fs::write(folder.join("run"), "").unwrap();
    let program = folder.join("run").display().to_string();
    rig.with_program(&program, plays)
}

/// A turn that was parked, by this server or the one before.
async fn parked(restart: bool) -> (Rig, Server, Engine, SessionId, RequestId) {
    let (mut rig, server) = rig();
    let mut engine = rig.start(0).await;
    let (session, request) = rig.asked(&engine).await;
    rig.until_parked().await;
    if restart {
        engine.shutdown().await;
        drop(engine);
        engine = rig.start(0).await;
    }
    (rig, server, engine, session, request)
}

async fn done(rig: &Rig, engine: &Engine, session: SessionId) -> (TurnState, String, Vec<Body>) {
    let bodies = rig.bodies(engine, session, |body| matches!(body, Body::Done { .. })).await;
    let Some(Body::Done { status, text, .. }) = bodies.last() else { panic!("{bodies:?}") };
    assert_eq!((rig.freezer.count(), rig.parked()), (0, 0));
    (*status, text.clone(), bodies)
}

fn asked(bodies: &[Body]) -> Vec<&InputRequired> {
    bodies
        .iter()
        .filter_map(|body| match body {
            Body::InputRequired(asked) => Some(asked),
            _ => None,
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn its_turn_is_parked_and_woken_by_the_answer() {
    for text in ["go", "/greet"] {
        let (mut rig, server) = rig();
        let engine = rig.start(0).await;
        let (session, request) = rig.asked_by(&engine, text).await;
        rig.until_parked().await;
        rig.answer(&engine, session, request).await;
        let (status, text, bodies) = done(&rig, &engine, session).await;
        assert_eq!((status, text.as_str()), (TurnState::Completed, "before. approved"), "{bodies:?}");
        assert_eq!(asked(&bodies).len(), 1, "nothing is told twice: {bodies:?}");
        let results = bodies.iter().filter(|body| matches!(body, Body::ToolResult { .. })).count();
        assert_eq!(results, 1, "{bodies:?}");
        assert_eq!((server.streams(), server.unheard()), (2, 0));
        engine.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_parked_turn_outlives_the_server() {
    for park_seconds in [0, 3600] {
        let (mut rig, server) = rig();
        let engine = rig.start(park_seconds).await;
        let (session, request) = rig.asked(&engine).await;
        if park_seconds == 0 {
            rig.until_parked().await;
        }
        engine.shutdown().await;
        drop(engine);
        assert_eq!(rig.parked(), 1, "a server that is stopped parks what waits");

        let engine = rig.start(park_seconds).await;
        rig.answer(&engine, session, request).await;
        let (status, text, bodies) = done(&rig, &engine, session).await;
        assert_eq!((status, text.as_str()), (TurnState::Completed, "before. approved"), "{bodies:?}");
        assert_eq!((server.streams(), server.unheard()), (2, 0));
        engine.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_said_while_nobody_listened_is_asked_for() {
    let (mut rig, server) = rig();
    let engine = rig.start(0).await;
    let (session, first) = rig.asked(&engine).await;
    rig.until_parked().await;
    server.ask("per_2", "call_2");
    rig.answer(&engine, session, first).await;
    let bodies = rig
        .bodies(
            &engine,
            session,
            |body| matches!(body, Body::InputRequired(asked) if asked.request_id != first),
        )
        .await;
    let second = asked(&bodies)[1].request_id;
    // It waits again, and sleeps again.
    rig.until_parked().await;
    rig.answer(&engine, session, second).await;
    let (status, text, bodies) = done(&rig, &engine, session).await;
    assert_eq!((status, text.as_str()), (TurnState::Completed, "before. approved"), "{bodies:?}");
    assert_eq!(asked(&bodies).len(), 2);
    assert_eq!((server.streams(), server.unheard()), (3, 0));
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_parked_turn_can_be_interrupted() {
    let (mut rig, _server) = rig();
    let engine = rig.start(0).await;
    let (session, _) = rig.asked(&engine).await;
    rig.until_parked().await;
    assert!(engine.interrupt(rig.who(), session).await.unwrap());
    let (status, text, bodies) = done(&rig, &engine, session).await;
    assert_eq!((status, text.as_str()), (TurnState::Interrupted, "before. "), "{bodies:?}");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_answers_its_parked_turn_in_time() {
    let (mut rig, _server) = rig();
    let engine = rig.start(0).await;
    let (session, _) = rig.asked(&engine).await;
    rig.until_parked().await;
    engine.shutdown().await;
    drop(engine);
    // What holds is what the server of now is set to.
    let soon = |settings: &mut Settings| settings.limits.approval_seconds = 1;
    let engine = rig.start_with(0, soon).await;
    let (status, text, bodies) = done(&rig, &engine, session).await;
    assert_eq!((status, text.as_str()), (TurnState::Completed, "before. denied"), "{bodies:?}");
    let resolved = bodies.iter().find_map(|body| match body {
        Body::InputResolved { decision, by, .. } => Some((*decision, by.id.clone())),
        _ => None,
    });
    assert_eq!(resolved, Some((Decision::Deny, "expired".to_owned())));
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_takes_no_connection_any_more_ends_its_turn_with_a_reason() {
    for restart in [false, true] {
        let (rig, server, engine, session, request) = parked(restart).await;
        // As well as one that refuses to tell its events.
        if restart {
            server.refuse(usize::MAX);
        } else {
            server.go_deaf();
        }
        engine.answer(rig.who(), session, request, decide(Decision::ApproveOnce)).await.unwrap();
        let (status, text, bodies) = done(&rig, &engine, session).await;
        assert_eq!((status, text.as_str()), (TurnState::Failed, "before. "), "{bodies:?}");
        let told = bodies.iter().find_map(|body| match body {
            Body::Error(problem) => Some(problem.detail.clone()),
            _ => None,
        });
        assert!(told.unwrap().contains("event stream"), "{bodies:?}");
        assert_eq!(server.replies(), 0, "nothing is approved of a turn that is lost");
        engine.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_events_that_open_at_the_third_attempt_lose_nothing() {
    for restart in [false, true] {
        let (rig, server, engine, session, request) = parked(restart).await;
        server.refuse(2);
        rig.answer(&engine, session, request).await;
        let (status, text, bodies) = done(&rig, &engine, session).await;
        assert_eq!((status, text.as_str()), (TurnState::Completed, "before. approved"), "{bodies:?}");
        assert_eq!((server.streams(), server.unheard()), (4, 0));
        engine.shutdown().await;
    }
}

/// OpenCode says every ten seconds that it lives. That is no word that would keep it awake.
#[tokio::test(flavor = "multi_thread")]
async fn signs_of_life_keep_nothing_awake() {
    let (mut rig, server) = rig();
    let engine = rig.start(1).await;
    let (session, request) = rig.asked(&engine).await;
    let beat = async {
        loop {
            server.tell("server.heartbeat", &serde_json::json!({}));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = rig.until_parked() => {}
        () = beat => {}
    }
    rig.answer(&engine, session, request).await;
    let (status, _, bodies) = done(&rig, &engine, session).await;
    assert_eq!(status, TurnState::Completed, "{bodies:?}");
    engine.shutdown().await;
}
