//! Hosts of model providers: nobody goes there but through the model gateway, where calls are counted and paid for.

use karta_types::egress::{Host, Place};

/// Hosts that are a provider's, with everything below them.
const WHOLE: [&str; 6] = [
    "api.anthropic.com",
    "api.claude.com",
    "api.openai.com",
    "openrouter.ai",
    "aiplatform.googleapis.com",
    "aiplatform.mtls.googleapis.com",
];

/// Whether a host is a model provider's, by its name or because the server is set up to call models there.
pub(super) fn is_provider(place: &Place, configured: &[Place]) -> bool {
    let host = &place.host;
    let whole = |name: &str| {
        host.as_str().strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
    };
    WHOLE.into_iter().any(whole) || is_vertex(host) || is_bedrock(host) || configured.contains(place)
}

/// `us-central1-aiplatform.googleapis.com`, `aiplatform.us-central1.rep.googleapis.com`.
fn is_vertex(host: &Host) -> bool {
    host.as_str().strip_suffix(".googleapis.com").is_some_and(|name| {
        name.split('.').any(|label| label == "aiplatform" || label.ends_with("-aiplatform"))
    })
}

/// `bedrock-runtime.us-east-1.amazonaws.com`, and the same by private endpoints and in other partitions.
fn is_bedrock(host: &Host) -> bool {
    let name = [".amazonaws.com", ".amazonaws.com.cn", ".api.aws", ".on.aws", ".amazonaws.eu"]
        .into_iter()
        .find_map(|domain| host.as_str().strip_suffix(domain));
    name.is_some_and(|name| name.split('.').any(|label| label.starts_with("bedrock")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers_are_known_by_their_hosts() {
        let own = [Place::read("models.internal.example:8443", None).unwrap()];
        let is = |text: &str| is_provider(&Place::read(text, Some(443)).unwrap(), &own);
        for host in [
            "api.anthropic.com",
            "API.Anthropic.com.",
            "eu.api.openai.com",
            "openrouter.ai",
            "aiplatform.googleapis.com",
            "europe-west1-aiplatform.googleapis.com",
            "aiplatform.us-central1.rep.googleapis.com",
            "bedrock-runtime.us-east-1.amazonaws.com",
            "bedrock.eu-central-1.amazonaws.com",
            "bedrock-runtime-fips.us-east-1.amazonaws.com",
            "vpce-0a.bedrock-runtime.us-east-1.vpce.amazonaws.com",
            "models.internal.example:8443",
        ] {
            assert!(is(host), "{host}");
        }
        for host in [
            "anthropic.com",
            "notapi.openai.com.example",
            "myapi.anthropic.com",
            "storage.googleapis.com",
            "s3.us-east-1.amazonaws.com",
            "models.internal.example",
        ] {
            assert!(!is(host), "{host}");
        }
    }
}
