//! People: invited, signed in, changed, removed; and command lines that they let in.

use karta_engine::Principal;
use karta_types::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, answer, cookie, plain};

async fn as_person(app: &App, token: &str, method: Method, path: &str, body: Value) -> (u16, Value) {
    app.as_key(method, path, token, body).await
}

#[tokio::test]
async fn an_invitation_makes_a_member_once() {
    let app = App::start(plain()).await;
    let owner = app.person(Role::Owner).await;
    let (status, me) = as_person(&app, &owner, Method::GET, "/v1/whoami", json!({})).await;
    assert_eq!((status, &me["role"], &me["principal"]["kind"]), (200, &json!("owner"), &json!("user")));
    let invite = json!({"email": " Ann@Example.com ", "role": "developer"});
    let (status, made) = as_person(&app, &owner, Method::POST, "/v1/invitations", invite).await;
    assert_eq!((status, &made["email"]), (201, &json!("ann@example.com")));
    let url = made["url"].as_str().unwrap();
    let code = url.split_once("invite=").unwrap().1;
    // Looking at the link uses nothing up: what reads mail looks at links too.
    for _ in 0..2 {
        let page = app.page(url, "").await.text().await.unwrap();
        assert!(page.contains("ann@example.com") && page.contains("developer"), "{page}");
    }
    let joined = app.form("/login/invite", &[("code", code), ("name", "<b>Ann</b>")], "").await;
    let ann = cookie(&joined, "karta_session").unwrap();
    assert!(joined.headers()["set-cookie"].to_str().unwrap().contains("HttpOnly; SameSite=Lax"));
    let again = app.form("/login/invite", &[("code", code), ("name", "Eve")], "").await;
    assert_eq!((again.status().as_u16(), cookie(&again, "karta_session")), (404, None));
    let console = app.page("/console", &format!("karta_session={ann}")).await;
    assert!(console.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
    let console = console.text().await.unwrap();
    assert!(console.contains("&lt;b&gt;Ann&lt;/b&gt;") && !console.contains("<b>Ann"), "{console}");
    // A developer runs turns and makes nobody a member.
    let (status, _) =
        as_person(&app, &ann, Method::POST, "/v1/projects/app/messages", json!({"text": "hi"})).await;
    assert_eq!(status, 200);
    let (status, _) =
        as_person(&app, &ann, Method::POST, "/v1/invitations", json!({"email": "b@c.de", "role": "viewer"}))
            .await;
    assert_eq!(status, 403);
    // Who is here is not invited again, and an invitation can be taken back.
    let twice = json!({"email": "ann@example.com", "role": "admin"});
    assert_eq!(as_person(&app, &owner, Method::POST, "/v1/invitations", twice).await.0, 400);
    let (_, made) = app.post("/v1/invitations", json!({"email": "bob@example.com", "role": "viewer"})).await;
    let id = made["id"].as_str().unwrap();
    assert_eq!(app.call(Method::DELETE, &format!("/v1/invitations/{id}"), Value::Null).await.0, 204);
    assert_eq!(app.page(made["url"].as_str().unwrap(), "").await.status(), 404);
    let audit = app.get("/v1/audit").await;
    let actions: Vec<_> =
        audit["data"].as_array().unwrap().iter().map(|row| row["action"].as_str().unwrap()).collect();
    for action in ["invitation.create", "invitation.revoke", "member.join", "sign_in.invitation"] {
        assert!(actions.contains(&action), "{action} in {actions:?}");
    }
    assert!(!audit.to_string().contains(code));
    app.stop().await;
}

#[tokio::test]
async fn nobody_rules_above_and_the_last_owner_stays() {
    let app = App::start(plain()).await;
    let owner = app.person(Role::Owner).await;
    let admin = app.person(Role::Admin).await;
    let viewer = app.person(Role::Viewer).await;
    let members = app.get("/v1/members").await;
    let id = |role: &str| {
        let rows = members["data"].as_array().unwrap();
        rows.iter().find(|row| row["role"] == role).unwrap()["id"].as_str().unwrap().to_owned()
    };
    let path = |role: &str| format!("/v1/members/{}", id(role));
    for token in [&admin, &app.key] {
        for (method, path, body) in [
            (Method::PATCH, path("owner"), json!({"role": "viewer"})),
            (Method::PATCH, path("viewer"), json!({"role": "owner"})),
            (Method::DELETE, path("owner"), json!({})),
            (Method::POST, "/v1/invitations".to_owned(), json!({"email": "x@y.zz", "role": "owner"})),
        ] {
            let (status, problem) = as_person(&app, token, method.clone(), &path, body).await;
            assert_eq!(status, 403, "{method} {path}: {problem}");
        }
    }
    for (method, path) in [
        (Method::PATCH, path("owner")),
        (Method::DELETE, path("owner")),
        (Method::POST, "/v1/members/leave".to_owned()),
    ] {
        let (status, problem) = as_person(&app, &owner, method, &path, json!({"role": "admin"})).await;
        assert_eq!((status, &problem["error"]), (409, &json!("last_owner")), "{problem}");
    }
    // Two owners who leave at once: one stays.
    assert_eq!(as_person(&app, &owner, Method::PATCH, &path("admin"), json!({"role": "owner"})).await.0, 200);
    let both = futures_util::join!(
        as_person(&app, &owner, Method::POST, "/v1/members/leave", json!({})),
        as_person(&app, &admin, Method::POST, "/v1/members/leave", json!({})),
    );
    let mut both = [both.0.0, both.1.0];
    both.sort_unstable();
    assert_eq!(both, [204, 409]);
    // Whoever is removed or changed is so at once.
    assert_eq!(as_person(&app, &viewer, Method::GET, "/v1/budgets", json!({})).await.0, 200);
    assert_eq!(app.call(Method::PATCH, &path("viewer"), json!({"role": "billing"})).await.0, 200);
    assert_eq!(as_person(&app, &viewer, Method::GET, "/v1/sessions", json!({})).await.0, 403);
    assert_eq!(app.call(Method::DELETE, &path("viewer"), Value::Null).await.0, 204);
    assert_eq!(as_person(&app, &viewer, Method::GET, "/v1/budgets", json!({})).await.0, 401);
    app.stop().await;
}

#[tokio::test]
async fn a_terminal_is_let_in_by_a_person() {
    let app = App::start(plain()).await;
    let viewer = app.person(Role::Viewer).await;
    let cookies = format!("karta_session={viewer}");
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let begin = async || answer(http.post(format!("{}/login/device", app.url)).send().await.unwrap()).await.1;
    let take = async |grant: &Value| {
        let call = http.post(format!("{}/login/device/token", app.url));
        answer(call.json(&json!({"device_code": grant["device_code"]})).send().await.unwrap()).await
    };
    let grant = begin().await;
    let code = grant["user_code"].as_str().unwrap();
    let (status, problem) = take(&grant).await;
    assert_eq!((status, &problem["reason"]), (400, &json!("authorization_pending")));
    assert_eq!(take(&grant).await.1["reason"], "slow_down");
    // Somebody who is not signed in is sent to sign in, and comes back.
    let url = grant["verification_uri_complete"].as_str().unwrap();
    let sent = app.page(url, "").await;
    assert!(sent.headers()["location"].to_str().unwrap().starts_with("/login?next=/device%3Fcode%3D"));
    let page = app.page(url, &cookies).await.text().await.unwrap();
    assert!(page.contains(code), "{page}");
    // A form from elsewhere does nothing.
    let foreign = http
        .post(format!("{}/device", app.url))
        .header("origin", "https://evil.example")
        .header("cookie", &cookies);
    assert_eq!(foreign.form(&[("code", code), ("decision", "yes")]).send().await.unwrap().status(), 403);
    let decided = app.form("/device", &[("code", &code.to_lowercase()), ("decision", "yes")], &cookies).await;
    assert_eq!(decided.status(), 200);
    let (status, access) = take(&grant).await;
    assert_eq!(status, 200, "{access}");
    let token = access["access_token"].as_str().unwrap();
    let (_, me) = app.as_key(Method::GET, "/v1/whoami", token, json!({})).await;
    assert_eq!((&me["role"], &me["scopes"]), (&json!("viewer"), &json!(["read"])));
    assert_eq!(take(&grant).await.1["reason"], "expired_token", "a code gives one token");
    assert_eq!(app.as_key(Method::POST, "/v1/whoami/sign-out", token, json!({})).await.0, 204);
    assert_eq!(app.as_key(Method::GET, "/v1/whoami", token, json!({})).await.0, 401);
    let refused = begin().await;
    app.form("/device", &[("code", refused["user_code"].as_str().unwrap()), ("decision", "no")], &cookies)
        .await;
    assert_eq!(take(&refused).await.1["reason"], "access_denied");
    app.stop().await;
}

#[tokio::test]
async fn the_first_owner_is_made_by_whoever_runs_the_server() {
    let app = App::start(plain()).await;
    let settings = app.engine.settings().clone();
    let first =
        karta_engine::control::sign_in::bootstrap(&settings, "three", "root@example.com").await.unwrap();
    let key = first.key.unwrap();
    let (_, me) = app.as_key(Method::GET, "/v1/whoami", key.expose(), json!({})).await;
    assert_eq!(me["org"]["slug"], "three");
    let code = first.code.expose().as_str();
    let page = app.page(&format!("/login?code={code}"), "").await.text().await.unwrap();
    assert!(page.contains("/login/link"), "{page}");
    let signed_in = app.form("/login/link", &[("code", code), ("next", "//evil.example")], "").await;
    assert_eq!(signed_in.headers()["location"], "/console");
    let root = cookie(&signed_in, "karta_session").unwrap();
    let (_, me) = app.as_key(Method::GET, "/v1/whoami", &root, json!({})).await;
    assert_eq!((&me["role"], &me["org"]["slug"]), (&json!("owner"), &json!("three")));
    assert_eq!(app.form("/login/link", &[("code", code)], "").await.status(), 401, "once");
    // The same again is a new link and no new key; somebody else is nobody here.
    let again =
        karta_engine::control::sign_in::bootstrap(&settings, "three", "root@example.com").await.unwrap();
    assert!(again.key.is_none());
    let other = karta_engine::control::sign_in::bootstrap(&settings, "three", "eve@example.com").await;
    assert!(other.unwrap_err().to_string().contains("invite"));
    let out = app.form("/logout", &[], &format!("karta_session={root}")).await;
    assert_eq!(cookie(&out, "karta_session").as_deref(), Some(""));
    assert_eq!(app.as_key(Method::GET, "/v1/whoami", &root, json!({})).await.0, 401);
    let org = app.engine.ensure_org("three").await.unwrap();
    let entries = app
        .engine
        .audit(&Principal::system(org), &karta_engine::control::audit::Filter::default(), None, 50)
        .await;
    let actions: Vec<_> = entries.unwrap().data.into_iter().map(|entry| entry.action).collect();
    for action in ["member.join", "key.create", "sign_in.link_made", "sign_in.link", "sign_out"] {
        assert!(actions.iter().any(|known| known == action), "{action} in {actions:?}");
    }
    app.stop().await;
}
