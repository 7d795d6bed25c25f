//! Requests by plain HTTP.

use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::support::*;

fn get(url: &str, host: &str) -> String {
    format!("GET {url} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

#[tokio::test]
async fn what_rules_allow_goes_and_nothing_else() {
    let world = World::new();
    let server = plain().await;
    let port = server.port;
    let names = Names::new(&[("a.example", &["127.0.0.1"]), ("b.example", &["127.0.0.1"])]);
    let outside = world.outside(&names, true);
    let session =
        Session::new(&outside, &[format!("a.example:{port}"), format!("GET b.example:{port}/v1/*")]);
    for (method, host, path, goes) in [
        ("GET", "a.example", "/x?y=1", true),
        ("DELETE", "A.EXAMPLE.", "/any/../thing", true),
        ("GET", "b.example", "/v1/x", true),
        ("GET", "b.example", "/v1/%78", true),
        ("POST", "b.example", "/v1/x", false),
        ("GET", "b.example", "/v2/x", false),
        ("GET", "b.example", "/v1/../v2", false),
        ("GET", "b.example", "/v1/%2e%2e/v2", false),
        ("GET", "b.example", "/v1/x%2fy", false),
        ("GET", "b.example", "//v1/x", false),
        ("TRACE", "a.example", "/", false),
        ("GET", "c.example", "/", false),
        ("GET", "a.example.evil", "/", false),
        ("GET", "127.0.0.1", "/", false),
    ] {
        let authority = format!("{host}:{port}");
        let request = format!(
            "{method} http://{authority}{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
        );
        let answer = session.ask(request).await;
        assert_eq!(answer.starts_with("HTTP/1.1 200"), goes, "{method} {authority}{path}: {answer}");
        assert_eq!(answer.starts_with("HTTP/1.1 403"), !goes, "{method} {authority}{path}: {answer}");
    }
    assert_eq!(server.seen.lock().unwrap().len(), 4);
    let lines: Vec<_> = server.seen.lock().unwrap().iter().map(|seen| seen.line.clone()).collect();
    assert_eq!(lines[0], "GET /x?y=1");
    assert!(server.seen.lock().unwrap()[0].headers.contains(&format!("host: a.example:{port}")));
    let decided = session.decided();
    assert_eq!(decided.iter().filter(|one| one.allowed).count(), 4);
    assert!(
        decided.iter().any(|one| one.allowed && one.path.as_deref() == Some("/x") && one.rule.is_some()),
        "{decided:?}"
    );
    assert!(decided.iter().all(|one| !one.path.as_deref().unwrap_or_default().contains('?')));
    assert!(decided.iter().filter(|one| !one.allowed).all(|one| one.why.is_some()));
}

#[tokio::test]
async fn nothing_that_is_not_public_is_reached() {
    let world = World::new();
    let names = Names::new(&[
        ("private.example", &["10.0.0.1"]),
        ("meta.example", &["169.254.169.254"]),
        ("loop.example", &["127.0.0.1"]),
        ("mapped.example", &["::ffff:127.0.0.1"]),
        ("cgnat.example", &["100.64.0.1"]),
        ("unique.example", &["fd00:ec2::254"]),
        // A resolver that says something else each time.
        ("turns.example", &["10.0.0.1", "127.0.0.1"]),
    ]);
    let outside = world.outside(&names, false);
    let hosts = ["*.example", "169.254.169.254", "127.0.0.1", "10.1.2.3", "localhost"];
    let rules: Vec<String> = ["private", "meta", "loop", "mapped", "cgnat", "unique", "turns"]
        .map(|name| format!("{name}.example"))
        .into_iter()
        .chain(hosts[1..].iter().map(|host| (*host).to_owned()))
        .collect();
    let session = Session::new(&outside, &rules);
    for host in rules.iter().filter(|host| *host != "localhost") {
        let answer = session.ask(get(&format!("http://{host}/"), host)).await;
        assert!(
            answer.starts_with("HTTP/1.1 403") && answer.contains("no public address"),
            "{host}: {answer}"
        );
        let refused = session.tunnel(&format!("{host}:443")).await.unwrap_err();
        assert!(refused.starts_with("HTTP/1.1 403"), "{host}: {refused}");
    }
    assert!(session.refusals().len() >= 20);
    for odd in ["127.1", "2130706433", "0x7f.0.0.1", "[::1]", "0177.0.0.1", "127.0.0.1%00.a.example"] {
        let answer = session.ask(get(&format!("http://{odd}/"), odd)).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{odd}: {answer}");
    }
}

#[tokio::test]
async fn what_can_be_read_in_two_ways_goes_nowhere() {
    let world = World::new();
    let server = plain().await;
    let at = format!("a.example:{}", server.port);
    let outside = world.outside(&Names::new(&[("a.example", &["127.0.0.1"])]), true);
    let session = Session::new(&outside, std::slice::from_ref(&at));
    for headers in [
        format!("Host: {at}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        format!("Host: {at}\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
        format!("Host: {at}\r\nContent-Length: 5\r\nContent-Length: 6\r\n"),
        format!("Host: {at}\r\nTransfer-Encoding: xchunked\r\n"),
        format!("Host: {at}\r\nHost: b.example\r\n"),
        format!("Host: {at}\nX: y\r\n"),
        String::new(),
    ] {
        let answer = session
            .ask(format!(
                "POST http://{at}/ HTTP/1.1\r\n{headers}\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"
            ))
            .await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{headers:?}: {answer}");
    }
    let answer = session.ask(format!("GET http://{at}/ HTTP/1.1\r\nHost: b.example\r\n\r\n")).await;
    assert!(
        answer.starts_with("HTTP/1.1 403") && answer.contains("`Host` header names another host"),
        "{answer}"
    );
    // A chunk that is longer than it says is no way to a second request.
    let answer = session.ask(format!("POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n")).await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    let long = format!("GET http://{at}/{} HTTP/1.1\r\nHost: {at}\r\n\r\n", "x".repeat(100 << 10));
    let answer = session.ask(long).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(
        server.seen.lock().unwrap().iter().all(|seen| seen.body == b"CUT"),
        "{:?}",
        server.seen.lock().unwrap()
    );
}

#[tokio::test]
async fn one_connection_carries_many_requests_and_bodies_of_both_kinds() {
    let world = World::new();
    let server = plain().await;
    let at = format!("a.example:{}", server.port);
    let outside = world.outside(&Names::new(&[("a.example", &["127.0.0.1"])]), true);
    let session = Session::new(&outside, std::slice::from_ref(&at));
    let requests = format!(
        "POST http://{at}/1 HTTP/1.1\r\nHost: {at}\r\nProxy-Connection: Keep-Alive\r\nContent-Length: 5\r\n\r\nhello\
         POST http://{at}/2 HTTP/1.1\r\nHost: {at}\r\nProxy-Connection: Keep-Alive\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n\
         HEAD http://{at}/3 HTTP/1.1\r\nHost: {at}\r\nProxy-Connection: Keep-Alive\r\n\r\n\
         GET http://{at}/alt HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n"
    );
    let answer = session.ask(requests).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 4, "{answer}");
    assert!(answer.contains("hello /1") && answer.contains("hello /2") && !answer.contains("hello /3"));
    assert!(answer.ends_with("alt") && !answer.contains("alt-svc") && !answer.contains("x-hop"), "{answer}");
    let seen = server.seen.lock().unwrap().clone();
    assert_eq!((seen[0].body.as_slice(), seen[1].body.as_slice()), (&b"hello"[..], &b"abcde"[..]));
    assert!(seen.iter().all(|seen| !seen.headers.contains("proxy") && !seen.headers.contains("connection")));
}

#[tokio::test]
async fn big_bodies_stream_both_ways() {
    let world = World::new();
    let server = plain().await;
    let at = format!("a.example:{}", server.port);
    let outside = world.outside(&Names::new(&[("a.example", &["127.0.0.1"])]), true);
    let session = Session::new(&outside, std::slice::from_ref(&at));
    let answer = session.ask(get(&format!("http://{at}/big"), &at)).await;
    assert_eq!(body(&answer).len(), 16 << 20);
    let length = 20 << 20;
    let mut request = format!("PUT http://{at}/up HTTP/1.1\r\nHost: {at}\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n").into_bytes();
    request.extend(vec![b'y'; length]);
    let answer = session.ask(request).await;
    assert!(answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200"), "{answer}");
    assert_eq!(server.seen.lock().unwrap()[1].body.len(), length);
    let mut early =
        format!("PUT http://{at}/early HTTP/1.1\r\nHost: {at}\r\nContent-Length: {length}\r\n\r\n")
            .into_bytes();
    early.extend(vec![b'y'; length]);
    let answer = session.ask(early).await;
    assert!(
        answer.starts_with("HTTP/1.1 413"),
        "an answer before the end of the request is passed on: {answer}"
    );
}

#[tokio::test]
async fn what_is_cut_is_cut_on_the_other_side() {
    let world = World::new();
    let server = plain().await;
    let at = format!("a.example:{}", server.port);
    let outside =
        world.outside(&Names::new(&[("a.example", &["127.0.0.1"]), ("gone.example", &["127.0.0.1"])]), true);
    let session =
        Session::new(&outside, &[at.clone(), "gone.example:1".to_owned(), "nowhere.example".to_owned()]);
    let answer = session.ask(get(&format!("http://{at}/broken"), &at)).await;
    assert!(!answer.ends_with("0\r\n\r\n"), "a broken answer has no end: {answer:?}");
    let mut stream = session.connect();
    stream
        .write_all(
            format!("PUT http://{at}/cut HTTP/1.1\r\nHost: {at}\r\nContent-Length: 2000000\r\n\r\nhalf")
                .as_bytes(),
        )
        .await
        .unwrap();
    let begun = async {
        while server.begun.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, begun).await.expect("the host sees the request");
    drop(stream);
    let cut = async {
        while server.seen.lock().unwrap().iter().all(|seen| seen.body != b"CUT") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, cut).await.expect("the host sees that the body was cut");
    let answer = session.ask(get("http://gone.example:1/", "gone.example:1")).await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("can't be reached"), "{answer}");
    let answer = session.ask(get("http://nowhere.example/", "nowhere.example")).await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("resolved"), "{answer}");
}

#[tokio::test]
async fn connections_end_with_their_session() {
    let world = World::new();
    let outside = world.outside(&Names::new(&[]), true);
    let session = Session::new(&outside, &[]);
    let mut open: Vec<_> = (0..100).map(|_| session.connect()).collect();
    let Session { egress, tasks, .. } = session;
    drop(egress);
    for stream in &mut open {
        let mut byte = [0];
        let ended = tokio::time::timeout(PATIENCE, stream.read(&mut byte)).await.expect("it ends");
        assert!(matches!(ended, Ok(0) | Err(_)));
    }
    assert!(tasks.shutdown(PATIENCE).await, "no task is left");
}

#[tokio::test]
async fn a_loop_of_refusals_is_told_in_few_lines() {
    let world = World::new();
    let outside = world.outside(&Names::new(&[]), true);
    let mut session = Session::new(&outside, &[]);
    for _ in 0..1000 {
        assert!(session.ask(get("http://evil.example/x", "evil.example")).await.starts_with("HTTP/1.1 403"));
    }
    let mut decisions = std::mem::replace(&mut session.decisions, super::super::told::channel().1);
    drop(session);
    let (mut tellings, mut count) = (0, 0);
    while let Some(some) = decisions.next().await {
        tellings += 1;
        count += some.iter().map(|one| one.count).sum::<u64>();
    }
    assert_eq!(count, 1000);
    assert!(tellings <= 3, "{tellings}");
}
