//! Event streams.

use serde_json::json;

use crate::support::{App, Events, done, kinds, plain, seqs};

#[tokio::test]
async fn any_cursor_gives_the_rest() {
    let app = App::start(plain()).await;
    let session = app.session().await;
    let live = app.turn(&session, "hello").await;
    for after in 0..live.len() {
        let mut events = app.events(&session, &format!("?after={after}")).await;
        assert_eq!(events.until("done").await, live[after..], "after {after}");
    }
    let request = app.request(reqwest::Method::GET, &format!("/v1/sessions/{session}/events?after=0"));
    let mut events = Events::open(request.header("last-event-id", "3")).await;
    assert_eq!(seqs(&events.until("done").await)[0], 4, "what the browser saw last wins");
    let last = live.len();
    for query in [
        format!("?after={}", last + 1),
        "?after=-1".into(),
        "?after=x".into(),
        "?include=all".into(),
        "?colour=1".into(),
    ] {
        let (status, problem) = app
            .call(reqwest::Method::GET, &format!("/v1/sessions/{session}/events{query}"), json!(null))
            .await;
        assert_eq!((status, &problem["error"]), (400, &json!("invalid_request")), "{query}: {problem}");
    }
    app.stop().await;
}

#[tokio::test]
async fn many_follow_and_all_see_the_same() {
    let app = App::start(plain()).await;
    let session = app.session().await;
    let mut followers = Vec::new();
    for _ in 0..8 {
        followers.push(app.events(&session, "").await);
    }
    let first = app.turn(&session, "hello").await;
    let second = app.turn(&session, "hello").await;
    for follower in &mut followers {
        assert_eq!(follower.until("done").await, first);
        assert_eq!(follower.until("done").await, second);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_slow_reader_loses_nothing() {
    let script =
        json!({"turns": [{"steps": [{"repeat": {"times": 20000, "say": "word after word after word "}}]}]});
    let app = App::start(script).await;
    let session = app.session().await;
    let mut slow = app.events(&session, "").await;
    let events = app.turn(&session, "go").await;
    assert_eq!(slow.until("done").await, events);
    assert_eq!(seqs(&events), (1..=events.len() as u64).collect::<Vec<_>>());
    assert_eq!(events.len(), 20003);
    app.stop().await;
}

#[tokio::test]
async fn system_events_are_hidden_unless_asked_for() {
    let app = App::start(plain()).await;
    let session = app.session().await;
    let live = app.turn(&session, "notice").await;
    assert!(!kinds(&live).contains(&"system"));
    let plain = app.events(&session, "?after=0").await.until("done").await;
    assert_eq!(plain, live);
    let all = app.events(&session, "?after=0&include=system,raw").await.until("done").await;
    let notice = all.iter().find(|event| event["type"] == "system").unwrap();
    assert_eq!(notice["data"]["detail"], "a word aside");
    assert_eq!(seqs(&all), (1..=all.len() as u64).collect::<Vec<_>>());
    app.stop().await;
}

#[tokio::test]
async fn what_is_no_longer_kept_is_a_gap() {
    let app = App::start_with(plain(), |settings| settings.journal_retention_seconds = 0).await;
    let session = app.session().await;
    let first = app.turn(&session, "hello").await;
    app.engine.keep_house().await;
    let second = app.turn(&session, "hello").await;
    let seen = app.events(&session, "?after=2").await.until("done").await;
    assert_eq!(seen[0]["type"], "gap");
    assert_eq!(seen[0]["data"], json!({"from_seq": 3, "to_seq": first.len()}));
    assert_eq!(seen[1..], second);
    assert_eq!(done(&second)["status"], "completed");
    app.stop().await;
}
