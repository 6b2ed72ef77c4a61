//! What the configuration says of this node towards pods: how much there is, how groups are laid out, what is allowed.

use std::{collections::BTreeMap, path::PathBuf};

use super::cgroup::{CgroupConfig, Driver};
use crate::{capacity::Capacity, config::Config};

#[derive(Clone, Debug, Default)]
pub struct NodePolicy {
    pub cgroups: CgroupConfig,
    /// What the machine has.
    pub capacity: Capacity,
    /// What the group of all pods may use.
    pub enforced: Capacity,
    /// What pods may ask for in all.
    pub allocatable: Capacity,
    pub pods_max: usize,
    pub allowed_unsafe_sysctls: Vec<String>,
    pub seccomp_default: bool,
    /// Labels from the configuration; the Node object may have more.
    pub labels: BTreeMap<String, String>,
    /// Images that the Node's status shows.
    pub images_max: usize,
    /// Empty: no static pods.
    pub static_pods: PathBuf,
}

impl NodePolicy {
    pub fn new(config: &Config) -> NodePolicy {
        let (edged, kubelet) = (&config.modules.edged, &config.modules.edged.tailored_kubelet_config);
        let capacity = Capacity::read(&edged.root_directory);
        NodePolicy {
            cgroups: CgroupConfig {
                driver: Driver::parse(&kubelet.cgroup_driver),
                root: kubelet.cgroup_root.clone(),
                per_qos: kubelet.cgroups_per_qos,
                enforce_node: kubelet.enforce_node_allocatable.iter().any(|word| word == "pods"),
                pids_per_pod: u64::try_from(kubelet.pod_pids_limit).ok().filter(|limit| *limit > 0),
                quotas: kubelet.cpu_cfs_quota,
                ..CgroupConfig::default()
            },
            enforced: capacity.less_reserved(kubelet),
            allocatable: capacity.allocatable(kubelet),
            capacity,
            pods_max: (kubelet.max_pods as usize).min(super::limits::PODS_MAX),
            allowed_unsafe_sysctls: kubelet.allowed_unsafe_sysctls.clone(),
            seccomp_default: kubelet.seccomp_default,
            labels: edged.node_labels.clone(),
            images_max: match usize::try_from(kubelet.node_status_max_images) {
                Ok(most) => most.min(super::limits::NODE_IMAGES_MAX),
                Err(_) => super::limits::NODE_IMAGES_MAX,
            },
            static_pods: kubelet.static_pod_path.clone(),
        }
    }
}
