//! A connection of a program inside: requests to the proxy, and tunnels.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::StatusCode;
use karta_sandbox::Duplex;
use karta_types::egress::{Decision, Host, Place};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::Gateway;
use super::exchange::{self, Wanted};
use super::guest::{self, NoHead, PATIENCE, Reader, Rest, STALLED, Writer, late};
use super::head::{Head, Length};
use super::judge::{Refusal, Tunnel};
use super::outside::{Line, Unreached};
use super::tls;

/// What is copied at once through a tunnel.
const PIECE: usize = 32 << 10;
/// What is still read of a request that is refused, so that the answer is not lost.
const READ_OVER: usize = 1 << 20;

/// Serves one connection to its end.
pub(super) async fn connection(gateway: &Gateway, stream: Box<dyn Duplex>) -> io::Result<()> {
    let (mut reader, mut writer) = guest::split(stream);
    let mut line = None;
    let mut first = true;
    loop {
        let Some(head) = next(&mut reader, &mut writer, first).await? else { return Ok(()) };
        first = false;
        if head.method == "CONNECT" {
            return tunnel(gateway, reader, writer, &head).await;
        }
        let asked = head.target.clone();
        let Some((place, target)) = absolute(&asked) else {
            let why = "this is a proxy: ask it for http://… or CONNECT host:port";
            return part(reader, writer, StatusCode::BAD_REQUEST, why).await;
        };
        let wanted = Wanted { place: &place, tls: false, target };
        // Simple programs read an answer to the end of the connection: who wants it kept says so to a proxy.
        let head = Head { goes_on: head.goes_on && head.keeps, ..head };
        if !one(gateway, &mut reader, &mut writer, &mut line, head, &wanted).await? {
            writer.end().await;
            return Ok(());
        }
    }
}

/// The next request's head; none when there will be no other.
async fn next<S: AsyncRead + AsyncWrite + Unpin>(
    reader: &mut Reader<S>,
    writer: &mut Writer<S>,
    first: bool,
) -> io::Result<Option<Head>> {
    match reader.head(first).await {
        Ok(head) => Ok(Some(head)),
        Err(NoHead::Wrong(why)) => {
            writer.say(StatusCode::BAD_REQUEST, &format!("the request can't be read: {why}")).await?;
            reader.read_over(READ_OVER).await;
            Ok(None)
        }
        Err(NoHead::Ended | NoHead::Failed) => Ok(None),
    }
}

/// One request and its answer. Answers whether another may follow.
async fn one<S: AsyncRead + AsyncWrite + Unpin>(
    gateway: &Gateway,
    reader: &mut Reader<S>,
    writer: &mut Writer<S>,
    line: &mut Option<Line>,
    head: Head,
    wanted: &Wanted<'_>,
) -> io::Result<bool> {
    let method = head.method.clone();
    let goes_on = match exchange::exchange(gateway, reader, writer, line, head, wanted).await? {
        exchange::Outcome::Done { goes_on } => return Ok(goes_on),
        exchange::Outcome::Refused(refusal) => {
            let Wanted { place, target, .. } = wanted;
            note(
                gateway,
                false,
                place,
                Some((&method, target)),
                refusal.rule.clone(),
                Some(refusal.why.clone()),
            );
            writer.say(StatusCode::FORBIDDEN, &format!("{place} is refused: {}", refusal.why)).await
        }
        exchange::Outcome::Gone(why) => {
            writer.say(StatusCode::BAD_GATEWAY, &format!("{}: {why}", wanted.place)).await
        }
    };
    goes_on?;
    reader.read_over(READ_OVER).await;
    Ok(false)
}

/// Tells what was decided.
pub(super) fn note(
    gateway: &Gateway,
    allowed: bool,
    place: &Place,
    request: Option<(&str, &str)>,
    rule: Option<String>,
    why: Option<String>,
) {
    gateway.told.note(Decision {
        allowed,
        method: request.map(|(method, _)| method.chars().take(32).collect()),
        host: place.host.to_string(),
        port: place.port,
        path: request.map(|(_, target)| Decision::shown_path(target)),
        rule,
        why,
        count: 1,
    });
}

/// The place, and the path with its query, of a request to a proxy.
fn absolute(target: &str) -> Option<(Place, &str)> {
    let (scheme, rest) = target.split_at_checked(7)?;
    if !scheme.eq_ignore_ascii_case("http://") || target.contains('#') {
        return None;
    }
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    Some((Place::read(authority, Some(80))?, if path.is_empty() { "/" } else { path }))
}

/// Says why not, and closes.
async fn part<S: AsyncRead + AsyncWrite + Unpin>(
    mut reader: Reader<S>,
    mut writer: Writer<S>,
    status: StatusCode,
    why: &str,
) -> io::Result<()> {
    writer.say(status, why).await?;
    reader.read_over(READ_OVER).await;
    Ok(())
}

async fn tunnel<S: AsyncRead + AsyncWrite + Unpin>(
    gateway: &Gateway,
    reader: Reader<S>,
    mut writer: Writer<S>,
    head: &Head,
) -> io::Result<()> {
    let place = Place::read(&head.target, None).filter(|_| head.length == Length::None);
    let Some(place) = place else {
        return part(reader, writer, StatusCode::BAD_REQUEST, "a tunnel is asked for as CONNECT host:port")
            .await;
    };
    let (server, by) = match gateway.rules.tunnel(&place, gateway.secrets.any_for(&place)) {
        Tunnel::No(Refusal { why, rule }) => {
            note(gateway, false, &place, None, rule, Some(why.clone()));
            return part(reader, writer, StatusCode::FORBIDDEN, &format!("{place} is refused: {why}")).await;
        }
        Tunnel::Look => (None, None),
        Tunnel::Through(by) => match gateway.outside.connect(&place).await {
            Ok(server) => (Some(server), Some(by)),
            Err(Unreached::Forbidden(why)) => {
                note(gateway, false, &place, None, Some(by), Some(why.clone()));
                return part(reader, writer, StatusCode::FORBIDDEN, &format!("{place} is refused: {why}"))
                    .await;
            }
            Err(Unreached::Gone(why)) => {
                return part(reader, writer, StatusCode::BAD_GATEWAY, &format!("{place}: {why}")).await;
            }
        },
    };
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    let mut stream = guest::join(reader, writer);
    let hello = match tls::hello(&mut stream).await {
        Ok(hello) if names(hello.name.as_deref(), &place.host) => hello,
        Ok(hello) => {
            let named = hello.name.map_or_else(|| "no host".to_owned(), |name| format!("`{name}`"));
            let why = format!("its TLS names {named} where the tunnel is for `{}`", place.host);
            note(gateway, false, &place, None, by, Some(why));
            return Ok(());
        }
        // A tunnel that was opened in advance and never used is nothing to tell of.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        Err(error) => {
            note(gateway, false, &place, None, by, Some(error.to_string()));
            return Err(error);
        }
    };
    if let Some(mut server) = server {
        note(gateway, true, &place, None, by, None);
        server.write_all(&hello.read).await?;
        return both_ways(stream, server).await;
    }
    look(gateway, stream.put_back(hello.read), &place).await
}

/// Whether TLS names the host that the tunnel is for. Addresses are not named.
fn names(name: Option<&str>, host: &Host) -> bool {
    match name {
        None => host.is_address(),
        Some(name) => Host::read(name).as_ref() == Some(host),
    }
}

/// Ends TLS here, and looks at each request.
async fn look<S: AsyncRead + AsyncWrite + Unpin>(
    gateway: &Gateway,
    stream: Rest<S>,
    place: &Place,
) -> io::Result<()> {
    let acceptor = TlsAcceptor::from(gateway.authority.serve(&place.host)?);
    let shaken = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await;
    let stream = shaken.unwrap_or_else(|_| Err(late("the tunnel's TLS does not come to be")))?;
    let (mut reader, mut writer) = guest::split(stream);
    let mut line = None;
    let mut first = true;
    while let Some(head) = next(&mut reader, &mut writer, first).await? {
        first = false;
        let target = head.target.clone();
        if !target.starts_with('/') || target.contains('#') {
            let why = "inside a tunnel, a request asks for a path";
            return part(reader, writer, StatusCode::BAD_REQUEST, why).await;
        }
        let wanted = Wanted { place, tls: true, target: &target };
        if !one(gateway, &mut reader, &mut writer, &mut line, head, &wanted).await? {
            break;
        }
    }
    writer.end().await;
    Ok(())
}

/// Copies both ways until both end, one fails, or nothing has moved for long.
async fn both_ways(guest: impl AsyncRead + AsyncWrite, server: tokio::net::TcpStream) -> io::Result<()> {
    let (from_guest, to_guest) = tokio::io::split(guest);
    let (from_server, to_server) = server.into_split();
    let moved = AtomicU64::new(0);
    tokio::try_join!(copy(from_guest, to_server, &moved), copy(from_server, to_guest, &moved)).map(drop)
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    moved: &AtomicU64,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let before = moved.load(Ordering::Relaxed);
        let read = match tokio::time::timeout(STALLED, from.read(&mut piece)).await {
            Ok(read) => read?,
            // The other direction may be all that is used.
            Err(_) if moved.load(Ordering::Relaxed) != before => continue,
            Err(_) => return Err(late("nothing moves in the tunnel")),
        };
        if read == 0 {
            return to.shutdown().await;
        }
        moved.fetch_add(1, Ordering::Relaxed);
        let written = async {
            to.write_all(&piece[..read]).await?;
            to.flush().await
        };
        tokio::time::timeout(STALLED, written)
            .await
            .unwrap_or_else(|_| Err(late("nothing moves in the tunnel")))?;
        moved.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_target_says_where_to_go() {
        let read = |target| absolute(target).map(|(place, path)| format!("{place} {path}"));
        assert_eq!(read("http://A.example/x?y").as_deref(), Some("a.example:80 /x?y"));
        assert_eq!(read("HTTP://a.example:8080").as_deref(), Some("a.example:8080 /"));
        for wrong in [
            "/",
            "https://a.example/",
            "http://u@a.example/",
            "http://[::1]/",
            "http://a/#x",
            "http:///x",
            "",
            "http://a\\b/",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(read("http://a.example?x"), None);
    }

    #[test]
    fn tls_names_the_host_of_its_tunnel() {
        let host = Host::read("a.example").unwrap();
        assert!(names(Some("A.example"), &host));
        assert!(
            !names(Some("b.example"), &host) && !names(None, &host) && !names(Some("x.a.example"), &host)
        );
        let address = Host::read("8.8.8.8").unwrap();
        assert!(names(None, &address) && !names(Some("a.example"), &address));
    }

    proptest! {
        #[test]
        fn no_target_makes_it_panic(target in "(http://)?\\PC{0,60}") {
            let _ = absolute(&target);
        }
    }
}
