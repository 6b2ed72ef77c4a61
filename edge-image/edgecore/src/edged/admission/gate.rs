//! The one door for new pods: devices first, then the node's resources and rules, as a kubelet asks its handlers.

use super::{NodeView, Rejection, Verdict, admit};
use crate::edged::{
    device_plugin::book::{Book, Claim},
    pod::Pod,
};

#[derive(Clone, Debug, Default)]
pub struct Gate {
    pub node: NodeView,
    pub devices: Book,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// `claims`: devices that are set aside; `victims`: uids of pods that are to end for it.
    Admitted {
        claims: Vec<Claim>,
        victims: Vec<String>,
    },
    Rejected(Rejection),
}

impl Gate {
    pub fn enter(&mut self, incarnation: &str, pod: &Pod, others: &[&Pod]) -> Entry {
        let claims = match self.devices.reserve(incarnation, pod) {
            Ok(claims) => claims,
            Err(error) => return Entry::Rejected(allocation_failed(&error)),
        };
        match admit(pod, others, &self.node) {
            Verdict::Admit => Entry::Admitted { claims, victims: Vec::new() },
            Verdict::Preempt(victims) => Entry::Admitted { claims, victims },
            Verdict::Reject(rejection) => {
                self.devices.answered(incarnation, false);
                Entry::Rejected(rejection)
            }
        }
    }
}

/// A device that cannot be had, in kubelet's words.
pub fn allocation_failed(error: &str) -> Rejection {
    Rejection::unexpected(format!("Allocate failed due to {error}, which is unexpected"))
}
