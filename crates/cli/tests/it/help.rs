//! The whole help text is checked in as `snapshots/cli.txt`, so that a change of the command line is read as a diff.

use std::path::Path;

use crate::run::{karta, run};

/// The help of a command and, below it, of its subcommands.
async fn help(path: Vec<String>) -> String {
    let mut text = String::new();
    let mut waiting = vec![path];
    while let Some(path) = waiting.pop() {
        let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
        args.push("--help");
        let ran = run(karta(&args), "").await;
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{args:?}");
        text.extend(["$ karta ", &args.join(" "), "\n\n", &ran.out, "\n"]);
        let listed = ran.out.lines().skip_while(|line| *line != "Commands:").skip(1);
        let commands = listed.take_while(|line| !line.is_empty()).filter_map(|line| {
            let name = line.strip_prefix("  ")?.split(' ').next()?;
            (!name.is_empty()).then(|| [path.clone(), vec![name.to_owned()]].concat())
        });
        let commands: Vec<_> = commands.collect();
        waiting.extend(commands.into_iter().rev());
    }
    text
}

#[tokio::test]
async fn the_checked_in_help_is_current() {
    let file = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../../snapshots/cli.txt");
    let current = help(Vec::new()).await;
    if std::env::var_os("KARTA_BLESS").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, &current).unwrap();
    }
    let checked_in = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        checked_in == current,
        "`snapshots/cli.txt` is stale; run this test with KARTA_BLESS=1 and read the diff"
    );
}

#[tokio::test]
async fn version_completions_and_misuse() {
    let version = run(karta(&["--version"]), "").await;
    assert_eq!(version.out, format!("karta {}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        let script = run(karta(&["completions", shell]), "").await;
        assert!(script.code == Some(0) && script.out.contains("karta") && script.err.is_empty());
    }
    let misuse = run(karta(&["chat", "--sesion", "x"]), "").await;
    assert_eq!((misuse.code, misuse.out.as_str()), (Some(2), ""));
    assert!(misuse.err.contains("--session"), "{}", misuse.err);
    let foreign = run(karta(&["chat", "--session", "turn_01jd0000000000000000000001"]), "").await;
    assert!(foreign.code == Some(2) && foreign.err.contains("`sess_…`"), "{}", foreign.err);
}
