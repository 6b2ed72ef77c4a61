//! Kernel parameters that a pod may set: the safe ones, and those that the node's configuration allows.

use crate::edged::{pod::Pod, render::security::sysctls};

/// Kubernetes 1.32's safe set: each is namespaced and cannot hurt another pod.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];
const IPC: [&str; 3] = ["kernel.sem", "kernel.shm*", "kernel.msg*"];

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

/// `allowed`: names, or prefixes that end in `*` (kubelet's `allowedUnsafeSysctls`).
pub fn check(pod: &Pod, allowed: &[String]) -> Result<(), String> {
    for (name, _) in sysctls(pod) {
        let known = SAFE.contains(&name.as_str()) || allowed.iter().any(|pattern| matches(pattern, &name));
        if !known {
            return Err(format!("{name:?} not allowlisted"));
        }
        let ipc = name.starts_with("fs.mqueue.") || IPC.iter().any(|pattern| matches(pattern, &name));
        if ipc && pod.spec.host_ipc {
            return Err(format!("{name:?} not allowed with host ipc enabled"));
        }
        if name.starts_with("net.") && pod.spec.host_network {
            return Err(format!("{name:?} not allowed with host net enabled"));
        }
    }
    Ok(())
}
