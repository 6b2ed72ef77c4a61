//! The cluster as cloudcore sees it: trimmed views of all objects in one task, which publishes what belongs on every
//! connected node and, with the embedded API, schedules pods and judges nodes.
//!
//! Not here: reading whole objects, talking to nodes. Invariant: nothing is published, bound or judged before every kind was
//! listed once.

pub mod informer;
pub mod kind;
pub mod placement;
pub mod scheduler;
pub mod storage;
pub mod views;
pub mod writer;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::contract::{NodeDesired, Subscribe};
use crate::limits::FAILED_SCHEDULING_REPEAT;
use informer::Change;
use placement::{Affected, Placement};
use scheduler::{Candidate, Decision, Lifecycle, Verdict, decide, taints_due};
use storage::schedule::Needs;
use views::{Detail, Kind, View};
use writer::{PodRef, Write};

/// How often leases are judged and pods without a node are looked at again.
const TICK: Duration = Duration::from_secs(1);
/// When a write of the binder that did not show is made again.
const STORAGE_RETRY: Duration = Duration::from_secs(5);

pub struct Cluster {
    placement: Placement,
    published: HashMap<String, watch::Sender<Option<Arc<NodeDesired>>>>,
    changes: mpsc::Receiver<Change>,
    subscriptions: mpsc::Receiver<Subscribe>,
    /// `None` when a real cluster does the scheduling and the node lifecycle.
    duties: Option<Duties>,
}

/// What a cluster without a control plane of its own needs done.
pub struct Duties {
    writes: mpsc::Sender<Write>,
    lifecycle: Lifecycle,
    lease_grace: Duration,
    started: Instant,
    /// Bindings that the watch has not shown yet, by pod uid.
    assumed: HashMap<String, (String, Instant)>,
    refused: HashMap<String, (String, Instant)>,
    /// Writes of the binder that the watch has not shown yet.
    issued: storage::Issued,
    issued_since: Instant,
}

impl Duties {
    pub fn new(writes: mpsc::Sender<Write>, lease_grace: Duration) -> Duties {
        Duties {
            writes,
            lifecycle: Lifecycle::default(),
            lease_grace,
            started: Instant::now(),
            assumed: HashMap::new(),
            refused: HashMap::new(),
            issued: storage::Issued::default(),
            issued_since: Instant::now(),
        }
    }
}

impl Cluster {
    pub fn new(
        changes: mpsc::Receiver<Change>,
        subscriptions: mpsc::Receiver<Subscribe>,
        duties: Option<Duties>,
    ) -> Cluster {
        Cluster { placement: Placement::default(), published: HashMap::new(), changes, subscriptions, duties }
    }

    /// Runs until the watches or the hub have ended.
    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = self.changes.recv() => {
                    let Some(change) = change else { return };
                    let affected = self.apply_waiting(change);
                    self.publish(affected);
                    self.bind_storage();
                    self.schedule();
                }
                request = self.subscriptions.recv() => {
                    let Some(request) = request else { return };
                    self.subscribe(request);
                }
                _ = tick.tick() => {
                    self.published.retain(|_, sender| sender.receiver_count() > 0);
                    self.bind_storage();
                    self.schedule();
                    self.judge();
                }
            }
        }
    }

    /// Takes all changes that wait, so that a burst is published once.
    fn apply_waiting(&mut self, first: Change) -> Affected {
        let mut affected = self.placement.apply(first);
        while let Ok(change) = self.changes.try_recv() {
            affected = match (affected, self.placement.apply(change)) {
                (Affected::Nodes(mut nodes), Affected::Nodes(more)) => {
                    nodes.extend(more);
                    Affected::Nodes(nodes)
                }
                _ => Affected::All,
            };
        }
        affected
    }

    fn publish(&self, affected: Affected) {
        if !self.placement.is_complete() {
            return;
        }
        let is_affected = |node: &str| match &affected {
            Affected::All => true,
            Affected::Nodes(nodes) => nodes.contains(node),
        };
        for (node, sender) in self.published.iter().filter(|(node, _)| is_affected(node)) {
            let desired = self.placement.desired(node);
            sender.send_if_modified(|current| {
                let changed = current.as_deref() != Some(&desired);
                if changed {
                    *current = Some(Arc::new(desired));
                }
                changed
            });
        }
    }

    fn subscribe(&mut self, request: Subscribe) {
        let placement = &self.placement;
        let sender = self.published.entry(request.node).or_insert_with_key(|node| {
            let desired = placement.is_complete().then(|| Arc::new(placement.desired(node)));
            watch::Sender::new(desired)
        });
        // The session may be gone already.
        drop(request.reply.send(sender.subscribe()));
    }

    fn bind_storage(&mut self) {
        let Some(duties) = self.duties.as_mut().filter(|_| self.placement.is_complete()) else { return };
        if duties.issued_since.elapsed() >= STORAGE_RETRY {
            duties.issued.forget();
            duties.issued_since = Instant::now();
        }
        for action in storage::plan(&self.placement) {
            // Full: planned again at the next tick.
            if duties.issued.is_new(&action) && duties.writes.try_send(Write::Storage(action)).is_err() {
                return duties.issued.forget();
            }
        }
    }

    fn schedule(&mut self) {
        let Some(duties) = self.duties.as_mut().filter(|_| self.placement.is_complete()) else { return };
        let now = Instant::now();
        duties.assumed.retain(|_, (_, since)| now - *since < Duration::from_secs(30));
        let pending: Vec<(&View, &views::PodDetail)> = self
            .placement
            .all(Kind::Pod)
            .filter_map(|view| pod_of(view).map(|pod| (view, pod)))
            .filter(|(view, pod)| {
                pod.node.is_empty() && !pod.finished && view.meta.deletion_timestamp.is_none()
            })
            .filter(|(_, pod)| matches!(pod.scheduler.as_str(), "" | "default-scheduler"))
            .collect();
        let waiting: BTreeSet<&str> = pending.iter().map(|(view, _)| view.meta.uid.as_str()).collect();
        duties.refused.retain(|uid, _| waiting.contains(uid.as_str()));
        duties.assumed.retain(|uid, _| waiting.contains(uid.as_str()));
        if pending.is_empty() {
            return;
        }
        let mut loads = loads(&self.placement, duties);
        let mut taken = BTreeSet::new();
        for (view, pod) in pending {
            if duties.assumed.contains_key(&view.meta.uid) {
                continue;
            }
            let candidates: Vec<Candidate> =
                self.placement.all(Kind::Node).filter_map(|node| candidate(node, &loads)).collect();
            let pod_ref = PodRef {
                namespace: view.meta.namespace.clone(),
                name: view.meta.name.clone(),
                uid: view.meta.uid.clone(),
            };
            let uid = view.meta.uid.clone();
            let needs = Needs::of(&self.placement, &view.meta.namespace, pod);
            let decision = match &needs {
                Ok(needs) => decide(pod, &candidates, |node| {
                    needs.obstacle(&self.placement, &taken, node.name, node.labels)
                }),
                Err(reason) => {
                    Decision::Refused(format!("0/{} nodes are available: {reason}.", candidates.len()))
                }
            };
            match (decision, needs) {
                // The binder is at it; the next look binds the pod.
                (Decision::Bind(_), Ok(needs)) if needs.unfinished => {}
                (Decision::Bind(node), Ok(needs)) if needs.binds() => {
                    let labels = candidates.iter().find(|candidate| candidate.name == node);
                    let labels = labels.and_then(|candidate| candidate.labels);
                    let chosen = needs.choose(&self.placement, &taken, &node, labels).unwrap_or_default();
                    for action in needs.take(&chosen, &mut taken) {
                        if duties.issued.is_new(&action) {
                            drop(duties.writes.try_send(Write::Storage(action)));
                        }
                    }
                }
                (Decision::Bind(node), _) => {
                    if duties.writes.try_send(Write::Bind { pod: pod_ref, node: node.clone() }).is_ok() {
                        *loads.entry(node.clone()).or_default() += 1;
                        duties.assumed.insert(uid, (node, now));
                    }
                }
                (Decision::Refused(message), _) => {
                    let told = duties.refused.get(&uid);
                    if told.is_some_and(|(text, at)| *text == message && now - *at < FAILED_SCHEDULING_REPEAT)
                    {
                        continue;
                    }
                    let write = Write::Unschedulable { pod: pod_ref, message: message.clone() };
                    if duties.writes.try_send(write).is_ok() {
                        duties.refused.insert(uid, (message, now));
                    }
                }
            }
        }
    }

    fn judge(&mut self) {
        let Some(duties) = self.duties.as_mut().filter(|_| self.placement.is_complete()) else { return };
        let now_ms = duties.started.elapsed().as_millis() as u64;
        let grace_ms = duties.lease_grace.as_millis() as u64;
        let placement = &self.placement;
        duties.lifecycle.forget(|node| placement.get(Kind::Node, "", node).is_some());
        for view in placement.all(Kind::Node) {
            let Detail::Node(node) = &view.detail else { continue };
            let name = view.meta.name.as_str();
            let lease = placement.get(Kind::Lease, "kube-node-lease", name);
            let renew_time = match lease.map(|lease| &lease.detail) {
                Some(Detail::Lease { renew_time }) => renew_time.as_str(),
                _ => "",
            };
            let taints = taints_due(node);
            if !taints.is_empty() {
                drop(duties.writes.try_send(Write::NodeTaints { node: name.into(), taints }));
            }
            let write = match duties.lifecycle.judge(now_ms, grace_ms, name, renew_time, &node.conditions) {
                Some(Verdict::Silent(renew_time)) => Write::NodeSilent { node: name.into(), renew_time },
                Some(Verdict::Back) => Write::NodeBack { node: name.into() },
                None => continue,
            };
            // Full: judged again at the next tick.
            drop(duties.writes.try_send(write));
        }
    }
}

fn pod_of(view: &View) -> Option<&views::PodDetail> {
    match &view.detail {
        Detail::Pod(pod) => Some(pod),
        _ => None,
    }
}

fn loads(placement: &Placement, duties: &Duties) -> BTreeMap<String, u64> {
    let bound =
        placement.all(Kind::Pod).filter_map(pod_of).filter(|pod| !pod.finished && !pod.node.is_empty());
    let mut loads: BTreeMap<String, u64> = BTreeMap::new();
    for node in bound.map(|pod| &pod.node).chain(duties.assumed.values().map(|(node, _)| node)) {
        *loads.entry(node.clone()).or_default() += 1;
    }
    loads
}

fn candidate<'a>(view: &'a View, loads: &BTreeMap<String, u64>) -> Option<Candidate<'a>> {
    let Detail::Node(detail) = &view.detail else { return None };
    let name = view.meta.name.as_str();
    Some(Candidate {
        name,
        labels: view.meta.labels.as_ref(),
        detail,
        pods: loads.get(name).copied().unwrap_or(0),
    })
}
