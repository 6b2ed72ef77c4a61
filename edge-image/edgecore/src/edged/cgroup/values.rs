//! How much a group may use, from requests and limits. Pure.
//!
//! Source: Kubernetes' documentation "Resource Management for Pods and Containers" and "Reserve Compute Resources", and what a
//! kubelet writes.

use std::collections::BTreeMap;

use super::{Class, names::Name};
use crate::edged::{
    pod::{Container, Pod, RestartPolicy},
    quantity,
};

/// Microseconds in which a quota is counted.
pub const PERIOD_US: u64 = 100_000;
const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 262_144;
const QUOTA_MIN_US: u64 = 1000;

/// What a group may use; `None` leaves the kernel's default, which is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub shares: Option<u64>,
    pub quota_us: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub pids: Option<u64>,
    /// By page size as the kernel names it (`2MB`): bytes.
    pub huge: BTreeMap<String, u64>,
}

/// 1024 shares are one core.
pub fn shares(milli: u64) -> u64 {
    (milli.saturating_mul(1024) / 1000).clamp(SHARES_MIN, SHARES_MAX)
}

pub fn quota_us(milli: u64) -> Option<u64> {
    (milli > 0).then(|| (milli.saturating_mul(PERIOD_US) / 1000).max(QUOTA_MIN_US))
}

/// cgroup v2 counts from 1 to 10000 what v1 counts from 2 to 262144 (runc's conversion, which containers get too).
pub fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(SHARES_MIN, SHARES_MAX) - SHARES_MIN) * 9999 / (SHARES_MAX - SHARES_MIN)
}

/// `hugepages-2Mi` -> `2MB`.
pub fn huge_page_size(resource: &str) -> Option<String> {
    let bytes = quantity::parse_units(resource.strip_prefix("hugepages-")?).filter(|bytes| *bytes > 0)?;
    let text = match bytes {
        bytes if bytes % (1 << 30) == 0 => format!("{}GB", bytes >> 30),
        bytes if bytes % (1 << 20) == 0 => format!("{}MB", bytes >> 20),
        bytes => format!("{}KB", bytes >> 10),
    };
    Some(text)
}

/// Amounts by resource: thousandths for cpu, whole units for everything else.
pub type Amounts = BTreeMap<String, u64>;

fn amounts(list: &BTreeMap<String, String>) -> Amounts {
    let amount = |(name, text): (&String, &String)| {
        let milli = u128::try_from(quantity::parse_milli(text)?).ok()?;
        let value = if name == "cpu" { milli } else { milli.div_ceil(1000) };
        Some((name.clone(), u64::try_from(value).unwrap_or(u64::MAX)))
    };
    list.iter().filter_map(amount).collect()
}

/// What a container asks for; a limit without a request is a request.
pub fn container_requests(container: &Container) -> Amounts {
    let mut requests = amounts(&container.resources.limits);
    requests.extend(amounts(&container.resources.requests));
    requests
}

pub fn container_limits(container: &Container) -> Amounts {
    amounts(&container.resources.limits)
}

fn add(sum: &mut Amounts, other: &Amounts) {
    for (name, value) in other {
        let entry = sum.entry(name.clone()).or_default();
        *entry = entry.saturating_add(*value);
    }
}

fn raise(most: &mut Amounts, other: &Amounts) {
    for (name, value) in other {
        let entry = most.entry(name.clone()).or_default();
        *entry = (*entry).max(*value);
    }
}

/// All containers together; init containers run one after the other, beside the sidecars that were started before them.
fn total(pod: &Pod, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let mut running = Amounts::new();
    pod.spec.containers.iter().for_each(|container| add(&mut running, &of(container)));
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in &pod.spec.init_containers {
        let mut here = of(container);
        if container.restart_policy == Some(RestartPolicy::Always) {
            add(&mut running, &here);
            add(&mut sidecars, &here);
            here = sidecars.clone();
        } else {
            add(&mut here, &sidecars);
        }
        raise(&mut starting, &here);
    }
    raise(&mut running, &starting);
    running
}

/// What the pod asks for in all, as a scheduler counts it: pod-level requests (Kubernetes 1.32) win, overhead is added.
pub fn pod_requests(pod: &Pod) -> Amounts {
    let mut sum = total(pod, container_requests);
    if let Some(whole) = &pod.spec.resources {
        let mut requests = amounts(&whole.limits);
        requests.extend(amounts(&whole.requests));
        sum.extend(requests);
    }
    add(&mut sum, &amounts(&pod.spec.overhead));
    sum
}

fn pod_limits(pod: &Pod) -> Amounts {
    let mut sum = total(pod, container_limits);
    if let Some(whole) = &pod.spec.resources {
        sum.extend(amounts(&whole.limits));
    }
    let overhead = amounts(&pod.spec.overhead);
    let bounded: Amounts = overhead.into_iter().filter(|(name, _)| sum.contains_key(name)).collect();
    add(&mut sum, &bounded);
    sum
}

/// A limit holds for the pod only if each of its containers has one: the others would be bounded by a sum that leaves them out.
fn is_bounded(pod: &Pod, resource: &str) -> bool {
    let whole = pod.spec.resources.as_ref().is_some_and(|whole| whole.limits.contains_key(resource));
    let has = |container: &Container| container_limits(container).get(resource).is_some_and(|n| *n > 0);
    whole || pod.spec.containers.iter().chain(&pod.spec.init_containers).all(has)
}

/// The group of a pod. `pids_max`: kubelet's `podPidsLimit`; `quotas`: its `cpuCFSQuota`.
pub fn pod(pod: &Pod, pids_max: Option<u64>, quotas: bool) -> Limits {
    let (requests, limits) = (pod_requests(pod), pod_limits(pod));
    let limit = |resource: &str| limits.get(resource).copied().filter(|_| is_bounded(pod, resource));
    let huge = limits.iter().filter_map(|(name, bytes)| Some((huge_page_size(name)?, *bytes))).collect();
    let none = Limits { pids: pids_max, ..Limits::default() };
    match Class::of(pod) {
        Class::BestEffort => Limits { shares: Some(SHARES_MIN), ..none },
        Class::Guaranteed | Class::Burstable => Limits {
            shares: Some(shares(requests.get("cpu").copied().unwrap_or(0))),
            quota_us: limit("cpu").filter(|_| quotas).and_then(quota_us),
            memory_bytes: limit("memory"),
            huge,
            ..none
        },
    }
}

/// The groups of the classes: burstable pods together weigh what they ask for, best effort ones the least possible.
pub fn classes<'a>(root: &str, pods: impl Iterator<Item = &'a Pod>) -> [(Name, Limits); 2] {
    let asked: u64 = pods
        .filter(|pod| Class::of(pod) == Class::Burstable)
        .map(|pod| pod_requests(pod).get("cpu").copied().unwrap_or(0))
        .sum();
    let of = |class, shares| (Name::class(root, class), Limits { shares: Some(shares), ..Limits::default() });
    [of(Class::Burstable, shares(asked)), of(Class::BestEffort, SHARES_MIN)]
}

/// The group of all pods: what the node has less what is reserved, without the eviction threshold, so that eviction comes
/// before the kernel's OOM killer.
pub fn node(cpu_milli: u64, memory_bytes: u64, enforced: bool) -> Limits {
    Limits {
        shares: Some(shares(cpu_milli)),
        memory_bytes: (enforced && memory_bytes > 0).then_some(memory_bytes),
        ..Limits::default()
    }
}
