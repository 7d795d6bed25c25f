//! A server for one test, and a small client that reads events.

use std::time::Duration;

use bytes::BytesMut;
use karta_engine::control::keys::{Environment, NewKey};
use karta_engine::{Builder, Engine, Settings};
use karta_server::Server;
use karta_types::Role;
use karta_types::scope::Scopes;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Nothing here takes longer unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) struct App {
    pub(crate) engine: Engine,
    pub(crate) key: String,
    pub(crate) url: String,
    pub(crate) data: TempDir,
    server: Option<Server>,
    client: reqwest::Client,
}

impl App {
    /// Serves a folder with this script.
    pub(crate) async fn start(script: Value) -> Self {
        Self::start_with(script, |_| {}).await
    }

    pub(crate) async fn start_with(script: Value, change: impl FnOnce(&mut Settings)) -> Self {
        Self::start_built(script, change, |builder| builder).await
    }

    /// With settings changed and the engine built otherwise.
    pub(crate) async fn start_built(
        script: Value,
        change: impl FnOnce(&mut Settings),
        build: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let data = tempfile::tempdir().unwrap();
        let folder = data.path().join("app");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("karta.script.json"), script.to_string()).unwrap();
        let mut settings = Settings { data: data.path().join("data"), ..Settings::default() };
        if let Ok(server) = std::env::var("KARTA_TEST_POSTGRES") {
            // A database of its own for each server.
            let name = data.path().file_name().unwrap().as_encoded_bytes();
            let name = name.iter().fold(String::new(), |name, byte| format!("{name}{byte:02x}"));
            settings.database = Some(format!("{server}/server_{name}"));
        }
        change(&mut settings);
        let engine = build(Builder::new(settings)).open().await.unwrap();
        let org = engine.ensure_org("one").await.unwrap();
        engine.publish_folder(org, "app", &folder).await.unwrap();
        let key = engine.bootstrap_key(org, Environment::Test, "test").await.unwrap().expose().clone();
        let server = Server::start(engine.clone(), ([127, 0, 0, 1], 0).into()).await.unwrap();
        let url = format!("http://{}", server.address());
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { engine, key, url, data, server: Some(server), client }
    }

    pub(crate) async fn stop(mut self) {
        self.server.take().unwrap().shutdown().await;
    }

    /// A key of another organisation, which has a project of the same name.
    pub(crate) async fn foreign_key(&self) -> String {
        let org = self.engine.ensure_org("two").await.unwrap();
        self.engine.publish_folder(org, "app", &self.data.path().join("app")).await.unwrap();
        self.engine.bootstrap_key(org, Environment::Live, "foreign").await.unwrap().expose().clone()
    }

    /// Somebody new in the organisation, by an invitation taken up in a browser: the text of their cookie.
    pub(crate) async fn person(&self, role: Role) -> String {
        let invite = json!({"email": format!("{role}@example.com"), "role": role});
        // Only an owner makes owners: the first is made by whoever runs the server.
        let org = self.engine.ensure_org("one").await.unwrap();
        let system = karta_engine::Principal::system(org);
        let email = invite["email"].as_str().unwrap();
        let invited = self.engine.invite(&system, email, role, &self.url).await.unwrap();
        let code = invited.url.split_once("invite=").unwrap().1.to_owned();
        let response = self.form("/login/invite", &[("code", &code), ("name", role.as_str())], "").await;
        assert_eq!(response.status(), 303, "{:?}", response.text().await);
        cookie(&response, "karta_session").unwrap()
    }

    /// Sends a form as a browser does, with this cookie line.
    pub(crate) async fn form(&self, path: &str, form: &[(&str, &str)], cookies: &str) -> Response {
        let browser = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        let call =
            browser.post(format!("{}{path}", self.url)).header("origin", &self.url).header("cookie", cookies);
        call.form(form).send().await.unwrap()
    }

    /// Looks at a page as a browser does, with this cookie line.
    pub(crate) async fn page(&self, url: &str, cookies: &str) -> Response {
        let browser = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        let url = if url.starts_with('/') { format!("{}{url}", self.url) } else { url.to_owned() };
        browser.get(url).header("cookie", cookies).send().await.unwrap()
    }

    pub(crate) async fn key_with(&self, scopes: &str) -> String {
        let org = self.engine.ensure_org("one").await.unwrap();
        let scopes: Scopes = scopes.parse().unwrap();
        let new = NewKey {
            name: "narrow".into(),
            environment: Environment::Live,
            scopes,
            project: None,
            expires_at: None,
        };
        self.engine.create_key(&karta_engine::Principal::system(org), new).await.unwrap().key
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key)
    }

    pub(crate) async fn as_key(&self, method: Method, path: &str, key: &str, body: Value) -> (u16, Value) {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut call = client.request(method.clone(), format!("{}{path}", self.url)).bearer_auth(key);
        if method != Method::GET && method != Method::DELETE {
            call = call.json(&body);
        }
        answer(call.send().await.unwrap()).await
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let mut request = self.request(method, path);
        if !body.is_null() {
            request = request.json(&body);
        }
        answer(request.send().await.unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call(Method::GET, path, Value::Null).await;
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.call(Method::POST, path, body).await
    }

    pub(crate) async fn session(&self) -> String {
        let (status, body) = self.post("/v1/sessions", json!({"project": "app"})).await;
        assert_eq!(status, 201, "{body}");
        body["id"].as_str().unwrap().to_owned()
    }

    /// Runs a turn and gives its events.
    pub(crate) async fn turn(&self, session: &str, text: &str) -> Vec<Value> {
        let body = json!({"text": text, "stream": true});
        let request = self.request(Method::POST, &format!("/v1/sessions/{session}/messages")).json(&body);
        Events::open(request).await.until("done").await
    }

    pub(crate) async fn events(&self, session: &str, query: &str) -> Events {
        Events::open(self.request(Method::GET, &format!("/v1/sessions/{session}/events{query}"))).await
    }
}

pub(crate) async fn answer(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// The value of a cookie that an answer sets.
pub(crate) fn cookie(response: &Response, name: &str) -> Option<String> {
    let lines = response.headers().get_all("set-cookie").iter().map(|line| line.to_str().unwrap());
    lines
        .filter_map(|line| line.split(';').next()?.split_once('='))
        .find_map(|(known, value)| (known == name).then(|| value.to_owned()))
}

/// An event stream, read frame by frame.
pub(crate) struct Events {
    response: Response,
    buffer: BytesMut,
}

impl Events {
    pub(crate) async fn open(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        let kind =
            response.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        assert!(kind.starts_with("text/event-stream"), "no stream: {:?}", answer(response).await);
        Self { response, buffer: BytesMut::new() }
    }

    /// The next event's envelope; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let frame = self.buffer.split_to(end + 2);
                let text = std::str::from_utf8(&frame).unwrap();
                let field =
                    |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                let Some(data) = field("data: ") else { continue };
                let event: Value = serde_json::from_str(&data).unwrap();
                assert_eq!(field("id: ").unwrap(), event["seq"].to_string());
                assert_eq!(field("event: ").unwrap(), event["type"].as_str().unwrap());
                return Some(event);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("an event comes");
            self.buffer.extend_from_slice(&chunk.unwrap()?);
        }
    }

    /// Everything up to the first event of this type.
    pub(crate) async fn until(&mut self, kind: &str) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            let found = event["type"] == kind;
            events.push(event);
            if found {
                return events;
            }
        }
        panic!("the stream ended before a `{kind}`: {events:#?}");
    }
}

/// A stream whose events are none of a session's: their type and data.
pub(crate) struct Named {
    response: Response,
    buffer: BytesMut,
}

impl Named {
    pub(crate) async fn open(request: reqwest::RequestBuilder) -> Self {
        let Events { response, buffer } = Events::open(request).await;
        Self { response, buffer }
    }

    /// The next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let frame = self.buffer.split_to(end + 2);
                let text = std::str::from_utf8(&frame).unwrap();
                let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
                let (Some(kind), Some(data)) = (field("event: "), field("data: ")) else { continue };
                return Some((kind.to_owned(), serde_json::from_str(data).unwrap()));
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("an event comes");
            self.buffer.extend_from_slice(&chunk.unwrap()?);
        }
    }
}

pub(crate) fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

pub(crate) fn seqs(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["seq"].as_u64().unwrap()).collect()
}

pub(crate) fn done(events: &[Value]) -> &Value {
    let done: Vec<_> = events.iter().filter(|event| event["type"] == "done").collect();
    assert_eq!(done.len(), 1, "exactly one `done`: {events:#?}");
    &done[0]["data"]
}

/// A script that says one word and asks when asked to.
pub(crate) fn plain() -> Value {
    json!({"history": true, "agents": ["billing"], "turns": [
        {"match": "ask", "steps": [{"say": "let me see. "}, {"ask": {"tool": "Bash", "input": {"command": "ls"}, "message": "Run ls?",
            "approved": [{"tool": {"name": "Bash", "input": {"command": "ls"}, "output": "a b"}}, {"say": "done"}],
            "denied": [{"say": "as you wish"}]}}]},
        {"match": "choose", "steps": [{"ask": {"kind": "question", "tool": "question", "input": {}, "message": "Which?", "approved": [{"say": "noted"}]}}]},
        {"match": "wait", "steps": [{"say": "waiting"}, {"hang": false}]},
        {"match": "notice", "steps": [{"notice": "a word aside"}, {"say": "said"}]},
        {"match": "spend", "steps": [{"use": {"input_tokens": 60, "output_tokens": 50, "cache_read_tokens": 7, "cost_micros": 900}}, {"say": "spent"}]},
        {"steps": [{"think": "hm"}, {"repeat": {"times": 3, "say": "la "}}, {"tool": {"name": "Read", "input": {"file": "a"}, "output": "b"}}, {"say": "end"}]}
    ]})
}
