//! `edgecore join`: a token in, certificates and configuration out. keadm join's flags.
//!
//! Nothing is written before the cloud has answered; the configuration is written last, so that a node that has one has
//! joined. Every way to fail is one line that names the thing and the remedy.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use pki::{JoinToken, TokenError};

use crate::{
    config::{CONFIG_PATH, Config, ConfigError, render},
    enrol::{EnrolError, Enrolled, enrol},
};

/// Where a KubeEdge cloudcore takes tunnels (`cloudStream.tunnelPort`).
const TUNNEL_PORT: u16 = 10004;

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `host:10000`.
    pub cloud: String,
    pub token: String,
    pub cert_port: u16,
    pub node_name: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub runtime_endpoint: Option<String>,
    pub cgroup_driver: Option<String>,
    /// Home Assistant's; `None` leaves what the configuration says.
    pub discovery_prefix: Option<String>,
    /// `/` but for tests.
    pub root: PathBuf,
    /// Leave the cloud that the node belongs to and take what runs here along.
    pub adopt: bool,
    /// Join in spite of what is wrong with the machine.
    pub force: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("--cloudcore-ipport {0:?} is not HOST:PORT; write for example 192.0.2.1:10000")]
    Address(String),
    #[error("{0}")]
    Token(TokenError),
    #[error(
        "{0:?} cannot be a node's name: use lower-case letters, digits, '-' and '.'; name the node with --edgenode-name"
    )]
    NodeName(String),
    #[error("--labels {0:?} is not KEY=VALUE[,KEY=VALUE...]")]
    Labels(String),
    #[error(
        "this node has joined {joined} already ({path}); to move it to another cloud add --adopt, to begin anew remove that file"
    )]
    Joined { joined: String, path: PathBuf },
    #[error(transparent)]
    Enrol(EnrolError),
    #[error("{0}")]
    Config(ConfigError),
    #[error("the configuration has unknown keys: {0}")]
    UnknownKeys(String),
    #[error("cannot write {path}: {reason}; join needs the rights of root")]
    Write { path: PathBuf, reason: String },
}

/// What was done, for the last line of the command.
#[derive(Debug)]
pub struct Joined {
    pub node: String,
    pub config: PathBuf,
    pub cloud_id: String,
}

pub async fn join(options: &Options) -> Result<Joined, JoinError> {
    let token: JoinToken = options.token.parse().map_err(JoinError::Token)?;
    let (host, _) = split_address(&options.cloud).ok_or_else(|| JoinError::Address(options.cloud.clone()))?;
    let path = options.root.join(CONFIG_PATH);
    let mut cfg = existing(&path, options)?.unwrap_or_else(|| first_config(&options.root));

    let node = node_name(options, &cfg)?;
    let server = format!("{host}:{}", options.cert_port);
    let enrolled = enrol(&server, &node, &token).await.map_err(JoinError::Enrol)?;

    let pem = options.root.join("etc/kubeedge/certs/node.pem");
    fill(&mut cfg, options, &node, &server, &pem, &enrolled);
    make_folders(&cfg, &path, &pem)?;
    enrolled.bundle.store(&pem).map_err(|error| write_error(&pem, &error))?;
    rt::atomic_write(&path, render(&cfg).as_bytes()).map_err(|error| write_error(&path, &error))?;
    Ok(Joined { node, config: path, cloud_id: enrolled.cloud_id })
}

/// `edgecore alone`: a configuration without a cloud; returns its path. A node that has a configuration keeps all of it but what is
/// asked for here, and one that has joined is refused.
pub fn alone(options: &Options) -> Result<PathBuf, JoinError> {
    let path = options.root.join(CONFIG_PATH);
    let mut cfg = existing(&path, options)?.unwrap_or_else(|| first_config(&options.root));
    cfg.modules.edged.hostname_override = node_name(options, &cfg)?;
    cfg.modules.edge_hub.enable = false;
    fill_machine(&mut cfg, options);
    make_folders(&cfg, &path, &path)?;
    let text = render(&cfg);
    // At each boot of an image: flash wears.
    if fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
        rt::atomic_write(&path, text.as_bytes()).map_err(|error| write_error(&path, &error))?;
    }
    Ok(path)
}

/// The configuration that a join with these options would work with, as far as it is known before the cloud was asked.
pub fn prospect(options: &Options) -> Result<Config, JoinError> {
    let path = options.root.join(CONFIG_PATH);
    let known = path.exists().then(|| Config::load(&path).map(|loaded| loaded.config)).transpose();
    let mut cfg = known.map_err(JoinError::Config)?.unwrap_or_else(|| first_config(&options.root));
    if let Some((host, _)) = split_address(&options.cloud) {
        cfg.modules.edge_hub.websocket.server = options.cloud.clone();
        cfg.modules.edge_hub.http_server = format!("https://{host}:{}", options.cert_port);
    }
    fill_machine(&mut cfg, options);
    Ok(cfg)
}

/// The configuration of an earlier join, or one that somebody prepared (without certificates yet).
fn existing(path: &Path, options: &Options) -> Result<Option<Config>, JoinError> {
    if !path.exists() {
        return Ok(None);
    }
    let loaded = Config::load(path).map_err(JoinError::Config)?;
    if let [first, ..] = &loaded.unknown[..] {
        return Err(JoinError::UnknownKeys(format!("{}: {first}", path.display())));
    }
    let cert = &loaded.config.modules.edge_hub.tls_cert_file;
    if cert.exists() && !options.adopt {
        let joined = loaded.config.modules.edge_hub.websocket.server.clone();
        return Err(JoinError::Joined { joined, path: path.to_owned() });
    }
    Ok(Some(loaded.config))
}

/// KubeEdge's defaults below the root, and the internal broker on MQTT's own port.
fn first_config(root: &Path) -> Config {
    let mut cfg = Config::default();
    cfg.database.data_source = root.join("var/lib/kubeedge/edgecore.db");
    cfg.modules.edged.root_directory = root.join("var/lib/kubelet");
    cfg.modules.edged.tailored_kubelet_config.pod_logs_dir = root.join("var/log/pods");
    cfg.modules.edged.tailored_kubelet_config.static_pod_path = root.join("etc/kubeedge/manifests");
    cfg.modules.device_twin.dmi_sock_path = root.join("etc/kubeedge");
    cfg.modules.device_twin.device_folder = root.join("etc/kinglet/devices");
    // KubeEdge keeps events on the node unless asked; whoever looks at a pod wants them.
    cfg.modules.edged.report_event = true;
    cfg.modules.event_bus.mqtt_mode = 0;
    cfg.modules.event_bus.mqtt_server_internal = "tcp://127.0.0.1:1883".into();
    cfg.kinglet.run_dir = root.join("run/kinglet");
    cfg
}

fn fill(cfg: &mut Config, options: &Options, node: &str, server: &str, pem: &Path, enrolled: &Enrolled) {
    let hub = &mut cfg.modules.edge_hub;
    // A node that was alone until now.
    hub.enable = true;
    hub.websocket.server = options.cloud.clone();
    hub.http_server = format!("https://{server}");
    for file in [&mut hub.tls_ca_file, &mut hub.tls_cert_file, &mut hub.tls_private_key_file] {
        *file = pem.to_owned();
    }
    if let Some((host, _)) = split_address(&options.cloud) {
        // Our own cloud tells its identity, and has the streams on the link.
        cfg.modules.edge_stream.enable = enrolled.cloud_id.is_empty();
        cfg.modules.edge_stream.server = format!("{host}:{TUNNEL_PORT}");
    }
    let edged = &mut cfg.modules.edged;
    edged.hostname_override = node.to_owned();
    edged.node_labels.extend(options.labels.clone());
    fill_machine(cfg, options);
    cfg.kinglet.cloud_id = enrolled.cloud_id.clone();
}

fn fill_machine(cfg: &mut Config, options: &Options) {
    if let Some(prefix) = &options.discovery_prefix {
        cfg.modules.device_twin.discovery_prefix = prefix.clone();
    }
    let kubelet = &mut cfg.modules.edged.tailored_kubelet_config;
    if let Some(endpoint) = &options.runtime_endpoint {
        kubelet.container_runtime_endpoint = endpoint.clone();
    }
    if let Some(driver) = &options.cgroup_driver {
        kubelet.cgroup_driver = driver.clone();
    }
}

fn make_folders(cfg: &Config, config: &Path, pem: &Path) -> Result<(), JoinError> {
    let folders = [config.parent(), pem.parent(), cfg.database.data_source.parent()];
    for folder in folders.into_iter().flatten() {
        fs::create_dir_all(folder).map_err(|error| write_error(folder, &error))?;
    }
    Ok(())
}

fn write_error(path: &Path, error: &(dyn std::error::Error + 'static)) -> JoinError {
    JoinError::Write { path: path.to_owned(), reason: rt::error_chain(error) }
}

/// The command line, else the configuration, else the host's name.
fn node_name(options: &Options, cfg: &Config) -> Result<String, JoinError> {
    let name = options.node_name.clone().unwrap_or_else(|| cfg.node_name());
    match is_node_name(&name) {
        true => Ok(name),
        false => Err(JoinError::NodeName(name)),
    }
}

/// A DNS subdomain, as Kubernetes wants it.
pub fn is_node_name(name: &str) -> bool {
    let label = |label: &str| {
        let inner = label.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
        inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// `a=b,c=` as KubeEdge's `--labels` takes it.
pub fn parse_labels(text: &str) -> Result<BTreeMap<String, String>, JoinError> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').filter(|(key, _)| !key.trim().is_empty())?;
        Some((key.trim().to_owned(), value.trim().to_owned()))
    };
    let labels: Option<BTreeMap<_, _>> = text.split(',').filter(|p| !p.trim().is_empty()).map(pair).collect();
    labels.ok_or_else(|| JoinError::Labels(text.to_owned()))
}

/// Host (in brackets if it has colons) and port.
pub fn split_address(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let whole = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains([':', '/', '[', ']', '@', ' ']),
    };
    Some((host, port.parse().ok()?)).filter(|_| whole)
}
