//! Who goes first, and what is said of it: kubelet's order (exceeds its requests, priority, usage above requests) and its message.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use super::{Signal, machine::Crossed, quantity_text};
use crate::edged::{
    cgroup::values::{container_requests, pod_requests},
    pod::Pod,
};

/// What one container uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    pub memory: u64,
    /// Log and writable layer.
    pub disk: u64,
}

/// A pod that runs, and what it uses.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub uid: String,
    pub pod: Arc<Pod>,
    pub containers: BTreeMap<String, Use>,
    /// Of the whole pod; volumes included.
    pub memory: u64,
    pub disk: u64,
    pub inodes: u64,
    pub processes: u64,
}

impl Candidate {
    fn used(&self, signal: Signal) -> u64 {
        match signal {
            Signal::Memory => self.memory,
            Signal::NodeDisk | Signal::ImageDisk => self.disk,
            Signal::NodeInodes | Signal::ImageInodes => self.inodes,
            Signal::Pids => self.processes,
        }
    }
}

/// The pod to evict, and the message for it. Critical and static pods are never evicted.
pub fn choose<'a>(crossed: &Crossed, pods: &'a [Candidate]) -> Option<(&'a Candidate, String)> {
    let signal = crossed.signal;
    let key = |candidate: &&Candidate| {
        let requested = match signal {
            Signal::Pids => 0,
            _ => pod_requests(&candidate.pod).get(signal.resource()).copied().unwrap_or(0),
        };
        let used = candidate.used(signal);
        // Process ids cannot be requested: priority alone comes first.
        let exceeds = signal != Signal::Pids && used > requested;
        let above = i128::from(used) - i128::from(requested);
        (Reverse(exceeds), candidate.pod.spec.priority.unwrap_or(0), Reverse(above))
    };
    let victim = pods.iter().filter(|candidate| !candidate.pod.is_critical()).min_by_key(key)?;
    Some((victim, message(crossed, victim)))
}

fn message(crossed: &Crossed, victim: &Candidate) -> String {
    let resource = crossed.signal.resource();
    let mut text = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        crossed.threshold, crossed.available
    );
    let per_container = matches!(crossed.signal, Signal::Memory | Signal::NodeDisk | Signal::ImageDisk);
    for container in victim.pod.all_containers().filter(|_| per_container) {
        let Some(used) = victim.containers.get(&container.name) else { continue };
        let used = if crossed.signal == Signal::Memory { used.memory } else { used.disk };
        let requested = container_requests(container).get(resource).copied().unwrap_or(0);
        if used > requested {
            text.push_str(&format!(
                "Container {} was using {}, request is {}, has larger consumption of {resource}. ",
                container.name,
                quantity_text(used, true),
                quantity_text(requested, true)
            ));
        }
    }
    text
}
