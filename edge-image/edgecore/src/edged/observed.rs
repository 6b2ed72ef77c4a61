//! What the runtime says is there: sandboxes and containers of this node's pods, as plain values.

use std::{collections::HashMap, sync::Arc};

/// Labels on our sandboxes and containers. The first three are those that `crictl` and metrics tools show.
pub mod label {
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// All labels below are ours.
    pub const OURS: &str = "kinglet.dev/";
    /// The node whose agent made it: only its own are listed.
    pub const NODE: &str = "kinglet.dev/node";
    /// The key of the pod's record, see `record`.
    pub const INCARNATION: &str = "kinglet.dev/incarnation";
    /// `log`: terminationMessagePolicy is FallbackToLogsOnError.
    pub const LAST_WORDS: &str = "kinglet.dev/last-words";
    pub const CONTAINER_HASH: &str = "kinglet.dev/container-hash";
    /// Where a container that a kubelet made leaves its last words.
    pub const TERMINATION_LOG: &str = "kinglet.dev/termination-log";
}

/// Cheap to clone: the observer, the manager and the workers hold the same values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub sandboxes: Vec<Arc<Sandbox>>,
    pub containers: Vec<Arc<Container>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sandbox {
    pub id: String,
    pub incarnation: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub attempt: u32,
    pub ready: bool,
    /// Addresses, the first one first; empty on the host's network.
    pub ips: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    #[default]
    Created,
    Running,
    Exited,
    Unknown,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Container {
    pub id: String,
    pub sandbox_id: String,
    pub name: String,
    pub attempt: u32,
    pub hash: String,
    pub state: State,
    /// Nanoseconds since the Unix epoch; 0 when it did not happen.
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub image: String,
    pub image_ref: String,
}

impl Observed {
    /// The part of one pod.
    pub fn of(&self, incarnation: &str) -> Observed {
        let sandboxes: Vec<Arc<Sandbox>> =
            self.sandboxes.iter().filter(|sandbox| sandbox.incarnation == incarnation).cloned().collect();
        let ours = |id: &str| sandboxes.iter().any(|sandbox| sandbox.id == id);
        let containers = self.containers.iter().filter(|c| ours(&c.sandbox_id)).cloned().collect();
        Observed { sandboxes, containers }
    }

    pub fn in_sandbox<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers.iter().map(Arc::as_ref).filter(move |container| container.sandbox_id == id)
    }

    /// The newest container of a name in a sandbox.
    pub fn latest<'a>(&'a self, sandbox: &'a str, name: &str) -> Option<&'a Container> {
        self.in_sandbox(sandbox).filter(|c| c.name == name).max_by_key(|c| c.attempt)
    }
}

pub fn take(labels: &mut HashMap<String, String>, key: &str) -> String {
    labels.remove(key).unwrap_or_default()
}
