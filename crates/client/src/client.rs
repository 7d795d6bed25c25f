//! The connection to one server: address, key, and how requests are made and answers judged.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use karta_types::{Problem, Rng, Secret};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Method, Request, RequestBuilder, Response, Url};
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::retry::Retry;

/// The most that is read of one JSON answer, in bytes: a long history fits.
const MAX_ANSWER: usize = 64 << 20;
/// The most that is read of one problem, in bytes.
const MAX_PROBLEM: usize = 256 << 10;

/// A client of one server with one key. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    rng: Arc<dyn Rng>,
    pub(crate) retry: Retry,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the server at `base_url` (`http://127.0.0.1:4747`; a path in it is kept).
    ///
    /// # Errors
    /// [`Error::Usage`] if the address is not `http` or `https`, or the key can't stand in a header.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the key is the client's from here on; no copy stays behind"
    )]
    pub fn new(base_url: &str, key: Secret) -> Result<Self, Error> {
        let base: Url =
            base_url.parse().map_err(|why| Error::Usage(format!("`{base_url}` is not an address: {why}")))?;
        if !matches!(base.scheme(), "http" | "https") || base.host().is_none() {
            return Err(Error::Usage(format!(
                "`{base_url}` is not an address of the form `http://host:port` or `https://host`"
            )));
        }
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", key.expose().trim())).map_err(|_| {
            Error::Usage("the key has characters that no key has; was it pasted whole?".to_owned())
        })?;
        bearer.set_sensitive(true);
        let headers = HeaderMap::from_iter([(AUTHORIZATION, bearer)]);
        // Redirects are not followed: the key must not travel to where somebody else points.
        let mut builder = reqwest::Client::builder()
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .user_agent(concat!("karta-client/", env!("CARGO_PKG_VERSION")));
        if base.scheme() == "http" {
            // No TLS will be spoken, so a machine without certificate authorities is fine.
            builder = builder.tls_certs_only(std::iter::empty());
        }
        if is_loopback(&base) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|why| Error::transport("setting up the HTTP client", why))?;
        Ok(Self { http, base, rng: Arc::new(karta_types::rng::System), retry: Retry::default() })
    }

    /// With another way to take up cut streams.
    #[must_use]
    pub const fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// With another source of randomness for idempotency keys.
    #[must_use]
    pub fn with_rng(mut self, rng: Arc<dyn Rng>) -> Self {
        self.rng = rng;
        self
    }

    /// The server's address, as given.
    pub fn base_url(&self) -> &str {
        self.base.as_str()
    }

    /// A key that makes a POST safe to repeat.
    pub(crate) fn idempotency_key(&self) -> String {
        format!("{:032x}", self.rng.next_u128())
    }

    /// The address of `/v1/<segments…>`, each segment escaped.
    pub(crate) fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("v1").extend(segments);
        }
        url
    }

    /// The address of `/<segments…>`, beside the API.
    pub(crate) fn page(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    pub(crate) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.http.request(method, url)
    }

    /// Sends, and turns a refusal into its problem.
    pub(crate) async fn send(&self, doing: &str, request: RequestBuilder) -> Result<Response, Error> {
        let request = request.build().map_err(|why| Error::transport(doing, why))?;
        self.execute(doing, request).await
    }

    /// [`Client::send`] for a request that is made already.
    pub(crate) async fn execute(&self, doing: &str, request: Request) -> Result<Response, Error> {
        let response = self.http.execute(request).await.map_err(|why| {
            if why.is_connect() {
                Error::transport(format!("{doing}: connecting to {}", self.base), why)
            } else {
                Error::transport(doing, why)
            }
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refusal(doing, response).await)
    }

    /// Sends and reads the answer as `T`.
    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        doing: &str,
        request: RequestBuilder,
    ) -> Result<T, Error> {
        let response = self.send(doing, request).await?;
        let status = response.status().as_u16();
        let body = read(doing, response, MAX_ANSWER).await?;
        serde_json::from_slice(&body).map_err(|why| Error::Protocol {
            doing: doing.to_owned(),
            reason: format!("the answer is not what was expected: {why}"),
            status: Some(status),
        })
    }
}

/// Adds what is there to the query.
pub(crate) fn append(url: &mut Url, pairs: &[(&str, Option<String>)]) {
    for (name, value) in pairs {
        if let Some(value) = value {
            url.query_pairs_mut().append_pair(name, value);
        }
    }
}

/// Whether the address is this machine, where no proxy belongs in between.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What the server said instead of success.
async fn refusal(doing: &str, response: Response) -> Error {
    let status = response.status();
    let body = match read(doing, response, MAX_PROBLEM).await {
        Ok(body) => body,
        Err(error) => return error,
    };
    if let Ok(problem) = serde_json::from_slice::<Problem>(&body) {
        return Error::Problem(Box::new(problem));
    }
    let mut reason = format!("status {status}");
    let text: String = String::from_utf8_lossy(&body).chars().take(300).collect();
    if !text.trim().is_empty() {
        let _ = write!(reason, ", {:?}", text.trim());
    }
    Error::Protocol { doing: doing.to_owned(), reason, status: Some(status.as_u16()) }
}

async fn read(doing: &str, mut response: Response, limit: usize) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|why| Error::transport(doing, why))? {
        if body.len() + chunk.len() > limit {
            return Err(Error::protocol(doing, format!("the answer is longer than {limit} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
