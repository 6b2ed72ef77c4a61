//! Who the other end is, by its verified certificate.

use pki::{CertInfo, Fit, PkiError, Validity, format_utc};

#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("there is none")]
    None,
    #[error("it cannot be read")]
    Unreadable(#[source] PkiError),
    #[error("it is of {0:?}; a node's is of \"system:node:<name>\" in group \"system:nodes\"")]
    NotANode(String),
    #[error("the one of node {node} expired at {}; the node renews it at the join port, or joins again", format_utc(*.at))]
    Expired { node: String, at: u64 },
    #[error("the one of node {node} is valid from {}; look at the clock here", format_utc(*.from))]
    NotYet { node: String, from: u64 },
}

/// A node, as its verified certificate names it.
#[derive(Clone, Debug)]
pub struct Peer {
    pub node: String,
    /// Of the certificate.
    pub fingerprint: String,
    /// Of the public key.
    pub key: String,
    pub info: CertInfo,
}

impl Peer {
    /// The same peer, if its certificate is good now. A resumed TLS session is not verified again, so that this must be asked.
    pub fn current(self, now_s: u64) -> Result<Peer, PeerError> {
        let Validity { not_before: from, not_after: at } = self.info.validity;
        match self.info.validity.fit(now_s) {
            Fit::Valid => Ok(self),
            Fit::Expired { .. } => Err(PeerError::Expired { node: self.node, at }),
            Fit::NotYet { .. } => Err(PeerError::NotYet { node: self.node, from }),
        }
    }
}

/// Whose certificate it is; its times are not looked at.
pub fn node_of_certificate(certificate: &[u8]) -> Result<Peer, PeerError> {
    let info = CertInfo::parse(certificate).map_err(PeerError::Unreadable)?;
    match info.subject.node_name() {
        Some(node) => Ok(Peer {
            node: node.to_owned(),
            fingerprint: fingerprint(certificate),
            key: info.key_hash(),
            info,
        }),
        None => Err(PeerError::NotANode(info.subject.common_name)),
    }
}

pub fn fingerprint(certificate: &[u8]) -> String {
    pki::sha256_hex(certificate)
}
