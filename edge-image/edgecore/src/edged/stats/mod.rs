//! What the node and its pods use: control groups (v1 and v2), /proc and file systems, read when somebody asks.
//!
//! Not here: what is done about it (`pressure`), how it is told (`kubelet_api`). Nothing is sampled, cached or remembered here.
//!
//! Invariants
//! - A file that is missing or damaged is a figure that is not known (`None`), never a zero and never an error of the whole.
//! - No walk is without a bound.
//!
//! Start at [`cgroup::Cgroups`], [`node::Memory`], [`disk::file_system`].

pub mod cgroup;
pub mod disk;
pub mod network;
pub mod node;
pub mod process;
pub mod rates;

/// `key value` lines, as memory.stat and /proc/vmstat have them.
pub(crate) fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Entry for a fuzzer: every reader of text here. Total.
pub fn fuzz_stats(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = (node::Memory::parse(&text), node::parse_stat_cpu(&text), network::parse_net_dev(&text));
    process::fuzz_process(&text);
    let _ = (cgroup::parse_io_v1(&text), cgroup::parse_io_v2(&text), value_of(&text, "cache"));
}

#[cfg(test)]
mod tests;
