//! Real programs, where this machine has them: they take the proxy and trust the certificates by the variables alone.

use std::process::Stdio;

use tokio::net::TcpListener;
use tokio::process::Command;

use super::support::*;

/// What a program prints, run with the session's variables and none else.
async fn run(session: &Session, program: &str, args: &[&str]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle.pem");
    std::fs::write(&bundle, session.egress.bundle()).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let mut command = Command::new(program);
    let command = command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", folder.path())
        .envs(session.egress.environment(&proxy, bundle.to_str().unwrap()))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = command.output();
    tokio::pin!(output);
    loop {
        tokio::select! {
            taken = listener.accept() => session.egress.serve(Box::new(taken.unwrap().0)),
            ended = tokio::time::timeout(PATIENCE, &mut output) => {
                // A machine without the program says nothing about it.
                let ended = ended.expect("it ends").ok()?;
                let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
                return Some(format!("{out}{err}"));
            }
        }
    }
}

#[tokio::test]
async fn programs_go_out_by_the_variables_alone() {
    let world = World::new();
    let server = world.tls("api.example").await;
    let at = format!("api.example:{}", server.port);
    let outside = world.outside(&Names::new(&[("api.example", &["127.0.0.1"])]), true);
    let python = format!(
        "import urllib.request,os\nr=urllib.request.Request('https://{at}/v1/x',data=b'{{\"k\":\"'+os.environ['TOOL_KEY'].encode()+b'\"}}',\
         headers={{'Content-Type':'application/json'}})\nprint(urllib.request.urlopen(r).read())"
    );
    let (url, forbidden, header) = (
        format!("https://{at}/v1/x"),
        format!("https://{at}/v2/x"),
        format!("Authorization: Bearer {INSIDE}"),
    );
    // Old ones know no proxy of themselves; that they trust the certificate is what is looked at.
    let node = format!(
        "const p=new URL(process.env.HTTPS_PROXY);require('http').request({{host:p.hostname,port:p.port,method:'CONNECT',path:'{at}',\
         headers:{{host:'{at}'}}}}).on('connect',(_,s)=>require('https').get({{createConnection:()=>require('tls').connect({{socket:s,\
         servername:'api.example'}}),path:'/v1/x',headers:{{host:'{at}',authorization:process.env.TOOL_KEY}}}},a=>a.pipe(process.stdout))).end()"
    );
    let basic = format!("me:{INSIDE}");
    // The rule, the program, what it says, and what the host must have seen then.
    let runs: &[(&str, &str, &[&str], &str, &str)] = &[
        ("", "curl", &["-sS", &url], "hello /v1/x", ""),
        ("GET,POST", "curl", &["-sS", "-H", &header, &url], "hello /v1/x", VALUE),
        ("GET,POST", "curl", &["-sS", "-u", &basic, &url], "hello /v1/x", "authorization: Basic "),
        ("GET,POST", "curl", &["-sS", "--data", "a=b", &url, &url], "hello /v1/xhello /v1/x", ""),
        ("GET", "curl", &["-sS", "-X", "DELETE", &url], "is refused", ""),
        ("GET", "curl", &["-sS", &forbidden], "is refused", ""),
        ("GET,POST", "python3", &["-c", &python], "hello /v1/x", ""),
        ("GET,POST", "git", &["ls-remote", &url], "", "git-protocol: "),
        ("GET,POST", "node", &["-e", &node], "hello /v1/x", VALUE),
    ];
    for (methods, program, args, says, seen) in runs {
        let rule = if methods.is_empty() { at.clone() } else { format!("{methods} {at}/v1/*") };
        let secrets = if methods.is_empty() { Vec::new() } else { vec![secret(&[&at])] };
        let session = Session::with(&outside, &[rule], secrets, |_| {});
        server.seen.lock().unwrap().clear();
        let Some(said) = run(&session, program, args).await else { continue };
        if methods.is_empty() {
            // Without a look inside, the host's own certificate is shown: this world's is not one of the machine's.
            assert!(
                said.contains(says) || said.to_lowercase().contains("certificate"),
                "{program} {args:?}: {said}"
            );
            continue;
        }
        assert!(said.contains(says), "{program} {args:?}: {said}");
        let headers: String = server.seen.lock().unwrap().iter().map(|seen| seen.headers.clone()).collect();
        assert!(headers.contains(seen), "{program} {args:?}: {headers}");
        assert!(!said.contains("live"));
    }
}
