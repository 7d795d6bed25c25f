//! Every command that asks the control plane, on a real server: for people and for machines.

#![expect(clippy::panic, reason = "a test that can't go on fails")]

use serde_json::Value;

use crate::served::Served;

/// Runs it both ways; what machines get is JSON.
async fn both(server: &Served, args: &[&str]) -> (String, Value) {
    let plain = server.run(args).await;
    assert_eq!(plain.code, Some(0), "{args:?}: {plain:?}");
    let with_json: Vec<_> = args.iter().copied().chain(["--json"]).collect();
    let ran = server.run(&with_json).await;
    assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
    let json = serde_json::from_str(&ran.out).unwrap_or_else(|why| panic!("{args:?}: {why}: {}", ran.out));
    (plain.out, json)
}

/// Runs what changes something, for machines.
async fn json(server: &Served, args: &[&str]) -> Value {
    let ran = server.run(&args.iter().copied().chain(["--json"]).collect::<Vec<_>>()).await;
    assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
    serde_json::from_str(&ran.out).unwrap_or_else(|why| panic!("{args:?}: {why}: {}", ran.out))
}

#[tokio::test]
async fn every_command_of_the_control_plane_answers_people_and_machines() {
    let home = tempfile::tempdir().unwrap();
    let server = Served::start(home.path(), "[webhooks]\nloopback = true\n").await;
    let text = |value: &Value, name: &str| value[name].as_str().unwrap().to_owned();

    let key = json(&server, &["keys", "create", "backend", "--scopes", "read"]).await;
    let (table, keys) = both(&server, &["keys", "list"]).await;
    assert!(table.contains("backend") && keys.to_string().contains(&text(&key, "id")));
    json(&server, &["keys", "rotate", &text(&key, "id"), "--overlap", "1"]).await;

    let org = text(&both(&server, &["whoami"]).await.1["org"], "id");
    json(&server, &["budget", "set", "org", &org, "--cost-micros", "5000000"]).await;
    assert!(both(&server, &["budget", "list"]).await.0.contains("$5.000000"));
    let granted = server.run(&["admin", "credit", "2500000", "--note", "first"]).await;
    assert_eq!(granted.code, Some(0), "{granted:?}");
    let (shown, billing) = both(&server, &["billing", "show"]).await;
    assert!(shown.contains("$2.500000") && shown.contains("no billing configured"), "{shown}");
    assert_eq!(billing["credit"][0]["note"], "first");
    assert!(server.run(&["chat", "--project", "app", "-m", "hello"]).await.out.contains("hello"));
    let (drawn, usage) = both(&server, &["usage", "--by", "day,model"]).await;
    assert!(usage.to_string().contains("900"), "{drawn}");
    let month = usage[0]["day"].as_str().unwrap()[..7].to_owned();
    assert!(server.run(&["billing", "statement", &month]).await.out.contains("total,,,,,,,,,"));
    assert_eq!(json(&server, &["billing", "statement", &month]).await["rounding_micros"], -900);
    let none = server.run(&["billing", "checkout", "team"]).await;
    assert!(none.code == Some(1) && none.err.contains("only people have"), "{none:?}");

    let (shown, releases) = both(&server, &["releases", "list", "app"]).await;
    assert!(shown.contains("v1") && releases[0]["state"] == "active", "{shown}");
    assert!(both(&server, &["releases", "activate", "app", "v1"]).await.0.contains("v1 is active"));
    assert_eq!(both(&server, &["releases", "history", "app"]).await.1[0]["by"], "system:karta");
    let nothing = server.run(&["rollback", "app", "--reason", "it lies"]).await;
    assert!(nothing.code == Some(1) && nothing.err.contains("no other release"), "{nothing:?}");

    let hook =
        json(&server, &["webhooks", "create", "http://127.0.0.1:9/in", "--event", "key.created"]).await;
    let hook = text(&hook, "id");
    assert!(both(&server, &["webhooks", "list"]).await.0.contains("key.created"));
    json(&server, &["keys", "create", "told", "--scopes", "read"]).await;
    let told = async {
        loop {
            let deliveries = both(&server, &["webhooks", "deliveries", &hook]).await.1;
            if deliveries[0]["attempts"] == 1 {
                break text(&deliveries[0], "id");
            }
        }
    };
    let delivery = tokio::time::timeout(crate::served::PATIENCE, told).await.unwrap();
    for args in [
        vec!["webhooks", "redeliver", &hook, &delivery],
        vec!["webhooks", "redeliver", &hook, "--since", "2026-01-01T00:00:00Z"],
        vec!["webhooks", "disable", &hook],
        vec!["webhooks", "enable", &hook],
        vec!["webhooks", "remove", &hook],
    ] {
        let ran = server.run(&args).await;
        assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
    }
    let wrong = server.run(&["webhooks", "create", "http://10.0.0.1/"]).await;
    assert!(wrong.code == Some(1) && wrong.err.contains("https://"), "{wrong:?}");

    let token = json(&server, &["token", "mint", "app", "ann", "--max-cost-micros", "1000"]).await;
    assert_eq!(server.run(&["token", "revoke", &text(&token, "id")]).await.code, Some(0));
    assert_eq!(both(&server, &["provider-keys", "list"]).await.1, serde_json::json!([]));
    assert!(both(&server, &["audit", "list"]).await.0.contains("billing.credit_granted"));
    assert_eq!(both(&server, &["audit", "verify"]).await.1["intact"], true);
    assert!(server.run(&["audit", "export"]).await.out.lines().count() > 5);
}

#[tokio::test]
async fn what_was_not_told_before_a_kill_is_told_after_it() {
    let home = tempfile::tempdir().unwrap();
    let mut server = Served::start(home.path(), "[webhooks]\nloopback = true\n").await;
    // Nobody listens there yet.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let url = format!("http://{address}/in");
    json(&server, &["webhooks", "create", &url, "--event", "key.created"]).await;
    json(&server, &["keys", "create", "told later", "--scopes", "read"]).await;
    server.kill().await;
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let (told, mut heard) = tokio::sync::mpsc::channel(8);
    let take = axum::routing::post(async move |body: String| {
        told.send(body).await.unwrap();
    });
    #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().route("/in", take)).await });
    let _server = Served::start(home.path(), "[webhooks]\nloopback = true\n").await;
    // A delivery that was under way at the kill is another's after a minute.
    let patience = crate::served::PATIENCE * 2;
    let body = tokio::time::timeout(patience, heard.recv()).await.unwrap().unwrap();
    assert!(body.contains("key.created"), "{body}");
}
