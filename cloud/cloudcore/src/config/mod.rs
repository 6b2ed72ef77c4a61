//! `cloudcore.yaml`: KubeEdge's file, its keys, groups and defaults; our own keys sit under `kinglet:`.
//!
//! A key is honoured (it is a field here), accepted without effect ([`keys`] says why) or unknown. `cloudcore config check`
//! fails on unknown keys with name and line; a starting cloudcore logs them and runs.

pub mod keys;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::limits::DEVICE_WRITE_EVERY_MS;

pub use self::keys::Unknown;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}; name the file with --config, or leave --config out to run on defaults")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("{path}: {key} {problem}")]
    Value { path: PathBuf, key: &'static str, problem: String },
}

/// The whole file, with defaults filled in.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    #[serde(rename = "kubeAPIConfig")]
    pub kube_api_config: KubeApiConfig,
    pub modules: Modules,
    pub kinglet: Kinglet,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeApiConfig {
    /// A kubeconfig of the cluster to serve; empty: the cluster of the pod that this runs in, if any, else the embedded API.
    pub kube_config: PathBuf,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Modules {
    pub cloud_hub: CloudHub,
    pub cloud_stream: CloudStream,
}

/// KubeEdge's tunnel, for nodes whose link carries no streams.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CloudStream {
    pub enable: bool,
    /// Nodes dial it.
    pub tunnel_port: u16,
    /// An API server's kubelet client dials it.
    pub stream_port: u16,
    /// Signs the certificates of the stream port's clients. Without the file the stream port stays closed.
    #[serde(rename = "tlsStreamCAFile")]
    pub tls_stream_ca_file: PathBuf,
    pub tls_stream_cert_file: PathBuf,
    pub tls_stream_private_key_file: PathBuf,
}

impl Default for CloudStream {
    fn default() -> CloudStream {
        CloudStream {
            enable: false,
            tunnel_port: 10004,
            stream_port: 10003,
            tls_stream_ca_file: "/etc/kubeedge/ca/streamCA.crt".into(),
            tls_stream_cert_file: "/etc/kubeedge/certs/stream.crt".into(),
            tls_stream_private_key_file: "/etc/kubeedge/certs/stream.key".into(),
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CloudHub {
    /// Addresses that nodes dial; they stand in the server certificate.
    pub advertise_address: Vec<String>,
    pub dns_names: Vec<String>,
    /// Seconds.
    pub keepalive_interval: u32,
    /// Seconds.
    pub write_timeout: u32,
    pub node_limit: usize,
    /// Days.
    pub edge_cert_signing_duration: u32,
    /// Hours between two join tokens in a cluster's `tokensecret`; each is valid twice as long.
    pub token_refresh_duration: u32,
    pub websocket: Listener,
    pub https: Listener,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Listener {
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
}

/// Keys that KubeEdge does not have.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Kinglet {
    pub data_dir: PathBuf,
    /// In a pod: not the cluster that it belongs to.
    pub embedded_api: bool,
    /// Take a cluster over though objects of KubeEdge are in use that are not served.
    pub accept_missing: bool,
    pub api_address: IpAddr,
    pub api_port: u16,
    /// A node without a new lease for so long is shown as not ready.
    pub lease_grace_seconds: u32,
    /// Life of a node's certificate where days are too long; 0: `edgeCertSigningDuration`.
    pub edge_cert_seconds: u32,
    /// A certificate that has expired for no longer may still be renewed, with the same key; 0: none may.
    pub expired_grace_seconds: u32,
    /// DeviceStatus objects of a node are written once in this time on average.
    pub device_write_every_ms: u32,
    /// Where an API server reaches the stream port of this replica; empty: nodes' kubelets are where the nodes say.
    pub kubelet_address: String,
    pub kubelet_address_type: KubeletAddressType,
}

/// Under which type of address `kubeletAddress` stands in a Node: one that the API server prefers
/// (`--kubelet-preferred-address-types`; its default begins with Hostname, kubeadm's with InternalIP).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum KubeletAddressType {
    #[default]
    Hostname,
    InternalIP,
}

impl KubeletAddressType {
    pub fn name(self) -> &'static str {
        match self {
            KubeletAddressType::Hostname => "Hostname",
            KubeletAddressType::InternalIP => "InternalIP",
        }
    }
}

impl Default for CloudHub {
    fn default() -> Self {
        CloudHub {
            advertise_address: Vec::new(),
            dns_names: Vec::new(),
            keepalive_interval: 30,
            write_timeout: 30,
            node_limit: 500,
            edge_cert_signing_duration: 365,
            token_refresh_duration: 12,
            websocket: Listener::default(),
            https: Listener::default(),
        }
    }
}

impl Default for Kinglet {
    fn default() -> Self {
        Kinglet {
            data_dir: "/var/lib/kinglet/cloud".into(),
            embedded_api: false,
            accept_missing: false,
            api_address: IpAddr::from([127, 0, 0, 1]),
            api_port: 6443,
            lease_grace_seconds: 40,
            edge_cert_seconds: 0,
            expired_grace_seconds: 30 * 86_400,
            device_write_every_ms: DEVICE_WRITE_EVERY_MS,
            kubelet_address: String::new(),
            kubelet_address_type: KubeletAddressType::Hostname,
        }
    }
}

/// A configuration and what in its file has no meaning to this program.
#[derive(Debug, Default)]
pub struct Loaded {
    pub config: Config,
    pub unknown: Vec<Unknown>,
}

impl Config {
    pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Config::parse(path, &text)
    }

    /// `path` only names the text in errors.
    pub fn parse(path: &Path, text: &str) -> Result<Loaded, ConfigError> {
        let parse =
            |error: serde_saphyr::Error| ConfigError::Parse { path: path.into(), message: one_line(&error) };
        let unknown = self::keys::TABLE.unknown_keys(text).map_err(parse)?;
        let config: Config = serde_saphyr::from_str(text).map_err(parse)?;
        config.check(path)?;
        Ok(Loaded { config, unknown })
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let hub = &self.modules.cloud_hub;
        let positive = [
            ("modules.cloudHub.keepaliveInterval", hub.keepalive_interval, "30 seconds"),
            ("modules.cloudHub.writeTimeout", hub.write_timeout, "30 seconds"),
            ("modules.cloudHub.edgeCertSigningDuration", hub.edge_cert_signing_duration, "365 days"),
            ("modules.cloudHub.nodeLimit", u32::try_from(hub.node_limit).unwrap_or(u32::MAX), "500"),
            ("kinglet.leaseGraceSeconds", self.kinglet.lease_grace_seconds, "40"),
        ];
        match positive.into_iter().find(|(_, value, _)| *value == 0) {
            Some((key, _, usual)) => Err(ConfigError::Value {
                path: path.into(),
                key,
                problem: format!("is 0; the default is {usual}"),
            }),
            None => Ok(()),
        }
    }
}

/// serde-saphyr's texts may draw the source below the message; a log line has no room for it.
fn one_line(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    match error.location() {
        Some(location) if !first.contains("line") => format!("line {}: {first}", location.line()),
        _ => first.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Loaded, ConfigError> {
        Config::parse(Path::new("cloudcore.yaml"), text)
    }

    #[test]
    fn a_file_of_kubeedge_loads_and_its_other_keys_are_accepted() {
        let text = "apiVersion: cloudcore.config.kubeedge.io/v1alpha2\nkind: CloudCore\n\
            commonConfig:\n  tunnelPort: 10350\n\
            kubeAPIConfig:\n  kubeConfig: \"\"\n  master: \"\"\n  qps: 100\n\
            modules:\n  cloudHub:\n    advertiseAddress: [192.0.2.7]\n    dnsNames: [\"\"]\n    nodeLimit: 1000\n\
            \x20   quic: {enable: false, port: 10001}\n    websocket: {enable: true, port: 10000, address: 0.0.0.0}\n\
            \x20   unixsocket: {enable: true}\n  cloudStream:\n    enable: true\n    streamPort: 10003\n  router: {enable: false}\n";
        let loaded = parse(text).unwrap();
        assert_eq!(loaded.unknown, []);
        assert_eq!(loaded.config.modules.cloud_hub.node_limit, 1000);
        assert_eq!(loaded.config.modules.cloud_hub.advertise_address, ["192.0.2.7"]);
        assert_eq!(loaded.config.modules.cloud_hub.keepalive_interval, 30);
    }

    #[test]
    fn unknown_keys_have_a_line_and_a_suggestion() {
        let loaded =
            parse("modules:\n  cloudHub:\n    keepaliveIntervall: 3\nkinglet:\n  colour: red\n").unwrap();
        let lines: Vec<String> = loaded.unknown.iter().map(Unknown::to_string).collect();
        assert_eq!(
            lines,
            [
                "line 3: unknown key modules.cloudHub.keepaliveIntervall; did you mean modules.cloudHub.keepaliveInterval?",
                "line 5: unknown key kinglet.colour; remove it (`cloudcore config keys` prints the known ones)",
            ]
        );
    }

    #[test]
    fn bad_values_name_the_file_and_the_key() {
        let error = parse("modules:\n  cloudHub:\n    keepaliveInterval: 0\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "cloudcore.yaml: modules.cloudHub.keepaliveInterval is 0; the default is 30 seconds"
        );
        let error = parse("modules:\n  cloudHub:\n    nodeLimit: many\n").unwrap_err().to_string();
        assert!(error.contains("cloudcore.yaml") && error.contains("line 3"), "{error}");
    }
}
