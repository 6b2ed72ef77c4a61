//! What the machine is and has, read from /proc and its like.

use std::{fs, future::Future, net::UdpSocket, path::Path};

use super::NodeConfig;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub cpus: u64,
    pub memory_total_kib: u64,
    pub memory_available_kib: u64,
    /// Of the file system that holds the pods' volumes.
    pub disk_total_bytes: u64,
    pub disk_available_bytes: u64,
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

pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        "x86_64" => "amd64",
        other => other,
    }
}

fn meminfo_kib(text: &str, field: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// `0-3,6` has five.
fn cpus_in_list(text: &str) -> Option<u64> {
    let mut count = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        count += last.checked_sub(first)? + 1;
    }
    Some(count)
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

/// Total and available bytes of the file system that holds `path` or will hold it.
fn disk(path: &Path) -> (u64, u64) {
    let existing = path.ancestors().find_map(|ancestor| nix::sys::statvfs::statvfs(ancestor).ok());
    existing.map_or((0, 0), |vfs| {
        let block = vfs.fragment_size();
        (vfs.blocks() * block, vfs.blocks_available() * block)
    })
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
        assert_eq!(meminfo_kib("MemTotal:         436216 kB\nMemFree: 1 kB\n", "MemTotal:"), 436216);
        assert_eq!(cpus_in_list("0-3"), Some(4));
        assert_eq!(cpus_in_list("0,2-3"), Some(3));
        assert_eq!(cpus_in_list(""), None);
        assert_eq!(cpus_in_list("3-1"), None);
        assert_eq!(threads_in_loadavg("0.52 0.58 0.59 2/345 6789\n"), 345);
        assert_eq!(
            os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\n"),
            "Debian GNU/Linux 13 (trixie)"
        );
    }

    #[tokio::test]
    async fn this_machine_has_something() {
        let (total, available) = disk(Path::new("/surely/not/there"));
        assert!(total >= available && total > 0);
        assert_eq!(route_address("127.0.0.1:9").await.as_deref(), Some("127.0.0.1"));
        assert_eq!(route_address("not a host:1").await, None);
    }
}
