//! Control groups of pods: how much each pod, each class of service and all pods together may use.
//!
//! Not here: limits of single containers, which the runtime writes (`render`). Invariants
//! - A pod's group is made and limited before its sandbox.
//! - What cannot be written is told once, with a remedy, and keeps no pod from running.
//! - Only empty groups are removed.
//!
//! Start at [`Cgroups`]; numbers in `values`, places in `names`, files in `tree`, the systemd driver in `systemd`.

mod names;
mod systemd;
#[cfg(test)]
mod tests;
pub(super) mod tree;
pub mod values;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

pub use names::{Class, Name};
pub use values::Limits;

use super::{limits, pod::Pod};

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(
        "cannot make the control group {path} ({source}); mount /sys/fs/cgroup writable for edgecore, or set cgroupsPerQOS: false in tailoredKubeletConfig",
        path = path.display()
    )]
    Make { path: PathBuf, source: io::Error },
    #[error(
        "cannot write {value} to {path} ({source}); let edgecore write below /sys/fs/cgroup, or set cgroupsPerQOS: false in tailoredKubeletConfig",
        path = path.display()
    )]
    Write { path: PathBuf, value: String, source: io::Error },
    #[error(
        "this kernel has no {controller} controller ({path} is missing); enable it at boot (for memory on a Raspberry Pi: cgroup_enable=memory in cmdline.txt)",
        path = path.display()
    )]
    NoController { controller: &'static str, path: PathBuf },
    #[error(
        "systemctl {arguments} failed ({message}); is systemd PID 1 here? else set cgroupDriver: cgroupfs in tailoredKubeletConfig and SystemdCgroup = false for containerd"
    )]
    Systemctl { arguments: String, message: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Cgroupfs,
    Systemd,
}

impl Driver {
    pub fn parse(text: &str) -> Driver {
        if text == "systemd" { Driver::Systemd } else { Driver::Cgroupfs }
    }
}

/// What the configuration says of control groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupConfig {
    pub driver: Driver,
    /// Where the hierarchies are mounted.
    pub mount: PathBuf,
    /// kubelet's `cgroupRoot`: the group above `kubepods`.
    pub root: String,
    /// kubelet's `cgroupsPerQOS`; without it pods lie directly below the root, unlimited.
    pub per_qos: bool,
    /// `enforceNodeAllocatable` has `pods`.
    pub enforce_node: bool,
    pub pids_per_pod: Option<u64>,
    /// kubelet's `cpuCFSQuota`.
    pub quotas: bool,
}

impl Default for CgroupConfig {
    fn default() -> CgroupConfig {
        CgroupConfig {
            driver: Driver::Cgroupfs,
            mount: "/sys/fs/cgroup".into(),
            root: String::new(),
            per_qos: true,
            enforce_node: true,
            pids_per_pod: None,
            quotas: true,
        }
    }
}

/// Writes control groups. Calls block for as long as the kernel takes (or systemctl): run them beside the agent's loop.
#[derive(Clone, Debug, Default)]
pub struct Cgroups {
    pub config: CgroupConfig,
}

impl Cgroups {
    pub fn new(config: CgroupConfig) -> Cgroups {
        Cgroups { config }
    }

    /// What the runtime is told of a pod's place.
    pub fn parent(&self, pod: &Pod, incarnation: &str) -> String {
        let CgroupConfig { driver, root, per_qos, .. } = &self.config;
        match (per_qos, driver) {
            (true, driver) => Name::pod(root, Class::of(pod), incarnation).parent(*driver),
            (false, Driver::Cgroupfs) => format!("/{}", root.trim_matches('/')),
            (false, Driver::Systemd) => String::new(),
        }
    }

    pub fn is_v2(&self) -> bool {
        tree::version(&self.config.mount) == tree::Version::V2
    }

    /// The group of all pods.
    pub fn apply_node(&self, cpu_milli: u64, memory_bytes: u64) -> Result<(), CgroupError> {
        let name = Name::kubepods(&self.config.root);
        let limits = values::node(cpu_milli, memory_bytes, self.config.enforce_node);
        self.apply(&name, &limits)
    }

    pub fn apply_classes(&self, classes: &[(Name, Limits)]) -> Result<(), CgroupError> {
        let results: Vec<_> = classes.iter().map(|(name, limits)| self.apply(name, limits)).collect();
        results.into_iter().collect()
    }

    pub fn apply_pod(&self, pod: &Pod, incarnation: &str) -> Result<(), CgroupError> {
        let name = Name::pod(&self.config.root, Class::of(pod), incarnation);
        self.apply(&name, &values::pod(pod, self.config.pids_per_pod, self.config.quotas))
    }

    fn apply(&self, name: &Name, limits: &Limits) -> Result<(), CgroupError> {
        let CgroupConfig { driver, mount, per_qos, .. } = &self.config;
        match (per_qos, driver) {
            (false, _) => Ok(()),
            (true, Driver::Cgroupfs) => tree::apply(mount, name, limits),
            (true, Driver::Systemd) => match systemd::set_property(name, limits, tree::version(mount)) {
                Some(arguments) => systemctl(&arguments),
                None => Ok(()),
            },
        }
    }

    /// After the pod's last container: the runtime removes the groups of containers, and leaves the pod's own. Its class is not
    /// asked for: the pod may be known by its record alone.
    pub fn remove_pod(&self, incarnation: &str) {
        for class in Class::ALL {
            self.remove(&Name::pod(&self.config.root, class, incarnation));
        }
    }

    fn remove(&self, name: &Name) {
        let CgroupConfig { driver, mount, .. } = &self.config;
        let group = name.path(*driver);
        let there = tree::hierarchies(mount).iter().any(|tree| tree.join(&group).is_dir());
        if there && *driver == Driver::Systemd {
            for arguments in systemd::remove(&name.slice()) {
                if let Err(error) = systemctl(&arguments) {
                    tracing::debug!("{error}");
                }
            }
        }
        if there && !tree::remove(mount, &group) {
            tracing::debug!("{} is in use and stays", group.display());
        }
    }

    /// Removes empty groups of pods that are not `known`: an agent that was killed, or a power cut, left them.
    pub fn sweep(&self, known: &BTreeSet<String>) {
        let CgroupConfig { driver, mount, root, .. } = &self.config;
        let known: BTreeSet<String> = match driver {
            Driver::Cgroupfs => known.clone(),
            Driver::Systemd => known.iter().map(|id| id.replace('-', "_")).collect(),
        };
        for class in Class::ALL {
            let parent = Name::class(root, class).path(*driver);
            let mut left: BTreeMap<String, ()> = BTreeMap::new();
            for tree in tree::hierarchies(mount) {
                let folders = std::fs::read_dir(tree.join(&parent)).into_iter().flatten().flatten();
                let names = folders.filter_map(|entry| entry.file_name().into_string().ok());
                left.extend(names.take(limits::CGROUPS_SWEPT_MAX).filter_map(|folder| {
                    let id = names::pod_in(&folder, *driver)?;
                    (!known.contains(id)).then(|| (id.to_string(), ()))
                }));
            }
            for id in left.keys() {
                self.remove(&Name::pod(root, class, id));
            }
        }
    }
}

fn systemctl(arguments: &[String]) -> Result<(), CgroupError> {
    let failed = |message: String| CgroupError::Systemctl { arguments: arguments.join(" "), message };
    let output = Command::new("systemctl")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_string())),
    }
}

/// Where a pod's usage is read: its folder in the hierarchy of `controller` (v1) or in the one tree (v2).
pub fn usage_dir(config: &CgroupConfig, pod: &Pod, incarnation: &str, controller: &str) -> PathBuf {
    let group = Name::pod(&config.root, Class::of(pod), incarnation).path(config.driver);
    let mount: &Path = &config.mount;
    match tree::version(mount) {
        tree::Version::V1 => mount.join(controller).join(group),
        tree::Version::V2 => mount.join(group),
    }
}
