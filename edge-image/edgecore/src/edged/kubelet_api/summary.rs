//! `GET /stats/summary`: the node and its pods in the JSON of kubelet's `stats/v1alpha1`. Made pod by pod as the peer takes it.

use std::{collections::HashMap, path::Path, sync::Arc, time::Instant};

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    Node,
    body::{Answer, Body, answer, text},
    collect::{ContainerFigures, Figures, PodDisk, PodFigures},
};
use crate::edged::stats::{
    cgroup::Usage,
    disk::{self, FileSystem, FolderUsage},
    network::{self, Interface},
    node, process,
};

pub async fn summary(server: Arc<Node>) -> Answer {
    let mut round = match server.collect().await {
        Ok(round) => round,
        Err(error) => {
            return text(StatusCode::INTERNAL_SERVER_ERROR, format!("failed to list pod stats: {error}"));
        }
    };
    let known = system_rates(&server);
    server.add_rates(&mut round, !known).await;
    let disks = server.disks(&round).await;
    // Without it the figures of layers are missing, and nothing else.
    let layers = server.cri.writable_layers().await.unwrap_or_default();
    let images = server.cri.image_fs_info().await.unwrap_or_default();
    let about = About {
        time: rfc3339(round.unix_ms),
        disks,
        layers: layers.into_iter().map(|(id, bytes, inodes)| (id, (bytes, inodes))).collect(),
        images: images
            .iter()
            .max_by_key(|(_, used)| **used)
            .and_then(|(path, used)| Some((disk::file_system(Path::new(path))?, *used))),
        logs: disk::file_system(&server.settings.log_dir).unwrap_or_default(),
    };
    let head = format!("{{\"node\":{},\"pods\":[", node_json(&server, &about));
    let mut first = true;
    let pods = round.pods.into_iter().map(move |pod| {
        let comma = if std::mem::take(&mut first) { "" } else { "," };
        format!("{comma}{}", pod_json(&pod, &about))
    });
    let pieces = std::iter::once(head).chain(pods).chain(std::iter::once("]}".into()));
    let stream = futures_util::stream::iter(pieces.map(|piece| Ok(Bytes::from(piece))));
    let mut whole = answer(StatusCode::OK, "application/json", Bytes::new());
    *whole.body_mut() = Body::Stream(Box::pin(stream));
    whole
}

/// What the pods' parts need beside their own figures.
struct About {
    time: String,
    disks: HashMap<String, PodDisk>,
    /// By container id: bytes and inodes.
    layers: HashMap<String, (u64, u64)>,
    /// Where the runtime keeps images and layers, and what images take there.
    images: Option<(FileSystem, u64)>,
    logs: FileSystem,
}

/// Reads the counters of what is no pod; true: each of them has a rate.
fn system_rates(server: &Node) -> bool {
    let node = node::cpu_ns().is_none_or(|ns| server.rate(Instant::now(), Path::new("node"), ns).is_some());
    let known = |value: &Value| {
        value["cpu"]["usageCoreNanoSeconds"].is_null() || !value["cpu"]["usageNanoCores"].is_null()
    };
    let nothing = About {
        time: String::new(),
        disks: HashMap::new(),
        layers: HashMap::new(),
        images: None,
        logs: FileSystem::default(),
    };
    node & system_containers(server, &nothing).iter().all(known)
}

fn rfc3339(unix_ms: i64) -> String {
    Timestamp::from_millisecond(unix_ms).map(|time| format!("{time:.0}")).unwrap_or_default()
}

fn node_json(server: &Node, about: &About) -> Value {
    let memory = node::Memory::read().unwrap_or_default();
    let cpu_ns = node::cpu_ns();
    let rate = |name: &str, ns: u64| server.rate(Instant::now(), Path::new(name), ns);
    let faults = node::page_faults();
    let interfaces = network::of_host();
    let mut whole = json!({
        "nodeName": &*server.handles.node_name,
        "startTime": rfc3339(node::boot_time().unwrap_or(0) * 1000),
        "cpu": cpu(about, cpu_ns, cpu_ns.and_then(|ns| rate("node", ns))),
        "memory": {
            "time": about.time, "availableBytes": memory.available(), "usageBytes": memory.usage,
            "workingSetBytes": memory.working_set, "rssBytes": memory.rss,
            "pageFaults": faults.0, "majorPageFaults": faults.1,
        },
        "swap": {
            "time": about.time, "swapAvailableBytes": memory.swap_free,
            "swapUsageBytes": memory.swap_total.saturating_sub(memory.swap_free),
        },
        "systemContainers": system_containers(server, about),
    });
    if let Some(system) = disk::file_system(&server.settings.kubelet_dir) {
        whole["fs"] = fs_json(about, &system, Some(system.used), Some(system.inodes_used()));
    }
    if let Some((system, used)) = &about.images {
        whole["runtime"] = json!({
            "imageFs": fs_json(about, system, Some(*used), None),
            "containerFs": fs_json(about, system, Some(about.layers.values().map(|layer| layer.0).sum()), None),
        });
    }
    if let Some((current, max)) = node::processes() {
        whole["rlimit"] = json!({ "time": about.time, "maxpid": max, "curproc": current });
    }
    if let Some(network) = network_json(about, &interfaces) {
        whole["network"] = network;
    }
    whole
}

/// The agent, the runtime, and all pods together.
fn system_containers(server: &Node, about: &About) -> Vec<Value> {
    let socket = server.settings.endpoint.trim_start_matches("unix://");
    let runtime = process::listener_of(Path::new(socket)).map(|pid| pid.to_string());
    let processes = [("kubelet", Some("self".to_string())), ("runtime", runtime)];
    let mut all: Vec<Value> = processes
        .into_iter()
        .filter_map(|(name, pid)| {
            let process = process::read(&pid?)?;
            let rate = server.rate(Instant::now(), Path::new(name), process.cpu_ns);
            Some(json!({
                "name": name, "startTime": rfc3339(process.started_ms),
                "cpu": cpu(about, Some(process.cpu_ns), rate),
                "memory": {
                    "time": about.time, "usageBytes": process.rss, "workingSetBytes": process.rss,
                    "rssBytes": process.rss, "pageFaults": process.page_faults,
                    "majorPageFaults": process.major_page_faults,
                },
            }))
        })
        .collect();
    if let Some((group, usage)) = server.cgroups.all_pods() {
        let rate = usage.cpu_ns.and_then(|ns| server.rate(Instant::now(), &group, ns));
        all.push(json!({ "name": "pods", "cpu": cpu(about, usage.cpu_ns, rate), "memory": memory_json(about, &usage) }));
    }
    all
}

fn pod_json(pod: &PodFigures, about: &About) -> Value {
    let empty = PodDisk::default();
    let disk = about.disks.get(&pod.incarnation).unwrap_or(&empty);
    let mut ephemeral = FolderUsage { complete: true, ..FolderUsage::default() };
    for usage in disk.logs.values().chain(disk.volumes.iter().filter(|v| v.ephemeral).map(|v| &v.used)) {
        ephemeral.add(*usage);
    }
    for (bytes, inodes) in pod.containers.iter().filter_map(|container| about.layers.get(&container.id)) {
        ephemeral.add(FolderUsage { bytes: *bytes, inodes: *inodes, complete: true });
    }
    let volumes = disk.volumes.iter().map(|volume| {
        let mut value = fs_json(about, &volume.system, Some(volume.used.bytes), Some(volume.used.inodes));
        value["name"] = json!(volume.name);
        value
    });
    let mut value = with_usage(
        &pod.figures,
        about,
        json!({
            "podRef": { "name": pod.name, "namespace": pod.namespace, "uid": pod.uid },
            "startTime": rfc3339(pod.created_at / 1_000_000),
            "containers": pod.containers.iter().map(|container| container_json(container, disk, about)).collect::<Vec<_>>(),
            "volume": volumes.collect::<Vec<_>>(),
            "ephemeral-storage": fs_json(about, &about.logs, Some(ephemeral.bytes), Some(ephemeral.inodes)),
            "process_stats": { "process_count": pod.figures.usage.processes },
        }),
    );
    if let Some(network) = network_json(about, &pod.interfaces) {
        value["network"] = network;
    }
    value
}

fn container_json(container: &ContainerFigures, disk: &PodDisk, about: &About) -> Value {
    let mut value = with_usage(
        &container.figures,
        about,
        json!({ "name": container.name, "startTime": rfc3339(container.created_at / 1_000_000) }),
    );
    if let Some((system, _)) = &about.images {
        let layer = about.layers.get(&container.id);
        value["rootfs"] = fs_json(about, system, layer.map(|layer| layer.0), layer.map(|layer| layer.1));
    }
    let logs = disk.logs.get(&container.name);
    value["logs"] = fs_json(about, &about.logs, logs.map(|logs| logs.bytes), logs.map(|logs| logs.inodes));
    value
}

fn with_usage(figures: &Figures, about: &About, mut value: Value) -> Value {
    value["cpu"] = cpu(about, figures.usage.cpu_ns, figures.cpu_rate);
    value["memory"] = memory_json(about, &figures.usage);
    value["swap"] = some(about, [("swapUsageBytes", figures.usage.swap)]);
    value
}

/// An object of those figures that are known.
fn some<const N: usize>(about: &About, figures: [(&str, Option<u64>); N]) -> Value {
    let mut value = Map::from_iter([("time".to_string(), json!(about.time))]);
    value.extend(figures.into_iter().filter_map(|(name, figure)| Some((name.to_string(), json!(figure?)))));
    Value::Object(value)
}

fn cpu(about: &About, ns: Option<u64>, rate: Option<u64>) -> Value {
    some(about, [("usageNanoCores", rate), ("usageCoreNanoSeconds", ns)])
}

fn memory_json(about: &About, usage: &Usage) -> Value {
    let available = usage.memory_limit.and_then(|limit| Some(limit.saturating_sub(usage.working_set?)));
    some(
        about,
        [
            ("availableBytes", available),
            ("usageBytes", usage.memory),
            ("workingSetBytes", usage.working_set),
            ("rssBytes", usage.rss),
            ("pageFaults", usage.page_faults),
            ("majorPageFaults", usage.major_page_faults),
        ],
    )
}

fn fs_json(about: &About, system: &FileSystem, used: Option<u64>, inodes_used: Option<u64>) -> Value {
    some(
        about,
        [
            ("availableBytes", Some(system.available)),
            ("capacityBytes", Some(system.capacity)),
            ("usedBytes", used),
            ("inodesFree", Some(system.inodes_free)),
            ("inodes", Some(system.inodes)),
            ("inodesUsed", inodes_used),
        ],
    )
}

fn network_json(about: &About, interfaces: &[Interface]) -> Option<Value> {
    let one = |interface: &Interface| {
        json!({
            "name": interface.name, "rxBytes": interface.rx_bytes, "rxErrors": interface.rx_errors,
            "txBytes": interface.tx_bytes, "txErrors": interface.tx_errors,
        })
    };
    let mut value = one(network::main_of(interfaces)?);
    value["time"] = json!(about.time);
    value["interfaces"] = interfaces.iter().map(one).collect();
    Some(value)
}
