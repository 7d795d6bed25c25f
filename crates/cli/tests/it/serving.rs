//! What `karta dev` and `karta serve` refuse, and what they say of it.

use crate::run::{karta, run};

async fn refused(args: &[&str], words: &[&str]) {
    let ran = run(karta(args), "").await;
    assert_eq!(ran.code, Some(1), "{args:?}: {ran:?}");
    for word in words {
        assert!(ran.err.contains(word), "{args:?} should say `{word}`: {}", ran.err);
    }
}

#[tokio::test]
async fn every_refusal_says_what_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, empty, app, file) = (path("data"), path("empty"), path("app"), path("file"));
    std::fs::create_dir(&empty).unwrap();
    std::fs::create_dir(&app).unwrap();
    std::fs::write(path("app/CLAUDE.md"), "# App\n").unwrap();
    std::fs::write(&file, "no folder").unwrap();
    let any = "127.0.0.1:0";

    refused(&["dev", &path("nowhere"), "--data", &data], &["nowhere", "No such file"]).await;
    refused(&["dev", &file, "--data", &data], &["is not a folder"]).await;
    refused(&["dev", &empty, "--data", &data, "--listen", any], &["is empty", "`karta init`"]).await;
    std::fs::write(path("empty/README.md"), "# Not yet\n").unwrap();
    refused(
        &["dev", &empty, "--data", &data, "--listen", any],
        &["no harness recognised", "CLAUDE.md", ".opencode/", "karta.toml"],
    )
    .await;
    refused(
        &["dev", &app, "--data", &format!("{file}/inside"), "--listen", any],
        &["data directory", "--data"],
    )
    .await;

    let taken = std::net::TcpListener::bind(any).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(&["dev", &app, "--data", &data, "--listen", &address], &[&address, "is taken", "--listen"]).await;

    std::fs::write(path("app/karta.toml"), "[harness]\ntype = \"opencode\"\n").unwrap();
    refused(&["dev", &app, "--data", &data, "--listen", any], &["declares harness `opencode`", "CLAUDE.md"])
        .await;
    std::fs::write(path("app/karta.toml"), "[harness]\ntyp = \"x\"\n").unwrap();
    refused(
        &["dev", &app, "--data", &data, "--listen", any],
        &["karta.toml:2:1", "`harness.typ`", "did you mean"],
    )
    .await;

    std::fs::write(path("settings.toml"), "listn = \"127.0.0.1:1\"\n").unwrap();
    let config = path("settings.toml");
    refused(&["serve", "--config", &config, "--data", &data], &["settings.toml", "listn"]).await;
}

#[tokio::test]
async fn doctor_says_how_to_mend_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let ran =
        run(karta(&["doctor", "--data", folder.path().to_str().unwrap(), "--color", "never"]), "").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for word in [
        "data directory",
        "isolation microvm",
        "isolation namespace",
        "karta image build",
        "apt-get install git",
        "karta harness install claude-code",
        "ANTHROPIC_API_KEY",
    ] {
        assert!(ran.out.contains(word), "{word}: {}", ran.out);
    }
}
