//! What a person sees on a terminal (`script`, of Debian's bsdutils, makes one); and `karta chat` on one, with the real server.

use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// How long anything may take before the test gives up.
const PATIENCE: Duration = Duration::from_mins(1);

/// A terminal with a command on it.
pub(crate) struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: ChildStdout,
    seen: String,
    /// Up to where it was looked at.
    at: usize,
}

impl Terminal {
    fn open(data: &std::path::Path) -> Self {
        Self::runs(data, data, &format!("--data {} chat", data.display()))
    }

    /// Runs the binary with these arguments, in a folder, by somebody with this home.
    pub(crate) fn runs(home: &std::path::Path, folder: &std::path::Path, args: &str) -> Self {
        let program = env!("CARGO_BIN_EXE_karta");
        let chat = format!("stty rows 40 cols 100; exec {program} {args}");
        let mut child = Command::new("script")
            .args(["--quiet", "--flush", "--return", "--echo", "always", "--command", &chat, "/dev/null"])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", home)
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh")
            .env("NO_COLOR", "1")
            .current_dir(folder)
            .kill_on_drop(true)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (keys, screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, keys, screen, seen: String::new(), at: 0 }
    }

    /// Waits until this shows up after what was looked at before.
    pub(crate) async fn sees(&mut self, wanted: &str) {
        let look = async {
            loop {
                if let Some(found) = self.seen[self.at..].find(wanted) {
                    self.at += found + wanted.len();
                    return;
                }
                let mut more = [0; 4096];
                let read = self.screen.read(&mut more).await.unwrap();
                assert!(read > 0, "the program ended; `{wanted}` was awaited:\n{}", self.seen);
                self.seen.push_str(&String::from_utf8_lossy(&more[..read]));
            }
        };
        let late = tokio::time::timeout(PATIENCE, look).await.is_err();
        assert!(!late, "`{wanted}` did not come:\n{}", self.seen);
    }

    /// Waits until the turn is over and the next message may be typed.
    async fn rests(&mut self) {
        self.sees("$0.000000").await;
        self.sees("› ").await;
    }

    pub(crate) async fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).await.unwrap();
        self.keys.flush().await.unwrap();
    }

    pub(crate) async fn leaves(mut self) -> Option<i32> {
        let mut rest = Vec::new();
        let ended = async {
            self.screen.read_to_end(&mut rest).await.unwrap();
            self.child.wait().await.unwrap().code()
        };
        tokio::time::timeout(PATIENCE, ended).await.unwrap()
    }
}

/// A server of a scripted folder.
async fn serve(data: &std::path::Path) -> Child {
    let folder = data.join("app");
    std::fs::create_dir_all(&folder).unwrap();
    let script = json!({"turns": [
        {"match": "clean", "steps": [{"ask": {"tool": "Bash", "input": {"command": "rm -r build"}, "message": "Clean up?",
            "approved": [{"tool": {"name": "Bash", "input": {"command": "rm -r build"}, "output": "gone"}}, {"say": "It is clean."}],
            "denied": [{"say": "Then I leave it."}]}}]},
        {"match": "forever", "steps": [{"say": "Here I go"}, {"hang": false}]},
        {"steps": [{"say": "Hello from the script."}]}
    ]});
    std::fs::write(folder.join("karta.script.json"), script.to_string()).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_karta"))
        .args(["dev", folder.to_str().unwrap(), "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", data)
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert!(first.starts_with("curl "), "{first}");
    child
}

#[tokio::test]
async fn a_person_talks_approves_refuses_interrupts_and_leaves() {
    let data = tempfile::tempdir().unwrap();
    let mut server = serve(data.path()).await;
    let mut chat = Terminal::open(data.path());
    chat.sees("`:help` helps").await;
    chat.sees("› ").await;
    chat.types("hello\n").await;
    chat.sees("Hello from the script.").await;
    chat.rests().await;
    // Asked, with the whole call in sight; approved once.
    chat.types("clean\n").await;
    chat.sees("rm -r build").await;
    chat.sees("e edit").await;
    chat.types("y\n").await;
    chat.sees("It is clean.").await;
    chat.rests().await;
    chat.types("clean\n").await;
    chat.sees("e edit").await;
    chat.types("n\n").await;
    chat.sees("why not?").await;
    chat.types("not today\n").await;
    chat.sees("Then I leave it.").await;
    chat.rests().await;
    // Ctrl-C ends the turn and not the program.
    chat.types("forever\n").await;
    chat.sees("Here I go").await;
    chat.types("\u{3}").await;
    chat.sees("nterrupted").await;
    chat.sees("› ").await;
    chat.types("hello\n").await;
    chat.sees("Hello from the script.").await;
    chat.rests().await;
    chat.types(":nonsense\n").await;
    chat.sees("There is no command").await;
    chat.sees("› ").await;
    // Ctrl-C twice leaves, in good order, and says how to come back.
    chat.types("\u{3}").await;
    chat.sees("Ctrl-C again").await;
    chat.sees("› ").await;
    chat.types("\u{3}").await;
    chat.sees("karta chat --session sess_").await;
    assert_eq!(chat.leaves().await, Some(0));
    server.start_kill().unwrap();
    server.wait().await.unwrap();
}
