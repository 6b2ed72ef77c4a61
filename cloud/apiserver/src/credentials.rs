//! The API's CA, its server certificate, the administrator's client certificate, and the key of service-account tokens.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use pki::{Bundle, Ca, Key, Names, pem_encode};
use serde_json::Value;

use crate::OpenError;
use crate::limits::ADMIN_CERT_DAYS;

/// Signs service-account tokens with a key that is used for nothing else.
pub(crate) struct TokenKey(Key);

impl kserve::Tokens for TokenKey {
    fn sign(&self, claims: &Value) -> Result<String, String> {
        pki::sign_es256(&self.0, claims.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    fn verify(&self, token: &str) -> Option<Value> {
        serde_json::from_slice(&pki::verify_es256(&self.0, token)?).ok()
    }
}

/// The key that was there before, or a new one.
pub(crate) fn open_token_key(path: &Path) -> Result<TokenKey, OpenError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Key::from_pem(&text).map(TokenKey).map_err(failed(path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = Key::generate().map_err(failed(path))?;
            rt::atomic_write_private(path, key.to_pem().as_bytes()).map_err(failed(path))?;
            Ok(TokenKey(key))
        }
        Err(error) => Err(failed(path)(error)),
    }
}

pub(crate) struct Credentials {
    pub ca: Ca,
    pub server: Bundle,
    admin: Bundle,
}

const ADMIN: &str = "kubernetes-admin";

/// Loads what is there, makes what is missing, and renews what is about to expire or lacks a name.
pub(crate) fn open(dir: &Path, names: &[String]) -> Result<Credentials, OpenError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let ca = open_ca(&dir.join("api-ca.pem"), now)?;
    let server = open_server(&dir.join("api-server.pem"), &ca, names, now)?;
    let admin = open_admin(&dir.join("api-admin.pem"), &ca, now)?;
    Ok(Credentials { ca, server, admin })
}

fn failed<E: std::error::Error + Send + Sync + 'static>(path: &Path) -> impl Fn(E) -> OpenError {
    let path: PathBuf = path.to_owned();
    move |source| OpenError::Certificates { path: path.clone(), source: Box::new(source) }
}

fn open_ca(path: &Path, now: u64) -> Result<Ca, OpenError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ca::from_pem(&text).map_err(failed(path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let ca = Ca::create("kinglet-api", now).map_err(failed(path))?;
            rt::atomic_write_private(path, ca.to_pem().as_bytes()).map_err(failed(path))?;
            Ok(ca)
        }
        Err(error) => Err(failed(path)(error)),
    }
}

fn open_server(path: &Path, ca: &Ca, names: &[String], now: u64) -> Result<Bundle, OpenError> {
    const ALWAYS: [&str; 6] =
        ["127.0.0.1", "::1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let names = Names::new(ALWAYS.into_iter().chain(names.iter().map(String::as_str)));
    if let Ok(bundle) = Bundle::load(path)
        && bundle.ca_der == ca.cert_der()
        && ca.server_fits(&bundle.cert_der, &bundle.key, &names, now)
    {
        return Ok(bundle);
    }
    let key = Key::generate().map_err(failed(path))?;
    let cert_der = ca.issue_server(&key, &names, now).map_err(failed(path))?;
    store(path, Bundle::new(cert_der, key, ca.cert_der().to_vec()))
}

fn open_admin(path: &Path, ca: &Ca, now: u64) -> Result<Bundle, OpenError> {
    const RENEW_BEFORE_S: u64 = ADMIN_CERT_DAYS * 86_400 / 3;
    if let Ok(bundle) = Bundle::load(path)
        && bundle.ca_der == ca.cert_der()
        && bundle.check(ADMIN, now + RENEW_BEFORE_S).is_ok()
    {
        return Ok(bundle);
    }
    let key = Key::generate().map_err(failed(path))?;
    let cert_der =
        ca.issue_client(&key, ADMIN, &[kserve::auth::MASTERS], ADMIN_CERT_DAYS, now).map_err(failed(path))?;
    store(path, Bundle::new(cert_der, key, ca.cert_der().to_vec()))
}

fn store(path: &Path, bundle: Bundle) -> Result<Bundle, OpenError> {
    bundle.store(path).map_err(failed(path))?;
    Ok(bundle)
}

impl Credentials {
    pub fn ca_pem(&self) -> String {
        self.ca.cert_pem()
    }

    pub fn kubeconfig(&self, server_url: &str) -> String {
        let data = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: kinglet\nclusters:\n- name: kinglet\n  cluster:\n    server: {server_url}\n    \
             certificate-authority-data: {}\nusers:\n- name: {ADMIN}\n  user:\n    client-certificate-data: {}\n    \
             client-key-data: {}\ncontexts:\n- name: kinglet\n  context:\n    cluster: kinglet\n    user: {ADMIN}\n",
            data(&self.ca_pem()),
            data(&pem_encode("CERTIFICATE", &self.admin.cert_der)),
            data(&self.admin.key.to_pem()),
        )
    }
}
