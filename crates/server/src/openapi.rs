//! The API's description, generated from the handlers.

use std::collections::HashSet;

use axum::Router;
use karta_engine::Engine;
use karta_engine::settings::Plane;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{InfoBuilder, ObjectBuilder, OpenApi, PathItem, RefOr, Required};
use utoipa_axum::router::OpenApiRouter;

/// The router, and its description as JSON.
pub(crate) fn split(api: OpenApiRouter<Engine>) -> (Router<Engine>, String) {
    let (router, mut document) = api.split_for_parts();
    finish(&mut document);
    (router, document.to_pretty_json().unwrap_or_default())
}

/// The description alone, as it is checked in.
pub fn document() -> String {
    split(crate::api::routes(Plane::All)).1
}

fn finish(document: &mut OpenApi) {
    document.info = InfoBuilder::new()
        .title("Karta")
        .version("1")
        .description(Some(
            "One turn, one event stream, many projections. Sessions are light handles; the harness keeps the conversation.",
        ))
        .build();
    document.servers = None;
    if let Some(components) = &mut document.components {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("kt_live_…").build();
        components.add_security_scheme("key", SecurityScheme::Http(bearer));
    }
    document.security = Some(vec![SecurityRequirement::new("key", Vec::<String>::new())]);
    let mut names = HashSet::new();
    for (path, item) in &mut document.paths.paths {
        for operation in operations(item) {
            // The session routes stand twice: under a project their names say so.
            if let Some(id) = &mut operation.operation_id {
                let base = id.clone();
                let noun = path.split('/').filter(|part| !part.is_empty() && !part.starts_with('{')).skip(1);
                *id = format!("{}_{base}", noun.collect::<Vec<_>>().join("_"));
                while !names.insert(id.clone()) {
                    id.push('_');
                }
            }
            let declared = operation
                .parameters
                .iter()
                .flatten()
                .any(|one| matches!(one, RefOr::T(one) if one.name == "project"));
            if path.contains("{project}") && !declared {
                let project = ParameterBuilder::new()
                    .name("project")
                    .parameter_in(ParameterIn::Path)
                    .required(Required::True)
                    .description(Some("Id or slug"))
                    .schema(Some(ObjectBuilder::new().schema_type(utoipa::openapi::schema::Type::String)))
                    .build();
                operation.parameters.get_or_insert_default().insert(0, RefOr::T(project));
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().flatten()
}
