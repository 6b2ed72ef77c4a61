//! The node's certificate, key and CA on disk, and TLS with them.
//!
//! `join` writes one bundle, so that certificate and key change together; the three files of a KubeEdge node are read as well.

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use pki::{Bundle, BundleError, CertInfo, Key, PkiError};
use rustls::{
    ClientConfig,
    pki_types::{ServerName, UnixTime},
    time_provider::TimeProvider,
};

use crate::config::EdgeHub;

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("cannot read {path}; run `edgecore join` again")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} cannot be used; run `edgecore join` again")]
    Damaged { path: PathBuf, source: PkiError },
    #[error("the node's certificate bundle cannot be used; run `edgecore join` again")]
    Bundle(#[source] BundleError),
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: rt::FileError },
}

/// Where they are. All three paths are equal for a bundle.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Credentials {
    pub fn new(hub: &EdgeHub) -> Credentials {
        Credentials {
            ca: hub.tls_ca_file.clone(),
            cert: hub.tls_cert_file.clone(),
            key: hub.tls_private_key_file.clone(),
        }
    }

    /// True when certificate, key and CA are one file.
    pub fn is_bundle(&self) -> bool {
        self.ca == self.cert && self.cert == self.key
    }

    pub fn load(&self) -> Result<Bundle, CredentialsError> {
        if self.is_bundle() {
            return Bundle::load(&self.cert).map_err(CredentialsError::Bundle);
        }
        let key = Key::from_pem(&read(&self.key)?)
            .map_err(|source| CredentialsError::Damaged { path: self.key.clone(), source })?;
        Ok(Bundle { cert_der: first_certificate(&self.cert)?, key, ca_der: first_certificate(&self.ca)? })
    }

    /// Replaces the certificate. Three separate files cannot change at one moment: there the key must be the old one.
    pub fn store(&self, bundle: &Bundle) -> Result<(), CredentialsError> {
        if self.is_bundle() {
            return bundle.store(&self.cert).map_err(CredentialsError::Bundle);
        }
        let pem = pki::pem_encode("CERTIFICATE", &bundle.cert_der);
        rt::atomic_write(&self.cert, pem.as_bytes())
            .map_err(|source| CredentialsError::Write { path: self.cert.clone(), source })
    }
}

fn read(path: &PathBuf) -> Result<String, CredentialsError> {
    fs::read_to_string(path).map_err(|source| CredentialsError::Read { path: path.clone(), source })
}

fn first_certificate(path: &PathBuf) -> Result<Vec<u8>, CredentialsError> {
    let damaged = |source| CredentialsError::Damaged { path: path.clone(), source };
    let blocks = pki::pem_decode(&read(path)?).map_err(damaged)?;
    let certificate = blocks.into_iter().find(|(label, _)| label == "CERTIFICATE");
    let missing = PkiError::Malformed { what: "the file", reason: "it has no certificate" };
    certificate.map(|(_, der)| der).ok_or_else(|| damaged(missing))
}

/// TLS to our own cloud, on a clock that is never behind the start of our own certificate.
pub fn client_config(bundle: &Bundle) -> Result<ClientConfig, PkiError> {
    let mut config = pki::tls::client_config(&bundle.ca_der, Some((&bundle.cert_der, &bundle.key)))?;
    let start = CertInfo::parse(&bundle.cert_der)?.validity.not_before;
    config.time_provider = Arc::new(FloorClock { floor_s: start });
    Ok(config)
}

/// A clock that is never behind a moment that is known to have passed: a board without a battery boots in the past, and its
/// link must not wait for the time service.
#[derive(Debug)]
pub struct FloorClock {
    /// Unix seconds.
    pub floor_s: u64,
}

impl TimeProvider for FloorClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(unix_now_s().max(self.floor_s))))
    }
}

pub fn unix_now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Host of `host:port` or `[v6]:port`, as TLS names it.
pub fn server_name(server: &str) -> Option<ServerName<'static>> {
    let (host, _) = server.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(host.to_owned()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_has_a_floor() {
        let future = unix_now_s() + 1_000_000;
        assert_eq!(FloorClock { floor_s: future }.current_time().unwrap().as_secs(), future);
        assert!(FloorClock { floor_s: 0 }.current_time().unwrap().as_secs() > 1_700_000_000);
    }

    #[test]
    fn hosts_of_addresses() {
        for (server, host) in [
            ("a.example:10000", "a.example"),
            ("192.0.2.1:1", "192.0.2.1"),
            ("[2001:db8::1]:1", "2001:db8::1"),
        ] {
            assert_eq!(server_name(server).unwrap().to_str(), host);
        }
        assert!(server_name("no port").is_none());
    }

    #[test]
    fn what_is_missing_or_damaged_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let credentials = Credentials { ca: path("ca"), cert: path("cert"), key: path("key") };
        assert!(credentials.load().unwrap_err().to_string().contains("/key; run `edgecore join` again"));
        fs::write(path("key"), "garbage").unwrap();
        assert!(credentials.load().unwrap_err().to_string().contains("/key cannot be used"));
        let bundle = Credentials { ca: path("b"), cert: path("b"), key: path("b") };
        assert!(rt::error_chain(&bundle.load().unwrap_err()).contains("has not joined"));
    }
}
