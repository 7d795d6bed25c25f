//! Hosts of model providers: nobody goes there but through the model gateway, where calls are counted and paid for.

use karta_types::egress::Place;

/// Hosts that are a provider's, with everything below them. Hosts that serve much else as well (a cloud's one address for all its
/// services, a website with a model behind one path) are not among them: what goes there is not told apart by a name.
const WHOLE: [&str; 73] = [
    // Anthropic, OpenAI.
    "api.anthropic.com",
    "api.claude.com",
    "api.openai.com",
    "chatgpt.com",
    // Google: Gemini, and what leads to every service of theirs by another name.
    "vertexai.goog",
    "private.googleapis.com",
    "restricted.googleapis.com",
    // Microsoft: Foundry with all that is below it, Azure OpenAI, machine learning, in each of its clouds.
    "ai.azure.com",
    "openai.azure.com",
    "cognitiveservices.azure.com",
    "api.cognitive.microsoft.com",
    "ml.azure.com",
    "ai.azure.us",
    "openai.azure.us",
    "cognitiveservices.azure.us",
    "api.cognitive.microsoft.us",
    "ml.azure.us",
    "ai.azure.cn",
    "openai.azure.cn",
    "cognitiveservices.azure.cn",
    "api.cognitive.azure.cn",
    "models.github.ai",
    "githubcopilot.com",
    // Amazon's own models, beside Bedrock.
    "api.nova.amazon.com",
    // Who makes models.
    "api.mistral.ai",
    "codestral.mistral.ai",
    "api.x.ai",
    "api.deepseek.com",
    "api.cohere.ai",
    "api.cohere.com",
    "api.ai21.com",
    "api.llama.com",
    "api.moonshot.ai",
    "api.moonshot.cn",
    "api.kimi.com",
    "api.z.ai",
    "open.bigmodel.cn",
    "api.minimax.io",
    "api.minimaxi.com",
    "dashscope.aliyuncs.com",
    "dashscope-intl.aliyuncs.com",
    "dashscope-us.aliyuncs.com",
    "api.perplexity.ai",
    "api.morphllm.com",
    "api.inceptionlabs.ai",
    "api.voyageai.com",
    // Who serves others' models.
    "openrouter.ai",
    "api.groq.com",
    "api.together.xyz",
    "api.together.ai",
    "api.fireworks.ai",
    "api.cerebras.ai",
    "api.sambanova.ai",
    "api.deepinfra.com",
    "api.replicate.com",
    "api.novita.ai",
    "api.hyperbolic.xyz",
    "api.featherless.ai",
    "api.friendli.ai",
    "api.siliconflow.cn",
    "api.siliconflow.com",
    "api.studio.nebius.ai",
    "api.studio.nebius.com",
    "api.tokenfactory.nebius.com",
    "api.poe.com",
    "inference.baseten.co",
    "integrate.api.nvidia.com",
    "router.huggingface.co",
    "api-inference.huggingface.co",
    "endpoints.huggingface.cloud",
    "gateway.ai.cloudflare.com",
    "ai-gateway.vercel.sh",
    "ai-gateway.helicone.ai",
];

/// Whether a host is a model provider's, by its name or because the server is set up to call models there.
pub(super) fn is_provider(place: &Place, configured: &[Place]) -> bool {
    let host = place.host.as_str();
    let whole =
        |name: &str| host.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'));
    WHOLE.into_iter().any(whole) || is_google(host) || is_amazon(host) || configured.contains(place)
}

/// `us-central1-aiplatform.googleapis.com`, `aiplatform.us-central1.rep.googleapis.com`, `aiplatform-mine.p.googleapis.com`; the same of
/// Gemini and of what serves Gemini's assistants.
fn is_google(host: &str) -> bool {
    let service = |label: &str| {
        ["aiplatform", "generativelanguage", "cloudcode-pa"].into_iter().any(|name| {
            label == name
                || label.strip_suffix(name).is_some_and(|before| before.ends_with('-'))
                || label.strip_prefix(name).is_some_and(|after| after.starts_with('-'))
        })
    };
    host.strip_suffix(".googleapis.com").is_some_and(|name| name.split('.').any(service))
}

/// `bedrock-runtime.us-east-1.amazonaws.com`, `bedrock-mantle.us-east-1.api.aws`, the same by private endpoints and in other
/// partitions, and Claude as Anthropic serves it there. A bucket may be called what it likes.
fn is_amazon(host: &str) -> bool {
    const DOMAINS: [&str; 7] = [
        ".amazonaws.com",
        ".amazonaws.com.cn",
        ".amazonwebservices.com.cn",
        ".amazonaws.eu",
        ".amazonwebservices.eu",
        ".api.aws",
        ".on.aws",
    ];
    let Some(name) = DOMAINS.into_iter().find_map(|domain| host.strip_suffix(domain)) else { return false };
    let service = name.rsplit('.').find(|label| {
        label.starts_with("bedrock")
            || label.contains("anthropic")
            || *label == "s3"
            || label.starts_with("s3-")
    });
    service.is_some_and(|label| !label.starts_with("s3"))
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
            "bedrock-runtime.cn-north-1.amazonaws.com.cn",
            "bedrock-mantle.us-east-1.api.aws",
            "bedrock-mantle.us-gov-west-1.api.aws",
            "s3.bedrock-runtime.us-east-1.amazonaws.com",
            "aws-external-anthropic.us-west-2.api.aws",
            "aiplatform.mtls.googleapis.com",
            "aiplatform.eu.rep.googleapis.com",
            "aiplatform-mine.p.googleapis.com",
            "7.us-central1-42.prediction.vertexai.goog",
            "generativelanguage.googleapis.com",
            "GenerativeLanguage.GoogleAPIs.com.",
            "preprod-generativelanguage.mtls.googleapis.com",
            "cloudcode-pa.googleapis.com",
            "private.googleapis.com",
            "mine.openai.azure.com",
            "MINE.OpenAI.Azure.COM.",
            "mine.privatelink.openai.azure.com",
            "mine.services.ai.azure.com",
            "mine.cognitiveservices.azure.com",
            "mine.eastus2.models.ai.azure.com",
            "models.inference.ai.azure.com",
            "mine.eastus.inference.ml.azure.com",
            "mine.openai.azure.us",
            "mine.openai.azure.cn",
            "eastus.api.cognitive.microsoft.com",
            "api.mistral.ai",
            "codestral.mistral.ai",
            "api.groq.com",
            "api.x.ai",
            "us-east-1.api.x.ai",
            "api.deepseek.com",
            "api.cohere.com",
            "api.cohere.ai",
            "api.together.xyz",
            "api.fireworks.ai",
            "api.perplexity.ai",
            "api.moonshot.ai",
            "api.z.ai",
            "api.cerebras.ai",
            "router.huggingface.co",
            "mine.us-east-1.aws.endpoints.huggingface.cloud",
            "api.individual.githubcopilot.com",
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
            "bedrock-logs.s3.us-east-1.amazonaws.com",
            "anthropic.s3-accelerate.amazonaws.com",
            "bedrock.example",
            "huggingface.co",
            "github.com",
            "mine.blob.core.windows.net",
            "notopenai.azure.com",
            "myaiplatform.googleapis.com",
            "aiplatform.googleapis.com.example",
            "console.mistral.ai",
            "models.internal.example",
        ] {
            assert!(!is(host), "{host}");
        }
    }
}
