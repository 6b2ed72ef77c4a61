//! What is asked: the runtime, the cloud, the ports, the disks. Each question has a deadline.

use std::{
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::net::TcpStream;

use super::host::{Asked, Disk, Reach, RuntimeFault, RuntimeView, Taken};
use crate::{
    config::Config,
    credentials::unix_now_s,
    edged::cri::{self, Cri},
    https,
    join::split_address,
};

const TIME_MAX: Duration = Duration::from_secs(5);

/// Asks everything, side by side where that is possible.
pub async fn ask(root: &Path, cfg: &Config) -> Asked {
    let kubelet = &cfg.modules.edged.tailored_kubelet_config;
    let (runtime, reached) = tokio::join!(runtime(root, &kubelet.container_runtime_endpoint), reach(cfg));
    Asked {
        now_s: unix_now_s(),
        runtime,
        taken: taken(cfg),
        reached,
        disks: disks(root, cfg),
        unresolved: unresolved(cfg).await,
    }
}

/// The driver of the runtime that a configuration names, if it answers.
pub async fn cgroup_driver(root: &Path, cfg: &Config) -> Option<String> {
    let endpoint = &cfg.modules.edged.tailored_kubelet_config.container_runtime_endpoint;
    runtime(root, endpoint).await?.ok()?.cgroup_driver
}

async fn runtime(root: &Path, endpoint: &str) -> Option<Result<RuntimeView, RuntimeFault>> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    let path = root.join(path.trim_start_matches('/'));
    if !path.exists() {
        return None;
    }
    let client = Cri::new(cri::channel(&path.to_string_lossy()));
    let answer = async {
        let (version, status) = (client.version().await?, client.status(true).await?);
        let config = status.info.get("config").map(String::as_str).unwrap_or_default();
        let config: serde_json::Value = serde_json::from_str(config).unwrap_or_default();
        let sandbox_image_absent = match config.get("sandboxImage").and_then(serde_json::Value::as_str) {
            Some(image) => client.image_status(image).await?.is_none().then(|| image.to_owned()),
            None => None,
        };
        Ok((version, status, config, sandbox_image_absent, client.cgroup_driver().await.ok()))
    };
    let late = || RuntimeFault { no_cri: false, message: format!("nothing within {} s", TIME_MAX.as_secs()) };
    let Ok(answer) = tokio::time::timeout(TIME_MAX, answer).await else { return Some(Err(late())) };
    Some(answer.map_err(fault).map(|(version, status, config, sandbox_image_absent, told)| {
        let systemd = config
            .pointer("/containerd/runtimes/runc/options/SystemdCgroup")
            .and_then(serde_json::Value::as_bool);
        let driver = |systemd| if systemd { "systemd" } else { "cgroupfs" };
        let status = status.status.unwrap_or_default();
        let network = status.conditions.into_iter().find(|c| c.r#type == "NetworkReady" && !c.status);
        RuntimeView {
            name: format!("{} {}", version.runtime_name, version.runtime_version),
            cgroup_driver: told.or(systemd).map(|systemd| driver(systemd).to_owned()),
            config,
            network_problem: network.map(|condition| condition.message),
            sandbox_image_absent,
        }
    }))
}

fn fault(error: cri::CriError) -> RuntimeFault {
    let no_cri = error.code == tonic::Code::Unimplemented;
    RuntimeFault { no_cri, message: error.to_string() }
}

/// The cloud's ports, and a broker that is not ours.
async fn reach(cfg: &Config) -> Vec<Reach> {
    let (hub, stream, bus) = (&cfg.modules.edge_hub, &cfg.modules.edge_stream, &cfg.modules.event_bus);
    let hub_server = (hub.enable && !hub.websocket.server.is_empty()).then(|| hub.websocket.server.clone());
    let join = hub.http_server.strip_prefix("https://").unwrap_or_default().trim_end_matches('/');
    let broker = bus.mqtt_server_external.split_once("://").map_or("", |(_, server)| server);
    let mut reached = Vec::new();
    if let Some(server) = hub_server {
        reached.push(connect("modules.edgeHub.websocket.server", server).await);
    }
    if hub.enable && !join.is_empty() {
        let mut join = connect("modules.edgeHub.httpServer", join.to_owned()).await;
        if join.result.is_ok() {
            join.result = Ok(date(&join.server).await);
        }
        reached.push(join);
    }
    if stream.enable {
        reached.push(connect("modules.edgeStream.server", stream.server.clone()).await);
    }
    if bus.enable && bus.mqtt_mode > 0 && !broker.is_empty() {
        reached.push(connect("modules.eventBus.mqttServerExternal", broker.to_owned()).await);
    }
    reached
}

async fn connect(key: &'static str, server: String) -> Reach {
    let result = match tokio::time::timeout(TIME_MAX, TcpStream::connect(&server)).await {
        Ok(Ok(_)) => Ok(None),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", TIME_MAX.as_secs())),
    };
    Reach { key, server, result }
}

/// The clock of the join port. Nothing is believed that it says but the time of day.
async fn date(server: &str) -> Option<u64> {
    let tls = pki::tls::first_contact().ok()?;
    let answer =
        tokio::time::timeout(TIME_MAX, https::get(server, "/ca.crt", &[], &[], tls)).await.ok()?.ok()?;
    let date = jiff::fmt::rfc2822::parse(answer.header("date")?).ok()?;
    u64::try_from(date.timestamp().as_second()).ok()
}

/// Tries to listen where the agent will.
fn taken(cfg: &Config) -> Vec<Taken> {
    let (kubelet, bus) = (&cfg.modules.edged.tailored_kubelet_config, &cfg.modules.event_bus);
    let mut wanted = Vec::new();
    if cfg.modules.edged.enable && kubelet.read_only_port != 0 {
        let key = "modules.edged.tailoredKubeletConfig.readOnlyPort";
        wanted.push((key, SocketAddr::new(kubelet.address, kubelet.read_only_port)));
    }
    let internal = bus.mqtt_server_internal.split_once("://").and_then(|(_, server)| server.parse().ok());
    if let Some(address) = internal.filter(|_| bus.enable && bus.mqtt_mode < 2) {
        wanted.push(("modules.eventBus.mqttServerInternal", address));
    }
    let refused = |(key, address): (&'static str, SocketAddr)| {
        let error = TcpListener::bind(address).err()?;
        Some(Taken { key, address, reason: error.to_string() })
    };
    wanted.into_iter().filter_map(refused).collect()
}

fn disks(root: &Path, cfg: &Config) -> Vec<Disk> {
    let edged = &cfg.modules.edged;
    let places: [(&'static str, PathBuf); 4] = [
        ("the node's store", cfg.store_dir()),
        ("volumes", edged.root_directory.clone()),
        ("logs", edged.tailored_kubelet_config.pod_logs_dir.clone()),
        ("images", "/var/lib/containerd".into()),
    ];
    let mut disks: Vec<(u64, Disk)> = Vec::new();
    for (holds, path) in places {
        let inside = path.strip_prefix("/").unwrap_or(&path);
        // What is not there yet will be made in the nearest folder that is.
        let path = root.join(inside);
        let Some(there) = path.ancestors().find(|path| path.exists()) else { continue };
        let (Ok(stat), Ok(metadata)) = (nix::sys::statvfs::statvfs(there), there.metadata()) else {
            continue;
        };
        let device = std::os::unix::fs::MetadataExt::dev(&metadata);
        if disks.iter().any(|(known, _)| *known == device) {
            continue;
        }
        let unit = stat.fragment_size();
        let (free, total) = (stat.blocks_available() * unit, stat.blocks() * unit);
        disks.push((device, Disk { holds, path: there.into(), free, total }));
    }
    disks.into_iter().map(|(_, disk)| disk).collect()
}

async fn unresolved(cfg: &Config) -> Option<String> {
    let server = cfg.modules.edge_hub.websocket.server.clone();
    split_address(&server)?;
    // The system's resolver has no deadline of its own that is short enough.
    let ask = rt::blocking(move || server.to_socket_addrs().map(|addresses| addresses.count()));
    match tokio::time::timeout(TIME_MAX, ask).await {
        Ok(Ok(0)) => Some("the answer is empty".into()),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {} s", TIME_MAX.as_secs())),
        Ok(_) => None,
    }
}
