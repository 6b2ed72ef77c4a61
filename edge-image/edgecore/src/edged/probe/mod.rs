//! Probes: whether a container has started, is alive and is ready, asked as kubelet asks.
//!
//! `machine` decides when which probe runs and what its results mean; `check` and its parts ask the container; `memory` keeps what
//! was found over a restart of the agent. Not here: what is done with a container that failed (`worker`), the status (`status`).
//!
//! Invariants
//! - One timer for all probes of the node, no task per probe. What is over the bounds in `limits` waits; it costs no memory more.
//! - Results belong to a container id: another container of the same name starts from nothing.
//! - A probe that could not be made (`Errored`) says nothing about the container, as with kubelet.
//!
//! Start at [`Prober`](machine::Prober).

pub mod check;
mod exec;
pub mod figures;
mod grpc;
pub mod http;
pub mod machine;
mod memory;
mod tcp;

#[cfg(test)]
mod tests;

pub use check::Check;
pub use machine::Prober;
pub use memory::Memory;

use super::{
    pod::{Container, Probe},
    worker::ProbeKind as Kind,
};

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Startup, Kind::Liveness, Kind::Readiness];

    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Kind::Startup => container.startup_probe.as_deref(),
            Kind::Liveness => container.liveness_probe.as_deref(),
            Kind::Readiness => container.readiness_probe.as_deref(),
        }
    }

    /// As events begin with it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// What one probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// Counts as success; the text is worth an event (a redirect to another host).
    Warning(String),
    Failure(String),
    /// The probe could not be made: thrown away.
    Errored(String),
}

impl Outcome {
    /// Type, reason and message of the event that kubelet records for it (prober.go).
    pub fn event(&self, kind: Kind) -> Option<(&'static str, String)> {
        let kind = kind.name();
        match self {
            Outcome::Success => None,
            Outcome::Warning(text) => Some(("ProbeWarning", format!("{kind} probe warning: {text}"))),
            Outcome::Failure(text) => Some(("Unhealthy", format!("{kind} probe failed: {text}"))),
            Outcome::Errored(text) => {
                Some(("Unhealthy", format!("{kind} probe errored and resulted in unknown state: {text}")))
            }
        }
    }
}

/// What was found of a running container before the agent restarted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub started: bool,
    pub ready: bool,
}

/// True for containers that the prober must know.
pub fn is_probed(container: &Container) -> bool {
    Kind::ALL.iter().any(|kind| kind.of(container).is_some())
}

/// An HTTP answer to a probe, a redirect in it, and what the agent kept of its probes.
pub fn fuzz_probe_answer(data: &[u8]) {
    let asked = http::Request {
        tls: false,
        host: "127.0.0.1".into(),
        port: 80,
        path: "/health".into(),
        headers: Vec::new(),
        user_agent: "kube-probe",
    };
    if let Ok(Some(answer)) = http::parse_head(data) {
        let _ = (answer.outcome(), answer.location.and_then(|to| http::follow(&asked, &to)));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = (http::follow(&asked, text), memory::parse(text));
    }
}
