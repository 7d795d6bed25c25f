//! Secrets for the tools of projects: set, listed by name, wrapped anew, removed with their project; and nowhere in plain.

use std::path::Path;

use reqwest::Method;
use serde_json::json;

use crate::support::{App, plain};

const MARK: &str = "planted-tool-secret-0123456789wxyz";

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
async fn a_secret_is_set_listed_by_name_replaced_and_removed() {
    let app = App::start(plain()).await;
    let key = app.key.clone();
    let path = "/v1/projects/app/secrets/SHOP_KEY";
    let (status, set) = app.as_key(Method::PUT, path, &key, json!({"value": MARK})).await;
    assert_eq!((status, &set["name"]), (200, &json!("SHOP_KEY")), "{set}");
    assert_eq!(app.as_key(Method::PUT, path, &key, json!({"value": format!("{MARK}-2")})).await.0, 200);
    let listed = app.get("/v1/projects/app/secrets").await;
    assert_eq!(listed["data"].as_array().unwrap().len(), 1, "{listed}");
    assert!(!listed.to_string().contains(&MARK[..20]));
    assert_eq!(app.engine.rotate_key_encryption().await.unwrap(), 1);
    assert_eq!(app.engine.rotate_key_encryption().await.unwrap(), 1);
    let log = app.get("/v1/audit").await.to_string();
    assert!(log.contains("secret.set") && log.contains("SHOP_KEY") && !log.contains(&MARK[..20]));
    for (name, value, status) in [
        ("SHOP_KEY", "short", 400),
        ("SHOP_KEY", "two\nlines-of-it", 400),
        ("SHOP_KEY", "a\u{0}nul-in-it", 400),
        ("ANTHROPIC_API_KEY", MARK, 400),
        ("PATH", MARK, 400),
        ("HTTPS_PROXY", MARK, 400),
        ("SSL_CERT_FILE", MARK, 400),
        ("A-B", MARK, 400),
        ("1A", MARK, 400),
    ] {
        let path = format!("/v1/projects/app/secrets/{name}");
        let (got, problem) = app.as_key(Method::PUT, &path, &key, json!({ "value": value })).await;
        assert_eq!(got, status, "{name}: {problem}");
        assert!(!problem.to_string().contains(&MARK[..20]), "an error does not say the value");
    }
    let more = json!({"value": "x".repeat(8193)});
    assert_eq!(app.as_key(Method::PUT, path, &key, more).await.0, 400);
    let nobodys = "/v1/projects/nobodys/secrets/SHOP_KEY";
    assert_eq!(app.as_key(Method::PUT, nobodys, &key, json!({"value": MARK})).await.0, 404);
    assert_eq!(app.as_key(Method::DELETE, path, &key, json!({})).await.0, 204);
    assert_eq!(app.as_key(Method::DELETE, path, &key, json!({})).await.0, 404);
    nowhere(app.data.path());
    app.stop().await;
}

#[tokio::test]
async fn a_projects_secrets_go_with_it() {
    let app = App::start(plain()).await;
    let key = app.key.clone();
    let made = app.post("/v1/projects", json!({"slug": "gone"})).await;
    assert_eq!(made.0, 201, "{}", made.1);
    for project in ["gone", "app"] {
        let path = format!("/v1/projects/{project}/secrets/SHOP_KEY");
        assert_eq!(app.as_key(Method::PUT, &path, &key, json!({"value": MARK})).await.0, 200);
    }
    assert_eq!(app.as_key(Method::DELETE, "/v1/projects/gone", &key, json!({})).await.0, 204);
    app.engine.keep_house().await;
    assert_eq!(
        app.engine.rotate_key_encryption().await.unwrap(),
        1,
        "the other project's is all that is left"
    );
    app.stop().await;
}

#[tokio::test]
async fn a_folder_can_not_hide_what_no_server_here_can_hold() {
    let app = App::start(plain()).await;
    let at = app.data.path().join("shop");
    std::fs::create_dir_all(&at).unwrap();
    std::fs::write(at.join("karta.script.json"), "{\"turns\":[]}").unwrap();
    let manifest = "[env]\nSHOP_KEY = { secret = true, hosts = [\"api.example.com\"] }\n";
    std::fs::write(at.join("karta.toml"), manifest).unwrap();
    let mut archive = Vec::new();
    karta_release::archive::pack(&at, &karta_release::Files::read(&at).unwrap(), None, &mut archive).unwrap();
    let request = app.request(Method::POST, "/v1/projects/shop/releases").body(archive);
    let answer = request.send().await.unwrap();
    let (status, text) = (answer.status().as_u16(), answer.text().await.unwrap());
    assert_eq!(status, 422, "{text}");
    assert!(text.contains("SHOP_KEY") && text.contains("keep sessions from the network"), "{text}");
    app.stop().await;
}
