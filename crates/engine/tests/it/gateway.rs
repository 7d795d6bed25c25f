//! The model gateway between a client and a provider that both are ours.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use karta_engine::gate::Hold;
use karta_engine::gateway::{
    Admitted, Authority, Bound, Call, Channel, Config, Gateway, Own, Prices, Provider, Refused, Trouble,
    Upstream, Used, Way,
};
use karta_store::Dearest;
use karta_types::{ErrorCode, Problem, Secret, Usage};

const KEY: &str = "sk-planted-gateway";
const TOKEN: &str = "session-token";

/// What the provider got, and what it is to answer.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<State_>>);

#[derive(Default)]
struct State_ {
    seen: Vec<(String, HeaderMap, Vec<u8>)>,
    status: u16,
    headers: Vec<(&'static str, &'static str)>,
    chunks: Vec<&'static [u8]>,
    cut: bool,
}

async fn provider(State(fake): State<Fake>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 64 << 20).await.unwrap().to_vec();
    let mut state = fake.0.lock().unwrap();
    state.seen.push((parts.uri.to_string(), parts.headers, body));
    let cut = state.cut;
    let chunks = state.chunks.clone();
    let stream = futures_util::stream::unfold((chunks.into_iter(), cut), |(mut chunks, cut)| async move {
        // Each chunk is one of its own on the wire.
        tokio::time::sleep(Duration::from_millis(5)).await;
        match chunks.next() {
            Some(chunk) => Some((Ok(Bytes::from_static(chunk)), (chunks, cut))),
            None if cut => Some((Err(std::io::Error::other("cut")), (chunks, false))),
            None => None,
        }
    });
    let mut response = Response::new(Body::from_stream(stream));
    *response.status_mut() = StatusCode::from_u16(state.status.max(200)).unwrap();
    for (name, value) in &state.headers {
        response.headers_mut().insert(*name, value.parse().unwrap());
    }
    response
}

/// What the session's channel was told.
#[derive(Default)]
struct Session {
    used: Mutex<Vec<Used>>,
    trouble: Mutex<Vec<Trouble>>,
    noted: Mutex<Vec<Used>>,
    unused: Mutex<usize>,
    bounds: Mutex<Vec<Bound>>,
    /// The organisation's own key.
    own: Option<String>,
    own_provider: Option<Provider>,
    /// Input and output that there is room for; absent is as much as is asked.
    room: Option<(u64, u64)>,
}

struct Keys(Arc<Session>);

impl Authority for Keys {
    fn channel(&self, token: &str, way: Way) -> Option<Arc<dyn Channel>> {
        (token == TOKEN && way == Way::Port).then(|| self.0.clone() as Arc<dyn Channel>)
    }
}

#[async_trait]
impl Channel for Session {
    async fn credential(&self, provider: Provider) -> Result<Option<Own>, Box<Problem>> {
        let own = self.own.clone();
        let provider = self.own_provider.unwrap_or(provider);
        Ok(own.map(|key| Own { provider, key: Secret::new(key) }))
    }

    async fn admit(&self, call: &Call, bound: &Bound, _: Option<Dearest>) -> Result<Admitted, Refused> {
        self.bounds.lock().unwrap().push(*bound);
        let (input, output) = self.room.unwrap_or((u64::MAX, u64::MAX));
        if bound.input > input || bound.least > output {
            let problem = Box::new(Problem::new(ErrorCode::BudgetExhausted, "nothing left"));
            return Err(Refused { problem, inexact: !bound.counted });
        }
        Ok(Admitted { hold: Hold::of(call.id), output: bound.output.min(output) })
    }

    fn refused(&self, refused: Refused) {
        assert_eq!(refused.problem.error, ErrorCode::BudgetExhausted);
    }

    async fn noted(&self, _hold: &Hold, used: &Used) {
        self.noted.lock().unwrap().push(used.clone());
    }

    async fn used(&self, call: &Call, hold: Hold, used: Used) {
        assert_eq!(hold.call(), call.id);
        self.used.lock().unwrap().push(used);
    }

    async fn unused(&self, _hold: Hold) {
        *self.unused.lock().unwrap() += 1;
    }

    fn trouble(&self, _call: &Call, trouble: Trouble) {
        self.trouble.lock().unwrap().push(trouble);
    }
}

struct Rig {
    fake: Fake,
    session: Arc<Session>,
    gateway: Gateway,
    client: reqwest::Client,
    provider: tokio::task::JoinHandle<()>,
}

impl Rig {
    async fn new(session: Session) -> Self {
        let fake = Fake::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(provider).with_state(fake.clone());
        #[expect(clippy::disallowed_methods, reason = "aborted at the end of the test")]
        let provider = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let upstream =
            |provider| Upstream { provider, base_url: base.clone(), key: Some(Secret::new(KEY.to_owned())) };
        let config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
            upstreams: vec![
                upstream(Provider::Anthropic),
                upstream(Provider::OpenAi),
                // The real addresses have the region in the host's name; here it is in the path.
                Upstream { base_url: format!("{base}/bedrock.{{region}}"), ..upstream(Provider::Bedrock) },
                Upstream { base_url: format!("{base}/{{region}}-vertex"), ..upstream(Provider::Vertex) },
            ],
            google_tokens: format!("{base}/token"),
            prices: Prices::list().unwrap(),
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
        };
        let session = Arc::new(session);
        let keys = Arc::new(Keys(session.clone()));
        let world = (Arc::new(karta_types::time::System), Arc::new(karta_types::rng::System));
        let gateway = Gateway::start(config, keys, world.0, world.1).await.unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { fake, session, gateway, client, provider }
    }

    fn answers(&self, status: u16, headers: &[(&'static str, &'static str)], chunks: &[&'static [u8]]) {
        let mut state = self.fake.0.lock().unwrap();
        state.status = status;
        state.headers = headers.to_vec();
        state.chunks = chunks.to_vec();
    }

    async fn post(&self, url: String, body: &str) -> reqwest::Response {
        let request = self.client.post(url).header("x-api-key", TOKEN).header("cookie", "a=b");
        request.header("anthropic-version", "2023-06-01").body(body.to_owned()).send().await.unwrap()
    }

    fn messages(&self) -> String {
        format!("{}/v1/messages", self.gateway.anthropic_url())
    }

    async fn end(self) {
        self.gateway.shutdown().await;
        self.provider.abort();
    }
}

const SSE: &[(&str, &str)] = &[("content-type", "text/event-stream"), ("request-id", "r1")];
const STREAM: &[&[u8]] = &[
    b"event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-sonnet-4-5\",\"usage\":{\"input_tok",
    b"ens\":100,\"cache_read_input_tokens\":20,\"cache_creation_input_tokens\":10,\"output_tokens\":1}}}\n\n",
    b"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello there\"}}\n\n",
    b"event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":50}}\n\nevent: message_stop\n",
    b"data: {\"type\":\"message_stop\"}\n\n",
];

#[tokio::test]
async fn a_stream_passes_byte_for_byte_and_is_metered() {
    let rig = Rig::new(Session::default()).await;
    rig.answers(200, SSE, STREAM);
    let body = "{\"model\":\"claude-sonnet-4-5\",  \"stream\":true}";
    let answer = rig.post(format!("{}?beta=true", rig.messages()), body).await;
    assert_eq!(answer.headers()["request-id"], "r1");
    assert_eq!(answer.bytes().await.unwrap(), STREAM.concat());
    let used = rig.session.used.lock().unwrap().pop().unwrap();
    let expected =
        Usage { input_tokens: 100, output_tokens: 50, cache_read_tokens: 20, cache_write_tokens: 10 };
    assert_eq!((used.usage, used.complete, used.priced), (expected, true, true));
    // 100 x 3 + 50 x 15 + 20 x 0.3 + 10 x 3.75 = 1093.5 micro-dollars, rounded up.
    assert_eq!(used.cost.get(), 1094);
    assert!(rig.session.used.lock().unwrap().is_empty(), "once");
    // Should we have died in the middle: what the provider had said by then was on record.
    let noted = rig.session.noted.lock().unwrap().pop().unwrap();
    assert_eq!((noted.usage.input_tokens, noted.usage.cache_read_tokens, noted.complete), (100, 20, false));
    let (url, headers, sent) = rig.fake.0.lock().unwrap().seen.pop().unwrap();
    assert_eq!((url.as_str(), sent.as_slice()), ("/v1/messages?beta=true", body.as_bytes()));
    assert_eq!(
        (&headers["x-api-key"], &headers["anthropic-version"]),
        (&KEY.parse().unwrap(), &"2023-06-01".parse().unwrap())
    );
    assert!(!headers.contains_key("cookie") && !headers.contains_key("authorization"));
    rig.end().await;
}

#[tokio::test]
async fn the_other_shapes_are_metered_too() {
    let rig = Rig::new(Session::default()).await;
    let openai = |path: &str| format!("{}{path}", rig.gateway.openai_url());
    let json: &[(&str, &str)] = &[("content-type", "application/json")];
    rig.answers(
        200,
        json,
        &[br#"{"model":"claude-haiku-4-5","type":"message","usage":{"input_tokens":7,"output_tokens":3}}"#],
    );
    rig.post(rig.messages(), r#"{"model":"claude-haiku-4-5"}"#).await.bytes().await.unwrap();
    rig.answers(200, SSE, &[
        b"data: {\"model\":\"gpt-5\",\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n",
        b"data: {\"model\":\"gpt-5\",\"choices\":[],\"usage\":{\"prompt_tokens\":30,\"completion_tokens\":4,\"prompt_tokens_details\":{\"cached_tokens\":10}}}\n\ndata: [DONE]\n\n",
    ]);
    rig.post(openai("/chat/completions"), r#"{"model":"gpt-5","stream":true}"#).await.bytes().await.unwrap();
    rig.answers(200, SSE, &[
        b"data: {\"type\":\"response.completed\",\"response\":{\"model\":\"gpt-5-mini\",\"usage\":{\"input_tokens\":9,\"output_tokens\":2,\"input_tokens_details\":{\"cached_tokens\":4}}}}\n\n",
    ]);
    rig.post(openai("/responses"), r#"{"model":"gpt-5-mini","stream":true}"#).await.bytes().await.unwrap();
    let used: Vec<_> =
        rig.session.used.lock().unwrap().iter().map(|used| (used.model.clone(), used.usage)).collect();
    let usage = |input_tokens, output_tokens, cache_read_tokens| Usage {
        input_tokens,
        output_tokens,
        cache_read_tokens,
        cache_write_tokens: 0,
    };
    assert_eq!(
        used,
        [
            ("claude-haiku-4-5".to_owned(), usage(7, 3, 0)),
            ("gpt-5".to_owned(), usage(20, 4, 10)),
            ("gpt-5-mini".to_owned(), usage(5, 2, 4)),
        ]
    );
    let seen = std::mem::take(&mut rig.fake.0.lock().unwrap().seen);
    let chat: serde_json::Value = serde_json::from_slice(&seen[1].2).unwrap();
    assert_eq!(chat["stream_options"]["include_usage"], true, "a chat stream is asked what it used");
    assert_eq!(seen[1].1["authorization"], format!("Bearer {KEY}"));
    assert_eq!(seen[2].2, br#"{"model":"gpt-5-mini","stream":true}"#);
    rig.end().await;
}

#[tokio::test]
async fn what_may_not_leave_does_not() {
    let rig = Rig::new(Session::default()).await;
    for path in [
        "/anthropic/v1/files",
        "/anthropic/v1/messages/batches",
        "/anthropic/v1/messages/../files",
        "/openai/v1/files",
        "/openai/v1/fine_tuning/jobs",
        "/anthropic//v1/messages",
        "/v1/messages",
        "/anthropic/v1/messages/",
    ] {
        let base = rig.gateway.anthropic_url().replace("/anthropic", "");
        let answer = rig.post(format!("{base}{path}"), "{}").await;
        assert_eq!(answer.status(), 404, "{path}");
    }
    let get = rig.client.get(rig.messages()).header("x-api-key", TOKEN).send().await.unwrap();
    assert_eq!(get.status(), 404);
    for token in ["", "other", KEY] {
        let answer =
            rig.client.post(rig.messages()).header("x-api-key", token).body("{}").send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), answer.headers()["x-should-retry"].clone()),
            (401, "false".parse().unwrap())
        );
        assert!(answer.text().await.unwrap().contains("authentication_error"));
    }
    let garbage = rig.post(rig.messages(), "{").await;
    assert_eq!(garbage.status(), 400);
    let huge = rig.post(rig.messages(), &"x".repeat(33 << 20)).await;
    assert_eq!(huge.status(), 413);
    assert!(rig.fake.0.lock().unwrap().seen.is_empty(), "nothing left");
    rig.end().await;

    let refused = Rig::new(Session { room: Some((0, 0)), ..Session::default() }).await;
    let answer = refused.post(refused.messages(), r#"{"model":"m"}"#).await;
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["x-should-retry"].clone()),
        (402, "false".parse().unwrap())
    );
    assert!(answer.text().await.unwrap().contains("budget_exhausted"));
    let counting = refused.post(format!("{}/count_tokens", refused.messages()), r#"{"model":"m"}"#).await;
    assert_eq!(counting.status(), 200, "counting costs nothing");
    let seen: Vec<_> = refused.fake.0.lock().unwrap().seen.iter().map(|seen| seen.0.clone()).collect();
    assert_eq!(seen, ["/v1/messages/count_tokens"; 2], "the gateway asked for the exact count first");
    refused.end().await;
}

#[tokio::test]
async fn an_organisations_own_key_goes_in_the_place_of_the_platforms() {
    let rig = Rig::new(Session { own: Some("sk-own-planted".to_owned()), ..Session::default() }).await;
    rig.answers(200, SSE, STREAM);
    rig.post(rig.messages(), "{}").await.bytes().await.unwrap();
    let chat = format!("{}/chat/completions", rig.gateway.openai_url());
    rig.post(chat, "{}").await.bytes().await.unwrap();
    let seen = std::mem::take(&mut rig.fake.0.lock().unwrap().seen);
    assert_eq!(seen[0].1["x-api-key"], "sk-own-planted");
    assert_eq!(seen[1].1["authorization"], "Bearer sk-own-planted");
    assert!(!format!("{seen:?}").contains(KEY), "the platform's key stays out of it");
    rig.end().await;
}

#[tokio::test]
async fn a_request_is_limited_to_what_there_is_room_for() {
    let rig = Rig::new(Session { room: Some((1_000, 40)), ..Session::default() }).await;
    let json: &[(&str, &str)] = &[("content-type", "application/json")];
    rig.answers(200, json, &[br#"{"input_tokens": 700}"#]);
    // By its size it could be 2,000 tokens and more; the provider counts 700.
    let request =
        serde_json::json!({"model": "claude-haiku-4-5", "max_tokens": 4096, "messages": ["x".repeat(2_000)]});
    rig.post(rig.messages(), &request.to_string()).await.bytes().await.unwrap();
    let openai = |path: &str| format!("{}{path}", rig.gateway.openai_url());
    rig.post(openai("/responses"), r#"{"model":"gpt-5"}"#).await.bytes().await.unwrap();
    let seen = std::mem::take(&mut rig.fake.0.lock().unwrap().seen);
    let sent: Vec<serde_json::Value> =
        seen.iter().map(|seen| serde_json::from_slice(&seen.2).unwrap()).collect();
    assert_eq!(
        (seen[0].0.as_str(), &sent[0]["max_tokens"]),
        ("/v1/messages/count_tokens", &serde_json::Value::Null)
    );
    assert_eq!((seen[1].0.as_str(), &sent[1]["max_tokens"]), ("/v1/messages", &serde_json::json!(40)));
    assert_eq!(sent[1]["messages"], request["messages"], "nothing else is changed");
    let bounds = rig.session.bounds.lock().unwrap().clone();
    assert!(bounds[0].input > 4_000 && !bounds[0].counted, "{bounds:?}");
    assert_eq!((bounds[1].input, bounds[1].output, bounds[1].counted), (778, 4096, true));
    // No count there: what its size says is what counts.
    assert!(seen.len() == 2 && bounds[2].input > 1_000, "{bounds:?}");
    rig.end().await;
}

#[tokio::test]
async fn refusals_of_the_provider_pass_and_breaks_are_seen() {
    let rig = Rig::new(Session::default()).await;
    rig.answers(
        429,
        &[("content-type", "application/json"), ("retry-after", "7"), ("set-cookie", "a=b")],
        &[b"{\"type\":\"error\"}"],
    );
    let answer = rig.post(rig.messages(), r#"{"model":"m"}"#).await;
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["retry-after"].clone()),
        (429, "7".parse().unwrap())
    );
    assert!(!answer.headers().contains_key("set-cookie"));
    assert_eq!(answer.bytes().await.unwrap().as_ref(), b"{\"type\":\"error\"}");
    rig.answers(401, &[("content-type", "application/json")], &[b"{}"]);
    assert_eq!(rig.post(rig.messages(), r#"{"model":"m"}"#).await.headers()["x-should-retry"], "false");
    assert_eq!(*rig.session.trouble.lock().unwrap(), [Trouble::Status(429), Trouble::Status(401)]);
    assert!(rig.session.used.lock().unwrap().is_empty(), "an error costs nothing");
    assert_eq!(*rig.session.unused.lock().unwrap(), 2, "what was set aside is free again");

    // A stream that breaks off breaks for the client too; what came of it is counted.
    rig.answers(200, SSE, &STREAM[..3]);
    rig.fake.0.lock().unwrap().cut = true;
    let answer = rig.post(rig.messages(), r#"{"model":"claude-sonnet-4-5","stream":true}"#).await;
    assert!(answer.bytes().await.is_err(), "the client sees the break");
    let used = rig.session.used.lock().unwrap().pop().unwrap();
    assert!(!used.complete);
    assert_eq!(
        (used.usage.input_tokens, used.usage.output_tokens),
        (100, 3),
        "11 characters are 3 tokens, rounded up"
    );
    rig.provider.abort();
    let gone = loop {
        let answer = rig.post(rig.messages(), r#"{"model":"m"}"#).await;
        if answer.status().as_u16() != 200 {
            break answer;
        }
    };
    assert_eq!(gone.status(), 502);
    let text = gone.text().await.unwrap();
    assert!(text.contains("can't be reached") && !text.contains(KEY), "{text}");
    rig.end().await;
}

const LONG_NAME: &str =
    r#"{"model":"claude-sonnet-4-5-20250929","stream":true,"max_tokens":9,"messages":[]}"#;

#[tokio::test]
async fn bedrock_is_the_same_with_its_region_its_name_and_its_key() {
    let own = serde_json::json!({"region": "eu-west-1", "key": "bedrock-planted"}).to_string();
    let rig =
        Rig::new(Session { own: Some(own), own_provider: Some(Provider::Bedrock), ..Session::default() })
            .await;
    rig.answers(200, SSE, STREAM);
    let answer = rig.post(rig.messages(), LONG_NAME).await;
    assert_eq!(answer.bytes().await.unwrap(), STREAM.concat());
    let (url, headers, body) = rig.fake.0.lock().unwrap().seen.pop().unwrap();
    assert_eq!(
        (url.as_str(), headers["x-api-key"].to_str().unwrap()),
        ("/bedrock.eu-west-1/v1/messages", "bedrock-planted")
    );
    assert_eq!(headers["anthropic-version"], "2023-06-01");
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&body["model"], &body["max_tokens"]),
        (&"anthropic.claude-sonnet-4-5-20250929".into(), &9.into())
    );
    let used = rig.session.used.lock().unwrap().pop().unwrap();
    assert!(used.priced && used.usage.output_tokens == 50);
    rig.end().await;
}

#[tokio::test]
async fn vertex_has_the_model_in_its_address_and_a_token_that_is_had_once() {
    use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let pem = format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(der.as_ref())
    );
    let account = serde_json::json!({"type": "service_account", "client_email": "a@p.iam", "private_key": pem,
        "project_id": "proj-1", "token_uri": "http://169.254.169.254/token"});
    let own = serde_json::json!({"region": "global", "key": account.to_string()}).to_string();
    let rig =
        Rig::new(Session { own: Some(own), own_provider: Some(Provider::Vertex), ..Session::default() })
            .await;
    rig.answers(
        200,
        &[("content-type", "application/json")],
        &[br#"{"access_token":"ya29.planted","expires_in":3600}"#],
    );
    // The first call takes the token's answer for its own: it is not the provider's, and nothing is metered of it.
    drop(rig.post(rig.messages(), LONG_NAME).await.bytes().await);
    rig.answers(200, SSE, STREAM);
    let answer = rig.post(rig.messages(), LONG_NAME).await;
    assert_eq!(answer.bytes().await.unwrap(), STREAM.concat());
    let count = rig.messages() + "/count_tokens";
    drop(rig.post(count, LONG_NAME).await.bytes().await);
    let seen = std::mem::take(&mut rig.fake.0.lock().unwrap().seen);
    let urls: Vec<_> = seen.iter().map(|(url, ..)| url.as_str()).collect();
    let models = "/vertex/v1/projects/proj-1/locations/global/publishers/anthropic/models/";
    let stream = format!("{models}claude-sonnet-4-5@20250929:streamRawPredict");
    assert_eq!(urls, ["/token", &stream, &stream, &format!("{models}count-tokens:rawPredict")]);
    // The account signed what it was asked to, and to nobody else.
    let form = String::from_utf8(seen[0].2.clone()).unwrap();
    let assertion = form.split_once("assertion=").unwrap().1;
    let (signed, signature) = assertion.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, pair.public_key().as_ref())
        .verify(signed.as_bytes(), &signature)
        .unwrap();
    let claims = URL_SAFE_NO_PAD.decode(signed.split_once('.').unwrap().1).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    assert!(claims["iss"] == "a@p.iam" && claims["aud"].as_str().unwrap().ends_with("/token"));
    let (_, headers, body) = &seen[2];
    assert!(headers["authorization"] == "Bearer ya29.planted" && !headers.contains_key("x-api-key"));
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    assert_eq!(body["anthropic_version"], "vertex-2023-10-16");
    assert!(body.get("model").is_none() && body["stream"] == true);
    let counted: serde_json::Value = serde_json::from_slice(&seen[3].2).unwrap();
    assert_eq!(counted["model"], "claude-sonnet-4-5@20250929");
    // A model that would lead elsewhere goes nowhere.
    let answer = rig.post(rig.messages(), r#"{"model":"../../x?y","messages":[]}"#).await;
    assert_eq!((answer.status().as_u16(), rig.fake.0.lock().unwrap().seen.len()), (400, 0));
    rig.end().await;
}
