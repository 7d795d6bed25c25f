//! The binary as a server, with a scripted harness: a process of its own that tests can talk to, kill and start again.

#![expect(clippy::expect_used, clippy::panic, reason = "a test that can't go on fails")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::run::{Ran, karta, run};

/// How long anything may take before the test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// A server.
pub(crate) struct Served {
    pub(crate) home: PathBuf,
    pub(crate) url: String,
    pub(crate) key: String,
    pub(crate) http: reqwest::Client,
    child: Child,
}

impl Served {
    /// Serves `home/app`, made if it is not there, with these settings.
    pub(crate) async fn start(home: &Path, settings: &str) -> Self {
        Self::start_as(home, "data", settings, &["serve", home.join("app").to_str().unwrap()]).await
    }

    /// Starts the binary with these arguments and its data in `home/<data>`, and waits until it says where it listens.
    pub(crate) async fn start_as(home: &Path, data: &str, settings: &str, args: &[&str]) -> Self {
        Self::start_with_env(home, data, settings, args, []).await
    }

    /// With these in its environment.
    pub(crate) async fn start_with_env(
        home: &Path,
        data: &str,
        settings: &str,
        args: &[&str],
        env: impl IntoIterator<Item = (&'static str, &'static str)>,
    ) -> Self {
        let app = home.join("app");
        std::fs::create_dir_all(&app).unwrap();
        let script = json!({"turns": [
            {"match": "ask", "steps": [{"ask": {"tool": "Bash", "input": {}, "message": "Run?", "approved": [
                {"use": {"input_tokens": 90, "output_tokens": 70, "cost_micros": 1200}}, {"say": "done"}]}}]},
            {"steps": [{"use": {"input_tokens": 60, "output_tokens": 50, "cost_micros": 900}}, {"say": "hello"}]}]});
        std::fs::write(app.join("karta.script.json"), script.to_string()).unwrap();
        let config = home.join(format!("{data}.toml"));
        std::fs::write(&config, settings).unwrap();
        let data = home.join(data);
        let about = data.join("dev.json");
        // Of a run before this one.
        let _ = std::fs::remove_file(&about);
        let mut command = Command::new(env!("CARGO_BIN_EXE_karta"));
        command.args(args).arg("--config").arg(&config).arg("--data").arg(&data);
        if !settings.contains("listen = ") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.env_clear().env("KARTA_ISOLATION", "process").envs(env).env("HOME", home).kill_on_drop(true);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(data_log(&data)).unwrap());
        let mut child = command.spawn().unwrap();
        let wait = async {
            loop {
                if let Ok(text) = std::fs::read(&about)
                    && let Ok(about) = serde_json::from_slice::<Value>(&text)
                {
                    break about;
                }
                if let Some(status) = child.try_wait().unwrap() {
                    panic!(
                        "the server ended ({status}): {}",
                        std::fs::read_to_string(data_log(&data)).unwrap()
                    );
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let about = tokio::time::timeout(PATIENCE, wait).await.expect("the server starts");
        Self {
            home: home.to_owned(),
            url: about["url"].as_str().unwrap().to_owned(),
            key: about["key"].as_str().unwrap_or_default().to_owned(),
            http: reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .unwrap(),
            child,
        }
    }

    /// Kills it as a power cut of the process would.
    pub(crate) async fn kill(&mut self) {
        self.child.start_kill().unwrap();
        self.child.wait().await.unwrap();
    }

    /// A call of the API: status and answer.
    pub(crate) async fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let call = self.http.request(method.parse().unwrap(), format!("{}{path}", self.url));
        let call = call.bearer_auth(&self.key).json(body);
        let answer = tokio::time::timeout(PATIENCE, call.send()).await.expect("an answer comes").unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// A command of the binary, by somebody whose home is the server's.
    pub(crate) async fn run(&self, args: &[&str]) -> Ran {
        let mut command = karta(args);
        command.env("HOME", &self.home).env("KARTA_DATA", self.home.join("data"));
        run(command, "").await
    }
}

fn data_log(data: &Path) -> PathBuf {
    data.with_extension("log")
}
