//! Where a broker is, as `modules.eventBus.mqttServerExternal` says it, and TLS to it (`modules.eventBus.eventBusTLS`).
//!
//! Verification is never off: KubeEdge talks to any server when `eventBusTLS.enable` is false, ours says what to set instead.

use std::{fs, sync::Arc};

use anyhow::{Context, bail};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::{config::EventBusTls, credentials::server_name};

/// `host:port`, and the TLS to use.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub address: String,
    pub tls: Option<Arc<ClientConfig>>,
}

impl Endpoint {
    pub fn plain(address: String) -> Endpoint {
        Endpoint { address, tls: None }
    }

    /// An external broker's. `tcp` and `mqtt` are plain; `ssl`, `tls`, `tcps` and `mqtts` (the names that KubeEdge's client
    /// library knows) are TLS.
    pub fn external(url: &str, tls: &EventBusTls) -> anyhow::Result<Endpoint> {
        let (scheme, address) = split(url)?;
        match (scheme, tls.enable) {
            ("tcp" | "mqtt", false) => Ok(Endpoint::plain(address)),
            ("tcp" | "mqtt", true) => bail!(
                "{url:?} is without TLS, but modules.eventBus.eventBusTLS.enable is true: write tls://{address}, or switch it off"
            ),
            ("ssl" | "tls" | "tcps" | "mqtts", true) => {
                let config = client_config(tls).context("modules.eventBus.eventBusTLS")?;
                server_name(&address)
                    .with_context(|| format!("{address} is no name that a certificate can have"))?;
                Ok(Endpoint { address, tls: Some(Arc::new(config)) })
            }
            ("ssl" | "tls" | "tcps" | "mqtts", false) => bail!(
                "{url:?} is TLS, but modules.eventBus.eventBusTLS.enable is false: set it, and tlsMqttCAFile to what signed the broker's certificate"
            ),
            _ => bail!("{url:?} has an unknown scheme: write tcp://HOST:PORT or tls://HOST:PORT"),
        }
    }
}

/// The internal broker's address: without TLS.
pub(super) fn internal(url: &str) -> anyhow::Result<String> {
    match split(url)? {
        ("tcp" | "mqtt", address) => Ok(address),
        _ => bail!("{url:?} has an unknown scheme: write tcp://HOST:PORT"),
    }
}

fn split(url: &str) -> anyhow::Result<(&str, String)> {
    let Some((scheme, address)) = url.split_once("://") else {
        bail!("{url:?} has an unknown scheme: write tcp://HOST:PORT");
    };
    let address = address.trim_end_matches('/');
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
            Ok((scheme, address.to_owned()))
        }
        _ => bail!("{url:?} has no port: write {scheme}://HOST:PORT"),
    }
}

/// Empty names of certificate and key: the broker knows us by user name and password only.
fn client_config(tls: &EventBusTls) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for ca in certificates(&tls.tls_mqtt_ca_file).context("tlsMqttCAFile")? {
        roots.add(ca).with_context(|| {
            format!("tlsMqttCAFile: {} has a certificate that is no CA", tls.tls_mqtt_ca_file)
        })?;
    }
    let config = ClientConfig::builder_with_provider(pki::tls::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    if tls.tls_mqtt_cert_file.is_empty() && tls.tls_mqtt_private_key_file.is_empty() {
        return Ok(config.with_no_client_auth());
    }
    let chain = certificates(&tls.tls_mqtt_cert_file).context("tlsMqttCertFile")?;
    let file = &tls.tls_mqtt_private_key_file;
    let key = fs::read(file).with_context(|| format!("tlsMqttPrivateKeyFile: read {file}"))?;
    let key = PrivateKeyDer::from_pem_slice(&key)
        .with_context(|| format!("tlsMqttPrivateKeyFile: {file} has no key"))?;
    config.with_client_auth_cert(chain, key).context("tlsMqttCertFile and tlsMqttPrivateKeyFile do not fit")
}

fn certificates(file: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let text = fs::read(file).with_context(|| format!("read {file}"))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found.with_context(|| format!("{file} is no PEM file"))? {
        found if found.is_empty() => bail!("{file} has no certificate"),
        found => Ok(found),
    }
}
