//! Publishing misused: by keys that lost their project meanwhile, by clients that stop reading, by content that packs too well.

use karta_types::ErrorCode;
use reqwest::Method;
use serde_json::{Value, json};
use tokio_stream::wrappers::ReceiverStream;

use crate::publish::{folder, packed};
use crate::support::{App, Named, PATIENCE, answer, plain};

#[tokio::test]
async fn an_upload_to_a_project_that_was_removed_meanwhile_makes_and_takes_none() {
    let app = App::start(plain()).await;
    let at = app.data.path().join("shop");
    folder(&at, "mine", &[]);
    app.publish("shop/releases", packed(&at, None)).await;
    let wanted = json!({"name": "one project", "scopes": ["write"], "project": "shop"});
    let (_, made) = app.post("/v1/keys", wanted).await;
    let key = made["key"].as_str().unwrap().to_owned();
    for recreated in [false, true] {
        folder(&at, "not mine any more", &[]);
        let archive = packed(&at, None);
        let (half, rest) = archive.split_at(archive.len() / 2);
        let (send, parts) = tokio::sync::mpsc::channel::<std::io::Result<Vec<u8>>>(1);
        let call = app.request(Method::POST, "/v1/projects/shop/releases").bearer_auth(&key);
        let call = call.body(reqwest::Body::wrap_stream(ReceiverStream::new(parts)));
        let incoming = app.engine.data_dir().join("incoming");
        #[expect(clippy::disallowed_methods, reason = "ends with the test")]
        let uploading = tokio::spawn(call.send());
        send.send(Ok(half.to_vec())).await.unwrap();
        let begun = async {
            while std::fs::read_dir(&incoming).map_or(0, Iterator::count) == 0 && !uploading.is_finished() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, begun).await.unwrap();
        app.call(Method::DELETE, "/v1/projects/shop", Value::Null).await;
        if recreated {
            folder(&at, "another's", &[]);
            app.publish("shop/releases", packed(&at, None)).await;
        }
        // The server may have refused and hung up already.
        let _ = send.send(Ok(rest.to_vec())).await;
        drop(send);
        let response = uploading.await.unwrap();
        if let Ok(response) = response {
            let (status, problem) = answer(response).await;
            assert_eq!((status, &problem["error"]), (404, &json!("not_found")), "{problem}");
        }
        let (status, _) = app.call(Method::GET, "/v1/projects/shop", Value::Null).await;
        assert_eq!(status, if recreated { 200 } else { 404 });
        if recreated {
            assert_eq!(app.says("shop").await, "another's");
        } else {
            folder(&at, "mine", &[]);
            app.publish("shop/releases", packed(&at, None)).await;
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn who_stops_reading_a_build_does_not_stop_the_build() {
    let app = App::start_with(plain(), |settings| settings.releases.build_seconds = 1).await;
    let at = app.data.path().join("shop");
    let manifest =
        "[build]\nsetup = \"while true; do echo a line that nobody reads, again and again; done\"\n";
    folder(&at, "one", &[("karta.toml", manifest)]);
    let request = app.request(Method::POST, "/v1/projects/shop/releases").body(packed(&at, None));
    let mut events = Named::open(request.header("accept", "text/event-stream")).await;
    assert_eq!(events.next().await.unwrap().0, "log");
    let ended = async {
        loop {
            let page = app.get("/v1/projects/shop/releases").await;
            if page["data"][0]["state"] == "failed" {
                return page["data"][0]["error"].clone();
            }
            tokio::task::yield_now().await;
        }
    };
    let why = tokio::time::timeout(PATIENCE, ended).await.expect("the build ends by itself");
    assert!(why.as_str().unwrap().contains("longer than 1 seconds"), "{why}");
    drop(events);
    app.stop().await;
}

#[tokio::test]
async fn what_packs_too_well_for_strangers_comes_back_from_our_own_store() {
    let app = App::start(plain()).await;
    let at = app.data.path().join("shop");
    folder(&at, "one", &[("repeated.json", &"{\"same\": 1},".repeat(600_000))]);
    let mut plain_tar = Vec::new();
    let name = |path: &str| format!("{path}\0").into_bytes();
    for path in ["karta.script.json", "repeated.json"] {
        let content = std::fs::read(at.join(path)).unwrap();
        let mut header = [0_u8; 512];
        header[..=path.len()].copy_from_slice(&name(path));
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        plain_tar.extend_from_slice(&header);
        plain_tar.extend_from_slice(&content);
        plain_tar.resize(plain_tar.len().next_multiple_of(512), 0);
    }
    plain_tar.resize(plain_tar.len() + 1024, 0);
    let (status, release) = app.publish("shop/releases?activate=false", plain_tar).await;
    assert_eq!(status, 201, "{release}");
    let project = app.get("/v1/projects/shop").await["id"].as_str().unwrap().to_owned();
    std::fs::remove_dir_all(app.engine.data_dir().join("releases").join(&project)).unwrap();
    app.post("/v1/projects/shop/releases/1/activate", json!({})).await;
    assert_eq!(app.says("shop").await, "one");
    app.stop().await;
}

#[tokio::test]
async fn a_deleted_release_gives_nothing_any_more() {
    let app = App::start(plain()).await;
    let at = app.data.path().join("shop");
    folder(&at, "one", &[("secret.txt", "put in by mistake")]);
    app.publish("shop/releases", packed(&at, None)).await;
    std::fs::remove_file(at.join("secret.txt")).unwrap();
    app.publish("shop/releases", packed(&at, None)).await;
    let (status, _) = app.call(Method::DELETE, "/v1/projects/shop/releases/1", Value::Null).await;
    assert_eq!(status, 204);
    for path in ["releases/1/archive", "releases/1/diff/2"] {
        let (status, problem) =
            app.call(Method::GET, &format!("/v1/projects/shop/{path}"), Value::Null).await;
        assert_eq!((status, &problem["error"]), (409, &json!(ErrorCode::ReleaseNotReady)), "{path}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_key_for_one_project_lists_that_one_alone() {
    let app = App::start(plain()).await;
    for slug in ["a", "b"] {
        app.post("/v1/projects", json!({"slug": slug})).await;
    }
    let (_, made) = app.post("/v1/keys", json!({"name": "b", "scopes": ["read"], "project": "b"})).await;
    let key = made["key"].as_str().unwrap();
    let (_, page) = app.as_key(Method::GET, "/v1/projects?limit=1", key, Value::Null).await;
    assert_eq!(page["data"].as_array().unwrap().len(), 1);
    assert_eq!((&page["data"][0]["slug"], &page["next_cursor"]), (&json!("b"), &Value::Null));
    app.stop().await;
}

#[tokio::test]
async fn what_a_setup_leaves_running_does_not_keep_it_from_ending() {
    let app = App::start_with(plain(), |settings| settings.releases.build_seconds = 30).await;
    let at = app.data.path().join("shop");
    let manifest = "[build]\nsetup = \"sleep 3600 & echo started; echo made > made.txt\"\n";
    folder(&at, "one", &[("karta.toml", manifest)]);
    let (status, release) = app.publish("shop/releases", packed(&at, None)).await;
    assert_eq!((status, &release["state"]), (201, &json!("active")), "{release}");
    assert_eq!(app.says("shop").await, "one");
    app.stop().await;
}
