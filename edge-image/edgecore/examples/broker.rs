//! The bus's broker alone, for the conformance suite and the benchmark (`tests/mqtt`): nothing of the agent runs beside it.
//!
//!     broker --listen tcp://127.0.0.1:1883 [--listen unix:///run/b.sock] [--listen tls://127.0.0.1:8883 --cert PEM --key PEM]
//!            [--user NAME:PASSWORD] [--passwords FILE] [--acl FILE] [--store FOLDER] [--durable sync:FILTER] [--durable lazy:FILTER]

use std::{fs, sync::Arc};

use anyhow::{Context, bail};
use edgecore::bus::broker::{self, Listen, Settings};
use mqtt::broker::Limits;
use tokio_rustls::rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// More than a node allows: the benchmark holds a thousand.
const CONNECTIONS_MAX: usize = 2000;

fn main() -> anyhow::Result<()> {
    let limits = Limits { connections_max: CONNECTIONS_MAX, ..Limits::default() };
    let mut settings = Settings { limits, ..Settings::default() };
    let (mut tls, mut certificate, mut key) = (None, None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
        match (name.as_str(), value.split_once(':')) {
            ("--listen", Some(("tcp", address))) => {
                settings.listen.push(Listen::Tcp(address.trim_start_matches('/').parse()?));
            }
            ("--listen", Some(("tls", address))) => tls = Some(address.trim_start_matches('/').parse()?),
            ("--listen", Some(("unix", path))) => {
                settings.listen.push(Listen::Unix(path.strip_prefix("//").unwrap_or(path).into()));
            }
            ("--cert", _) => certificate = Some(CertificateDer::from_pem_slice(&fs::read(&value)?)?),
            ("--key", _) => key = Some(PrivateKeyDer::from_pem_slice(&fs::read(&value)?)?),
            ("--user", Some((user, password))) => {
                settings.auth.users.insert(user.into(), password.into());
            }
            ("--passwords", _) => settings.files.password = Some(value.into()),
            ("--acl", _) => {
                settings.files.acl = Some(value.into());
                settings.auth.acl_local = true;
            }
            ("--store", _) => settings.store_dir = Some(value.into()),
            ("--durable", Some(("sync", filter))) => settings.durable.sync.push(filter.into()),
            ("--durable", Some(("lazy", filter))) => settings.durable.lazy.push(filter.into()),
            _ => bail!("unknown argument {name} {value}"),
        }
    }
    (settings.users, settings.auth.acl) = settings.files.load()?;
    if let (Some(address), Some(certificate), Some(key)) = (tls, certificate, key) {
        let config = ServerConfig::builder_with_provider(pki::tls::provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        settings.listen.push(Listen::Tls(address, Arc::new(config)));
    }
    rt::log::init("info")?;
    rt::runtime()?.block_on(async {
        let drain = rt::Drain::new();
        let broker = broker::start_with(settings, drain.clone());
        rt::shutdown_signal().await;
        drain.start();
        broker.stopped().await;
        Ok(())
    })
}
