//! Tunnels: untouched, looked into, refused.

use karta_types::egress::Rule;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::support::*;

fn get(path: &str, host: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

#[tokio::test]
async fn a_host_that_is_allowed_whole_is_spoken_to_untouched() {
    let world = World::new();
    let server = world.tls("a.example").await;
    let at = format!("a.example:{}", server.port);
    let outside = world.outside(&Names::new(&[("a.example", &["127.0.0.1"])]), true);
    let session = Session::new(&outside, std::slice::from_ref(&at));
    let stream = session.tls(&at, "a.example").await.unwrap();
    // The certificate is the host's own: nobody has looked inside.
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let answer = talk(stream, get("/x", &at)).await;
    assert!(answer.ends_with("hello /x"), "{answer}");
    let decided = session.decided();
    assert_eq!((decided.len(), decided[0].allowed, decided[0].method.clone()), (1, true, None));
    let looked = Session::new(&outside, &[format!("GET {at}")]);
    let stream = looked.tls(&at, "a.example").await.unwrap();
    assert_ne!(stream.get_ref().1.peer_certificates().unwrap()[0], shown);
    let answer = talk(stream, get("/x", &at)).await;
    assert!(answer.ends_with("hello /x"), "{answer}");
    assert_eq!(looked.decided()[0].method.as_deref(), Some("GET"));
}

#[tokio::test]
async fn requests_in_a_tunnel_are_judged_one_by_one() {
    let world = World::new();
    let server = world.tls("a.example").await;
    let at = format!("a.example:{}", server.port);
    let outside = world.outside(&Names::new(&[("a.example", &["127.0.0.1"])]), true);
    let session = Session::new(&outside, &[format!("GET,POST {at}/v1/*")]);
    for (request, status) in [
        (get("/v1/x", &at), "200"),
        (get("/v2/x", &at), "403"),
        (get("/v1/../v2", &at), "403"),
        (get("/v1/x", "b.example"), "403"),
        (get("http://b.example/v1/x", &at), "400"),
        (get("*", &at), "400"),
        (format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\n"), "400"),
        (format!("DELETE /v1/x HTTP/1.1\r\nHost: {at}\r\n\r\n"), "403"),
        (format!("POST /v1/x HTTP/1.1\r\nHost: {at}\r\nX-HTTP-Method-Override: DELETE\r\n\r\n"), "403"),
        (format!("GET /v1/x HTTP/1.1\r\nHost: {at}\r\nX-Original-URL: /v2/x\r\n\r\n"), "403"),
        (
            format!(
                "POST /v1/x HTTP/1.1\r\nHost: {at}\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
            ),
            "400",
        ),
    ] {
        let answer = session.ask_tls(&at, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
    }
    let two = format!("GET /v1/1 HTTP/1.1\r\nHost: {at}\r\n\r\n{}", get("/v1/2", &at));
    let answer = session.ask_tls(&at, two).await;
    assert!(answer.contains("hello /v1/1") && answer.ends_with("hello /v1/2"), "{answer}");
    assert_eq!(server.seen.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn a_tunnel_names_one_host_and_speaks_tls() {
    let world = World::new();
    let server = world.tls("b.example").await;
    let (port, hidden) = (server.port, format!("a.example:{}", server.port));
    let outside =
        world.outside(&Names::new(&[("a.example", &["127.0.0.1"]), ("b.example", &["127.0.0.1"])]), true);
    for rule in [format!("a.example:{port}"), format!("GET a.example:{port}")] {
        let session = Session::new(&outside, &[rule]);
        assert!(session.tls(&hidden, "b.example").await.is_err(), "TLS that names another host is fronting");
        let why = session.refusals().concat();
        assert!(why.contains("`b.example`") && why.contains("`a.example`"), "{why}");
        for bytes in ["GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "SSH-2.0-hidden\r\n"] {
            let mut stream = session.tunnel(&hidden).await.unwrap();
            stream.write_all(bytes.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let _ =
                tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it is closed");
            assert_eq!(answer, b"", "{bytes}");
            assert!(session.refusals().concat().contains("only TLS"));
        }
    }
    assert!(server.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_host_must_prove_who_it_is() {
    let world = World::new();
    let server = world.tls("someone.else").await;
    let at = format!("a.example:{}", server.port);
    let outside = world.outside(&Names::new(&[("a.example", &["127.0.0.1"])]), true);
    let session = Session::new(&outside, &[format!("GET {at}")]);
    let answer = session.ask_tls(&at, get("/x", &at)).await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("TLS with it fails"), "{answer}");
    assert!(server.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn tunnels_that_no_rule_allows_are_refused() {
    let world = World::new();
    let outside = world.outside(&Names::new(&[("api.anthropic.com", &["127.0.0.1"])]), true);
    let rules = ["api.anthropic.com", "GET api.openai.com/v1/files", "*.amazonaws.com", "a.example"]
        .map(str::to_owned);
    let session = Session::with(&outside, &rules, Vec::new(), |rules| {
        rules.denied = vec![Rule::parse("a.example").unwrap()];
    });
    for (place, part) in [
        ("api.anthropic.com:443", "model gateway"),
        ("api.openai.com:443", "model gateway"),
        ("bedrock-runtime.us-east-1.amazonaws.com:443", "model gateway"),
        ("a.example:443", "organisation's policy"),
        ("b.example:443", "karta.toml"),
        ("api.anthropic.com:22", "model gateway"),
        ("API.OpenAI.Com.:443", "model gateway"),
        ("mine.openai.azure.com:443", "model gateway"),
        ("generativelanguage.googleapis.com:8443", "model gateway"),
    ] {
        let refused = session.tunnel(place).await.unwrap_err();
        assert!(refused.starts_with("HTTP/1.1 403") && refused.contains(part), "{place}: {refused}");
    }
    for place in
        ["a.example", "a.example:", "a.example:0", "[::1]:443", "user@a.example:443", "a.example:443:443"]
    {
        assert!(session.tunnel(place).await.unwrap_err().starts_with("HTTP/1.1 400"), "{place}");
    }
    let answer = session.ask("GET http://api.anthropic.com/v1/files HTTP/1.1\r\nHost: api.anthropic.com\r\nx-api-key: own\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("model gateway"), "{answer}");
}

#[tokio::test]
async fn what_is_observed_goes_through_and_is_known_by_method() {
    let world = World::new();
    let server = world.tls("a.example").await;
    let at = format!("a.example:{}", server.port);
    let names = Names::new(&[("a.example", &["127.0.0.1"]), ("meta.example", &["169.254.169.254"])]);
    let session = Session::with(&world.outside(&names, true), &[], Vec::new(), |rules| rules.observe = true);
    assert!(session.ask_tls(&at, get("/x", &at)).await.ends_with("hello /x"));
    let answer = session.ask("GET http://meta.example/ HTTP/1.1\r\nHost: meta.example\r\n\r\n").await;
    assert!(answer.contains("no public address"), "{answer}");
    let proposed = karta_types::egress::propose(&session.decided());
    assert_eq!(proposed, [format!("GET {at}")]);
}
