//! What this machine has for pods, and what of it is kept from them: read by `node` for the Node's status and by `edged` for
//! admission, so that both count the same.
//!
//! Source: "Reserve Compute Resources for System Daemons": allocatable = capacity - kubeReserved - systemReserved - evictionHard;
//! the control group of all pods is limited to the same without evictionHard.

use std::{collections::BTreeMap, fs, path::Path};

use crate::{config::Kubelet, quantity};

/// Kubernetes' `memory.available` default. On a machine where that would be more than an eighth, an eighth: the default was
/// made for servers.
const MEMORY_AVAILABLE_MIN_BYTES: u64 = 100 * 1024 * 1024;
/// Kubernetes' `nodefs.available` default.
const DISK_AVAILABLE_MIN: &str = "10%";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    /// Of the file system that holds the pods' volumes.
    pub disk_bytes: u64,
    /// `hugepages-2Mi` and its kin: bytes that are set aside.
    pub huge: BTreeMap<String, u64>,
}

impl Capacity {
    /// This machine. What cannot be read is zero, and zero is no reason to refuse a pod.
    pub fn read(root_directory: &Path) -> Capacity {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpus = cpus_in_list(read("/sys/devices/system/cpu/online").trim())
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |count| count.get() as u64));
        Capacity {
            cpu_milli: cpus * 1000,
            memory_bytes: meminfo_kib(&read("/proc/meminfo"), "MemTotal:") * 1024,
            disk_bytes: disk(root_directory).0,
            huge: huge_pages(),
        }
    }

    /// Less what is reserved for the system and the agent.
    pub fn less_reserved(&self, kubelet: &Kubelet) -> Capacity {
        let reserved = |resource: &str| -> u64 {
            let given = [&kubelet.system_reserved, &kubelet.kube_reserved];
            let milli = given.iter().filter_map(|group| quantity::parse_milli(group.get(resource)?));
            u64::try_from(milli.sum::<i128>()).unwrap_or(0)
        };
        Capacity {
            cpu_milli: self.cpu_milli.saturating_sub(reserved("cpu")),
            memory_bytes: self.memory_bytes.saturating_sub(reserved("memory") / 1000),
            disk_bytes: self.disk_bytes.saturating_sub(reserved("ephemeral-storage") / 1000),
            huge: self.huge.clone(),
        }
    }

    /// Less also the thresholds at which pods are evicted: what a scheduler may give away. Huge pages are not memory for others.
    pub fn allocatable(&self, kubelet: &Kubelet) -> Capacity {
        let left = self.less_reserved(kubelet);
        // Thresholds that are given replace all of the defaults, as with kubelet.
        let (memory, disk) = match &kubelet.eviction_hard {
            Some(given) => {
                let of = |signal: &str, whole| given.get(signal).and_then(|text| part(text, whole));
                (of("memory.available", self.memory_bytes), of("nodefs.available", self.disk_bytes))
            }
            None => (
                Some(MEMORY_AVAILABLE_MIN_BYTES.min(self.memory_bytes / 8)),
                part(DISK_AVAILABLE_MIN, self.disk_bytes),
            ),
        };
        let (memory, disk) = (memory.unwrap_or(0), disk.unwrap_or(0));
        let huge: u64 = self.huge.values().sum();
        Capacity {
            memory_bytes: left.memory_bytes.saturating_sub(memory).saturating_sub(huge),
            disk_bytes: left.disk_bytes.saturating_sub(disk),
            ..left
        }
    }
}

/// `100Mi` or `10%` of `whole`.
fn part(text: &str, whole: u64) -> Option<u64> {
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent: f64 = percent.parse().ok().filter(|percent| (0.0..=100.0).contains(percent))?;
            Some((whole as f64 * percent / 100.0) as u64)
        }
        None => u64::try_from(quantity::parse_units(text)?).ok(),
    }
}

pub fn meminfo_kib(text: &str, field: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// `0-3,6` has five.
pub fn cpus_in_list(text: &str) -> Option<u64> {
    let mut count = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        count += last.checked_sub(first)? + 1;
    }
    Some(count)
}

/// Total and available bytes of the file system that holds `path` or will hold it.
pub fn disk(path: &Path) -> (u64, u64) {
    let existing = path.ancestors().find_map(|ancestor| nix::sys::statvfs::statvfs(ancestor).ok());
    existing.map_or((0, 0), |vfs| {
        let block = vfs.fragment_size();
        (vfs.blocks() * block, vfs.blocks_available() * block)
    })
}

/// Page sizes of which the machine has set pages aside. Others are not offered.
pub fn huge_pages() -> BTreeMap<String, u64> {
    let size = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let count: u64 = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
        let name = match kib {
            kib if kib % (1 << 20) == 0 => format!("hugepages-{}Gi", kib >> 20),
            kib if kib % (1 << 10) == 0 => format!("hugepages-{}Mi", kib >> 10),
            kib => format!("hugepages-{kib}Ki"),
        };
        (count > 0).then_some((name, count * kib * 1024))
    };
    fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten().filter_map(size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocatable_is_capacity_less_what_is_reserved_and_the_eviction_thresholds() {
        let capacity = Capacity {
            cpu_milli: 4000,
            memory_bytes: 1 << 30,
            disk_bytes: 1000,
            huge: [("hugepages-2Mi".to_string(), 4 << 20)].into(),
        };
        let mut kubelet = Kubelet::default();
        kubelet.system_reserved.insert("cpu".into(), "100m".into());
        kubelet.kube_reserved.insert("memory".into(), "24Mi".into());
        kubelet.kube_reserved.insert("cpu".into(), "0.4".into());
        assert_eq!(capacity.less_reserved(&kubelet).memory_bytes, 1000 << 20);
        let allocatable = capacity.allocatable(&kubelet);
        assert_eq!((allocatable.cpu_milli, allocatable.disk_bytes), (3500, 900));
        assert_eq!(allocatable.memory_bytes, (1000 - 100 - 4) << 20, "less 100Mi and the huge pages");
        kubelet.eviction_hard = Some([("memory.available".into(), "25%".into())].into());
        let allocatable = capacity.allocatable(&kubelet);
        assert_eq!((allocatable.memory_bytes, allocatable.disk_bytes), ((1000 - 256 - 4) << 20, 1000));
        let small = Capacity { memory_bytes: 256 << 20, ..Capacity::default() };
        assert_eq!(small.allocatable(&Kubelet::default()).memory_bytes, 224 << 20, "an eighth");
    }

    #[test]
    fn texts_of_proc() {
        assert_eq!(meminfo_kib("MemTotal:         436216 kB\nMemFree: 1 kB\n", "MemTotal:"), 436216);
        assert_eq!(cpus_in_list("0-3"), Some(4));
        assert_eq!(cpus_in_list("0,2-3"), Some(3));
        assert_eq!(cpus_in_list(""), None);
        assert_eq!(cpus_in_list("3-1"), None);
        let (total, available) = disk(Path::new("/surely/not/there"));
        assert!(total >= available && total > 0);
        assert!(Capacity::read(Path::new("/")).memory_bytes > 0);
    }
}
