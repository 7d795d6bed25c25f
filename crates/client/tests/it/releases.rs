//! Projects, releases, publishing and logs: what is sent, what is read, what outlives a cut.

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use karta_client::{Error, LogFilter, LogStream, Publication, Publish, Published};
use karta_types::ErrorCode;
use karta_types::release::{Line, ReleaseState};
use serde_json::{Value, json};

use crate::fake::{Fake, Play, problem};

fn release(version: u64, state: &str) -> Value {
    json!({"version": version, "id": "rel_01jd0000000000000000000001", "digest": "ab".repeat(32),
        "harness": {"type": "scripted", "version": "1.0.0"}, "agents": [], "skills": [], "commands": [], "hooks": [],
        "mcp_servers": [], "warnings": [], "policy": {}, "commit": null, "message": null, "created_by": "system:karta",
        "size_bytes": 12, "file_count": 1, "preview": null, "state": state, "error": null, "build_log_url": null,
        "created_at": "2026-11-24T00:00:00Z", "a_field_of_tomorrow": true})
}

fn project() -> Value {
    json!({"id": "proj_01jd0000000000000000000001", "slug": "app", "name": "App", "active_release": null, "canary": null,
        "agents": [], "created_at": "2026-11-24T00:00:00Z"})
}

fn activation(version: u64, kind: &str) -> Value {
    json!({"seq": 3, "version": version, "kind": kind, "by": "key:key_1", "reason": null, "at": "2026-11-24T00:00:00Z"})
}

fn page(row: &Value) -> Value {
    json!({"data": [row], "next_cursor": null})
}

fn line(cursor: &str, text: &str) -> String {
    let line =
        json!({"cursor": cursor, "at": "2026-11-24T00:00:00Z", "version": 2, "kind": "build", "text": text});
    format!("id: {cursor}\nevent: log\ndata: {line}\n\n")
}

/// An archive that comes in these pieces.
fn pieces(
    pieces: &[&'static str],
) -> impl futures_util::Stream<Item = Result<Bytes, std::io::Error>> + use<> {
    stream::iter(pieces.iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes()))).collect::<Vec<_>>())
}

async fn all(mut publication: Publication) -> (Vec<Published>, Option<Error>) {
    let mut seen = Vec::new();
    while let Some(next) = publication.next().await {
        match next {
            Ok(next) => seen.push(next),
            Err(error) => {
                assert!(publication.next().await.is_none(), "an error is the last thing said");
                return (seen, Some(error));
            }
        }
    }
    (seen, None)
}

#[tokio::test]
async fn projects_and_previews_are_made_listed_and_ended() {
    let preview = json!({"id": "proj_01jd0000000000000000000002", "name": "pr-7", "slug": "app@pr-7",
        "release": {"version": 2, "id": "rel_01jd0000000000000000000001"}, "created_at": "2026-11-24T00:00:00Z",
        "expires_at": "2026-12-01T00:00:00Z"});
    let fake = Fake::plays([
        Play::Json(201, project()),
        Play::Json(200, project()),
        Play::Json(204, Value::Null),
        Play::Json(200, page(&preview)),
        Play::Json(204, Value::Null),
    ])
    .await;
    fake.client.create_project("app", Some("App")).await.unwrap();
    fake.client.rename_project("app", "Application").await.unwrap();
    fake.client.delete_project("app").await.unwrap();
    let previews = fake.client.previews("app", Some("c")).await.unwrap();
    assert_eq!(previews.data[0].slug, "app@pr-7");
    fake.client.remove_preview("app", "feature/one").await.unwrap();
    let asked = fake.asked();
    let lines: Vec<_> = asked.iter().map(|asked| asked.line.as_str()).collect();
    assert_eq!(
        lines,
        [
            "POST /v1/projects",
            "PATCH /v1/projects/app",
            "DELETE /v1/projects/app",
            "GET /v1/projects/app/previews?cursor=c",
            "DELETE /v1/projects/app/previews/feature%2Fone",
        ]
    );
    assert_eq!(asked[0].body, json!({"slug": "app", "name": "App"}));
    assert_eq!(asked[1].body, json!({"name": "Application"}));
}

#[tokio::test]
async fn releases_are_read_compared_tried_promoted_and_deleted() {
    let diff = json!({"files": {"added": ["a"], "removed": [], "changed": ["b"]}, "agents": {"added": [], "removed": [], "changed": []},
        "skills": {"added": [], "removed": [], "changed": []}, "commands": {"added": [], "removed": [], "changed": []},
        "hooks": {"added": [], "removed": [], "changed": []}, "mcp_servers": {"added": [], "removed": [], "changed": []},
        "policy": {"added": [], "removed": [], "changed": ["hooks: false"]},
        "harness": [{"type": "claude-code", "version": "1.0.0"}, {"type": "claude-code", "version": "1.0.1"}]});
    let fake = Fake::plays([
        Play::Json(200, page(&release(2, "ready"))),
        Play::Json(200, release(2, "ready")),
        Play::Json(200, diff),
        Play::Json(200, project()),
        Play::Json(200, activation(2, "promote")),
        Play::Json(200, project()),
        Play::Json(204, Value::Null),
        Play::Text(200, "bytes of an archive"),
        problem(ErrorCode::ReleaseInUse),
    ])
    .await;
    let client = &fake.client;
    assert_eq!(client.releases("app", Some("c")).await.unwrap().data[0].version, 2);
    assert_eq!(client.release("app", 2).await.unwrap().state, ReleaseState::Ready);
    let diff = client.diff("app", 1, 2).await.unwrap();
    assert_eq!((diff.files.added[0].as_str(), diff.harness.unwrap().1.version.as_str()), ("a", "1.0.1"));
    client.canary("app", 2, 10, None).await.unwrap();
    assert_eq!(client.promote("app", Some("it is well")).await.unwrap().version, 2);
    client.abort("app", None).await.unwrap();
    client.delete_release("app", 1).await.unwrap();
    let mut bytes = Vec::new();
    let mut archive = client.download("app", 2).await.unwrap();
    while let Some(piece) = archive.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(bytes, b"bytes of an archive");
    let refused = client.delete_release("app", 2).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::ReleaseInUse));
    let asked = fake.asked();
    let lines: Vec<_> = asked.iter().map(|asked| asked.line.as_str()).collect();
    assert_eq!(
        lines,
        [
            "GET /v1/projects/app/releases?cursor=c",
            "GET /v1/projects/app/releases/2",
            "GET /v1/projects/app/releases/1/diff/2",
            "POST /v1/projects/app/releases/2/activate",
            "POST /v1/projects/app/canary/promote",
            "POST /v1/projects/app/canary/abort",
            "DELETE /v1/projects/app/releases/1",
            "GET /v1/projects/app/releases/2/archive",
            "DELETE /v1/projects/app/releases/2",
        ]
    );
    assert_eq!(asked[3].body, json!({"reason": null, "percent": 10}));
    assert_eq!(asked[4].body, json!({"reason": "it is well"}));
}

#[tokio::test]
async fn what_is_missing_is_asked_in_pieces_that_fit() {
    let hashes: Vec<_> = (0..10_000).map(|number| format!("{number:064x}")).collect();
    let fake = Fake::plays([
        Play::Json(200, json!({"hashes": [hashes[1]]})),
        Play::Json(200, json!({"hashes": [hashes[9_999]]})),
    ])
    .await;
    let missing = fake.client.missing("app", &hashes).await.unwrap();
    assert_eq!(missing, [hashes[1].clone(), hashes[9_999].clone()]);
    let asked = fake.asked();
    let counts: Vec<_> = asked.iter().map(|asked| asked.body["hashes"].as_array().unwrap().len()).collect();
    assert_eq!(counts, [8192, 10_000 - 8192]);
    assert_eq!(asked[0].line, "POST /v1/projects/app/releases/missing");
}

#[tokio::test]
async fn an_archive_goes_up_in_pieces_and_the_build_comes_down() {
    let build = [
        ":alive\n\n".to_owned(),
        line("1", "installing"),
        "event: hologram\ndata: {}\n\n".to_owned(),
        line("2", "done"),
        format!("event: release\ndata: {}\n\n", release(4, "active")),
        line("3", "too late"),
    ]
    .concat();
    let fake = Fake::plays([Play::Stream(build)]).await;
    let how = Publish {
        activate: true,
        commit: Some("1f2e-dirty".into()),
        message: Some("Grüße, 2 %".into()),
        ..Publish::default()
    };
    let (seen, error) =
        all(fake.client.publish("app", &how, pieces(&["one ", "two ", "three"])).unwrap()).await;
    assert!(error.is_none(), "{error:?}");
    let texts: Vec<_> = seen
        .iter()
        .map(|seen| match seen {
            Published::Log(line) => match &line.line {
                Line::Build { text } => text.clone(),
                Line::Turn { .. } => "a turn".to_owned(),
            },
            Published::Release(release) => format!("v{}", release.version),
        })
        .collect();
    assert_eq!(texts, ["installing", "done", "v4"]);
    let asked = &fake.asked()[0];
    assert_eq!(asked.line, "POST /v1/projects/app/releases?activate=true");
    assert_eq!(&asked.raw[..], b"one two three");
    let headers = ["accept", "karta-commit", "karta-message"].map(|name| asked.header(name).unwrap());
    assert_eq!(headers, ["text/event-stream", "1f2e-dirty", "Gr%C3%BC%C3%9Fe%2C%202%20%25"]);
    assert_ne!(asked.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn a_failed_publication_says_why_and_is_never_sent_twice() {
    let failed = serde_json::to_string(&karta_types::Problem::new(ErrorCode::BuildFailed, "exit 1")).unwrap();
    let fake = Fake::plays([
        Play::Stream([line("1", "no such package"), format!("event: error\ndata: {failed}\n\n")].concat()),
        problem(ErrorCode::InvalidRelease),
        Play::Torn(line("1", "installing")),
        Play::Stream(line("1", "installing")),
        Play::Stream("event: release\ndata: {}\n\n".to_owned()),
    ])
    .await;
    let how = Publish { preview: Some("pr-7".into()), ..Publish::default() };
    let go = || all(fake.client.publish("app", &how, pieces(&["x"])).unwrap());
    let (seen, error) = go().await;
    assert_eq!((seen.len(), error.unwrap().code()), (1, Some(ErrorCode::BuildFailed)));
    let (seen, error) = go().await;
    assert_eq!((seen.len(), error.unwrap().code()), (0, Some(ErrorCode::InvalidRelease)));
    let (seen, error) = go().await;
    assert!(seen.len() == 1 && matches!(error, Some(Error::Transport { .. })), "{error:?}");
    let (_, error) = go().await;
    assert!(error.unwrap().to_string().contains("before its end"));
    let (_, error) = go().await;
    assert!(matches!(error, Some(Error::Protocol { .. })), "{error:?}");
    let asked = fake.asked();
    assert_eq!(asked.len(), 5);
    assert_eq!(asked[0].line, "POST /v1/projects/app/releases?activate=false&preview=pr-7");
}

#[tokio::test]
async fn an_archive_that_breaks_is_an_error_and_no_release() {
    let fake = Fake::plays([Play::Stream(String::new())]).await;
    let broken = pieces(&["x"]).chain(stream::iter([Err(std::io::Error::other("the file changed"))]));
    let (_, error) = all(fake.client.publish("app", &Publish::default(), broken).unwrap()).await;
    assert!(matches!(error, Some(Error::Transport { .. })), "{error:?}");
}

async fn texts(mut log: LogStream, most: usize) -> (Vec<String>, Option<Error>) {
    let mut seen = Vec::new();
    while seen.len() < most {
        match log.next().await {
            Some(Ok(line)) => seen.push(line.cursor),
            Some(Err(error)) => return (seen, Some(error)),
            None => break,
        }
    }
    (seen, None)
}

#[tokio::test]
async fn a_log_goes_on_behind_the_last_line_however_often_it_is_cut() {
    let hologram = "event: log\ndata: {\"cursor\":\"b3\",\"kind\":\"hologram\"}\n\n".to_owned();
    let fake = Fake::plays([
        Play::Torn([line("b1", "one"), line("b2", "two"), hologram].concat()),
        Play::Text(502, "<h1>bad gateway</h1>"),
        Play::Silent(line("b4", "four")),
    ])
    .await;
    let filter =
        LogFilter { kind: Some("build".into()), version: Some(2), limit: Some(20), ..LogFilter::default() };
    let (seen, error) = texts(fake.client.follow_logs("app", &filter), 3).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(seen, ["b1", "b2", "b4"]);
    let asked = fake.asked();
    let lines: Vec<_> = asked.iter().map(|asked| asked.line.as_str()).collect();
    let first = "GET /v1/projects/app/logs?kind=build&version=2&limit=20";
    let behind = format!("{first}&after=b3");
    assert_eq!(lines, [first, behind.as_str(), behind.as_str()]);
    assert!(asked.iter().all(|asked| asked.header("accept") == Some("text/event-stream")));
}

#[tokio::test]
async fn a_log_is_read_once_and_rubbish_ends_it() {
    let row =
        json!({"cursor": "b1", "at": "2026-11-24T00:00:00Z", "version": 2, "kind": "build", "text": "one"});
    let fake = Fake::plays([
        Play::Json(200, page(&row)),
        Play::Silent([line("b2", "two"), "data: {}\n\n".to_owned()].concat()),
        problem(ErrorCode::NotFound),
    ])
    .await;
    let filter = LogFilter { after: Some("b0".into()), ..LogFilter::default() };
    assert_eq!(fake.client.logs("app", &filter).await.unwrap().data[0].cursor, "b1");
    let (seen, error) = texts(fake.client.follow_logs("app", &filter), 9).await;
    assert!(seen == ["b2"] && matches!(error, Some(Error::Protocol { .. })), "{error:?}");
    let (_, error) = texts(fake.client.follow_logs("app", &LogFilter::default()), 9).await;
    assert_eq!(error.unwrap().code(), Some(ErrorCode::NotFound));
    assert_eq!(fake.asked()[0].line, "GET /v1/projects/app/logs?after=b0");
}
