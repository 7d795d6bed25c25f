//! Who may: every route without a key, with a foreign one, with too narrow a one.

use karta_types::scope::Scope;
use karta_types::{Permission, Role};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, answer, plain};

/// Every route that needs a credential: method, path, and the permission it needs. A test holds it against the API's description.
const ROUTES: &[(&str, &str, &str)] = &[
    ("GET", "/v1/whoami", "whoami.read"),
    ("POST", "/v1/whoami/sign-out", "whoami.read"),
    ("GET", "/v1/members", "members.read"),
    ("POST", "/v1/members/leave", "members.read"),
    ("GET", "/v1/members/{member}", "members.read"),
    ("PATCH", "/v1/members/{member}", "members.write"),
    ("DELETE", "/v1/members/{member}", "members.write"),
    ("GET", "/v1/invitations", "members.read"),
    ("POST", "/v1/invitations", "members.write"),
    ("DELETE", "/v1/invitations/{invitation}", "members.write"),
    ("GET", "/v1/usage", "usage.read"),
    ("GET", "/v1/usage/export", "usage.read"),
    ("GET", "/v1/inputs", "sessions.read"),
    ("GET", "/v1/projects", "projects.read"),
    ("POST", "/v1/projects", "releases.deploy"),
    ("GET", "/v1/projects/{project}", "projects.read"),
    ("PATCH", "/v1/projects/{project}", "releases.deploy"),
    ("DELETE", "/v1/projects/{project}", "releases.activate"),
    ("GET", "/v1/projects/{project}/logs", "sessions.read"),
    ("GET", "/v1/projects/{project}/previews", "projects.read"),
    ("DELETE", "/v1/projects/{project}/previews/{preview}", "releases.deploy"),
    ("POST", "/v1/projects/{project}/releases", "releases.deploy"),
    ("POST", "/v1/projects/{project}/releases/missing", "releases.deploy"),
    ("GET", "/v1/projects/{project}/releases/{version}/archive", "projects.read"),
    ("DELETE", "/v1/projects/{project}/releases/{version}", "releases.activate"),
    ("GET", "/v1/projects/{project}/releases/{version}/diff/{other}", "projects.read"),
    ("POST", "/v1/projects/{project}/canary/promote", "releases.activate"),
    ("POST", "/v1/projects/{project}/canary/abort", "releases.activate"),
    ("GET", "/v1/projects/{project}/releases", "projects.read"),
    ("GET", "/v1/projects/{project}/releases/{version}", "projects.read"),
    ("GET", "/v1/projects/{project}/activations", "projects.read"),
    ("POST", "/v1/projects/{project}/releases/{version}/activate", "releases.activate"),
    ("POST", "/v1/projects/{project}/rollback", "releases.activate"),
    ("POST", "/v1/projects/{project}/messages", "sessions.write"),
    ("GET", "/v1/sessions", "sessions.read"),
    ("POST", "/v1/sessions", "sessions.write"),
    ("GET", "/v1/projects/{project}/sessions", "sessions.read"),
    ("POST", "/v1/projects/{project}/sessions", "sessions.write"),
    ("GET", "/v1/sessions/{session}", "sessions.read"),
    ("PATCH", "/v1/sessions/{session}", "sessions.write"),
    ("DELETE", "/v1/sessions/{session}", "sessions.write"),
    ("GET", "/v1/sessions/{session}/events", "sessions.read"),
    ("GET", "/v1/sessions/{session}/egress", "sessions.read"),
    ("GET", "/v1/sessions/{session}/history", "sessions.read"),
    ("GET", "/v1/sessions/{session}/inputs", "sessions.read"),
    ("PUT", "/v1/sessions/{session}/inputs/{request}", "sessions.write"),
    ("POST", "/v1/sessions/{session}/interrupt", "sessions.write"),
    ("POST", "/v1/sessions/{session}/messages", "sessions.write"),
    ("GET", "/v1/sessions/{session}/turns", "sessions.read"),
    ("GET", "/v1/sessions/{session}/turns/{turn}", "sessions.read"),
    ("GET", "/v1/audit", "audit.read"),
    ("GET", "/v1/audit/export", "audit.read"),
    ("GET", "/v1/audit/verify", "audit.read"),
    ("GET", "/v1/budgets", "budgets.read"),
    ("PUT", "/v1/budgets/{level}/{id}", "budgets.write"),
    ("DELETE", "/v1/budgets/{level}/{id}", "budgets.write"),
    ("GET", "/v1/provider-keys", "provider_keys.read"),
    ("PUT", "/v1/provider-keys/{provider}", "provider_keys.write"),
    ("DELETE", "/v1/provider-keys/{provider}", "provider_keys.write"),
    ("GET", "/v1/policy", "policy.read"),
    ("PUT", "/v1/policy", "policy.write"),
    ("GET", "/v1/projects/{project}/secrets", "secrets.read"),
    ("PUT", "/v1/projects/{project}/secrets/{name}", "secrets.write"),
    ("DELETE", "/v1/projects/{project}/secrets/{name}", "secrets.write"),
    ("POST", "/v1/session-tokens", "session_tokens.write"),
    ("DELETE", "/v1/session-tokens/{token}", "session_tokens.write"),
    ("GET", "/v1/webhook-endpoints", "webhooks.read"),
    ("POST", "/v1/webhook-endpoints", "webhooks.write"),
    ("GET", "/v1/webhook-endpoints/{endpoint}", "webhooks.read"),
    ("PATCH", "/v1/webhook-endpoints/{endpoint}", "webhooks.write"),
    ("DELETE", "/v1/webhook-endpoints/{endpoint}", "webhooks.write"),
    ("POST", "/v1/webhook-endpoints/{endpoint}/rotate-secret", "webhooks.write"),
    ("GET", "/v1/webhook-endpoints/{endpoint}/deliveries", "webhooks.read"),
    ("POST", "/v1/webhook-endpoints/{endpoint}/deliveries/{delivery}/redeliver", "webhooks.write"),
    ("POST", "/v1/webhook-endpoints/{endpoint}/redeliver", "webhooks.write"),
    ("GET", "/v1/billing", "billing.read"),
    ("GET", "/v1/billing/credit", "billing.read"),
    ("POST", "/v1/billing/checkout", "billing.write"),
    ("GET", "/v1/billing/statements/{month}", "billing.read"),
    ("GET", "/v1/keys", "keys.read"),
    ("POST", "/v1/keys", "keys.write"),
    ("GET", "/v1/keys/{key}", "keys.read"),
    ("DELETE", "/v1/keys/{key}", "keys.write"),
    ("POST", "/v1/keys/{key}/rotate", "keys.write"),
];

fn described() -> Vec<(String, String)> {
    let document: Value = serde_json::from_str(&karta_server::openapi::document()).unwrap();
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys().filter(|method| method.len() <= 6) {
            routes.push((method.to_uppercase(), path.clone()));
        }
    }
    routes
}

/// The routes, those under a session twice: flat and under the project.
fn all() -> Vec<(Method, String, &'static str)> {
    let mut all = Vec::new();
    for (method, path, needs) in ROUTES {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        all.push((method.clone(), (*path).to_owned(), *needs));
        if let Some(rest) = path.strip_prefix("/v1/sessions/{session}") {
            all.push((method, format!("/v1/projects/{{project}}/sessions/{{session}}{rest}"), *needs));
        }
    }
    all
}

#[test]
fn no_route_is_forgotten() {
    let known: Vec<_> = all().into_iter().map(|(method, path, _)| (method.to_string(), path)).collect();
    for route in described() {
        assert!(known.contains(&route), "{route:?} is not walked");
    }
    assert_eq!(known.len(), described().len());
}

fn body(path: &str) -> Value {
    match path.rsplit('/').next().unwrap() {
        "messages" => json!({"text": "hello"}),
        "projects" => json!({"slug": "walked"}),
        "{project}" => json!({"name": "walked"}),
        "missing" => json!({"hashes": []}),
        "sessions" if path.starts_with("/v1/sessions") => json!({"project": "app"}),
        "session-tokens" => json!({"project": "app", "end_user_id": "ann"}),
        "{provider}" => json!({"key": "sk-foreign-0123456789"}),
        "{id}" => json!({"cost_micros": 1}),
        "{name}" => json!({"value": "foreign-0123456789"}),
        "keys" => json!({"name": "foreign", "scopes": ["read"]}),
        "invitations" => json!({"email": "walker@example.com", "role": "viewer"}),
        "webhook-endpoints" => json!({"url": "https://hook.example.com/"}),
        "redeliver" if !path.contains("deliveries") => json!({"since": "2026-01-01T00:00:00Z"}),
        "checkout" => json!({"plan": "team"}),
        "{member}" => json!({"role": "viewer"}),
        "{request}" => json!({"decision": "deny"}),
        _ => json!({}),
    }
}

#[tokio::test]
async fn every_route_asks_who_and_foreign_is_not_found() {
    let app = App::start(plain()).await;
    let (_, waiting) = app.post("/v1/projects/app/messages", json!({"text": "ask"})).await;
    let session = waiting["session_id"].as_str().unwrap();
    let turn = waiting["turn_id"].as_str().unwrap();
    let request = waiting["pending_inputs"][0]["request_id"].as_str().unwrap();
    let project = app.get("/v1/projects/app").await["id"].as_str().unwrap().to_owned();
    let foreign = app.foreign_key().await;
    let reader = app.key_with("read").await;
    let writer = app.key_with("write").await;
    let both = app.key_with("read,write").await;
    let (_, made) = app.post("/v1/keys", json!({"name": "walked", "scopes": ["read"]})).await;
    let key = made["id"].as_str().unwrap();
    let (_, minted) = app.post("/v1/session-tokens", json!({"project": "app", "end_user_id": "ann"})).await;
    let token = minted["id"].as_str().unwrap();
    let mut people = Vec::new();
    for role in Role::ALL {
        people.push((role, app.person(role).await));
    }
    let member = app.get("/v1/members").await["data"][0]["id"].as_str().unwrap().to_owned();
    let (_, invited) =
        app.post("/v1/invitations", json!({"email": "late@example.com", "role": "viewer"})).await;
    let invitation = invited["id"].as_str().unwrap();
    let hook = json!({"url": "https://hook.example.com/", "events": ["member.removed"]});
    let (_, hook) = app.post("/v1/webhook-endpoints", hook).await;
    let endpoint = hook["id"].as_str().unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (method, path, needs) in all() {
        let filled = path
            .replace("{project}", &project)
            .replace("{session}", session)
            .replace("{turn}", turn)
            .replace("{request}", request)
            .replace("{key}", key)
            .replace("{token}", token)
            .replace("{month}", "1999-13")
            .replace("{endpoint}", endpoint)
            .replace("{delivery}", "whd_00000000000000000000000000")
            .replace("{member}", &member)
            .replace("{invitation}", invitation)
            .replace("{provider}", "nobody")
            .replace("{level}", "session")
            .replace("{id}", session)
            .replace("{preview}", "walked")
            .replace("{other}", "1")
            .replace("{version}", "1");
        let send = |key: Option<&str>| {
            let mut call = client.request(method.clone(), format!("{}{filled}", app.url));
            if method != Method::GET && method != Method::DELETE {
                call = call.json(&body(&path));
            }
            match key {
                Some(key) => call.bearer_auth(key),
                None => call,
            }
            .send()
        };
        // The last character is another one, whichever it was.
        let (kept, last) = app.key.split_at(app.key.len() - 1);
        let mangled = format!("{kept}{}", if last == "x" { "y" } else { "x" });
        for key in [None, Some("kt_live_nonsense"), Some(mangled.as_str()), Some("")] {
            let (status, problem) = answer(send(key).await.unwrap()).await;
            assert_eq!((status, &problem["error"]), (401, &json!("unauthorized")), "{method} {path} {key:?}");
        }
        let permission = Permission::find(needs).unwrap();
        let narrow = match permission.scope {
            Some(Scope::Read) => &writer,
            Some(Scope::Write) => &reader,
            Some(Scope::Admin) => &both,
            None => &app.key,
        };
        let beyond = people.iter().filter(|(role, _)| !permission.is_of(*role));
        for key in beyond.map(|(_, token)| token).chain([narrow]) {
            let (status, problem) = answer(send(Some(key)).await.unwrap()).await;
            assert_eq!((status, &problem["error"]), (403, &json!("forbidden")), "{method} {path}: {problem}");
        }
        let names_something = path.contains('{');
        if names_something {
            let (status, problem) = answer(send(Some(&foreign)).await.unwrap()).await;
            assert_eq!((status, &problem["error"]), (404, &json!("not_found")), "{method} {path}: {problem}");
        }
    }
    // A key for one project, whatever its scopes: nothing of the whole organisation.
    let wanted = json!({"name": "one project", "scopes": ["read", "write", "admin"], "project": "app"});
    let (_, made) = app.post("/v1/keys", wanted).await;
    let of_project = made["key"].as_str().unwrap();
    for (method, path, needs) in all() {
        let (whole, filled) = (Permission::find(needs).unwrap().whole, path.replace("{member}", &member));
        if whole {
            let filled = filled.replace("{provider}", "openai").replace("{endpoint}", endpoint);
            let (status, problem) = app.as_key(method.clone(), &filled, of_project, body(&path)).await;
            assert_eq!((status, &problem["error"]), (403, &json!("forbidden")), "{method} {path}: {problem}");
        }
    }
    let client_of_two =
        client.get(format!("{}/v1/sessions", app.url)).bearer_auth(&foreign).send().await.unwrap();
    assert!(answer(client_of_two).await.1["data"].as_array().unwrap().is_empty());
    let inputs = client.get(format!("{}/v1/inputs", app.url)).bearer_auth(&foreign).send().await.unwrap();
    assert!(answer(inputs).await.1["data"].as_array().unwrap().is_empty());
    // The foreign calls changed nothing.
    assert_eq!(app.get(&format!("/v1/sessions/{session}")).await["status"], "waiting");
    let who = app.get("/v1/whoami").await;
    assert_eq!((&who["org"]["slug"], &who["scopes"]), (&json!("one"), &json!(["read", "write", "admin"])));
    app.stop().await;
}
