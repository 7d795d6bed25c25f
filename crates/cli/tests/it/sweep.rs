//! Planted secrets: everything the server wrote, logged at its most talkative, or answered is searched for them.

#![expect(clippy::panic, reason = "a test that can't go on fails")]

use std::path::Path;

use serde_json::{Value, json};

use crate::served::Served;

/// What the server is started with.
const PLANTED: [(&str, &str); 5] = [
    ("ANTHROPIC_API_KEY", "sk-ant-planted-platform-1"),
    ("OPENAI_API_KEY", "sk-planted-platform-2"),
    ("KARTA_OIDC_CLIENT_SECRET", "planted-oidc-secret-3"),
    ("KARTA_STRIPE_KEY", "sk_test_planted_4"),
    ("KARTA_STRIPE_WEBHOOK_SECRET", "whsec_planted_5"),
];
/// What callers bring.
const OWN: &str = "sk-ant-planted-own-6";
const WRONG: &str = "kt_live_planted0wrong0key0planted0wrong0key0";
const MESSAGE: &str = "planted words of a person 7";

fn text_of<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("no `{name}` in {value}"))
}

/// Every file under a folder that holds one of these.
fn holding(folder: &Path, secrets: &[String], found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            holding(&path, secrets, found);
            continue;
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        for secret in secrets {
            if bytes.windows(secret.len()).any(|part| part == secret.as_bytes()) {
                found.push(format!("`{secret}` in {}", path.display()));
            }
        }
    }
}

#[tokio::test]
async fn no_planted_secret_is_in_a_file_a_log_or_an_answer() {
    let home = tempfile::tempdir().unwrap();
    let settings = "public_url = \"http://karta.test\"\n[oidc]\nissuer = \"http://127.0.0.1:9\"\nclient_id = \"karta\"\n\
                    [billing.stripe]\nplans = { team = \"price_1\" }\nusage_price = \"price_2\"\nbase_url = \"http://127.0.0.1:9\"\n";
    let env = PLANTED.iter().copied().chain([("KARTA_LOG", "trace")]);
    let app = home.path().join("app");
    let args = ["serve", app.to_str().unwrap()];
    let mut server = Served::start_with_env(home.path(), "data", settings, &args, env).await;

    // Secrets that are shown once: each is in its one answer and nowhere else.
    let mut shown = Vec::new();
    let mut answers = Vec::new();
    let body = json!({"name": "swept", "scopes": ["read", "write", "admin"]});
    let (_, key) = server.call("POST", "/v1/keys", &body).await;
    shown.push(text_of(&key, "key").to_owned());
    let rotate = format!("/v1/keys/{}/rotate", text_of(&key, "id"));
    shown.push(text_of(&server.call("POST", &rotate, &json!({})).await.1, "key").to_owned());
    let mint = json!({"project": "app", "end_user_id": "ann"});
    shown.push(text_of(&server.call("POST", "/v1/session-tokens", &mint).await.1, "token").to_owned());
    let hook = json!({"url": "https://hook.example.com/", "events": ["key.revoked"]});
    let (_, hook) = server.call("POST", "/v1/webhook-endpoints", &hook).await;
    shown.push(text_of(&hook, "secret").to_owned());
    let invite = json!({"email": "ann@example.com", "role": "developer"});
    let (_, invited) = server.call("POST", "/v1/invitations", &invite).await;
    shown.push(text_of(&invited, "url").split_once("invite=").unwrap().1.to_owned());
    let made = server.run(&["admin", "bootstrap", "--email", "root@example.com", "--json"]).await;
    let made: Value = serde_json::from_str(&made.out).unwrap();
    let code = text_of(&made, "link").split_once("code=").unwrap().1.to_owned();
    shown.push(code.clone());
    shown.push(text_of(&made, "key").to_owned());
    let form = [("code", code.as_str())];
    let signed_in = server.http.post(format!("{}/login/link", server.url)).form(&form).send().await.unwrap();
    let cookie = signed_in.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    shown.push(cookie.split_once('=').unwrap().1.to_owned());

    // What callers bring is kept sealed or not at all, also when it is wrong or fails on its way.
    let steps = [
        ("PUT", "/v1/provider-keys/anthropic", json!({"key": OWN})),
        ("PUT", "/v1/provider-keys/nobody", json!({"key": OWN})),
        ("POST", "/v1/projects/app/messages", json!({"text": MESSAGE})),
        ("POST", "/v1/projects/app/messages", json!({"text": MESSAGE, "nonsense": OWN})),
        ("POST", "/v1/billing/checkout", json!({"plan": "team"})),
        ("GET", "/v1/provider-keys", json!({})),
        ("GET", "/v1/keys", json!({})),
        ("GET", "/v1/webhook-endpoints", json!({})),
        ("GET", "/v1/invitations", json!({})),
        ("GET", "/v1/audit?limit=200", json!({})),
        ("GET", "/v1/audit/export", json!({})),
        ("GET", "/v1/usage/export", json!({})),
        ("GET", "/v1/members", json!({})),
        ("GET", "/v1/billing", json!({})),
        ("GET", "/login/oidc", json!({})),
        ("GET", "/metrics", json!({})),
        ("GET", "/readyz", json!({})),
    ];
    for (method, path, body) in &steps {
        answers.push(server.call(method, path, body).await.1.to_string());
    }
    let wrong = server.http.get(format!("{}/v1/keys", server.url)).bearer_auth(WRONG).send().await.unwrap();
    answers.push(wrong.text().await.unwrap());
    let paid = server.http.post(format!("{}/v1/billing/checkout", server.url)).bearer_auth(&shown[7]);
    let paid = paid.json(&json!({"plan": "team"})).send().await.unwrap();
    assert_eq!(paid.status(), 500, "nobody answers in Stripe's place");
    answers.push(paid.text().await.unwrap());

    server.kill().await;
    let mut secrets: Vec<String> = PLANTED.iter().map(|(_, secret)| (*secret).to_owned()).collect();
    secrets.extend([OWN, WRONG].map(str::to_owned));
    secrets.extend(shown);
    for answer in &answers {
        let told: Vec<_> = secrets.iter().filter(|secret| answer.contains(secret.as_str())).collect();
        assert!(told.is_empty(), "{told:?} in an answer: {answer}");
    }
    let mut found = Vec::new();
    // What a person said is sealed too, and in no log.
    secrets.push(MESSAGE.to_owned());
    holding(home.path(), &secrets, &mut found);
    assert!(found.is_empty(), "{found:#?}");
    // The search finds what is there: the address in the settings, and the failure in the log.
    let log = std::fs::read_to_string(home.path().join("data.log")).unwrap();
    assert!(log.contains("a request failed") && log.contains("asking Stripe"), "{log}");
    holding(home.path(), &["karta.test".to_owned()], &mut found);
    assert!(!found.is_empty());
}
