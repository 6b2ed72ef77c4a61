//! How a pod is taken down: all containers at once, sidecars in their turn, then the sandbox and what it left.

use std::{sync::Arc, time::Duration};

use super::{Now, Slot, Turn, Work, Worker};
use crate::edged::{
    limits,
    observed::{Container as Seen, Observed, State},
};

/// A container to stop.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stop {
    pub id: String,
    pub name: String,
    /// It gets its signal when those of every lower turn have ended: 0 for all but sidecars, of which the last one goes first.
    pub turn: u32,
}

/// A grace period as a pod has it. Kubelet's least is one second.
pub(super) fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).clamp(Duration::from_secs(1), limits::GRACE_MAX)
}

impl Worker {
    pub(super) fn next_stop(&mut self, now: Now, seen: &Observed) -> Option<Work> {
        if self.waits(now, &Slot::Pod) {
            return None;
        }
        if let Some(step) = self.take_down(seen, self.sandbox(seen).map(|sandbox| sandbox.id.clone())) {
            return Some(step);
        }
        // The last status is told of what was written down.
        if self.desired.is_some() && !self.end_stored {
            for sandbox in &seen.sandboxes {
                self.record.harvest(seen, sandbox);
            }
            self.note_end(self.outcome_of_deleted(seen));
            return Some(Work::Persist(Box::new(self.record.clone())));
        }
        if let Some(sandbox) = seen.sandboxes.first() {
            return Some(Work::RetireSandbox { id: sandbox.id.clone() });
        }
        if !self.cleaned {
            return Some(Work::CleanUp);
        }
        self.desired.is_none().then_some(Work::Forget)
    }

    /// Stops whatever runs.
    pub(super) fn stop_all(&mut self, seen: &Observed) -> Option<Work> {
        let alive = |c: &&Arc<Seen>| matches!(c.state, State::Running | State::Unknown);
        let stop =
            |c: &Arc<Seen>| Stop { id: c.id.clone(), name: c.name.clone(), turn: self.turn_of(&c.name) };
        let stops: Vec<Stop> = seen.containers.iter().filter(alive).map(stop).collect();
        if stops.is_empty() {
            return None;
        }
        for stop in &stops {
            self.say_killing(&stop.name, format!("Stopping container {}", stop.name));
        }
        Some(Work::StopContainers { stops, grace: self.grace() })
    }

    fn turn_of(&self, name: &str) -> u32 {
        let Some(pod) = &self.spec else { return 0 };
        let mut sidecars = pod.spec.init_containers.iter().filter(|c| c.is_sidecar()).rev();
        let at = sidecars.position(|container| container.name == name);
        at.map_or(0, |at| u32::try_from(at).unwrap_or(u32::MAX).saturating_add(1))
    }

    /// The time that the containers have to end in.
    pub fn grace(&self) -> Duration {
        let given_up = self.record.failing.as_ref().and_then(|failing| failing.grace_s);
        let wished = match (&self.desired, given_up) {
            (_, Some(seconds)) if !self.is_deleting() => Duration::from_secs(seconds.into()),
            (Some(pod), _) => pod.grace(),
            (None, _) => Duration::from_secs(self.record.grace_s),
        };
        wished.clamp(Duration::from_secs(1), limits::GRACE_MAX)
    }

    /// What becomes of the step under way, now that the wish changed.
    pub(super) fn turn(&mut self) -> Turn {
        if !self.is_deleting() {
            return Turn::GoOn;
        }
        // What could not be started does not hold up the end of the pod.
        if !matches!(
            self.busy,
            Some(Work::StopContainers { .. } | Work::RetireSandbox { .. } | Work::CleanUp)
        ) {
            self.failures.remove(&Slot::Pod);
        }
        match &self.busy {
            Some(Work::StopContainers { grace, .. }) if self.grace() < *grace => {
                Turn::Hasten { grace: self.grace() }
            }
            Some(Work::Prepare | Work::CreateContainer { .. } | Work::StartContainer { .. }) => Turn::CallOff,
            _ => Turn::GoOn,
        }
    }
}
