//! The native API, one file per noun.

pub mod audit;
pub mod billing;
pub mod budgets;
pub mod inputs;
pub mod invitations;
pub mod keys;
pub mod logs;
pub mod members;
pub mod messages;
pub mod policy;
pub mod previews;
pub mod projects;
pub mod provider_keys;
pub mod releases;
pub mod secrets;
pub mod session_tokens;
pub mod sessions;
pub mod target;
pub mod turns;
pub mod usage;
pub mod webhooks;
pub mod whoami;

use karta_engine::Engine;
use karta_engine::settings::Plane;
use utoipa_axum::router::OpenApiRouter;

/// The routes of these planes. The session routes stand twice: flat, and under their project.
pub fn routes(plane: Plane) -> OpenApiRouter<Engine> {
    match plane {
        Plane::All => data().merge(control()),
        Plane::Control => control(),
        Plane::Data => data(),
    }
}

fn data() -> OpenApiRouter<Engine> {
    let sessions = || {
        OpenApiRouter::new()
            .merge(sessions::routes())
            .merge(messages::routes())
            .merge(turns::routes())
            .merge(inputs::routes())
    };
    OpenApiRouter::new()
        .nest("/v1/sessions", sessions().merge(sessions::flat()))
        .nest("/v1/projects/{project}/sessions", sessions().merge(sessions::of_project()))
        .nest(
            "/v1/projects",
            projects::routes()
                .merge(releases::routes())
                .merge(previews::routes())
                .merge(logs::routes())
                .merge(messages::of_project()),
        )
        .nest("/v1/inputs", inputs::of_org())
}

fn control() -> OpenApiRouter<Engine> {
    OpenApiRouter::new()
        .nest("/v1/audit", audit::routes())
        .nest("/v1/billing", billing::routes())
        .nest("/v1/budgets", budgets::routes())
        .nest("/v1/invitations", invitations::routes())
        .nest("/v1/keys", keys::routes())
        .nest("/v1/members", members::routes())
        .nest("/v1/policy", policy::routes())
        .nest("/v1/projects", secrets::routes())
        .nest("/v1/provider-keys", provider_keys::routes())
        .nest("/v1/session-tokens", session_tokens::routes())
        .nest("/v1/usage", usage::routes())
        .nest("/v1/webhook-endpoints", webhooks::routes())
        .nest("/v1/whoami", whoami::routes())
}
