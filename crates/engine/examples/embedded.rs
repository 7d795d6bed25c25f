//! Karta inside another program: each user of each tenant has a workspace of their own.
//!
//! `cargo run -p karta-engine --example embedded -- FOLDER [ISOLATION]`
//!
//! `FOLDER` configures a harness (`CLAUDE.md`, `.claude/`, `.opencode/`, or a `karta.script.json` to try it without one).
//! `ISOLATION` is `process` on a host whose users you trust as yourself (the default), `namespace` or `microvm` on any other.

use std::error::Error;
use std::io::Write as _;
use std::path::PathBuf;

use karta_engine::data::turn::{Fold, OnBusy, SendMessage};
use karta_engine::{Engine, Principal, Settings};
use karta_types::message::Content;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("name a folder that configures a harness")?);
    let data = std::env::temp_dir().join("karta-embedded");
    let engine = Engine::open(Settings { data, isolation: arguments.next(), ..Settings::default() }).await?;
    let mut out = std::io::stdout().lock();
    for (tenant, user) in [("acme", "ann"), ("acme", "bob"), ("globex", "ann")] {
        let org = engine.ensure_org(tenant).await?;
        engine.publish_folder(org, "helper", &folder).await?;
        let who = Principal::system(org);
        let session = engine.workspace(&who, "helper", user).await?;
        let message = SendMessage {
            turn: None,
            content: vec![Content::Text { text: format!("Hello, I am {user} of {tenant}.") }],
            agent: None,
            participant: None,
            thinking: false,
            on_busy: OnBusy::Queue,
        };
        let mut reader = engine.send(&who, session.id, message).await?.reader;
        let mut fold = Fold::new();
        // The plain answer is the stream, folded.
        while !reader.next().await?.events().any(|event| fold.push(event)) {}
        let answer = fold
            .finish()
            .map_err(|why| why.map_or_else(|| "the turn did not end".to_owned(), |why| why.detail))?;
        let isolation = session.isolation.as_str();
        writeln!(out, "{tenant}/{user} ({isolation}, {}): {}", session.id, answer.text)?;
    }
    engine.shutdown().await;
    Ok(())
}
