//! Credentials and time.

use std::sync::Arc;
use std::time::Duration;

use karta_engine::control::keys::{Environment, NewKey};
use karta_engine::control::session_tokens::NewToken;
use karta_engine::{Builder, Principal, Settings};
use karta_types::scope::Scopes;
use karta_types::time::Fixed;
use karta_types::{ErrorCode, Timestamp};

#[tokio::test]
async fn keys_and_tokens_end_at_their_time() {
    let data = tempfile::tempdir().unwrap();
    let clock = Arc::new(Fixed::new(Timestamp::from_micros(1_795_478_656_000_000)));
    let settings = Settings { data: data.path().join("data"), ..Settings::default() };
    let builder = Builder::new(settings).with_world(clock.clone(), Arc::new(karta_types::rng::System));
    let engine = builder.open().await.unwrap();
    let folder = data.path().join("app");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("karta.script.json"), r#"{"turns":[{"steps":[{"say":"hi"}]}]}"#).unwrap();
    let org = engine.ensure_org("one").await.unwrap();
    engine.publish_folder(org, "app", &folder).await.unwrap();
    let new = NewKey {
        name: "k".to_owned(),
        environment: Environment::Test,
        scopes: Scopes::all(),
        project: None,
        expires_at: Some(karta_types::Clock::now(&*clock).plus(Duration::from_mins(10))),
    };
    let key = engine.create_key(&Principal::system(org), new).await.unwrap();
    let who = engine.gate().authenticate(&key.key).await.unwrap();
    let new = NewToken {
        project: "app".to_owned(),
        end_user: "ann".to_owned(),
        session: None,
        origins: Vec::new(),
        ttl: Duration::from_mins(5),
        cap: None,
    };
    let token = engine.mint_session_token(&who, new).await.unwrap();
    clock.advance(Duration::from_secs(299));
    engine.gate().authenticate(&token.token).await.unwrap();
    clock.advance(Duration::from_secs(1));
    let late = engine.gate().authenticate(&token.token).await.unwrap_err();
    assert_eq!(late.code(), ErrorCode::Unauthorized);
    engine.gate().authenticate(&key.key).await.unwrap();
    clock.advance(Duration::from_mins(5));
    assert_eq!(engine.gate().authenticate(&key.key).await.unwrap_err().code(), ErrorCode::Unauthorized);

    // Weeks later a new key signs, and the old one is forgotten in the same step: still everybody knows the new one.
    clock.advance(Duration::from_hours(24 * 60));
    engine.rotate_token_key().await.unwrap();
    assert_eq!(engine.jwks()["keys"].as_array().unwrap().len(), 1);
    let key = engine.bootstrap_key(org, Environment::Test, "later").await.unwrap();
    let who = engine.gate().authenticate(key.expose()).await.unwrap();
    let new = NewToken {
        project: "app".to_owned(),
        end_user: "ann".to_owned(),
        session: None,
        origins: Vec::new(),
        ttl: Duration::from_mins(5),
        cap: None,
    };
    let token = engine.mint_session_token(&who, new).await.unwrap();
    engine.gate().authenticate(&token.token).await.unwrap();
    engine.shutdown().await;
}
