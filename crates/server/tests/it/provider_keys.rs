//! Providers' keys of organisations: set, shown by their ends, erased, wrapped anew; and nowhere in plain.

use std::path::Path;

use reqwest::Method;
use serde_json::json;

use crate::support::{App, plain};

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
