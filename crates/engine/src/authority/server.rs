//! The control plane's side: answers data planes that show a service token.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use karta_types::org_policy::OrgPolicy;
use karta_types::{ErrorCode, Problem, Secret};
use tokio::net::TcpListener;

use super::ServiceTokens;
use super::wire::{
    Admit, AskCredential, AskPolicy, AskSecrets, Authenticate, Calls, Credential, Note, Nothing, Org,
    OrgFound, Origins, PATH, Reserve, Reserved, SecretValue, Settle, Used, UsedIn,
};
use crate::control::budgets::HOLD;
use crate::gate::{Gate as _, Hold};
use crate::{Engine, Error, Result};

/// The largest question, in bytes.
const MOST: usize = 1 << 20;

/// A refusal on its way out.
struct Refusal(Box<Problem>);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        if let Error::Internal { .. } = error {
            tracing::error!(error = error.chain(), "answering a data plane");
        }
        Self(Box::new(error.problem()))
    }
}

impl From<karta_store::Error> for Refusal {
    fn from(error: karta_store::Error) -> Self {
        Error::from(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

type Answer<T> = std::result::Result<Json<T>, Refusal>;

/// Listens for data planes until the engine stops. Answers where.
pub(crate) async fn serve(engine: &Engine, listen: SocketAddr, tokens: ServiceTokens) -> Result<SocketAddr> {
    let fail = |error| Error::internal("listening for data planes", error);
    let listener = TcpListener::bind(listen).await.map_err(fail)?;
    let address = listener.local_addr().map_err(fail)?;
    let routes = Router::new()
        .route("/authenticate", post(authenticate))
        .route("/admit", post(admit))
        .route("/reserve", post(reserve))
        .route("/note", post(note))
        .route("/settle", post(settle))
        .route("/release", post(release))
        .route("/renew", post(renew))
        .route("/credential", post(credential))
        .route("/secrets", post(secrets))
        .route("/policy", post(policy))
        .route("/used", post(used))
        .route("/org", post(org))
        .route("/origins", post(origins))
        .layer(DefaultBodyLimit::max(MOST))
        .layer(from_fn_with_state(Arc::new(tokens), check))
        .with_state(engine.clone());
    let service = Router::new().nest(PATH, routes);
    let stopping = engine.tasks().clone();
    engine.tasks().spawn(async move {
        let served =
            axum::serve(listener, service).with_graceful_shutdown(async move { stopping.stopping().await });
        if let Err(error) = served.await {
            tracing::error!(%error, "listening for data planes");
        }
    });
    Ok(address)
}

/// Nobody asks without a service token.
async fn check(State(tokens): State<Arc<ServiceTokens>>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default().to_owned();
    if tokens.knows(&shown).await {
        return next.run(request).await;
    }
    Refusal::from(Error::told(ErrorCode::Forbidden, "this service token is not one of the control plane's"))
        .into_response()
}

async fn authenticate(
    State(engine): State<Engine>,
    Json(asked): Json<Authenticate>,
) -> Answer<crate::Principal> {
    Ok(Json(engine.control().authenticate(&asked.token).await?))
}

async fn admit(State(engine): State<Engine>, Json(asked): Json<Admit>) -> Answer<Nothing> {
    engine.control().admit(&asked.spender).await.map_err(Refusal)?;
    Ok(Json(Nothing {}))
}

async fn reserve(State(engine): State<Engine>, Json(asked): Json<Reserve>) -> Answer<Reserved> {
    Ok(Json(match engine.control().reserve(asked.want).await {
        Ok((hold, output)) => {
            // The data plane renews it while its call runs: when that plane is gone, the hold ends.
            engine.control().budgets().leave_to_another(&hold);
            Reserved::Held { output }
        }
        Err((problem, inexact)) => Reserved::Refused { problem, inexact },
    }))
}

async fn note(State(engine): State<Engine>, Json(asked): Json<Note>) -> Answer<Nothing> {
    engine.control().note(&Hold::of(asked.call), asked.usage, asked.cost, asked.priced).await?;
    Ok(Json(Nothing {}))
}

async fn settle(State(engine): State<Engine>, Json(asked): Json<Settle>) -> Answer<Nothing> {
    engine.control().settle(Hold::of(asked.used.id), asked.used).await?;
    Ok(Json(Nothing {}))
}

async fn release(State(engine): State<Engine>, Json(asked): Json<Calls>) -> Answer<Nothing> {
    for call in asked.calls {
        engine.control().release(Hold::of(call)).await?;
    }
    Ok(Json(Nothing {}))
}

async fn renew(State(engine): State<Engine>, Json(asked): Json<Calls>) -> Answer<Nothing> {
    engine.store().hold_renew(asked.calls, engine.clock().now().plus(HOLD)).await?;
    Ok(Json(Nothing {}))
}

async fn credential(
    State(engine): State<Engine>,
    Json(asked): Json<AskCredential>,
) -> Answer<Option<Credential>> {
    let found = engine.control().credential(asked.org, &asked.providers).await?;
    Ok(Json(found.map(|found| Credential {
        id: found.id,
        provider: found.provider,
        key: found.key.expose().clone(),
    })))
}

async fn secrets(State(engine): State<Engine>, Json(asked): Json<AskSecrets>) -> Answer<Vec<SecretValue>> {
    let found = engine.control().secrets(asked.org, asked.project, &asked.names).await?;
    let told = |(name, value): (String, Secret)| SecretValue { name, value: value.expose().clone() };
    Ok(Json(found.into_iter().map(told).collect()))
}

async fn policy(State(engine): State<Engine>, Json(asked): Json<AskPolicy>) -> Answer<OrgPolicy> {
    Ok(Json(engine.control().policy(asked.org).await?))
}

async fn used(State(engine): State<Engine>, Json(asked): Json<UsedIn>) -> Answer<Used> {
    let (usage, cost, models) = engine.control().used_in(asked.org, asked.turn).await?;
    Ok(Json(Used { usage, cost, models }))
}

async fn org(State(engine): State<Engine>, Json(asked): Json<Org>) -> Answer<OrgFound> {
    Ok(Json(OrgFound { id: engine.ensure_org(&asked.slug).await? }))
}

async fn origins(State(engine): State<Engine>, Json(Nothing {}): Json<Nothing>) -> Answer<Origins> {
    Ok(Json(Origins { origins: engine.control().tokens().origins() }))
}
