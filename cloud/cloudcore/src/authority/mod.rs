//! The certificate authority of the nodes and the certificates that hub, join port and tunnel show. The API has another one.
//!
//! Where the keys are: [`Source`], files beside an embedded API, KubeEdge's Secrets in a cluster. What they are: [`Material`], one
//! CA, or two while one takes the place of the other (docs/certificates.md). A running cloudcore looks every few seconds whether
//! they changed ([`Authority::follow`]), and new connections see the change.
//!
//! Invariants
//! - Whoever makes the first CA, everybody uses that one: it is created, never replaced, and on a conflict read again.
//! - What signs is trusted; what is trusted beside it signs nothing.

mod change;
mod material;
mod peer;
mod ports;
mod secrets;
mod source;

use std::sync::Arc;
use std::time::Duration;

use pki::{Ca, Csr, Key, Names, PkiError, Validity};
use rt::Drain;
use tokio::sync::watch;

pub use change::{begin, finish, switch};
pub use material::Material;
pub use peer::{Peer, PeerError, fingerprint, node_of_certificate};
pub use ports::{Port, TlsPort};
pub use source::{AuthorityError, Source};

use ports::Configs;
use secrets::Secrets;

pub use material::fuzz_rotation;
pub use secrets::fuzz_secret;

/// What the certificates that are made say.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The names of this cloudcore.
    pub names: Names,
    /// Those of them that a certificate from elsewhere must have: what nodes are told to dial.
    pub names_needed: Names,
    /// Life of a node's certificate.
    pub node_cert: Duration,
    /// Life of the token in a cluster's `tokensecret`.
    pub token: Duration,
}

/// A running cloudcore's authority.
pub struct Authority {
    source: Source,
    policy: Policy,
    material: watch::Sender<Arc<Material>>,
    configs: watch::Sender<Arc<Configs>>,
}

impl Authority {
    /// The authority of the source; made there the first time.
    pub async fn open(source: Source, policy: Policy, now_s: u64) -> Result<Authority, AuthorityError> {
        let material = Arc::new(source.load_or_make(now_s).await?);
        let server = source.server(&material, &policy, now_s).await?;
        let configs = Configs::new(&material, server).map_err(AuthorityError::Make)?;
        let (material, configs) = (watch::Sender::new(material), watch::Sender::new(Arc::new(configs)));
        let authority = Authority { source, policy, material, configs };
        authority.refresh_token(now_s).await?;
        Ok(authority)
    }

    pub fn material(&self) -> Arc<Material> {
        self.material.borrow().clone()
    }

    /// TLS of a port, with what is trusted at the moment of each connection.
    pub fn port(&self, port: Port) -> TlsPort {
        TlsPort::new(self.configs.subscribe(), port)
    }

    /// A certificate for the public key in the request; everything else in it is read over.
    pub fn sign_node(&self, csr: &Csr, node: &str, now_s: u64) -> Result<Vec<u8>, PkiError> {
        let validity = Validity::seconds(now_s, self.policy.node_cert.as_secs());
        self.material().active.issue_node_for(csr, node, validity)
    }

    /// Takes over what others change in the source, and renews what this cloudcore shows. Runs until the drain.
    pub async fn follow(self: Arc<Self>, drain: Drain) {
        let mut told = String::new();
        while drain.sleep(self.source.look_every()).await {
            let line = match self.look(crate::join::now_s()).await {
                Ok(()) => String::new(),
                Err(error) => rt::error_chain(&error),
            };
            if line != told && !line.is_empty() {
                tracing::error!(
                    "the certificate authority cannot be read again, the last one counts: {line}"
                );
            }
            told = line;
        }
    }

    async fn look(&self, now_s: u64) -> Result<(), AuthorityError> {
        self.take_over(now_s).await?;
        self.refresh_token(now_s).await
    }

    async fn refresh_token(&self, now_s: u64) -> Result<(), AuthorityError> {
        match &self.source {
            Source::Dir(_) => Ok(()),
            Source::Secrets { api, .. } => {
                let life_s = self.policy.token.as_secs();
                Secrets(api).refresh_token(&self.material().active, life_s, now_s).await
            }
        }
    }

    async fn take_over(&self, now_s: u64) -> Result<(), AuthorityError> {
        let material = Arc::new(self.source.load_or_make(now_s).await?);
        let (had, shown) = (self.material(), self.configs.borrow().clone());
        if material == had && shown.server_fits(&material.active, &self.policy, now_s) {
            return Ok(());
        }
        let server = self.source.server(&material, &self.policy, now_s).await?;
        let configs = Configs::new(&material, server).map_err(AuthorityError::Make)?;
        if material != had {
            tracing::info!("{}", material.describe());
        }
        self.configs.send_replace(Arc::new(configs));
        self.material.send_replace(material);
        Ok(())
    }
}

/// A server's own certificate.
#[derive(Clone, Debug)]
pub struct ServerPair {
    pub certificate: Vec<u8>,
    pub key: Key,
}

impl ServerPair {
    fn make(ca: &Ca, names: &Names, now_s: u64) -> Result<ServerPair, PkiError> {
        let key = Key::generate()?;
        Ok(ServerPair { certificate: ca.issue_server(&key, names, now_s)?, key })
    }
}
