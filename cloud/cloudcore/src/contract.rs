//! Where cloudcore's modules meet.
//!
//! `cluster` knows what belongs on every node and publishes it; `hub` delivers it and hands requests of the nodes to
//! `upstream`; `join` admits nodes. All three keep what must survive a restart in `records`.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use wire::delivery::Target;

/// A config map or secret that a pod on the node names, whether it exists or not: what the node may ask for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// `configmap` or `secret`.
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
}

/// What belongs on one node.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NodeDesired {
    /// `None`: there is no Node object (not registered yet, or deleted).
    pub node_uid: Option<String>,
    pub targets: Vec<Target>,
    pub references: BTreeSet<Reference>,
}

/// `None` until the cluster's objects have all been listed once.
pub type DesiredWatch = watch::Receiver<Option<Arc<NodeDesired>>>;

/// Asks the cluster task what belongs on a node, now and from now on.
#[derive(Clone, Debug)]
pub struct Placements {
    tx: mpsc::Sender<Subscribe>,
}

#[derive(Debug)]
pub struct Subscribe {
    pub node: String,
    pub reply: oneshot::Sender<DesiredWatch>,
}

impl Placements {
    pub fn new(tx: mpsc::Sender<Subscribe>) -> Placements {
        Placements { tx }
    }

    /// `None` when the cluster task has ended, that is during a shutdown.
    pub async fn subscribe(&self, node: &str) -> Option<DesiredWatch> {
        let (reply, answer) = oneshot::channel();
        self.tx.send(Subscribe { node: node.into(), reply }).await.ok()?;
        answer.await.ok()
    }
}
