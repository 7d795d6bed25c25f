//! Session tokens: what an end user's browser reaches, and what it does not.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, plain};

impl App {
    async fn mint(&self, body: Value) -> Value {
        let (status, minted) = self.post("/v1/session-tokens", body).await;
        assert_eq!(status, 201, "{minted}");
        minted
    }

    async fn browser(
        &self,
        method: Method,
        path: &str,
        token: &str,
        origin: Option<&str>,
    ) -> reqwest::Response {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut call = client.request(method, format!("{}{path}", self.url)).bearer_auth(token);
        if let Some(origin) = origin {
            call = call.header("origin", origin);
        }
        call.send().await.unwrap()
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[tokio::test]
async fn a_token_reaches_its_users_sessions_in_its_project_and_nothing_else() {
    let app = App::start(plain()).await;
    let minted = app.mint(json!({"project": "app", "end_user_id": "ann"})).await;
    let token = text(&minted["token"]);
    let (status, turn) =
        app.as_key(Method::POST, "/v1/projects/app/messages", token, json!({"text": "ask"})).await;
    assert_eq!(status, 200, "{turn}");
    let session = text(&turn["session_id"]);
    assert_eq!(app.get(&format!("/v1/sessions/{session}")).await["end_user_id"], "ann");
    // Their own question they may answer.
    let request = text(&turn["pending_inputs"][0]["request_id"]);
    let path = format!("/v1/projects/app/sessions/{session}/inputs/{request}");
    assert_eq!(app.as_key(Method::PUT, &path, token, json!({"decision": "deny"})).await.0, 200);
    let (_, bobs) =
        app.post("/v1/projects/app/messages", json!({"text": "hello", "end_user_id": "bob"})).await;
    let bobs = text(&bobs["session_id"]).to_owned();
    for path in ["", "/events", "/turns", "/history", "/inputs"] {
        let path = format!("/v1/projects/app/sessions/{bobs}{path}");
        assert_eq!(app.as_key(Method::GET, &path, token, json!({})).await.0, 404, "{path}");
    }
    let path = format!("/v1/projects/app/sessions/{bobs}/messages");
    assert_eq!(app.as_key(Method::POST, &path, token, json!({"text": "hi"})).await.0, 404);
    let (_, listed) = app.as_key(Method::GET, "/v1/projects/app/sessions", token, json!({})).await;
    assert_eq!(listed["data"].as_array().unwrap().len(), 1, "{listed}");
    let (_, listed) =
        app.as_key(Method::GET, "/v1/projects/app/sessions?end_user_id=bob", token, json!({})).await;
    assert_eq!(text(&listed["data"][0]["id"]), session, "another user's are not listed by asking for them");

    for (method, path, body) in [
        (Method::GET, "/v1/whoami".to_owned(), json!({})),
        (Method::GET, "/v1/sessions".to_owned(), json!({})),
        (Method::GET, format!("/v1/sessions/{session}"), json!({})),
        (Method::GET, "/v1/projects/app".to_owned(), json!({})),
        (Method::GET, "/v1/usage".to_owned(), json!({})),
        (Method::GET, "/v1/keys".to_owned(), json!({})),
        (Method::POST, "/v1/session-tokens".to_owned(), json!({"project": "app", "end_user_id": "bob"})),
        (Method::DELETE, format!("/v1/projects/app/sessions/{session}"), json!({})),
        (
            Method::PATCH,
            format!("/v1/projects/app/sessions/{session}"),
            json!({"permission_mode": "allow_all"}),
        ),
        (Method::POST, "/v1/projects/app/sessions".to_owned(), json!({"permission_mode": "allow_all"})),
        (Method::POST, "/v1/projects/app/sessions".to_owned(), json!({"end_user_id": "bob"})),
        (Method::POST, "/v1/projects/app/messages".to_owned(), json!({"text": "x", "end_user_id": "bob"})),
    ] {
        let (status, problem) = app.as_key(method.clone(), &path, token, body).await;
        assert_eq!((status, &problem["error"]), (403, &json!("forbidden")), "{method} {path}: {problem}");
    }
    assert_eq!(app.as_key(Method::GET, "/v1/projects/other/sessions", token, json!({})).await.0, 404);

    // One session only.
    let bound = app.mint(json!({"project": "app", "end_user_id": "ann", "session_id": session})).await;
    let bound = text(&bound["token"]);
    let path = format!("/v1/projects/app/sessions/{session}");
    assert_eq!(app.as_key(Method::GET, &path, bound, json!({})).await.0, 200);
    let (status, _) = app.as_key(Method::POST, "/v1/projects/app/sessions", bound, json!({})).await;
    assert_eq!(status, 403);
    for (body, status) in [
        (json!({"project": "app", "end_user_id": "bob", "session_id": session}), 404),
        (json!({"project": "nothing", "end_user_id": "bob"}), 404),
        (json!({"project": "app", "end_user_id": ""}), 400),
        (json!({"project": "app", "end_user_id": "a", "ttl_seconds": 3601}), 400),
        (json!({"project": "app", "end_user_id": "a", "origins": ["https://a.example/path"]}), 400),
        (json!({"project": "app", "end_user_id": "a", "origins": ["*"]}), 400),
    ] {
        let (got, problem) = app.post("/v1/session-tokens", body.clone()).await;
        assert_eq!(got, status, "{body}: {problem}");
    }
    app.stop().await;
}

#[tokio::test]
async fn pages_from_elsewhere_are_refused_and_read_nothing() {
    let app = App::start(plain()).await;
    let home = "https://app.example.com";
    let minted = app.mint(json!({"project": "app", "end_user_id": "ann", "origins": [home]})).await;
    let token = text(&minted["token"]);
    let path = "/v1/projects/app/sessions";
    let allowed = |answer: &reqwest::Response| {
        answer.headers().get("access-control-allow-origin").map(|value| value.to_str().unwrap().to_owned())
    };
    let answer = app.browser(Method::GET, path, token, Some(home)).await;
    assert_eq!((answer.status().as_u16(), allowed(&answer).as_deref()), (200, Some(home)));
    for origin in [None, Some("https://evil.example"), Some("http://app.example.com"), Some("null")] {
        let answer = app.browser(Method::GET, path, token, origin).await;
        assert_eq!((answer.status().as_u16(), allowed(&answer)), (403, None), "{origin:?}");
    }
    for (origin, expected) in [(home, Some(home)), ("https://evil.example", None)] {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let preflight = client
            .request(Method::OPTIONS, format!("{}{path}", app.url))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type");
        let answer = preflight.send().await.unwrap();
        assert_eq!(allowed(&answer).as_deref(), expected);
    }
    app.stop().await;
}

#[tokio::test]
async fn what_is_revoked_forged_or_of_another_key_is_no_token() {
    let app = App::start(plain()).await;
    let (_, backend) = app.post("/v1/keys", json!({"name": "backend", "scopes": ["write"]})).await;
    let new = json!({"project": "app", "end_user_id": "ann"});
    let (_, minted) =
        app.as_key(Method::POST, "/v1/session-tokens", text(&backend["key"]), new.clone()).await;
    let mine = app.mint(new).await;
    let path = "/v1/projects/app/sessions";
    let status = async |token: &str| app.as_key(Method::GET, path, token, json!({})).await.0;
    assert_eq!((status(text(&minted["token"])).await, status(text(&mine["token"])).await), (200, 200));

    let token = text(&mine["token"]);
    let [header, claims, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
    let decoded: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    let mut other = decoded.clone();
    other["sub"] = "bob".into();
    let other = URL_SAFE_NO_PAD.encode(other.to_string());
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
    let hmac = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "typ": "JWT", "kid": kid(header)}).to_string());
    for forged in [
        format!("{header}.{other}.{signature}"),
        format!("{none}.{claims}."),
        format!("{none}.{claims}.{signature}"),
        format!("{hmac}.{claims}.{signature}"),
        format!("{header}.{claims}."),
        "eyJ.eyJ.x".to_owned(),
    ] {
        assert_eq!(status(&forged).await, 401, "{forged}");
    }
    // A new key signs; the old one's tokens stay good, and everybody can check both.
    app.engine.rotate_token_key().await.unwrap();
    let newer = app.mint(json!({"project": "app", "end_user_id": "ann"})).await;
    assert_ne!(kid(text(&newer["token"])), kid(token));
    assert_eq!((status(text(&newer["token"])).await, status(token).await), (200, 200));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let jwks = client.get(format!("{}/.well-known/jwks.json", app.url)).send().await.unwrap();
    let jwks: Value = jwks.json().await.unwrap();
    let kids: Vec<_> =
        jwks["keys"].as_array().unwrap().iter().map(|key| text(&key["kid"]).to_owned()).collect();
    assert!(kids.contains(&kid(token)) && kids.contains(&kid(text(&newer["token"]))), "{jwks}");
    assert!(!jwks.to_string().contains("\"d\""), "the public halves only");

    let path = format!("/v1/session-tokens/{}", text(&mine["id"]));
    assert_eq!(app.as_key(Method::DELETE, &path, &app.key, json!({})).await.0, 204);
    assert_eq!(app.as_key(Method::DELETE, &path, &app.key, json!({})).await.0, 404);
    assert_eq!(status(token).await, 401);
    // With its key the token ends.
    let path = format!("/v1/keys/{}", text(&backend["id"]));
    assert_eq!(app.as_key(Method::DELETE, &path, &app.key, json!({})).await.0, 204);
    assert_eq!(status(text(&minted["token"])).await, 401);
    app.stop().await;
}

fn kid(token: &str) -> String {
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    header["kid"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_token_spends_no_more_than_its_cap() {
    let app = App::start(plain()).await;
    let mint = json!({"project": "app", "end_user_id": "ann", "max_cost_micros": 1000});
    let (_, minted) = app.post("/v1/session-tokens", mint.clone()).await;
    let (capped, other) = (minted["token"].as_str().unwrap(), app.post("/v1/session-tokens", mint).await.1);
    let path = "/v1/projects/app/messages";
    // Each of these costs 900.
    for status in [200, 200, 402] {
        let (answered, problem) = app.as_key(Method::POST, path, capped, json!({"text": "spend"})).await;
        assert_eq!(answered, status, "{problem}");
        if status == 402 {
            assert_eq!((&problem["level"], &problem["settled"]), (&json!("token"), &json!(1800)));
        }
    }
    // Another token of the same end user, and the key, have their own.
    let other = other["token"].as_str().unwrap();
    assert_eq!(app.as_key(Method::POST, path, other, json!({"text": "spend"})).await.0, 200);
    assert_eq!(app.post(path, json!({"text": "spend"})).await.0, 200);
    let id = minted["id"].as_str().unwrap();
    let set =
        app.call(Method::PUT, &format!("/v1/budgets/token/{id}"), json!({"cost_micros": 1_000_000})).await;
    assert_eq!(set.0, 403);
    let negative = json!({"project": "app", "end_user_id": "ann", "max_cost_micros": -1});
    assert_eq!(app.post("/v1/session-tokens", negative).await.1["pointer"], "/max_cost_micros");
    app.stop().await;
}
