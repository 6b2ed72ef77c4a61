//! TLS of the ports that nodes dial. Each connection sees what is trusted at that moment.

use std::sync::Arc;

use pki::tls::{Clients, chain_server_config};
use pki::{Ca, PkiError};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_rustls::{Accept, TlsAcceptor};

use super::{Material, Policy, ServerPair};

#[derive(Clone, Copy, Debug)]
pub enum Port {
    /// Hub and tunnel: nobody without a certificate, nobody with an expired one.
    Link,
    /// A certificate is optional, and may have expired: what it is then good for is decided there.
    Join,
}

pub(super) struct Configs {
    link: Arc<ServerConfig>,
    join: Arc<ServerConfig>,
    server: ServerPair,
}

impl Configs {
    pub fn new(material: &Material, server: ServerPair) -> Result<Configs, PkiError> {
        let cas: Vec<&[u8]> = material.trusted().map(Ca::cert_der).collect();
        let mut chain = vec![server.certificate.clone()];
        chain.extend(material.cross_of_active().map(<[u8]>::to_vec));
        let config = |required, admit_expired| {
            chain_server_config(&chain, &server.key, Clients { cas: &cas, required, admit_expired })
                .map(Arc::new)
        };
        Ok(Configs { link: config(true, false)?, join: config(false, true)?, server })
    }

    pub fn server_fits(&self, ca: &Ca, policy: &Policy, now_s: u64) -> bool {
        ca.server_fits(&self.server.certificate, &self.server.key, &policy.names_needed, now_s)
    }
}

/// Begins TLS on connections of one port.
#[derive(Clone)]
pub struct TlsPort {
    configs: watch::Receiver<Arc<Configs>>,
    port: Port,
}

impl TlsPort {
    pub(super) fn new(configs: watch::Receiver<Arc<Configs>>, port: Port) -> TlsPort {
        TlsPort { configs, port }
    }

    /// As it is now.
    pub fn config(&self) -> Arc<ServerConfig> {
        let configs = self.configs.borrow();
        match self.port {
            Port::Link => configs.link.clone(),
            Port::Join => configs.join.clone(),
        }
    }

    pub fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> Accept<S> {
        TlsAcceptor::from(self.config()).accept(stream)
    }
}
