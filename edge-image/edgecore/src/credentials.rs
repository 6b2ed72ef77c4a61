//! The node's certificate, key and CA on disk, and TLS with them.
//!
//! `join` writes one bundle, so that certificate, key and CAs change at one moment; the bundle before it is kept and used when the
//! cloud does not take the new one. The three files of a KubeEdge node are read and written as well, with a bundle beside them.

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

/// Refusals in a row before the certificate before the last change is tried; doubled with each change.
const REFUSALS_FIRST: u32 = 3;
/// So that a node that nobody wants writes to its flash seldom.
const REFUSALS_MAX: u32 = 192;

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

    /// The one file that changes whole. Beside three separate files it is what they are repaired from.
    pub fn bundle_path(&self) -> PathBuf {
        if self.is_bundle() { self.cert.clone() } else { self.cert.with_file_name("kinglet-node.pem") }
    }

    /// What is to be used now. A damaged bundle gives way to the one before it; three files that do not belong together (the power
    /// was cut between two of them) to the bundle beside them.
    pub fn load(&self) -> Result<Bundle, CredentialsError> {
        let path = self.bundle_path();
        if self.is_bundle() {
            return Bundle::load(&path).or_else(|error| match error {
                BundleError::Damaged { .. } | BundleError::KeyMismatch { .. } => {
                    Bundle::load(&pki::previous(&path)).map_err(|_| CredentialsError::Bundle(error))
                }
                other => Err(CredentialsError::Bundle(other)),
            });
        }
        match self.load_files() {
            Ok(bundle) => Ok(bundle),
            Err(error) => {
                let bundle = Bundle::load(&path).map_err(|_| error)?;
                self.write_files(&bundle)?;
                Ok(bundle)
            }
        }
    }

    /// KubeEdge's three files; the CA's file may hold several.
    fn load_files(&self) -> Result<Bundle, CredentialsError> {
        let damaged = |path: &PathBuf| {
            let path = path.clone();
            move |source| CredentialsError::Damaged { path, source }
        };
        let key = Key::from_pem(&read(&self.key)?).map_err(damaged(&self.key))?;
        let certificate =
            pki::certificate_from_secret(read(&self.cert)?.as_bytes()).map_err(damaged(&self.cert))?;
        let mut cas = pki::cas_from_pem(&read(&self.ca)?).map_err(damaged(&self.ca))?;
        if !CertInfo::parse(&certificate).map_err(damaged(&self.cert))?.has_key(&key) {
            return Err(damaged(&self.cert)(PkiError::KeyMismatch));
        }
        let more_cas = cas.split_off(1);
        Ok(Bundle { more_cas, ..Bundle::new(certificate, key, cas.swap_remove(0)) })
    }

    /// Replaces all of it. What was there before is kept beside it, for [`Credentials::fall_back`].
    pub fn store(&self, bundle: &Bundle) -> Result<(), CredentialsError> {
        let path = self.bundle_path();
        if !self.is_bundle()
            && !path.exists()
            && let Ok(before) = self.load_files()
        {
            before.store(&path).map_err(CredentialsError::Bundle)?;
        }
        bundle.store(&path).map_err(CredentialsError::Bundle)?;
        if self.is_bundle() { Ok(()) } else { self.write_files(bundle) }
    }

    /// The certificate last: until then the files do not belong together, and the bundle counts.
    fn write_files(&self, bundle: &Bundle) -> Result<(), CredentialsError> {
        let failed = |path: &PathBuf| {
            let path = path.clone();
            move |source| CredentialsError::Write { path, source }
        };
        let pem = |der: &[u8]| pki::pem_encode("CERTIFICATE", der);
        let cas: String = bundle.cas().map(pem).collect();
        rt::atomic_write(&self.ca, cas.as_bytes()).map_err(failed(&self.ca))?;
        rt::atomic_write_private(&self.key, bundle.key.to_pem().as_bytes()).map_err(failed(&self.key))?;
        rt::atomic_write(&self.cert, pem(&bundle.cert_der).as_bytes()).map_err(failed(&self.cert))
    }

    /// The cloud does not take the current certificate: the one before it is used again, and the current one becomes the one before.
    /// Whom the node trusts stays as it is: a list of CAs from before could lock it out, or trust a CA that was given up.
    /// `false`: there is no certificate that could do better.
    pub fn fall_back(&self, node: &str, now_s: u64) -> Result<bool, CredentialsError> {
        let Ok(previous) = Bundle::load(&pki::previous(&self.bundle_path())) else { return Ok(false) };
        let name = pki::Identity::node(node).common_name;
        let expired_or_foreign = matches!(previous.check(&name, now_s), Err(error) if !matches!(error, BundleError::NotYetValid { .. }));
        if expired_or_foreign {
            return Ok(false);
        }
        let Ok(current) = self.load() else { return self.store(&previous).map(|()| true) };
        let has_signed = |ca: &[u8]| {
            let (certificate, ca) = (CertInfo::parse(&previous.cert_der), CertInfo::parse(ca));
            certificate.is_ok_and(|certificate| ca.is_ok_and(|ca| certificate.names_issuer(&ca)))
        };
        if current.cert_der == previous.cert_der || !current.cas().any(has_signed) {
            return Ok(false);
        }
        self.store(&Bundle { cert_der: previous.cert_der, key: previous.key, ..current })?;
        Ok(true)
    }
}

/// When a refused node tries its certificate before the last change: after three refusals, then after six more, and so on.
#[derive(Debug)]
pub struct Refusals {
    count: u32,
    limit: u32,
}

impl Default for Refusals {
    fn default() -> Refusals {
        Refusals { count: 0, limit: REFUSALS_FIRST }
    }
}

impl Refusals {
    /// One more in a row; `true`: now is the time.
    pub fn refused(&mut self) -> bool {
        self.count += 1;
        if self.count < self.limit {
            return false;
        }
        (self.count, self.limit) = (0, (self.limit * 2).min(REFUSALS_MAX));
        true
    }

    pub fn accepted(&mut self) {
        *self = Refusals::default();
    }
}

fn read(path: &PathBuf) -> Result<String, CredentialsError> {
    fs::read_to_string(path).map_err(|source| CredentialsError::Read { path: path.clone(), source })
}

/// TLS to our own cloud, on a clock that is never behind the start of our own certificate.
pub fn client_config(bundle: &Bundle) -> Result<ClientConfig, PkiError> {
    let mut config = pki::tls::client_config_of(bundle.cas(), Some((&bundle.cert_der, &bundle.key)))?;
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

    fn bundle(ca: &pki::Ca, node: &str) -> Bundle {
        let key = Key::generate().unwrap();
        let csr = pki::Csr::parse(&pki::new_csr(&key, &pki::Identity::node(node)).unwrap()).unwrap();
        Bundle::new(ca.issue_node(&csr, node, unix_now_s()).unwrap(), key, ca.cert_der().to_vec())
    }

    fn files(dir: &std::path::Path) -> Credentials {
        Credentials { ca: dir.join("rootCA.crt"), cert: dir.join("server.crt"), key: dir.join("server.key") }
    }

    #[test]
    fn three_files_change_as_one_at_every_cut() {
        let ca = pki::Ca::create("KubeEdge", unix_now_s()).unwrap();
        let (old, new) = (bundle(&ca, "a"), bundle(&ca, "a"));
        let old_dir = tempfile::tempdir().unwrap();
        files(old_dir.path()).store(&old).unwrap();
        let new_dir = tempfile::tempdir().unwrap();
        files(new_dir.path()).store(&old).unwrap();
        files(new_dir.path()).store(&new).unwrap();
        assert_eq!(files(new_dir.path()).load().unwrap(), new);
        // The order in which they are written; a cut leaves the first n of them new.
        let order = ["kinglet-node.pem", "rootCA.crt", "server.key", "server.crt"];
        for cut in 0..=order.len() {
            let dir = tempfile::tempdir().unwrap();
            for (n, name) in order.iter().enumerate() {
                let from = if n < cut { new_dir.path() } else { old_dir.path() };
                fs::copy(from.join(name), dir.path().join(name)).unwrap();
            }
            let loaded = files(dir.path()).load().unwrap();
            assert!(loaded == if cut < 3 { old.clone() } else { new.clone() }, "after {cut} files");
            assert_eq!(files(dir.path()).load_files().unwrap(), loaded, "the files are whole again");
        }
    }

    #[test]
    fn the_bundle_before_is_kept_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let ca = pki::Ca::create("KubeEdge", unix_now_s()).unwrap();
        let (old, new) = (bundle(&ca, "a"), bundle(&ca, "a"));
        let path = dir.path().join("node.pem");
        let one_file = Credentials { ca: path.clone(), cert: path.clone(), key: path.clone() };
        for credentials in [one_file, files(dir.path())] {
            credentials.store(&old).unwrap();
            assert!(!credentials.fall_back("a", unix_now_s()).unwrap(), "nothing is before the first");
            credentials.store(&new).unwrap();
            credentials.store(&new).unwrap();
            assert!(!credentials.fall_back("b", unix_now_s()).unwrap(), "not under another name");
            assert!(!credentials.fall_back("a", unix_now_s() + 400 * 86_400).unwrap(), "not an expired one");
            assert!(credentials.fall_back("a", unix_now_s()).unwrap());
            assert_eq!(credentials.load().unwrap(), old);
            assert!(credentials.fall_back("a", unix_now_s()).unwrap());
            assert_eq!(credentials.load().unwrap(), new);
            fs::write(credentials.bundle_path(), "flash is bad").unwrap();
            let survivor = if credentials.is_bundle() { &old } else { &new };
            assert_eq!(&credentials.load().unwrap(), survivor, "damage does not stop the node");
        }
    }

    #[test]
    fn who_is_trusted_does_not_go_back_with_a_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) =
            (pki::Ca::create("KubeEdge", unix_now_s()), pki::Ca::create("Next", unix_now_s()));
        let (first, second) = (first.unwrap(), second.unwrap());
        let credentials = files(dir.path());
        let old = bundle(&first, "a");
        credentials.store(&old).unwrap();
        let mut new = bundle(&second, "a");
        new.more_cas = vec![first.cert_der().to_vec()];
        credentials.store(&new).unwrap();
        assert!(credentials.fall_back("a", unix_now_s()).unwrap());
        let back = credentials.load().unwrap();
        assert_eq!((&back.cert_der, &back.ca_der), (&old.cert_der, &new.ca_der));
        assert!(back.cas().eq(new.cas()));
        assert!(credentials.fall_back("a", unix_now_s()).unwrap());
        assert_eq!(credentials.load().unwrap(), new);
        // The first CA is given up: its certificate would open nothing.
        new.more_cas.clear();
        credentials.store(&new).unwrap();
        credentials.store(&old).unwrap();
        credentials.store(&new).unwrap();
        assert!(!credentials.fall_back("a", unix_now_s()).unwrap());
        assert_eq!(credentials.load().unwrap(), new);
    }

    #[test]
    fn a_node_that_nobody_wants_changes_seldom() {
        let mut refusals = Refusals::default();
        let changes = |refusals: &mut Refusals| (0..1000).filter(|_| refusals.refused()).count();
        assert_eq!(changes(&mut refusals), 10);
        refusals.accepted();
        assert_eq!((0..3).map(|_| refusals.refused()).collect::<Vec<_>>(), [false, false, true]);
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
