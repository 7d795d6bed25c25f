//! The world outside, as gateways reach it: names are resolved here, what they lead to is checked, and exactly that is connected to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use karta_types::egress::Place;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::guest::PATIENCE;
use crate::addresses::{Guarded, is_own};
use crate::{Error, Result};

/// The most bytes of the head of an answer.
const HEAD: usize = 128 << 10;
/// Addresses of a name that are tried.
const TRIED: usize = 8;

/// What a request carries.
pub(super) type Body = BoxBody<Bytes, io::Error>;

/// A connection to a host for one request after the other. It ends with this.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) place: Place,
    pub(super) tls: bool,
    pub(super) to: SendRequest<Body>,
    _driven: AbortOnDropHandle<()>,
}

/// The world outside.
pub(crate) struct Outside {
    guarded: Guarded,
    tls: TlsConnector,
    /// The certificates that this host trusts, for sandboxes.
    bundle: String,
    /// Whether what stays on this machine needs no TLS: for tests.
    pub(super) loopback: bool,
}

impl std::fmt::Debug for Outside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outside").finish_non_exhaustive()
    }
}

impl Outside {
    /// As this host sees it, with the certificate authorities that it trusts. Reads files.
    ///
    /// # Errors
    /// TLS can't be set up.
    pub(crate) fn of_host(guarded: Guarded, loopback: bool) -> Result<Self> {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "a certificate authority of this host can't be read");
        }
        Self::new(guarded, found.certs, loopback)
    }

    /// With these certificate authorities.
    ///
    /// # Errors
    /// TLS can't be set up.
    pub(crate) fn new(
        guarded: Guarded,
        trusted: Vec<CertificateDer<'static>>,
        loopback: bool,
    ) -> Result<Self> {
        let bundle = trusted.iter().map(|one| pem(one)).collect();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(trusted);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::internal("setting up TLS for what sandboxes reach", error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { guarded, tls: TlsConnector::from(Arc::new(config)), bundle, loopback })
    }

    /// The certificates that this host trusts, as text.
    pub(super) fn bundle(&self) -> &str {
        &self.bundle
    }

    /// Connects. Answers why not in words: for a name that leads to no public address, and for a host that does not answer.
    pub(super) async fn connect(&self, place: &Place) -> Result<TcpStream, Unreached> {
        let connected = async {
            let found =
                self.guarded.addresses(place.host.as_str()).await.map_err(|error| match error.kind() {
                    io::ErrorKind::PermissionDenied => Unreached::Forbidden(error.to_string()),
                    _ => Unreached::Gone(format!("its name can't be resolved: {error}")),
                })?;
            // Whoever owns the name says how many there are.
            let tried = found.get(..TRIED).unwrap_or(&found);
            if !self.loopback {
                elsewhere(tried, place.port)?;
            }
            let tried: Vec<_> = tried.iter().map(|address| SocketAddr::new(*address, place.port)).collect();
            let stream = TcpStream::connect(&*tried).await;
            stream.map_err(|error| Unreached::Gone(format!("it can't be reached: {error}")))
        };
        let connected = tokio::time::timeout(PATIENCE, connected).await;
        let stream = connected.unwrap_or_else(|_| Err(Unreached::Gone("it does not answer".to_owned())))?;
        // A tunnel is as good without.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    /// A connection for requests.
    pub(super) async fn line(&self, place: &Place, tls: bool) -> Result<Line, Unreached> {
        let stream = self.connect(place).await?;
        if !tls {
            return line(place, tls, stream).await;
        }
        let name = ServerName::try_from(place.host.to_string())
            .map_err(|_| Unreached::Gone("its name can't be in a certificate".to_owned()))?;
        let shaken = tokio::time::timeout(PATIENCE, self.tls.connect(name, stream)).await;
        let stream = shaken
            .map_err(|_| Unreached::Gone("it does not answer".to_owned()))?
            .map_err(|error| Unreached::Gone(format!("TLS with it fails: {error}")))?;
        line(place, tls, stream).await
    }
}

/// That what is reached is not this machine, by a public address of its own: there are services on it that are only for itself, and
/// no firewall is between. What it serves to everybody is on the ports of the web.
fn elsewhere(found: &[IpAddr], port: u16) -> Result<(), Unreached> {
    if matches!(port, 80 | 443) {
        return Ok(());
    }
    for address in found {
        match is_own(*address) {
            Ok(false) => {}
            Ok(true) => {
                let why = format!(
                    "{address} is the host of this sandbox, of which ports 80 and 443 alone are reached"
                );
                return Err(Unreached::Forbidden(why));
            }
            Err(error) => {
                return Err(Unreached::Gone(format!("it can't be told where {address} is: {error}")));
            }
        }
    }
    Ok(())
}

/// Why a host can't be reached.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreached {
    /// It must not be.
    Forbidden(String),
    /// It is not there.
    Gone(String),
}

async fn line<S>(place: &Place, tls: bool, stream: S) -> Result<Line, Unreached>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (to, connection) = http1::Builder::new()
        .max_buf_size(HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| Unreached::Gone(error.to_string()))?;
    // Its end is seen by whoever asks through it.
    #[expect(
        clippy::disallowed_methods,
        reason = "it ends with the line, and that with the session's connection"
    )]
    let driven = tokio::spawn(async move { drop(connection.await) });
    Ok(Line { place: place.clone(), tls, to, _driven: AbortOnDropHandle::new(driven) })
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_s_own_services_are_not_reached_by_its_public_address() {
        // The loopback stands for it: any address that is this machine's own is.
        let (own, other): (IpAddr, IpAddr) = ("127.0.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let refused = elsewhere(&[other, own], 5432);
        assert!(
            matches!(refused, Err(Unreached::Forbidden(why)) if why.contains("the host of this sandbox"))
        );
        assert_eq!(elsewhere(&[other], 5432), Ok(()));
        assert_eq!(elsewhere(&[own], 443), Ok(()));
    }
}
