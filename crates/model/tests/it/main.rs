//! The scripted model over HTTP, in each shape.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use karta_model::{Options, Rule, Server, Step};
use serde_json::{Value, json};

async fn post(server: &Server, path: &str, body: &Value) -> (u16, String) {
    let answer = reqwest::Client::builder()
        .no_proxy()
        .build()
        .unwrap()
        .post(format!("{}{path}", server.base_url()))
        .header("x-api-key", "k")
        .json(body)
        .send()
        .await
        .unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap_or_else(|_| "cut".to_owned()))
}

async fn start() -> Server {
    Server::start(Options::default()).await.unwrap()
}

const SCRIPT: &str = r#"SCRIPT: [{"thinking":"hm","text":"one two three four","tool":"Bash","input":{"command":"ls"}},{"text":"end"}]"#;

#[tokio::test]
async fn anthropic_plays_the_steps() {
    let server = start().await;
    let user = json!({"role": "user", "content": [{"type": "text", "text": "<system-reminder>x</system-reminder>"}, {"type": "text", "text": SCRIPT}]});
    let (status, text) = post(
        &server,
        "/v1/messages",
        &json!({"model": "m", "stream": true, "tools": [{}], "messages": [user]}),
    )
    .await;
    assert_eq!(status, 200);
    for part in [
        "message_start",
        "thinking_delta",
        "signature_delta",
        "text_delta",
        "input_json_delta",
        "\"stop_reason\":\"tool_use\"",
        "message_stop",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let assistant = json!({"role": "assistant", "content": [{"type": "text", "text": "x"}]});
    let result = json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "ok"}, {"type": "text", "text": "beside"}]});
    let (_, text) =
        post(&server, "/v1/messages", &json!({"model": "m", "messages": [user, assistant, result]})).await;
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["content"][0]["text"], "end");
    assert_eq!(answer["stop_reason"], "end_turn");
    assert_eq!(server.requests().len(), 2);
    assert_eq!(server.requests()[0].key(), Some("k"));
    server.shutdown().await;
}

#[tokio::test]
async fn chat_and_responses_play_the_steps() {
    let server = start().await;
    let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": SCRIPT}]);
    let body = json!({"model": "m", "stream": true, "stream_options": {"include_usage": true}, "messages": messages});
    let (_, text) = post(&server, "/v1/chat/completions", &body).await;
    for part in
        ["reasoning_content", "tool_calls", "\"finish_reason\":\"tool_calls\"", "prompt_tokens", "[DONE]"]
    {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let (_, text) = post(&server, "/v1/chat/completions", &json!({"model": "m", "messages": messages})).await;
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"],
        "{\"command\":\"ls\"}"
    );
    let (_, text) =
        post(&server, "/v1/responses", &json!({"model": "m", "stream": true, "input": SCRIPT})).await;
    for part in [
        "response.created",
        "response.output_text.delta",
        "response.function_call_arguments.done",
        "response.completed",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

#[tokio::test]
async fn faults_happen_as_often_as_told() {
    let server = start().await;
    let ask = |script: &str| json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": format!("SCRIPT: {script}")}]});
    let overloaded = ask(r#"[{"status":529,"times":1,"text":"better"}]"#);
    assert_eq!(post(&server, "/v1/messages", &overloaded).await.0, 529);
    assert!(post(&server, "/v1/messages", &overloaded).await.1.contains("better"));
    let cut = ask(r#"[{"text":"a long enough text to be cut","cut_after_chunks":3}]"#);
    assert_eq!(post(&server, "/v1/messages", &cut).await.1, "cut");
    assert_eq!(post(&server, "/v1/files", &json!({})).await.0, 404);
}

#[tokio::test]
async fn keys_and_rules() {
    let rules = vec![Rule { contains: "order".into(), steps: vec![Step::text("It is on its way.")] }];
    let options = Options { rules, required_key: Some("other".into()), ..Options::default() };
    let server = Server::start(options).await.unwrap();
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "Where is my ORDER?"}]});
    assert_eq!(post(&server, "/v1/messages", &body).await.0, 401);
    let options = Options {
        rules: vec![Rule { contains: "order".into(), steps: vec![Step::text("It is on its way.")] }],
        ..Options::default()
    };
    let server = Server::start(options).await.unwrap();
    assert!(post(&server, "/v1/messages", &body).await.1.contains("on its way"));
}
