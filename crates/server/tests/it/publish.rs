//! An archive becomes a release: what is taken, what is refused, and that nothing else changes by it.

use std::collections::BTreeSet;
use std::path::Path;

use karta_release::{Files, Hash, archive};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, Named, PATIENCE, answer, plain};

/// A folder with these files, and a script of one answer.
pub(crate) fn folder(at: &Path, says: &str, files: &[(&str, &str)]) {
    std::fs::create_dir_all(at).unwrap();
    let script = json!({"history": true, "turns": [{"match": "wait", "steps": [{"hang": false}]}, {"steps": [{"say": says}]}]});
    std::fs::write(at.join("karta.script.json"), script.to_string()).unwrap();
    for (path, content) in files {
        std::fs::create_dir_all(at.join(path).parent().unwrap()).unwrap();
        std::fs::write(at.join(path), content).unwrap();
    }
}

/// The folder's archive, whole, or partial with only these contents.
pub(crate) fn packed(at: &Path, only: Option<&BTreeSet<Hash>>) -> Vec<u8> {
    let files = Files::read(at).unwrap();
    let mut archive = Vec::new();
    archive::pack(at, &files, only, &mut archive).unwrap();
    archive
}

impl App {
    pub(crate) async fn publish(&self, path: &str, archive: Vec<u8>) -> (u16, Value) {
        let path = format!("/v1/projects/{path}");
        answer(self.request(Method::POST, &path).body(archive).send().await.unwrap()).await
    }

    /// The words that a new session of the project answers with.
    pub(crate) async fn says(&self, project: &str) -> Value {
        let (status, body) =
            self.post(&format!("/v1/projects/{project}/messages"), json!({"text": "hello"})).await;
        assert_eq!(status, 200, "{body}");
        body["text"].clone()
    }
}

#[tokio::test]
async fn the_first_archive_makes_the_project_and_the_same_again_is_the_same_release() {
    let app = App::start(plain()).await;
    let at = app.data.path().join("shop");
    folder(&at, "one", &[("a.txt", "a"), ("b/c.txt", "c")]);
    let request = app.request(Method::POST, "/v1/projects/shop/releases").body(packed(&at, None));
    let request = request.header("karta-commit", "c0ffee").header("karta-message", "f%C3%BCr%20alle");
    let (status, first) = answer(request.send().await.unwrap()).await;
    assert_eq!(status, 201, "{first}");
    assert_eq!((&first["version"], &first["state"]), (&json!(1), &json!("active")));
    assert_eq!((&first["commit"], &first["message"]), (&json!("c0ffee"), &json!("für alle")));
    assert_eq!((&first["file_count"], &first["harness"]["type"]), (&json!(3), &json!("scripted")));
    assert!(first["created_by"].as_str().unwrap().starts_with("key:"));
    assert_eq!(app.says("shop").await, "one");
    let (status, again) = app.publish("shop/releases", packed(&at, None)).await;
    assert_eq!((status, &again["version"], &again["digest"]), (200, &json!(1), &first["digest"]));
    folder(&at, "two", &[]);
    let (status, second) = app.publish("shop/releases?activate=false", packed(&at, None)).await;
    assert_eq!((status, &second["version"], &second["state"]), (201, &json!(2), &json!("ready")));
    assert_eq!(app.says("shop").await, "one");
    let (_, activated) = app.post("/v1/projects/shop/releases/2/activate", json!({})).await;
    assert_eq!(activated["version"], 2);
    assert_eq!(app.says("shop").await, "two");
    let diff = app.get("/v1/projects/shop/releases/1/diff/2").await;
    assert_eq!(diff["files"], json!({"added": [], "removed": [], "changed": ["karta.script.json"]}));
    // What was published comes back byte for byte.
    let path = "/v1/projects/shop/releases/v2/archive";
    let bytes = app.request(Method::GET, path).send().await.unwrap().bytes().await.unwrap();
    let out = app.data.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let files = archive::unpack(&*bytes, &out, &archive::Limits::default(), &archive::Nothing).unwrap();
    assert_eq!(files, Files::read(&at).unwrap());
    app.stop().await;
}

#[tokio::test]
async fn only_what_is_lacking_has_to_travel() {
    let app = App::start(plain()).await;
    let at = app.data.path().join("shop");
    folder(&at, "one", &[("large.txt", &"x".repeat(100_000)), ("other.txt", "o")]);
    let missing = async |hashes: &[String]| {
        let (status, body) = app.post("/v1/projects/shop/releases/missing", json!({"hashes": hashes})).await;
        (status, body["hashes"].clone())
    };
    let all = |at: &Path| Files::read(at).unwrap().hashes().iter().map(Hash::to_string).collect::<Vec<_>>();
    assert_eq!(missing(&all(&at)).await.0, 404, "there is no project yet");
    app.publish("shop/releases", packed(&at, None)).await;
    assert_eq!(missing(&all(&at)).await, (200, json!([])));
    folder(&at, "two", &[("new.txt", "n")]);
    let lacking: Vec<String> = serde_json::from_value(missing(&all(&at)).await.1).unwrap();
    assert_eq!(lacking.len(), 2);
    let only: BTreeSet<Hash> = lacking.iter().map(|hash| hash.parse().unwrap()).collect();
    let partial = packed(&at, Some(&only));
    assert!(partial.len() < 5000);
    let (status, second) = app.publish("shop/releases", partial).await;
    assert_eq!((status, &second["version"]), (201, &json!(2)), "{second}");
    assert_eq!(app.says("shop").await, "two");
    // Another project of the same organisation has none of it: contents are a project's own.
    let (status, problem) = app.publish("other/releases", packed(&at, Some(&BTreeSet::new()))).await;
    assert_eq!((status, &problem["error"]), (409, &json!("content_missing")), "{problem}");
    let (status, _) = app.call(Method::GET, "/v1/projects/other", Value::Null).await;
    assert_eq!(status, 404, "a refused first publish leaves no project");
    let (status, problem) = app.post("/v1/projects/shop/releases/missing", json!({"hashes": ["x"]})).await;
    assert_eq!((status, &problem["pointer"]), (400, &json!("/hashes/0")));
    app.stop().await;
}

#[tokio::test]
async fn releases_come_back_from_the_blob_store_alone() {
    let app = App::start(plain()).await;
    let at = app.data.path().join("shop");
    folder(&at, "one", &[("a.txt", "a"), ("b.txt", "b")]);
    app.publish("shop/releases", packed(&at, None)).await;
    folder(&at, "two", &[("a.txt", "other")]);
    app.publish("shop/releases", packed(&at, None)).await;
    folder(&at, "three", &[]);
    app.publish("shop/releases?activate=false", packed(&at, None)).await;
    // As on a node that has only the database and the blob store.
    std::fs::remove_dir_all(app.engine.data_dir().join("releases")).unwrap();
    let (_, told) = app.post("/v1/projects/shop/releases/3/activate", json!({})).await;
    assert_eq!(told["version"], 3, "{told}");
    assert_eq!(app.says("shop").await, "three");
    let on_shelf = std::fs::read_dir(app.engine.data_dir().join("releases")).unwrap();
    let project = on_shelf.map(|entry| entry.unwrap().path()).next().unwrap();
    let copies: Vec<_> = std::fs::read_dir(project).unwrap().collect();
    assert_eq!(copies.len(), 1, "one copy for all its sessions");
    let copy = copies.into_iter().next().unwrap().unwrap().path();
    assert_eq!(Files::read(&copy).unwrap(), Files::read(&at).unwrap());
    app.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_its_place_and_changes_nothing() {
    let app = App::start(plain()).await;
    let at = app.data.path().join("shop");
    folder(&at, "one", &[]);
    app.publish("shop/releases", packed(&at, None)).await;
    let whole = packed(&at, None);
    folder(&at, "two", &[("karta.toml", "[harness]\ntyp = \"scripted\"\n[policy]\nhooks = 3\n")]);
    let (status, problem) = app.publish("shop/releases", packed(&at, None)).await;
    assert_eq!((status, &problem["error"]), (422, &json!("invalid_release")), "{problem}");
    let faults = problem["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 2, "all at once: {problem}");
    assert_eq!((&faults[0]["file"], &faults[0]["line"]), (&json!("karta.toml"), &json!(2)));
    let set = |text: &str| std::fs::write(at.join("karta.toml"), text).unwrap();
    std::fs::write(at.join("CLAUDE.md"), "Be kind.").unwrap();
    for (manifest, word) in [
        ("[harness]\ntype = \"claude-code\"\nversion = \"9.9.9\"\n", "9.9.9"),
        ("[harness]\ntype = \"opencode\"\n", "opencode"),
        ("[policy]\nisolation = \"microvm\"\n", "isolation"),
        ("[policy]\negress = [\"example.com\"]\n", "egress"),
        ("[env]\nTOKEN = { secret = true }\n", "secret"),
    ] {
        set(manifest);
        let (status, problem) = app.publish("shop/releases", packed(&at, None)).await;
        assert_eq!((status, &problem["error"]), (422, &json!("invalid_release")), "{manifest}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(word), "{problem}");
    }
    for (name, archive) in [
        ("nothing", Vec::new()),
        ("cut off", whole[..whole.len() / 2].to_vec()),
        ("garbage", vec![7; 3000]),
        (
            "empty",
            packed(
                &{
                    let empty = app.data.path().join("empty");
                    std::fs::create_dir(&empty).unwrap();
                    empty
                },
                None,
            ),
        ),
    ] {
        let (status, problem) = app.publish("shop/releases", archive).await;
        assert_eq!((status, &problem["error"]), (422, &json!("invalid_release")), "{name}: {problem}");
    }
    for (path, pointer) in [
        ("shop/releases?preview=Bad%20Name", "/preview"),
        ("shop/releases?preview=x&activate=true", "/activate"),
        ("Shop/releases", "/slug"),
    ] {
        let (status, problem) = app.publish(path, whole.clone()).await;
        assert_eq!((status, &problem["pointer"]), (400, &json!(pointer)), "{problem}");
    }
    assert_eq!(app.get("/v1/projects/shop/releases").await["data"].as_array().unwrap().len(), 1);
    assert_eq!(app.says("shop").await, "one");
    // What was refused is removed off the way of the answer.
    let incoming = app.engine.data_dir().join("incoming");
    let cleared = async {
        while std::fs::read_dir(&incoming).unwrap().next().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, cleared).await.unwrap();
    app.stop().await;
}

#[tokio::test]
async fn a_release_too_large_for_the_server_is_refused() {
    let app = App::start_with(plain(), |settings| settings.releases.max_bytes = 10_000).await;
    let at = app.data.path().join("shop");
    folder(&at, "one", &[("large.bin", &"x".repeat(20_000))]);
    let (status, problem) = app.publish("shop/releases", packed(&at, None)).await;
    assert_eq!((status, &problem["error"]), (413, &json!("payload_too_large")), "{problem}");
    app.stop().await;
}

#[tokio::test]
async fn a_setup_runs_once_is_told_as_it_runs_and_its_result_is_taken_over() {
    let app = App::start(plain()).await;
    let at = app.data.path().join("shop");
    let manifest = "[build]\nsetup = \"echo making; mkdir -p made; date +%s%N > made/stamp; echo done >&2\"\ninputs = [\"package.json\"]\n";
    folder(&at, "one", &[("karta.toml", manifest), ("package.json", "{}")]);
    let request = app.request(Method::POST, "/v1/projects/shop/releases").body(packed(&at, None));
    let mut events = Named::open(request.header("accept", "text/event-stream")).await;
    let mut said = Vec::new();
    let release = loop {
        let (kind, data) = events.next().await.expect("a release at the end");
        match kind.as_str() {
            "log" => said.push(data["text"].as_str().unwrap().to_owned()),
            "release" => break data,
            other => panic!("{other}: {data}"),
        }
    };
    assert_eq!(events.next().await, None);
    assert!(said.iter().any(|line| line == "making") && said.iter().any(|line| line == "done"), "{said:?}");
    assert_eq!((&release["version"], &release["state"]), (&json!(1), &json!("active")));
    // The log stays.
    let url = release["build_log_url"].as_str().unwrap();
    let mut following =
        Named::open(app.request(Method::GET, url).header("accept", "text/event-stream")).await;
    for line in &said {
        assert_eq!(following.next().await.unwrap().1["text"], *line);
    }
    let kept = app.get(url).await;
    assert_eq!(kept["data"].as_array().unwrap().len(), said.len());
    let stamp = |version: u64| {
        let shelf = app.engine.data_dir().join("releases");
        let mut found = Vec::new();
        for project in std::fs::read_dir(shelf).unwrap() {
            for release in std::fs::read_dir(project.unwrap().path()).unwrap() {
                let path = release.unwrap().path();
                let script = std::fs::read_to_string(path.join("karta.script.json")).unwrap();
                if path.join("made/stamp").exists()
                    && script.contains(if version == 1 { "one" } else { "two" })
                {
                    found.push(std::fs::read_to_string(path.join("made/stamp")).unwrap());
                }
            }
        }
        assert_eq!(found.len(), 1, "one built copy of v{version}");
        found.remove(0)
    };
    let first = stamp(1);
    // Other words, the same inputs: the setup is not run again.
    folder(&at, "two", &[]);
    let (status, second) = app.publish("shop/releases", packed(&at, None)).await;
    assert_eq!((status, &second["version"]), (201, &json!(2)), "{second}");
    assert_eq!(stamp(2), first);
    assert_eq!(app.says("shop").await, "two");
    let (_, third) = {
        folder(&at, "one", &[("package.json", "{\"other\": 1}")]);
        app.publish("shop/releases", packed(&at, None)).await
    };
    assert_eq!(third["version"], 3, "{third}");
    app.stop().await;
}

#[tokio::test]
async fn a_setup_that_fails_leaves_what_runs() {
    let app = App::start(plain()).await;
    let at = app.data.path().join("shop");
    folder(&at, "one", &[]);
    app.publish("shop/releases", packed(&at, None)).await;
    let manifest = "[build]\nsetup = \"echo about to fail; exit 7\"\n";
    folder(&at, "two", &[("karta.toml", manifest)]);
    let (status, problem) = app.publish("shop/releases", packed(&at, None)).await;
    assert_eq!((status, &problem["error"]), (422, &json!("build_failed")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("status 7"));
    let failed = app.get("/v1/projects/shop/releases/2").await;
    assert_eq!((&failed["state"], failed["error"].is_string()), (&json!("failed"), true));
    let (status, problem) = app.post("/v1/projects/shop/releases/2/activate", json!({})).await;
    assert_eq!((status, &problem["error"]), (409, &json!("release_not_ready")));
    assert_eq!(app.says("shop").await, "one");
    // It is told: in the audit log, and with its stream as an error.
    let audit = app.get("/v1/audit?action=release.fail").await;
    assert_eq!(audit["data"].as_array().unwrap().len(), 1);
    let request = app.request(Method::POST, "/v1/projects/shop/releases").body(packed(&at, None));
    let mut events = Named::open(request.header("accept", "text/event-stream")).await;
    let mut last = None;
    while let Some(event) = events.next().await {
        last = Some(event);
    }
    let (kind, problem) = last.unwrap();
    assert_eq!((kind.as_str(), &problem["error"]), ("error", &json!("build_failed")));
    let (status, _) = app.call(Method::DELETE, "/v1/projects/shop/releases/2", Value::Null).await;
    assert_eq!(status, 204);
    app.stop().await;
}

#[tokio::test]
async fn a_preview_has_an_address_of_its_own_and_goes_with_its_sessions() {
    let app = App::start(plain()).await;
    let at = app.data.path().join("shop");
    folder(&at, "one", &[]);
    app.publish("shop/releases", packed(&at, None)).await;
    folder(&at, "two", &[]);
    let (status, release) = app.publish("shop/releases?preview=pr-7", packed(&at, None)).await;
    assert_eq!((status, &release["state"], &release["preview"]), (201, &json!("preview"), &json!("pr-7")));
    assert_eq!((app.says("shop").await, app.says("shop@pr-7").await), (json!("one"), json!("two")));
    let previews = app.get("/v1/projects/shop/previews").await;
    assert_eq!(
        (&previews["data"][0]["slug"], &previews["data"][0]["release"]["version"]),
        (&json!("shop@pr-7"), &json!(2))
    );
    let listed = app.get("/v1/projects").await;
    assert_eq!(listed["data"].as_array().unwrap().len(), 2, "previews are not among the projects");
    // A key for the preview reaches nothing else, and of the releases only the one it shows.
    let wanted = json!({"name": "pr", "scopes": ["read", "write", "admin"], "project": "shop@pr-7"});
    let (status, made) = app.post("/v1/keys", wanted).await;
    assert_eq!(status, 201, "{made}");
    let key = made["key"].as_str().unwrap();
    let as_preview = async |method, path: &str, body| app.as_key(method, path, key, body).await.0;
    let hello = json!({"text": "hello"});
    assert_eq!(as_preview(Method::POST, "/v1/projects/shop@pr-7/messages", hello.clone()).await, 200);
    assert_eq!(as_preview(Method::POST, "/v1/projects/shop/messages", hello.clone()).await, 404);
    assert_eq!(as_preview(Method::GET, "/v1/projects/shop@pr-7/releases/2", Value::Null).await, 200);
    assert_eq!(as_preview(Method::GET, "/v1/projects/shop@pr-7/releases/1", Value::Null).await, 404);
    assert_eq!(as_preview(Method::POST, "/v1/projects/shop@pr-7/rollback", json!({})).await, 400);
    // Published again it shows the new release at the same address; its release can go live.
    folder(&at, "three", &[]);
    app.publish("shop/releases?preview=pr-7", packed(&at, None)).await;
    assert_eq!(app.says("shop@pr-7").await, "three");
    app.post("/v1/projects/shop/releases/3/activate", json!({})).await;
    assert_eq!(app.says("shop").await, "three");
    let (_, told) = app.post("/v1/projects/shop@pr-7/messages", hello).await;
    let session = told["session_id"].as_str().unwrap();
    let (status, _) = app.call(Method::DELETE, "/v1/projects/shop/previews/pr-7", Value::Null).await;
    assert_eq!(status, 204);
    let (status, _) = app.call(Method::GET, &format!("/v1/sessions/{session}"), Value::Null).await;
    assert_eq!(status, 404);
    let (status, _) = app.call(Method::DELETE, "/v1/projects/shop/previews/pr-7", Value::Null).await;
    assert_eq!(status, 404);
    assert_eq!(app.get("/v1/projects/shop/releases/2").await["state"], "preview");
    app.stop().await;
}

#[tokio::test]
async fn a_project_goes_with_everything() {
    let app = App::start(plain()).await;
    let (status, made) = app.post("/v1/projects", json!({"slug": "shop", "name": "The shop"})).await;
    assert_eq!((status, &made["name"], &made["active_release"]), (201, &json!("The shop"), &Value::Null));
    let (status, problem) = app.post("/v1/projects", json!({"slug": "shop"})).await;
    assert_eq!((status, &problem["pointer"]), (400, &json!("/slug")));
    let (status, problem) = app.post("/v1/projects/shop/messages", json!({"text": "hello"})).await;
    assert_eq!((status, &problem["error"]), (409, &json!("no_active_release")));
    let at = app.data.path().join("shop");
    folder(&at, "one", &[]);
    app.publish("shop/releases", packed(&at, None)).await;
    app.publish("shop/releases?preview=x", packed(&at, None)).await;
    assert_eq!((app.says("shop").await, app.says("shop@x").await), (json!("one"), json!("one")));
    let (_, renamed) = app.call(Method::PATCH, "/v1/projects/shop", json!({"name": "Shop"})).await;
    assert_eq!(renamed["name"], "Shop");
    let (status, _) = app.call(Method::DELETE, "/v1/projects/shop", Value::Null).await;
    assert_eq!(status, 204);
    let (status, _) = app.call(Method::GET, "/v1/projects/shop@x", Value::Null).await;
    assert_eq!(status, 404);
    let id = made["id"].as_str().unwrap();
    let gone = |folder: &str| !app.engine.data_dir().join(folder).join(id).exists();
    assert!(gone("releases"));
    let packs = std::fs::read_dir(app.engine.data_dir().join("blobs/packs")).unwrap();
    assert!(packs.map(|entry| entry.unwrap().file_name()).all(|name| name != *id));
    app.stop().await;
}

#[tokio::test]
async fn a_canary_takes_its_share_of_new_sessions_only() {
    let app = App::start(plain()).await;
    let at = app.data.path().join("shop");
    folder(&at, "one", &[]);
    app.publish("shop/releases", packed(&at, None)).await;
    let (_, old) = app.post("/v1/projects/shop/messages", json!({"text": "hello"})).await;
    let old = old["session_id"].as_str().unwrap().to_owned();
    folder(&at, "two", &[]);
    app.publish("shop/releases?activate=false", packed(&at, None)).await;
    let path = "/v1/projects/shop/releases/2/activate";
    for percent in [0, 100, 300] {
        let (status, _) = app.post(path, json!({"percent": percent})).await;
        assert_eq!(status, 400, "{percent}");
    }
    let (status, project) = app.post(path, json!({"percent": 50, "reason": "careful"})).await;
    assert_eq!(status, 200, "{project}");
    assert_eq!((&project["canary"]["percent"], &project["canary"]["version"]), (&json!(50), &json!(2)));
    let mut seen = Vec::new();
    for _ in 0..40 {
        let (_, told) = app.post("/v1/projects/shop/messages", json!({"text": "hello"})).await;
        seen.push((told["session_id"].as_str().unwrap().to_owned(), told["text"].clone()));
    }
    let on_canary = seen.iter().filter(|(_, text)| text == "two").count();
    assert!((1..40).contains(&on_canary), "{on_canary} of 40");
    // The same session stays on its side; one from before the canary is not moved.
    let again = async |session: &str| {
        let (_, told) = app.post(&format!("/v1/sessions/{session}/messages"), json!({"text": "hello"})).await;
        told["text"].clone()
    };
    for (session, text) in seen.iter().take(6) {
        assert_eq!(again(session).await, *text);
    }
    assert_eq!(again(&old).await, "one");
    let (_, project) = app.post("/v1/projects/shop/canary/abort", json!({})).await;
    assert_eq!(project["canary"], Value::Null);
    for (session, _) in seen.iter().take(6) {
        assert_eq!(again(session).await, "one");
    }
    let (status, _) = app.post("/v1/projects/shop/canary/promote", json!({})).await;
    assert_eq!(status, 404);
    app.post(path, json!({"percent": 1})).await;
    let (_, promoted) = app.post("/v1/projects/shop/canary/promote", json!({})).await;
    assert_eq!((&promoted["version"], &promoted["kind"]), (&json!(2), &json!("promote")));
    assert_eq!((again(&old).await, app.says("shop").await), (json!("two"), json!("two")));
    app.stop().await;
}

#[tokio::test]
async fn a_turn_ends_on_the_release_it_began_on() {
    let app = App::start(plain()).await;
    let at = app.data.path().join("shop");
    folder(&at, "one", &[]);
    app.publish("shop/releases", packed(&at, None)).await;
    let session = async |pin: Value| {
        let (status, body) = app.post("/v1/sessions", json!({"project": "shop", "release_pin": pin})).await;
        assert_eq!(status, 201, "{body}");
        body["id"].as_str().unwrap().to_owned()
    };
    let (free, pinned) = (session(json!("turn")).await, session(json!("session")).await);
    for id in [&free, &pinned] {
        app.turn(id, "hello").await;
        let waiting = json!({"text": "wait"});
        let request = app.request(Method::POST, &format!("/v1/sessions/{id}/messages"));
        let request = request.header("prefer", "respond-async").json(&waiting);
        assert_eq!(request.send().await.unwrap().status(), 202);
    }
    folder(&at, "two", &[]);
    app.publish("shop/releases", packed(&at, None)).await;
    let mut versions = Vec::new();
    for id in [&free, &pinned] {
        let running = app.get(&format!("/v1/sessions/{id}/turns")).await;
        versions.push(running["data"][0]["release"]["version"].clone());
        assert_eq!(running["data"][0]["state"], "running", "a deploy cuts nobody");
        app.post(&format!("/v1/sessions/{id}/interrupt"), json!({})).await;
        let next = app.turn(id, "hello").await;
        versions.push(
            next.iter().find(|event| event["type"] == "turn_start").unwrap()["data"]["release"]["version"]
                .clone(),
        );
    }
    assert_eq!(versions, [1, 2, 1, 1]);
    let by_number = session(json!(1)).await;
    let events = app.turn(&by_number, "hello").await;
    assert_eq!(events[0]["data"]["release"]["version"], 1);
    app.post("/v1/projects/shop/rollback", json!({})).await;
    let events = app.turn(&free, "hello").await;
    assert_eq!(events[0]["data"]["release"]["version"], 1);
    app.stop().await;
}
