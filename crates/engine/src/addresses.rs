//! Addresses that the platform goes to for others: public ones only, checked when they are used.
//!
//! A name is resolved here, its addresses are checked here, and exactly those are connected to: an answer that changes between check
//! and use changes nothing.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustix::io::Errno;

/// Finds the addresses of a name.
pub trait Lookup: Send + Sync {
    /// The addresses.
    fn lookup(&self, host: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;
}

/// The machine's own resolver.
#[derive(Debug, Clone, Copy)]
pub struct System;

impl Lookup for System {
    fn lookup(&self, host: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// A resolver that gives public addresses only; with `loopback`, this machine's too.
#[derive(Clone)]
pub struct Guarded {
    lookup: Arc<dyn Lookup>,
    loopback: bool,
}

impl std::fmt::Debug for Guarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guarded").field("loopback", &self.loopback).finish_non_exhaustive()
    }
}

impl Guarded {
    /// Over another resolver.
    pub const fn new(lookup: Arc<dyn Lookup>, loopback: bool) -> Self {
        Self { lookup, loopback }
    }

    /// The name's addresses, if every one of them may be gone to.
    ///
    /// # Errors
    /// The name has none, or one of them is not public.
    pub async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let found = self.lookup.lookup(host.to_owned()).await?;
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("`{host}` has no address")));
        }
        let allowed = |address: &&IpAddr| is_public(**address) || (self.loopback && address.is_loopback());
        // One bad address spoils the name: what mixes them wants to be let through by luck.
        if let Some(refused) = found.iter().find(|address| !allowed(address)) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("`{host}` is at {refused}, which is no public address"),
            ));
        }
        Ok(found)
    }
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let guarded = self.clone();
        Box::pin(async move {
            let found = guarded.addresses(name.as_str()).await?;
            let found: Addrs = Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(found)
        })
    }
}

/// Whether an address is one of the public internet: none of those that IANA's special-purpose registries (RFC 6890 and its updates)
/// keep for private, local, test, translation or future use, metadata services included.
pub fn is_public(address: IpAddr) -> bool {
    // A cloud's service for its own machines, which looks like any address of the internet but is each machine's own (Azure, "What is
    // IP address 168.63.129.16?").
    const WIRE_SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16));
    match address {
        WIRE_SERVER => false,
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

const fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !matches!(
        (a, b, c),
        // This network, private, loopback, link-local (metadata services), multicast, reserved.
        (0 | 10 | 127 | 224..=255, _, _)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 168, _)
            // Protocol assignments, documentation, 6to4 relays, AS112, AMT.
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 31, 196)
            | (192, 52, 193)
            | (192, 175, 48)
            | (198, 18..=19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    )
}

const fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    // Global unicast is 2000::/3: what is mapped, translated, unique local, link-local or multicast lies outside.
    a & 0xe000 == 0x2000
        // Protocol assignments (Teredo, ORCHID …), documentation, 6to4, and what carries an IPv4 address inside.
        && !(a == 0x2001 && (b < 0x0200 || b == 0x0db8))
        && a != 0x2002
        && !(a == 0x3fff && b < 0x1000)
        && !(a == 0x2620 && b == 0x004f)
}

/// Whether an address is this machine's own: what is sent there never leaves it. No packet is sent to find out.
///
/// # Errors
/// The kernel makes no socket, or does not say where a way leads: then it is not known, and nothing may be taken for granted.
pub fn is_own(address: IpAddr) -> io::Result<bool> {
    let any =
        if address.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let socket = match UdpSocket::bind((any, 0)) {
        // A kernel without IPv6 has no address of it.
        Err(error) if address.is_ipv6() && is_absent(&error) => return Ok(false),
        other => other?,
    };
    match socket.connect((address, 9)) {
        // The kernel chooses where to send from: for its own address, that address.
        Ok(()) => Ok(socket.local_addr()?.ip() == address),
        // Where no way leads, it is not here.
        Err(error) if !is_short(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a socket could not be bound because there is nothing of its family here.
fn is_absent(error: &io::Error) -> bool {
    let absent = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|number| absent.contains(&number))
}

/// Whether something failed for want of descriptors or memory, which says nothing of an address.
fn is_short(error: &io::Error) -> bool {
    let short =
        [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::AGAIN].map(Errno::raw_os_error);
    error.raw_os_error().is_none_or(|number| short.contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn this_machine_s_own_addresses_are_known() {
        assert!(is_own("127.0.0.1".parse().unwrap()).unwrap());
        for other in ["8.8.8.8", "192.0.2.1", "2606:4700::1111"] {
            assert!(!is_own(other.parse().unwrap()).unwrap(), "{other}");
        }
    }

    #[test]
    fn a_failure_that_says_nothing_of_an_address_lets_nothing_through() {
        let failed = |number: Errno| io::Error::from_raw_os_error(number.raw_os_error());
        for number in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS] {
            assert!(!is_absent(&failed(number)) && is_short(&failed(number)), "{number}");
        }
        assert!(is_absent(&failed(Errno::AFNOSUPPORT)) && is_absent(&failed(Errno::ADDRNOTAVAIL)));
        assert!(!is_short(&failed(Errno::NETUNREACH)));
    }

    #[test]
    fn no_range_that_is_not_public_gets_through() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "192.31.196.1",
            "192.52.193.1",
            "192.175.48.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:8.8.8.8",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "64:ff9b::a83f:8110",
            "100::1",
            "2001::1",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fdff::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2620:4f:8000::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "172.32.0.1",
            "192.0.3.1",
            "198.20.0.1",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    /// Says something else each time.
    struct Turncoat(Mutex<Vec<Vec<IpAddr>>>);

    impl Lookup for Turncoat {
        fn lookup(&self, _: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
            let answer = self.0.lock().unwrap().remove(0);
            Box::pin(async move { Ok(answer) })
        }
    }

    #[tokio::test]
    async fn an_answer_that_changes_is_checked_each_time() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let answers = vec![
            vec![address("93.184.215.14")],
            vec![address("127.0.0.1")],
            vec![address("93.184.215.14"), address("169.254.169.254")],
            vec![],
            vec![address("127.0.0.1")],
        ];
        let lookup = Arc::new(Turncoat(Mutex::new(answers)));
        let guarded = Guarded::new(lookup.clone(), false);
        assert!(guarded.addresses("hook.example").await.is_ok());
        for _ in 0..3 {
            assert!(guarded.addresses("hook.example").await.is_err());
        }
        assert!(
            Guarded::new(lookup, true).addresses("localhost").await.is_ok(),
            "loopback where it is allowed"
        );
    }
}
