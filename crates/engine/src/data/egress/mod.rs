//! The one way out of a sandbox: an HTTP proxy on the host that lets through what the rules say, and nothing else. One design for
//! sessions and for builds.
//!
//! A program inside speaks to a loopback port; each connection comes out as a stream of one session, known by where it comes from.
//! Names are resolved here only, what they lead to must be public, and exactly the address that was checked is connected to. A tunnel
//! that rules allow as a whole goes on untouched, once its TLS names the same host; where a rule is about methods or paths, or a secret
//! is put in, TLS ends here, with a certificate that this sandbox alone trusts. Every decision is told.

mod answer;
mod exchange;
mod guest;
mod head;
mod judge;
mod listen;
mod outside;
mod providers;
mod secrets;
mod serve;
mod session;
mod swap;
#[cfg(test)]
mod tests;
mod tls;
pub(crate) mod told;

use std::sync::Arc;

use karta_sandbox::Duplex;
use karta_types::Timestamp;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) use judge::Rules;
pub(crate) use listen::Listening;
pub(crate) use outside::Outside;
pub(crate) use secrets::ToolSecret;
pub(crate) use tls::KeptAuthority;
pub(crate) use told::Decisions;

use crate::Result;
use crate::tasks::Tasks;

/// Connections of one session at once; more wait.
const AT_ONCE: usize = 64;
/// Bodies of one session that are held whole at once, to put secrets in; more wait.
const WHOLE: usize = 8;
/// Connections that wait; more are closed.
const WAITING: usize = 192;

/// The way out of one session or build. Everything that goes through it ends with this.
#[derive(Debug)]
pub(crate) struct Egress {
    gateway: Arc<Gateway>,
    tasks: Tasks,
    _end: DropGuard,
}

/// What every connection of one session shares.
#[derive(Debug)]
pub(super) struct Gateway {
    rules: Rules,
    secrets: secrets::Secrets,
    authority: tls::Authority,
    outside: Arc<Outside>,
    told: told::Told,
    places: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    whole: Semaphore,
    stop: CancellationToken,
}

impl Egress {
    /// A way out by these rules, from now on, with this certificate authority, or one of its own. Answers it and what it decides.
    ///
    /// # Errors
    /// No certificate authority can be made for it.
    pub(crate) fn new(
        tasks: &Tasks,
        outside: Arc<Outside>,
        rules: Rules,
        secrets: Vec<ToolSecret>,
        authority: Option<KeptAuthority>,
        now: Timestamp,
    ) -> Result<(Self, Decisions)> {
        let (told, decisions) = told::channel();
        let stop = CancellationToken::new();
        let gateway = Gateway {
            rules,
            secrets: secrets::Secrets::new(secrets),
            authority: match authority {
                Some(kept) => tls::Authority::again(kept)?,
                None => tls::Authority::new(now)?,
            },
            outside,
            told,
            places: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            whole: Semaphore::new(WHOLE),
            stop: stop.clone(),
        };
        let egress = Self { gateway: Arc::new(gateway), tasks: tasks.clone(), _end: stop.drop_guard() };
        Ok((egress, decisions))
    }

    /// Serves a connection that came out. Does not block; dropping it closes it.
    pub(crate) fn serve(&self, stream: Box<dyn Duplex>) {
        // More than that is no program's need: it is closed.
        let Ok(waiting) = self.gateway.waiting.clone().try_acquire_owned() else { return };
        let gateway = self.gateway.clone();
        self.tasks.spawn(async move {
            let serving = async {
                let patience = gateway.places.clone().acquire_owned();
                let Ok(Ok(_place)) = tokio::time::timeout(guest::PATIENCE, patience).await else { return };
                drop(waiting);
                // A connection that fails is the program's to notice.
                let _ = serve::connection(&gateway, stream).await;
            };
            gateway.stop.run_until_cancelled(serving).await;
        });
    }

    /// Variables for the programs inside: where the proxy is, the certificates they trust where it looks into TLS (the file with
    /// [`Egress::bundle`]), and the placeholders of secrets.
    pub(crate) fn environment(&self, proxy: &str, bundle: &str) -> Vec<(String, String)> {
        const LOOPBACK: &str = "localhost,127.0.0.1,::1";
        let mut variables: Vec<(String, String)> = [
            ("HTTP_PROXY", proxy),
            ("HTTPS_PROXY", proxy),
            ("http_proxy", proxy),
            ("https_proxy", proxy),
            ("NO_PROXY", LOOPBACK),
            ("no_proxy", LOOPBACK),
            ("NODE_USE_ENV_PROXY", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        if self.looks() {
            variables.extend(Self::trust(bundle));
        }
        variables.extend(self.gateway.secrets.variables());
        variables
    }

    /// Whether it looks into what goes by TLS: then programs must trust its certificates.
    pub(crate) fn looks(&self) -> bool {
        self.gateway.rules.looks() || !self.gateway.secrets.is_empty()
    }

    /// Its certificate authority, to be kept for programs that trust it already.
    pub(crate) fn authority(&self) -> KeptAuthority {
        self.gateway.authority.keep()
    }

    /// Variables that say which certificates to trust.
    pub(crate) fn trust(bundle: &str) -> impl Iterator<Item = (String, String)> {
        [
            "SSL_CERT_FILE",
            "NODE_EXTRA_CA_CERTS",
            "CURL_CA_BUNDLE",
            "REQUESTS_CA_BUNDLE",
            "GIT_SSL_CAINFO",
            "AWS_CA_BUNDLE",
            "CARGO_HTTP_CAINFO",
            "DENO_CERT",
        ]
        .into_iter()
        .map(move |name| (name.to_owned(), bundle.to_owned()))
    }

    /// The certificates that programs inside are to trust: those of the host, and the one of this way out.
    pub(crate) fn bundle(&self) -> String {
        format!("{}{}", self.gateway.outside.bundle(), self.gateway.authority.pem())
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.gateway.told.close();
    }
}
