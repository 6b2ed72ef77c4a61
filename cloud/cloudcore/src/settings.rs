//! What cloudcore runs with: the configuration file and, above it, the command line.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pki::Names;

use crate::cli::Run;
use crate::config::{CloudHub, CloudStream, Config, Kinglet, KubeletAddressType, Listener};

#[derive(Clone, Debug)]
pub struct Settings {
    pub data_dir: PathBuf,
    pub source: Source,
    /// Objects of KubeEdge that are not served do not stop the start.
    pub accept_missing: bool,
    pub api: SocketAddr,
    pub hub: SocketAddr,
    pub join: SocketAddr,
    /// What the server certificates are for.
    pub names: Names,
    /// Those of them that nodes are told to dial.
    pub advertised: Names,
    /// Life of a node's certificate.
    pub node_cert: Duration,
    /// For so long after its end a certificate may still be renewed.
    pub expired_grace: Duration,
    /// Life of the join token in a cluster's `tokensecret`.
    pub token_life: Duration,
    pub keepalive: Duration,
    pub write_timeout: Duration,
    pub lease_grace: Duration,
    pub nodes_max: usize,
    pub device_write_every_ms: u32,
    /// `None`: switched off.
    pub stream: Option<Stream>,
    /// What nodes' status says of where their kubelets are; empty: nothing of ours.
    pub kubelet_address: String,
    pub kubelet_address_type: KubeletAddressType,
}

/// The Kubernetes API that is worked on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Embedded,
    Kubeconfig(PathBuf),
    /// The cluster that this is a pod of.
    Pod,
}

impl Source {
    /// A kubeconfig where one is given; in a pod that has a service account, its cluster; else the embedded API.
    pub fn choose(kubeconfig: PathBuf, embedded: bool) -> Source {
        let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
            && Path::new(SERVICE_ACCOUNT_TOKEN).exists();
        match kubeconfig.as_os_str().is_empty() {
            false => Source::Kubeconfig(kubeconfig),
            true if in_pod && !embedded => Source::Pod,
            true => Source::Embedded,
        }
    }
}

const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// KubeEdge's CloudStream.
#[derive(Clone, Debug)]
pub struct Stream {
    pub tunnel: SocketAddr,
    pub stream: SocketAddr,
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

pub fn settings(config: Config, run: &Run) -> Settings {
    let hub = &config.modules.cloud_hub;
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let listener = |flag: Option<u16>, file: &Listener, port: u16| {
        let address = run.bind_address.or(file.address).unwrap_or(any);
        SocketAddr::new(address, flag.or(file.port).unwrap_or(port))
    };
    let api_address = run.bind_address.unwrap_or(config.kinglet.api_address);
    let settings = Settings {
        data_dir: run.data_dir.clone().unwrap_or_else(|| config.kinglet.data_dir.clone()),
        source: Source::choose(
            run.kubeconfig.clone().unwrap_or(config.kube_api_config.kube_config),
            config.kinglet.embedded_api,
        ),
        accept_missing: run.accept_missing || config.kinglet.accept_missing,
        api: SocketAddr::new(api_address, run.api_port.unwrap_or(config.kinglet.api_port)),
        hub: listener(run.hub_port, &hub.websocket, 10000),
        join: listener(run.join_port, &hub.https, 10002),
        names: Names::default(),
        advertised: Names::default(),
        node_cert: node_cert(&config.kinglet, hub),
        expired_grace: Duration::from_secs(config.kinglet.expired_grace_seconds.into()),
        token_life: 2 * Duration::from_secs(3600) * hub.token_refresh_duration.clamp(1, 24 * 365),
        keepalive: Duration::from_secs(hub.keepalive_interval.into()),
        write_timeout: Duration::from_secs(hub.write_timeout.into()),
        lease_grace: Duration::from_secs(config.kinglet.lease_grace_seconds.into()),
        nodes_max: hub.node_limit,
        device_write_every_ms: config.kinglet.device_write_every_ms,
        stream: stream(&config.modules.cloud_stream, run.bind_address.unwrap_or(any)),
        kubelet_address: run.kubelet_address.clone().unwrap_or(config.kinglet.kubelet_address),
        kubelet_address_type: config.kinglet.kubelet_address_type,
    };
    let names =
        names(&settings, run.advertise_address.iter().chain(&hub.advertise_address).chain(&hub.dns_names));
    let told = run.advertise_address.iter().chain(&hub.advertise_address).chain(&hub.dns_names);
    let told: Vec<&str> = told.map(String::as_str).filter(|text| !text.is_empty()).collect();
    let advertised = if told.is_empty() { names.clone() } else { Names::new(told) };
    Settings { names, advertised, ..settings }
}

fn node_cert(kinglet: &Kinglet, hub: &CloudHub) -> Duration {
    match kinglet.edge_cert_seconds {
        0 => Duration::from_secs(86_400) * hub.edge_cert_signing_duration,
        seconds => Duration::from_secs(seconds.into()),
    }
}

fn stream(config: &CloudStream, address: IpAddr) -> Option<Stream> {
    config.enable.then(|| Stream {
        tunnel: SocketAddr::new(address, config.tunnel_port),
        stream: SocketAddr::new(address, config.stream_port),
        ca: config.tls_stream_ca_file.clone(),
        cert: config.tls_stream_cert_file.clone(),
        key: config.tls_stream_private_key_file.clone(),
    })
}

fn names<'a>(settings: &Settings, advertised: impl Iterator<Item = &'a String>) -> Names {
    let bound = [settings.hub.ip(), settings.join.ip()].into_iter().filter(|ip| !ip.is_unspecified());
    let local = ["127.0.0.1".to_owned(), "localhost".to_owned()].into_iter();
    let own: Vec<String> =
        bound.map(|ip| ip.to_string()).chain(default_route_address().map(|ip| ip.to_string())).collect();
    let texts: Vec<String> =
        advertised.filter(|text| !text.is_empty()).cloned().chain(own).chain(local).collect();
    Names::new(texts.iter().map(String::as_str))
}

/// The address that this machine is reached by, as far as its own routes tell. Nothing is sent.
fn default_route_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_and_the_api_stays_on_loopback() {
        let text = "kinglet: {dataDir: /a, apiPort: 7443}\nmodules: {cloudHub: {advertiseAddress: [192.0.2.7], websocket: {port: 11000}}}\n";
        let config = Config::parse("f".as_ref(), text).unwrap().config;
        let run = Run { data_dir: Some("/b".into()), join_port: Some(0), ..Run::default() };
        let settings = settings(config, &run);
        assert_eq!(settings.data_dir, PathBuf::from("/b"));
        assert_eq!(settings.api.to_string(), "127.0.0.1:7443");
        assert_eq!(
            (settings.hub.to_string(), settings.join.to_string()),
            ("0.0.0.0:11000".into(), "0.0.0.0:0".into())
        );
        assert!(settings.names.ips.contains(&"192.0.2.7".parse().unwrap()));
        assert!(settings.names.dns_names.contains(&"localhost".to_owned()));
    }
}
