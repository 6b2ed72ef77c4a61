//! The manager under seeds: a runtime that fails, answers late or not at all, containers that end, agents that are killed
//! between any two steps, power cuts, and a cloud that changes its mind.
//!
//! What must hold at every moment: never two running sandboxes for one pod, and nothing that is wanted is stopped by an agent
//! restart. What must hold in the end: what is wanted runs, what is not wanted is gone, to the last record.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde_json::json;

use crate::edged::{
    manager::{Action, Input, Manager, Wanted},
    observed::{Container, Observed, Sandbox, State},
    pod::{Pod, RestartPolicy},
    record::Record,
    worker::{Now, Retry, Work, WorkError},
};

/// So many in every run; more with `SEEDS=n`. One that failed is run alone with `SEED=n`.
const SEEDS: u64 = 40;
/// Seeds that once failed.
const KEPT: [u64; 4] = [6, 12, 77, 377];
const NAMES: [&str; 3] = ["a", "b", "c"];

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// The runtime: what it holds, and calls that it is still carrying out for an agent that may be gone.
#[derive(Default)]
struct Runtime {
    seen: Observed,
    made: u64,
}

impl Runtime {
    fn id(&mut self) -> String {
        self.made += 1;
        format!("id{}", self.made)
    }

    fn apply(&mut self, record: &Record, pod: Option<&Pod>, work: &Work) -> Result<(), WorkError> {
        match work {
            Work::RunSandbox { attempt } => {
                let taken = |s: &Sandbox| s.incarnation == record.incarnation && s.attempt == *attempt;
                if self.seen.sandboxes.iter().any(taken) {
                    return Err(failed("the name is reserved"));
                }
                let id = self.id();
                self.seen.sandboxes.push(Sandbox {
                    id,
                    incarnation: record.incarnation.clone(),
                    namespace: record.namespace.clone(),
                    name: record.name.clone(),
                    uid: record.uid.clone(),
                    attempt: *attempt,
                    ready: true,
                    ips: vec!["10.0.0.2".into()],
                });
            }
            Work::RetireSandbox { id } => {
                self.seen.sandboxes.retain(|s| s.id != *id);
                self.seen.containers.retain(|c| c.sandbox_id != *id);
            }
            Work::StopSandbox { id } => {
                self.seen.sandboxes.iter_mut().filter(|s| s.id == *id).for_each(|s| s.ready = false);
                let inside = |c: &&mut Container| c.sandbox_id == *id && c.state == State::Running;
                self.seen.containers.iter_mut().filter(inside).for_each(|c| end(c, 137));
            }
            Work::CreateContainer { sandbox, name, attempt, .. } => {
                if !self.seen.sandboxes.iter().any(|s| s.id == sandbox.id && s.ready) {
                    return Err(failed("no such sandbox"));
                }
                let taken =
                    |c: &Container| c.sandbox_id == sandbox.id && c.name == *name && c.attempt == *attempt;
                if self.seen.containers.iter().any(taken) {
                    return Err(failed("the name is reserved"));
                }
                let wanted = pod.unwrap().all_containers().find(|c| c.name == *name).unwrap();
                let container = Container {
                    id: self.id(),
                    sandbox_id: sandbox.id.clone(),
                    name: name.clone(),
                    attempt: *attempt,
                    hash: wanted.hash(),
                    ..Container::default()
                };
                self.seen.containers.push(container);
            }
            Work::StartContainer { id, .. } => {
                let container = self.seen.containers.iter_mut().find(|c| c.id == *id);
                let Some(container) = container else { return Err(failed("no such container")) };
                if container.state == State::Created {
                    container.state = State::Running;
                }
            }
            Work::StopContainers { stops, .. } => {
                let named = |c: &Container| stops.iter().any(|stop| stop.id == c.id);
                let running = |c: &&mut Container| named(c) && c.state != State::Exited;
                self.seen.containers.iter_mut().filter(running).for_each(|c| end(c, 0));
            }
            Work::RemoveContainer { id, .. } => self.seen.containers.retain(|c| c.id != *id),
            Work::Persist(_) | Work::PrepareVolumes | Work::CleanUp | Work::Forget => {}
        }
        Ok(())
    }

    fn power_cut(&mut self) {
        self.seen.sandboxes.iter_mut().for_each(|s| s.ready = false);
        self.seen.containers.iter_mut().filter(|c| c.state == State::Running).for_each(|c| end(c, 255));
    }
}

fn end(container: &mut Container, code: i32) {
    container.state = State::Exited;
    container.exit_code = code;
}

fn failed(message: &str) -> WorkError {
    WorkError { reason: "RuntimeError", message: message.into(), retry: Retry::Backoff }
}

struct World {
    random: Random,
    now: Now,
    runtime: Runtime,
    /// The durable records.
    records: BTreeMap<String, Record>,
    /// The pod objects by name.
    objects: BTreeMap<&'static str, Pod>,
    manager: Manager,
    /// Steps that the agent waits for.
    pending: Vec<(String, Record, Option<Arc<Pod>>, Work)>,
    /// Calls of killed agents that the runtime is still busy with.
    stray: Vec<(Record, Option<Arc<Pod>>, Work)>,
    uids: u64,
    faults: bool,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            random: Random(seed),
            now: Now { mono: Duration::from_secs(1), unix: 1_795_000_000 },
            runtime: Runtime::default(),
            records: BTreeMap::new(),
            objects: BTreeMap::new(),
            manager: Manager::new(Vec::new()),
            pending: Vec::new(),
            stray: Vec::new(),
            uids: 0,
            faults: true,
        }
    }

    fn wanted(&self) -> Vec<Wanted> {
        let wanted = |pod: &Pod| Wanted {
            namespace: "default".into(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            pod: Ok(pod.clone().into()),
        };
        self.objects.values().map(wanted).collect()
    }

    fn input(&mut self, input: Input) {
        for action in self.manager.handle(self.now, input) {
            match action {
                Action::Work { incarnation, work } => {
                    let worker = self.manager.worker(&incarnation).unwrap();
                    let (record, pod) = (worker.record.clone(), worker.spec.clone());
                    self.check_not_stopped(&record, &work);
                    self.pending.push((incarnation, record, pod, work));
                }
                Action::ReportGone { name, uid, .. } => {
                    // A killed agent's last call may make an empty sandbox at any time; what must not be is something that runs.
                    let of_pod = |s: &&Sandbox| s.uid == uid;
                    let running =
                        |s: &Sandbox| self.runtime.seen.in_sandbox(&s.id).any(|c| c.state == State::Running);
                    let left = self.runtime.seen.sandboxes.iter().filter(of_pod).any(running);
                    assert!(!left, "{name} is reported gone and runs");
                    // The cloud takes the object away, at once or later.
                    if self.random.one_in(2) {
                        self.objects.retain(|n, _| *n != name);
                    }
                }
                Action::CallOff { incarnation } => self.call_off(&incarnation),
                Action::Allocate { .. } | Action::Release { .. } => {
                    unreachable!("no pod here asks for devices")
                }
                Action::Hasten { .. } | Action::Report { .. } | Action::Event { .. } | Action::Observe => {}
            }
        }
        self.check();
    }

    /// What is wanted and runs is left alone.
    fn check_not_stopped(&self, record: &Record, work: &Work) {
        let pod = self.objects.get(record.name.as_str()).filter(|pod| pod.metadata.uid == record.uid);
        let wanted =
            pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_none()) && record.ended.is_none();
        let touched = match work {
            Work::StopContainers { stops, .. } => stops.iter().map(|stop| stop.id.clone()).collect(),
            Work::RetireSandbox { id } => {
                let live = self.runtime.seen.sandboxes.iter().any(|s| s.id == *id && s.ready);
                self.runtime.seen.in_sandbox(id).filter(|_| live).map(|c| c.id.clone()).collect()
            }
            _ => Vec::new(),
        };
        let running = |c: &&Container| touched.contains(&c.id) && c.state == State::Running;
        let hurt: Vec<&Container> = self.runtime.seen.containers.iter().filter(running).collect();
        assert!(!wanted || hurt.is_empty(), "{work:?} stops {hurt:?}, which is wanted");
    }

    fn check(&self) {
        let seen = &self.runtime.seen;
        let (mut pods, mut places) = (BTreeSet::new(), BTreeSet::new());
        for sandbox in seen.sandboxes.iter().filter(|s| s.ready) {
            assert!(pods.insert(&sandbox.incarnation), "two sandboxes for {}: {seen:#?}", sandbox.name);
            // An empty one of an older pod of that name may come from a killed agent's last call.
            if seen.in_sandbox(&sandbox.id).any(|c| c.state == State::Running) {
                assert!(places.insert(&sandbox.name), "two pods named {} run: {seen:#?}", sandbox.name);
            }
        }
    }

    fn observe(&mut self) {
        let began = self.manager.ticket();
        let observed = self.runtime.seen.clone();
        // Others happen while the lists are on their way.
        if self.faults && self.random.one_in(4) {
            self.finish();
        }
        self.input(Input::Observed { began, observed });
    }

    /// One pending step ends, in one of the ways a step can end.
    fn finish(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let at = self.random.below(self.pending.len() as u64) as usize;
        let (incarnation, record, pod, work) = self.pending.swap_remove(at);
        let result = match self.random.below(if self.faults { 10 } else { 1 }) {
            8 => Err(failed("did not work")),
            9 => {
                // Done, but the answer is lost.
                let _ = self.carry_out(&record, pod.as_deref(), &work);
                Err(WorkError { retry: Retry::Soon, ..failed("the connection broke") })
            }
            _ => self.carry_out(&record, pod.as_deref(), &work),
        };
        self.check();
        self.input(Input::Done { incarnation, result });
    }

    /// The agent drops a call; the runtime may carry it out all the same.
    fn call_off(&mut self, incarnation: &str) {
        let Some(at) = self.pending.iter().position(|(of, ..)| of == incarnation) else { return };
        let (incarnation, record, pod, work) = self.pending.swap_remove(at);
        if self.random.one_in(2) {
            self.stray.push((record, pod, work));
        }
        self.input(Input::Done { incarnation, result: Err(WorkError::called_off()) });
    }

    fn carry_out(&mut self, record: &Record, pod: Option<&Pod>, work: &Work) -> Result<(), WorkError> {
        match work {
            Work::Persist(record) => {
                self.records.insert(record.incarnation.clone(), record.clone());
            }
            Work::Forget => {
                self.records.remove(&record.incarnation);
            }
            _ => {}
        }
        self.runtime.apply(record, pod, work)
    }

    /// The agent is killed. A call that was under way is dropped, or the runtime still carries it out.
    fn kill_agent(&mut self) {
        for (_, record, pod, work) in std::mem::take(&mut self.pending) {
            if self.random.one_in(2) {
                self.stray.push((record, pod, work));
            }
        }
        self.manager = Manager::new(self.records.values().cloned().collect());
        self.now.mono = Duration::from_secs(1);
        self.input(Input::Desired(self.wanted()));
    }

    fn stray(&mut self) {
        if self.stray.is_empty() {
            return;
        }
        let at = self.random.below(self.stray.len() as u64) as usize;
        let (record, pod, work) = self.stray.swap_remove(at);
        // Writing to the store ends with the process; only the runtime's calls go on.
        if !matches!(work, Work::Persist(_) | Work::Forget) {
            let _ = self.runtime.apply(&record, pod.as_deref(), &work);
        }
        self.check();
    }

    fn change_mind(&mut self) {
        let name = NAMES[self.random.below(3) as usize];
        match self.objects.get_mut(name) {
            None => {
                self.uids += 1;
                let policy = ["Always", "OnFailure", "Never"][self.random.below(3) as usize];
                let init =
                    if self.random.one_in(2) { json!([{ "name": "i", "image": "x" }]) } else { json!([]) };
                let pod = json!({
                    "metadata": { "name": name, "namespace": "default", "uid": format!("u{}", self.uids) },
                    "spec": {
                        "restartPolicy": policy, "initContainers": init,
                        "containers": [{ "name": "m", "image": "x" }, { "name": "n", "image": "x" }],
                    },
                });
                self.objects.insert(name, Pod::parse(pod.to_string().as_bytes()).unwrap());
            }
            Some(pod) if pod.metadata.deletion_timestamp.is_none() && !self.random.one_in(4) => {
                pod.metadata.deletion_timestamp = Some("2026-11-21T08:00:00Z".into());
            }
            // Forced, or the cloud's last word.
            Some(_) => drop(self.objects.remove(name)),
        }
        self.input(Input::Desired(self.wanted()));
    }

    fn container_ends(&mut self) {
        let code = [0, 0, 1][self.random.below(3) as usize];
        let running: Vec<usize> = (0..self.runtime.seen.containers.len())
            .filter(|at| self.runtime.seen.containers[*at].state == State::Running)
            .collect();
        if !running.is_empty() {
            let at = running[self.random.below(running.len() as u64) as usize];
            end(&mut self.runtime.seen.containers[at], code);
        }
    }

    fn step(&mut self) {
        self.now.mono += Duration::from_millis(self.random.below(8000));
        self.now.unix += 4;
        match self.random.below(24) {
            0..8 => self.finish(),
            8..15 => self.observe(),
            15..17 => self.change_mind(),
            17 | 18 => self.container_ends(),
            19 | 20 => self.stray(),
            21 => self.kill_agent(),
            22 if self.random.one_in(3) => {
                // A power cut also ends what the runtime was doing.
                self.stray.clear();
                self.runtime.power_cut();
                self.kill_agent();
                self.stray.clear();
            }
            _ => self.input(Input::Tick),
        }
    }

    /// No more faults: everything must come to what is wanted.
    fn settle(&mut self) {
        self.faults = false;
        while !self.stray.is_empty() {
            self.stray();
        }
        for _ in 0..40 {
            self.now.mono = self.manager.wake(self.now).unwrap_or(self.now.mono) + Duration::from_secs(1);
            self.observe();
            while !self.pending.is_empty() {
                self.finish();
                self.observe();
            }
            // Init containers do their work and end well.
            let init = |c: &&mut Container| c.name == "i" && c.state == State::Running;
            self.runtime.seen.containers.iter_mut().filter(init).for_each(|c| end(c, 0));
            // The cloud hears at last that deleted pods are gone.
            self.objects.retain(|_, pod| {
                pod.metadata.deletion_timestamp.is_none()
                    || self.runtime.seen.sandboxes.iter().any(|s| s.uid == pod.metadata.uid)
            });
            self.input(Input::Desired(self.wanted()));
        }
    }

    fn check_settled(&self) {
        let live: BTreeSet<&str> = self.objects.values().map(|pod| pod.metadata.uid.as_str()).collect();
        for sandbox in &self.runtime.seen.sandboxes {
            assert!(live.contains(sandbox.uid.as_str()), "nobody wants {sandbox:?}");
        }
        let recorded: BTreeSet<&str> = self.records.values().map(|record| record.uid.as_str()).collect();
        assert_eq!(recorded, live, "records and wanted pods");
        for pod in self.objects.values() {
            let record = self.records.values().find(|record| record.uid == pod.metadata.uid).unwrap();
            let seen = self.runtime.seen.of(&record.incarnation);
            let ready = seen.sandboxes.iter().filter(|s| s.ready).count();
            if record.ended.is_some() {
                assert_eq!(ready, 0, "an ended pod's sandbox runs: {record:?}");
                continue;
            }
            assert_eq!(ready, 1, "{} does not run: {record:?} {seen:#?}", pod.full_name());
            let sandbox = seen.sandboxes.iter().find(|s| s.ready).unwrap();
            for container in &pod.spec.containers {
                let latest = seen.latest(&sandbox.id, &container.name);
                let done = match pod.spec.restart_policy {
                    RestartPolicy::Always => false,
                    // A container of an earlier sandbox that ended for good is not made again.
                    RestartPolicy::OnFailure => {
                        latest.is_none_or(|c| c.state == State::Exited && c.exit_code == 0)
                    }
                    RestartPolicy::Never => latest.is_none_or(|c| c.state == State::Exited),
                };
                assert!(
                    done || latest.is_some_and(|c| c.state == State::Running),
                    "{} of {}: {latest:?}",
                    container.name,
                    pod.full_name()
                );
            }
        }
    }
}

#[test]
fn whatever_fails_in_whatever_order_it_converges_and_never_runs_a_pod_twice() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds: Vec<u64> = match number("SEED") {
        Some(seed) => vec![seed],
        None => KEPT.into_iter().chain(0..number("SEEDS").unwrap_or(SEEDS)).collect(),
    };
    for seed in seeds {
        let run = || {
            let mut world = World::new(seed);
            world.input(Input::Desired(Vec::new()));
            for _ in 0..300 {
                world.step();
            }
            world.settle();
            world.check_settled();
        };
        if std::panic::catch_unwind(run).is_err() {
            panic!("again with: SEED={seed} cargo test -p edgecore edged::tests::simulation");
        }
    }
}

#[test]
fn an_empty_store_removes_nothing() {
    let mut world = World::new(1);
    world.runtime.seen.sandboxes.push(Sandbox {
        id: "s".into(),
        incarnation: "u1".into(),
        namespace: "default".into(),
        name: "web".into(),
        uid: "u1".into(),
        ready: true,
        ..Sandbox::default()
    });
    let container =
        |state| Container { id: "c".into(), sandbox_id: "s".into(), state, ..Container::default() };
    world.runtime.seen.containers.push(container(State::Running));
    world.input(Input::Desired(Vec::new()));
    world.observe();
    assert!(world.pending.is_empty(), "{:?}", world.pending);
    assert_eq!(world.runtime.seen.sandboxes.len(), 1);
    // After a power cut as well: a container that ended has logs, its pod has volumes.
    world.runtime.seen.containers[0] = container(State::Exited);
    world.observe();
    assert!(world.pending.is_empty(), "{:?}", world.pending);
    // Nothing is lost with a sandbox that holds nothing.
    world.runtime.seen.containers.clear();
    world.faults = false;
    world.settle();
    assert!(world.runtime.seen.sandboxes.is_empty());
}

#[test]
fn after_join_adopt_a_pod_of_the_same_name_and_spec_gets_its_new_uid_without_a_restart() {
    let mut world = World::new(7);
    world.faults = false;
    world.input(Input::Desired(Vec::new()));
    world.change_mind();
    world.settle();
    let name = *world.objects.keys().next().unwrap();
    let before = world.runtime.seen.clone();
    world.objects.get_mut(name).unwrap().metadata.uid = "from-another-cloud".into();
    world.kill_agent();
    world.manager.adopt = true;
    world.settle();
    assert_eq!(world.runtime.seen, before, "nothing moved");
    assert_eq!(
        world.records.values().map(|record| record.uid.as_str()).collect::<Vec<_>>(),
        ["from-another-cloud"]
    );
}
