//! The gateway's listener: who calls, with which token, on which route.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use karta_types::{Clock, Rng};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::forward::forward;
use super::provider::{ALL, Provider};
use super::{Authority, Config, Error, Shared, Way};

/// The largest request.
pub(super) const MAX_BODY: usize = 32 << 20;

/// How long a connection out of a sandbox may take to say what it wants, or rest between two calls.
const HEAD: Duration = Duration::from_mins(5);

/// A gateway that runs.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    router: Router,
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Gateway {
    /// Starts to listen.
    ///
    /// # Errors
    /// The address is taken; the client can't be made.
    pub async fn start(
        config: Config,
        authority: Arc<dyn Authority>,
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
    ) -> Result<Self, Error> {
        let address = config.listen;
        let fail = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let mut client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(config.connect_timeout)
            .read_timeout(config.idle_timeout)
            .tcp_nodelay(true);
        // A proxy of the environment is for the providers; what is on this machine is never behind it.
        if config.upstreams.iter().all(|upstream| is_local(&upstream.base_url)) {
            client = client.no_proxy();
        }
        let client = client.build().map_err(Error::Client)?;
        let google = super::cloud::Google::new(config.google_tokens.clone(), client.clone());
        let shared = Arc::new(Shared { config, google, authority, client, clock, rng });
        let mut router = Router::new();
        for provider in ALL {
            let dialect = provider.dialect();
            let path = format!("{}/{{*rest}}", dialect.prefix());
            let provider = *provider;
            let handler =
                move |shared: State<Arc<Shared>>, request: Request| serve(provider, shared, request);
            router = router.route(&path, any(handler));
        }
        let router = router.layer(DefaultBodyLimit::max(MAX_BODY)).with_state(shared);
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let stopping = stop.clone();
        let served = router.clone();
        tracker.spawn(async move {
            let served = axum::serve(listener, served.into_make_service())
                .with_graceful_shutdown(async move { stopping.cancelled().await });
            if let Err(error) = served.await {
                tracing::error!(%error, "the model gateway ended");
            }
        });
        Ok(Self { address, router, stop, tracker })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The base URL of the Anthropic shape.
    pub fn anthropic_url(&self) -> String {
        anthropic_url(self.address)
    }

    /// The base URL of the `OpenAI` shape.
    pub fn openai_url(&self) -> String {
        openai_url(self.address)
    }

    /// Serves a stream that came out of a sandbox, until it ends.
    pub fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, way: Way) {
        let router = self.router.clone().layer(Extension(way));
        let stopping = self.stop.clone();
        self.tracker.spawn(async move {
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD);
            let service = TowerToHyperService::new(router);
            let connection = server.serve_connection(TokioIo::new(stream), service);
            // One that breaks off, or speaks no HTTP, is the harness's to notice; calls under way settle themselves.
            let _ = stopping.run_until_cancelled(connection).await;
        });
    }

    /// Stops listening and waits, not for long, for calls under way.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tracker.close();
        // Whoever still calls is cut when the process ends: its session was ended before.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.tracker.wait()).await;
    }
}

/// The base URL of the Anthropic shape, for a gateway that is reached there.
pub fn anthropic_url(address: SocketAddr) -> String {
    format!("http://{address}/anthropic")
}

/// The base URL of the `OpenAI` shape, for a gateway that is reached there.
pub fn openai_url(address: SocketAddr) -> String {
    format!("http://{address}/openai/v1")
}

fn is_local(url: &str) -> bool {
    ["http://127.", "http://localhost", "http://[::1]"].iter().any(|start| url.starts_with(start))
}

async fn serve(provider: Provider, State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let dialect = provider.dialect();
    let path = request.uri().path().strip_prefix(dialect.prefix()).unwrap_or_default().to_owned();
    let route = dialect.routes().iter().find(|route| route.path == path);
    // Some harnesses ask whether their base URL lives.
    if request.method() == Method::HEAD && (path.is_empty() || path == "/") {
        return StatusCode::OK.into_response();
    }
    let Some(route) = route.filter(|_| request.method() == Method::POST) else {
        return refuse(provider, 404, "not_found_error", "this gateway carries model calls only");
    };
    let token = token(request.headers());
    let way = request.extensions().get().copied().unwrap_or(Way::Port);
    let Some(channel) = token.and_then(|token| shared.authority.channel(token, way)) else {
        return refuse(
            provider,
            401,
            "authentication_error",
            "this token belongs to no session that runs; only the session's own harness may call",
        );
    };
    forward(provider, *route, &shared, channel, request).await
}

/// The session's token, wherever the client puts it.
fn token(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    bearer
        .and_then(|value| value.strip_prefix("Bearer "))
        .or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok()))
        .map(str::trim)
}

/// An answer of the gateway itself, in the provider's own shape. Never worth a retry, and it says so.
pub(super) fn refuse(provider: Provider, status: u16, kind: &str, message: &str) -> Response {
    let body = provider.dialect().error(status, kind, message).to_string();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    let retry = if status >= 500 { "true" } else { "false" };
    headers.insert("x-should-retry", HeaderValue::from_static(retry));
    response
}
