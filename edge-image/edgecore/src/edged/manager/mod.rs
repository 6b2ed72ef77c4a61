//! All pods of the node as one plain state machine: which workers there are, and whose turn it is.
//!
//! Invariants
//! - Nothing is started or removed before the runtime was observed once: what runs is adopted, never made again.
//! - A sandbox that nobody wants is removed only if a record in this store tells of it, if it has no container at all, or if a
//!   wanted pod of the same name needs its place. An empty store never empties the runtime.
//! - Two pods of one namespace and name never run side by side: the new one waits until the old one is gone.

mod door;
mod reconcile;
mod tell;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use super::{
    admission::Gate,
    device_plugin::book::{Claim, News},
    events::Event,
    observed::Observed,
    pod::{Pod, PodError},
    pressure::NodeCondition,
    record::Record,
    status::{self, NodeFacts},
    worker::{Health, Now, Outcome, Ticket, Work, WorkError, Worker},
};
use tell::{Told, tell};

/// A pod object as it stands in the store.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub deleting: bool,
    pub pod: Result<Arc<Pod>, PodError>,
}

#[derive(Debug)]
pub enum Input {
    /// All pod objects, read from the store.
    Desired(Vec<Wanted>),
    Observed {
        began: Ticket,
        observed: Observed,
    },
    Done {
        incarnation: String,
        result: Result<(), WorkError>,
    },
    /// A probe came to a verdict, or to another one.
    Probe {
        incarnation: String,
        container_id: String,
        outcome: Outcome,
    },
    /// The node gives a pod up (eviction, preemption): its containers are stopped within `grace` (`None`: the pod's own), then it
    /// is Failed with this reason for good. With reason `Evicted` or `Preempting` it has the condition DisruptionTarget.
    Fail {
        uid: String,
        reason: String,
        message: String,
        grace: Option<Duration>,
    },
    /// A device plugin came, went or listed its devices.
    Devices(News),
    /// The plugins answered for a pod, and their answer is durable; or why they did not.
    Allocated {
        incarnation: String,
        result: Result<(), String>,
    },
    /// The cloud was asked for its Node object for a pod's sake, and what it said, if anything, is in the gate.
    NodeAsked {
        incarnation: String,
    },
    /// Time passed, or the node's facts changed.
    Tick,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// One step; answered with `Input::Done`.
    Work { incarnation: String, work: Work },
    /// Stops harder what a step is already stopping; no answer.
    Hasten { incarnation: String, grace: Duration },
    /// Drop the step under way; its `Input::Done` says `Retry::Now`.
    CallOff { incarnation: String },
    /// Something to tell of a pod, in kubelet's words.
    Event { incarnation: String, event: Event },
    /// The newest status of a pod.
    Report { namespace: String, name: String, uid: String, status: Value },
    /// Containers, volumes and network of a pod that is being deleted are gone: the cloud may remove the object.
    ReportGone { namespace: String, name: String, uid: String },
    /// Ask device plugins for what a pod needs to use these devices; answered with `Input::Allocated`. The pod waits for it.
    Allocate { incarnation: String, claims: Vec<Claim> },
    /// Ask the cloud for its newest Node object; answered with `Input::NodeAsked`. The pod waits for it.
    AskNode { incarnation: String },
    /// A pod's devices are free again.
    Release { incarnation: String },
    /// Look at the runtime again.
    Observe,
}

/// A pod that is not run, and what was last told of it.
struct Refused {
    wanted: Wanted,
    reason: &'static str,
    message: String,
    told: bool,
}

pub struct Manager {
    node: NodeFacts,
    /// Who may come in.
    pub gate: Gate,
    /// By incarnation. Boxed: a map keeps room for more than it has.
    workers: BTreeMap<String, Box<Worker>>,
    told: BTreeMap<String, Told>,
    /// Newcomers that the Node object, as it is known, does not let in, by incarnation.
    doubted: BTreeSet<String>,
    /// By uid.
    refused: BTreeMap<String, Refused>,
    /// Wanted pods that wait for the first observation.
    waiting: Option<Vec<Wanted>>,
    /// Namespace and name of every wanted pod.
    places: BTreeSet<(String, String)>,
    /// The desired state was read and applied.
    reconciled: bool,
    /// Identity of the cloud whose pods are wanted. A pod of another one, which can only be from before `join --adopt`, is bound to
    /// the new uid of its name if its spec is the same.
    cloud: String,
    /// What the node is short of: such pods are not taken as would make it worse.
    pub pressure: Vec<NodeCondition>,
    ticket: Ticket,
    observed: Option<Observed>,
    /// What probes found before the agent restarted, by container id, until the first observation.
    known: BTreeMap<String, Health>,
}

impl Manager {
    /// `records`: all that the store has.
    pub fn new(records: Vec<Record>) -> Manager {
        let worker = |record: Record| (record.incarnation.clone(), Box::new(Worker::new(record, None, true)));
        let workers = records.into_iter().map(worker).collect();
        Manager {
            node: NodeFacts::default(),
            gate: Gate::default(),
            workers,
            told: BTreeMap::new(),
            doubted: BTreeSet::new(),
            refused: BTreeMap::new(),
            waiting: None,
            places: BTreeSet::new(),
            reconciled: false,
            cloud: String::new(),
            pressure: Vec::new(),
            ticket: 0,
            observed: None,
            known: BTreeMap::new(),
        }
    }

    /// What probes found before the agent restarted, by container id: the first status must not show less.
    pub fn remember(&mut self, known: BTreeMap<String, Health>) {
        self.known = known;
    }

    /// Whose pods are wanted from now on; to be called before the first input.
    pub fn set_cloud(&mut self, cloud: &str) {
        self.cloud = cloud.into();
        for worker in self.workers.values_mut() {
            worker.record.cloud.get_or_insert_with(|| cloud.into());
        }
    }

    pub fn node(&self) -> &NodeFacts {
        &self.node
    }

    /// Statuses that show what changed are reported with the next input.
    pub fn set_node(&mut self, node: NodeFacts) {
        if node != self.node {
            self.node = node;
            self.workers.values_mut().for_each(|worker| worker.touch());
        }
    }

    /// The time of an observation that begins now.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// The desired state was read and the runtime was seen: every pod that runs here is known.
    pub fn is_reconciled(&self) -> bool {
        self.reconciled && self.observed.is_some()
    }

    /// The status of a pod goes out again: who it is for has changed.
    pub fn tell_again(&mut self, uid: &str) {
        for worker in self.workers.values_mut().filter(|worker| worker.record.uid == uid) {
            self.told.remove(&worker.record.incarnation);
            worker.touch();
        }
    }

    pub fn worker(&self, incarnation: &str) -> Option<&Worker> {
        self.workers.get(incarnation).map(Box::as_ref)
    }

    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values().map(Box::as_ref)
    }

    /// When to look again though nothing happens.
    pub fn wake(&self, now: Now) -> Option<Duration> {
        self.workers.values().filter_map(|worker| worker.wake(now)).min()
    }

    /// Of the pods that have a worker, and of those that the runtime holds.
    pub fn incarnations(&self) -> impl Iterator<Item = String> {
        let seen = self.observed.iter().flat_map(|observed| &observed.sandboxes);
        self.workers.keys().cloned().chain(seen.map(|sandbox| sandbox.incarnation.clone()))
    }

    /// Objects that volumes and environments are made of changed: what waits for one is tried again now.
    pub fn sources_changed(&mut self, now: Now) {
        self.workers.values_mut().for_each(|worker| worker.sources_changed(now));
    }

    pub fn handle(&mut self, now: Now, input: Input) -> Vec<Action> {
        self.ticket += 1;
        let mut actions = Vec::new();
        match input {
            Input::Desired(wanted) => match self.observed {
                Some(_) => self.reconcile(now, wanted, &mut actions),
                None => self.waiting = Some(wanted),
            },
            Input::Observed { began, observed } => {
                for (id, health) in std::mem::take(&mut self.known) {
                    let container = observed.containers.iter().find(|c| c.id == id);
                    let sandbox =
                        container.and_then(|c| observed.sandboxes.iter().find(|s| s.id == c.sandbox_id));
                    let worker = sandbox.and_then(|sandbox| self.workers.get_mut(&sandbox.incarnation));
                    if let Some(worker) = worker {
                        worker.health.insert(id, health);
                    }
                }
                for worker in self.workers.values_mut() {
                    worker.observe(now, began, &observed);
                }
                self.observed = Some(observed);
                match self.waiting.take() {
                    Some(wanted) => self.reconcile(now, wanted, &mut actions),
                    None if self.reconciled => self.take_orphans(now),
                    None => {}
                }
            }
            Input::Done { incarnation, result } => {
                if let Some(worker) = self.workers.get_mut(&incarnation) {
                    worker.done(now, self.ticket, result);
                    if !worker.is_fresh() {
                        actions.push(Action::Observe);
                    }
                    if worker.is_forgotten() {
                        self.workers.remove(&incarnation);
                        self.told.remove(&incarnation);
                    }
                }
            }
            Input::Probe { incarnation, container_id, outcome } => {
                if let Some(worker) = self.workers.get_mut(&incarnation) {
                    worker.probed(&container_id, outcome);
                }
            }
            Input::Fail { uid, reason, message, grace } => {
                if let Some(worker) = self.workers.values_mut().find(|worker| worker.record.uid == uid) {
                    worker.give_up(&reason, &message, grace);
                }
            }
            Input::Devices(news) => self.gate.devices.handle(now.mono, news),
            Input::Allocated { incarnation, result } => self.allocated(&incarnation, result, &mut actions),
            Input::NodeAsked { incarnation } => self.node_asked(incarnation, &mut actions),
            Input::Tick => {}
        }
        if self.is_reconciled() {
            let active = |incarnation: &str| {
                self.workers.get(incarnation).is_some_and(|worker| worker.record.ended.is_none())
            };
            let released = self.gate.devices.release(active);
            actions.extend(released.into_iter().map(|incarnation| Action::Release { incarnation }));
        }
        // Until the desired state was read and the runtime was seen, nothing moves.
        if self.observed.is_some() && self.waiting.is_none() && self.reconciled {
            self.step(now, &mut actions);
        }
        actions
    }

    fn step(&mut self, now: Now, actions: &mut Vec<Action>) {
        let leaving: BTreeSet<(String, String)> = self
            .workers
            .values()
            .filter(|worker| worker.desired.is_none())
            .map(|worker| (worker.record.full_name(), worker.record.incarnation.clone()))
            .collect();
        for (incarnation, worker) in self.workers.iter_mut().filter(|(_, worker)| worker.is_due(now)) {
            let name = worker.record.full_name();
            let taken =
                worker.desired.is_some() && leaving.iter().any(|(n, i)| *n == name && i != incarnation);
            let held = self.gate.devices.is_pending(incarnation) || self.doubted.contains(incarnation);
            let blocked = taken || held && !worker.is_deleting();
            if !blocked && let Some(work) = worker.next(now) {
                actions.push(Action::Work { incarnation: incarnation.clone(), work });
            }
            let event = |event| Action::Event { incarnation: incarnation.clone(), event };
            actions.extend(worker.take_events().into_iter().map(event));
            tell(worker, self.told.entry(incarnation.clone()).or_default(), now, &self.node, actions);
            worker.rest(now);
            if blocked {
                worker.touch();
            }
        }
        for refused in self.refused.values_mut().filter(|refused| !refused.told) {
            refused.told = true;
            let Wanted { namespace, name, uid, deleting, .. } = refused.wanted.clone();
            actions.push(if deleting {
                Action::ReportGone { namespace, name, uid }
            } else {
                let status = status::render_refused(&refused.message, refused.reason, now);
                Action::Report { namespace, name, uid, status }
            });
        }
    }
}
