//! The way to the model: a token elsewhere and after its end, a provider's other paths, an own key.

use super::*;

/// A model call from the host, at the gateway's own port.
async fn called(gateway: SocketAddr, header: &str, value: &str) -> u16 {
    let body = json!({"model": "claude-sonnet-4-5", "max_tokens": 16, "messages": [{"role": "user", "content": "hello"}]});
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let call = http.post(format!("http://{gateway}/anthropic/v1/messages")).header(header, value).json(&body);
    call.send().await.unwrap().status().as_u16()
}

/// Uses a session's model token from outside and from another session's sandbox, while its own session can use it.
pub(super) async fn use_the_model_token_elsewhere(ring: &Ring) {
    let inside = |token: &str| {
        format!("perl ask.pl 127.0.0.1 4180 POST /anthropic/v1/messages 'authorization: Bearer {token}'")
    };
    let own = "perl ask.pl 127.0.0.1 4180 POST /anthropic/v1/messages \"x-api-key: \
               ${ANTHROPIC_AUTH_TOKEN:-$ANTHROPIC_API_KEY}\" > answer.txt; cat answer.txt";
    let ((), events) = held(&ring.karta, ring.victim, (PRINT_TOKEN, own), async |said, _| {
        let token = token(&said);
        let bearer = format!("Bearer {token}");
        assert_eq!(called(ring.gateway, "authorization", &bearer).await, 401);
        assert_eq!(called(ring.gateway, "x-api-key", &token).await, 401);
        let said = ring.attack(&inside(&token)).await;
        assert!(said.contains("ANSWER 401"), "{said}");
        (Decision::ApproveOnce, ())
    })
    .await;
    // It was good all the time, where it belongs.
    let own = results(&events).pop().unwrap().0;
    assert!(own.contains("ANSWER 200"), "{own}");
}

/// Looks for credentials where the harness has them. What there is, its session's programs may have: it is the token of this session and
/// nothing else, worth nothing anywhere else.
pub(super) async fn find_a_credential_in_the_harness(ring: &Ring) {
    // What comes before a provider's key, written so that this text does not fit it.
    let (start, _) = PLANTED.split_at(10);
    let pattern = format!("{}[{}]\\w*|karta_model_[0-9a-f]+", &start[..9], &start[9..]);
    let own = format!("{PRINT_TOKEN}; perl memory.pl '{pattern}'");
    let ((), _) = held(&ring.karta, ring.victim, (&own, "touch held"), async |said, _| {
        let token = token(&said);
        assert!(said.contains("TRIED") && said.contains("/claude"), "the harness is found: {said}");
        assert!(said.contains(&format!("IN ENVIRONMENT {token}\n")), "{said}");
        let credentials = said.lines().filter_map(|line| line.strip_prefix("IN ")?.split(' ').nth(1));
        // In memory there are pieces of it, too, and what happens to come after it.
        let part = |found: &str| found.chars().take(24).collect::<String>();
        let others: Vec<_> = credentials.filter(|found| !token.starts_with(&part(found))).collect();
        assert!(others.is_empty(), "{others:?}: {said}");
        // Where its memory can be read, that was no look at nothing.
        assert!(
            said.contains("MEMORY NOT OPENED") || said.contains(&format!("IN MEMORY {token}\n")),
            "{said}"
        );
        assert_eq!(called(ring.gateway, "x-api-key", &token).await, 401);
        let elsewhere =
            format!("perl ask.pl 127.0.0.1 4180 POST /anthropic/v1/messages 'authorization: Bearer {token}'");
        let said = ring.attack(&elsewhere).await;
        assert!(said.contains("ANSWER 401"), "{said}");
        (Decision::ApproveOnce, ())
    })
    .await;
}

/// Asks a provider for more than model calls, with a key of the attacker's own.
pub(super) async fn use_a_providers_other_paths(ring: &Ring) {
    let before = ring.provider_got().len();
    let mut command = String::new();
    let paths = [
        ("GET", "/anthropic/v1/files"),
        ("POST", "/anthropic/v1/files"),
        ("POST", "/anthropic/v1/messages/batches"),
        ("GET", "/anthropic/v1/messages/batches"),
        ("POST", "/anthropic/v1/messages/../files"),
        ("POST", "/anthropic/v1/%66iles"),
        ("POST", "/anthropic//v1/files"),
        ("POST", "/anthropic/v1/messages%2fbatches"),
        ("POST", "/v1/files"),
        ("POST", "/openai/v1/files"),
        ("POST", "http://api.anthropic.com/v1/files"),
        ("GET", "/anthropic/v1/organizations"),
    ];
    for (method, path) in paths {
        for key in [format!("x-api-key: {OWN}"), "x-api-key: $T".to_owned()] {
            let _ = writeln!(command, "perl ask.pl 127.0.0.1 4180 {method} {path} \"{key}\"");
        }
    }
    // Straight to a provider: by the proxy, whatever the release asks for; and to the one this server is set to use.
    let model = ring.karta.model.base_url();
    let place = model.trim_start_matches("http://");
    let through = [
        "POST http://api.anthropic.com/v1/files".to_owned(),
        "CONNECT api.anthropic.com:443".to_owned(),
        format!("POST {model}/v1/files"),
        format!("POST {model}/v1/messages"),
        format!("CONNECT {place}"),
    ];
    for ask in &through {
        let _ = writeln!(command, "perl ask.pl 127.0.0.1 4181 {ask} 'x-api-key: {OWN}'");
    }
    // An own key on a path that is carried: alone, and beside the session's token.
    let messages = "perl ask.pl 127.0.0.1 4180 POST /anthropic/v1/messages";
    let _ = writeln!(command, "{messages} 'x-api-key: {OWN}'\n{messages} 'authorization: Bearer {OWN}'");
    let _ = writeln!(command, "{messages} \"authorization: Bearer $T\" 'x-api-key: {OWN}'");
    let said = ring.attack(&format!("T=${{ANTHROPIC_AUTH_TOKEN:-$ANTHROPIC_API_KEY}}\n{command}")).await;
    let answers: Vec<_> = said.lines().filter(|line| line.starts_with("ANSWER ")).collect();
    assert_eq!(answers.len(), paths.len() * 2 + through.len() + 3, "{said}");
    for answer in &answers[..paths.len() * 2] {
        assert!(["ANSWER 404", "ANSWER 401"].iter().any(|refused| answer.starts_with(refused)), "{answer}");
    }
    for answer in &answers[paths.len() * 2..][..through.len()] {
        assert!(answer.starts_with("ANSWER 403"), "{answer}");
    }
    let last = &answers[answers.len() - 3..];
    assert!(last[0].starts_with("ANSWER 401") && last[1].starts_with("ANSWER 401"), "{last:#?}");
    // The session's token counts, and with it the platform's key is used: the other one goes nowhere.
    assert!(last[2].starts_with("ANSWER 200"), "{last:#?}");

    let got = ring.provider_got();
    assert!(got.len() > before, "there was something to look at");
    for request in got {
        assert!(
            ["/v1/messages", "/v1/messages/count_tokens"].contains(&request.path.as_str()),
            "{}",
            request.path
        );
        assert_eq!(request.key(), Some(PLANTED));
        let own = request
            .headers
            .values()
            .any(|value| value.as_bytes().windows(OWN.len()).any(|part| part == OWN.as_bytes()));
        assert!(!own, "{:?}", request.headers);
    }
}

/// Uses a token of a session that was torn down, and looks for what is left of it.
pub(super) async fn use_a_token_after_the_end(ring: &Ring) {
    let short = ring.karta.session().await;
    let token = token(&said(&ring.karta, short, PRINT_TOKEN).await);
    ring.karta.client.delete_session(short).await.unwrap();
    assert_eq!(called(ring.gateway, "authorization", &format!("Bearer {token}")).await, 401);
    let ask = format!("perl ask.pl 127.0.0.1 4180 POST /anthropic/v1/messages 'x-api-key: {token}'");
    let said = ring.attack(&ask).await;
    assert!(said.contains("ANSWER 401"), "{said}");

    let mut left = Vec::new();
    let mut open = vec![ring.karta.data.path().join("data")];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.path().to_string_lossy().contains(&short.to_string()) {
                left.push(entry.path());
            }
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            }
        }
    }
    assert_eq!(left, Vec::<PathBuf>::new());
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(&short.to_string()), "{mounts}");
}

/// Uses a token after its session's end where it was good before: that of a session that is not kept apart, at the gateway's port.
#[tokio::test]
#[ignore = "needs the real harnesses: ./test runs it"]
async fn a_token_ends_with_its_session() {
    let ring = Ring::new("process").await;
    let (bearer, _) = held(&ring.karta, ring.victim, (PRINT_TOKEN, "touch held"), async |said, _| {
        let bearer = format!("Bearer {}", token(&said));
        assert_eq!(called(ring.gateway, "authorization", &bearer).await, 200);
        (Decision::ApproveOnce, bearer)
    })
    .await;
    ring.karta.client.delete_session(ring.victim).await.unwrap();
    assert_eq!(called(ring.gateway, "authorization", &bearer).await, 401);
    ring.end().await;
}
