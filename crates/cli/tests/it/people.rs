//! The first owner, a terminal that signs in, and people as a command line sees them.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::run::karta;
use crate::served::{PATIENCE, Served};

fn cookie(answer: &reqwest::Response) -> String {
    let line = answer.headers()["set-cookie"].to_str().unwrap();
    line.split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn an_owner_is_made_signs_a_terminal_in_and_invites() {
    let home = tempfile::tempdir().unwrap();
    let mut server = Served::start(home.path(), "").await;
    let made = server.run(&["admin", "bootstrap", "--email", "root@example.com"]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    let mut shown = made.out.lines();
    let link = shown.next().unwrap();
    assert!(link.starts_with(&server.url) && shown.next().unwrap().starts_with("kt_live_"), "{made:?}");
    let code = link.split_once("code=").unwrap().1;
    let form = [("code", code)];
    let signed_in = server.http.post(format!("{}/login/link", server.url)).form(&form).send().await.unwrap();
    let cookie = cookie(&signed_in);

    let mut login = karta(&["login", "--url", &server.url]);
    login.env("HOME", home.path()).stdin(Stdio::null());
    let mut login = login.spawn().unwrap();
    let mut said = BufReader::new(login.stderr.take().unwrap()).lines();
    let code = loop {
        let said = tokio::time::timeout(PATIENCE, said.next_line()).await.unwrap().unwrap().unwrap();
        if let Some((_, code)) = said.split_once("code: ") {
            break code.trim().to_owned();
        }
    };
    let form = [("code", code.as_str()), ("decision", "yes")];
    let decided = server.http.post(format!("{}/device", server.url)).header("cookie", &cookie).form(&form);
    assert_eq!(decided.send().await.unwrap().status(), 200);
    let ended = tokio::time::timeout(PATIENCE, login.wait()).await.unwrap().unwrap();
    assert!(ended.success());
    let kept = home.path().join(".config/karta/credentials.json");
    assert_eq!(kept.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let me = server.run(&["whoami"]).await;
    assert!(me.out.starts_with("user usr_") && me.out.contains("(owner) of default"), "{me:?}");
    let members = server.run(&["members", "list"]).await;
    assert!(members.out.contains("root@example.com") && members.out.contains("owner"), "{members:?}");
    // The own key of the machine could not make an owner; the person can.
    let invited = server.run(&["members", "invite", "ann@example.com", "--role", "owner"]).await;
    assert!(invited.out.starts_with(&format!("{}/login?invite=", server.url)), "{invited:?}");
    let open = server.run(&["members", "invitations", "--json"]).await;
    assert!(open.out.contains("ann@example.com"), "{open:?}");
    assert_eq!(server.run(&["logout"]).await.code, Some(0));
    let again = server.run(&["logout"]).await;
    assert!(again.code == Some(1) && again.err.contains("not signed in"), "{again:?}");
    // A new link for a member is made whether the server runs or not, and works when it runs again.
    server.kill().await;
    let made = server.run(&["admin", "bootstrap", "--email", "root@example.com", "--json"]).await;
    let made: serde_json::Value = serde_json::from_str(&made.out).unwrap();
    assert!(made["key"].is_null(), "one first key: {made}");
    let server = Served::start(home.path(), "").await;
    let (status, me) = server.call("GET", "/v1/whoami", &serde_json::json!({})).await;
    assert_eq!((status, &me["role"]), (200, &serde_json::Value::Null), "the machine's own key has no role");
    let code = made["link"].as_str().unwrap().split_once("code=").unwrap().1;
    let form = [("code", code)];
    let signed_in = server.http.post(format!("{}/login/link", server.url)).form(&form).send().await.unwrap();
    assert_eq!(signed_in.status(), 303);
}
