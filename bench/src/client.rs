//! A lean HTTP client: it shares the machine with what it measures, so it does as little as it can.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// One connection.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    authorization: String,
}

/// What a request brought.
pub(crate) struct Brought {
    pub(crate) body: Vec<u8>,
    pub(crate) first: Option<Instant>,
}

impl Client {
    pub(crate) async fn connect(address: &str, key: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.context("connecting")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        #[expect(clippy::disallowed_methods, reason = "ends with its connection")]
        tokio::spawn(connection);
        Ok(Self { sender, host: address.to_owned(), authorization: format!("Bearer {key}") })
    }

    fn request(&self, method: &str, path: &str, body: &'static str) -> anyhow::Result<Request<Full<Bytes>>> {
        Ok(Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host)
            .header("authorization", &self.authorization)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from_static(body.as_bytes())))?)
    }

    /// Sends a request and reads its whole answer.
    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        body: &'static str,
    ) -> anyhow::Result<Brought> {
        let request = self.request(method, path, body)?;
        self.sender.ready().await?;
        let mut answer = self.sender.send_request(request).await?;
        let status = answer.status();
        let mut brought = Brought { body: Vec::new(), first: None };
        while let Some(frame) = answer.frame().await {
            if let Ok(data) = frame?.into_data() {
                brought.first.get_or_insert_with(now);
                brought.body.extend_from_slice(&data);
            }
        }
        if !status.is_success() {
            bail!("{method} {path}: {status}: {}", String::from_utf8_lossy(&brought.body));
        }
        Ok(brought)
    }

    /// Opens a stream and keeps it open.
    pub(crate) async fn open(mut self, path: &str) -> anyhow::Result<hyper::Response<hyper::body::Incoming>> {
        let request = self.request("GET", path, "")?;
        self.sender.ready().await?;
        let mut answer = self.sender.send_request(request).await?;
        if !answer.status().is_success() {
            bail!("GET {path}: {}", answer.status());
        }
        // Its first bytes say that the server has it.
        answer.frame().await.context("the stream ended at once")??;
        Ok(answer)
    }
}

pub(crate) fn now() -> Instant {
    Instant::now()
}
