//! All pods of the node as one plain state machine: which workers there are, and whose turn it is.
//!
//! Invariants
//! - Nothing is started or removed before the runtime was observed once: what runs is adopted, never made again.
//! - A sandbox that nobody wants is removed only if a record in this store tells of it, if it has no container at all, or if a
//!   wanted pod of the same name needs its place. An empty store never empties the runtime.
//! - Two pods of one namespace and name never run side by side: the new one waits until the old one is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use super::{
    admission::{self, Entry, Gate, Rejection},
    device_plugin::book::{Claim, News},
    events::Event,
    limits,
    observed::{Observed, Sandbox},
    pod::{Pod, PodError},
    pressure::{NodeCondition, refuses},
    record::{Ended, Record},
    status::{self, NodeFacts, Transitions},
    worker::{Health, Now, Outcome, Ticket, Turn, Work, WorkError, Worker},
};

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

#[derive(Default)]
struct Told {
    /// Of the last report: two kilobytes less per pod than the report itself. Taken for another one once in 2^64, it is told with
    /// the next change.
    status: Option<u64>,
    transitions: Transitions,
    gone: bool,
}

pub struct Manager {
    node: NodeFacts,
    /// Who may come in.
    pub gate: Gate,
    /// By incarnation.
    workers: BTreeMap<String, Worker>,
    told: BTreeMap<String, Told>,
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
        let workers =
            records.into_iter().map(|r| (r.incarnation.clone(), Worker::new(r, None, true))).collect();
        Manager {
            node: NodeFacts::default(),
            gate: Gate::default(),
            workers,
            told: BTreeMap::new(),
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
            self.workers.values_mut().for_each(Worker::touch);
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
        self.workers.get(incarnation)
    }

    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
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
                    if worker.is_forgotten() {
                        self.workers.remove(&incarnation);
                        self.told.remove(&incarnation);
                    }
                }
                actions.push(Action::Observe);
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

    fn reconcile(&mut self, now: Now, wanted: Vec<Wanted>, actions: &mut Vec<Action>) {
        self.reconciled = true;
        let uids: BTreeSet<&str> = wanted.iter().map(|w| w.uid.as_str()).collect();
        self.refused.retain(|uid, _| uids.contains(uid.as_str()));
        // Before anything is stopped: a pod of the cloud before goes on under its new uid.
        for wanted in &wanted {
            if let Ok(pod) = &wanted.pod {
                self.rebind(pod, &uids);
            }
        }
        for worker in self.workers.values_mut().filter(|w| !uids.contains(w.record.uid.as_str())) {
            harden(worker, None, actions);
        }
        self.places = wanted.iter().map(|wanted| (wanted.namespace.clone(), wanted.name.clone())).collect();
        // Those that run here come before newcomers, and of these the older ones first.
        let known: BTreeSet<String> = self.workers.values().map(|worker| worker.record.uid.clone()).collect();
        let mut wanted = wanted;
        wanted.sort_by_cached_key(|wanted| {
            let made = wanted.pod.as_ref().ok().and_then(|pod| pod.metadata.creation_timestamp.clone());
            (!known.contains(&wanted.uid), made.unwrap_or_default())
        });
        for wanted in wanted {
            self.want(now, wanted, actions);
        }
        self.take_orphans(now);
    }

    fn want(&mut self, now: Now, wanted: Wanted, actions: &mut Vec<Action>) {
        let known = self.workers.values_mut().find(|worker| worker.record.uid == wanted.uid);
        if let Some(worker) = known {
            match wanted.pod {
                Ok(pod) => harden(worker, Some(pod), actions),
                // What runs goes on; the error is shown with its status.
                Err(error) => {
                    worker.refused = Some(error.to_string());
                    worker.touch();
                }
            }
            return;
        }
        let pod = match &wanted.pod {
            Ok(pod) => pod.clone(),
            Err(error) => return self.refuse(wanted.clone(), "InvalidPodSpec", error.to_string()),
        };
        if self.workers.len() >= limits::PODS_MAX && !wanted.deleting {
            let message = format!("this node runs {} pods already, its limit; delete one", limits::PODS_MAX);
            return self.refuse(wanted, "OutOfpods", message);
        }
        self.refused.remove(&wanted.uid);
        let unrecorded = self.unrecorded(&wanted.uid).map(|sandbox| sandbox.incarnation.clone());
        let is_new = unrecorded.is_none() && !wanted.deleting;
        let incarnation = unrecorded.unwrap_or_else(|| wanted.uid.clone());
        let record = Record {
            incarnation: incarnation.clone(),
            namespace: wanted.namespace,
            name: wanted.name,
            uid: wanted.uid,
            cloud: Some(self.cloud.clone()),
            grace_s: pod.grace().as_secs(),
            ended: ended(&pod.status.phase),
            ..Record::default()
        };
        let mut worker = Worker::new(record, Some(pod), false);
        worker.ended_elsewhere = worker.record.ended.is_some();
        if is_new && !worker.ended_elsewhere {
            self.enter(&mut worker, actions);
        }
        if let Some(observed) = &self.observed {
            worker.observe(now, self.ticket, observed);
        }
        self.workers.insert(incarnation, worker);
    }

    /// A newcomer is admitted, for a critical one others are ended, or it is Failed before it ran.
    fn enter(&mut self, newcomer: &mut Worker, actions: &mut Vec<Action>) {
        let Some(pod) = newcomer.desired.clone() else { return };
        if let Some(message) = refuses(&pod, &self.pressure) {
            return reject(newcomer, &Rejection::new("Evicted", message), actions);
        }
        let incarnation = newcomer.record.incarnation.clone();
        let has_place = |worker: &&Worker| worker.record.ended.is_none() && worker.record.failing.is_none();
        let placed = self.workers.values().filter(has_place);
        let others: Vec<&Pod> = placed.filter_map(|worker| worker.desired.as_deref()).collect();
        match self.gate.enter(&incarnation, &pod, &others) {
            Entry::Admitted { claims, victims } => {
                for uid in victims {
                    self.preempt(&uid, actions);
                }
                if !claims.is_empty() {
                    actions.push(Action::Allocate { incarnation, claims });
                }
            }
            Entry::Rejected(rejection) => reject(newcomer, &rejection, actions),
        }
    }

    fn preempt(&mut self, uid: &str, actions: &mut Vec<Action>) {
        const REASON: &str = "Preempting";
        const MESSAGE: &str = "Preempted in order to admit critical pod";
        let Some(worker) = self.workers.values_mut().find(|worker| worker.record.uid == uid) else { return };
        if worker.give_up(REASON, MESSAGE, None) {
            let incarnation = worker.record.incarnation.clone();
            actions.push(Action::Event { incarnation, event: Event::warning(REASON, MESSAGE) });
        }
    }

    fn allocated(&mut self, incarnation: &str, result: Result<(), String>, actions: &mut Vec<Action>) {
        self.gate.devices.answered(incarnation, result.is_ok());
        let Some(worker) = self.workers.get_mut(incarnation) else { return };
        worker.touch();
        if let Err(error) = result {
            reject(worker, &admission::allocation_failed(&error), actions);
        }
    }

    /// A sandbox of this uid whose record was lost with the store: the pod is adopted from the runtime's labels.
    fn unrecorded(&self, uid: &str) -> Option<&Sandbox> {
        let sandboxes = &self.observed.as_ref()?.sandboxes;
        sandboxes.iter().find(|s| s.uid == uid && !self.workers.contains_key(&s.incarnation))
    }

    fn rebind(&mut self, pod: &Arc<Pod>, wanted: &BTreeSet<&str>) {
        if pod.metadata.deletion_timestamp.is_some()
            || self.workers.values().any(|w| w.record.uid == pod.metadata.uid)
        {
            return;
        }
        let (name, hash) = (pod.full_name(), pod.spec_hash());
        let same = |worker: &&mut Worker| {
            let record = &worker.record;
            let foreign = record.cloud.as_ref().is_some_and(|cloud| *cloud != self.cloud);
            foreign
                && !wanted.contains(record.uid.as_str())
                && record.full_name() == name
                && record.spec_hash == hash
        };
        let Some(worker) = self.workers.values_mut().find(same) else { return };
        tracing::info!("pod {name} goes on under the uid that its new cloud gave it, {}", pod.metadata.uid);
        worker.record.cloud = Some(self.cloud.clone());
        worker.rebind(pod.clone());
        // Under the new uid nothing was told yet.
        self.told.remove(&worker.record.incarnation);
    }

    /// Sandboxes without a record stay, unless they hold the place of a wanted pod or hold nothing: a killed agent's last call may
    /// make one after its pod was forgotten.
    fn take_orphans(&mut self, now: Now) {
        let Some(observed) = &self.observed else { return };
        for sandbox in &observed.sandboxes {
            let place = (sandbox.namespace.clone(), sandbox.name.clone());
            let in_use = observed.in_sandbox(&sandbox.id).next().is_some();
            if self.workers.contains_key(&sandbox.incarnation) || in_use && !self.places.contains(&place) {
                continue;
            }
            let record = Record {
                incarnation: sandbox.incarnation.clone(),
                namespace: sandbox.namespace.clone(),
                name: sandbox.name.clone(),
                uid: sandbox.uid.clone(),
                grace_s: limits::GRACE_DEFAULT.as_secs(),
                ..Record::default()
            };
            let mut worker = Worker::new(record, None, true);
            worker.observe(now, self.ticket, observed);
            self.workers.insert(sandbox.incarnation.clone(), worker);
        }
    }

    fn refuse(&mut self, wanted: Wanted, reason: &'static str, message: String) {
        let told = self
            .refused
            .get(&wanted.uid)
            .is_some_and(|old| old.message == message && old.told && old.wanted.deleting == wanted.deleting);
        self.refused.insert(wanted.uid.clone(), Refused { wanted, reason, message, told });
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
            let unequipped = !worker.is_deleting() && self.gate.devices.is_pending(incarnation);
            let blocked = taken || unequipped;
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

/// A pod does not leave a terminal phase, whoever wrote it.
fn ended(phase: &str) -> Option<Ended> {
    match phase {
        "Succeeded" => Some(Ended::Succeeded),
        "Failed" => Some(Ended::Failed),
        _ => None,
    }
}

fn reject(worker: &mut Worker, rejection: &Rejection, actions: &mut Vec<Action>) {
    if worker.give_up(&rejection.reason, &rejection.status_message(), None) {
        let event = Event::warning(rejection.reason.clone(), rejection.message.clone());
        actions.push(Action::Event { incarnation: worker.record.incarnation.clone(), event });
    }
}

fn harden(worker: &mut Worker, desired: Option<Arc<Pod>>, actions: &mut Vec<Action>) {
    let incarnation = worker.record.incarnation.clone();
    match worker.set_desired(desired) {
        Turn::GoOn => {}
        Turn::Hasten { grace } => actions.push(Action::Hasten { incarnation, grace }),
        Turn::CallOff => actions.push(Action::CallOff { incarnation }),
    }
}

fn digest(status: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    status.hash(&mut hasher);
    hasher.finish()
}

/// Reports what changed since the last report.
fn tell(worker: &Worker, told: &mut Told, now: Now, node: &NodeFacts, actions: &mut Vec<Action>) {
    let Some(status) = status::render(worker, now, node, &mut told.transitions) else { return };
    let (namespace, name, uid) =
        (worker.record.namespace.clone(), worker.record.name.clone(), worker.record.uid.clone());
    let digest = digest(&status);
    if told.status != Some(digest) {
        told.status = Some(digest);
        actions.push(Action::Report {
            namespace: namespace.clone(),
            name: name.clone(),
            uid: uid.clone(),
            status,
        });
    }
    if worker.is_deleting() && worker.is_cleaned() && !told.gone {
        told.gone = true;
        actions.push(Action::ReportGone { namespace, name, uid });
    }
}
