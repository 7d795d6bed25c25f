//! A world of servers on the loopback, with names of its own, and a program inside.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use karta_types::egress::{Decision, Hosts, Rule};
use karta_types::{Secret, Timestamp};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpListener;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::task::AbortOnDropHandle;

use crate::addresses::{Guarded, Lookup};
use crate::data::egress::secrets::PLACEHOLDER;
use crate::data::egress::{Decisions, Egress, Outside, Rules, ToolSecret};
use crate::tasks::Tasks;

/// Only stops a hang.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
pub(super) const VALUE: &str = "sk-live-\"0123456789";
pub(super) const INSIDE: &str = "karta_secret_5e55";

/// Names and what they lead to, one answer after the other; the last one stays.
pub(super) struct Names(Mutex<HashMap<String, Vec<IpAddr>>>);

impl Names {
    pub(super) fn new(list: &[(&str, &[&str])]) -> Arc<Self> {
        let read = |list: &[&str]| list.iter().map(|address| address.parse().unwrap()).collect();
        Arc::new(Self(Mutex::new(list.iter().map(|(name, list)| ((*name).to_owned(), read(list))).collect())))
    }
}

impl Lookup for Names {
    fn lookup(&self, host: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        let mut names = self.0.lock().unwrap();
        let found = match names.get_mut(&host) {
            Some(list) if list.len() > 1 => Ok(vec![list.remove(0)]),
            Some(list) => Ok(list.clone()),
            None if host.parse::<IpAddr>().is_ok() => Ok(vec![host.parse().unwrap()]),
            None => Err(io::Error::new(io::ErrorKind::NotFound, "no such name")),
        };
        Box::pin(async move { found })
    }
}

/// What a server saw of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) line: String,
    pub(super) headers: String,
    pub(super) body: Vec<u8>,
}

/// A server that records requests, and answers by their path.
pub(super) struct Server {
    pub(super) port: u16,
    pub(super) seen: Arc<Mutex<Vec<Seen>>>,
    /// Requests whose head was seen.
    pub(super) begun: Arc<AtomicUsize>,
    _runs: AbortOnDropHandle<()>,
}

/// A certificate authority of the world outside.
pub(super) struct World {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl World {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// A server that proves to be this host.
    pub(super) async fn tls(&self, host: &str) -> Server {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], key)
                .unwrap();
        server(Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    pub(super) fn outside(&self, names: &Arc<Names>, loopback: bool) -> Arc<Outside> {
        let guarded = Guarded::new(names.clone(), loopback);
        Arc::new(Outside::new(guarded, vec![self.root.clone()], loopback).unwrap())
    }
}

pub(super) async fn plain() -> Server {
    server(None).await
}

async fn server(tls: Option<TlsAcceptor>) -> Server {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    let begun = Arc::new(AtomicUsize::new(0));
    let counted = begun.clone();
    let app = Router::new().fallback(move |request: Request| record(request, kept.clone(), counted.clone()));
    let runs = tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let (app, tls) = (app.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => one(stream, app).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            one(stream, app).await;
                        }
                    }
                }
            });
        }
    });
    Server { port, seen, begun, _runs: AbortOnDropHandle::new(runs) }
}

async fn one(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, app: Router) {
    let service = TowerToHyperService::new(app);
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    // Tests cut connections on purpose; what arrived is what they look at.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn record(request: Request, seen: Arc<Mutex<Vec<Seen>>>, begun: Arc<AtomicUsize>) -> Response {
    let line = format!("{} {}", request.method(), request.uri());
    let path = request.uri().path().to_owned();
    let headers = request.headers().iter().fold(String::new(), |text, (name, value)| {
        format!("{text}{name}: {}\n", String::from_utf8_lossy(value.as_bytes()))
    });
    begun.fetch_add(1, Ordering::Relaxed);
    if path == "/early" {
        tokio::spawn(axum::body::to_bytes(request.into_body(), 64 << 20));
        return (axum::http::StatusCode::PAYLOAD_TOO_LARGE, "enough").into_response();
    }
    // On its own: a server forgets what it does for a connection that breaks.
    let reading = tokio::spawn(axum::body::to_bytes(request.into_body(), 64 << 20));
    let (known, failed) = (seen.clone(), (line.clone(), headers.clone()));
    let reading = tokio::spawn(async move {
        let read = reading.await.unwrap();
        if read.is_err() {
            let (line, headers) = failed;
            known.lock().unwrap().push(Seen { line, headers, body: b"CUT".to_vec() });
        }
        read
    });
    let Ok(body) = reading.await.unwrap() else {
        return "cut".into_response();
    };
    let authorization =
        headers.lines().find_map(|line| line.strip_prefix("authorization: ")).unwrap_or_default().to_owned();
    seen.lock().unwrap().push(Seen { line, headers, body: body.to_vec() });
    match path.as_str() {
        "/big" => {
            let piece = Bytes::from(vec![b'x'; 64 << 10]);
            let pieces = futures_util::stream::iter((0..256).map(move |_| Ok::<_, io::Error>(piece.clone())));
            Body::from_stream(pieces).into_response()
        }
        // The value comes back cut in two pieces, and in a header.
        "/echo" => {
            let (one, two) = authorization.split_at(authorization.len() / 2);
            let pieces = [one, two, &format!(" {}", String::from_utf8_lossy(&body))]
                .map(|text| Ok::<_, io::Error>(Bytes::from(text.to_owned())));
            ([("x-echo", authorization)], Body::from_stream(futures_util::stream::iter(pieces)))
                .into_response()
        }
        "/coded" => ([("content-encoding", "gzip")], "not really").into_response(),
        "/broken" => {
            let pieces = [Ok(Bytes::from_static(b"begun")), Err(io::Error::other("broken"))];
            Body::from_stream(futures_util::stream::iter(pieces)).into_response()
        }
        "/alt" => {
            ([("alt-svc", "h3=\":443\""), ("connection", "x-hop"), ("x-hop", "1")], "alt").into_response()
        }
        _ => format!("hello {path}").into_response(),
    }
}

/// A session with its way out.
pub(super) struct Session {
    pub(super) egress: Egress,
    pub(super) decisions: Decisions,
    pub(super) tasks: Tasks,
}

impl Session {
    pub(super) fn new(outside: &Arc<Outside>, asked: &[String]) -> Self {
        Self::with(outside, asked, Vec::new(), |_| {})
    }

    pub(super) fn with(
        outside: &Arc<Outside>,
        asked: &[String],
        secrets: Vec<ToolSecret>,
        change: impl FnOnce(&mut Rules),
    ) -> Self {
        let asked = asked.iter().map(|rule| Rule::parse(rule).unwrap()).collect();
        let mut rules = Rules { asked, asked_in: "`[policy] egress` in karta.toml", ..Rules::default() };
        change(&mut rules);
        let now = Timestamp::from_micros(jiff_now());
        let tasks = Tasks::default();
        let (egress, decisions) = Egress::new(&tasks, outside.clone(), rules, secrets, None, now).unwrap();
        Self { egress, decisions, tasks }
    }

    /// A connection of a program inside.
    pub(super) fn connect(&self) -> DuplexStream {
        let (inside, out) = tokio::io::duplex(64 << 10);
        self.egress.serve(Box::new(out));
        inside
    }

    /// Sends these bytes and reads all that comes back.
    pub(super) async fn ask(&self, request: impl AsRef<[u8]>) -> String {
        talk(self.connect(), request).await
    }

    /// A tunnel, with the answer of the proxy if it is refused.
    pub(super) async fn tunnel(&self, place: &str) -> Result<DuplexStream, String> {
        let mut stream = self.connect();
        stream
            .write_all(format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        if head.starts_with("HTTP/1.1 200 ") {
            return Ok(stream);
        }
        Err(head + &read(stream).await)
    }

    /// TLS through a tunnel, which trusts what the session is to trust.
    pub(super) async fn tls(&self, place: &str, name: &str) -> io::Result<TlsStream<DuplexStream>> {
        let stream = self.tunnel(place).await.map_err(io::Error::other)?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.egress.bundle().as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        tokio::time::timeout(PATIENCE, connector.connect(name, stream)).await.unwrap()
    }

    /// A request through TLS, and all that comes back.
    pub(super) async fn ask_tls(&self, place: &str, request: impl AsRef<[u8]>) -> String {
        let name = place.rsplit_once(':').unwrap().0;
        let stream = self.tls(place, name).await.unwrap();
        talk(stream, request).await
    }

    /// What was decided since the last time.
    pub(super) fn decided(&self) -> Vec<Decision> {
        self.decisions.take()
    }

    pub(super) fn refusals(&self) -> Vec<String> {
        let refused = self.decided().into_iter().filter(|one| !one.allowed);
        refused.map(|one| one.why.unwrap_or_default()).collect()
    }
}

fn jiff_now() -> i64 {
    karta_types::Clock::now(&karta_types::time::System).as_micros()
}

pub(super) async fn talk(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: impl AsRef<[u8]>,
) -> String {
    // Whoever is refused may be told so before it has said all.
    let _ = stream.write_all(request.as_ref()).await;
    let _ = stream.flush().await;
    read(stream).await
}

pub(super) async fn read(mut stream: impl AsyncRead + Unpin) -> String {
    let mut all = Vec::new();
    let reading = async {
        let mut piece = vec![0; 16 << 10];
        // Ended by TLS's own word or not.
        while let Ok(read @ 1..) = stream.read(&mut piece).await {
            all.extend_from_slice(&piece[..read]);
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("it ends");
    String::from_utf8_lossy(&all).into_owned()
}

/// The body of an answer in chunks or not.
pub(super) fn body(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    if !head.contains("transfer-encoding: chunked") {
        return body.to_owned();
    }
    let (mut rest, mut whole) = (body, String::new());
    while let Some((length, after)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        whole.push_str(&after[..length]);
        rest = &after[length + 2..];
    }
    whole
}

pub(super) fn secret(hosts: &[&str]) -> ToolSecret {
    assert!(INSIDE.starts_with(PLACEHOLDER));
    ToolSecret {
        name: "TOOL_KEY".into(),
        placeholder: INSIDE.into(),
        hosts: hosts.iter().map(|host| Hosts::parse(host).unwrap()).collect(),
        value: Some(Secret::new(VALUE.to_owned())),
    }
}
