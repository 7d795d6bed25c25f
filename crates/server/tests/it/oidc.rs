//! Sign-in by a provider of identities that signs real tokens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use axum::extract::{Form, Query, State};
use axum::http::StatusCode;
use axum::response::Redirect;
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as URL;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use karta_engine::settings::Oidc;
use karta_types::{Role, Secret};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, cookie, plain};

/// A provider: `/authorize` signs in whoever [`Provider::person`] is, at once.
#[derive(Clone)]
struct Provider {
    url: String,
    key: Arc<EcdsaKeyPair>,
    person: Arc<Mutex<Value>>,
    codes: Arc<Mutex<HashMap<String, HashMap<String, String>>>>,
}

const SECRET: &str = "s3cret of the client";

impl Provider {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let provider = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            key: Arc::new(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()),
            person: Arc::default(),
            codes: Arc::default(),
        };
        let router = Router::new()
            .route(
                "/.well-known/openid-configuration",
                get(async |State(me): State<Self>| {
                    Json(json!({
                        "issuer": me.url, "authorization_endpoint": format!("{}/authorize", me.url),
                        "token_endpoint": format!("{}/token", me.url), "jwks_uri": format!("{}/keys", me.url),
                        "token_endpoint_auth_methods_supported": ["client_secret_post"],
                    }))
                }),
            )
            .route("/keys", get(async |State(me): State<Self>| Json(json!({ "keys": [me.jwk()] }))))
            .route("/authorize", get(authorize))
            .route("/token", post(token))
            .with_state(provider.clone());
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async move { axum::serve(listener, router).await });
        provider
    }

    fn jwk(&self) -> Value {
        // An uncompressed point: 4, x, y.
        let point = self.key.public_key().as_ref();
        json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "one",
            "x": URL.encode(&point[1..33]), "y": URL.encode(&point[33..65])})
    }

    fn sign(&self, claims: &Value) -> String {
        let pkcs8 = self.key.to_pkcs8v1().unwrap();
        let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::ES256) };
        encode(&header, claims, &EncodingKey::from_ec_der(pkcs8.as_ref())).unwrap()
    }

    fn is(&self, person: Value) {
        *self.person.lock().unwrap() = person;
    }
}

async fn authorize(State(me): State<Provider>, Query(asked): Query<HashMap<String, String>>) -> Redirect {
    assert_eq!((asked["response_type"].as_str(), asked["code_challenge_method"].as_str()), ("code", "S256"));
    assert_eq!((asked["client_id"].as_str(), asked["scope"].as_str()), ("karta", "openid email profile"));
    let code = format!("code{}", me.codes.lock().unwrap().len());
    let back = format!("{}?code={code}&state={}", asked["redirect_uri"], asked["state"]);
    me.codes.lock().unwrap().insert(code, asked);
    Redirect::to(&back)
}

async fn token(
    State(me): State<Provider>,
    Form(form): Form<HashMap<String, String>>,
) -> Result<Json<Value>, StatusCode> {
    let asked = me.codes.lock().unwrap().remove(&form["code"]).ok_or(StatusCode::BAD_REQUEST)?;
    let challenge = URL.encode(digest(&SHA256, form["code_verifier"].as_bytes()));
    if challenge != asked["code_challenge"]
        || form["redirect_uri"] != asked["redirect_uri"]
        || form["client_secret"] != SECRET
    {
        return Err(StatusCode::BAD_REQUEST);
    }
    let now = karta_types::Clock::now(&karta_types::time::System).as_millis() / 1000;
    let mut claims =
        json!({"iss": me.url, "aud": "karta", "exp": now + 300, "iat": now, "nonce": asked["nonce"]});
    for (name, value) in me.person.lock().unwrap().as_object().unwrap() {
        claims[name] = value.clone();
    }
    Ok(Json(json!({"id_token": me.sign(&claims), "access_token": "unused", "token_type": "bearer"})))
}

/// Walks the whole way as a browser: the status at the end, the cookie, and the page.
async fn walk(app: &App, query: &str) -> (u16, Option<String>, String) {
    let begun = app.page(&format!("/login/oidc{query}"), "").await;
    let cookies = format!(
        "karta_oidc={}; karta_next={}",
        cookie(&begun, "karta_oidc").unwrap(),
        cookie(&begun, "karta_next").unwrap()
    );
    let at_provider = app.page(begun.headers()["location"].to_str().unwrap(), "").await;
    let back = at_provider.headers()["location"].to_str().unwrap().to_owned();
    // The public address of the test is no real one: the way back is walked to the server itself.
    let back = back.strip_prefix("http://karta.test").unwrap().to_owned();
    let ended = app.page(&back, &cookies).await;
    let token = cookie(&ended, "karta_session");
    (ended.status().as_u16(), token, ended.text().await.unwrap())
}

async fn start() -> (App, Provider) {
    let provider = Provider::start().await;
    let oidc = Oidc {
        issuer: provider.url.clone(),
        client_id: "karta".into(),
        client_secret: Some(Secret::new(SECRET.into())),
        name: "Example".into(),
    };
    let app = App::start_with(plain(), |settings| {
        settings.public_url = Some("http://karta.test".into());
        settings.oidc = Some(oidc);
    })
    .await;
    (app, provider)
}

#[tokio::test]
async fn an_invited_person_signs_in_and_is_known_by_their_identity_then() {
    let (app, provider) = start().await;
    assert!(app.page("/login", "").await.text().await.unwrap().contains("Sign in with Example"));
    let ann = json!({"sub": "ann-1", "email": "Ann@Example.com", "email_verified": true, "name": "Ann"});
    provider.is(ann.clone());
    let (status, token, page) = walk(&app, "").await;
    assert_eq!((status, token), (403, None), "{page}");
    app.post("/v1/invitations", json!({"email": "ann@example.com", "role": "developer"})).await;
    // An address that the provider did not verify opens nothing.
    provider.is(json!({"sub": "eve-1", "email": "ann@example.com", "email_verified": false}));
    assert_eq!(walk(&app, "").await.0, 403);
    provider.is(ann);
    let (status, token, page) = walk(&app, "?next=/device").await;
    assert_eq!(status, 303, "{page}");
    let (_, me) = app.as_key(Method::GET, "/v1/whoami", &token.unwrap(), json!({})).await;
    assert_eq!(me["role"], "developer");
    // Whoever gets the address at the provider later is not who had it.
    provider.is(json!({"sub": "ann-2", "email": "ann@example.com", "email_verified": true}));
    assert_eq!(walk(&app, "").await.0, 403);
    // And whoever changes their address is still who they were.
    provider.is(json!({"sub": "ann-1", "email": "new@example.com", "email_verified": true}));
    let (status, token, _) = walk(&app, "").await;
    let (_, again) = app.as_key(Method::GET, "/v1/whoami", &token.unwrap(), json!({})).await;
    assert_eq!((status, &again["principal"]), (303, &me["principal"]));
    let audit = app.get("/v1/audit?action=sign_in.oidc").await;
    assert_eq!(audit["data"].as_array().unwrap().len(), 2);
    // Somebody in two organisations says which.
    let two = app.engine.ensure_org("two").await.unwrap();
    let system = karta_engine::Principal::system(two);
    app.engine.invite(&system, "new@example.com", Role::Viewer, &app.url).await.unwrap();
    let (status, token, page) = walk(&app, "").await;
    assert_eq!((status, token), (200, None));
    assert!(page.contains("/login/oidc?org=one") && page.contains("/login/oidc?org=two"), "{page}");
    let (_, token, _) = walk(&app, "?org=two").await;
    let (_, there) = app.as_key(Method::GET, "/v1/whoami", &token.unwrap(), json!({})).await;
    assert_eq!((&there["role"], &there["org"]["slug"]), (&json!("viewer"), &json!("two")));
    assert_eq!(there["principal"], me["principal"]);
    app.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_together_signs_nobody_in() {
    let (app, provider) = start().await;
    app.person(Role::Viewer).await;
    let viewer = json!({"sub": "v", "email": "viewer@example.com", "email_verified": true});
    let with = |name: &str, value: Value| {
        let mut claims = viewer.clone();
        claims[name] = value;
        claims
    };
    for (what, person) in [
        ("another issuer", with("iss", json!("http://127.0.0.1:1"))),
        ("another audience", with("aud", json!("else"))),
        ("many audiences and nobody named", with("aud", json!(["karta", "else"]))),
        ("given to another", with("azp", json!("else"))),
        ("too old", with("exp", json!(1000))),
        ("another nonce", with("nonce", json!("guessed"))),
        ("no nonce", with("nonce", Value::Null)),
    ] {
        provider.is(person);
        let (status, token, page) = walk(&app, "").await;
        assert_eq!((status, token), (401, None), "{what}: {page}");
    }
    provider.is(viewer);
    // Another browser's state, a forged cookie, none, a refusal by the provider.
    let begun = app.page("/login/oidc", "").await;
    let sealed = cookie(&begun, "karta_oidc").unwrap();
    for (query, cookies) in [
        ("code=code0&state=other", format!("karta_oidc={sealed}")),
        ("code=code0&state=x", "karta_oidc=AAAA".to_owned()),
        ("code=code0&state=x", String::new()),
        ("error=access_denied&state=x", format!("karta_oidc={sealed}")),
    ] {
        let ended = app.page(&format!("/login/oidc/callback?{query}"), &cookies).await;
        assert_eq!(ended.status(), 401, "{query}");
    }
    assert_eq!(walk(&app, "").await.0, 303, "and what fits does");
    app.stop().await;
}
