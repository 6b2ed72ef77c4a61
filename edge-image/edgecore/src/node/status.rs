//! What the Node object says, and when it is said again.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Facts, NodeConfig};
use crate::{
    capacity::Capacity,
    config::node_labels,
    contract::{Condition, DeviceCounts, NodeImage, RuntimeStatus},
};

/// What a stock scheduler reads as the kubelet's version, and ours behind it.
pub const KUBELET_VERSION: &str = concat!("v1.32.10-kinglet-v", env!("CARGO_PKG_VERSION"));
const KUBE_PROXY_VERSION: &str = "v1.32.10";

/// What `edged` tells of the node.
#[derive(Clone, Debug, Default)]
pub struct Has {
    pub devices: DeviceCounts,
    pub images: Vec<NodeImage>,
}

/// A patch and what it says, for [`Status::accepted`].
#[derive(Clone, Debug)]
pub struct Patch {
    pub text: Value,
    told: Value,
}

#[derive(Debug)]
pub struct Status {
    node: String,
    registered: bool,
    /// Type -> (status, reason, message, since).
    conditions: BTreeMap<String, Shown>,
    /// The status without heartbeat times.
    current: Value,
    /// What the cloud has accepted on this link, and when.
    told: Option<(Value, Instant)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    status: bool,
    reason: String,
    message: String,
    since: String,
}

impl Status {
    pub fn new(node: &str) -> Status {
        Status {
            node: node.into(),
            registered: false,
            conditions: BTreeMap::new(),
            current: Value::Null,
            told: None,
        }
    }

    pub fn is_registered(&self) -> bool {
        self.registered
    }

    pub fn registered(&mut self) {
        self.registered = true;
    }

    pub fn unregistered(&mut self) {
        self.link_lost();
    }

    /// Others may have written while we were away.
    pub fn say_again(&mut self) {
        self.told = None;
    }

    /// The cloud behind the next link may know nothing of us.
    pub fn link_lost(&mut self) {
        self.registered = false;
        self.told = None;
    }

    /// Takes in what is measured now.
    pub fn measure(
        &mut self,
        cfg: &NodeConfig,
        facts: &Facts,
        runtime: &RuntimeStatus,
        raised: &[Condition],
        has: &Has,
        now: jiff::Timestamp,
    ) {
        let unsaid =
            |condition: &Condition| !raised.iter().any(|r| r.condition_type == condition.condition_type);
        let usual = sufficient().into_iter().filter(unsaid).chain([ready(runtime)]);
        for condition in usual.chain(raised.iter().cloned()) {
            self.show(condition, now);
        }
        self.current = render(cfg, facts, runtime, has, &self.node);
    }

    fn show(&mut self, condition: Condition, now: jiff::Timestamp) {
        let Condition { condition_type, status, reason, message } = condition;
        let before = self.conditions.get(&condition_type).filter(|shown| shown.status == status);
        let since = before.map_or_else(|| seconds(now), |shown| shown.since.clone());
        self.conditions.insert(condition_type, Shown { status, reason, message, since });
    }

    /// Ready last, as Kubernetes lists it.
    fn condition_list(&self, heartbeat: Option<&str>) -> Value {
        let mut list: Vec<(&String, &Shown)> = self.conditions.iter().collect();
        list.sort_by_key(|(name, _)| (*name == "Ready", (*name).clone()));
        list.into_iter()
            .map(|(name, shown)| {
                let mut condition = json!({
                    "type": name,
                    "status": if shown.status { "True" } else { "False" },
                    "reason": shown.reason,
                    "message": shown.message,
                    "lastTransitionTime": shown.since,
                });
                if let Some(heartbeat) = heartbeat {
                    condition["lastHeartbeatTime"] = heartbeat.into();
                }
                condition
            })
            .collect()
    }

    /// The whole Node for registration.
    pub fn object(&self, cfg: &NodeConfig, facts: &Facts) -> Value {
        let mut status = self.current.clone();
        status["conditions"] = self.condition_list(Some(&seconds(jiff::Timestamp::now())));
        let mut spec = json!({});
        if !cfg.schedulable {
            spec["unschedulable"] = true.into();
        }
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.node,
                "labels": node_labels(&self.node, facts.architecture, &cfg.node_labels),
                "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
            },
            "spec": spec,
            "status": status,
        })
    }

    /// A patch when something changed, or when the last one is `report_every` old.
    pub fn patch(&self, now: Instant, report_every: Duration) -> Option<Patch> {
        let mut said = self.current.clone();
        said["conditions"] = self.condition_list(None);
        // Available memory and disk move all the time and are not part of the status; their pressures are.
        let unchanged =
            self.told.as_ref().is_some_and(|(told, at)| *told == said && now < *at + report_every);
        if unchanged {
            return None;
        }
        let mut status = self.current.clone();
        status["conditions"] = self.condition_list(Some(&seconds(jiff::Timestamp::now())));
        // Addresses merge by type; old ones would stay without this.
        if let Some(addresses) = status["addresses"].as_array_mut() {
            addresses.push(json!({"$patch": "replace"}));
        }
        Some(Patch { text: json!({"status": status}), told: said })
    }

    pub fn accepted(&mut self, patch: Patch, now: Instant) {
        self.told = Some((patch.told, now));
    }
}

/// The list of a Node: capacity or allocatable.
fn amounts(of: &Capacity, pods: u32, devices: impl Iterator<Item = (String, u64)>) -> Value {
    let cpu = match of.cpu_milli {
        milli if milli % 1000 == 0 => (milli / 1000).to_string(),
        milli => format!("{milli}m"),
    };
    let mut list = json!({
        "cpu": cpu,
        "memory": format!("{}Ki", of.memory_bytes / 1024),
        "ephemeral-storage": format!("{}Ki", of.disk_bytes / 1024),
        "pods": pods.to_string(),
    });
    for (size, bytes) in &of.huge {
        list[size.as_str()] = format!("{}Ki", bytes / 1024).into();
    }
    for (resource, count) in devices {
        list[resource.as_str()] = count.to_string().into();
    }
    list
}

fn render(cfg: &NodeConfig, facts: &Facts, runtime: &RuntimeStatus, has: &Has, node: &str) -> Value {
    let capacity = Capacity {
        cpu_milli: facts.cpus * 1000,
        memory_bytes: facts.memory_total_kib * 1024,
        disk_bytes: facts.disk_total_bytes,
        huge: facts.huge.clone(),
    };
    let image = |image: &NodeImage| json!({"names": image.names, "sizeBytes": image.size_bytes});
    let images: Vec<Value> = has.images.iter().map(image).collect();
    let whole = has.devices.iter().map(|(name, count)| (name.clone(), count.capacity));
    let usable = has.devices.iter().map(|(name, count)| (name.clone(), count.allocatable));
    let mut addresses = Vec::new();
    if let Some(address) = &facts.address {
        addresses.push(json!({"type": "InternalIP", "address": address}));
    }
    addresses.push(json!({"type": "Hostname", "address": node}));
    let version = match runtime {
        RuntimeStatus::Ready { version } => version.as_str(),
        RuntimeStatus::Unknown | RuntimeStatus::Down { .. } => "containerd://Unknown",
    };
    json!({
        "capacity": amounts(&capacity, cfg.kubelet.max_pods, whole),
        "allocatable": amounts(&capacity.allocatable(&cfg.kubelet), cfg.kubelet.max_pods, usable),
        "addresses": addresses,
        "images": images,
        "nodeInfo": {
            "machineID": facts.machine_id,
            "systemUUID": facts.system_uuid,
            "bootID": facts.boot_id,
            "kernelVersion": facts.kernel,
            "osImage": facts.os_image,
            "containerRuntimeVersion": version,
            "kubeletVersion": KUBELET_VERSION,
            "kubeProxyVersion": KUBE_PROXY_VERSION,
            "operatingSystem": "linux",
            "architecture": facts.architecture,
        },
    })
}

fn ready(runtime: &RuntimeStatus) -> Condition {
    let (status, reason, message) = match runtime {
        RuntimeStatus::Ready { .. } => (true, "EdgeReady", "the node takes pods"),
        RuntimeStatus::Unknown => {
            (false, "ContainerRuntimeUnknown", "the container runtime was not asked yet")
        }
        RuntimeStatus::Down { message } => (false, "ContainerRuntimeUnavailable", message.as_str()),
    };
    condition("Ready", status, reason, message)
}

/// What the node is not short of. `edged` raises the opposite; it alone knows the thresholds.
fn sufficient() -> [Condition; 3] {
    [
        condition(
            "MemoryPressure",
            false,
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        condition("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        condition("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ]
}

fn condition(condition_type: &str, status: bool, reason: &str, message: &str) -> Condition {
    Condition {
        condition_type: condition_type.into(),
        status,
        reason: reason.into(),
        message: message.into(),
    }
}

/// Kubernetes' `Time`: whole seconds, UTC.
fn seconds(now: jiff::Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
