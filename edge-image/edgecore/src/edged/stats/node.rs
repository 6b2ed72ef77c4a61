//! The machine as a whole: memory, processor time, process numbers.

use std::fs;

/// Bytes, from /proc/meminfo: it says the same under cgroup v1, v2 and none, and the root group of v2 has no figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub total: u64,
    /// Total less free, page cache included.
    pub usage: u64,
    /// Usage less what of the page cache is given up first. kubelet evicts by `total - working_set`.
    pub working_set: u64,
    pub rss: u64,
    pub swap_total: u64,
    pub swap_free: u64,
}

impl Memory {
    pub fn read() -> Option<Memory> {
        Memory::parse(&fs::read_to_string("/proc/meminfo").ok()?)
    }

    /// `None` without total and free.
    pub fn parse(meminfo: &str) -> Option<Memory> {
        let bytes = |key: &str| -> Option<u64> {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
            kib.checked_mul(1024)
        };
        let total = bytes("MemTotal")?;
        let usage = total.saturating_sub(bytes("MemFree")?);
        Some(Memory {
            total,
            usage,
            working_set: usage.saturating_sub(bytes("Inactive(file)").unwrap_or(0)),
            rss: bytes("AnonPages").unwrap_or(0),
            swap_total: bytes("SwapTotal").unwrap_or(0),
            swap_free: bytes("SwapFree").unwrap_or(0),
        })
    }

    /// What eviction thresholds (`memory.available`) are compared with.
    pub fn available(&self) -> u64 {
        self.total.saturating_sub(self.working_set)
    }
}

/// Processor time that the machine spent since boot, in nanoseconds, idle and I/O wait left out.
pub fn cpu_ns() -> Option<u64> {
    parse_stat_cpu(&fs::read_to_string("/proc/stat").ok()?)
}

/// /proc/stat counts in USER_HZ, which is 100 on every architecture that Linux and we run on.
const NS_PER_TICK: u64 = 10_000_000;

pub(crate) fn parse_stat_cpu(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest times are in user already.
    let busy = [0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at)).fold(0u64, |a, b| a.saturating_add(*b));
    (ticks.len() >= 4).then_some(busy.saturating_mul(NS_PER_TICK))
}

/// Threads that exist and how many there can be, the smaller of the two kernel limits. (`pid.available` is their difference.)
pub fn processes() -> Option<(u64, u64)> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limits = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
    let max = limits.into_iter().flatten().min()?;
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    let current = text.split_whitespace().nth(3)?.split('/').nth(1)?.parse().ok()?;
    Some((current, max))
}

/// Page faults since boot, and those of them that read a disk.
pub fn page_faults() -> (Option<u64>, Option<u64>) {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    (super::value_of(&text, "pgfault"), super::value_of(&text, "pgmajfault"))
}

/// Unix seconds.
pub fn boot_time() -> Option<i64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}
