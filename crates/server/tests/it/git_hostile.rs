//! What comes by `git push` and can't be taken, or is cut off on its way: nothing of it is left.

use std::process::Stdio;

use futures_util::StreamExt as _;
use karta_engine::Settings;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::git::{pushed, releases, saying};
use crate::git_client::{Ended, Work, kept, processes_in, repository, until};
use crate::support::{App, plain};

/// The project and its repository are as one push left them, and nothing that was refused is there.
async fn untouched(app: &App, head: &str, refused: &[&str]) {
    assert_eq!(until(|| Some(processes_in(app)).filter(Vec::is_empty)).await, Vec::<u32>::new());
    assert_eq!(kept(app, "pushed").await, ["refs/heads/main"]);
    let repository = repository(app, "pushed").await;
    assert_eq!(repository.head("main").await.as_deref(), Some(head));
    for object in refused {
        assert!(!repository.has(object).await, "{object} was refused and is there");
    }
    let versions: Vec<_> = releases(app, "pushed").await.iter().map(|row| row["version"].clone()).collect();
    assert_eq!(versions, [json!(1)]);
}

/// One entry of a tree, as git keeps it.
fn entry(mode: &str, name: &[u8], id: &str) -> Vec<u8> {
    let mut bytes = format!("{mode} ").into_bytes();
    bytes.extend_from_slice(name);
    bytes.push(0);
    bytes.extend((0..40).step_by(2).map(|at| u8::from_str_radix(&id[at..at + 2], 16).unwrap()));
    bytes
}

/// A tree whatever is in it, which no tool of git would make.
async fn tree(work: &Work, entries: &[Vec<u8>]) -> String {
    let args = ["hash-object", "-t", "tree", "-w", "--literally", "--stdin"];
    work.git_with(&args, &entries.concat()).await
}

async fn blob(work: &Work, content: &[u8]) -> String {
    work.git_with(&["hash-object", "-w", "--stdin"], content).await
}

#[tokio::test]
async fn hostile_trees_are_refused_by_the_rule_they_break() {
    let app = App::start(plain()).await;
    let work = pushed(&app, "pushed").await;
    let head = work.git(&["rev-parse", "HEAD"]).await;
    let file = blob(&work, saying("hostile").as_bytes()).await;
    let script = entry("100644", b"karta.script.json", &file);
    let inner = tree(&work, &[entry("100644", b"x", &file)]).await;
    let mut deep = inner.clone();
    for _ in 0..80 {
        deep = tree(&work, &[entry("40000", b"d", &deep)]).await;
    }
    // The same folder ten times in the same folder ten times: ten thousand million files, and as many folders without one.
    let empty = tree(&work, &[]).await;
    let (mut bomb, mut hollow) = (inner.clone(), empty.clone());
    for _ in 0..10 {
        let ten = |id: &str| (0..10u8).map(|at| entry("40000", &[b'0' + at], id)).collect::<Vec<_>>();
        bomb = tree(&work, &ten(&bomb)).await;
        hollow = tree(&work, &ten(&hollow)).await;
    }
    let passwd = blob(&work, b"/etc/passwd").await;
    let up = blob(&work, b"../..").await;
    let modules = blob(&work, b"[submodule \"x\"]\n\tpath = x\n\turl = -oProxyCommand=touch\n").await;
    let cases: Vec<(Vec<Vec<u8>>, &str)> = vec![
        (vec![entry("40000", b"..", &inner), script.clone()], "hasDotdot"),
        (vec![entry("40000", b".", &inner), script.clone()], "hasDot"),
        (vec![entry("40000", b".git", &inner), script.clone()], "hasDotgit"),
        (vec![entry("40000", b".GIT", &inner), script.clone()], "hasDotgit"),
        (vec![entry("40000", b"git~1", &inner), script.clone()], "hasDotgit"),
        (vec![entry("40000", ".g\u{200c}it".as_bytes(), &inner), script.clone()], "hasDotgit"),
        (vec![entry("100644", b"a/../b", &file), script.clone()], "fullPathname"),
        (vec![entry("100644", b"/etc/x", &file), script.clone()], "fullPathname"),
        (vec![script.clone(), script.clone()], "duplicateEntries"),
        (vec![entry("100644", b".gitmodules", &modules), script.clone()], "gitmodulesUrl"),
        (vec![entry("40000", b".karta", &inner), script.clone()], "reserved at the top"),
        (vec![script.clone(), entry("120000", b"l", &passwd)], "leads out of the folder"),
        (vec![script.clone(), entry("120000", b"l", &up)], "leads out of the folder"),
        (vec![entry("100644", b"a\\b", &file), script.clone()], "has a backslash"),
        (vec![entry("100644", b"KARTA.script.json", &file), script.clone()], "only in case"),
        (vec![entry("100644", b"a\nb", &file), script.clone()], "control character"),
        (vec![script.clone(), entry("100644", b"\xff\xfe", &file)], "not UTF-8"),
        (vec![script.clone(), entry("100644", &[b'n'; 300], &file)], "longer than 255 bytes"),
        (vec![entry("40000", b"d", &deep), script.clone()], "deeper than 64"),
        (vec![script.clone(), entry("160000", b"sub", &head)], "`sub` is a submodule"),
        (vec![entry("40000", b"bomb", &bomb), script.clone()], "more than 250000 files and folders"),
        (vec![entry("40000", b"hollow", &hollow), script.clone()], "more than 250000 files and folders"),
        (vec![], "holds no files"),
    ];
    for (entries, words) in &cases {
        let commit = work.commit_tree(&tree(&work, entries).await).await;
        for branch in ["main", "preview"] {
            let refused = work.push(&["--force", &format!("{commit}:refs/heads/{branch}")]).await;
            assert!(!refused.well && refused.said.contains(words), "{words}: {}", refused.said);
            assert!(!refused.said.contains("internal"), "{words}: {}", refused.said);
        }
        untouched(&app, &head, &[&commit]).await;
    }
    // On a first push they leave no project.
    work.remote(&app, "first", &app.key).await;
    let commit = work.commit_tree(&tree(&work, &cases[0].0).await).await;
    assert!(!work.push(&[&format!("{commit}:refs/heads/main")]).await.well);
    assert_eq!(app.call(reqwest::Method::GET, "/v1/projects/first", serde_json::Value::Null).await.0, 404);
    untouched(&app, &head, &[&commit]).await;
    app.stop().await;
}

/// A request to the project's `git-receive-pack`, as git sends it.
fn post(app: &App, body: Vec<u8>) -> reqwest::RequestBuilder {
    app.request(reqwest::Method::POST, "/git/pushed.git/git-receive-pack")
        .header("content-type", "application/x-git-receive-pack-request")
        .body(body)
}

/// What asks git to move `main` from one commit to another.
fn asking(old: &str, new: &str) -> Vec<u8> {
    let command = format!("{old} {new} refs/heads/main\0 report-status side-band-64k agent=test");
    format!("{:04x}{command}0000", command.len() + 4).into_bytes()
}

#[tokio::test]
async fn what_is_no_push_is_refused() {
    let app = App::start(plain()).await;
    let work = pushed(&app, "pushed").await;
    let head = work.git(&["rev-parse", "HEAD"]).await;
    let next = work.commit("Next").await;
    let good = asking(&head, &next);
    let with = |rest: &[u8]| [good.as_slice(), rest].concat();
    for (body, status, words) in [
        (b"garbage that is no packet".to_vec(), 400, "it is not a push"),
        (b"zzzz".to_vec(), 400, "it is not a push"),
        (with(b"garbage that is no pack"), 200, "unpack"),
        (with(b"PACK\0\0\0\x02\0\0\0\x05cut"), 200, "unpack"),
        (with(b"PACK\0\0\0\x09\xff\xff\xff\xff"), 200, "unpack"),
        (good.clone(), 200, "unpack"),
        // What git asks first, to learn whether it may: nothing, answered with nothing.
        (b"0000".to_vec(), 200, ""),
        (Vec::new(), 400, "it is not a push"),
    ] {
        let answer = post(&app, body).send().await.unwrap();
        let (got, text) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(got, status, "{text}");
        assert!(text.contains(words), "{words}: {text}");
        untouched(&app, &head, &[&next]).await;
    }
    let packed = post(&app, good.clone()).header("content-encoding", "gzip").send().await.unwrap();
    assert_eq!(packed.status(), 415);
    let plain = app.request(reqwest::Method::POST, "/git/pushed.git/git-receive-pack").body(good);
    assert_eq!(plain.send().await.unwrap().status(), 415);
    let dumb = app.request(reqwest::Method::GET, "/git/pushed.git/info/refs").send().await.unwrap();
    assert_eq!(dumb.status(), 400);
    let refs = "/git/pushed.git/info/refs?service=git-receive-pack";
    let refs =
        app.request(reqwest::Method::GET, refs).header("git-protocol", "version=2").send().await.unwrap();
    assert_eq!(refs.headers()["content-type"], "application/x-git-receive-pack-advertisement");
    assert!(refs.headers()["cache-control"].to_str().unwrap().starts_with("no-cache"));
    assert!(refs.text().await.unwrap().starts_with("001f# service=git-receive-pack\n0000"));
    untouched(&app, &head, &[&next]).await;
    app.stop().await;
}

#[tokio::test]
async fn a_pack_over_the_limit_is_refused_by_git_and_one_far_over_it_by_the_server() {
    let limit = |settings: &mut Settings| settings.git.push_bytes = 64 << 10;
    let app = App::start_with(plain(), limit).await;
    let work = pushed(&app, "pushed").await;
    let head = work.git(&["rev-parse", "HEAD"]).await;
    // Bytes that can't be made smaller.
    let noise = |bytes: usize| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .flatten()
        .take(bytes)
        .collect::<Vec<_>>()
    };
    for bytes in [200 << 10, 8 << 20] {
        work.write("noise", noise(bytes));
        let commit = work.commit("Noise").await;
        let refused = work.push(&["main"]).await;
        assert!(
            !refused.well && refused.said.contains("pack exceeds maximum allowed size"),
            "{}",
            refused.said
        );
        untouched(&app, &head, &[&commit]).await;
        work.git(&["reset", "--quiet", "--hard", &head]).await;
    }
    // One who sends on and on is cut off. Whether they read why depends on when they look.
    let endless = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![0; 1 << 20])).take(200);
    let first = futures_util::stream::iter([Ok(asking(&head, &head))]);
    let body = reqwest::Body::wrap_stream(first.chain(endless));
    let sent = post(&app, Vec::new()).body(body).send().await;
    assert!(sent.is_err() || !sent.unwrap().text().await.unwrap_or_default().contains("unpack ok"));
    untouched(&app, &head, &[]).await;
    app.stop().await;
}

#[tokio::test]
async fn a_pusher_who_is_cut_off_in_the_middle_leaves_nothing() {
    let app = App::start(plain()).await;
    let work = pushed(&app, "pushed").await;
    let head = work.git(&["rev-parse", "HEAD"]).await;
    work.write("more", "x".repeat(100_000));
    let next = work.commit("Next").await;
    let mut pack =
        work.command(&["pack-objects", "--stdout", "--revs"]).stdin(Stdio::piped()).spawn().unwrap();
    pack.stdin.take().unwrap().write_all(format!("{next}\n^{head}\n").as_bytes()).await.unwrap();
    let pack = pack.wait_with_output().await.unwrap().stdout;
    let body = [asking(&head, &next), pack].concat();
    for sent in [10, asking(&head, &next).len(), body.len() / 2, body.len() - 1] {
        let mut socket = TcpStream::connect(app.url.strip_prefix("http://").unwrap()).await.unwrap();
        let head_lines = format!(
            "POST /git/pushed.git/git-receive-pack HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/x-git-receive-pack-request\r\nContent-Length: {}\r\n\r\n",
            app.key,
            body.len()
        );
        socket.write_all(head_lines.as_bytes()).await.unwrap();
        socket.write_all(&body[..sent]).await.unwrap();
        // git is at work on what came; then there is nobody.
        until(|| Some(processes_in(&app)).filter(|all| !all.is_empty())).await;
        drop(socket);
        untouched(&app, &head, &[&next]).await;
    }
    // Sent whole, it is taken: the pieces before were good.
    let answer = post(&app, body).send().await.unwrap().text().await.unwrap();
    assert!(answer.contains("unpack ok"), "{answer}");
    app.stop().await;
}

/// A commit whose setup runs until somebody ends it. Answers the commit, and the push that waits for it.
async fn endless_push(app: &App, work: &Work, branch: &str) -> (String, tokio::process::Child) {
    work.write("karta.toml", "[build]\nsetup = \"echo it has begun; sleep 100000\"\n");
    let commit = work.commit("Build without end").await;
    // git has helpers, which a terminal's Ctrl-C ends with it.
    let mut push = work
        .command(&["push", "karta", &format!("HEAD:refs/heads/{branch}")])
        .process_group(0)
        .spawn()
        .unwrap();
    let mut said = String::new();
    let stderr = push.stderr.as_mut().unwrap();
    while !said.contains("it has begun") {
        let mut bytes = [0; 1000];
        let read =
            tokio::time::timeout(crate::support::PATIENCE, stderr.read(&mut bytes)).await.unwrap().unwrap();
        assert!(read > 0, "the push ended: {said}");
        said.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    assert!(!processes_in(app).is_empty());
    (commit, push)
}

/// Nothing of the push went live. Its release may be there, as one that failed or is still being built.
async fn not_live(app: &App, head: &str, commit: &str) {
    assert_eq!(until(|| Some(processes_in(app)).filter(Vec::is_empty)).await, Vec::<u32>::new());
    assert_eq!(kept(app, "pushed").await, ["refs/heads/main"]);
    let repository = repository(app, "pushed").await;
    assert_eq!(repository.head("main").await.as_deref(), Some(head));
    assert!(!repository.has(commit).await);
    let project = app.get("/v1/projects/pushed").await;
    assert_eq!(project["active_release"]["version"], 1);
    let previews = app.get("/v1/projects/pushed/previews").await;
    assert!(previews["data"].as_array().unwrap().is_empty(), "{previews}");
}

async fn end(push: tokio::process::Child) -> Ended {
    let output =
        tokio::time::timeout(crate::support::PATIENCE, push.wait_with_output()).await.unwrap().unwrap();
    Ended { well: output.status.success(), said: String::from_utf8_lossy(&output.stderr).into_owned() }
}

#[tokio::test]
async fn a_pusher_who_is_killed_during_the_build_leaves_nothing_live() {
    let app = App::start(plain()).await;
    let work = pushed(&app, "pushed").await;
    let head = work.git(&["rev-parse", "HEAD"]).await;
    let (commit, push) = endless_push(&app, &work, "late").await;
    kill(&format!("-{}", push.id().unwrap()));
    assert!(!end(push).await.well);
    not_live(&app, &head, &commit).await;
    app.stop().await;
}

#[tokio::test]
async fn a_hook_that_is_killed_refuses_the_push() {
    let app = App::start(plain()).await;
    let work = pushed(&app, "pushed").await;
    let head = work.git(&["rev-parse", "HEAD"]).await;
    let (commit, push) = endless_push(&app, &work, "main").await;
    let hook = processes_in(&app).into_iter().find(|number| {
        let line = std::fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("pre-receive")
    });
    kill(&hook.expect("the hook runs").to_string());
    let ended = end(push).await;
    assert!(!ended.well && ended.said.contains("pre-receive hook declined"), "{}", ended.said);
    not_live(&app, &head, &commit).await;
    app.stop().await;
}

#[tokio::test]
async fn a_git_that_is_killed_takes_nothing() {
    let app = App::start(plain()).await;
    let work = pushed(&app, "pushed").await;
    let head = work.git(&["rev-parse", "HEAD"]).await;
    let (commit, push) = endless_push(&app, &work, "main").await;
    let git = processes_in(&app).into_iter().find(|number| {
        let line = std::fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("receive-pack")
    });
    kill(&git.expect("git runs").to_string());
    assert!(!end(push).await.well);
    not_live(&app, &head, &commit).await;
    app.stop().await;
}

#[tokio::test]
async fn a_push_that_takes_too_long_is_stopped_with_a_sentence() {
    let app = App::start_with(plain(), |settings| settings.git.push_seconds = 1).await;
    let work = pushed(&app, "pushed").await;
    let head = work.git(&["rev-parse", "HEAD"]).await;
    work.write("karta.toml", "[build]\nsetup = \"sleep 100000\"\n");
    let commit = work.commit("Build without end").await;
    let late = work.push(&["main"]).await;
    assert!(!late.well && late.said.contains("took longer than 1 seconds"), "{}", late.said);
    not_live(&app, &head, &commit).await;
    app.stop().await;
}

#[tokio::test]
async fn a_server_that_stops_refuses_what_is_being_pushed() {
    let app = App::start(plain()).await;
    let work = pushed(&app, "pushed").await;
    let (_, push) = endless_push(&app, &work, "main").await;
    let (ended, ()) = tokio::join!(end(push), app.stop());
    assert!(!ended.well && ended.said.contains("The server is stopping"), "{}", ended.said);
}

/// Ends one process, by its number, or a group of them.
fn kill(number: &str) {
    let ended = std::process::Command::new("kill").args(["-KILL", "--", number]).status().unwrap();
    assert!(ended.success());
}
