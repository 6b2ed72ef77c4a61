//! `edgecore.yaml`: KubeEdge's file (v1.20 to v1.23), its keys, groups and defaults; our own keys sit under `kinglet:`.
//!
//! A key is honoured (it is a field here), accepted without effect ([`keys`] says why) or unknown. `config check` and `join`
//! fail on unknown keys with name and line; a starting daemon logs them and runs, so that a rollback to an older program does
//! not stop a node. Start at [`Config::load`].

mod duration;
mod keys;
mod labels;
mod mqtt;
mod render;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;

pub use self::keys::Unknown;
pub use self::mqtt::Mqtt;
pub use duration::GoDuration;
pub use labels::{architecture, node_labels};
pub use render::render;

use crate::limits::{CONFIG_BYTES_MAX, HISTORY_BYTES, HISTORY_LEN, PUSH_QUEUE_BYTES, REPORT_EVERY_MS};

/// Where a joined node keeps its configuration, below the root directory.
pub const CONFIG_PATH: &str = "etc/kubeedge/config/edgecore.yaml";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}; run `edgecore join` first, or name the file with --config")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is larger than {CONFIG_BYTES_MAX} bytes and cannot be an edgecore.yaml")]
    TooLarge { path: PathBuf },
    #[error("{path}: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("{path}: {key} {problem}")]
    Value { path: PathBuf, key: &'static str, problem: String },
}

/// The whole file, with defaults filled in.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    pub database: Database,
    pub modules: Modules,
    pub kinglet: Kinglet,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Database {
    /// KubeEdge's SQLite file. Our store is the folder `store` beside it.
    pub data_source: PathBuf,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Modules {
    pub edged: Edged,
    pub edge_hub: EdgeHub,
    pub event_bus: EventBus,
    pub device_twin: DeviceTwin,
    pub edge_stream: EdgeStream,
}

/// Pods and the node itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Edged {
    pub enable: bool,
    /// The node's name; empty means the host's name.
    pub hostname_override: String,
    /// The node's address; empty means the address of the default route.
    #[serde(rename = "nodeIP")]
    pub node_ip: String,
    pub report_event: bool,
    pub pod_sandbox_image: String,
    /// The kubelet's folder: volumes of pods.
    pub root_directory: PathBuf,
    pub node_labels: BTreeMap<String, String>,
    pub register_schedulable: bool,
    pub tailored_kubelet_config: Kubelet,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Kubelet {
    /// `unix:///run/containerd/containerd.sock`.
    pub container_runtime_endpoint: String,
    /// `cgroupfs` or `systemd`.
    pub cgroup_driver: String,
    pub cluster_domain: String,
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<String>,
    pub max_pods: u32,
    pub node_status_update_frequency: GoDuration,
    pub node_status_report_frequency: GoDuration,
    pub node_lease_duration_seconds: u32,
    pub register_node: bool,
    pub runtime_request_timeout: GoDuration,
    pub container_log_max_size: String,
    pub container_log_max_files: u32,
    /// `/var/log/pods`.
    pub pod_logs_dir: PathBuf,
    pub resolv_conf: PathBuf,
    /// Where metrics and statistics are served without asking who reads them; port 0: nowhere.
    pub address: IpAddr,
    pub read_only_port: u16,
    pub serialize_image_pulls: bool,
    /// With `serializeImagePulls: false`; absent: a small number of our own.
    pub max_parallel_image_pulls: Option<u32>,
    /// Images are collected from this use of their file system on (percent), down to the low threshold.
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high_threshold_percent: u32,
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low_threshold_percent: u32,
    #[serde(rename = "imageMinimumGCAge")]
    pub image_minimum_gc_age: GoDuration,
    /// Images unused for so long go at any use of the disk; 0: never.
    #[serde(rename = "imageMaximumGCAge")]
    pub image_maximum_gc_age: GoDuration,
    /// Signal -> quantity or percentage; absent: kubelet's defaults, smaller on small boards.
    pub eviction_hard: Option<BTreeMap<String, String>>,
    pub eviction_soft: BTreeMap<String, String>,
    pub eviction_soft_grace_period: BTreeMap<String, GoDuration>,
    pub eviction_minimum_reclaim: BTreeMap<String, String>,
    pub eviction_pressure_transition_period: GoDuration,
    /// Seconds; the longest grace a soft eviction gives.
    pub eviction_max_pod_grace_period: u32,
    /// Resources kept from pods: `cpu`, `memory`, `ephemeral-storage`, as Kubernetes quantities.
    pub system_reserved: BTreeMap<String, String>,
    pub kube_reserved: BTreeMap<String, String>,
    /// `pods`: what is reserved is kept from pods by their control group. Kubernetes' other words have no effect.
    pub enforce_node_allocatable: Vec<String>,
    /// The control group above `kubepods`; empty means the top.
    pub cgroup_root: String,
    #[serde(rename = "cgroupsPerQOS")]
    pub cgroups_per_qos: bool,
    /// CPU limits are enforced.
    #[serde(rename = "cpuCFSQuota")]
    pub cpu_cfs_quota: bool,
    /// Process ids of one pod; below 1 means as many as the node has.
    pub pod_pids_limit: i64,
    /// `RuntimeDefault` for containers that name no profile.
    pub seccomp_default: bool,
    /// Names, or prefixes that end in `*`.
    #[serde(rename = "allowedUnsafeSysctls")]
    pub allowed_unsafe_sysctls: Vec<String>,
    /// A folder of pods that run without the cloud; empty means none.
    pub static_pod_path: PathBuf,
    /// Images in the Node's status; -1 means all of them, as far as the bound goes.
    pub node_status_max_images: i64,
}

/// The link to the cloud.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EdgeHub {
    pub enable: bool,
    /// Seconds between keepalives.
    pub heartbeat: u32,
    #[serde(rename = "projectID")]
    pub project_id: String,
    pub tls_ca_file: PathBuf,
    pub tls_cert_file: PathBuf,
    pub tls_private_key_file: PathBuf,
    /// `https://host:10002`; certificates are renewed there.
    pub http_server: String,
    pub rotate_certificates: bool,
    pub websocket: WebSocket,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WebSocket {
    pub enable: bool,
    /// `host:10000`.
    pub server: String,
    /// Seconds.
    pub handshake_timeout: u32,
    /// Seconds.
    pub write_deadline: u32,
}

/// KubeEdge's tunnel for logs and exec, used when the cloud's link carries no streams.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EdgeStream {
    pub enable: bool,
    /// `host:10004`.
    pub server: String,
    /// Seconds.
    pub handshake_timeout: u32,
    /// Seconds without a sign of life.
    pub read_deadline: u32,
    /// Seconds.
    pub write_deadline: u32,
}

/// MQTT.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EventBus {
    pub enable: bool,
    /// 0: the internal broker; 1: both; 2: an external broker.
    pub mqtt_mode: u8,
    #[serde(rename = "mqttQOS")]
    pub mqtt_qos: u8,
    pub mqtt_retain: bool,
    pub mqtt_session_queue_size: u32,
    /// `tcp://127.0.0.1:1883`.
    pub mqtt_server_external: String,
    /// Where the internal broker listens.
    pub mqtt_server_internal: String,
    #[serde(rename = "mqttSubClientID")]
    pub mqtt_sub_client_id: String,
    #[serde(rename = "mqttPubClientID")]
    pub mqtt_pub_client_id: String,
    pub mqtt_username: String,
    pub mqtt_password: String,
    #[serde(rename = "eventBusTLS")]
    pub tls: EventBusTls,
    /// Ours: what mode 1 copies between the two brokers.
    pub bridge: Vec<BridgeRule>,
}

/// TLS to the external broker. Empty names of certificate and key: without a client certificate.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EventBusTls {
    pub enable: bool,
    #[serde(rename = "tlsMqttCAFile")]
    pub tls_mqtt_ca_file: String,
    pub tls_mqtt_cert_file: String,
    pub tls_mqtt_private_key_file: String,
}

/// Topics copied from one broker to the other (`bus::bridge`).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BridgeRule {
    /// A filter on the node's broker.
    pub topic: String,
    pub direction: BridgeDirection,
    /// In front of the topic on the external broker.
    #[serde(default)]
    pub prefix: String,
    /// Copies are published as retained.
    #[serde(default)]
    pub retain: bool,
    /// Only what comes while both brokers are there is copied; nobody waits for the rest.
    #[serde(default)]
    pub live: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum BridgeDirection {
    /// From the node's broker to the external one.
    Out,
    In,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceTwin {
    pub enable: bool,
    pub dmi_sock_path: PathBuf,
    /// Ours: Device and DeviceModel files of the node itself. Empty: none.
    pub device_folder: PathBuf,
    /// Ours: Home Assistant's discovery prefix. Empty: no discovery.
    pub discovery_prefix: String,
}

/// Keys that KubeEdge does not have.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Kinglet {
    /// OCI archives that are imported at the start.
    pub preload_dir: PathBuf,
    /// Folders (a USB stick's mount point, a share in the LAN) whose image archives are imported when they appear.
    pub import_dirs: Vec<PathBuf>,
    /// Status file and sockets; in RAM.
    pub run_dir: PathBuf,
    /// Identity of the cloud that the node joined; empty where that cloud does not tell one.
    #[serde(rename = "cloudID")]
    pub cloud_id: String,
    /// The link may use the compact lane where the cloud speaks it too. False: KubeEdge's JSON only.
    pub compact_lane: bool,
    /// The link may carry logs and exec beside the messages. False: only KubeEdge's tunnel (`modules.edgeStream`) does.
    pub link_streams: bool,
    /// How often it is looked whether the node's certificate is due; every twelfth time the cloud is asked for its CAs.
    pub certificate_check_seconds: u32,
    pub devices: Devices,
    pub mqtt: Mqtt,
}

/// What becomes of the values of devices.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Devices {
    /// The cloud is told of devices once in this time on average; newer values take the place of older ones.
    pub report_every_ms: u32,
    /// Values of a property that the node keeps; 0: none.
    pub history_len: usize,
    /// Memory for the values of all devices.
    pub history_bytes: usize,
    /// The history outlives restarts, but for its last minute at a power cut.
    pub history_durable: bool,
    /// Memory for the values that wait for one place of a `pushMethod`.
    pub push_queue_bytes: usize,
    /// Certificates (PEM) that places with https are checked with.
    #[serde(rename = "pushCAFile")]
    pub push_ca_file: PathBuf,
    /// The token for InfluxDB.
    pub push_token_file: PathBuf,
}

impl Default for Database {
    fn default() -> Self {
        Database { data_source: "/var/lib/kubeedge/edgecore.db".into() }
    }
}

impl Default for Edged {
    fn default() -> Self {
        Edged {
            enable: true,
            hostname_override: String::new(),
            node_ip: String::new(),
            report_event: false,
            pod_sandbox_image: "docker.io/kinglet/pause:1".into(),
            root_directory: "/var/lib/kubelet".into(),
            node_labels: BTreeMap::new(),
            register_schedulable: true,
            tailored_kubelet_config: Kubelet::default(),
        }
    }
}

impl Default for Kubelet {
    fn default() -> Self {
        Kubelet {
            container_runtime_endpoint: "unix:///run/containerd/containerd.sock".into(),
            cgroup_driver: "cgroupfs".into(),
            cluster_domain: "cluster.local".into(),
            cluster_dns: Vec::new(),
            max_pods: 110,
            node_status_update_frequency: GoDuration::from_secs(10),
            node_status_report_frequency: GoDuration::from_secs(300),
            node_lease_duration_seconds: 40,
            register_node: true,
            runtime_request_timeout: GoDuration::from_secs(120),
            container_log_max_size: "10Mi".into(),
            container_log_max_files: 5,
            pod_logs_dir: "/var/log/pods".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            address: IpAddr::from([127, 0, 0, 1]),
            read_only_port: 10350,
            serialize_image_pulls: true,
            max_parallel_image_pulls: None,
            image_gc_high_threshold_percent: 85,
            image_gc_low_threshold_percent: 80,
            image_minimum_gc_age: GoDuration::from_secs(120),
            image_maximum_gc_age: GoDuration::from_secs(0),
            eviction_hard: None,
            eviction_soft: BTreeMap::new(),
            eviction_soft_grace_period: BTreeMap::new(),
            eviction_minimum_reclaim: BTreeMap::new(),
            eviction_pressure_transition_period: GoDuration::from_secs(300),
            eviction_max_pod_grace_period: 0,
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            enforce_node_allocatable: vec!["pods".into()],
            cgroup_root: String::new(),
            cgroups_per_qos: true,
            cpu_cfs_quota: true,
            pod_pids_limit: -1,
            seccomp_default: false,
            allowed_unsafe_sysctls: Vec::new(),
            static_pod_path: "/etc/kubeedge/manifests".into(),
            node_status_max_images: 0,
        }
    }
}

impl Default for EdgeHub {
    fn default() -> Self {
        EdgeHub {
            enable: true,
            heartbeat: 15,
            project_id: "e632aba927ea4ac2b575ec1603d56f10".into(),
            tls_ca_file: "/etc/kubeedge/ca/rootCA.crt".into(),
            tls_cert_file: "/etc/kubeedge/certs/server.crt".into(),
            tls_private_key_file: "/etc/kubeedge/certs/server.key".into(),
            http_server: String::new(),
            rotate_certificates: true,
            websocket: WebSocket::default(),
        }
    }
}

impl Default for EdgeStream {
    fn default() -> EdgeStream {
        EdgeStream {
            enable: false,
            server: "127.0.0.1:10004".into(),
            handshake_timeout: 30,
            read_deadline: 15,
            write_deadline: 15,
        }
    }
}

impl Default for WebSocket {
    fn default() -> Self {
        WebSocket { enable: true, server: String::new(), handshake_timeout: 30, write_deadline: 15 }
    }
}

impl Default for EventBus {
    fn default() -> Self {
        EventBus {
            enable: true,
            mqtt_mode: 2,
            mqtt_qos: 0,
            mqtt_retain: false,
            mqtt_session_queue_size: 100,
            mqtt_server_external: "tcp://127.0.0.1:1883".into(),
            mqtt_server_internal: "tcp://127.0.0.1:1884".into(),
            mqtt_sub_client_id: String::new(),
            mqtt_pub_client_id: String::new(),
            mqtt_username: String::new(),
            mqtt_password: String::new(),
            tls: EventBusTls::default(),
            bridge: Vec::new(),
        }
    }
}

impl Default for EventBusTls {
    fn default() -> Self {
        EventBusTls {
            enable: false,
            tls_mqtt_ca_file: "/etc/kubeedge/ca/rootCA.crt".into(),
            tls_mqtt_cert_file: "/etc/kubeedge/certs/server.crt".into(),
            tls_mqtt_private_key_file: "/etc/kubeedge/certs/server.key".into(),
        }
    }
}

impl Default for DeviceTwin {
    fn default() -> Self {
        DeviceTwin {
            enable: true,
            dmi_sock_path: "/etc/kubeedge/".into(),
            device_folder: "/etc/kinglet/devices".into(),
            discovery_prefix: String::new(),
        }
    }
}

impl Default for Kinglet {
    fn default() -> Self {
        Kinglet {
            preload_dir: "/usr/share/kinglet/images".into(),
            import_dirs: Vec::new(),
            run_dir: "/run/kinglet".into(),
            cloud_id: String::new(),
            compact_lane: true,
            link_streams: true,
            certificate_check_seconds: 1800,
            devices: Devices::default(),
            mqtt: Mqtt::default(),
        }
    }
}

impl Default for Devices {
    fn default() -> Self {
        Devices {
            report_every_ms: REPORT_EVERY_MS,
            history_len: HISTORY_LEN,
            history_bytes: HISTORY_BYTES,
            history_durable: false,
            push_queue_bytes: PUSH_QUEUE_BYTES,
            push_ca_file: "/etc/ssl/certs/ca-certificates.crt".into(),
            push_token_file: "/etc/kinglet/influx-token".into(),
        }
    }
}

/// A configuration and what in its file has no meaning to this program.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    pub unknown: Vec<Unknown>,
}

impl Config {
    pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
        let read = |source| ConfigError::Read { path: path.into(), source };
        if fs::metadata(path).map_err(read)?.len() > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLarge { path: path.into() });
        }
        Config::parse(path, &fs::read_to_string(path).map_err(read)?)
    }

    /// `path` only names the text in errors.
    pub fn parse(path: &Path, text: &str) -> Result<Loaded, ConfigError> {
        let parse = |error: serde_saphyr::Error| ConfigError::Parse {
            path: path.into(),
            message: yaml_error(&error),
        };
        let unknown = self::keys::TABLE.unknown_keys(text).map_err(parse)?;
        let config: Config = serde_saphyr::from_str(text).map_err(parse)?;
        config.check(path)?;
        Ok(Loaded { config, unknown })
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let bad = |key, problem: String| Err(ConfigError::Value { path: path.into(), key, problem });
        let kubelet = &self.modules.edged.tailored_kubelet_config;
        let hub = &self.modules.edge_hub;
        if hub.enable && hub.websocket.server.is_empty() {
            return bad(
                "modules.edgeHub.websocket.server",
                "is missing; it is the cloud's host:10000".into(),
            );
        }
        if hub.heartbeat == 0 {
            return bad(
                "modules.edgeHub.heartbeat",
                "is 0; it is the seconds between keepalives, 15 by default".into(),
            );
        }
        if self.modules.event_bus.mqtt_mode > 2 {
            let mode = self.modules.event_bus.mqtt_mode;
            return bad(
                "modules.eventBus.mqttMode",
                format!("is {mode}; use 0 (internal broker), 1 (both) or 2 (external)"),
            );
        }
        if let Err(error) = crate::bus::bridge::check(&self.modules.event_bus.bridge) {
            return bad("modules.eventBus.bridge", format!("{error:#}"));
        }
        if let Some((key, problem)) = self.kinglet.mqtt.problem() {
            return bad(key, problem);
        }
        let prefix = &self.modules.device_twin.discovery_prefix;
        if prefix.contains(['+', '#', '$']) || prefix.starts_with('/') || prefix.ends_with('/') {
            return bad(
                "modules.deviceTwin.discoveryPrefix",
                format!(
                    "is {prefix:?}; Home Assistant's own is homeassistant, and empty switches discovery off"
                ),
            );
        }
        if !["cgroupfs", "systemd"].contains(&kubelet.cgroup_driver.as_str()) {
            let driver = &kubelet.cgroup_driver;
            return bad(
                "modules.edged.tailoredKubeletConfig.cgroupDriver",
                format!("is {driver:?}; use cgroupfs or systemd, as containerd is configured"),
            );
        }
        if !kubelet.container_runtime_endpoint.starts_with("unix://") {
            return bad(
                "modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint",
                "must start with unix://, for example unix:///run/containerd/containerd.sock".into(),
            );
        }
        Ok(())
    }

    /// `hostnameOverride`, else the host's name.
    pub fn node_name(&self) -> String {
        if !self.modules.edged.hostname_override.is_empty() {
            return self.modules.edged.hostname_override.clone();
        }
        nix::unistd::gethostname().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default()
    }

    /// The folder of our store.
    pub fn store_dir(&self) -> PathBuf {
        self.database.data_source.parent().unwrap_or(Path::new("/")).join("store")
    }
}

/// serde-saphyr's texts may draw the source below the message; a log line has no room for it.
pub fn yaml_error(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    match error.location() {
        Some(location) if !first.contains("line") => format!("line {}: {first}", location.line()),
        _ => first.to_string(),
    }
}
