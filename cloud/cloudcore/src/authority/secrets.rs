//! KubeEdge's Secrets in namespace `kubeedge`, in its format, so that either program can take over from the other.
//!
//! Source: KubeEdge v1.23.1, `cloud/pkg/cloudhub/servers/httpserver/pre_server.go`. `casecret`: certificate and SEC1 key of the CA
//! as DER; `cloudcoresecret`: those of the server; `tokensecret`: a join token that `keadm gettoken` prints. A change of the CA
//! is in a Secret of our own.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use pki::{Ca, CertInfo, Key, Names, PkiError};
use serde::{Deserialize, Serialize};

use super::ServerPair;
use super::material::{Material, Rotation};
use super::source::AuthorityError;
use crate::api::{Api, ApiError};

const CA: &str = "casecret";
const SERVER: &str = "cloudcoresecret";
const TOKEN: &str = "tokensecret";
const CHANGE: &str = "kinglet-ca-change";
const CHANGE_KEY: &str = "change.pem";

pub(super) struct Secrets<'a>(pub &'a Api);

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Secret {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    metadata: Meta,
    #[serde(rename = "type")]
    secret_type: String,
    /// Base64.
    data: BTreeMap<String, String>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    name: String,
    namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    resource_version: String,
}

impl Secret {
    fn new(name: &str, data: &[(&str, &[u8])]) -> Secret {
        Secret {
            api_version: "v1".into(),
            kind: "Secret".into(),
            metadata: Meta { name: name.into(), namespace: "kubeedge".into(), ..Meta::default() },
            secret_type: "Opaque".into(),
            data: data.iter().map(|(key, value)| ((*key).to_owned(), STANDARD.encode(value))).collect(),
        }
    }

    fn bytes(&self, key: &str) -> Result<Vec<u8>, PkiError> {
        let missing =
            PkiError::Malformed { what: "the Secret", reason: "a key of it is missing or not base64" };
        self.data.get(key).and_then(|text| STANDARD.decode(text).ok()).ok_or(missing)
    }

    fn render(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a Secret serialises without error")
    }
}

impl Secrets<'_> {
    /// Two that start at one moment make one CA: who comes second reads the first one's.
    pub async fn load_or_make(
        &self,
        make: impl Fn() -> Result<Ca, PkiError>,
    ) -> Result<Material, AuthorityError> {
        let secret = match self.get(CA).await? {
            Some(secret) => secret,
            None => {
                let ca = make().map_err(AuthorityError::Make)?;
                self.create_or_get(CA, &ca_secret(&ca)).await?
            }
        };
        let rotation = self.get(CHANGE).await?;
        let rotation = rotation.map(|secret| {
            let pem = secret.bytes(CHANGE_KEY)?;
            Rotation::from_pem(&String::from_utf8_lossy(&pem))
        });
        let rotation = rotation.transpose().map_err(|error| AuthorityError::Secret(CHANGE, error))?;
        Ok(Material {
            active: read_ca(&secret).map_err(|error| AuthorityError::Secret(CA, error))?,
            rotation,
        })
    }

    pub async fn store_rotation(&self, rotation: &Rotation) -> Result<(), AuthorityError> {
        let pem = rotation.to_pem();
        self.create(CHANGE, &Secret::new(CHANGE, &[(CHANGE_KEY, pem.as_bytes())])).await
    }

    pub async fn remove_rotation(&self) -> Result<(), AuthorityError> {
        let removed = self.0.delete(&path(CHANGE), "").await;
        removed.map(drop).map_err(|error| AuthorityError::Api("remove", CHANGE, error))
    }

    pub async fn store_active(&self, ca: &Ca) -> Result<(), AuthorityError> {
        self.replace(CA, ca_secret(ca)).await
    }

    /// What is there, made if nothing is. `None`: it cannot be used here, and is not ours to throw away.
    pub async fn server_or_make(
        &self,
        make: impl Fn() -> Result<ServerPair, AuthorityError>,
    ) -> Result<Option<ServerPair>, AuthorityError> {
        let secret = match self.get(SERVER).await? {
            Some(secret) => secret,
            None => self.create_or_get(SERVER, &server_secret(&make()?)).await?,
        };
        Ok(read_server(&secret)
            .inspect_err(|error| {
                tracing::warn!("Secret kubeedge/{SERVER} is not used: {}", rt::error_chain(error));
            })
            .ok())
    }

    /// A server certificate of a CA that nobody trusts any more is of no use to whoever takes over: the same names, of the CA that
    /// signs now.
    pub async fn renew_server(&self, ca: &Ca, now_s: u64) -> Result<(), AuthorityError> {
        let Some(secret) = self.get(SERVER).await? else { return Ok(()) };
        let Ok(info) = secret
            .bytes("cloudcoredata")
            .and_then(|der| pki::certificate_from_secret(&der).and_then(|der| CertInfo::parse(&der)))
        else {
            return Ok(());
        };
        if info.names_issuer(ca.info()) {
            return Ok(());
        }
        let names = Names { ips: info.ips, dns_names: info.dns_names };
        let pair = ServerPair::make(ca, &names, now_s).map_err(AuthorityError::Make)?;
        self.replace(SERVER, server_secret(&pair)).await
    }

    /// The token that `keadm gettoken` prints, made anew when it is older than half its life or of another CA.
    pub async fn refresh_token(&self, ca: &Ca, life_s: u64, now_s: u64) -> Result<(), AuthorityError> {
        let kept = self.get(TOKEN).await?;
        let text = kept.as_ref().and_then(|secret| secret.bytes("tokendata").ok()).unwrap_or_default();
        let token = String::from_utf8_lossy(&text).parse::<pki::JoinToken>().ok();
        let claims = token.filter(|token| token.ca_hash() == ca.hash());
        let claims = claims.and_then(|token| pki::verify_bearer(ca, token.bearer(), "", now_s).ok());
        if claims.is_some_and(|claims| claims.exp > now_s + life_s / 2) {
            return Ok(());
        }
        let token = pki::issue_plain_token(ca, life_s, now_s).map_err(AuthorityError::Make)?;
        let mut secret = Secret::new(TOKEN, &[("tokendata", token.text.as_bytes())]);
        let written = match kept {
            None => self.0.post(FOLDER, secret.render()).await,
            Some(kept) => {
                secret.metadata.resource_version = kept.metadata.resource_version;
                self.0.put(&path(TOKEN), secret.render()).await
            }
        };
        match written {
            // Another replica was faster: its token is as good.
            Err(error) if error.is_conflict() => Ok(()),
            other => other.map(drop).map_err(|error| AuthorityError::Api("write", TOKEN, error)),
        }
    }

    async fn get(&self, name: &'static str) -> Result<Option<Secret>, AuthorityError> {
        let read = match self.0.get(&path(name)).await {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(ApiError::Json),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        };
        read.map_err(|error| AuthorityError::Api("read", name, error))
    }

    async fn create(&self, name: &'static str, secret: &Secret) -> Result<(), AuthorityError> {
        let failed = |error| AuthorityError::Api("create", name, error);
        crate::shared::ensure_namespace(self.0).await.map_err(failed)?;
        self.0.post(FOLDER, secret.render()).await.map(drop).map_err(failed)
    }

    async fn create_or_get(&self, name: &'static str, secret: &Secret) -> Result<Secret, AuthorityError> {
        match self.create(name, secret).await {
            Err(AuthorityError::Api(_, _, error)) if error.is_conflict() => {}
            Err(error) => return Err(error),
            Ok(()) => {}
        }
        let gone = || AuthorityError::Api("read", name, ApiError::Path(path(name)));
        self.get(name).await?.ok_or_else(gone)
    }

    async fn replace(&self, name: &'static str, mut secret: Secret) -> Result<(), AuthorityError> {
        let Some(kept) = self.get(name).await? else { return self.create(name, &secret).await };
        secret.metadata.resource_version = kept.metadata.resource_version;
        let written = self.0.put(&path(name), secret.render()).await;
        written.map(drop).map_err(|error| AuthorityError::Api("write", name, error))
    }
}

const FOLDER: &str = "/api/v1/namespaces/kubeedge/secrets";

fn path(name: &str) -> String {
    format!("{FOLDER}/{name}")
}

fn ca_secret(ca: &Ca) -> Secret {
    Secret::new(CA, &[("cadata", ca.cert_der()), ("cakeydata", &ca.key().to_sec1())])
}

fn read_ca(secret: &Secret) -> Result<Ca, PkiError> {
    Ca::from_secret(&secret.bytes("cadata")?, &secret.bytes("cakeydata")?)
}

fn server_secret(pair: &ServerPair) -> Secret {
    Secret::new(SERVER, &[("cloudcoredata", &pair.certificate), ("cloudcorekeydata", &pair.key.to_sec1())])
}

fn read_server(secret: &Secret) -> Result<ServerPair, PkiError> {
    let certificate = pki::certificate_from_secret(&secret.bytes("cloudcoredata")?)?;
    Ok(ServerPair { certificate, key: Key::from_secret(&secret.bytes("cloudcorekeydata")?)? })
}

/// Fuzz entry: any bytes are a Secret of a CA and of a server, or an error.
pub fn fuzz_secret(data: &[u8]) {
    if let Ok(secret) = serde_json::from_slice::<Secret>(data) {
        drop(read_ca(&secret));
        drop(read_server(&secret));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn the_secrets_are_what_kubeedge_writes_and_reads() {
        let ca = Ca::create("KubeEdge", NOW).unwrap();
        let secret: Secret = serde_json::from_slice(&ca_secret(&ca).render()).unwrap();
        assert_eq!(read_ca(&secret).unwrap().hash(), ca.hash());
        assert_eq!(secret.bytes("cadata").unwrap(), ca.cert_der(), "DER, not PEM");
        assert_eq!(secret.bytes("cakeydata").unwrap(), ca.key().to_sec1(), "what tokens are signed with");
        let pair = ServerPair::make(&ca, &Names::new(["192.0.2.7"]), NOW).unwrap();
        let secret: Secret = serde_json::from_slice(&server_secret(&pair).render()).unwrap();
        assert_eq!(read_server(&secret).unwrap().certificate, pair.certificate);
        // What people make by hand.
        let pem = Secret::new(
            CA,
            &[("cadata", ca.cert_pem().as_bytes()), ("cakeydata", ca.key().to_pem().as_bytes())],
        );
        assert_eq!(read_ca(&pem).unwrap().hash(), ca.hash());
        assert!(read_ca(&Secret::new(CA, &[("cadata", ca.cert_der())])).is_err());
    }

    #[test]
    fn any_bytes_are_a_secret_or_an_error() {
        let ca = Ca::create("KubeEdge", NOW).unwrap();
        let good = ca_secret(&ca).render();
        fuzz_secret(&good);
        for n in 0..3_000_usize {
            let mut bytes = good.clone();
            let at = n.wrapping_mul(2_654_435_761) % bytes.len();
            bytes[at] = (n.wrapping_mul(40_503) >> 3) as u8;
            if n % 5 == 0 {
                bytes.truncate(at);
            }
            fuzz_secret(&bytes);
        }
    }
}
