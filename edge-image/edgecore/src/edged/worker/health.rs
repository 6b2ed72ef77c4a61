//! What probes found of running containers: the seam between the prober and the state machine.
//!
//! Not here: running a probe, thresholds and delays; a verdict comes in as `Input::Probe` after all of that.

use super::Worker;
use crate::edged::{
    observed::{Container as Seen, State},
    pod::{Container, Probe},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

/// What a probe holds for true, after its thresholds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub kind: ProbeKind,
    pub passed: bool,
}

/// Of one container id; `None`: the probe has not come to a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    pub startup: Option<bool>,
    pub liveness: Option<bool>,
    pub readiness: Option<bool>,
}

impl Health {
    /// A container of this health is stopped because a probe said so.
    pub fn killed(self) -> bool {
        self.liveness == Some(false) || self.startup == Some(false)
    }
}

impl Worker {
    /// Takes a verdict. Of a container that is gone it says nothing any more.
    pub fn probed(&mut self, container_id: &str, outcome: Outcome) {
        let known = |seen: &super::Observed| seen.containers.iter().any(|c| c.id == container_id);
        if !self.seen.as_ref().is_some_and(known) {
            return;
        }
        let health = self.health.entry(container_id.to_string()).or_default();
        let verdict = match outcome.kind {
            ProbeKind::Startup => &mut health.startup,
            ProbeKind::Liveness => &mut health.liveness,
            ProbeKind::Readiness => &mut health.readiness,
        };
        if *verdict != Some(outcome.passed) {
            *verdict = Some(outcome.passed);
            self.touched = true;
        }
    }

    pub(super) fn health(&self, id: &str) -> Health {
        self.health.get(id).copied().unwrap_or_default()
    }

    /// Runs, and its startup probe, if it has one, was passed.
    pub fn is_started(&self, container: &Container, seen: &Seen) -> bool {
        seen.state == State::Running
            && (container.startup_probe.is_none() || self.health(&seen.id).startup == Some(true))
    }

    /// Started, and its readiness probe, if it has one, is passed.
    pub fn is_ready(&self, container: &Container, seen: &Seen) -> bool {
        self.is_started(container, seen)
            && (container.readiness_probe.is_none() || self.health(&seen.id).readiness == Some(true))
    }

    /// The probe for which a running container has to be killed, with its name in kubelet's words.
    pub(super) fn failed_probe<'a>(
        &self,
        container: &'a Container,
        seen: &Seen,
    ) -> Option<(&'static str, &'a Probe)> {
        let health = self.health(&seen.id);
        let failed =
            |probe: &'a Option<Box<Probe>>, verdict| probe.as_deref().filter(|_| verdict == Some(false));
        failed(&container.liveness_probe, health.liveness)
            .map(|probe| ("liveness", probe))
            .or_else(|| failed(&container.startup_probe, health.startup).map(|probe| ("startup", probe)))
    }
}
