//! The systemd driver: what systemctl is told, so that the slices of pods have their limits.
//!
//! Under systemd the tree belongs to PID 1: a value that somebody else writes is overwritten when a unit changes. A kubelet
//! talks to systemd over D-Bus; so does runc, which makes the container's scope and names its slice, and systemd then makes the
//! slice with default limits. Kinglet sets the slice's limits before that with `systemctl set-property --runtime`, which loads
//! a slice that has no unit file, keeps the values for its next start, and needs no D-Bus client in the agent.

use super::{
    names::Name,
    tree::Version,
    values::{Limits, PERIOD_US, weight},
};

/// Arguments of systemctl that set a slice's limits; `None`: there are none to set.
pub fn set_property(name: &Name, limits: &Limits, version: Version) -> Option<Vec<String>> {
    let mut properties = Vec::new();
    if let Some(shares) = limits.shares {
        properties.push(match version {
            Version::V1 => format!("CPUShares={shares}"),
            Version::V2 => format!("CPUWeight={}", weight(shares)),
        });
    }
    if let Some(quota) = limits.quota_us {
        properties.push(format!("CPUQuotaPeriodSec={}ms", PERIOD_US / 1000));
        // A percentage of one core, rounded up as kubelet does: a pod never gets less than its limit.
        properties.push(format!("CPUQuota={}%", (quota * 100).div_ceil(PERIOD_US)));
    }
    if let Some(bytes) = limits.memory_bytes {
        properties.push(match version {
            Version::V1 => format!("MemoryLimit={bytes}"),
            Version::V2 => format!("MemoryMax={bytes}"),
        });
    }
    if let Some(pids) = limits.pids {
        properties.push(format!("TasksMax={pids}"));
    }
    if properties.is_empty() {
        return None;
    }
    let mut arguments = vec!["set-property".to_string(), "--runtime".into(), name.slice()];
    arguments.append(&mut properties);
    Some(arguments)
}

/// What takes a pod's slice away again: the unit, then the values that were kept for it.
pub fn remove(slice: &str) -> [Vec<String>; 2] {
    [["stop", slice].map(String::from).to_vec(), ["revert", slice].map(String::from).to_vec()]
}
