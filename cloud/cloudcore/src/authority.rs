//! The certificate authority of the nodes and the certificate that hub and join port show. The API has another one.

use std::path::{Path, PathBuf};

use pki::{Ca, CertInfo, Csr, Key, Names, PkiError};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;

/// KubeEdge's name for it.
const CA_NAME: &str = "KubeEdge";
const CERTIFICATE: &str = "CERTIFICATE";

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] std::io::Error),
    #[error("{0} is damaged; restore it from a backup, or remove it: then every node must join again")]
    Damaged(PathBuf, #[source] PkiError),
    #[error("cannot lock {0}")]
    Lock(PathBuf, #[source] std::io::Error),
    #[error("cannot keep keys")]
    Write(#[source] rt::FileError),
    #[error("cannot make keys")]
    Make(#[source] PkiError),
}

#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("there is none")]
    None,
    #[error("it cannot be read")]
    Unreadable(#[source] PkiError),
    #[error("it is of {0:?}; a node's is of \"system:node:<name>\" in group \"system:nodes\"")]
    NotANode(String),
}

/// A node, as its verified certificate names it.
#[derive(Clone, Debug)]
pub struct Peer {
    pub node: String,
    pub fingerprint: String,
}

pub fn node_of_certificate(certificate: &CertificateDer) -> Result<Peer, PeerError> {
    let info = CertInfo::parse(certificate).map_err(PeerError::Unreadable)?;
    match info.subject.node_name() {
        Some(node) => Ok(Peer { node: node.to_owned(), fingerprint: fingerprint(certificate) }),
        None => Err(PeerError::NotANode(info.subject.common_name)),
    }
}

pub fn fingerprint(certificate: &[u8]) -> String {
    pki::sha256_hex(certificate)
}

pub struct Authority {
    ca: Ca,
    dir: PathBuf,
}

impl Authority {
    /// The authority in the data directory; made there the first time.
    pub fn open(data_dir: &Path, now_s: u64) -> Result<Authority, AuthorityError> {
        let dir = data_dir.join("pki");
        std::fs::create_dir_all(&dir).map_err(|error| AuthorityError::Lock(dir.clone(), error))?;
        // `cloudcore token` and a starting cloudcore may come here at the same moment; one of them makes it.
        let lock_path = dir.join(".lock");
        let lock = std::fs::File::create(&lock_path).and_then(|file| file.lock().map(|()| file));
        let _lock = lock.map_err(|error| AuthorityError::Lock(lock_path, error))?;
        let path = dir.join("nodes-ca.pem");
        let ca = match read_pair(&path)? {
            Some((certificate, key)) => {
                Ca::new(certificate, key).map_err(|error| AuthorityError::Damaged(path, error))?
            }
            None => {
                let ca = Ca::create(CA_NAME, now_s).map_err(AuthorityError::Make)?;
                write_pair(&path, ca.cert_der(), ca.key())?;
                ca
            }
        };
        Ok(Authority { ca, dir })
    }

    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    pub fn ca_der(&self) -> &[u8] {
        self.ca.cert_der()
    }

    /// TLS of the hub (a client certificate is required) or of the join port (it is optional).
    pub fn server_tls(
        &self,
        names: &Names,
        now_s: u64,
        required: bool,
    ) -> Result<ServerConfig, AuthorityError> {
        let path = self.dir.join("hub-server.pem");
        let kept = read_pair(&path)?
            .filter(|(certificate, key)| self.ca.server_fits(certificate, key, names, now_s));
        let (certificate, key) = match kept {
            Some(pair) => pair,
            None => {
                let key = Key::generate().map_err(AuthorityError::Make)?;
                let certificate = self.ca.issue_server(&key, names, now_s).map_err(AuthorityError::Make)?;
                write_pair(&path, &certificate, &key)?;
                (certificate, key)
            }
        };
        let clients = match required {
            true => pki::tls::ClientAuth::Required(self.ca_der()),
            false => pki::tls::ClientAuth::Requested(self.ca_der()),
        };
        pki::tls::server_config(&certificate, &key, clients).map_err(AuthorityError::Make)
    }

    /// A certificate for the public key in the request; everything else in it is read over.
    pub fn sign_node(&self, csr_der: &[u8], node: &str, now_s: u64) -> Result<Vec<u8>, PkiError> {
        self.ca.issue_node(&Csr::parse(csr_der)?, node, now_s)
    }
}

/// Certificate and key in one PEM file, so that one never is without the other.
fn read_pair(path: &Path) -> Result<Option<(Vec<u8>, Key)>, AuthorityError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(AuthorityError::Read(path.into(), error)),
    };
    let damaged = |error| AuthorityError::Damaged(path.into(), error);
    let blocks = pki::pem_decode(&text).map_err(damaged)?;
    let missing = PkiError::Malformed { what: "the file", reason: "it has no certificate" };
    let certificate = blocks.into_iter().find(|(label, _)| label == CERTIFICATE).ok_or(damaged(missing))?.1;
    Ok(Some((certificate, Key::from_pem(&text).map_err(damaged)?)))
}

fn write_pair(path: &Path, certificate: &[u8], key: &Key) -> Result<(), AuthorityError> {
    let text = format!("{}{}", pki::pem_encode(CERTIFICATE, certificate), key.to_pem());
    rt::atomic_write_private(path, text.as_bytes()).map_err(AuthorityError::Write)
}
