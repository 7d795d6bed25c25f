//! `git push karta`, by the real git client against the real `git receive-pack`.

use karta_types::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::git_client::{Work, kept, processes_in, repository, until};
use crate::support::{App, done, plain};

/// A script that always says this.
pub(crate) fn saying(words: &str) -> String {
    json!({"turns": [{"steps": [{"say": words}]}]}).to_string()
}

/// What the project answers to a message.
async fn said(app: &App, project: &str) -> Value {
    let (status, answer) =
        app.post(&format!("/v1/projects/{project}/messages"), json!({"text": "hello"})).await;
    assert_eq!(status, 200, "{answer}");
    answer["text"].clone()
}

pub(crate) async fn releases(app: &App, project: &str) -> Vec<Value> {
    app.get(&format!("/v1/projects/{project}/releases")).await["data"].as_array().unwrap().clone()
}

async fn active(app: &App, project: &str) -> Value {
    app.get(&format!("/v1/projects/{project}")).await["active_release"]["version"].clone()
}

/// A tree with one commit that says one thing, pushed to a project that is new.
pub(crate) async fn pushed(app: &App, project: &str) -> Work {
    let work = Work::new().await;
    work.remote(app, project, &app.key).await;
    work.write("karta.script.json", saying("one"));
    work.commit("Say one").await;
    let pushed = work.push(&["main"]).await;
    assert!(pushed.well, "{}", pushed.said);
    work
}

#[tokio::test]
async fn the_first_push_makes_the_project_and_the_next_one_its_next_release() {
    let app = App::start(plain()).await;
    let work = Work::new().await;
    work.remote(&app, "pushed", &app.key).await;
    work.write("karta.script.json", saying("one"));
    let first = work.commit("Say one\n\nAnd more of it.").await;
    let pushed = work.push(&["main"]).await;
    assert!(pushed.well, "{}", pushed.said);
    assert!(pushed.said.contains(&format!("remote: main at {}: Say one", &first[..7])), "{}", pushed.said);
    assert!(pushed.said.contains("remote: v1 of pushed is active."), "{}", pushed.said);
    assert!(pushed.said.contains(&format!("remote: {}/v1/projects/pushed ", app.url)), "{}", pushed.said);
    assert_eq!(said(&app, "pushed").await, "one");
    let release = &releases(&app, "pushed").await[0];
    assert_eq!((&release["commit"], &release["message"]), (&json!(first), &json!("Say one (Ann)")));
    assert!(release["created_by"].as_str().unwrap().starts_with("key:"));

    work.write("karta.script.json", saying("two"));
    work.commit("Say two").await;
    let again = work.push(&["main"]).await;
    assert!(again.well && again.said.contains("v2 of pushed is active."), "{}", again.said);
    assert_eq!(said(&app, "pushed").await, "two");

    // A commit with the files of the one before is the release before.
    work.commit("Nothing else").await;
    let same = work.push(&["main"]).await;
    assert!(same.well && same.said.contains("v2 of pushed is active, as it was"), "{}", same.said);
    // Going back by force is going back.
    let back = work.push(&["--force", &format!("{first}:main")]).await;
    assert!(back.well && back.said.contains("v1 of pushed is active again"), "{}", back.said);
    assert_eq!(said(&app, "pushed").await, "one");
    assert_eq!(releases(&app, "pushed").await.len(), 2);
    assert!(work.push(&["main:main"]).await.well);
    assert_eq!(said(&app, "pushed").await, "two");
    assert!(work.push(&["main"]).await.said.contains("Everything up-to-date"));
    let audit = app.get("/v1/audit?action=release.activate").await;
    assert!(audit["data"].as_array().unwrap().iter().any(|row| row["reason"] == "Say two (Ann)"), "{audit}");
    assert_eq!(kept(&app, "pushed").await, ["refs/heads/main"]);
    app.stop().await;
}

#[tokio::test]
async fn a_broken_manifest_is_refused_with_its_place_and_the_release_before_stays() {
    let app = App::start(plain()).await;
    let work = pushed(&app, "pushed").await;
    let before = work.git(&["rev-parse", "HEAD"]).await;
    work.write("karta.toml", "[harnes]\ntype = \"scripted\"\n");
    work.commit("Break it").await;
    let refused = work.push(&["main"]).await;
    assert!(!refused.well, "{}", refused.said);
    assert!(refused.said.contains("remote: karta.toml:1:2"), "{}", refused.said);
    assert!(refused.said.contains("(invalid_release). What runs stays as it is."), "{}", refused.said);
    assert!(refused.said.contains("main -> main (pre-receive hook declined)"), "{}", refused.said);
    assert_eq!((active(&app, "pushed").await, releases(&app, "pushed").await.len()), (json!(1), 1));
    assert_eq!(repository(&app, "pushed").await.head("main").await.as_ref(), Some(&before));
    // The same on a first push leaves no project.
    work.remote(&app, "broken", &app.key).await;
    assert!(!work.push(&["main"]).await.well);
    assert_eq!(app.call(Method::GET, "/v1/projects/broken", Value::Null).await.0, 404);
    // Mended, it is pushed as if nothing had been.
    work.write("karta.toml", "[harness]\ntype = \"scripted\"\n");
    work.commit("Mend it").await;
    for (project, words) in [("pushed", "v2 of pushed is active."), ("broken", "v1 of broken is active.")] {
        work.remote(&app, project, &app.key).await;
        let mended = work.push(&["main"]).await;
        assert!(mended.well && mended.said.contains(words), "{}", mended.said);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_build_is_seen_by_the_pusher_and_one_that_fails_refuses_the_push() {
    let app = App::start(plain()).await;
    let work = pushed(&app, "pushed").await;
    work.write("karta.toml", "[build]\nsetup = \"echo half way; exit 3\"\n");
    work.commit("Fail").await;
    let refused = work.push(&["main"]).await;
    assert!(!refused.well && refused.said.contains("remote:   half way"), "{}", refused.said);
    assert!(refused.said.contains("the setup ended with status 3"), "{}", refused.said);
    assert!(refused.said.contains("(build_failed). What runs stays as it is."), "{}", refused.said);
    assert_eq!((active(&app, "pushed").await, said(&app, "pushed").await), (json!(1), json!("one")));
    let states: Vec<_> = releases(&app, "pushed").await.iter().map(|row| row["state"].clone()).collect();
    assert_eq!(states, ["failed", "active"]);
    work.write("karta.toml", "[build]\nsetup = \"echo all the way > made; cat made\"\n");
    work.commit("Succeed").await;
    let built = work.push(&["main"]).await;
    assert!(built.well && built.said.contains("remote:   all the way"), "{}", built.said);
    assert_eq!(active(&app, "pushed").await, 3);
    app.stop().await;
}

#[tokio::test]
async fn a_branch_is_a_preview_for_as_long_as_it_is_there() {
    let app = App::start(plain()).await;
    let work = pushed(&app, "pushed").await;
    work.write("karta.script.json", saying("shown"));
    work.commit("Show it").await;
    let shown = work.push(&["HEAD:refs/heads/Feature/Show_it"]).await;
    assert!(shown.well && shown.said.contains("v2 is the preview feature-show-it until "), "{}", shown.said);
    assert!(shown.said.contains("/v1/projects/pushed@feature-show-it "), "{}", shown.said);
    assert_eq!(said(&app, "pushed@feature-show-it").await, "shown");
    assert_eq!((said(&app, "pushed").await, active(&app, "pushed").await), (json!("one"), json!(1)));
    // It moves with its branch.
    work.write("karta.script.json", saying("shown again"));
    work.commit("Show it again").await;
    assert!(work.push(&["HEAD:refs/heads/Feature/Show_it"]).await.well);
    assert_eq!(said(&app, "pushed@feature-show-it").await, "shown again");
    // Another branch of the same name for people is refused.
    let same = work.push(&["HEAD:refs/heads/feature-show-it"]).await;
    assert!(!same.well && same.said.contains("would have the same preview"), "{}", same.said);
    // It goes with its branch.
    let gone = work.push(&[":refs/heads/Feature/Show_it"]).await;
    assert!(gone.well && gone.said.contains("The preview feature-show-it is gone"), "{}", gone.said);
    let previews = app.get("/v1/projects/pushed/previews").await;
    assert!(previews["data"].as_array().unwrap().is_empty(), "{previews}");
    // One that ended by itself is made again by the same push.
    assert!(work.push(&["HEAD:refs/heads/late"]).await.well);
    let (status, _) = app.call(Method::DELETE, "/v1/projects/pushed/previews/late", Value::Null).await;
    assert_eq!(status, 204);
    let late = work.push(&["HEAD:refs/heads/late"]).await;
    assert!(late.well && late.said.contains("is the preview late"), "{}", late.said);
    // Its branch can be deleted when it is gone already.
    app.call(Method::DELETE, "/v1/projects/pushed/previews/late", Value::Null).await;
    let refs = kept(&app, "pushed").await;
    assert_eq!(refs, ["refs/heads/late", "refs/heads/main"], "the branch is there until somebody asks");
    // A preview is not pushed to.
    work.push(&["HEAD:refs/heads/late"]).await;
    work.remote(&app, "pushed@late", &app.key).await;
    let inside = work.push(&["HEAD:main"]).await;
    assert!(!inside.well && inside.said.contains("publish to the project of the preview"), "{}", inside.said);
    app.stop().await;
}

#[tokio::test]
async fn several_branches_are_taken_together_or_not_at_all() {
    let app = App::start(plain()).await;
    let work = pushed(&app, "pushed").await;
    let main = work.git(&["rev-parse", "HEAD"]).await;
    work.write("karta.script.json", saying("good"));
    let good = work.commit("Good").await;
    work.write("karta.toml", "nonsense");
    let bad = work.commit("Bad").await;
    let refused = work.push(&[&format!("{good}:refs/heads/good"), &format!("{bad}:refs/heads/main")]).await;
    assert!(!refused.well && refused.said.contains("karta.toml:1"), "{}", refused.said);
    let previews = app.get("/v1/projects/pushed/previews").await;
    assert!(previews["data"].as_array().unwrap().is_empty(), "{previews}");
    assert_eq!(
        (kept(&app, "pushed").await, active(&app, "pushed").await),
        (vec!["refs/heads/main".into()], json!(1))
    );
    let taken = work.push(&[&format!("{good}:refs/heads/main"), &format!("{main}:refs/heads/old")]).await;
    assert!(taken.well, "{}", taken.said);
    assert_eq!((said(&app, "pushed").await, said(&app, "pushed@old").await), (json!("good"), json!("one")));
    app.stop().await;
}

#[tokio::test]
async fn what_is_no_branch_is_refused_with_a_sentence() {
    let app = App::start(plain()).await;
    let work = pushed(&app, "pushed").await;
    work.git(&["tag", "v1"]).await;
    work.git(&["tag", "-a", "v2", "-m", "two"]).await;
    for (refspec, words) in [
        ("v1", "tags are not taken"),
        ("v2", "tags are not taken"),
        ("HEAD:refs/notes/commits", "is not a branch"),
        ("HEAD:refs/heads/++", "no letter or digit"),
        ("HEAD:refs/heads/MAIN", "is what is live"),
        (":main", "can't be deleted"),
        ("HEAD^{tree}:refs/heads/tree", "is not a commit"),
    ] {
        let refused = work.push(&[refspec]).await;
        assert!(!refused.well && refused.said.contains(words), "{refspec}: {}", refused.said);
    }
    assert_eq!(kept(&app, "pushed").await, ["refs/heads/main"]);
    assert_eq!(releases(&app, "pushed").await.len(), 1);
    // Fetching says what there is instead.
    for args in [vec!["fetch", "karta"], vec!["ls-remote", "karta"]] {
        let fetched = work.try_git(&args).await;
        assert!(!fetched.well && fetched.said.contains("takes pushes only"), "{}", fetched.said);
    }
    app.stop().await;
}

#[tokio::test]
async fn what_is_pushed_is_what_is_published_whatever_its_attributes_say() {
    let app = App::start(plain()).await;
    let work = Work::new().await;
    work.remote(&app, "pushed", &app.key).await;
    work.write("karta.script.json", saying("one"));
    // As they are stored: nothing is converted on the way in.
    work.git(&["config", "core.autocrlf", "false"]).await;
    work.write("words.txt", "a\nb\n");
    work.write("marks.txt", "$Format:%H%G?$ $Id$\n");
    work.write("run.sh", "#!/bin/sh\n");
    std::fs::set_permissions(
        work.folder.path().join("run.sh"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    std::os::unix::fs::symlink("words.txt", work.folder.path().join("link")).unwrap();
    work.commit("Plain").await;
    work.write(".gitattributes", "* text eol=crlf\nmarks.txt export-subst ident\nwords.txt export-ignore\n[attr]x export-ignore\nlink x\n");
    work.git(&["add", ".gitattributes"]).await;
    work.git(&["commit", "--quiet", "--message", "With attributes"]).await;
    let pushed = work.push(&["main"]).await;
    assert!(pushed.well, "{}", pushed.said);
    // The same files by upload are the same release.
    let archive = app.data.path().join("by-hand.tar");
    let files = [".gitattributes", "karta.script.json", "link", "marks.txt", "run.sh", "words.txt"];
    let mut tar = std::process::Command::new("tar");
    tar.arg("cf").arg(&archive).args(files).current_dir(work.folder.path());
    assert!(tar.status().unwrap().success());
    let sent =
        app.request(Method::POST, "/v1/projects/pushed/releases").body(std::fs::read(&archive).unwrap());
    let sent = sent.header("content-type", "application/x-tar").send().await.unwrap();
    let (status, release) = crate::support::answer(sent).await;
    assert_eq!((status, &release["version"]), (200, &json!(1)), "{release}");
    app.stop().await;
}

#[tokio::test]
async fn a_shallow_clone_can_push() {
    let app = App::start(plain()).await;
    let work = pushed(&app, "pushed").await;
    for number in 0..4 {
        work.write("karta.script.json", saying(&format!("number {number}")));
        work.commit(&format!("Number {number}")).await;
    }
    let shallow = Work::new().await;
    let origin = format!("file://{}", work.folder.path().display());
    shallow.git(&["fetch", "--quiet", "--depth=1", &origin, "main"]).await;
    shallow.git(&["checkout", "--quiet", "-B", "main", "FETCH_HEAD"]).await;
    for project in ["pushed", "anew"] {
        shallow.remote(&app, project, &app.key).await;
        let pushed = shallow.push(&["--force", "main"]).await;
        assert!(pushed.well, "{}", pushed.said);
        assert_eq!(said(&app, project).await, "number 3");
    }
    // And whoever has all of it goes on from there.
    work.write("karta.script.json", saying("whole"));
    work.commit("Whole").await;
    let whole = work.push(&["--force", "main"]).await;
    assert!(whole.well, "{}", whole.said);
    assert_eq!(said(&app, "pushed").await, "whole");
    app.stop().await;
}

#[tokio::test]
async fn a_key_comes_as_a_password_by_a_helper_or_as_a_header() {
    let app = App::start(plain()).await;
    let work = Work::new().await;
    work.write("karta.script.json", saying("one"));
    work.commit("Say one").await;
    let url = format!("{}/git/pushed.git", app.url);
    work.git(&["remote", "add", "karta", &url]).await;
    let asked = work.push(&["main"]).await;
    assert!(!asked.well && asked.said.contains("could not read Username"), "{}", asked.said);
    let helper =
        |key: &str| format!("credential.helper=!f() {{ echo username=anyone; echo password={key}; }}; f");
    let wrong = work.try_git(&["-c", &helper("kt_live_nonsense"), "push", "karta", "main"]).await;
    assert!(!wrong.well && wrong.said.contains("Authentication failed"), "{}", wrong.said);
    assert!(wrong.said.contains("the password is an API key"), "{}", wrong.said);
    let right = work.try_git(&["-c", &helper(&app.key), "push", "karta", "main"]).await;
    assert!(right.well, "{}", right.said);
    // As in CI: one token, nothing on disk.
    work.commit("Again").await;
    let header = format!("http.extraHeader=Authorization: Bearer {}", app.person(Role::Developer).await);
    let header = work.try_git(&["-c", &header, "push", "karta", "main"]).await;
    assert!(header.well, "{}", header.said);
    app.stop().await;
}

#[tokio::test]
async fn a_project_by_its_id_and_after_it_was_deleted() {
    let app = App::start(plain()).await;
    let work = pushed(&app, "pushed").await;
    let id = app.get("/v1/projects/pushed").await["id"].as_str().unwrap().to_owned();
    work.remote(&app, &id, &app.key).await;
    assert!(work.push(&["main"]).await.said.contains("Everything up-to-date"));
    assert_eq!(app.call(Method::DELETE, "/v1/projects/pushed", Value::Null).await.0, 204);
    assert!(!app.data.path().join(format!("data/git/{id}.git")).exists());
    let gone = work.push(&["main"]).await;
    assert!(!gone.well && gone.said.contains("not_found"), "{}", gone.said);
    // The name is free, and nothing of before is remembered.
    work.remote(&app, "pushed", &app.key).await;
    let anew = work.push(&["main"]).await;
    assert!(anew.well && anew.said.contains("v1 of pushed is active."), "{}", anew.said);
    app.stop().await;
}

#[tokio::test]
async fn who_may_push() {
    let app = App::start(plain()).await;
    let work = pushed(&app, "pushed").await;
    let id = app.get("/v1/projects/pushed").await["id"].as_str().unwrap().to_owned();
    work.write("karta.script.json", saying("foreign"));
    work.commit("Foreign").await;
    let (reader, foreign) = (app.key_with("read").await, app.foreign_key().await);
    let viewer = app.person(Role::Viewer).await;
    let wanted = json!({"name": "one project", "scopes": ["read", "write"], "project": "app"});
    let (_, made) = app.post("/v1/keys", wanted).await;
    let of_app = made["key"].as_str().unwrap();
    let (_, token) = app.post("/v1/session-tokens", json!({"project": "pushed", "end_user_id": "ann"})).await;
    let token = token["token"].as_str().unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let refs = "info/refs?service=git-receive-pack";
    for (key, project, status) in [
        ("", "pushed", 401),
        ("kt_live_nonsense", "pushed", 401),
        (&reader, "pushed", 403),
        (&viewer, "pushed", 403),
        (token, "pushed", 403),
        // Of another organisation: an id is not found; a name would be a project of its own.
        (&foreign, &id, 404),
        // For another project, and for one that it would have to make.
        (of_app, "pushed", 404),
        (of_app, &id, 404),
        (of_app, "other", 404),
        (&app.key, "Not_A_Name", 400),
        (&app.key, "proj_00000000000000000000000000", 404),
    ] {
        for (method, what) in [
            (Method::GET, refs),
            (Method::POST, "git-receive-pack"),
            (Method::GET, "info/refs?service=git-upload-pack"),
            (Method::POST, "git-upload-pack"),
        ] {
            let call = client.request(method.clone(), format!("{}/git/{project}.git/{what}", app.url));
            let call = call.header("content-type", "application/x-git-receive-pack-request");
            let call = if key.is_empty() { call } else { call.basic_auth("any", Some(key)) };
            let answer = call.send().await.unwrap();
            let fetching = what.ends_with("upload-pack");
            let expected = if fetching && status != 401 { 403 } else { status };
            assert_eq!(answer.status(), expected, "{key} {method} {project}/{what}");
            assert_eq!(answer.headers()["content-type"], "text/plain; charset=utf-8");
            let challenge = answer.headers().get("www-authenticate").map(|value| value.to_str().unwrap());
            assert_eq!(challenge.is_some_and(|value| value.starts_with("Basic ")), status == 401);
        }
    }
    for key in [&reader, &foreign, of_app] {
        work.remote(&app, &id, key).await;
        assert!(!work.push(&["main"]).await.well);
    }
    assert_eq!(said(&app, "pushed").await, "one");
    // It is its own project's.
    work.remote(&app, "app", of_app).await;
    assert!(work.push(&["main"]).await.well);
    // And a foreign name is the other organisation's own project.
    work.remote(&app, "pushed", &foreign).await;
    let theirs = work.push(&["main"]).await;
    assert!(theirs.well && theirs.said.contains("v1 of pushed is active."), "{}", theirs.said);
    assert_eq!(said(&app, "pushed").await, "one");
    app.stop().await;
}

#[tokio::test]
async fn two_pushes_at_once_come_one_after_the_other() {
    let app = App::start(plain()).await;
    let (one, two) = (Work::new().await, Work::new().await);
    for (work, words) in [(&one, "one"), (&two, "two")] {
        work.remote(&app, "pushed", &app.key).await;
        work.write("karta.script.json", saying(words));
        work.write("karta.toml", "[build]\nsetup = \"echo built > made\"\n");
        work.commit(words).await;
    }
    let (first, second) = tokio::join!(one.push(&["main"]), two.push(&["main"]));
    assert!(first.well != second.well, "{first:?} {second:?}");
    let lost = if first.well { &second } else { &first };
    let told =
        ["push again", "fetch first", "non-fast-forward"].iter().any(|words| lost.said.contains(words));
    assert!(told, "{}", lost.said);
    assert_eq!(said(&app, "pushed").await, if first.well { "one" } else { "two" });
    assert_eq!(releases(&app, "pushed").await.len(), 1);
    let (first, second) = tokio::join!(one.push(&["main:a"]), two.push(&["main:b"]));
    assert!(first.well && second.well, "{first:?} {second:?}");
    assert_eq!((said(&app, "pushed@a").await, said(&app, "pushed@b").await), (json!("one"), json!("two")));
    assert_eq!(until(|| Some(processes_in(&app)).filter(Vec::is_empty)).await, Vec::<u32>::new());
    app.stop().await;
}

#[tokio::test]
async fn a_turn_that_runs_ends_on_what_it_began_with() {
    let app = App::start(plain()).await;
    let work = pushed(&app, "pushed").await;
    let (status, session) = app.post("/v1/sessions", json!({"project": "pushed"})).await;
    assert_eq!(status, 201, "{session}");
    let session = session["id"].as_str().unwrap();
    assert_eq!(done(&app.turn(session, "hello").await)["text"], "one");
    work.write("karta.script.json", saying("two"));
    work.commit("Say two").await;
    assert!(work.push(&["main"]).await.well);
    assert_eq!(done(&app.turn(session, "hello").await)["text"], "two");
    app.stop().await;
}
