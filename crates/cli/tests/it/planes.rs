//! The two planes as two processes on one PostgreSQL, one of them killed and brought back. Needs a PostgreSQL, so it is ignored unless
//! asked for; `./test` starts one and says where by `KARTA_TEST_POSTGRES`.

#![expect(clippy::panic, reason = "a test that can't go on fails")]

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};

use crate::run::{karta, run};
use crate::served::{PATIENCE, Served};

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Asks again and again until the answer is as wanted.
async fn until(server: &Served, method: &str, path: &str, wanted: impl Fn(u16, &Value) -> bool) -> Value {
    let ask = async {
        loop {
            let (status, answer) = server.call(method, path, &json!({})).await;
            if wanted(status, &answer) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ask).await.unwrap_or_else(|_| panic!("{method} {path} is never as wanted"))
}

struct Planes {
    control_settings: String,
    data_settings: String,
    database: String,
    as_data: String,
}

impl Planes {
    fn new(home: &Path, server: &str) -> Self {
        let name = home.file_name().unwrap().as_encoded_bytes().iter();
        let name = name.fold(String::new(), |name, byte| format!("{name}{byte:02x}"));
        let (listen, authority) = (free_port(), free_port());
        let database = format!("{server}/planes_{name}");
        let as_data = database.replacen("karta@", &format!("data_{name}@"), 1);
        let control_settings = format!(
            "listen = \"127.0.0.1:{listen}\"\nplane = \"control\"\ndatabase = \"{database}\"\n\
             [authority]\nlisten = \"127.0.0.1:{authority}\"\n"
        );
        let tokens = home.join("data-tokens");
        let data_settings = format!(
            "listen = \"127.0.0.1:0\"\nplane = \"data\"\ndatabase = \"{as_data}\"\n\
             [authority]\nurl = \"http://127.0.0.1:{authority}\"\ntokens = \"{}\"\n",
            tokens.display()
        );
        Self { control_settings, data_settings, database, as_data }
    }

    async fn control(&self, home: &Path) -> Served {
        Served::start_as(home, "control", &self.control_settings, &["serve"]).await
    }

    async fn data(&self, home: &Path) -> Served {
        let app = home.join("app");
        Served::start_as(home, "data", &self.data_settings, &["serve", app.to_str().unwrap()]).await
    }

    /// Makes the data plane's role with the rights that the command prints.
    async fn grant(&self) {
        let role = self.as_data.split_once("://").unwrap().1.split('@').next().unwrap();
        let printed = run(karta(&["admin", "grants", role]), "").await;
        let mut connection = PgConnection::connect(&self.database).await.unwrap();
        connection.execute(AssertSqlSafe(format!("CREATE ROLE {role} LOGIN"))).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(printed.out)).execute(&mut connection).await.unwrap();
    }
}

/// The tables that the data plane's role can read, and those it can't.
async fn rights(planes: &Planes) -> (Vec<String>, Vec<String>) {
    let mut admin = PgConnection::connect(&planes.database).await.unwrap();
    let mut data = PgConnection::connect(&planes.as_data).await.unwrap();
    let tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename";
    let (mut can, mut can_not) = (Vec::new(), Vec::new());
    for row in admin.fetch_all(tables).await.unwrap() {
        let table: String = row.get(0);
        let read = data.execute(AssertSqlSafe(format!("SELECT * FROM {table} LIMIT 1"))).await;
        if read.is_ok() { can.push(table) } else { can_not.push(table) }
    }
    (can, can_not)
}

#[tokio::test]
#[ignore = "needs a PostgreSQL: ./test starts one"]
async fn the_data_plane_lives_through_the_end_of_the_control_plane() {
    let server = std::env::var("KARTA_TEST_POSTGRES").expect("`scripts/with-postgres` says where it is");
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let planes = Planes::new(home, &server);
    let mut control = planes.control(home).await;
    planes.grant().await;
    std::fs::copy(home.join("control/service-tokens"), home.join("data-tokens")).unwrap();
    let mut data = planes.data(home).await;
    data.key.clone_from(&control.key);

    // Each has its own routes, and the data plane neither keys nor rights.
    assert_eq!(data.call("GET", "/v1/keys", &json!({})).await.0, 404);
    assert_eq!(control.call("GET", "/v1/sessions", &json!({})).await.0, 404);
    assert!(home.join("control/keys/kek").exists() && !home.join("data/keys/kek").exists());
    let (can, can_not) = rights(&planes).await;
    assert_eq!(
        can,
        [
            "build_line",
            "checkpoint",
            "content",
            "input",
            "journal",
            "layer",
            "migration",
            "project",
            "project_release",
            "release_activation",
            "reply",
            "session",
            "session_label",
            "state_key",
            "turn"
        ]
    );
    for table in [
        "api_key",
        "audit",
        "budget",
        "hold",
        "usage_event",
        "provider_key",
        "tool_secret",
        "org_policy",
        "member",
        "endpoint_secret",
        "handover",
    ] {
        assert!(can_not.iter().any(|known| known == table), "{table}");
    }

    // Releases are published to it, with what that tells the control plane.
    let app = home.join("app");
    let mut archive = Vec::new();
    karta_release::archive::pack(&app, &karta_release::Files::read(&app).unwrap(), None, &mut archive)
        .unwrap();
    for path in ["shop/releases", "shop/releases?preview=x"] {
        let call = data.http.post(format!("{}/v1/projects/{path}", data.url)).bearer_auth(&data.key);
        let answer = call.body(archive.clone()).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {:?}", answer.text().await);
    }
    let told = async {
        loop {
            let (_, page) = control.call("GET", "/v1/audit?action=preview.publish", &json!({})).await;
            if page["data"].as_array().is_some_and(|rows| !rows.is_empty()) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("the control plane takes it over");
    assert_eq!(data.call("DELETE", "/v1/projects/shop", &json!({})).await.0, 204);

    // Without a service token nobody asks the control plane anything, and garbage with one is no answer either.
    let door = planes.data_settings.split_once("url = \"").unwrap().1.split('"').next().unwrap().to_owned();
    let token = std::fs::read_to_string(home.join("data-tokens")).unwrap().trim().to_owned();
    for question in [
        "authenticate",
        "admit",
        "reserve",
        "settle",
        "credential",
        "secrets",
        "policy",
        "used",
        "org",
        "origins",
        "renew",
    ] {
        let ask = || data.http.post(format!("{door}/authority/v1/{question}"));
        for shown in [None, Some(""), Some("kt_service_guess"), Some(data.key.as_str())] {
            let asked = match shown {
                Some(shown) => ask().bearer_auth(shown),
                None => ask(),
            };
            assert_eq!(asked.json(&json!({})).send().await.unwrap().status(), 403, "{question} {shown:?}");
        }
        for garbage in ["", "{", "[]", "{\"want\": 1}", "\u{0}"] {
            let asked = ask().bearer_auth(&token).header("content-type", "application/json").body(garbage);
            let status = asked.send().await.unwrap().status();
            // A question without content is what it is, also when it comes as an empty list.
            let empty = question == "origins" && matches!(garbage, "[]" | "{\"want\": 1}");
            assert!(status.is_client_error() || empty, "{question} {garbage:?}: {status}");
        }
    }

    // Secrets are set there alone, and what is demanded there holds here.
    let (path, secret) = ("/v1/projects/app/secrets/SHOP_KEY", json!({"value": "planted-0123456789"}));
    assert_eq!(data.call("PUT", path, &secret).await.0, 404);
    assert_eq!(control.call("PUT", path, &secret).await.0, 200);
    let session = json!({"project": "app"});
    assert_eq!(control.call("PUT", "/v1/policy", &json!({"isolation": "microvm"})).await.0, 200);
    let (status, problem) = data.call("POST", "/v1/sessions", &session).await;
    assert_eq!((status, &problem["error"]), (503, &json!("isolation_unavailable")), "{problem}");
    assert_eq!(control.call("PUT", "/v1/policy", &json!({})).await.0, 200);
    let (status, made) = data.call("POST", "/v1/sessions", &session).await;
    assert_eq!(status, 201, "{made}");
    let path = format!("/v1/sessions/{}", made["id"].as_str().unwrap());
    assert_eq!(data.call("DELETE", &path, &json!({})).await.0, 204);

    // A turn here is counted there, and what happens here is in the log there.
    let message = json!({"text": "hello"});
    let (status, answer) = data.call("POST", "/v1/projects/app/messages", &message).await;
    assert_eq!((status, &answer["text"]), (200, &json!("hello")), "{answer}");
    let usage = until(&control, "GET", "/v1/usage", |_, usage| usage["data"][0]["turns"] == 1).await;
    assert_eq!(usage["data"][0]["cost_micros"], 900);
    let first = answer["session_id"].as_str().unwrap().to_owned();
    let (_, key) = control.call("POST", "/v1/keys", &json!({"name": "short", "scopes": ["read"]})).await;
    data.key = key["key"].as_str().unwrap().to_owned();
    assert_eq!(data.call("GET", "/v1/sessions", &json!({})).await.0, 200);
    control.call("DELETE", &format!("/v1/keys/{}", key["id"].as_str().unwrap()), &json!({})).await;
    until(&data, "GET", "/v1/sessions", |status, _| status == 401).await;
    data.key.clone_from(&control.key);
    // What can't be read stops nothing that comes after it.
    let mut as_data = PgConnection::connect(&planes.as_data).await.unwrap();
    let nonsense =
        "INSERT INTO handover (id, org, kind, body, at) VALUES ('audit:x', 'org', 'audit', '{', 0)";
    as_data.execute(nonsense).await.unwrap();
    assert_eq!(data.call("DELETE", &format!("/v1/sessions/{first}"), &json!({})).await.0, 204);
    let erased = |_: u16, log: &Value| log.to_string().contains("session.erase");
    until(&control, "GET", "/v1/audit?action=session.erase", erased).await;

    // The control plane goes while a turn waits for a person: the turn goes on, and nothing new begins.
    let (_, waiting) = data.call("POST", "/v1/projects/app/messages", &json!({"text": "ask"})).await;
    let session = waiting["session_id"].as_str().unwrap().to_owned();
    let request = waiting["pending_inputs"][0]["request_id"].as_str().unwrap().to_owned();
    control.kill().await;
    let answer = json!({"decision": "approve_once"});
    let path = format!("/v1/sessions/{session}/inputs/{request}");
    let (status, resolved) = data.call("PUT", &path, &answer).await;
    assert_eq!(status, 200, "a known principal goes on for a while: {resolved}");
    let (status, refused) = data.call("POST", "/v1/projects/app/messages", &message).await;
    assert_eq!((status, &refused["error"]), (503, &json!("overloaded")), "{refused}");
    let session = format!("/v1/sessions/{session}");
    let gone = until(&data, "GET", &session, |status, _| status == 503).await;
    assert!(gone["detail"].as_str().unwrap().contains("control plane"), "{gone}");

    // It comes back: everything goes on, and what the turn used meanwhile is counted once.
    let control = planes.control(home).await;
    let idle =
        until(&data, "GET", &session, |status, session| status == 200 && session["status"] == "idle").await;
    assert_eq!(idle["usage"]["output_tokens"], 70);
    let usage = until(&control, "GET", "/v1/usage", |_, usage| usage["data"][0]["turns"] == 2).await;
    assert_eq!(usage["data"][0]["cost_micros"], 900 + 1200);
    until(&control, "GET", "/v1/audit?action=input.resolve", |_, log| {
        log.to_string().contains("input.resolve")
    })
    .await;
    let (_, verdict) = control.call("GET", "/v1/audit/verify", &json!({})).await;
    assert_eq!(verdict["intact"], true, "{verdict}");
    assert_eq!(data.call("POST", "/v1/projects/app/messages", &message).await.0, 200);

    // Service tokens change without a restart; a wrong one reaches nobody.
    let (there, here) = (home.join("control/service-tokens"), home.join("data-tokens"));
    let old = std::fs::read_to_string(&there).unwrap();
    std::fs::write(&here, "kt_service_wrong\n").unwrap();
    until(&data, "GET", "/readyz", |status, _| status == 503).await;
    std::fs::write(&there, format!("{old}kt_service_new\n")).unwrap();
    std::fs::write(&here, "kt_service_new\n").unwrap();
    until(&data, "GET", "/readyz", |status, _| status == 200).await;
    std::fs::write(&there, "kt_service_new\n").unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(data.call("POST", "/v1/projects/app/messages", &message).await.0, 200);
}

#[tokio::test]
#[ignore = "needs a PostgreSQL: ./test starts one"]
async fn the_audit_log_is_kept_on_postgresql_too() {
    let server = std::env::var("KARTA_TEST_POSTGRES").expect("`scripts/with-postgres` says where it is");
    let home = tempfile::tempdir().unwrap();
    let planes = Planes::new(home.path(), &server);
    let settings = format!("database = \"{}\"\n", planes.database);
    let server = Served::start(home.path(), &settings).await;
    for name in ["one", "two", "three"] {
        let (status, _) = server.call("POST", "/v1/keys", &json!({"name": name, "scopes": ["read"]})).await;
        assert_eq!(status, 201);
    }
    let verify = async || server.call("GET", "/v1/audit/verify", &json!({})).await.1;
    assert_eq!(verify().await["intact"], true);
    let mut database = PgConnection::connect(&planes.database).await.unwrap();
    // As it is, the database refuses, its owner too.
    for statement in [
        "UPDATE audit SET actor = 'x'",
        "DELETE FROM audit",
        "TRUNCATE audit",
        "UPDATE audit_seal SET at = 0",
        "TRUNCATE audit_seal",
    ] {
        let refused = database.execute(statement).await;
        // A statement that touches no row starts no trigger for rows.
        let none = refused.as_ref().is_ok_and(|done| done.rows_affected() == 0)
            && statement.starts_with("UPDATE audit_seal");
        assert!(refused.is_err() || none, "{statement}");
    }
    // Whoever takes the triggers away is found out by the chain.
    for (attack, row) in
        [("UPDATE audit SET actor = 'key:somebody' WHERE seq = 2", 2), ("DELETE FROM audit WHERE seq = 3", 3)]
    {
        let attack =
            format!("ALTER TABLE audit DISABLE TRIGGER ALL; {attack}; ALTER TABLE audit ENABLE TRIGGER ALL");
        sqlx::raw_sql(AssertSqlSafe(attack)).execute(&mut database).await.unwrap();
        let verdict = verify().await;
        let faults = verdict["faults"].as_array().unwrap();
        assert!(verdict["intact"] == false && faults.iter().any(|fault| fault["seq"] == row), "{verdict}");
    }
}

/// Reads an event stream on until it holds this.
async fn read_until(stream: &mut reqwest::Response, seen: &mut String, wanted: &str) {
    let read = async {
        while !seen.contains(wanted) {
            let chunk = stream.chunk().await.unwrap();
            let chunk = chunk.unwrap_or_else(|| panic!("the stream ended before `{wanted}`: {seen}"));
            seen.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    };
    let done = tokio::time::timeout(PATIENCE, read).await;
    assert!(done.is_ok(), "`{wanted}` does not come");
}

#[tokio::test]
#[ignore = "needs a PostgreSQL and the real harnesses: ./test has them"]
async fn a_call_that_was_granted_finishes_and_the_next_waits_for_the_control_plane() {
    let server = std::env::var("KARTA_TEST_POSTGRES").expect("`scripts/with-postgres` says where it is");
    let harnesses = std::env::var_os("KARTA_TEST_HARNESSES").expect("`./test` says where they are");
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let model = karta_model::Server::start(karta_model::Options::default()).await.unwrap();
    let mut planes = Planes::new(home, &server);
    let provider =
        format!("[providers.anthropic]\nkey = \"sk-planes\"\nbase_url = \"{}\"\n", model.base_url());
    planes.data_settings.push_str(&provider);
    let mut control = planes.control(home).await;
    planes.grant().await;
    std::fs::copy(home.join("control/service-tokens"), home.join("data-tokens")).unwrap();
    std::fs::create_dir_all(home.join("data")).unwrap();
    std::os::unix::fs::symlink(harnesses, home.join("data/harnesses")).unwrap();
    let folder = home.join("claude");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("CLAUDE.md"), "# An app\n").unwrap();
    let args = ["serve", folder.to_str().unwrap()];
    let mut data = Served::start_as(home, "data", &planes.data_settings, &args).await;
    data.key.clone_from(&control.key);
    let (_, me) = control.call("GET", "/v1/whoami", &json!({})).await;
    let cap = format!("/v1/budgets/org/{}", me["org"]["id"].as_str().unwrap());
    assert_eq!(control.call("PUT", &cap, &json!({"cost_micros": 100_000_000})).await.0, 200);

    // Two calls of the model: the first speaks slowly, and while it does the control plane goes.
    let script = r#"go SCRIPT: [{"text": "one two three four five six seven eight", "chunk_delay_ms": 300, "tool": "Read",
        "input": {"file_path": "CLAUDE.md"}, "usage": {"input_tokens": 1000, "output_tokens": 100}},
        {"text": "the end of it", "usage": {"input_tokens": 2000, "output_tokens": 200}}]"#;
    let call = data.http.post(format!("{}/v1/projects/claude/messages", data.url)).bearer_auth(&data.key);
    let mut stream = call.json(&json!({"text": script, "stream": true})).send().await.unwrap();
    let mut seen = String::new();
    read_until(&mut stream, &mut seen, "event: text").await;
    control.kill().await;
    // The call that was granted goes on to its end; the next is not let out.
    read_until(&mut stream, &mut seen, "event: tool_result").await;
    assert!(!seen.contains("event: done"), "{seen}");
    let control = planes.control(home).await;
    read_until(&mut stream, &mut seen, "event: done").await;
    assert!(seen.contains("\"status\":\"completed\"") && seen.contains("the end of it"), "{seen}");

    // Everything is counted, once, and nothing is set aside any more.
    let settled = |_: u16, budgets: &Value| {
        let budget = &budgets["data"][0];
        budget["reserved"]["cost_micros"] == 0 && budget["settled"]["cost_micros"].as_i64() > Some(0)
    };
    let budgets = until(&control, "GET", "/v1/budgets", settled).await;
    let (_, usage) = control.call("GET", "/v1/usage", &json!({})).await;
    let usage = &usage["data"][0];
    assert_eq!(usage["cost_micros"], budgets["data"][0]["settled"]["cost_micros"]);
    assert!(usage["output_tokens"].as_u64() >= Some(300), "both calls: {usage}");
    assert_eq!(usage["turns"], 1);
    model.shutdown().await;
}

#[tokio::test]
#[ignore = "needs a PostgreSQL: ./test starts one"]
async fn two_servers_on_one_database_know_what_the_other_did() {
    let server = std::env::var("KARTA_TEST_POSTGRES").expect("`scripts/with-postgres` says where it is");
    let home = tempfile::tempdir().unwrap();
    let planes = Planes::new(home.path(), &server);
    let settings = format!("database = \"{}\"\n", planes.database);
    let one = Served::start_as(home.path(), "one", &settings, &["serve"]).await;
    // The same installation: the same keys.
    std::fs::create_dir_all(home.path().join("two")).unwrap();
    let (from, to) = (home.path().join("one/keys"), home.path().join("two/keys"));
    let copied = tokio::process::Command::new("cp").arg("-r").arg(from).arg(to).status().await.unwrap();
    assert!(copied.success());
    let mut two = Served::start_as(home.path(), "two", &settings, &["serve"]).await;
    let (_, made) = one.call("POST", "/v1/keys", &json!({"name": "short", "scopes": ["read"]})).await;
    two.key = made["key"].as_str().unwrap().to_owned();
    assert_eq!(two.call("GET", "/v1/sessions", &json!({})).await.0, 200, "made there, known here");
    one.call("DELETE", &format!("/v1/keys/{}", made["id"].as_str().unwrap()), &json!({})).await;
    until(&two, "GET", "/v1/sessions", |status, _| status == 401).await;
}
