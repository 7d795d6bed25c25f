//! Streams: cut, repeated, with gaps, with rubbish.

use karta_client::{Error, EventStream, SendMessage};
use karta_types::{Body, ErrorCode, Event, Seq};
use serde_json::json;

use crate::fake::{Fake, OTHER_TURN, Play, SESSION, TURN, done, frame, problem, text};

async fn all(mut events: EventStream) -> (Vec<Event>, Option<Error>) {
    let mut seen = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => seen.push(event),
            Err(error) => {
                assert!(events.next().await.is_none(), "an error is the last thing said");
                return (seen, Some(error));
            }
        }
    }
    (seen, None)
}

fn seqs(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.seq.0).collect()
}

fn send(fake: &Fake) -> EventStream {
    fake.client.send_streaming(SESSION.parse().unwrap(), &SendMessage::text("hi")).unwrap()
}

#[tokio::test]
async fn a_message_streams_to_its_done_and_no_further() {
    let play = [":hello\n\n".to_owned(), text(1, "a"), done(2, TURN), text(3, "later")].concat();
    let fake = Fake::plays([Play::Stream(play)]).await;
    let (events, error) = all(send(&fake)).await;
    assert_eq!(seqs(&events), [1, 2]);
    assert!(error.is_none());
    let asked = &fake.asked()[0];
    assert_eq!(asked.line, format!("POST /v1/sessions/{SESSION}/messages"));
    assert_eq!(asked.header("authorization"), Some("Bearer kt_test_key"));
    assert_eq!(asked.body, json!({"text": "hi", "stream": true}));
}

#[tokio::test]
async fn a_cut_stream_goes_on_after_the_last_event_and_repeats_are_dropped() {
    let fake = Fake::plays([
        Play::Torn([text(5, "a"), text(6, "b")].concat()),
        // Half an event: it was never sent whole, so it comes again.
        Play::Stream([text(6, "b"), text(7, "c"), text(8, "d")[..40].to_owned()].concat()),
        problem(ErrorCode::Overloaded),
        Play::Text(502, "<h1>bad gateway</h1>"),
        Play::Stream([text(8, "d"), done(9, TURN)].concat()),
    ])
    .await;
    let (events, error) = all(send(&fake)).await;
    assert_eq!(seqs(&events), [5, 6, 7, 8, 9]);
    assert!(error.is_none(), "{error:?}");
    let asked = fake.asked();
    let resumed: Vec<_> = asked[1..].iter().map(|asked| asked.header("last-event-id").unwrap()).collect();
    assert_eq!(resumed, ["6", "7", "7", "7"]);
    assert_eq!(asked[1].line, format!("GET /v1/sessions/{SESSION}/events"));
}

#[tokio::test]
async fn cut_before_the_first_event_the_same_message_is_sent_under_the_same_key() {
    let fake = Fake::plays([
        Play::Torn(String::new()),
        problem(ErrorCode::RequestInProgress),
        Play::Stream([text(1, "a"), done(2, TURN)].concat()),
    ])
    .await;
    let (events, error) = all(send(&fake)).await;
    assert_eq!(seqs(&events), [1, 2]);
    assert!(error.is_none());
    let asked = fake.asked();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|one| one.line == asked[0].line && one.body == asked[0].body));
    assert!(asked[0].header("idempotency-key").is_some_and(|key| key.len() == 32));
    assert!(asked.iter().all(|one| one.header("idempotency-key") == asked[0].header("idempotency-key")));
    let again = Fake::plays([Play::Stream(done(1, TURN))]).await;
    all(send(&again)).await;
    assert_ne!(again.asked()[0].header("idempotency-key"), asked[0].header("idempotency-key"));
}

#[tokio::test]
async fn a_refused_message_is_told_and_not_repeated() {
    let fake = Fake::plays([problem(ErrorCode::TurnInProgress)]).await;
    let (events, error) = all(send(&fake)).await;
    assert!(events.is_empty());
    assert_eq!(error.unwrap().code(), Some(ErrorCode::TurnInProgress));
    assert_eq!(fake.asked().len(), 1);
}

#[tokio::test]
async fn attempts_are_bounded() {
    let fake = Fake::plays([
        Play::Torn(text(1, "a")),
        Play::Stream(String::new()),
        Play::Stream(String::new()),
        Play::Stream(String::new()),
        Play::Stream(done(2, TURN)),
    ])
    .await;
    let (events, error) = all(send(&fake)).await;
    assert_eq!(seqs(&events), [1]);
    assert!(error.unwrap().to_string().contains("keeps closing"));
    assert_eq!(fake.asked().len(), 4);
}

#[tokio::test]
async fn a_gap_is_given_out_and_moves_the_cursor() {
    let gap = frame(9, TURN, "gap", &json!({"from_seq": 3, "to_seq": 9}))
        .replace(&format!("\"turn_id\":\"{TURN}\""), "\"turn_id\":null");
    let fake = Fake::plays([
        Play::Torn(gap),
        Play::Stream([text(9, "missed"), text(10, "b"), done(11, TURN)].concat()),
    ])
    .await;
    let session = SESSION.parse().unwrap();
    let (events, error) = all(fake.client.turn_events(session, TURN.parse().unwrap(), Seq(2))).await;
    assert!(error.is_none());
    assert!(matches!(events[0].body, Body::Gap { from_seq: Seq(3), to_seq: Seq(9) }));
    assert_eq!(seqs(&events), [9, 10, 11]);
    assert_eq!(fake.asked()[0].header("last-event-id"), Some("2"));
    assert_eq!(fake.asked()[1].header("last-event-id"), Some("9"));
}

#[tokio::test]
async fn following_one_turn_passes_over_the_others() {
    let play = [done(1, OTHER_TURN), text(2, "a"), done(3, OTHER_TURN), done(4, TURN)].concat();
    let fake = Fake::plays([Play::Stream(play)]).await;
    let (events, _) =
        all(fake.client.turn_events(SESSION.parse().unwrap(), TURN.parse().unwrap(), Seq::START)).await;
    assert_eq!(seqs(&events), [2, 4]);
}

#[tokio::test]
async fn following_a_session_goes_on_after_a_done() {
    let fake = Fake::plays([Play::Silent([done(1, OTHER_TURN), done(2, TURN)].concat())]).await;
    let mut events = fake.client.events(SESSION.parse().unwrap(), Seq::START);
    assert_eq!(events.next().await.unwrap().unwrap().seq, Seq(1));
    assert_eq!(events.next().await.unwrap().unwrap().seq, Seq(2));
    assert_eq!(events.cursor(), Seq(2));
}

#[tokio::test]
async fn an_event_type_of_a_newer_server_is_passed_over() {
    let play = [frame(1, TURN, "hologram", &json!({"depth": 3})), done(2, TURN)].concat();
    let fake = Fake::plays([Play::Stream(play)]).await;
    let (events, error) = all(send(&fake)).await;
    assert_eq!(seqs(&events), [2]);
    assert!(error.is_none());
}

#[tokio::test]
async fn rubbish_ends_the_stream_with_what_was_whole_before_it() {
    let other = text(2, "x").replace(SESSION, "sess_01jd0000000000000000000009");
    for rubbish in [
        "data: not json\n\n".to_owned(),
        "data: {}\n\n".to_owned(),
        frame(2, TURN, "text", &json!({"part": 7})),
        other,
        "data: \u{0}\n\n".to_owned(),
    ] {
        let fake = Fake::plays([Play::Silent([text(1, "a"), rubbish].concat())]).await;
        let (events, error) = all(send(&fake)).await;
        assert_eq!(seqs(&events), [1]);
        assert!(matches!(error, Some(Error::Protocol { .. })), "{error:?}");
    }
    let fake = Fake::plays([Play::Text(200, "<h1>log in first</h1>")]).await;
    let (_, error) = all(send(&fake)).await;
    assert!(error.unwrap().to_string().contains("text/html"));
}

#[tokio::test]
async fn asking_may_be_broken_off_at_any_await_and_nothing_is_lost() {
    use futures_util::FutureExt as _;
    let fake = Fake::plays([
        Play::Torn(text(1, "a")),
        Play::Torn(text(2, "b")),
        Play::Stream([text(3, "c"), done(4, TURN)].concat()),
    ])
    .await;
    let mut events = send(&fake);
    let mut seen = Vec::new();
    loop {
        // Polled once and dropped, again and again.
        match events.next().now_or_never() {
            None => tokio::task::yield_now().await,
            Some(None) => break,
            Some(Some(event)) => seen.push(event.unwrap()),
        }
    }
    assert_eq!(seqs(&seen), [1, 2, 3, 4]);
    assert_eq!(fake.asked().len(), 3);
}
