//! Completion of names that only the server knows: what a shell gets, and that it gets nothing late and no errors.

use serde_json::json;
use tokio::process::Command;

use crate::run::{karta, run};
use crate::stub::{Answer, KEY, Stub, not_found, page, project, release};

/// Asks as bash's script does, for the last word.
fn ask(words: &[&str]) -> Command {
    let mut command = karta(&["--"]);
    let at = (words.len() - 1).to_string();
    command.args(words).env("KARTA_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", at).env("_CLAP_IFS", "\n");
    command
}

async fn server() -> Stub {
    let preview = json!({"id": "proj_01jd0000000000000000000002", "name": "pr-7", "slug": "app@pr-7",
        "release": {"version": 2, "id": "rel_01jd0000000000000000000001"}, "created_at": "2026-11-24T00:00:00Z",
        "expires_at": "2026-12-01T00:00:00Z"});
    Stub::plays(move |line, _| match line {
        "GET /v1/projects" => Answer::Json(200, page(&[project("app", None), project("sales", None)])),
        "GET /v1/projects/app/releases" => {
            Answer::Json(200, page(&[release(12, "ready"), release(2, "active"), release(1, "deleted")]))
        }
        "GET /v1/projects/app/previews" => Answer::Json(200, page(std::slice::from_ref(&preview))),
        _ => not_found(),
    })
    .await
}

#[tokio::test]
async fn projects_releases_and_previews_come_from_the_server() {
    let stub = server().await;
    for (words, wanted) in [
        (vec!["karta", "logs", "a"], "app"),
        (vec!["karta", "logs", "x"], ""),
        (vec!["karta", "releases", "list", "sa"], "sales"),
        (vec!["karta", "releases", "activate", "app", "v"], "v12\nv2"),
        (vec!["karta", "releases", "activate", "--reason", "x", "app", "v1"], "v12"),
        (vec!["karta", "releases", "show", "sales", "v"], ""),
        (vec!["karta", "releases", "diff", "app", "v"], "v12\nv2"),
        (vec!["karta", "releases", "diff", "app", "v2", "v1"], "v12"),
        (vec!["karta", "releases", "diff", "s"], "sales"),
        (vec!["karta", "rollback", "app", "--to", "v"], "v12\nv2"),
        (vec!["karta", "logs", "app", "--release", "v"], "v12\nv2"),
        (vec!["karta", "deploy", "--project", "a"], "app"),
        (vec!["karta", "chat", "--project", "a"], "app"),
        (vec!["karta", "previews", "remove", "app", "p"], "pr-7"),
        (vec!["karta", "roll"], "rollback"),
        (vec!["karta", "releases", "pro"], "promote"),
        (vec!["karta", "logs", "--kind", ""], "build\nturn"),
    ] {
        let mut command = ask(&words);
        command.env("KARTA_URL", &stub.url).env("KARTA_API_KEY", KEY);
        let ran = run(command, "").await;
        assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), wanted, ""), "{words:?}");
    }
    // The flags that stand on the line count like the environment.
    let ran = run(ask(&["karta", "logs", "--url", &stub.url, "--key", KEY, "a"]), "").await;
    assert_eq!(ran.out, "app");
}

#[tokio::test]
async fn this_folders_project_is_meant_where_none_is_named() {
    let stub = server().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("below")).unwrap();
    std::fs::write(folder.path().join("karta.toml"), "project = \"app\"\n").unwrap();
    for words in [
        vec!["karta", "rollback", "--to", "v2"],
        vec!["karta", "releases", "activate", "v2"],
        vec!["karta", "releases", "diff", "v2"],
        vec!["karta", "releases", "diff", "v12", "v2"],
    ] {
        let mut command = ask(&words);
        command
            .current_dir(folder.path().join("below"))
            .env("KARTA_URL", &stub.url)
            .env("KARTA_API_KEY", KEY);
        let ran = run(command, "").await;
        assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "v2", ""), "{words:?}");
    }
}

#[tokio::test]
async fn whatever_goes_wrong_is_silence() {
    let silent = Stub::plays(|_, _| Answer::Silence).await;
    let refusing = Stub::plays(|_, _| not_found()).await;
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let servers = [
        (silent.url.as_str(), KEY),
        (&refusing.url, KEY),
        (&refusing.url, "wrong"),
        (&nobody, KEY),
        ("nonsense", KEY),
    ];
    for (url, key) in servers {
        for words in [vec!["karta", "logs", "a"], vec!["karta", "releases", "activate", "app", "v"]] {
            let mut command = ask(&words);
            command.env("KARTA_URL", url).env("KARTA_API_KEY", key);
            let ran = run(command, "").await;
            assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "", ""), "{url}");
        }
    }
    let ran = run(ask(&["karta", "logs", "a"]), "").await;
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "", ""), "no server is known");
}

/// The real shell with the script that `karta completions bash` prints.
#[tokio::test]
async fn bash_completes() {
    let stub = server().await;
    let script = run(karta(&["completions", "bash"]), "").await;
    assert_eq!(script.code, Some(0), "{script:?}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("script"), &script.out).unwrap();
    let test = r#"
        source ./script
        COMP_WORDS=(karta releases activate app v1); COMP_CWORD=4; COMP_TYPE=9
        "$(complete -p karta | sed 's/.*-F \([^ ]*\).*/\1/')" karta v1 app
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", test]).current_dir(folder.path()).env_clear();
    bash.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", folder.path());
    bash.env("KARTA_URL", &stub.url).env("KARTA_API_KEY", KEY);
    bash.stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let ran = run(bash, "").await;
    assert_eq!((ran.code, ran.out.trim()), (Some(0), "v12"), "{ran:?}");
}
