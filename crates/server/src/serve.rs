//! The server: the router, its layers, and its life.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use karta_engine::settings::Plane;
use karta_engine::{Engine, Error};
use karta_types::{ErrorCode, Problem};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, Any, CorsLayer};
use tracing::Instrument as _;

use crate::metrics::Metrics;
use crate::problem::Failure;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// How long streams get to say their last words when the server stops.
const FAREWELL: Duration = Duration::from_secs(5);

tokio::task_local! {
    static CURRENT: String;
}

/// The id of the request that this task answers.
pub(crate) fn current_request_id() -> Option<String> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Every route over the engine.
pub fn router(engine: &Engine) -> Router {
    let metrics = Arc::new(Metrics::new());
    let plane = engine.settings().plane;
    let pages = if plane == Plane::Data { Router::new() } else { crate::pages::routes(engine) };
    let git = if plane == Plane::Control { Router::new() } else { crate::git::routes() };
    let (api, document) = crate::openapi::split(crate::api::routes(plane));
    let origins = engine.clone();
    let allowed =
        move |origin: &HeaderValue, _: &_| origin.to_str().is_ok_and(|origin| origins.allows_origin(origin));
    let limit = engine.settings().limits.body_bytes;
    Router::new()
        .merge(api)
        .merge(crate::operations::routes(document, metrics.clone()))
        .merge(pages)
        .merge(git)
        .fallback(move || async move {
            Failure::from(Error::not_found(match plane {
                Plane::All => "page",
                Plane::Control => "page on this server, which is the control plane: sessions are at the data plane",
                Plane::Data => "page on this server, which is the data plane: keys, budgets and people are at the control plane",
            }))
        })
        .method_not_allowed_fallback(|| async {
            let mut problem = Problem::new(ErrorCode::InvalidRequest, "this path does not take that method");
            problem.status = 405;
            Failure(Box::new(problem))
        })
        .layer(DefaultBodyLimit::max(limit))
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
            Failure::from(Problem::new(ErrorCode::Internal, "")).into_response()
        }))
        .layer(from_fn_with_state((engine.clone(), metrics), around))
        // Only pages from allowed origins may read answers; others can send, and learn nothing.
        .layer(
            CorsLayer::new()
                .allow_origin(AllowOrigin::predicate(allowed))
                .max_age(Duration::from_mins(10))
                .allow_methods(Any)
                .allow_headers(Any)
                .expose_headers([REQUEST_ID]),
        )
        .with_state(engine.clone())
}

/// Around every request: its id, its span, its count.
async fn around(
    State((engine, metrics)): State<(Engine, Arc<Metrics>)>,
    request: Request,
    next: Next,
) -> Response {
    let id = request_id(&engine);
    let method = request.method().clone();
    let span = tracing::debug_span!("request", id, %method, path = request.uri().path());
    let run = next.run(request).instrument(span);
    let mut response = CURRENT.scope(id.clone(), run).await;
    metrics.count(&method, response.status());
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn request_id(engine: &Engine) -> String {
    use std::fmt::Write as _;
    let bits = engine.rng().next_u128();
    let mut id = String::with_capacity(36);
    let _ = write!(id, "rq_{bits:032x}");
    id
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    engine: Engine,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Server {
    /// Listens and serves.
    ///
    /// # Errors
    /// The address is taken or not this machine's.
    pub async fn start(engine: Engine, listen: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let router = router(&engine);
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
            // Events are small and must not wait for one another.
            let _ = stream.set_nodelay(true);
        });
        // `into_make_service` shares one router; a bare one is copied for every connection.
        let serving = axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>())
            .with_graceful_shutdown(async move { stopping.cancelled().await });
        #[expect(clippy::disallowed_methods, reason = "shutdown() waits for it")]
        let served = tokio::spawn(async move { serving.await });
        Ok(Self { address, engine, stop, served })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops: no new requests, every turn ended in writing, streams closed.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.engine.shutdown().await;
        // Connections that still hang after that are cut.
        let abort = self.served.abort_handle();
        if tokio::time::timeout(FAREWELL, self.served).await.is_err() {
            abort.abort();
        }
    }
}
