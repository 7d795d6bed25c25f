//! `git push karta`, by the real git client against the real `git receive-pack`.

use serde_json::json;

use crate::git_client::Work;
use crate::support::{App, done, plain};

#[tokio::test]
async fn the_first_push_makes_the_project_and_the_second_makes_its_next_release() {
    let app = App::start(plain()).await;
    let work = Work::new().await;
    work.remote(&app, "pushed", &app.key).await;
    work.write("karta.script.json", json!({"turns": [{"steps": [{"say": "one"}]}]}).to_string());
    let commit = work.commit("Say one").await;
    let pushed = work.push(&["main"]).await;
    println!("{}", pushed.said);
    assert!(pushed.well, "{}", pushed.said);
    let pushed = work.push(&["main"]).await;
    println!("{}", pushed.said);
    app.stop().await;
}
