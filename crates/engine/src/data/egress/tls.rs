//! TLS as the gateway speaks it with a program in a sandbox: which host a tunnel's first bytes name, and certificates for the hosts
//! whose requests are looked at.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use karta_types::Timestamp;
use karta_types::egress::Host;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::Acceptor;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::guest::{PATIENCE, late};
use crate::{Error, Result};

/// The most bytes of a tunnel's first message.
const HELLO: usize = 64 << 10;
/// Hosts whose certificates are kept.
const KEPT: usize = 256;
/// How long a certificate is good: a sandbox does not live that long.
const DAYS: u64 = 365;
const DAY: u64 = 86_400;

/// The first message of a TLS connection.
#[derive(Debug)]
pub(super) struct Hello {
    /// The host it asks for.
    pub(super) name: Option<String>,
    /// All that was read.
    pub(super) read: Bytes,
}

/// Reads the first message of a tunnel.
///
/// # Errors
/// It is no TLS, or does not come.
pub(super) async fn hello(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Hello> {
    let whole = async {
        let (mut acceptor, mut read) = (Acceptor::default(), BytesMut::new());
        loop {
            let from = read.len();
            if from > HELLO {
                return Err(io::Error::other("the first message of the tunnel is too long"));
            }
            if stream.read_buf(&mut read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // Whatever is no handshake is known by its first byte.
            if read[0] != 0x16 {
                return Err(io::Error::other("only TLS goes through a tunnel"));
            }
            let mut new = &read[from..];
            while !new.is_empty() {
                acceptor.read_tls(&mut new)?;
                match acceptor.accept() {
                    Ok(None) => {}
                    Ok(Some(accepted)) => {
                        let name = accepted.client_hello().server_name().map(str::to_owned);
                        return Ok(Hello { name, read: read.freeze() });
                    }
                    Err((error, _)) => {
                        return Err(io::Error::other(format!("only TLS goes through a tunnel: {error}")));
                    }
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, whole)
        .await
        .unwrap_or_else(|_| Err(late("the tunnel's first message does not come")))
}

/// An authority as it is kept for programs that trust it already. It holds its key: to be sealed.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct KeptAuthority {
    /// Since when it is good.
    from: Timestamp,
    /// Its certificate, as the sandbox has it.
    certificate: String,
    key: String,
}

impl std::fmt::Debug for KeptAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptAuthority").field("from", &self.from).finish_non_exhaustive()
    }
}

/// An authority for the certificates that one sandbox is shown. Its key is made with it and goes with it; it is nowhere else, but in the
/// sealed record of a turn that is parked.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The certificate that the sandbox trusts.
    certificate: String,
    /// The key of all hosts' certificates.
    key: KeyPair,
    from: Timestamp,
    known: Mutex<HashMap<Host, Arc<ServerConfig>>>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one, good from now on.
    ///
    /// # Errors
    /// The machine gives no randomness.
    pub(super) fn new(now: Timestamp) -> Result<Self> {
        let signing = KeyPair::generate().map_err(unmade)?;
        let certificate = authority(now).self_signed(&signing).map_err(unmade)?.pem();
        Self::of(now, certificate, signing)
    }

    /// One that was kept.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn again(kept: KeptAuthority) -> Result<Self> {
        let signing = KeyPair::from_pem(&kept.key).map_err(unmade)?;
        Self::of(kept.from, kept.certificate, signing)
    }

    fn of(from: Timestamp, certificate: String, signing: KeyPair) -> Result<Self> {
        Ok(Self {
            issuer: Issuer::new(authority(from), signing),
            certificate,
            key: KeyPair::generate().map_err(unmade)?,
            from,
            known: Mutex::default(),
        })
    }

    /// What it takes to have it again.
    pub(super) fn keep(&self) -> KeptAuthority {
        let key = self.issuer.key().serialize_pem();
        KeptAuthority { from: self.from, certificate: self.certificate.clone(), key }
    }

    /// The certificate that the sandbox is to trust.
    pub(super) fn pem(&self) -> &str {
        &self.certificate
    }

    /// How the gateway answers as this host.
    ///
    /// # Errors
    /// The host can't be in a certificate.
    pub(super) fn serve(&self, host: &Host) -> io::Result<Arc<ServerConfig>> {
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(host) {
            return Ok(known.clone());
        }
        let made = Arc::new(self.make(host)?);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(host.clone(), made.clone());
        Ok(made)
    }

    fn make(&self, host: &Host) -> io::Result<ServerConfig> {
        let mut params = params(self.from);
        params.subject_alt_names =
            CertificateParams::new(vec![host.to_string()]).map_err(io::Error::other)?.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&self.key, &self.issuer).map_err(io::Error::other)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn unmade(error: rcgen::Error) -> Error {
    Error::internal("making a session's certificate authority", error)
}

/// What an authority's certificate says. The same for the same time.
fn authority(from: Timestamp) -> CertificateParams {
    let mut params = params(from);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "Karta session egress");
    params
}

fn params(now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = u64::try_from(now.as_micros() / 1_000_000).unwrap_or_default();
    // A clock inside that is a little behind must not matter.
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(DAY));
    params.not_after = epoch + Duration::from_secs(now.saturating_add(DAYS * DAY));
    params
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    #[tokio::test]
    async fn what_is_no_tls_is_known_at_once() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"SSH-2.0-x\r\n",
            b"\x16\x03\x01\xff\xff",
            b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
            b"",
        ] {
            let mut stream = bytes;
            assert!(hello(&mut stream).await.is_err(), "{bytes:?}");
        }
        let endless = [0x16, 0x03, 0x01, 0x3f, 0xff, 0x01, 0x00, 0xff, 0xff].repeat(20_000);
        assert!(hello(&mut &*endless).await.is_err());
    }

    #[test]
    fn two_sessions_share_no_authority() {
        let now = Timestamp::from_micros(1_700_000_000_000_000);
        let (one, other) = (Authority::new(now).unwrap(), Authority::new(now).unwrap());
        assert_ne!(one.pem(), other.pem());
        assert!(one.serve(&Host::read("a.example").unwrap()).is_ok());
        assert!(one.serve(&Host::read("8.8.8.8").unwrap()).is_ok());
    }
    /// Whether a client that trusts this certificate takes what the authority answers with.
    async fn trusts(certificate: &str, authority: &Authority) -> bool {
        let host = Host::read("a.example").unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let client = tokio_rustls::TlsConnector::from(Arc::new(config));
        let server = tokio_rustls::TlsAcceptor::from(authority.serve(&host).unwrap());
        let name = rustls::pki_types::ServerName::try_from("a.example").unwrap();
        let (client, _) = tokio::join!(client.connect(name, ours), server.accept(theirs));
        client.is_ok()
    }

    #[tokio::test]
    async fn who_trusts_an_authority_trusts_it_when_it_is_had_again() {
        let now = karta_types::Clock::now(&karta_types::time::System);
        let first = Authority::new(now).unwrap();
        let kept = serde_json::to_string(&first.keep()).unwrap();
        let again = Authority::again(serde_json::from_str(&kept).unwrap()).unwrap();
        assert_eq!(again.pem(), first.pem());
        assert!(trusts(first.pem(), &first).await);
        assert!(trusts(first.pem(), &again).await);
        assert!(!trusts(first.pem(), &Authority::new(now).unwrap()).await);
        let shown = format!("{:?}", first.keep());
        assert!(!shown.contains("PRIVATE"), "{shown}");
        let none = KeptAuthority { key: "no key".to_owned(), ..first.keep() };
        assert!(Authority::again(none).is_err());
    }
}
