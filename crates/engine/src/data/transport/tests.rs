//! Real processes, a sandbox that is the machine itself, and an HTTP server in the test.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::IntoResponse;
use axum::routing::any;
use bytes::Bytes;
use futures_util::StreamExt as _;
use karta_harness::Transport;
use karta_harness::launch::HttpTransport;
use karta_sandbox::{Command, Control, Duplex, Error, Exit, Place, Process, Sandbox};
use karta_types::{Rng, SandboxId, Timestamp, rng::Seeded, time::Fixed};
use tokio::net::{TcpListener, TcpStream};

use super::{Io, IoEvent, open};
use crate::tasks::Tasks;

struct Here {
    id: SandboxId,
    place: Place,
}

struct Child(tokio::process::Child, u32);

#[async_trait::async_trait]
impl Control for Child {
    async fn wait(&mut self) -> Exit {
        Exit { status: self.0.wait().await.unwrap().code(), signal: None }
    }
    fn terminate(&self) {
        signal(self.1, "-TERM");
    }
    fn kill(&self) {
        signal(self.1, "-KILL");
    }
    fn pid(&self) -> Option<u32> {
        self.0.id()
    }
}

/// Tells the whole group; it may be gone.
fn signal(group: u32, name: &str) {
    let mut kill = std::process::Command::new("kill");
    kill.args([name, "--", &format!("-{group}")]).stderr(Stdio::null()).status().unwrap();
}

#[async_trait::async_trait]
impl Sandbox for Here {
    fn id(&self) -> SandboxId {
        self.id
    }
    fn place(&self) -> &Place {
        &self.place
    }
    fn kept(&self) -> &[String] {
        &[]
    }
    async fn spawn(&self, command: &Command) -> Result<Process, Error> {
        let mut child = tokio::process::Command::new(&command.program)
            .args(&command.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = child.id().unwrap();
        Ok(Process {
            stdin: Box::new(child.stdin.take().unwrap()),
            stdout: Box::new(child.stdout.take().unwrap()),
            stderr: Box::new(child.stderr.take().unwrap()),
            control: Box::new(Child(child, pid)),
        })
    }
    async fn connect(&self, port: u16) -> Result<Box<dyn Duplex>, Error> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await;
        Ok(Box::new(stream.map_err(|source| Error::Connect { port, source })?))
    }
    async fn put(&self, _: &Path, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
    async fn export(&self, _: &Path) -> Result<(), karta_sandbox::Error> {
        unreachable!("nothing is built here")
    }

    async fn find(&self, _: &str, _: u64) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
        Ok(Vec::new())
    }
}

async fn run(script: &str, transport: Transport) -> (Tasks, Io) {
    let place = Place { workspace: "/".into(), home: "/".into(), temp: "/tmp".into(), harness: None };
    let clock = Fixed::new(Timestamp::from_micros(1_000_000));
    let rng: &dyn Rng = &Seeded::new(1);
    let here = Arc::new(Here { id: SandboxId::new(&clock, rng), place });
    let command = Command {
        program: "sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        env: Vec::new(),
        cwd: "/".into(),
    };
    let process = here.spawn(&command).await.unwrap();
    let tasks = Tasks::default();
    let io = open(&tasks, process, here, transport, None);
    (tasks, io)
}

/// Everything until the end: the output put together, the status, the tail.
async fn all(io: &mut Io) -> (String, Option<i32>, String) {
    let mut text = Vec::new();
    loop {
        match io.next().await {
            IoEvent::Output(bytes) => text.extend_from_slice(&bytes),
            IoEvent::Exited { status, stderr } => {
                return (String::from_utf8(text).unwrap(), status, stderr);
            }
        }
    }
}

/// The next line of output.
async fn line(io: &mut Io) -> String {
    match io.next().await {
        IoEvent::Output(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        IoEvent::Exited { status, stderr } => panic!("ended with {status:?}: {stderr}"),
    }
}

#[tokio::test]
async fn input_goes_in_and_output_and_the_end_come_out_in_order() {
    let (_tasks, mut io) = run("read a; echo \"got $a\"; echo why >&2; exit 3", Transport::Stdio).await;
    io.send(Bytes::from_static(b"hello\n")).await.unwrap();
    assert_eq!(all(&mut io).await, ("got hello\n".to_owned(), Some(3), "why\n".to_owned()));
    io.end().await;
}

#[tokio::test]
async fn a_great_output_is_whole_and_the_tail_of_errors_is_short() {
    let script =
        "head -c 3000000 /dev/zero | tr '\\0' x; head -c 100000 /dev/zero | tr '\\0' e >&2; echo end >&2";
    let (_tasks, mut io) = run(script, Transport::Stdio).await;
    let (text, status, stderr) = all(&mut io).await;
    assert_eq!((text.len(), status), (3_000_000, Some(0)));
    assert!(stderr.ends_with("eeend\n") && stderr.len() <= super::TAIL);
}

#[tokio::test]
async fn an_orderly_end_closes_the_input() {
    let (_tasks, io) = run("cat >/dev/null; exit 0", Transport::Stdio).await;
    io.end().await;
}

#[tokio::test]
async fn a_kill_ends_what_the_process_started_too() {
    let (_tasks, mut io) = run("sleep 30 & echo started; exec sleep 30", Transport::Stdio).await;
    assert_eq!(line(&mut io).await, "started\n");
    io.kill();
    let (_, status, _) = all(&mut io).await;
    assert_eq!(status, None);
}

#[tokio::test]
async fn a_dropped_process_is_killed_and_its_tasks_end() {
    let (tasks, mut io) = run("echo started; exec sleep 600", Transport::Stdio).await;
    assert_eq!(line(&mut io).await, "started\n");
    drop(io);
    assert!(tasks.shutdown(std::time::Duration::from_secs(20)).await);
}

/// A server that wants a password, has a stream of two events, echoes requests, and refuses one.
async fn server() -> (u16, Tasks) {
    let events = any(|request: Request| async move {
        let known = request.headers().get("authorization").is_some_and(|value| value == "Basic dTpw");
        let stream =
            futures_util::stream::iter(["data: {\"type\":\"one\"}\n\n", "data: {\"type\":\"two\"}\n\n"])
                .map(Ok::<_, std::io::Error>);
        let stays = futures_util::stream::pending();
        if known {
            Body::from_stream(stream.chain(stays)).into_response()
        } else {
            axum::http::StatusCode::UNAUTHORIZED.into_response()
        }
    });
    let echo = any(|request: Request| async move {
        let method = request.method().to_string();
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        axum::Json(serde_json::json!({"method": method, "body": String::from_utf8_lossy(&body)}))
    });
    let app = Router::new()
        .route("/event", events)
        .route("/echo", echo)
        .route("/none", any(|| async { axum::http::StatusCode::NO_CONTENT }))
        .route("/big", any(|| async { "x".repeat(9 << 20) }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tasks = Tasks::default();
    tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
    (port, tasks)
}

fn http(user: &str) -> Transport {
    Transport::Http(HttpTransport {
        announced_by: "listening on ".to_owned(),
        events: "/event".to_owned(),
        basic_auth: Some((user.to_owned(), "p".to_owned())),
    })
}

#[tokio::test]
async fn a_server_is_found_heard_and_asked() {
    let (port, _server) = server().await;
    let script = format!("echo 'a word before'; echo 'listening on http://127.0.0.1:{port}'; exec sleep 600");
    let (_tasks, mut io) = run(&script, http("u")).await;
    assert_eq!(line(&mut io).await, "{\"log\":\"a word before\"}\n");
    assert_eq!(line(&mut io).await, "{\"ready\":true}\n");
    assert_eq!(line(&mut io).await, "{\"event\":{\"type\":\"one\"}}\n");
    assert_eq!(line(&mut io).await, "{\"event\":{\"type\":\"two\"}}\n");

    let ask = async |io: &mut Io, request: &'static str| {
        io.send(Bytes::from_static(request.as_bytes())).await.unwrap();
        line(io).await
    };
    assert_eq!(
        ask(&mut io, "{\"id\":1,\"method\":\"POST\",\"path\":\"/echo?a=b\",\"body\":{\"x\":1}}\n").await,
        "{\"id\":1,\"status\":200,\"body\":{\"body\":\"{\\\"x\\\":1}\",\"method\":\"POST\"}}\n"
    );
    assert_eq!(
        ask(&mut io, "{\"id\":2,\"method\":\"GET\",\"path\":\"/none\"}\n").await,
        "{\"id\":2,\"status\":204,\"body\":null}\n"
    );
    assert!(ask(&mut io, "{\"id\":3,\"method\":\"GET\",\"path\":\"/big\"}\n").await.contains("\"error\""));
    assert!(ask(&mut io, "{\"id\":4,\"method\":\"GET\",\"path\":\"no path\"}\n").await.contains("\"error\""));
    io.end().await;
}

#[tokio::test]
async fn a_server_whose_events_cannot_be_had_is_ended() {
    let (port, _server) = server().await;
    let script = format!("echo 'listening on http://127.0.0.1:{port}'; exec sleep 600");
    let (_tasks, mut io) = run(&script, http("stranger")).await;
    let (text, status, _) = all(&mut io).await;
    assert!(text.starts_with("{\"closed\":\"the event stream was answered 401"), "{text}");
    // Once, when the attempts are spent: whoever took it over would give up its turn at the first word.
    assert_eq!((text.lines().count(), status), (1, None));
}

#[tokio::test]
async fn a_server_that_never_announces_itself_is_just_a_process() {
    let (_tasks, mut io) = run("echo nothing; exit 7", http("u")).await;
    assert_eq!(all(&mut io).await, ("{\"log\":\"nothing\"}\n".to_owned(), Some(7), String::new()));
}
