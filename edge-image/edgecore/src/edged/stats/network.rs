//! Network interfaces of a network namespace, from /proc/<pid>/net/dev.

use std::fs;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// Those of the namespace that process `pid` is in, loopback left out.
pub fn of_process(pid: u32) -> Vec<Interface> {
    parse_net_dev(&fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default())
}

/// Of the host, or where this process is.
pub fn of_host() -> Vec<Interface> {
    parse_net_dev(&fs::read_to_string("/proc/self/net/dev").unwrap_or_default())
}

pub(crate) fn parse_net_dev(text: &str) -> Vec<Interface> {
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let n: Vec<u64> = rest.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let name = name.trim().to_string();
        (n.len() >= 12 && name != "lo").then(|| Interface {
            name,
            rx_bytes: n[0],
            rx_packets: n[1],
            rx_errors: n[2],
            rx_dropped: n[3],
            tx_bytes: n[8],
            tx_packets: n[9],
            tx_errors: n[10],
            tx_dropped: n[11],
        })
    };
    text.lines().filter_map(line).collect()
}

/// The one that carries the default route, by convention and by order: `eth0`, else the first.
pub fn main_of(interfaces: &[Interface]) -> Option<&Interface> {
    interfaces.iter().find(|interface| interface.name == "eth0").or(interfaces.first())
}
