//! Which release is active: chosen, gone back from, never torn.

use karta_types::release::ReleaseState;
use serde_json::{Value, json};

use crate::support::{App, plain};

/// Publishes the folder with these words in it, and answers how the release of them stands.
async fn publish(app: &App, words: &str) -> ReleaseState {
    let folder = app.data.path().join("app");
    std::fs::write(folder.join("words.txt"), words).unwrap();
    let org = app.engine.ensure_org("one").await.unwrap();
    app.engine.publish_folder(org, "app", &folder).await.unwrap().state
}

async fn active(app: &App) -> u64 {
    let project = app.get("/v1/projects/app").await;
    project["active_release"]["version"].as_u64().unwrap()
}

/// What a post answers, as its status and either the version or the problem's code.
async fn post(app: &App, path: &str, body: Value) -> (u16, Value) {
    let (status, answer) = app.post(path, body).await;
    let told = answer.get("version").or_else(|| answer.get("error")).cloned();
    (status, told.unwrap_or_default())
}

#[tokio::test]
async fn rolling_back_goes_back_step_by_step_and_then_says_that_there_is_nothing() {
    let app = App::start(plain()).await;
    publish(&app, "two").await;
    publish(&app, "three").await;
    assert_eq!(active(&app).await, 3);
    let back = "/v1/projects/app/rollback";
    assert_eq!(post(&app, back, json!({"reason": "it lies"})).await, (200, json!(2)));
    assert_eq!(post(&app, back, json!({})).await, (200, json!(1)));
    assert_eq!(post(&app, back, json!({})).await, (409, json!("nothing_to_roll_back")));
    assert_eq!(active(&app).await, 1);
    assert_eq!(post(&app, back, json!({"to": 3})).await, (200, json!(3)));
    assert_eq!(post(&app, back, json!({"to": 9})).await, (409, json!("nothing_to_roll_back")));
    assert_eq!(active(&app).await, 3);

    let history = app.get("/v1/projects/app/activations").await;
    let rows: Vec<_> =
        history["data"].as_array().unwrap().iter().map(|row| (&row["kind"], &row["version"])).collect();
    let (activate, rollback) = (json!("activate"), json!("rollback"));
    let expected =
        [(&rollback, 3), (&rollback, 1), (&rollback, 2), (&activate, 3), (&activate, 2), (&activate, 1)];
    let rows: Vec<_> = rows.into_iter().map(|(kind, version)| (kind, version.as_u64().unwrap())).collect();
    assert_eq!(rows, expected);
    assert_eq!(history["data"][2]["reason"], "it lies");
    assert!(history["data"][2]["by"].as_str().unwrap().starts_with("key:"));
    let releases = app.get("/v1/projects/app/releases").await;
    let states: Vec<_> = releases["data"].as_array().unwrap().iter().map(|row| &row["state"]).collect();
    assert_eq!(states, ["active", "superseded", "superseded"]);
}

#[tokio::test]
async fn activating_twice_is_once_and_an_unknown_release_changes_nothing() {
    let app = App::start(plain()).await;
    publish(&app, "two").await;
    let path = "/v1/projects/app/releases/v1/activate";
    assert_eq!(post(&app, path, json!({})).await, (200, json!(1)));
    assert_eq!(post(&app, path, json!({})).await, (200, json!(1)));
    assert_eq!(
        post(&app, "/v1/projects/app/releases/7/activate", json!({})).await,
        (404, json!("not_found"))
    );
    let long = json!({"reason": "x".repeat(1001)});
    assert_eq!(post(&app, path, long).await, (400, json!("invalid_request")));
    assert_eq!(active(&app).await, 1);
    let history = app.get("/v1/projects/app/activations").await;
    assert_eq!(history["data"].as_array().unwrap().len(), 3);
    let audit = app.get("/v1/audit?action=release.activate").await;
    assert_eq!(audit["data"].as_array().unwrap().len(), 3, "{audit}");
}

#[tokio::test]
async fn a_folder_that_did_not_change_does_not_undo_a_rollback() {
    let app = App::start(plain()).await;
    publish(&app, "two").await;
    assert_eq!(post(&app, "/v1/projects/app/rollback", json!({})).await, (200, json!(1)));
    // As at a restart of the server.
    assert_eq!(publish(&app, "two").await, ReleaseState::Superseded);
    assert_eq!(active(&app).await, 1);
    assert_eq!(publish(&app, "three").await, ReleaseState::Active);
    assert_eq!(active(&app).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn flips_and_turns_at_once_end_on_what_was_said_last() {
    let app = App::start(plain()).await;
    publish(&app, "two").await;
    let system = karta_engine::Principal::system(app.engine.ensure_org("one").await.unwrap());
    let mut all = tokio::task::JoinSet::new();
    for worker in 0..8_u64 {
        let (engine, who) = (app.engine.clone(), system.clone());
        all.spawn(async move {
            for step in 0..1250 {
                let wanted = (worker + step) % 2 + 1;
                let made = engine.activate(&who, "app", wanted, None).await.unwrap();
                assert_eq!(made.version, wanted);
            }
        });
    }
    for _ in 0..8 {
        let (engine, who) = (app.engine.clone(), system.clone());
        all.spawn(async move {
            for _ in 0..1250 {
                let project = engine.project(&who, "app").await.unwrap();
                let shown = project.active_release.unwrap();
                let release = engine.release(&who, "app", shown.release.version).await.unwrap();
                assert_eq!((shown.release.id, shown.digest), (release.id, release.digest));
            }
        });
    }
    while let Some(one) = all.join_next().await {
        one.unwrap();
    }
    // What new turns get is what the record says, not what was remembered on the way.
    let said = app.engine.activations(&system, "app", None, 1).await.unwrap().data.remove(0).version;
    assert_eq!(active(&app).await, said);
    let turn = json!({"text": "hello"});
    let (_, told) = app.post("/v1/projects/app/messages", turn).await;
    let session = told["session_id"].as_str().unwrap();
    let turns = app.get(&format!("/v1/sessions/{session}/turns")).await;
    assert_eq!(turns["data"][0]["release"]["version"], said, "{turns}");
}
