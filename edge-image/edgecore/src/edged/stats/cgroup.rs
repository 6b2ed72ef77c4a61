//! Figures of control groups. One reader for v1 (a tree per controller) and v2 (one tree).
//!
//! Pods are found by walking below `kubepods`, where `edged::cgroup` puts them for both drivers, so neither the runtime nor a
//! pod's spec is needed to know what a pod uses.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::value_of;
use crate::edged::cgroup::{CgroupConfig, Name};

/// Directories looked at in one walk; more are not seen. A pod has one for itself and one per container.
const DIRS_MAX: usize = 8192;
const DEPTH_MAX: usize = 4;
/// A v1 limit at or above this is none: the kernel rounds "no limit" to pages.
const NO_LIMIT: u64 = 1 << 62;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// The mounted hierarchies.
#[derive(Clone, Debug)]
pub struct Cgroups {
    root: PathBuf,
    version: Version,
    /// Below which all pods are, relative to a hierarchy's root.
    top: PathBuf,
}

/// What one group and everything below it uses. Times in nanoseconds since the group was made, sizes in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_ns: Option<u64>,
    pub cpu_user_ns: Option<u64>,
    pub cpu_system_ns: Option<u64>,
    pub cpu_periods: Option<u64>,
    pub cpu_throttled_periods: Option<u64>,
    pub cpu_throttled_ns: Option<u64>,
    /// Page cache included.
    pub memory: Option<u64>,
    /// Without the part of the page cache that goes first: what kubelet's eviction goes by.
    pub working_set: Option<u64>,
    pub rss: Option<u64>,
    pub cache: Option<u64>,
    pub mapped_file: Option<u64>,
    pub swap: Option<u64>,
    pub page_faults: Option<u64>,
    pub major_page_faults: Option<u64>,
    /// `None`: no limit.
    pub memory_limit: Option<u64>,
    /// Processes that the kernel ended for want of memory: in this group alone (v1), or with those below it (v2).
    pub oom_kills: Option<u64>,
    pub processes: Option<u64>,
    pub read_bytes: Option<u64>,
    pub written_bytes: Option<u64>,
}

/// A pod's group and its containers'. Paths are relative to a hierarchy's root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodGroup {
    pub path: PathBuf,
    /// By container id, the sandbox's own included.
    pub containers: BTreeMap<String, PathBuf>,
}

impl Cgroups {
    /// Where the agent's own configuration puts pods.
    pub fn new(config: &CgroupConfig) -> Cgroups {
        let mut top = Name::kubepods(&config.root).path(config.driver);
        if !config.per_qos {
            top.pop();
        }
        let controllers = config.mount.join("cgroup.controllers");
        let version = if controllers.exists() { Version::V2 } else { Version::V1 };
        Cgroups { root: config.mount.clone(), version, top }
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// The groups of all pods, by incarnation; containers that lie in no pod's group are under the empty one.
    pub fn pods(&self) -> BTreeMap<String, PodGroup> {
        let mut pods = BTreeMap::new();
        let mut budget = DIRS_MAX;
        self.walk(&self.top, None, 0, &mut budget, &mut pods);
        pods
    }

    /// All pods together; `None`: there is no such group.
    pub fn all_pods(&self) -> Option<(PathBuf, Usage)> {
        let top = self.top.clone();
        if !self.tree("memory").join(&top).is_dir() {
            return None;
        }
        let usage = self.usage(&top);
        Some((top, usage))
    }

    fn walk(
        &self,
        at: &Path,
        pod: Option<&str>,
        depth: usize,
        budget: &mut usize,
        pods: &mut BTreeMap<String, PodGroup>,
    ) {
        for entry in fs::read_dir(self.tree("memory").join(at)).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || *budget == 0 {
                continue;
            }
            *budget -= 1;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = at.join(&name);
            match (pod, pod_of(&name), container_of(&name)) {
                (pod, _, Some(id)) => {
                    let pod = pods.entry(pod.unwrap_or_default().to_string()).or_default();
                    pod.containers.insert(id.to_string(), path);
                }
                (None, Some(incarnation), _) => {
                    pods.entry(incarnation.clone()).or_default().path = path.clone();
                    self.walk(&path, Some(&incarnation), depth + 1, budget, pods);
                }
                (None, None, _) if depth < DEPTH_MAX => self.walk(&path, None, depth + 1, budget, pods),
                _ => {}
            }
        }
    }

    /// `path` as in [`PodGroup`]; empty for the whole machine (v1; a v2 root has few files).
    pub fn usage(&self, path: &Path) -> Usage {
        match self.version {
            Version::V1 => self.usage_v1(path),
            Version::V2 => self.usage_v2(path),
        }
    }

    /// A process in the group, if there is one.
    pub fn process(&self, path: &Path) -> Option<u32> {
        let text = self.text("memory", path, "cgroup.procs")?;
        text.lines().next()?.parse().ok()
    }

    fn tree(&self, controller: &str) -> PathBuf {
        match self.version {
            Version::V1 => self.root.join(controller),
            Version::V2 => self.root.clone(),
        }
    }

    fn text(&self, controller: &str, path: &Path, file: &str) -> Option<String> {
        fs::read_to_string(self.tree(controller).join(path).join(file)).ok()
    }

    fn number(&self, controller: &str, path: &Path, file: &str) -> Option<u64> {
        self.text(controller, path, file)?.trim().parse().ok()
    }

    fn usage_v1(&self, path: &Path) -> Usage {
        let stat = self.text("memory", path, "memory.stat").unwrap_or_default();
        let cpu = self.text("cpu", path, "cpu.stat").unwrap_or_default();
        let memory = self.number("memory", path, "memory.usage_in_bytes");
        let inactive = value_of(&stat, "total_inactive_file");
        let io =
            self.text("blkio", path, "blkio.throttle.io_service_bytes").and_then(|text| parse_io_v1(&text));
        Usage {
            cpu_ns: self.number("cpuacct", path, "cpuacct.usage"),
            cpu_user_ns: self.number("cpuacct", path, "cpuacct.usage_user"),
            cpu_system_ns: self.number("cpuacct", path, "cpuacct.usage_sys"),
            cpu_periods: value_of(&cpu, "nr_periods"),
            cpu_throttled_periods: value_of(&cpu, "nr_throttled"),
            cpu_throttled_ns: value_of(&cpu, "throttled_time"),
            memory,
            working_set: working_set(memory, inactive),
            rss: value_of(&stat, "total_rss"),
            cache: value_of(&stat, "total_cache"),
            mapped_file: value_of(&stat, "total_mapped_file"),
            swap: value_of(&stat, "total_swap"),
            page_faults: value_of(&stat, "total_pgfault"),
            major_page_faults: value_of(&stat, "total_pgmajfault"),
            memory_limit: self
                .number("memory", path, "memory.limit_in_bytes")
                .filter(|limit| *limit < NO_LIMIT),
            oom_kills: self
                .text("memory", path, "memory.oom_control")
                .and_then(|text| value_of(&text, "oom_kill")),
            processes: self.number("pids", path, "pids.current"),
            read_bytes: io.map(|io| io.0),
            written_bytes: io.map(|io| io.1),
        }
    }

    fn usage_v2(&self, path: &Path) -> Usage {
        let stat = self.text("", path, "memory.stat").unwrap_or_default();
        let cpu = self.text("", path, "cpu.stat").unwrap_or_default();
        let microseconds = |key| value_of(&cpu, key).map(|us| us.saturating_mul(1000));
        let memory = self.number("", path, "memory.current");
        let io = self.text("", path, "io.stat").map(|text| parse_io_v2(&text));
        Usage {
            cpu_ns: microseconds("usage_usec"),
            cpu_user_ns: microseconds("user_usec"),
            cpu_system_ns: microseconds("system_usec"),
            cpu_periods: value_of(&cpu, "nr_periods"),
            cpu_throttled_periods: value_of(&cpu, "nr_throttled"),
            cpu_throttled_ns: microseconds("throttled_usec"),
            memory,
            working_set: working_set(memory, value_of(&stat, "inactive_file")),
            rss: value_of(&stat, "anon"),
            cache: value_of(&stat, "file"),
            mapped_file: value_of(&stat, "file_mapped"),
            swap: self.number("", path, "memory.swap.current"),
            page_faults: value_of(&stat, "pgfault"),
            major_page_faults: value_of(&stat, "pgmajfault"),
            // `max` is not a number.
            memory_limit: self.number("", path, "memory.max"),
            oom_kills: self.text("", path, "memory.events").and_then(|text| value_of(&text, "oom_kill")),
            processes: self.number("", path, "pids.current"),
            read_bytes: io.map(|io| io.0),
            written_bytes: io.map(|io| io.1),
        }
    }
}

fn working_set(memory: Option<u64>, inactive_file: Option<u64>) -> Option<u64> {
    memory.map(|memory| memory.saturating_sub(inactive_file.unwrap_or(0)))
}

/// `podUID`, or systemd's `kubepods-burstable-podUID.slice`, where dashes of the uid are underscores.
fn pod_of(name: &str) -> Option<String> {
    let incarnation = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod").map(|(_, uid)| uid.replace('_', "-"))?,
        None => name.strip_prefix("pod")?.to_string(),
    };
    (!incarnation.is_empty()).then_some(incarnation)
}

/// The id itself, or systemd's `cri-containerd-ID.scope`.
fn container_of(name: &str) -> Option<&str> {
    let id = match name.strip_suffix(".scope") {
        Some(scope) => scope.rsplit_once('-')?.1,
        None => name,
    };
    (id.len() >= 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

/// `8:0 Read 4096` lines: bytes read and written on all devices.
pub(crate) fn parse_io_v1(text: &str) -> Option<(u64, u64)> {
    let sum = |word: &str| {
        let values = text.lines().filter_map(|line| {
            let mut parts = line.split_whitespace();
            let (_, kind, value) = (parts.next()?, parts.next()?, parts.next()?);
            (kind == word).then(|| value.parse::<u64>().ok()).flatten()
        });
        values.fold(0, u64::saturating_add)
    };
    (!text.is_empty()).then(|| (sum("Read"), sum("Write")))
}

/// `8:0 rbytes=4096 wbytes=0 ...` lines.
pub(crate) fn parse_io_v2(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        let values = text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
        values.fold(0, u64::saturating_add)
    };
    (sum("rbytes="), sum("wbytes="))
}
