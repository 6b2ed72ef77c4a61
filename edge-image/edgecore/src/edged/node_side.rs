//! The node's part of running pods, beside the single pod: classes of service, left-over groups, and what went wrong with them.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    cgroup::{CgroupError, Limits, Name, values},
    events::{Event, Recorder},
    execute::Executor,
    manager::Manager,
};
use crate::contract::{Condition, Handles};

const CGROUPS: &str = "PodsNotLimited";

/// Raises the condition for limits that could not be written, or ends it.
pub fn tell_cgroups(handles: &Handles, events: &Recorder, applied: Result<(), CgroupError>) {
    let (status, reason, message) = match applied {
        Ok(()) => (false, "LimitsWritten", "control groups of pods are limited".to_string()),
        Err(error) => (true, "FailedToCreatePodCgroup", error.to_string()),
    };
    if status {
        events.node(Event::warning("FailedToCreatePodContainer", message.clone()));
    }
    handles.conditions.set(Condition {
        condition_type: CGROUPS.into(),
        status,
        reason: reason.into(),
        message,
    });
}

/// What of all pods together is in force.
#[derive(Default)]
pub struct NodeSide {
    node_limited: bool,
    swept: bool,
    /// Pods that count.
    count: usize,
    classes: Option<[(Name, Limits); 2]>,
    writes: Writes,
}

/// Writes are made beside the agent's loop, where a later one may be ready first (systemctl is slow): an older one must not undo it.
#[derive(Clone, Default)]
struct Writes {
    number: u64,
    /// The newest that was begun. Held, off the loop, while one writes.
    begun: Arc<Mutex<u64>>,
}

impl Writes {
    fn next(&mut self) -> Writes {
        self.number += 1;
        self.clone()
    }

    fn newest<T>(&self, write: impl FnOnce(bool) -> T) -> T {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        *begun = self.number.max(*begun);
        write(*begun == self.number)
    }
}

impl NodeSide {
    /// Brings the groups above the pods up to what the manager knows. Returns what is to be done beside the agent's loop.
    /// `wish`: what is wanted of a pod may be another thing than before.
    pub fn follow(
        &mut self,
        wish: bool,
        manager: &Manager,
        executor: &Arc<Executor>,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let (cgroups, policy) = (&executor.node.cgroups, &executor.settings.policy);
        let active = || manager.workers().filter(|worker| worker.record.ended.is_none());
        let pods = || active().filter_map(|worker| worker.desired.as_deref());
        let count = std::mem::replace(&mut self.count, pods().count());
        if !wish && count == self.count && self.swept == manager.is_reconciled() && self.node_limited {
            return None;
        }
        let classes = values::classes(&cgroups.config.root, pods());
        let changed = self.classes.as_ref() != Some(&classes);
        let first = !std::mem::replace(&mut self.node_limited, true);
        // Groups are swept once, after every pod that runs here is known.
        let sweep = manager.is_reconciled() && !std::mem::replace(&mut self.swept, manager.is_reconciled());
        if !(changed || first || sweep) {
            return None;
        }
        self.classes = Some(classes.clone());
        let known: BTreeSet<String> =
            manager.workers().map(|worker| worker.record.incarnation.clone()).collect();
        let (executor, cgroups) = (executor.clone(), cgroups.clone());
        let (cpu_milli, memory_bytes) = (policy.enforced.cpu_milli, policy.enforced.memory_bytes);
        let writes = self.writes.next();
        Some(async move {
            let write = move |newest: bool| {
                if sweep {
                    cgroups.sweep(&known);
                }
                let node = if first { cgroups.apply_node(cpu_milli, memory_bytes) } else { Ok(()) };
                node.and(if newest { cgroups.apply_classes(&classes) } else { Ok(()) })
            };
            let applied = rt::blocking(move || writes.newest(write));
            tell_cgroups(&executor.handles, &executor.events, applied.await);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen under systemd: the weight of burstable pods was that of a node without pods after each start of the agent.
    #[test]
    fn a_write_that_comes_late_undoes_no_newer_one() {
        let mut side = NodeSide::default();
        let (first, second) = (side.writes.next(), side.writes.next());
        assert!(second.newest(|newest| newest));
        assert!(!first.newest(|newest| newest), "the older one is late");
        assert!(side.writes.next().newest(|newest| newest));
    }
}
