//! Providers' keys of organisations: set, shown by their ends, erased, wrapped anew; and nowhere in plain.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use karta_types::{Clock, Timestamp};
use reqwest::Method;
use serde_json::json;

use crate::support::{App, PATIENCE, plain};

const MARK: &str = "sk-planted-provider-key-0123456789wxyz";

fn nowhere(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            nowhere(&path);
        } else {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(20).any(|part| part == &MARK.as_bytes()[..20]), "{}", path.display());
        }
    }
}

#[tokio::test]
async fn a_key_is_set_shown_by_its_end_replaced_and_erased() {
    let app = App::start(plain()).await;
    let key = app.key.clone();
    let path = "/v1/provider-keys/anthropic";
    let (status, set) = app.as_key(Method::PUT, path, &key, json!({"key": MARK})).await;
    assert_eq!(
        (status, &set["last4"], &set["provider"]),
        (200, &json!("wxyz"), &json!("anthropic")),
        "{set}"
    );
    let (_, again) = app.as_key(Method::PUT, path, &key, json!({"key": format!("{MARK}-2")})).await;
    assert_ne!(set["id"], again["id"]);
    let listed = app.get("/v1/provider-keys").await;
    assert_eq!(listed["data"].as_array().unwrap().len(), 1, "one active key for each provider");
    assert!(!listed.to_string().contains(&MARK[..20]));
    assert_eq!(app.engine.rotate_key_encryption().await.unwrap(), 1, "the erased one is not wrapped anew");
    assert_eq!(app.engine.rotate_key_encryption().await.unwrap(), 1);
    let log = app.get("/v1/audit").await.to_string();
    assert!(log.contains("provider_key.set") && !log.contains(&MARK[..20]));
    for (name, body, status) in [
        ("anthropic", json!({"key": "short"}), 400),
        ("anthropic", json!({"key": "with a space in it"}), 400),
        ("bedrock", json!({"key": MARK}), 400),
        ("bedrock", json!({"key": MARK, "region": "evil.example/"}), 400),
        ("vertex", json!({"key": MARK, "region": "global"}), 400),
        ("anthropic", json!({"key": MARK, "region": "us-east-1"}), 400),
        ("nobody", json!({"key": MARK}), 404),
    ] {
        let (got, problem) = app.as_key(Method::PUT, &format!("/v1/provider-keys/{name}"), &key, body).await;
        assert_eq!(got, status, "{name}: {problem}");
        assert!(!problem.to_string().contains(&MARK[..20]), "an error does not say the key");
    }
    assert_eq!(app.as_key(Method::DELETE, path, &key, json!({})).await.0, 204);
    assert_eq!(app.as_key(Method::DELETE, path, &key, json!({})).await.0, 404);
    nowhere(app.data.path());
    app.stop().await;
}

/// A clock that a test can set back.
#[derive(Clone)]
struct Hands(Arc<AtomicI64>);

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        // Ids need time to go on.
        Timestamp::from_micros(self.0.fetch_add(1, Ordering::SeqCst))
    }
}

#[tokio::test]
async fn wrapping_anew_ends_where_the_clock_went_back() {
    let clock = Hands(Arc::new(AtomicI64::new(1_800_000_000_000_000)));
    let hands = clock.clone();
    let build = |builder: karta_engine::Builder| {
        builder.with_world(Arc::new(hands), Arc::new(karta_types::rng::System))
    };
    let app = App::start_built(plain(), |_| {}, build).await;
    let key = app.key.clone();
    let (status, set) =
        app.as_key(Method::PUT, "/v1/provider-keys/anthropic", &key, json!({"key": MARK})).await;
    assert_eq!(status, 200, "{set}");
    clock.0.fetch_sub(3_600_000_000, Ordering::SeqCst);
    for _ in 0..2 {
        let wrapped = tokio::time::timeout(PATIENCE, app.engine.rotate_key_encryption()).await;
        assert_eq!(wrapped.expect("it ends").unwrap(), 1);
    }
    app.stop().await;
}
