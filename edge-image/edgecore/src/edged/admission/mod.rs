//! Whether a new pod may run on this node, with the reasons that a kubelet gives. Plain functions of what is there.
//!
//! Not here: pods that run already (they are never asked again), device plugins (`device_plugin`), pressure (`pressure`).
//! Invariants
//! - A newcomer never costs a running pod its place, unless the newcomer is critical and lacks nothing but resources.
//! - What is not known of the machine is no reason to refuse.
//!
//! Start at [`admit`]. Source: the Kubernetes documentation of node conformance reasons (`OutOfcpu`, `NodeAffinity`, ...),
//! "Guaranteed Scheduling For Critical Add-On Pods" and "Using sysctls".

mod gate;
mod preempt;
mod sysctl;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use gate::{Entry, Gate, allocation_failed};

use super::{
    cgroup::values::{Amounts, pod_requests},
    pod::{Pod, Taint},
    render::security,
};

/// What of the node decides.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    pub name: String,
    /// cpu in thousandths, everything else in whole units. A core resource that is missing here is not checked.
    pub allocatable: Amounts,
    pub pods_max: u64,
    /// `None`: the cloud has not said, and somebody may have added any.
    pub labels: Option<BTreeMap<String, String>>,
    pub taints: Vec<Taint>,
    pub allowed_unsafe_sysctls: Vec<String>,
    /// The kernel enforces AppArmor profiles.
    pub apparmor: bool,
}

impl Default for NodeView {
    /// Nothing is known, so nothing is refused but what exceeds every node.
    fn default() -> NodeView {
        NodeView {
            name: String::new(),
            allocatable: Amounts::new(),
            pods_max: super::limits::PODS_MAX as u64,
            labels: None,
            taints: Vec::new(),
            allowed_unsafe_sysctls: Vec::new(),
            apparmor: false,
        }
    }
}

const NODE_AFFINITY: &str = "NodeAffinity";

/// Why a pod is Failed before it ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub reason: String,
    pub message: String,
}

impl Rejection {
    pub fn new(reason: &str, message: impl Into<String>) -> Rejection {
        Rejection { reason: reason.into(), message: message.into() }
    }

    /// An error that has no word of its own.
    pub fn unexpected(message: impl Into<String>) -> Rejection {
        Rejection::new("UnexpectedAdmissionError", message)
    }

    /// For the labels of the Node object, of which there may be a newer one.
    pub fn is_of_labels(&self) -> bool {
        self.reason == NODE_AFFINITY
    }

    /// As the pod's status has it.
    pub fn status_message(&self) -> String {
        format!("Pod was rejected: {}", self.message)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Admit,
    /// These pods (by uid) must go first: they give their place to a critical one.
    Preempt(Vec<String>),
    Reject(Rejection),
}

/// A resource of which too little is left.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shortage {
    resource: String,
    requested: u64,
    used: u64,
    capacity: u64,
}

impl Shortage {
    fn missing(&self) -> u64 {
        (self.requested + self.used).saturating_sub(self.capacity)
    }

    fn rejection(&self) -> Rejection {
        let Shortage { resource, requested, used, capacity } = self;
        Rejection {
            reason: format!("OutOf{resource}"),
            message: format!(
                "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        }
    }
}

/// `others`: the pods that have a place here, without those that ended or were refused.
pub fn admit(pod: &Pod, others: &[&Pod], node: &NodeView) -> Verdict {
    if let Err(message) = sysctl::check(pod, &node.allowed_unsafe_sysctls) {
        return Verdict::Reject(Rejection::new("SysctlForbidden", format!("forbidden sysctl: {message}")));
    }
    if let Some(rejection) = unsupported(pod, node) {
        return Verdict::Reject(rejection);
    }
    let shortages = shortages(pod, others, node);
    let misfits = misfits(pod, others, node);
    if pod.is_critical() {
        return match (misfits.into_iter().next(), shortages.is_empty()) {
            (Some(misfit), _) => Verdict::Reject(misfit),
            (None, true) => Verdict::Admit,
            (None, false) => make_room(pod, others, &shortages),
        };
    }
    let first = shortages.first().map(Shortage::rejection).or(misfits.into_iter().next());
    first.map_or(Verdict::Admit, Verdict::Reject)
}

fn make_room(pod: &Pod, others: &[&Pod], shortages: &[Shortage]) -> Verdict {
    let missing: Amounts = shortages.iter().map(|s| (s.resource.clone(), s.missing())).collect();
    match preempt::victims(pod, others, &missing) {
        Ok(uids) => Verdict::Preempt(uids),
        Err(message) => Verdict::Reject(Rejection::unexpected(format!(
            "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: {message}"
        ))),
    }
}

fn unsupported(pod: &Pod, node: &NodeView) -> Option<Rejection> {
    if pod.spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return Some(Rejection::new("PodOSNotSupported", message));
    }
    let security = pod.spec.security_context.as_ref();
    if security.is_some_and(|s| s.supplemental_groups_policy.as_deref() == Some("Strict")) {
        let message = "SupplementalGroupsPolicy=Strict is not supported in this node";
        return Some(Rejection::new("SupplementalGroupsPolicyNotSupported", message));
    }
    let enforced = |profile: super::pod::SeccompProfile| profile.profile_type != "Unconfined";
    if !node.apparmor && pod.all_containers().any(|c| security::apparmor(pod, c).is_some_and(enforced)) {
        let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
        return Some(Rejection::new("AppArmor", message));
    }
    None
}

fn is_core(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory" | "ephemeral-storage")
}

/// Pods first, then cpu, memory, disk, then everything else by name, as a scheduler counts them.
fn shortages(pod: &Pod, others: &[&Pod], node: &NodeView) -> Vec<Shortage> {
    let mut found = Vec::new();
    let count = others.len() as u64;
    if count + 1 > node.pods_max {
        let (resource, capacity) = ("pods".to_string(), node.pods_max);
        found.push(Shortage { resource, requested: 1, used: count, capacity });
    }
    let asked = pod_requests(pod);
    let taken: Vec<Amounts> = others.iter().map(|other| pod_requests(other)).collect();
    let core = ["cpu", "memory", "ephemeral-storage"].map(String::from);
    let rest = asked.keys().filter(|name| !is_core(name)).cloned();
    for resource in core.into_iter().chain(rest) {
        let requested = asked.get(&resource).copied().unwrap_or(0);
        // An extended resource that this node never had may belong to the cluster: kubelet ignores it, too.
        let Some(capacity) = node.allocatable.get(&resource).copied().filter(|_| requested > 0) else {
            continue;
        };
        let used: u64 = taken.iter().filter_map(|amounts| amounts.get(&resource)).sum();
        if requested.saturating_add(used) > capacity {
            found.push(Shortage { resource, requested, used, capacity });
        }
    }
    found
}

fn failed(predicate: &str, why: &str) -> Rejection {
    Rejection::new(predicate, format!("Predicate {predicate} failed: {why}"))
}

/// What a place on this node does not cure.
fn misfits(pod: &Pod, others: &[&Pod], node: &NodeView) -> Vec<Rejection> {
    let mut found = Vec::new();
    if !selects(pod, node) {
        found.push(failed(NODE_AFFINITY, "node(s) didn't match Pod's node affinity/selector"));
    }
    let elsewhere = !pod.spec.node_name.is_empty() && pod.spec.node_name != node.name;
    if elsewhere && !node.name.is_empty() {
        found.push(failed("NodeName", "node(s) didn't match the requested node name"));
    }
    let ours = host_ports(pod);
    let clash = |other: &&Pod| host_ports(other).iter().any(|port| ours.iter().any(|own| own.clashes(port)));
    if others.iter().any(clash) {
        found.push(failed("NodePorts", "node(s) didn't have free ports for the requested pod ports"));
    }
    let tolerated = |taint: &Taint| pod.spec.tolerations.iter().any(|t| t.tolerates(taint));
    let untolerated = node.taints.iter().any(|taint| taint.effect == "NoExecute" && !tolerated(taint));
    if untolerated && !pod.is_static() {
        found.push(failed("TaintToleration", "node(s) had taints that the pod didn't tolerate"));
    }
    found
}

fn selects(pod: &Pod, node: &NodeView) -> bool {
    let Some(labels) = &node.labels else { return true };
    let selector = pod.spec.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value));
    let required = pod.spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref()?.required.as_ref());
    selector && required.is_none_or(|required| required.matches(labels, &node.name))
}

struct HostPort<'a> {
    ip: &'a str,
    protocol: &'a str,
    port: u16,
}

impl HostPort<'_> {
    fn clashes(&self, other: &HostPort) -> bool {
        let same_ip = self.ip == other.ip || self.ip == ANY || other.ip == ANY;
        self.port == other.port && self.protocol == other.protocol && same_ip
    }
}

const ANY: &str = "0.0.0.0";

fn host_ports(pod: &Pod) -> Vec<HostPort<'_>> {
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy.is_some());
    let ports = pod.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports);
    ports
        .filter_map(|port| {
            // On the host's network every port is one of the host.
            let number = match (port.host_port, pod.spec.host_network) {
                (0, true) => port.container_port,
                (number, _) => number,
            };
            (number > 0).then_some(HostPort {
                ip: if port.host_ip.is_empty() { ANY } else { &port.host_ip },
                protocol: if port.protocol.is_empty() { "TCP" } else { &port.protocol },
                port: number,
            })
        })
        .collect()
}
