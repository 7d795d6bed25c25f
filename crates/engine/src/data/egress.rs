//! The way out of a build: an HTTP proxy on this machine that lets through what the release declares, and nothing else.
//!
//! It holds programs that heed `HTTP_PROXY`. Where the isolation keeps processes from the network, it is their only way.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::addresses::Guarded;
use crate::{Engine, Error, Result};

/// The most bytes of a request's head.
const HEAD: u64 = 16 << 10;
/// How long a head or a connection may take to come.
const PATIENCE: Duration = Duration::from_secs(20);
/// Connections at once; more wait.
const AT_ONCE: usize = 64;
/// What is waited after a connection could not be taken.
const PAUSE: Duration = Duration::from_millis(100);
/// Refusals that wait to be told.
const WAITING: usize = 64;

/// The proxy of one build. It ends with this.
pub(crate) struct Egress {
    address: SocketAddr,
    _end: DropGuard,
}

/// What a proxy lets through.
struct Rules {
    hosts: Vec<String>,
    guarded: Guarded,
    refused: mpsc::Sender<String>,
}

impl Egress {
    /// Starts a proxy that goes to these hosts: `host` (ports 80 and 443), `host:port`, `*.domain` for hosts below one. Answers it and
    /// what it refuses, in words.
    pub(crate) async fn start(engine: &Engine, hosts: Vec<String>) -> Result<(Self, mpsc::Receiver<String>)> {
        let doing = "starting the way out of a build";
        let listener =
            TcpListener::bind(("127.0.0.1", 0)).await.map_err(|error| Error::internal(doing, error))?;
        let address = listener.local_addr().map_err(|error| Error::internal(doing, error))?;
        let (refused, refusals) = mpsc::channel(WAITING);
        let rules = Arc::new(Rules { hosts, guarded: engine.guarded(), refused });
        let stop = CancellationToken::new();
        let (ended, tasks) = (stop.clone(), engine.tasks().clone());
        engine.tasks().spawn(async move {
            let places = Arc::new(Semaphore::new(AT_ONCE));
            while let Some(Ok(place)) = ended.run_until_cancelled(places.clone().acquire_owned()).await {
                let client = match ended.run_until_cancelled(listener.accept()).await {
                    None => return,
                    Some(Ok((client, _))) => client,
                    Some(Err(error)) => {
                        tracing::warn!(%error, "a build's way out can't take a connection");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                };
                let (rules, ended) = (rules.clone(), ended.clone());
                tasks.spawn(async move {
                    let _place = place;
                    // A connection that fails is the client's to notice.
                    let _ = ended.run_until_cancelled(serve(client, &rules)).await;
                });
            }
        });
        Ok((Self { address, _end: stop.drop_guard() }, refusals))
    }

    /// For `HTTP_PROXY`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Where a request wants to go.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    host: String,
    port: u16,
    /// What goes on to the host in the place of the first line; none for a tunnel.
    first: Option<String>,
}

impl Target {
    /// Reads the first line of a request to a proxy.
    fn read(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        if method == "CONNECT" {
            let (host, port) = host_and_port(target, None)?;
            return Some(Self { host, port, first: None });
        }
        let rest = target.strip_prefix("http://")?;
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (host, port) = host_and_port(authority, Some(80))?;
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Some(Self { host, port, first: Some(format!("{method} {path} {version}\r\n")) })
    }
}

fn host_and_port(authority: &str, port: Option<u16>) -> Option<(String, u16)> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (authority, port?),
    };
    let plain = !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    plain.then(|| (host.to_ascii_lowercase(), port))
}

impl Rules {
    fn allow(&self, host: &str, port: u16) -> bool {
        self.hosts.iter().any(|rule| {
            let (named, only) = match rule.rsplit_once(':') {
                Some((named, only)) => (named, only.parse().ok()),
                None => (rule.as_str(), None),
            };
            let named = named.to_ascii_lowercase();
            let same = match named.strip_prefix("*.") {
                Some(domain) => host.strip_suffix(domain).is_some_and(|below| below.ends_with('.')),
                None => host == named,
            };
            same && only.map_or(matches!(port, 80 | 443), |only: u16| only == port)
        })
    }
}

async fn serve(mut client: TcpStream, rules: &Rules) -> io::Result<()> {
    let head = tokio::time::timeout(PATIENCE, head(&mut client)).await??;
    let Some(target) = Target::read(&head.first) else {
        return answer(&mut client, "400 Bad Request", "this is a proxy for http and https").await;
    };
    let Target { host, port, first } = target;
    let refusal = if rules.allow(&host, port) {
        match rules.guarded.addresses(&host).await {
            Ok(addresses) => {
                let addresses: Vec<_> =
                    addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect();
                match tokio::time::timeout(PATIENCE, TcpStream::connect(&*addresses)).await {
                    Ok(Ok(server)) => return forward(client, server, first, &head).await,
                    _ => format!("{host}:{port} can't be reached"),
                }
            }
            Err(error) => format!("{host}:{port} is refused: {error}"),
        }
    } else {
        format!("{host}:{port} is refused: `[build] egress` in karta.toml does not name it")
    };
    // So many refusals that they can't be told are told well enough.
    let _ = rules.refused.try_send(refusal.clone());
    answer(&mut client, "403 Forbidden", &refusal).await
}

/// The head of a request: its first line, the others, and what was read behind it.
struct Head {
    first: String,
    others: Vec<u8>,
    behind: Vec<u8>,
}

async fn head(client: &mut TcpStream) -> io::Result<Head> {
    let mut reader = BufReader::new(client.take(HEAD));
    let mut first = Vec::new();
    reader.read_until(b'\n', &mut first).await?;
    let first = String::from_utf8(first).map_err(io::Error::other)?;
    let mut others = Vec::new();
    loop {
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line).await?;
        if !line.ends_with(b"\n") {
            return Err(io::Error::other("the head of the request is cut or too long"));
        }
        if line == b"\r\n" || line == b"\n" {
            let behind = reader.buffer().to_vec();
            return Ok(Head { first, others, behind });
        }
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default().to_ascii_lowercase();
        // What is meant for the proxy stays here; one request a connection, so that no other host is asked through it.
        if !matches!(&*name, b"proxy-authorization" | b"proxy-connection" | b"connection" | b"keep-alive") {
            others.extend(line);
        }
    }
}

async fn forward(
    mut client: TcpStream,
    mut server: TcpStream,
    first: Option<String>,
    head: &Head,
) -> io::Result<()> {
    match first {
        None => client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?,
        Some(first) => {
            server.write_all(first.as_bytes()).await?;
            server.write_all(&head.others).await?;
            server.write_all(b"Connection: close\r\n\r\n").await?;
        }
    }
    server.write_all(&head.behind).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(|_| ())
}

async fn answer(client: &mut TcpStream, status: &str, why: &str) -> io::Result<()> {
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{why}\n",
        why.len() + 1
    );
    client.write_all(answer.as_bytes()).await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_first_line_says_where_to_go() {
        let tunnel = Target { host: "a.example".into(), port: 443, first: None };
        assert_eq!(Target::read("CONNECT A.example:443 HTTP/1.1\r\n"), Some(tunnel));
        let plain = Target::read("GET http://a.example/x?y HTTP/1.1\r\n").unwrap();
        assert_eq!((plain.port, plain.first.as_deref()), (80, Some("GET /x?y HTTP/1.1\r\n")));
        for wrong in
            ["GET / HTTP/1.1", "CONNECT a HTTP/1.1", "GET http://a@b/ HTTP/1.1", "CONNECT [::1]:1 X", ""]
        {
            assert_eq!(Target::read(wrong), None, "{wrong}");
        }
    }

    fn rules(hosts: &[&str]) -> Rules {
        Rules {
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            guarded: Guarded::new(Arc::new(crate::addresses::System), false),
            refused: mpsc::channel(1).0,
        }
    }

    #[test]
    fn only_declared_hosts_and_ports() {
        let rules = rules(&["a.example", "b.example:8080", "*.c.example"]);
        for (host, port) in [("a.example", 443), ("a.example", 80), ("b.example", 8080), ("x.c.example", 443)]
        {
            assert!(rules.allow(host, port), "{host}:{port}");
        }
        for (host, port) in [
            ("a.example", 22),
            ("b.example", 443),
            ("c.example", 443),
            ("xc.example", 443),
            ("a.example.evil", 443),
            ("evil-a.example", 443),
        ] {
            assert!(!rules.allow(host, port), "{host}:{port}");
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in "\\PC{0,80}") {
            let _ = Target::read(&line);
        }
    }
}
