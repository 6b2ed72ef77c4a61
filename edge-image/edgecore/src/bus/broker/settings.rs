//! From the configuration to a broker's [`Settings`]: addresses, certificates, users, rules.

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context, bail};
use mqtt::broker::{Auth, DurableTopics};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use super::{Files, Listen, Settings};
use crate::config::{Config, Mqtt};

/// `first` is where KubeEdge's key says; edgecore's own clients go there.
pub fn from_config(cfg: &Config, first: SocketAddr) -> anyhow::Result<Settings> {
    let (bus, mqtt) = (&cfg.modules.event_bus, &cfg.kinglet.mqtt);
    let mut listen = vec![Listen::Tcp(first)];
    for address in &mqtt.listen {
        listen.push(parse(address, mqtt).with_context(|| format!("kinglet.mqtt.listen: {address}"))?);
    }
    let mut auth = Auth { acl_local: mqtt.acl_local, ..Auth::default() };
    if !bus.mqtt_username.is_empty() {
        auth.users.insert(bus.mqtt_username.clone(), bus.mqtt_password.clone());
    }
    let files = Files {
        password: given(&mqtt.password_file).map(Into::into),
        acl: given(&mqtt.acl_file).map(Into::into),
    };
    let (users, acl) = files.load()?;
    auth.acl = acl;
    let nobody = auth.users.is_empty() && users.is_empty();
    for open in
        listen.iter().filter(|open| matches!(open, Listen::Tcp(address) if !address.ip().is_loopback()))
    {
        if nobody {
            tracing::warn!(
                "the MQTT broker listens on {open} and knows no users: only clients on this machine get in; set kinglet.mqtt.passwordFile and aclFile"
            );
        }
    }
    Ok(Settings {
        listen,
        auth,
        users,
        files,
        limits: mqtt.limits(),
        durable: DurableTopics { sync: mqtt.durable_sync.clone(), lazy: mqtt.durable_lazy.clone() },
        store_dir: mqtt.persistence.then(|| cfg.store_dir().with_file_name("mqtt")),
    })
}

fn given(path: &Path) -> Option<&Path> {
    (!path.as_os_str().is_empty()).then_some(path)
}

fn parse(address: &str, mqtt: &Mqtt) -> anyhow::Result<Listen> {
    let socket =
        |text: &str| text.parse::<SocketAddr>().context("write an IP address and a port, as 0.0.0.0:1883");
    match address.split_once("://") {
        Some(("tcp" | "mqtt", rest)) => Ok(Listen::Tcp(socket(rest)?)),
        Some(("mqtts" | "ssl" | "tls", rest)) => Ok(Listen::Tls(socket(rest)?, Arc::new(tls(mqtt)?))),
        Some(("unix", path)) if path.starts_with('/') => Ok(Listen::Unix(path.into())),
        _ => bail!("write tcp://IP:PORT, mqtts://IP:PORT or unix:///PATH"),
    }
}

fn tls(mqtt: &Mqtt) -> anyhow::Result<ServerConfig> {
    let certificates = |key: &'static str, path: &Path| -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let path = given(path).with_context(|| format!("kinglet.mqtt.{key} is missing"))?;
        let read = CertificateDer::pem_file_iter(path).and_then(|found| found.collect::<Result<Vec<_>, _>>());
        let found = read.with_context(|| format!("kinglet.mqtt.{key}: {}", path.display()))?;
        anyhow::ensure!(
            !found.is_empty(),
            "kinglet.mqtt.{key}: there is no certificate in {}",
            path.display()
        );
        Ok(found)
    };
    let chain = certificates("tlsCertFile", &mqtt.tls_cert_file)?;
    let path = given(&mqtt.tls_private_key_file).context("kinglet.mqtt.tlsPrivateKeyFile is missing")?;
    let key = PrivateKeyDer::from_pem_file(path)
        .with_context(|| format!("kinglet.mqtt.tlsPrivateKeyFile: {}", path.display()))?;
    let provider = pki::tls::provider();
    let clients = match given(&mqtt.tls_client_ca_file) {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for ca in certificates("tlsClientCAFile", path)? {
                roots.add(ca).context("kinglet.mqtt.tlsClientCAFile")?;
            }
            // A client without one may still have a password.
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .allow_unauthenticated()
                .build()
                .context("kinglet.mqtt.tlsClientCAFile")?
        }
    };
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .context("kinglet.mqtt.tlsCertFile and tlsPrivateKeyFile")?;
    Ok(config)
}
