//! `karta init` and git's way to a key, with the real git.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::run::{Ran, karta, run};
use crate::terminal::Terminal;

const URL: &str = "http://127.0.0.1:4747";

/// A home with a server that is known, and a folder with a harness's file.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let running = json!({"url": URL, "key": "kt_test_git", "project": null});
        std::fs::write(data.join("dev.json"), running.to_string()).unwrap();
        let home = Self(home);
        home.write("My Bot/CLAUDE.md", "# Bot\n");
        home
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn set(&self, mut command: Command, folder: &str) -> Command {
        command.current_dir(self.path(folder)).env_clear().env("HOME", self.0.path());
        command.env("PATH", std::env::var_os("PATH").unwrap()).env("KARTA_DATA", self.path("data"));
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
        command
    }

    async fn karta(&self, folder: &str, args: &[&str]) -> Ran {
        run(self.set(karta(args), folder), "").await
    }

    async fn git(&self, folder: &str, args: &[&str], stdin: &str) -> Ran {
        let mut git = Command::new("git");
        git.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        run(self.set(git, folder), stdin).await
    }
}

#[tokio::test]
async fn a_small_manifest_is_written_and_never_overwritten() {
    let home = Home::new();
    let ran = home.karta("My Bot", &["init"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.err.contains("Wrote `karta.toml`: project my-bot, harness claude-code "), "{}", ran.err);
    let text = home.read("My Bot/karta.toml");
    assert!(text.contains("project = \"my-bot\"") && text.contains("type = \"claude-code\""), "{text}");
    assert!(text.lines().count() < 10, "{text}");
    let names: Vec<_> =
        std::fs::read_dir(home.path("My Bot")).unwrap().map(|one| one.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(home.read("My Bot/CLAUDE.md"), "# Bot\n");
    // Again, and otherwise: it says what is there, and that it stays.
    let ran = home.karta("My Bot", &["init", "--project", "other"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(
        ran.err.contains("is there and stays as it is: project my-bot") && ran.err.contains("not written"),
        "{}",
        ran.err
    );
    assert_eq!(home.read("My Bot/karta.toml"), text);
    // What it wrote is fine.
    assert_eq!(home.karta("My Bot", &["check"]).await.code, Some(0));
}

#[tokio::test]
async fn flags_say_everything_and_machines_get_it_back() {
    let home = Home::new();
    let args = ["init", "My Bot", "--project", "support", "--harness", "opencode", "--json", "-q"];
    let ran = home.karta("", &args).await;
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let said: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&said["project"], &said["harness"]["type"], &said["made"]),
        (&json!("support"), &json!("opencode"), &json!(true))
    );
    assert_eq!(said["remote"], Value::Null);
    for (args, wanted) in [
        (["--project", "Not A Name"], "can't be a project's name"),
        (["--harness", "hologram"], "there are: opencode, claude-code"),
    ] {
        std::fs::remove_file(home.path("My Bot/karta.toml")).unwrap_or_default();
        let ran = home.karta("My Bot", &[&["init"], &args[..]].concat()).await;
        assert!(ran.code == Some(1) && ran.err.contains(wanted), "{ran:?}");
        assert!(!home.path("My Bot/karta.toml").exists());
    }
}

#[tokio::test]
async fn a_folder_without_a_harness_is_told_what_to_add_and_one_with_two_which_is_taken() {
    let home = Home::new();
    std::fs::create_dir(home.path("empty")).unwrap();
    let ran = home.karta("empty", &["init"]).await;
    assert!(
        ran.code == Some(0) && ran.err.contains("`CLAUDE.md`") && ran.err.contains("`.opencode/`"),
        "{ran:?}"
    );
    assert!(!home.read("empty/karta.toml").contains("[harness]"));
    assert_eq!(std::fs::read_dir(home.path("empty")).unwrap().count(), 1);
    home.write("My Bot/opencode.json", "{}\n");
    let ran = home.karta("My Bot", &["init"]).await;
    assert!(ran.err.contains("more than one harness") && ran.err.contains("--harness"), "{ran:?}");
    assert!(home.read("My Bot/karta.toml").contains("type = \"opencode\""));
    home.write("broken/karta.toml", "projekt = \"x\"\n");
    let ran = home.karta("broken", &["init"]).await;
    assert!(
        ran.code == Some(1)
            && ran.err.contains("karta.toml:1:1")
            && ran.err.contains("did you mean `project`?"),
        "{ran:?}"
    );
    assert_eq!(home.read("broken/karta.toml"), "projekt = \"x\"\n");
}

#[tokio::test]
async fn on_a_terminal_it_asks_what_it_can_not_see() {
    let home = Home::new();
    home.write("My Bot/opencode.json", "{}\n");
    let mut terminal = Terminal::runs(home.0.path(), &home.path("My Bot"), "init");
    terminal.sees("name in addresses [my-bot]: ").await;
    terminal.types("No Name\n").await;
    terminal.sees("A name is 1 to 63").await;
    terminal.sees("[my-bot]: ").await;
    terminal.types("support\n").await;
    terminal.sees("more than one harness").await;
    terminal.sees("opencode or claude-code [opencode]: ").await;
    terminal.types("claude-code\n").await;
    terminal.sees("project support, harness claude-code").await;
    assert_eq!(terminal.leaves().await, Some(0));
    let text = home.read("My Bot/karta.toml");
    assert!(text.contains("\"support\"") && text.contains("\"claude-code\""), "{text}");
    // With flags there is nothing left to ask.
    std::fs::remove_file(home.path("My Bot/karta.toml")).unwrap();
    let args = "init --project other --harness opencode";
    let mut terminal = Terminal::runs(home.0.path(), &home.path("My Bot"), args);
    terminal.sees("project other, harness opencode").await;
    assert_eq!(terminal.leaves().await, Some(0));
}

#[tokio::test]
async fn git_gets_a_remote_and_asks_for_the_key_of_that_server_alone() {
    let home = Home::new();
    assert_eq!(home.git("My Bot", &["init", "-q"], "").await.code, Some(0));
    let ran = home.karta("My Bot", &["init"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.err.contains("git push karta") && ran.err.contains("undo"), "{}", ran.err);
    let url = format!("{URL}/git/my-bot.git");
    assert_eq!(home.git("My Bot", &["remote", "get-url", "karta"], "").await.out.trim(), url);
    let config = home.read("My Bot/.git/config");
    assert!(!config.contains("kt_test_git"), "no key is written down: {config}");
    assert!(!home.path(".gitconfig").exists(), "nothing but the repository's own is changed");
    // As git itself asks, through the helper that was set.
    let asked = home.git("My Bot", &["credential", "fill"], "protocol=http\nhost=127.0.0.1:4747\n\n").await;
    assert!(
        asked.out.contains("username=karta\n") && asked.out.contains("password=kt_test_git\n"),
        "{asked:?}"
    );
    let asked = home.git("My Bot", &["credential", "fill"], "protocol=http\nhost=127.0.0.1:4748\n\n").await;
    assert!(asked.code != Some(0) && !asked.out.contains("kt_test_git"), "{asked:?}");
    // Once more changes nothing.
    let ran = home.karta("My Bot", &["init"]).await;
    assert!(ran.code == Some(0) && ran.err.contains("already"), "{ran:?}");
    assert_eq!(home.read("My Bot/.git/config"), config);
    // What it said undoes it.
    home.git("My Bot", &["remote", "remove", "karta"], "").await;
    let section = format!("credential.{URL}");
    home.git("My Bot", &["config", "--remove-section", &section], "").await;
    assert!(!home.read("My Bot/.git/config").contains("karta"));
    // A remote of the same name that leads elsewhere is somebody's own.
    home.git("My Bot", &["remote", "add", "karta", "http://elsewhere/x.git"], "").await;
    let ran = home.karta("My Bot", &["init", "--json"]).await;
    assert!(ran.err.contains("leads elsewhere") && ran.err.contains("git remote set-url karta"), "{ran:?}");
    assert_eq!(
        home.git("My Bot", &["remote", "get-url", "karta"], "").await.out.trim(),
        "http://elsewhere/x.git"
    );
    let before = home.read("My Bot/.git/config");
    home.git("My Bot", &["remote", "remove", "karta"], "").await;
    let none = home.read("My Bot/.git/config");
    assert_ne!(before, none);
    assert_eq!(home.karta("My Bot", &["init", "--no-git"]).await.code, Some(0));
    assert_eq!(home.read("My Bot/.git/config"), none);
}

#[tokio::test]
async fn a_folder_inside_of_a_repository_is_pushed_as_a_part_of_it() {
    let home = Home::new();
    home.write("repository/bots/one/CLAUDE.md", "# One\n");
    home.git("repository", &["init", "-q"], "").await;
    let ran = home.karta("repository/bots/one", &["init"]).await;
    assert!(ran.err.contains("git subtree push --prefix bots/one karta"), "{ran:?}");
}

#[tokio::test]
async fn the_helper_answers_get_for_a_known_server_and_is_silent_otherwise() {
    let home = Home::new();
    let ask = async |operation: &str, question: &str, env: &[(&str, &str)]| {
        let mut command = home.set(karta(&["git-credential", operation]), "");
        command.envs(env.iter().copied());
        let ran = run(command, question).await;
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{operation}: {question}");
        ran.out
    };
    let known = "protocol=http\nhost=127.0.0.1:4747\n\n";
    let answer = "username=karta\npassword=kt_test_git\n";
    assert_eq!(ask("get", known, &[]).await, answer);
    assert_eq!(
        ask("get", "capability[]=authtype\nprotocol=http\nhost=127.0.0.1:4747\nwwwauth[]=Basic\n", &[]).await,
        answer
    );
    for operation in ["store", "erase", "capability"] {
        assert_eq!(ask(operation, known, &[]).await, "", "{operation}");
    }
    for question in [
        "protocol=https\nhost=127.0.0.1:4747\n\n",
        "protocol=http\nhost=127.0.0.1\n\n",
        "protocol=http\nhost=127.0.0.1:4747.example.com\n\n",
        "protocol=http\nhost=127.0.0.1:4747@example.com\n\n",
        "host=127.0.0.1:4747\n\n",
        "",
    ] {
        assert_eq!(ask("get", question, &[]).await, "", "{question}");
    }
    // A key that was given for one server goes to no other, not even to one that is known.
    let elsewhere = [("KARTA_URL", "https://karta.example.com/"), ("KARTA_API_KEY", "kt_live_other")];
    assert_eq!(ask("get", known, &elsewhere).await, "");
    let question = "protocol=https\nhost=karta.example.com\n\n";
    assert_eq!(ask("get", question, &elsewhere).await, "username=karta\npassword=kt_live_other\n");
    // Somebody who signed in is known by that.
    std::fs::create_dir_all(home.path(".config/karta")).unwrap();
    let signed_in = json!({"current": null, "servers": {"https://karta.example.com": "kt_person"}});
    std::fs::write(home.path(".config/karta/credentials.json"), signed_in.to_string()).unwrap();
    assert_eq!(ask("get", question, &[]).await, "username=karta\npassword=kt_person\n");
    assert_eq!(ask("get", known, &[]).await, answer);
}
