//! Where cloudcore's modules meet.
//!
//! `cluster` knows what belongs on every node and publishes it; `hub` delivers it and hands requests of the nodes to
//! `upstream`; `join` admits nodes. All three keep what must survive a restart in `records`. Whoever has a way to a node's kubelet
//! API (`hub`, `tunnel`) puts it into [`Routes`], where the API server's requests find it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kserve::{DialError, NodeDialer};
use rt::{BoxFuture, BoxIo};
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
    /// Those of them that no pod of the node needs.
    pub optional: BTreeSet<Reference>,
    /// The protocol of each device and of its model, by uid.
    pub protocols: BTreeMap<String, String>,
    pub since: Since,
}

/// From which resourceVersion on objects have their version, by uid, where a version is not the resourceVersion itself: what an
/// ObjectSync says is held against it. It says nothing new about what belongs on the node, so it is never a difference.
#[derive(Clone, Debug, Default)]
pub struct Since(HashMap<String, u64>);

impl Since {
    pub fn of(&self, uid: &str) -> Option<u64> {
        self.0.get(uid).copied()
    }

    pub fn note(&mut self, uid: &str, resource_version: u64) {
        self.0.insert(uid.to_owned(), resource_version);
    }
}

impl PartialEq for Since {
    fn eq(&self, _: &Since) -> bool {
        true
    }
}

impl Eq for Since {}

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

/// Opens byte streams to one node, on which its kubelet API speaks HTTP/1.1.
pub trait Carrier: Send + Sync {
    /// `Err`: why not, for a person.
    fn open(&self) -> BoxFuture<'_, Result<BoxIo, String>>;
}

/// Which of a node's carriers is taken: the lower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Streams of the node's link.
    Link,
    /// KubeEdge's EdgeStream, a second connection of the node.
    Tunnel,
}

/// The ways to the nodes that are connected.
#[derive(Clone, Default)]
pub struct Routes(Arc<Mutex<Ways>>);

#[derive(Default)]
struct Ways {
    of_nodes: HashMap<String, Vec<Way>>,
    /// Rises with each way.
    next_id: u64,
}

struct Way {
    rank: Rank,
    id: u64,
    carrier: Arc<dyn Carrier>,
}

/// The way exists until this is dropped.
pub struct Route {
    routes: Routes,
    node: String,
    id: u64,
}

impl Routes {
    pub fn add(&self, node: &str, rank: Rank, carrier: Arc<dyn Carrier>) -> Route {
        let mut ways = self.lock();
        let id = ways.next_id;
        ways.next_id += 1;
        ways.of_nodes.entry(node.to_owned()).or_default().push(Way { rank, id, carrier });
        Route { routes: self.clone(), node: node.to_owned(), id }
    }

    /// The newest way of the best rank.
    fn best(&self, node: &str) -> Option<Arc<dyn Carrier>> {
        let ways = self.lock();
        let best = ways.of_nodes.get(node)?.iter().min_by_key(|way| (way.rank, std::cmp::Reverse(way.id)))?;
        Some(best.carrier.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Ways> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        let mut ways = self.routes.lock();
        if let Some(of_node) = ways.of_nodes.get_mut(&self.node) {
            of_node.retain(|way| way.id != self.id);
            if of_node.is_empty() {
                ways.of_nodes.remove(&self.node);
            }
        }
    }
}

impl NodeDialer for Routes {
    fn dial<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<BoxIo, DialError>> {
        Box::pin(async move {
            let carrier = self.best(node).ok_or_else(|| DialError::NotConnected(node.to_owned()))?;
            carrier.open().await.map_err(|why| DialError::Refused { node: node.to_owned(), why })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Named(&'static str);

    impl Carrier for Named {
        fn open(&self) -> BoxFuture<'_, Result<BoxIo, String>> {
            Box::pin(async { Err(self.0.to_owned()) })
        }
    }

    #[tokio::test]
    async fn the_link_is_preferred_and_what_ended_is_not_found() {
        let routes = Routes::default();
        let dialled = async |node: &str| routes.dial(node).await.err().unwrap();
        assert_eq!(dialled("n").await, DialError::NotConnected("n".into()));
        let link = routes.add("n", Rank::Link, Arc::new(Named("link")));
        let tunnel = routes.add("n", Rank::Tunnel, Arc::new(Named("tunnel")));
        let refused = |why: &str| DialError::Refused { node: "n".into(), why: why.into() };
        assert_eq!(dialled("n").await, refused("link"));
        // A newer connection of the node, before the old one is gone.
        let newer = routes.add("n", Rank::Link, Arc::new(Named("newer")));
        drop(link);
        assert_eq!(dialled("n").await, refused("newer"));
        drop(newer);
        assert_eq!(dialled("n").await, refused("tunnel"));
        drop(tunnel);
        assert_eq!(dialled("n").await, DialError::NotConnected("n".into()));
        assert_eq!(dialled("other").await, DialError::NotConnected("other".into()));
    }
}
