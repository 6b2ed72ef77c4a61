//! What one container may use. Source of the numbers: the Kubernetes documentation of CPU shares and quota, and "Node-pressure
//! Eviction" for OOM scores by class of service.

use std::collections::HashMap;

use super::NodeSetup;
use crate::edged::{
    cgroup::{
        Class,
        values::{
            PERIOD_US, container_limits, container_requests, huge_page_size, pod_requests, quota_us, shares,
        },
    },
    cri::messages as cri,
    pod::{Container, Pod},
};

/// Guaranteed pods, and those that the node cannot do without.
const OOM_GUARANTEED: i64 = -997;
const OOM_BEST_EFFORT: i64 = 1000;
/// The name of the class whose pods the node cannot do without.
const NODE_CRITICAL: &str = "system-node-critical";

pub fn of_container(pod: &Pod, container: &Container, node: &NodeSetup) -> cri::LinuxContainerResources {
    let (requests, limits) = (container_requests(container), container_limits(container));
    let limit = |name: &str| limits.get(name).copied().unwrap_or(0);
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let quota = quota_us(limit("cpu")).filter(|_| node.cgroups.config.quotas).map_or(0, signed);
    let huge = |(name, bytes): (&String, &u64)| {
        Some(cri::HugepageLimit { page_size: huge_page_size(name)?, limit: *bytes })
    };
    // All processes of a container end together when one of them is killed for memory, as with kubelet on cgroup v2.
    let unified = match node.cgroups.is_v2() {
        true => HashMap::from([("memory.oom.group".to_string(), "1".to_string())]),
        false => HashMap::new(),
    };
    cri::LinuxContainerResources {
        cpu_period: if quota > 0 { signed(PERIOD_US) } else { 0 },
        cpu_quota: quota,
        cpu_shares: signed(shares(requests.get("cpu").copied().unwrap_or(0))),
        memory_limit_in_bytes: signed(limit("memory")),
        oom_score_adj: oom_score_adj(pod, container, node.memory_bytes),
        hugepage_limits: limits.iter().filter_map(huge).collect(),
        unified,
    }
}

/// Who goes first when memory runs out: the less a burstable container asks for, the sooner.
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_bytes: i64) -> i64 {
    if pod.spec.priority_class_name == NODE_CRITICAL && pod.is_critical() {
        return OOM_GUARANTEED;
    }
    let asked = |container: &Container| {
        let bytes = container_requests(container).get("memory").copied().unwrap_or(0);
        i64::try_from(bytes).unwrap_or(i64::MAX)
    };
    match Class::of(pod) {
        Class::Guaranteed => OOM_GUARANTEED,
        Class::BestEffort => OOM_BEST_EFFORT,
        Class::Burstable => {
            let whole = pod.spec.resources.as_ref().filter(|r| !r.requests.is_empty());
            let bytes = match whole {
                // Of requests of the whole pod each container has its part.
                Some(_) => {
                    let sum = pod_requests(pod).get("memory").copied().unwrap_or(0);
                    i64::try_from(sum).unwrap_or(i64::MAX) / pod.spec.containers.len().max(1) as i64
                }
                // A sidecar must not go before the containers that it serves.
                None if container.restart_policy.is_some() => {
                    let least = pod.spec.containers.iter().map(asked).min().unwrap_or(0);
                    asked(container).max(least)
                }
                None => asked(container),
            };
            let score = 1000 - bytes.saturating_mul(1000) / memory_bytes.max(1);
            score.clamp(1000 + OOM_GUARANTEED, OOM_BEST_EFFORT - 1)
        }
    }
}
