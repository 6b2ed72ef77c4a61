//! What the node does when memory, disk or process ids run short: says so, makes room, and in the end evicts pods, one at a time.
//!
//! Not here: stopping the pod (`manager`, by `Input::Fail`), removing images (`images::collect`). `machine` and `rank` decide and are
//! plain values; `usage` reads control groups and disks, `watch` makes room; edged's shell asks them in turn. Source: Kubernetes' documentation,
//! "Node-pressure Eviction", and the words of kubelet's eviction manager.
//!
//! Invariants: a critical or static pod is never evicted; while an evicted pod still stops, no other one is; disk is first made free
//! by removing what nobody uses; a figure that cannot be read is no pressure.

pub mod local;
pub mod machine;
pub mod rank;
pub mod settings;
#[cfg(test)]
mod tests;
pub mod usage;
pub mod watch;

use std::{collections::BTreeMap, time::Duration};

use super::{pod::Pod, status::qos_class};

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// In the order in which they are acted on: memory first.
    Memory,
    NodeDisk,
    NodeInodes,
    ImageDisk,
    ImageInodes,
    Pids,
}

impl Signal {
    pub const ALL: [Signal; 6] = [
        Signal::Memory,
        Signal::NodeDisk,
        Signal::NodeInodes,
        Signal::ImageDisk,
        Signal::ImageInodes,
        Signal::Pids,
    ];

    /// As the configuration names it.
    pub fn name(self) -> &'static str {
        match self {
            Signal::Memory => "memory.available",
            Signal::NodeDisk => "nodefs.available",
            Signal::NodeInodes => "nodefs.inodesFree",
            Signal::ImageDisk => "imagefs.available",
            Signal::ImageInodes => "imagefs.inodesFree",
            Signal::Pids => "pid.available",
        }
    }

    pub fn of(name: &str) -> Option<Signal> {
        Signal::ALL.into_iter().find(|signal| signal.name() == name)
    }

    /// As messages name it.
    pub fn resource(self) -> &'static str {
        match self {
            Signal::Memory => "memory",
            Signal::NodeDisk | Signal::ImageDisk => "ephemeral-storage",
            Signal::NodeInodes | Signal::ImageInodes => "inodes",
            Signal::Pids => "pids",
        }
    }

    pub fn condition(self) -> NodeCondition {
        match self {
            Signal::Memory => NodeCondition::MemoryPressure,
            Signal::Pids => NodeCondition::PidPressure,
            _ => NodeCondition::DiskPressure,
        }
    }

    /// Bytes, not a count.
    pub fn is_bytes(self) -> bool {
        matches!(self, Signal::Memory | Signal::NodeDisk | Signal::ImageDisk)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeCondition {
    DiskPressure,
    MemoryPressure,
    PidPressure,
}

impl NodeCondition {
    pub const ALL: [NodeCondition; 3] =
        [NodeCondition::DiskPressure, NodeCondition::MemoryPressure, NodeCondition::PidPressure];

    pub fn name(self) -> &'static str {
        match self {
            NodeCondition::DiskPressure => "DiskPressure",
            NodeCondition::MemoryPressure => "MemoryPressure",
            NodeCondition::PidPressure => "PIDPressure",
        }
    }

    /// Reason and message when it is so, in kubelet's words.
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            NodeCondition::DiskPressure => ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            NodeCondition::MemoryPressure => {
                ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available")
            }
            NodeCondition::PidPressure => {
                ("KubeletHasInsufficientPID", "kubelet has insufficient PID available")
            }
        }
    }

    /// Reason and message when it is over.
    pub fn words_over(self) -> (&'static str, &'static str) {
        match self {
            NodeCondition::DiskPressure => ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            NodeCondition::MemoryPressure => {
                ("KubeletHasSufficientMemory", "kubelet has sufficient memory available")
            }
            NodeCondition::PidPressure => ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    pub available: u64,
    pub capacity: u64,
}

pub type Readings = BTreeMap<Signal, Level>;

/// A quantity, or a share of the capacity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    Units(u64),
    /// Percent of the capacity, but not more than so many units.
    Percent(f64, u64),
}

impl Amount {
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Amount::Units(units) => units,
            Amount::Percent(percent, units_max) => {
                ((capacity as f64 * percent / 100.0) as u64).min(units_max)
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    pub amount: Amount,
    /// Soft: only after so long.
    pub grace: Option<Duration>,
    /// So much more must be available before it is over.
    pub reclaim: Option<Amount>,
}

/// Why a new pod is not taken while the node has these conditions; `None`: it is taken.
pub fn refuses(pod: &Pod, conditions: &[NodeCondition]) -> Option<String> {
    if conditions.is_empty() || pod.is_critical() {
        return None;
    }
    if conditions == [NodeCondition::MemoryPressure] {
        let tolerates = pod.spec.tolerations.iter().any(|toleration| {
            let key = toleration.key == "node.kubernetes.io/memory-pressure"
                || toleration.key.is_empty() && toleration.operator == "Exists";
            key && (toleration.effect.is_empty() || toleration.effect == "NoSchedule")
        });
        if tolerates || qos_class(pod) != "BestEffort" {
            return None;
        }
    }
    let names: Vec<&str> = conditions.iter().map(|condition| condition.name()).collect();
    Some(format!("The node had condition: [{}]. ", names.join(" ")))
}

/// As Kubernetes writes quantities: the largest binary unit without a rest for bytes, the largest decimal one for counts.
pub fn quantity_text(value: u64, is_bytes: bool) -> String {
    let (base, units) =
        if is_bytes { (1024, ["Ki", "Mi", "Gi", "Ti"]) } else { (1000, ["k", "M", "G", "T"]) };
    let (mut value, mut unit) = (value, "");
    for next in units {
        if value == 0 || value % base != 0 {
            break;
        }
        (value, unit) = (value / base, next);
    }
    format!("{value}{unit}")
}
