//! `karta check`: what is wrong with a folder, all at once, with its place; and the exit code.

use std::path::Path;

use serde_json::Value;

use crate::run::{Ran, karta, run};

/// Names and contents.
type Files<'a> = &'a [(&'a str, &'a str)];

fn folder(files: Files<'_>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    folder
}

async fn check(folder: &Path, args: &[&str]) -> Ran {
    run(karta(&[&["check", folder.to_str().unwrap()], args].concat()), "").await
}

#[tokio::test]
async fn every_fault_is_said_with_its_place_and_the_exit_code_is_one() {
    let cases: &[(Files, &[&str])] = &[
        (&[], &["the folder is empty"]),
        (&[("README.md", "x")], &["no harness recognised", "CLAUDE.md"]),
        (
            &[
                ("CLAUDE.md", "x"),
                ("karta.toml", "project = \"No\"\n[harnes]\n[policy]\nhooks = 7\n"),
                ("karta.jsonc", "{\n  \"permission_mode\": \"never\",\n}\n"),
            ],
            &[
                "karta.toml:1:11: ",
                "karta.toml:2:2: unknown key `harnes`; did you mean `harness`?",
                "karta.toml:4:9: ",
                "karta.jsonc:2:22: ",
            ],
        ),
        (
            &[("CLAUDE.md", "x"), ("karta.toml", "[harness]\ntype = \"claude-code\"\nversion = \">=99\"\n")],
            &["karta.toml:3:11: ", "99"],
        ),
        (&[("CLAUDE.md", "x"), ("karta.toml", "[harness\n")], &["karta.toml:1:"]),
        (&[("CLAUDE.md", "x"), (".claude/settings.json", "{ \"hooks\": [")], &[".claude/settings.json"]),
        (&[("CLAUDE.md", "x"), (".env", "A=1\n")], &["refused: .env: looks like a secret: "]),
    ];
    for (files, wanted) in cases {
        let folder = folder(files);
        let ran = check(folder.path(), &[]).await;
        assert_eq!(ran.code, Some(1), "{ran:?}");
        for wanted in *wanted {
            assert!(ran.out.contains(wanted), "{wanted}: {ran:?}");
        }
        let machine = check(folder.path(), &["--json"]).await;
        assert_eq!((machine.code, machine.err.as_str()), (Some(1), ""));
        let said: Value = serde_json::from_str(&machine.out).unwrap();
        let number = said["faults"].as_array().unwrap().len() + said["secrets"].as_array().unwrap().len();
        assert_eq!(number, ran.out.lines().filter(|line| line.starts_with("refused: ")).count());
        assert_eq!(said["ok"], false);
    }
    let nowhere = run(karta(&["check", "/nonexistent/folder"]), "").await;
    assert!(nowhere.code == Some(1) && nowhere.err.contains("/nonexistent/folder"), "{nowhere:?}");
}

#[tokio::test]
async fn a_folder_that_is_fine_is_described_offline() {
    let settings = r#"{"hooks": {"PreToolUse": [{"matcher": "Bash", "hooks": [{"type": "command", "command": "./look.sh"}]}]}}"#;
    let folder = folder(&[
        ("CLAUDE.md", "# Bot\n"),
        ("karta.toml", "project = \"support\"\n[policy]\nmcp = false\n"),
        (".claude/agents/refunds.md", "---\nname: refunds\ndescription: does refunds\n---\nYou do.\n"),
        (".claude/skills/tone/SKILL.md", "---\nname: tone\ndescription: how\n---\nSo.\n"),
        (".claude/settings.json", settings),
        (".mcp.json", r#"{"mcpServers": {"docs": {"command": "docs-server", "args": ["--x"]}}}"#),
        ("node_modules/a/b.js", "x"),
        ("node_modules/a/c.js", "x"),
        (".gitignore", "node_modules/\n"),
        (".kartaignore", "*.draft\n"),
        ("a.draft", "x"),
    ]);
    let ran = check(folder.path(), &[]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for wanted in [
        "support: 8 files, ",
        "claude-code ",
        "refunds (.claude/agents/refunds.md)",
        "tone (.claude/skills/tone/SKILL.md)",
        "PreToolUse",
        "(.claude/settings.json)",
        "docs: docs-server --x (.mcp.json)",
        "MCP servers off",
        "node_modules/ (",
        "a.draft (",
    ] {
        assert!(ran.out.contains(wanted), "{wanted}: {}", ran.out);
    }
    assert_eq!(
        ran.out.matches("node_modules").count(),
        2,
        "a folder is named once, with its reason: {}",
        ran.out
    );
    assert_eq!(ran.err, "Fine: publishing would take it\n");
    let said: Value = serde_json::from_str(&check(folder.path(), &["--json"]).await.out).unwrap();
    assert_eq!(
        (&said["ok"], &said["project"], &said["policy"]["mcp"]),
        (&true.into(), &"support".into(), &false.into())
    );
    assert_eq!(said["found"]["hooks"][0]["file"], ".claude/settings.json");
}

#[tokio::test]
async fn what_only_looks_like_a_secret_can_be_allowed_and_is_never_shown() {
    let planted = "sk-ant-api03-planted-4f1d9c7ab2e8-planted-4f1d9c7ab2e8-planted";
    let folder =
        folder(&[("CLAUDE.md", &format!("one\nkey: {planted}\n")), (".env", "A=planted-4f1d9c7ab2e8\n")]);
    let ran = check(folder.path(), &[]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.out.contains("refused: CLAUDE.md:2: looks like a secret: ") && ran.err.contains("--allow-secret"),
        "{ran:?}"
    );
    assert!(!format!("{ran:?}").contains("planted"), "{ran:?}");
    let ran = check(folder.path(), &["--allow-secret", "CLAUDE.md", "--allow-secret", ".env"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(!format!("{ran:?}").contains("planted"), "{ran:?}");
}
