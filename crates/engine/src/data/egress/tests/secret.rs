//! Secrets of tools: put in on the way out, taken out on the way back, and nowhere else.

use super::support::*;

#[tokio::test]
async fn a_secret_goes_to_its_hosts_alone() {
    let world = World::new();
    let (api, other) = (world.tls("api.example").await, world.tls("other.example").await);
    let plain = plain().await;
    let (api_at, other_at, plain_at) = (
        format!("api.example:{}", api.port),
        format!("other.example:{}", other.port),
        format!("api.example:{}", plain.port),
    );
    let names = Names::new(&[("api.example", &["127.0.0.1"]), ("other.example", &["127.0.0.1"])]);
    let rules = [api_at.clone(), format!("GET,POST {other_at}"), plain_at.clone()];
    let session =
        Session::with(&world.outside(&names, true), &rules, vec![secret(&[&api_at, &plain_at])], |_| {});
    let request = |at: &str, path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: {at}\r\nAuthorization: Bearer {INSIDE}\r\nRange: bytes=0-3\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
        )
    };
    // There.
    let answer = session.ask_tls(&api_at, request(&api_at, &format!("/x?k={INSIDE}"))).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = api.seen.lock().unwrap()[0].clone();
    assert!(seen.headers.contains(&format!("authorization: Bearer {VALUE}")), "{seen:?}");
    assert_eq!(seen.line, "GET /x?k=sk-live-%220123456789");
    assert!(!seen.headers.contains("range") && seen.headers.contains("accept-encoding: identity"));
    // Elsewhere, and where anybody on the way could read it.
    let answer = session.ask_tls(&other_at, request(&other_at, "/x")).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("`TOOL_KEY`"), "{answer}");
    let answer = session.ask(request(&plain_at, &format!("http://{plain_at}/x"))).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("TLS only"), "{answer}");
    assert!(other.seen.lock().unwrap().is_empty() && plain.seen.lock().unwrap().is_empty());
    let refused = session.refusals();
    assert_eq!(refused.len(), 2);
    assert!(refused.iter().all(|why| why.contains("TOOL_KEY") && !why.contains("live")), "{refused:?}");
}

#[tokio::test]
async fn bodies_carry_it_where_they_can_be_read() {
    let world = World::new();
    let server = world.tls("api.example").await;
    let at = format!("api.example:{}", server.port);
    let other = world.tls("other.example").await;
    let other_at = format!("other.example:{}", other.port);
    let names = Names::new(&[("api.example", &["127.0.0.1"]), ("other.example", &["127.0.0.1"])]);
    let rules = [at.clone(), format!("POST {other_at}")];
    let session = Session::with(&world.outside(&names, true), &rules, vec![secret(&[&at])], |_| {});
    let post = |at: &str, kind: &str, body: &str| {
        format!(
            "POST /x HTTP/1.1\r\nHost: {at}\r\nContent-Type: {kind}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let chunked = |kind: &str, pieces: &[&str]| {
        let chunk = |text: String, piece: &&str| format!("{text}{:x}\r\n{piece}\r\n", piece.len());
        let chunks = pieces.iter().fold(String::new(), chunk);
        format!(
            "POST /x HTTP/1.1\r\nHost: {at}\r\nContent-Type: {kind}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
        )
    };
    let (one, two) = INSIDE.split_at(9);
    let large = format!("{}{INSIDE}", "x".repeat(2 << 20));
    for (request, status, seen) in [
        (
            post(&at, "application/json", &format!("{{\"k\":\"{INSIDE}\"}}")),
            "200",
            Some(r#"{"k":"sk-live-\"0123456789"}"#),
        ),
        (
            post(&at, "application/x-www-form-urlencoded", &format!("k={INSIDE}")),
            "200",
            Some("k=sk-live-%220123456789"),
        ),
        (chunked("text/plain", &["a ", one, two, " b"]), "200", Some(r#"a sk-live-"0123456789 b"#)),
        (post(&at, "application/octet-stream", INSIDE), "403", None),
        (post(&at, "text/plain", &large), "403", None),
        (post(&at, "application/octet-stream", "nothing to see"), "200", Some("nothing to see")),
        (chunked("application/octet-stream", &[one, two]), "403", None),
    ] {
        server.seen.lock().unwrap().clear();
        let answer = session.ask_tls(&at, &request).await;
        let short: String = request.chars().take(200).collect();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{short}: {answer}");
        // That an earlier request was cut may be seen only now.
        let bodies: Vec<_> = server.seen.lock().unwrap().iter().map(|seen| seen.body.clone()).collect();
        let bodies: Vec<_> = bodies.iter().map(|body| String::from_utf8_lossy(body)).collect();
        let whole: Vec<_> = bodies.iter().filter(|body| **body != "CUT").collect();
        assert!(whole.iter().map(|body| &***body).eq(seen), "{short}: {whole:?}");
    }
    let answer =
        session.ask_tls(&other_at, post(&other_at, "application/json", &format!("[\"{INSIDE}\"]"))).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(other.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn it_does_not_come_back() {
    let world = World::new();
    let server = world.tls("api.example").await;
    let at = format!("api.example:{}", server.port);
    let session = Session::with(
        &world.outside(&Names::new(&[("api.example", &["127.0.0.1"])]), true),
        std::slice::from_ref(&at),
        vec![secret(&[&at])],
        |_| {},
    );
    let request = |path: &str| {
        let body = format!("{{\"k\":\"{INSIDE}\"}}");
        format!(
            "POST {path} HTTP/1.1\r\nHost: {at}\r\nAuthorization: Bearer {INSIDE}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let answer = session.ask_tls(&at, request("/echo")).await;
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("live"), "{answer}");
    assert!(answer.contains(&format!("x-echo: Bearer {INSIDE}")), "{answer}");
    assert_eq!(body(&answer), format!("Bearer {INSIDE} {{\"k\":\"{INSIDE}\"}}"));
    let answer = session.ask_tls(&at, request("/coded")).await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("coding"), "{answer}");
}

#[tokio::test]
async fn what_nobody_has_set_is_told() {
    let world = World::new();
    let server = world.tls("api.example").await;
    let at = format!("api.example:{}", server.port);
    let mut unset = secret(&[&at]);
    unset.value = None;
    let outside = world.outside(&Names::new(&[("api.example", &["127.0.0.1"])]), true);
    let session = Session::with(&outside, std::slice::from_ref(&at), vec![unset], |_| {});
    let variables = session.egress.environment("http://127.0.0.1:4181", "/tmp/bundle.pem");
    assert!(variables.contains(&("TOOL_KEY".to_owned(), INSIDE.to_owned())));
    assert!(variables.iter().any(|(name, value)| name == "NO_PROXY" && value.contains("127.0.0.1")));
    assert!(variables.iter().any(|(name, value)| name == "SSL_CERT_FILE" && value == "/tmp/bundle.pem"));
    let answer =
        session.ask_tls(&at, format!("GET / HTTP/1.1\r\nHost: {at}\r\nX-Key: {INSIDE}\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("karta secrets set"), "{answer}");
}
