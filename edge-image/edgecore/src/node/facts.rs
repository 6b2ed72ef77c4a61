//! What the machine is and has, read from /proc and its like.

use std::{fs, future::Future, net::UdpSocket};

use super::NodeConfig;
use crate::{
    capacity::{cpus_in_list, disk, huge_pages, meminfo_kib},
    config::architecture,
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub cpus: u64,
    pub memory_total_kib: u64,
    pub memory_available_kib: u64,
    /// Of the file system that holds the pods' volumes.
    pub disk_total_bytes: u64,
    pub disk_available_bytes: u64,
    /// Huge pages that were set aside, in bytes by resource name.
    pub huge: std::collections::BTreeMap<String, u64>,
    pub pids_max: u64,
    pub pids: u64,
    pub address: Option<String>,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel: String,
    pub os_image: String,
    /// Go's word: `arm64`, `amd64`, `arm`.
    pub architecture: &'static str,
}

/// Where facts come from; a test has its own.
pub trait Machine: Send + Sync {
    fn facts(&self, cfg: &NodeConfig) -> impl Future<Output = Facts> + Send;
}

/// This machine.
pub struct ProcMachine;

impl Machine for ProcMachine {
    async fn facts(&self, cfg: &NodeConfig) -> Facts {
        let meminfo = read("/proc/meminfo");
        let (disk_total_bytes, disk_available_bytes) = disk(&cfg.root_directory);
        let machine_id = read("/etc/machine-id").trim().to_string();
        let system_uuid = read("/sys/class/dmi/id/product_uuid").trim().to_string();
        Facts {
            cpus: cpus_in_list(read("/sys/devices/system/cpu/online").trim()).unwrap_or_else(|| {
                std::thread::available_parallelism().map_or(1, |count| count.get() as u64)
            }),
            memory_total_kib: meminfo_kib(&meminfo, "MemTotal:"),
            memory_available_kib: meminfo_kib(&meminfo, "MemAvailable:"),
            disk_total_bytes,
            disk_available_bytes,
            huge: huge_pages(),
            pids_max: read("/proc/sys/kernel/pid_max").trim().parse().unwrap_or(0),
            pids: threads_in_loadavg(&read("/proc/loadavg")),
            address: if cfg.node_ip.is_empty() {
                route_address(&cfg.cloud).await
            } else {
                Some(cfg.node_ip.clone())
            },
            system_uuid: if system_uuid.is_empty() { machine_id.clone() } else { system_uuid },
            machine_id,
            boot_id: read("/proc/sys/kernel/random/boot_id").trim().to_string(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_string(),
            os_image: os_image(&read("/etc/os-release")),
            architecture: architecture(),
        }
    }
}

/// A file that is not there is a fact that is not known.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Scheduling entities that exist: the number after the slash in `0.1 0.2 0.3 2/345 6789`.
fn threads_in_loadavg(text: &str) -> u64 {
    let field = text.split_whitespace().nth(3).and_then(|field| field.split('/').nth(1));
    field.and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn os_image(text: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.map_or_else(|| "Linux".into(), |name| name.trim_matches('"').to_string())
}

/// Our address on the way to the cloud. Connecting a datagram socket asks the kernel for the route and sends nothing.
async fn route_address(cloud: &str) -> Option<String> {
    let peer = tokio::net::lookup_host(cloud).await.ok()?.next()?;
    let socket = UdpSocket::bind(if peer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).ok()?;
    socket.connect(peer).ok()?;
    socket.local_addr().ok().map(|address| address.ip().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_proc() {
        assert_eq!(threads_in_loadavg("0.52 0.58 0.59 2/345 6789\n"), 345);
        assert_eq!(
            os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\n"),
            "Debian GNU/Linux 13 (trixie)"
        );
    }

    #[tokio::test]
    async fn this_machine_has_something() {
        assert_eq!(route_address("127.0.0.1:9").await.as_deref(), Some("127.0.0.1"));
        assert_eq!(route_address("not a host:1").await, None);
    }
}
