//! Pods through CRI: brings what the runtime does in line with what the cloud wants, with or without the cloud.
//!
//! Not here: the link, the store (`contract`), devices. The decisions are values (`manager`, `worker`, `status`); this file and
//! `execute` are the shell around them.
//!
//! Invariants
//! - Running containers are adopted after a restart of the agent, never made again.
//! - Missing data is never an empty desired state: see `manager`.
//! - Nothing here waits for the cloud to start a pod that is stored.
//!
//! Start at [`run`]; then `manager`, `worker`.

pub mod admission;
pub mod backoff;
pub mod limits;
pub mod manager;
pub mod observed;
pub mod pod;
pub mod policy;
pub mod record;
pub mod status;
pub mod worker;

pub mod cgroup;
pub mod cni_cache;
pub mod cri;
pub mod device_plugin;
pub mod dns;
pub mod env;
pub mod events;
mod execute;
mod hooks;
pub mod images;
pub mod kubelet_api;
mod last_words;
pub mod logs;
pub mod node_side;
pub mod observe;
mod prepare;
pub mod pressure;
pub mod probe;
pub mod render;
mod shell;
pub mod static_pods;
pub mod stats;
mod stop;

pub mod figures;
pub mod fuzz;
pub mod sources;
pub mod tokens;
pub mod volumes;

#[cfg(test)]
pub(crate) mod tests;

use std::{path::PathBuf, time::SystemTime};

use rt::Drain;

pub use crate::quantity;
use crate::{config::Config, contract::Handles};

/// What edged takes from the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `unix:///run/containerd/containerd.sock`.
    pub endpoint: String,
    pub cluster_dns: Vec<String>,
    pub cluster_domain: String,
    pub resolv_conf: PathBuf,
    /// `/var/log/pods`.
    pub log_dir: PathBuf,
    pub log_rotation: logs::Rotation,
    /// `/var/lib/kubelet`.
    pub kubelet_dir: PathBuf,
    pub run_dir: PathBuf,
    pub preload_dir: PathBuf,
    /// Empty: the address of the default route.
    pub node_ip: String,
    pub report_events: bool,
    /// Identity of the cloud that this node joined; empty: a stock cloud, which has none.
    pub cloud_id: String,
    pub images: images::ImageSettings,
    pub pressure: pressure::settings::PressureSettings,
    pub policy: policy::NodePolicy,
}

impl Settings {
    pub fn from_config(config: &Config) -> Settings {
        let (edged, kubelet) = (&config.modules.edged, &config.modules.edged.tailored_kubelet_config);
        let bytes_max = quantity::parse_units(&kubelet.container_log_max_size)
            .and_then(|bytes| u64::try_from(bytes).ok());
        Settings {
            endpoint: kubelet.container_runtime_endpoint.clone(),
            cluster_dns: kubelet.cluster_dns.clone(),
            cluster_domain: kubelet.cluster_domain.clone(),
            resolv_conf: kubelet.resolv_conf.clone(),
            log_dir: kubelet.pod_logs_dir.clone(),
            log_rotation: logs::Rotation {
                bytes_max: bytes_max.unwrap_or(limits::LOG_BYTES_MAX),
                files_max: (kubelet.container_log_max_files as usize).clamp(2, limits::LOG_FILES_MAX),
            },
            kubelet_dir: edged.root_directory.clone(),
            run_dir: config.kinglet.run_dir.clone(),
            preload_dir: config.kinglet.preload_dir.clone(),
            node_ip: edged.node_ip.clone(),
            report_events: edged.report_event,
            cloud_id: config.kinglet.cloud_id.clone(),
            images: images::ImageSettings::from_config(config),
            pressure: pressure::settings::PressureSettings::from_config(config),
            policy: policy::NodePolicy::new(config),
        }
    }

    pub fn places(&self) -> volumes::Places {
        volumes::Places { pods_dir: self.kubelet_dir.join("pods"), run_dir: self.run_dir.join("volumes") }
    }
}

/// Runs the node's pods until the drain. Containers go on without the agent, and are adopted at its next start.
pub async fn run(handles: Handles, config: &Config, drain: Drain) {
    run_with(handles, Settings::from_config(config), drain).await;
}

pub async fn run_with(handles: Handles, settings: Settings, drain: Drain) {
    shell::Shell::new(handles, settings).run(drain).await;
}

/// Wall clock, for telling only.
fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
