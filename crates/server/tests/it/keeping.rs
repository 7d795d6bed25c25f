//! What of releases is kept, and what goes by itself.

use std::sync::Arc;
use std::time::Duration;

use karta_types::time::Fixed;
use karta_types::{Timestamp, rng};
use reqwest::Method;
use serde_json::{Value, json};

use crate::publish::{folder, packed};
use crate::support::{App, plain};

fn packs(app: &App, project: &str) -> usize {
    std::fs::read_dir(app.engine.data_dir().join("blobs/packs").join(project)).unwrap().count()
}

fn on_shelf(app: &App, project: &str) -> usize {
    std::fs::read_dir(app.engine.data_dir().join("releases").join(project)).unwrap().count()
}

#[tokio::test]
async fn old_releases_go_unless_something_refers_to_them_and_take_only_what_is_theirs() {
    let app = App::start_with(plain(), |settings| settings.releases.keep = 2).await;
    let at = app.data.path().join("shop");
    let publish = async |says: &str, query: &str| {
        folder(&at, says, &[("shared.txt", "in all of them"), ("own.txt", says)]);
        let (status, release) = app.publish(&format!("shop/releases{query}"), packed(&at, None)).await;
        assert_eq!(status, 201, "{release}");
    };
    publish("1", "").await;
    let project = app.get("/v1/projects/shop").await["id"].as_str().unwrap().to_owned();
    let (_, pinned) = app.post("/v1/sessions", json!({"project": "shop", "release_pin": 2})).await;
    assert_eq!(pinned["error"], "not_found");
    publish("2", "?activate=false").await;
    let (status, pinned) = app.post("/v1/sessions", json!({"project": "shop", "release_pin": 2})).await;
    assert_eq!(status, 201, "{pinned}");
    publish("3", "?preview=x").await;
    for number in 4..=8 {
        publish(&number.to_string(), "?activate=false").await;
    }
    let stand = async || {
        let page = app.get("/v1/projects/shop/releases").await;
        let rows = page["data"].as_array().unwrap().iter();
        rows.map(|row| row["state"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // Newest first: two are kept as the newest, one is shown, one is pinned, one is active.
    let expected = ["ready", "ready", "deleted", "deleted", "deleted", "preview", "ready", "active"];
    assert_eq!(stand().await, expected);
    app.engine.keep_all_releases().await.unwrap();
    // v4 to v6 brought one content each that nobody needs; the first pack has what all share.
    assert_eq!((packs(&app, &project), on_shelf(&app, &project)), (5, 5));
    for name in ["shop", "shop@x"] {
        app.says(name).await;
    }
    let session = pinned["id"].as_str().unwrap();
    assert_eq!(app.turn(session, "hello").await[0]["data"]["release"]["version"], 2);
    let gone = "/v1/projects/shop/releases/5";
    for (method, path) in
        [(Method::POST, format!("{gone}/activate")), (Method::GET, format!("{gone}/archive"))]
    {
        let (status, problem) = app.call(method, &path, json!({})).await;
        assert_eq!((status, &problem["error"]), (409, &json!("release_not_ready")), "{path}");
    }
    let (status, problem) = app.call(Method::DELETE, "/v1/projects/shop/releases/1", Value::Null).await;
    assert_eq!((status, &problem["error"]), (409, &json!("release_in_use")));
    // What is gone can be published again: the same content, the same number, brought anew.
    folder(&at, "5", &[("own.txt", "5")]);
    let (status, again) = app.publish("shop/releases", packed(&at, None)).await;
    assert_eq!((status, &again["version"], &again["state"]), (201, &json!(5), &json!("active")));
    assert_eq!(app.says("shop").await, "5");
    std::fs::remove_dir_all(app.engine.data_dir().join("releases").join(&project)).unwrap();
    // One that was not read yet is made from the packs, the first one's among them.
    app.post("/v1/projects/shop/releases/8/activate", json!({})).await;
    assert_eq!(app.says("shop").await, "8");
    app.stop().await;
}

#[tokio::test]
async fn what_a_crash_left_in_the_blob_store_is_swept() {
    let app = App::start(plain()).await;
    let at = app.data.path().join("shop");
    folder(&at, "1", &[]);
    app.publish("shop/releases", packed(&at, None)).await;
    let project = app.get("/v1/projects/shop").await["id"].as_str().unwrap().to_owned();
    let data = app.engine.data_dir();
    std::fs::write(data.join("blobs/packs").join(&project).join("rel_lost"), "put before the record")
        .unwrap();
    std::fs::create_dir(data.join("releases").join(&project).join("rel_lost")).unwrap();
    app.engine.keep_all_releases().await.unwrap();
    assert_eq!((packs(&app, &project), on_shelf(&app, &project)), (1, 1));
    assert_eq!(app.says("shop").await, "1");
    app.stop().await;
}

#[tokio::test]
async fn a_preview_ends_when_its_time_is_over() {
    let clock = Arc::new(Fixed::new(Timestamp::from_micros(1_800_000_000_000_000)));
    let world = clock.clone();
    let app = App::start_built(
        plain(),
        |settings| settings.releases.preview_seconds = 3600,
        move |builder| builder.with_world(world, Arc::new(rng::System)),
    )
    .await;
    let at = app.data.path().join("shop");
    folder(&at, "1", &[]);
    app.publish("shop/releases?preview=x", packed(&at, None)).await;
    assert_eq!(app.says("shop@x").await, "1");
    clock.advance(Duration::from_mins(50));
    // Published for again it lives on.
    app.publish("shop/releases?preview=x", packed(&at, None)).await;
    clock.advance(Duration::from_mins(50));
    app.engine.end_previews().await.unwrap();
    assert_eq!(app.says("shop@x").await, "1");
    clock.advance(Duration::from_mins(10));
    let (status, _) = app.call(Method::GET, "/v1/projects/shop@x", Value::Null).await;
    assert_eq!(status, 404, "past its time it is as good as gone");
    app.engine.end_previews().await.unwrap();
    assert_eq!(app.get("/v1/projects/shop/previews").await["data"], json!([]));
    let audit = app.get("/v1/audit?action=preview.remove").await;
    assert_eq!(audit["data"][0]["actor"], "system:karta", "{audit}");
    app.stop().await;
}
