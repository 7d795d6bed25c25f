//! Publishing from the command line to a real server, end to end: what went up, what runs, what can be had back.

use std::path::Path;

use karta_release::archive::{self, Known, Limits};
use karta_release::folder::{self, Choice};
use serde_json::{Value, json};

use crate::run::Ran;
use crate::served::Served;

/// A server without projects, and a folder whose agent says this.
async fn start(home: &Path, says: &str) -> Served {
    let server = Served::start_as(home, "data", "", &["serve"]).await;
    script(home, says);
    write(home, "karta.toml", "project = \"bot\"\n");
    write(home, "notes/a.txt", "one\n");
    server
}

fn write(home: &Path, name: &str, content: &str) {
    let path = home.join("app").join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// What the agent says from the next release on.
fn script(home: &Path, says: &str) {
    let script = json!({"turns": [{"steps": [{"say": says}]}]});
    write(home, "karta.script.json", &script.to_string());
}

async fn deploy(server: &Served, args: &[&str]) -> Ran {
    let app = server.home.join("app");
    server.run(&[&["deploy", app.to_str().unwrap()], args].concat()).await
}

/// Deploys for machines; it must work.
async fn deployed(server: &Served, args: &[&str]) -> Value {
    let ran = deploy(server, &[&["--json"], args].concat()).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    serde_json::from_str(&ran.out).unwrap()
}

/// What the agent of a project says.
async fn says(server: &Served, project: &str) -> String {
    let ran = server.run(&["chat", "--project", project, "-m", "hi"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran.out.trim().to_owned()
}

async fn fine(server: &Served, args: &[&str]) -> String {
    let ran = server.run(args).await;
    assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
    ran.out
}

#[tokio::test]
async fn a_folder_goes_up_once_and_then_only_what_changed() {
    let home = tempfile::tempdir().unwrap();
    let server = start(home.path(), "first").await;
    let ran = deploy(&server, &["-m", "the first"]).await;
    assert_eq!((ran.code, ran.out), (Some(0), format!("{}/v1/projects/bot\n", server.url)), "{}", ran.err);
    for said in
        ["bot: 3 files, ", "sending 3 of 3 files", "bot v1 is active  3 files sent", "The project is new"]
    {
        assert!(ran.err.contains(said), "{said}: {}", ran.err);
    }
    assert_eq!(says(&server, "bot").await, "first");
    let again = deployed(&server, &[]).await;
    assert_eq!((&again["version"], &again["uploaded_files"]), (&json!(1), &json!(0)));
    assert_eq!(again["message"], "the first");
    assert!(deploy(&server, &[]).await.err.contains("Nothing changed: bot v1 is active  0 files sent"));
    // What a CI job has: a key that does nothing but this.
    let key: Value =
        serde_json::from_str(&fine(&server, &["keys", "create", "ci", "--scopes", "write", "--json"]).await)
            .unwrap();
    write(home.path(), "notes/b.txt", "two\n");
    let ran = deploy(&server, &["--key", key["key"].as_str().unwrap(), "--preview", "ci"]).await;
    assert!(ran.code == Some(0) && ran.err.contains("shows bot v2  1 file sent"), "{ran:?}");
    // The same content under another name does not go up.
    write(home.path(), "notes/c.txt", "one\n");
    let third = deployed(&server, &["--no-activate"]).await;
    assert_eq!(
        (&third["version"], &third["uploaded_files"], &third["state"]),
        (&json!(3), &json!(0), &json!("ready"))
    );
    let listed = fine(&server, &["releases", "list", "bot"]).await;
    assert!(listed.contains("v1       active") && listed.contains("v3       ready"), "{listed}");
    let diff = fine(&server, &["releases", "diff", "bot", "v1", "v3"]).await;
    assert_eq!(diff, "files\n  + notes/b.txt\n  + notes/c.txt\n");
    // Of an old content that is deployed again there is one release.
    std::fs::remove_file(home.path().join("app/notes/b.txt")).unwrap();
    std::fs::remove_file(home.path().join("app/notes/c.txt")).unwrap();
    assert!(fine(&server, &["releases", "activate", "bot", "v3"]).await.contains("bot v3 is active"));
    let ran = deploy(&server, &[]).await;
    assert!(ran.err.contains("bot v1 had this content already, and is active again"), "{}", ran.err);
}

#[tokio::test]
async fn what_git_would_not_pack_and_what_looks_like_a_secret_stays_here() {
    let home = tempfile::tempdir().unwrap();
    let server = start(home.path(), "hello").await;
    write(home.path(), ".gitignore", "node_modules/\n*.log\n");
    write(home.path(), ".kartaignore", "drafts/\n!keep.log\n");
    for name in ["node_modules/a/index.js", "x.log", "keep.log", "drafts/one.md", ".git/config"] {
        write(home.path(), name, "x");
    }
    write(home.path(), "deploy.sh", "TOKEN=ghp_k3Vb9QzT7xLmP2sWdR8yFhJ4nCuEaG6oXvBi\n");
    let ran = deploy(&server, &[]).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{}", ran.err);
    for said in [
        "deploy.sh:1: looks like a secret",
        "nothing was sent",
        "--allow-secret deploy.sh",
        "node_modules/ (",
    ] {
        assert!(ran.err.contains(said), "{said}: {}", ran.err);
    }
    assert!(!ran.err.contains("ghp_k3Vb") && !ran.err.contains("index.js"), "{}", ran.err);
    assert_eq!(fine(&server, &["projects", "list", "--json"]).await, "[]\n", "nothing was made");
    let release = deployed(&server, &["--allow-secret", "deploy.sh"]).await;
    assert_eq!(release["file_count"], 7, "{release}");
}

#[tokio::test]
async fn a_release_comes_back_as_it_went_up() {
    struct Nothing;
    impl Known for Nothing {
        fn fetch(&self, _: &karta_release::Hash, _: &mut std::fs::File) -> std::io::Result<bool> {
            Ok(false)
        }
    }
    let home = tempfile::tempdir().unwrap();
    let server = start(home.path(), "hello").await;
    std::os::unix::fs::symlink("notes/a.txt", home.path().join("app/link")).unwrap();
    write(home.path(), "run.sh", "#!/bin/sh\n");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(home.path().join("app/run.sh"), executable).unwrap();
    deployed(&server, &[]).await;
    let to = home.path().join("bot.tar.gz");
    let said = fine(&server, &["releases", "download", "bot", "v1", "--to", to.to_str().unwrap()]).await;
    assert_eq!(said.trim(), to.to_str().unwrap());
    let back = home.path().join("back");
    std::fs::create_dir(&back).unwrap();
    let archive = std::fs::File::open(&to).unwrap();
    let files = archive::unpack(archive, &back, &Limits::default(), &Nothing).unwrap();
    let picked = folder::pick(&home.path().join("app"), &Choice::default()).unwrap();
    assert_eq!(files, picked.files);
    let again = server.run(&["releases", "download", "bot", "v1", "--to", to.to_str().unwrap()]).await;
    assert!(again.code == Some(1) && again.err.contains("is there already"), "{again:?}");
    let none = server.run(&["releases", "download", "bot", "v9", "--to", "/nonexistent/x"]).await;
    assert!(none.code == Some(1) && none.err.contains("not_found"), "{none:?}");
}

#[tokio::test]
async fn a_preview_answers_at_its_own_address_until_it_is_removed() {
    let home = tempfile::tempdir().unwrap();
    let server = start(home.path(), "live").await;
    deployed(&server, &[]).await;
    script(home.path(), "previewed");
    let ran = deploy(&server, &["--preview", "pr-7"]).await;
    assert_eq!(
        (ran.code, ran.out),
        (Some(0), format!("{}/v1/projects/bot@pr-7\n", server.url)),
        "{}",
        ran.err
    );
    assert!(
        ran.err.contains("The preview pr-7 shows bot v2  1 file sent") && ran.err.contains("It ends 20"),
        "{}",
        ran.err
    );
    assert_eq!(says(&server, "bot@pr-7").await, "previewed");
    assert_eq!(says(&server, "bot").await, "live");
    let listed = fine(&server, &["previews", "list", "bot"]).await;
    assert!(listed.contains("pr-7") && listed.contains("bot@pr-7"), "{listed}");
    fine(&server, &["previews", "remove", "bot", "pr-7"]).await;
    assert_eq!(fine(&server, &["previews", "list", "bot", "--json"]).await, "[]\n");
    let gone = server.run(&["chat", "--project", "bot@pr-7", "-m", "hi"]).await;
    assert!(gone.code == Some(1) && gone.err.contains("not_found"), "{gone:?}");
}

#[tokio::test]
async fn a_failed_setup_shows_its_log_and_the_old_release_answers() {
    let home = tempfile::tempdir().unwrap();
    let server = start(home.path(), "before").await;
    deployed(&server, &[]).await;
    script(home.path(), "after");
    write(home.path(), "karta.toml", "project = \"bot\"\n[build]\nsetup = \"echo fetching; exit 7\"\n");
    let ran = deploy(&server, &[]).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{}", ran.err);
    for said in [
        "build │ fetching",
        "error: The release's setup failed (build_failed)",
        "Still active, as before: bot v1",
    ] {
        assert!(ran.err.contains(said), "{said}: {}", ran.err);
    }
    assert_eq!(says(&server, "bot").await, "before");
    let shown = fine(&server, &["releases", "show", "bot", "v2"]).await;
    assert!(shown.contains("failed") && shown.contains("karta logs --kind build --release v2"), "{shown}");
    let refused = server.run(&["releases", "activate", "bot", "v2"]).await;
    assert!(refused.code == Some(1) && refused.err.contains("release_not_ready"), "{refused:?}");
    // Mended, it goes up and runs.
    write(
        home.path(),
        "karta.toml",
        "project = \"bot\"\n[build]\nsetup = \"echo fetching; echo made > made.txt\"\n",
    );
    let ran = deploy(&server, &[]).await;
    assert!(
        ran.code == Some(0) && ran.err.contains("build │ fetching") && ran.err.contains("bot v3 is active"),
        "{ran:?}"
    );
    assert_eq!(says(&server, "bot").await, "after");
    // What was built is kept, and read later.
    let logs = async {
        loop {
            let logs = fine(&server, &["logs", "bot", "--kind", "build", "--release", "v2"]).await;
            if logs.contains("build  fetching") {
                return logs;
            }
        }
    };
    tokio::time::timeout(crate::served::PATIENCE, logs).await.unwrap();
}

#[tokio::test]
async fn a_canary_is_tried_promoted_and_rolled_back_and_what_runs_is_not_deleted() {
    let home = tempfile::tempdir().unwrap();
    let server = start(home.path(), "one").await;
    deployed(&server, &[]).await;
    script(home.path(), "two");
    deployed(&server, &["--no-activate"]).await;
    let canary = ["releases", "activate", "bot", "v2", "--percent", "25"];
    assert_eq!(fine(&server, &canary).await, "bot: 25 of 100 new sessions run on v2, the others on v1\n");
    let listed = fine(&server, &["releases", "list", "bot"]).await;
    assert!(listed.contains("ready, canary 25 %"), "{listed}");
    let kept = server.run(&["releases", "delete", "bot", "v2"]).await;
    assert!(kept.code == Some(1) && kept.err.contains("release_in_use"), "{kept:?}");
    assert_eq!(fine(&server, &["releases", "abort", "bot"]).await, "bot: all new sessions run on v1\n");
    fine(&server, &canary).await;
    assert_eq!(fine(&server, &["releases", "promote", "bot"]).await, "bot v2 is active\n");
    assert_eq!(says(&server, "bot").await, "two");
    assert_eq!(fine(&server, &["rollback", "bot"]).await, "bot v1 is active\n");
    assert_eq!(says(&server, "bot").await, "one");
    let kept = server.run(&["releases", "delete", "bot", "v1"]).await;
    assert!(kept.code == Some(1) && kept.err.contains("release_in_use"), "{kept:?}");
    let unsure = server.run(&["projects", "delete", "bot"]).await;
    assert!(unsure.code == Some(1) && unsure.err.contains("--yes"), "{unsure:?}");
    fine(&server, &["projects", "create", "empty", "--name", "Nothing yet"]).await;
    assert!(fine(&server, &["projects", "list"]).await.contains("empty"));
    fine(&server, &["projects", "delete", "bot", "--yes"]).await;
    let gone = server.run(&["releases", "list", "bot"]).await;
    assert!(gone.code == Some(1) && gone.err.contains("not_found"), "{gone:?}");
}
