//! The manager under seeds: a runtime that fails, answers late or not at all, containers that end, agents that are killed
//! between any two steps, power cuts, and a cloud that changes its mind.
//!
//! What must hold at every moment: never two running sandboxes for one pod nor two running containers of one name, nothing that
//! is wanted is stopped without a reason (an agent restart is none), a terminal phase is never left and told only when nothing runs,
//! restart counts never fall. What must hold in the end: what is wanted runs, what is not wanted is gone, to the last record, and
//! the cloud knows it.

mod pods;
mod runtime;
mod told;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use runtime::{Runtime, end, failed};
use told::Told;

use crate::edged::{
    manager::{Action, Input, Manager, Wanted},
    observed::{Container, Sandbox, State},
    pod::{Container as Spec, Pod, RestartPolicy},
    record::Record,
    worker::{Now, Outcome, ProbeKind, Retry, Work, WorkError},
};

/// So many in every run; more with `SEEDS=n`. One that failed is run alone with `SEED=n`.
const SEEDS: u64 = 40;
/// Seeds that once failed.
const KEPT: [u64; 7] = [6, 12, 63, 74, 77, 83, 377];
const NAMES: [&str; 3] = ["a", "b", "c"];

pub struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
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
    told: Told,
    /// Verdicts as the prober gave them to this agent.
    failed_probes: BTreeSet<String>,
    given_up: BTreeSet<String>,
    uids: u64,
    cloud: &'static str,
    /// Of the agent.
    deaths: u32,
    faults: bool,
    /// A seed that is run alone tells all.
    verbose: bool,
}

impl World {
    fn new(seed: u64) -> World {
        let mut manager = Manager::new(Vec::new());
        manager.set_cloud("cloud-1");
        World {
            random: Random(seed),
            now: Now { mono: Duration::from_secs(1), unix: 1_795_000_000 },
            runtime: Runtime::default(),
            records: BTreeMap::new(),
            objects: BTreeMap::new(),
            manager,
            pending: Vec::new(),
            stray: Vec::new(),
            told: Told::default(),
            failed_probes: BTreeSet::new(),
            given_up: BTreeSet::new(),
            uids: 0,
            cloud: "cloud-1",
            deaths: 0,
            faults: true,
            verbose: std::env::var("SEED").is_ok(),
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
        if self.verbose {
            eprintln!("{:?} <- {input:?}", self.now.mono);
        }
        for action in self.manager.handle(self.now, input) {
            if self.verbose {
                eprintln!("    -> {action:?}");
            }
            match action {
                Action::Work { incarnation, work } => {
                    let worker = self.manager.worker(&incarnation).unwrap();
                    let (record, pod) = (worker.record.clone(), worker.spec.clone());
                    self.check_not_stopped(&record, &work);
                    self.pending.push((incarnation, record, pod, work));
                }
                Action::ReportGone { name, uid, .. } => {
                    // A killed agent's last call may make an empty sandbox at any time; what must not be is something that runs.
                    assert!(self.runtime.running_of(&uid).is_empty(), "{name} is reported gone and runs");
                    self.told.gone(&uid);
                    // The cloud takes the object away, at once or later.
                    if self.random.one_in(2) {
                        self.objects.retain(|_, pod| pod.metadata.uid != uid);
                    }
                }
                Action::Report { uid, status, .. } => {
                    self.told.status(&uid, &status, &self.runtime.running_of(&uid));
                }
                Action::CallOff { incarnation } => self.call_off(&incarnation),
                Action::Allocate { .. } | Action::Release { .. } | Action::AskNode { .. } => {
                    unreachable!("no pod here asks for devices or labels")
                }
                Action::Hasten { .. } | Action::Event { .. } | Action::Observe => {}
            }
        }
        self.check();
    }

    /// What is wanted and runs is left alone, unless there is a reason.
    fn check_not_stopped(&self, record: &Record, work: &Work) {
        let pod = self.objects.get(record.name.as_str()).filter(|pod| pod.metadata.uid == record.uid);
        let Some(pod) = pod.filter(|pod| pod.metadata.deletion_timestamp.is_none()) else { return };
        let touched: Vec<String> = match work {
            Work::StopContainers { stops, .. } => stops.iter().map(|stop| stop.id.clone()).collect(),
            Work::RetireSandbox { id } => {
                let live = self.runtime.seen.sandboxes.iter().any(|s| s.id == *id && s.ready);
                self.runtime.seen.in_sandbox(id).filter(|_| live).map(|c| c.id.clone()).collect()
            }
            _ => Vec::new(),
        };
        let over = record.failing.is_some() || record.ended.is_some();
        let seen = self.runtime.seen.of(&record.incarnation);
        for container in
            seen.containers.iter().filter(|c| touched.contains(&c.id) && c.state == State::Running)
        {
            let spec = pod.all_containers().find(|c| c.name == container.name).unwrap();
            let changed = spec.hash() != container.hash;
            let failed = self.failed_probes.contains(&container.id);
            // A sidecar or an ephemeral container ends with the main ones, and with an init container that failed for good.
            let main = pod.spec.containers.iter().any(|c| c.name == container.name);
            let alone = !main && pod.spec.restart_policy != RestartPolicy::Always;
            assert!(over || changed || failed || alone, "{work:?} stops {container:?}, which is wanted");
        }
    }

    fn check(&self) {
        let seen = &self.runtime.seen;
        let (mut pods, mut places, mut names) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for sandbox in seen.sandboxes.iter().filter(|s| s.ready) {
            assert!(pods.insert(&sandbox.incarnation), "two sandboxes for {}: {seen:#?}", sandbox.name);
            // An empty one of an older pod of that name may come from a killed agent's last call.
            if seen.in_sandbox(&sandbox.id).any(|c| c.state == State::Running) {
                assert!(places.insert(&sandbox.name), "two pods named {} run: {seen:#?}", sandbox.name);
            }
            for container in seen.in_sandbox(&sandbox.id).filter(|c| c.state == State::Running) {
                let twice = (&sandbox.incarnation, &container.name);
                assert!(names.insert(twice), "two of {} run: {seen:#?}", container.name);
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
        let result = match self.random.below(if self.faults { 11 } else { 1 }) {
            7 => {
                // The deadline of the call is over; the runtime goes on with it.
                self.stray.push((record.clone(), pod.clone(), work.clone()));
                Err(failed("no answer in time"))
            }
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
        match work {
            work if self.random.one_in(2) => self.stray.push((record, pod, work)),
            _ => {}
        }
        self.input(Input::Done { incarnation, result: Err(WorkError::called_off()) });
    }

    fn carry_out(&mut self, record: &Record, pod: Option<&Pod>, work: &Work) -> Result<(), WorkError> {
        match work {
            Work::Persist(record) => self.store(record),
            Work::RunSandbox { unwritten: Some(record), .. } => return self.make_and_write(record, work),
            Work::Forget => {
                self.records.remove(&record.incarnation);
            }
            _ => {}
        }
        self.apply(record, pod, work)
    }

    /// The record is on its way to the disk while the runtime makes the sandbox: either may fail without the other.
    fn make_and_write(&mut self, record: &Record, work: &Work) -> Result<(), WorkError> {
        let fails = if self.faults { self.random.below(6) } else { 5 };
        if fails != 0 {
            self.store(record);
        }
        let made = if fails == 1 { Err(failed("no sandbox")) } else { self.apply(record, None, work) };
        if fails == 0 { Err(failed("the disk is full")) } else { made }
    }

    fn store(&mut self, record: &Record) {
        self.records.insert(record.incarnation.clone(), record.clone());
    }

    /// Only what is on the disk is held by anything that a crash leaves behind.
    fn apply(&mut self, record: &Record, pod: Option<&Pod>, work: &Work) -> Result<(), WorkError> {
        if matches!(work, Work::CreateContainer { .. } | Work::StartContainer { .. }) {
            let stored = self.records.contains_key(&record.incarnation);
            assert!(stored, "{work:?} before the record is durable");
        }
        self.runtime.apply(record, pod, work)
    }

    /// The agent is killed. A call that was under way is dropped, or the runtime still carries it out.
    fn kill_agent(&mut self) {
        self.deaths += 1;
        for (_, record, pod, work) in std::mem::take(&mut self.pending) {
            // The record may have been faster than the sandbox, or the other way round.
            if let Work::RunSandbox { unwritten: Some(record), .. } = &work
                && self.random.one_in(2)
            {
                self.store(record);
            }
            if self.random.one_in(2) {
                self.stray.push((record, pod, work));
            }
        }
        self.failed_probes.clear();
        self.manager = Manager::new(self.records.values().cloned().collect());
        self.manager.set_cloud(self.cloud);
        self.now.mono = Duration::from_secs(1);
        self.input(Input::Desired(self.wanted()));
    }

    fn stray(&mut self) {
        if self.stray.is_empty() {
            return;
        }
        let at = self.random.below(self.stray.len() as u64) as usize;
        let (record, pod, work) = self.stray.swap_remove(at);
        // Writing to the store ends with the process, also what was written beside a call; only the runtime's calls go on.
        if !matches!(work, Work::Persist(_) | Work::Forget) {
            let _ = self.runtime.apply(&record, pod.as_deref(), &work);
        }
        self.check();
    }

    fn change_mind(&mut self) {
        let name = NAMES[self.random.below(3) as usize];
        match self.objects.get_mut(name) {
            None => self.make(name),
            Some(pod) if pod.metadata.deletion_timestamp.is_some() && self.random.one_in(2) => {
                // A second deletion, with less time.
                pod.metadata.deletion_grace_period_seconds = Some(self.random.below(3) as i64);
            }
            Some(pod) if pod.metadata.deletion_timestamp.is_none() && !self.random.one_in(3) => {
                match self.random.one_in(2) {
                    true => pods::change(&mut self.random, pod),
                    false => pod.metadata.deletion_timestamp = Some("2026-11-21T08:00:00Z".into()),
                }
            }
            // Forced, or the cloud's last word; perhaps another pod takes the name at once.
            Some(_) => {
                self.objects.remove(name);
                if self.random.one_in(3) {
                    self.make(name);
                }
            }
        }
        self.input(Input::Desired(self.wanted()));
    }

    fn make(&mut self, name: &'static str) {
        self.uids += 1;
        let pod = pods::any(&mut self.random, name, &format!("u{}", self.uids));
        self.objects.insert(name, pod);
    }

    /// A probe of a running container comes to a verdict.
    fn probe(&mut self, kind: ProbeKind, passed: bool, at: usize) {
        let container = &self.runtime.seen.containers[at];
        let sandbox = self.runtime.seen.sandboxes.iter().find(|s| s.id == container.sandbox_id);
        let Some(sandbox) = sandbox else { return };
        let pod = self.objects.get(sandbox.name.as_str()).filter(|pod| pod.metadata.uid == sandbox.uid);
        let Some(spec) = pod.and_then(|pod| pod.all_containers().find(|c| c.name == container.name)) else {
            return;
        };
        if !has_probe(spec, kind) {
            return;
        }
        let (incarnation, container_id) = (sandbox.incarnation.clone(), container.id.clone());
        if !passed && kind != ProbeKind::Readiness {
            self.failed_probes.insert(container_id.clone());
        }
        self.input(Input::Probe { incarnation, container_id, outcome: Outcome { kind, passed } });
    }

    fn any_probe(&mut self) {
        let running = self.runtime.running();
        if running.is_empty() {
            return;
        }
        let at = running[self.random.below(running.len() as u64) as usize];
        let kind =
            [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness][self.random.below(3) as usize];
        let passed = !self.random.one_in(3);
        self.probe(kind, passed, at);
    }

    /// Pressure on the node.
    fn give_up(&mut self) {
        let name = NAMES[self.random.below(3) as usize];
        let Some(pod) = self.objects.get(name) else { return };
        let uid = pod.metadata.uid.clone();
        self.given_up.insert(uid.clone());
        let (reason, message) = ("Evicted".to_string(), "The node was low on resource: memory.".to_string());
        self.input(Input::Fail { uid, reason, message, grace: Some(Duration::from_secs(1)) });
    }

    /// containerd came back and does not know what became of a container.
    fn lose_track(&mut self) {
        let running = self.runtime.running();
        if let Some(at) = running.first() {
            Arc::make_mut(&mut self.runtime.seen.containers[*at]).state = State::Unknown;
        }
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
        match self.random.below(30) {
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
            23..26 => self.any_probe(),
            26 if self.random.one_in(4) => self.give_up(),
            27 if self.random.one_in(6) => self.lose_track(),
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
            // Init containers do their work and end well; everything else is in good health.
            let init = |c: &&mut Arc<Container>| c.name.starts_with('i') && c.state == State::Running;
            self.runtime.seen.containers.iter_mut().filter(init).for_each(|c| end(c, 0));
            for at in self.runtime.running() {
                for kind in [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness] {
                    self.probe(kind, true, at);
                }
            }
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
            self.check_converged(pod, record);
        }
        for uid in self.told.uids().filter(|uid| !live.contains(uid)) {
            assert!(self.told.times_gone(uid) <= 1 + self.deaths, "{uid} is reported gone again and again");
        }
    }

    fn check_converged(&self, pod: &Pod, record: &Record) {
        let (uid, seen) = (&pod.metadata.uid, self.runtime.seen.of(&record.incarnation));
        let ready = seen.sandboxes.iter().filter(|s| s.ready).count();
        if record.ended.is_some() {
            assert_eq!(ready, 0, "an ended pod's sandbox runs: {record:?}");
            assert!(
                told::is_terminal(self.told.phase(uid)),
                "{uid} ended and is told {:?}",
                self.told.phase(uid)
            );
            return;
        }
        assert_eq!(ready, 1, "{} does not run: {record:?} {seen:#?}", pod.full_name());
        assert!(!self.given_up.contains(uid) || self.lost_give_up(record), "{uid} was given up and runs");
        assert_eq!(self.told.phase(uid), "Running", "{uid} runs: {record:?} {seen:#?}");
        let sandbox = seen.sandboxes.iter().find(|s| s.ready).unwrap();
        let running = |name: &str| seen.latest(&sandbox.id, name).is_some_and(|c| c.state == State::Running);
        for container in pod.spec.init_containers.iter().filter(|c| c.is_sidecar()) {
            assert!(running(&container.name), "sidecar {} of {}: {seen:#?}", container.name, pod.full_name());
        }
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
            let (name, of) = (&container.name, pod.full_name());
            assert!(
                done || running(name),
                "{name} of {of}: {latest:?} {:#?}",
                self.manager.worker(&record.incarnation)
            );
        }
    }

    /// The agent was killed before it had written down that the pod is given up; pressure would be found again.
    fn lost_give_up(&self, record: &Record) -> bool {
        self.deaths > 0 && record.failing.is_none()
    }
}

fn has_probe(container: &Spec, kind: ProbeKind) -> bool {
    match kind {
        ProbeKind::Startup => container.startup_probe.is_some(),
        ProbeKind::Liveness => container.liveness_probe.is_some(),
        ProbeKind::Readiness => container.readiness_probe.is_some(),
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
    world.runtime.seen.sandboxes.push(Arc::new(Sandbox {
        id: "s".into(),
        incarnation: "u1".into(),
        namespace: "default".into(),
        name: "web".into(),
        uid: "u1".into(),
        ready: true,
        ..Sandbox::default()
    }));
    let container =
        |state| Arc::new(Container { id: "c".into(), sandbox_id: "s".into(), state, ..Container::default() });
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
    world.cloud = "cloud-2";
    world.kill_agent();
    world.settle();
    assert_eq!(world.runtime.seen, before, "nothing moved");
    let uids = |world: &World| world.records.values().map(|r| r.uid.clone()).collect::<Vec<_>>();
    assert_eq!(uids(&world), ["from-another-cloud"]);
    // The same cloud gives a new uid to a new pod.
    world.objects.get_mut(name).unwrap().metadata.uid = "made-anew".into();
    world.input(Input::Desired(world.wanted()));
    world.settle();
    assert_eq!(uids(&world), ["made-anew"]);
    assert!(world.runtime.seen.containers.iter().all(|c| before.containers.iter().all(|old| old.id != c.id)));
}
