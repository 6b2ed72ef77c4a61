//! The state machine on a virtual clock: no container, no socket, no real time.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use crate::edged::{
    fuzz, limits,
    pod::Container,
    probe::{
        Kind, Known, Memory, Outcome,
        machine::{Action, Input, Prober, Target, Ticket},
    },
    worker::Now,
};

fn container(spec: Value) -> Container {
    let mut spec = spec;
    spec["name"] = json!("c");
    spec["image"] = json!("i");
    serde_json::from_value(spec).unwrap()
}

/// A container in the world, and what its probes would find.
struct Running {
    spec: Container,
    started_unix: i64,
    deleting: bool,
    known: Known,
    answers: BTreeMap<Kind, Outcome>,
    /// How long it takes to answer.
    takes: Duration,
}

/// The prober, the clock, and the containers. Unix time begins with the agent's, 1000 s after the epoch.
struct World {
    prober: Prober,
    mono: Duration,
    containers: BTreeMap<String, Running>,
    under_way: Vec<(Duration, Ticket)>,
    most_under_way: usize,
    log: Vec<(Duration, String, String)>,
    woken: usize,
}

const SUCCESS: Outcome = Outcome::Success;

fn failure() -> Outcome {
    Outcome::Failure("no".into())
}

fn s(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

impl World {
    fn new(seed: u64) -> World {
        World {
            prober: Prober::new(seed),
            mono: Duration::ZERO,
            containers: BTreeMap::new(),
            under_way: Vec::new(),
            most_under_way: 0,
            log: Vec::new(),
            woken: 0,
        }
    }

    fn now(&self) -> Now {
        Now { mono: self.mono, unix: 1000 + self.mono.as_secs() as i64 }
    }

    fn run(&mut self, id: &str, spec: &Container, answers: &[(Kind, Outcome)]) {
        let running = Running {
            spec: spec.clone(),
            started_unix: self.now().unix,
            deleting: false,
            known: Known::default(),
            answers: answers.iter().cloned().collect(),
            takes: s(0.01),
        };
        self.containers.insert(id.into(), running);
        self.observe();
    }

    fn observe(&mut self) {
        let containers = std::mem::take(&mut self.containers);
        let target = |(id, running): (&'_ String, &'_ Running)| (id.clone(), running.started_unix);
        let starts: Vec<(String, i64)> = containers.iter().map(target).collect();
        let targets = starts.iter().map(|(id, started)| Target {
            incarnation: "pod",
            container: &containers[id].spec,
            id,
            started_at: started * 1_000_000_000,
            deleting: containers[id].deleting,
            known: containers[id].known,
        });
        let actions = self.prober.handle(self.now(), Input::Running(targets.collect()));
        self.containers = containers;
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            let (id, text) = match action {
                Action::Run { ticket, timeout, .. } => {
                    let takes = self.containers.get(&*ticket.id).map_or(s(0.01), |c| c.takes).min(timeout);
                    let entry = (ticket.id.to_string(), format!("{:?}", ticket.kind));
                    self.under_way.push((self.mono + takes, ticket));
                    self.most_under_way = self.most_under_way.max(self.under_way.len());
                    entry
                }
                Action::Tell { kind, outcome, .. } => {
                    ("pod".into(), outcome.event(kind).expect("an event").1)
                }
                Action::Verdict { id, kind, passed, .. } => (id.to_string(), format!("{kind:?} is {passed}")),
            };
            self.log.push((self.mono, id, text));
        }
    }

    /// Lets virtual time pass.
    fn pass(&mut self, time: Duration) {
        let end = self.mono + time;
        loop {
            let done = self.under_way.iter().map(|(at, _)| *at).min();
            let Some(next) = self.prober.wake().into_iter().chain(done).min().filter(|at| *at <= end) else {
                break;
            };
            assert!(self.woken < 1_000_000, "the prober never rests");
            self.woken += 1;
            self.mono = self.mono.max(next);
            let (ready, later) = self.under_way.drain(..).partition(|(at, _)| *at <= self.mono);
            self.under_way = later;
            let ready: Vec<(Duration, Ticket)> = ready;
            for (_, ticket) in ready {
                let answers = self.containers.get(&*ticket.id).map(|c| &c.answers);
                let outcome = answers.and_then(|a| a.get(&ticket.kind)).cloned().unwrap_or_else(failure);
                let actions = self.prober.handle(self.now(), Input::Result { ticket, outcome });
                self.act(actions);
            }
            let actions = self.prober.handle(self.now(), Input::Tick);
            self.act(actions);
        }
        self.mono = end;
    }

    fn times(&self, id: &str, text: &str) -> Vec<f64> {
        let matching = self.log.iter().filter(|(_, i, t)| i == id && t == text);
        matching.map(|(at, _, _)| at.as_secs_f64()).collect()
    }

    fn verdicts(&self, id: &str) -> Vec<&str> {
        let of = self.log.iter().filter(|(_, i, t)| i == id && t.contains(" is "));
        of.map(|(_, _, text)| text.as_str()).collect()
    }
}

fn http(more: Value) -> Value {
    let mut probe = json!({ "httpGet": { "port": 80 } });
    probe.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    probe
}

#[test]
fn readiness_comes_with_the_success_threshold_and_goes_with_the_failure_threshold() {
    let spec =
        container(json!({ "readinessProbe": http(json!({ "periodSeconds": 2, "successThreshold": 2 })) }));
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.run("a", &spec, &[(Kind::Readiness, SUCCESS)]);
        world.pass(s(1.1));
        assert_eq!(world.times("a", "Readiness").len(), 1, "the first probe does not wait for a period");
        assert_eq!(world.verdicts("a"), [""; 0], "one success is not two");
        world.pass(s(2.0));
        assert_eq!(world.verdicts("a"), ["Readiness is true"]);
        world.containers.get_mut("a").unwrap().answers.insert(Kind::Readiness, failure());
        world.pass(s(4.0));
        assert_eq!(world.verdicts("a"), ["Readiness is true"], "two failures are not three");
        world.pass(s(2.0));
        assert_eq!(world.verdicts("a"), ["Readiness is true", "Readiness is false"]);
        assert_eq!(world.times("pod", "Readiness probe failed: no").len(), 3);
        world.pass(s(20.0));
        assert_eq!(world.verdicts("a").len(), 2, "a verdict is told once; an unready container runs on");
        assert!(world.times("a", "Readiness").len() >= 13, "and is asked on");
    }
}

#[test]
fn delay_and_period_are_kept() {
    let delayed = http(json!({ "initialDelaySeconds": 7, "periodSeconds": 3 }));
    let spec = container(json!({ "livenessProbe": delayed, "readinessProbe": delayed }));
    for seed in 0..50 {
        let mut world = World::new(seed);
        world.pass(s(100.0));
        world.run("a", &spec, &[(Kind::Readiness, SUCCESS), (Kind::Liveness, SUCCESS)]);
        world.pass(s(60.0));
        for (kind, first_max) in [("Readiness", 108.0), ("Liveness", 110.0)] {
            let times = world.times("a", kind);
            assert!((107.0..=first_max).contains(&times[0]), "{kind} {times:?}");
            for pair in times.windows(2) {
                assert!((pair[1] - pair[0] - 3.0).abs() < 1e-6, "{kind} {times:?}");
            }
        }
    }
}

#[test]
fn startup_holds_the_others_back_and_lets_them_run_at_once() {
    let spec = container(json!({
        "startupProbe": http(json!({ "periodSeconds": 10, "failureThreshold": 3 })),
        "livenessProbe": http(json!({ "periodSeconds": 5 })),
        "readinessProbe": http(json!({ "periodSeconds": 5 })),
    }));
    let mut world = World::new(3);
    let answers = [(Kind::Startup, failure()), (Kind::Liveness, SUCCESS), (Kind::Readiness, SUCCESS)];
    world.run("a", &spec, &answers);
    world.pass(s(15.0));
    assert_eq!(world.times("a", "Startup").len(), 2);
    assert_eq!((world.times("a", "Liveness").len(), world.times("a", "Readiness").len()), (0, 0));
    world.containers.get_mut("a").unwrap().answers.insert(Kind::Startup, SUCCESS);
    world.pass(s(10.0));
    assert_eq!(world.verdicts("a"), ["Startup is true", "Liveness is true", "Readiness is true"]);
    let (started, asked) = (world.times("a", "Startup is true")[0], world.times("a", "Readiness")[0]);
    assert!(asked - started < 0.1, "readiness is asked when startup is over, not a period later");
    world.pass(s(30.0));
    assert_eq!(world.times("a", "Startup").len(), 3, "startup is over");
}

#[test]
fn a_container_that_failed_is_not_asked_again_until_it_is_another() {
    for (key, kind) in [("livenessProbe", Kind::Liveness), ("startupProbe", Kind::Startup)] {
        let mut spec = json!({ "readinessProbe": http(json!({})) });
        spec[key] = http(json!({ "periodSeconds": 1, "failureThreshold": 2 }));
        let spec = container(spec);
        let mut world = World::new(1);
        world.run("a", &spec, &[(kind, failure()), (Kind::Readiness, SUCCESS)]);
        world.pass(s(60.0));
        assert_eq!(world.times("a", &format!("{kind:?}")).len(), 2);
        assert_eq!(world.verdicts("a").last(), Some(&&*format!("{kind:?} is false")));
        let asked = world.log.len();
        world.pass(s(60.0));
        assert_eq!(world.log.len(), asked, "nothing is asked while it is being stopped");
        world.containers.remove("a");
        world.run("b", &spec, &[(kind, SUCCESS), (Kind::Readiness, SUCCESS)]);
        world.pass(s(5.0));
        assert!(world.verdicts("b").contains(&"Readiness is true"), "the new container starts from nothing");
    }
}

#[test]
fn deletion_stops_liveness_and_startup_but_not_readiness() {
    let every_second = http(json!({ "periodSeconds": 1, "failureThreshold": 1 }));
    let spec = container(json!({ "livenessProbe": every_second, "readinessProbe": every_second }));
    let mut world = World::new(9);
    world.run("a", &spec, &[(Kind::Liveness, SUCCESS), (Kind::Readiness, SUCCESS)]);
    world.pass(s(5.0));
    let a = world.containers.get_mut("a").unwrap();
    a.deleting = true;
    a.answers = [(Kind::Liveness, failure()), (Kind::Readiness, failure())].into();
    world.observe();
    world.pass(s(5.0));
    assert_eq!(world.verdicts("a"), ["Liveness is true", "Readiness is true", "Readiness is false"]);
    assert!(world.times("pod", "Liveness probe failed: no").is_empty());
}

#[test]
fn errors_are_thrown_away() {
    let spec = container(json!({ "livenessProbe": { "exec": { "command": ["x"] }, "periodSeconds": 1 } }));
    let mut world = World::new(9);
    world.run("a", &spec, &[(Kind::Liveness, Outcome::Errored("rpc error".into()))]);
    world.pass(s(30.0));
    assert!(world.verdicts("a").is_empty(), "it is not known to be ill");
    assert!(world.times("pod", "Liveness probe errored and resulted in unknown state: rpc error").len() > 20);
}

#[test]
fn thirty_pods_do_not_probe_in_step() {
    let spec = container(json!({ "livenessProbe": http(json!({ "periodSeconds": 10 })) }));
    let mut world = World::new(7);
    world.pass(s(50.0));
    for n in 0..30 {
        world.run(&format!("c{n}"), &spec, &[(Kind::Liveness, SUCCESS)]);
    }
    world.pass(s(100.0));
    let in_second = |from: f64| {
        let inside = |at: &&(Duration, String, String)| (from..from + 1.0).contains(&at.0.as_secs_f64());
        world.log.iter().filter(|entry| entry.2 == "Liveness").filter(inside).count()
    };
    let most = (60..140).map(|second| in_second(second.into())).max().unwrap();
    assert!(most <= 10, "{most} of 30 probes with a period of 10 s in one second");
    assert_eq!(world.log.iter().filter(|entry| entry.2 == "Liveness").count(), 300);
}

#[test]
fn a_storm_is_late_but_not_large() {
    let hanging = json!({ "exec": { "command": ["sleep"] }, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1000 });
    let exec = container(json!({ "livenessProbe": hanging }));
    let web = container(json!({ "readinessProbe": http(json!({ "periodSeconds": 1 })) }));
    let mut world = World::new(7);
    for n in 0..60 {
        world.run(&format!("slow{n}"), &exec, &[(Kind::Liveness, failure())]);
        world.containers.get_mut(&format!("slow{n}")).unwrap().takes = s(9.0);
    }
    world.run("web", &web, &[(Kind::Readiness, SUCCESS)]);
    world.pass(s(120.0));
    assert!(world.most_under_way <= limits::EXEC_PROBES_MAX + 1, "{}", world.most_under_way);
    let asked: Vec<usize> = (0..60).map(|n| world.times(&format!("slow{n}"), "Liveness").len()).collect();
    assert!(asked.iter().all(|n| (5..=10).contains(n)), "everyone has its turn: {asked:?}");
    assert!(world.times("web", "Readiness").len() >= 119, "an exec that hangs does not delay a request");
}

#[test]
fn a_restart_of_the_agent_does_not_unready_a_ready_container() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/probes");
    let spec = container(json!({
        "startupProbe": http(json!({})), "readinessProbe": http(json!({ "periodSeconds": 10 })),
    }));
    let mut world = World::new(5);
    world.run("a", &spec, &[(Kind::Startup, SUCCESS), (Kind::Readiness, SUCCESS)]);
    world.run("b", &spec, &[(Kind::Startup, SUCCESS), (Kind::Readiness, failure())]);
    world.pass(s(5.0));
    Memory::load(path.clone()).keep(world.prober.found());

    let memory = Memory::load(path.clone());
    let mut again = World::new(6);
    for id in ["a", "b", "new"] {
        let known = memory.get(id).unwrap_or_default();
        let answers = [(Kind::Startup, SUCCESS), (Kind::Readiness, failure())].into();
        let running =
            Running { spec: spec.clone(), started_unix: 500, deleting: false, known, answers, takes: s(0.1) };
        again.containers.insert(id.into(), running);
    }
    again.observe();
    assert_eq!(again.verdicts("a"), ["Startup is true", "Readiness is true"], "at once, before any probe");
    assert_eq!(again.verdicts("b"), ["Startup is true"]);
    assert_eq!(again.verdicts("new"), [""; 0]);
    again.pass(s(40.0));
    assert_eq!(again.verdicts("a").last(), Some(&"Readiness is false"), "three failures, as ever");
    assert!(again.times("a", "Startup").is_empty());

    std::fs::write(&path, "x\nid ready\nid2 maybe\n\n").unwrap();
    let damaged = Memory::load(path);
    assert_eq!((damaged.get("id").is_some(), damaged.get("id2")), (true, None));
}

/// Any order of everything: the bounds hold, a failed container is left alone, and in the end all are as they should be.
#[test]
fn seeds() {
    let specs = [
        json!({ "readinessProbe": http(json!({ "periodSeconds": 1 })) }),
        json!({ "livenessProbe": { "exec": { "command": ["a"] }, "periodSeconds": 2 }, "readinessProbe": http(json!({})) }),
        json!({ "startupProbe": { "exec": { "command": ["a"] } }, "livenessProbe": http(json!({ "failureThreshold": 1 })) }),
        json!({ "livenessProbe": http(json!({ "periodSeconds": 3 })), "readinessProbe": { "exec": { "command": ["a"] } } }),
    ]
    .map(container);
    for seed in 0..60u64 {
        let mut random = seed;
        let mut below = |n: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % n
        };
        let mut world = World::new(seed);
        let mut made = 0;
        for _ in 0..200 {
            let ids: Vec<String> = world.containers.keys().cloned().collect();
            match below(5) {
                0 if ids.len() < 40 => {
                    made += 1;
                    let outcome = |n| if n == 0 { SUCCESS } else { failure() };
                    let answers = Kind::ALL.map(|kind| (kind, outcome(below(2))));
                    world.run(&format!("c{made}"), &specs[below(4) as usize], &answers);
                    world.containers.get_mut(&format!("c{made}")).unwrap().takes = s(below(12) as f64 / 10.0);
                }
                1 if !ids.is_empty() => {
                    world.containers.remove(&ids[below(ids.len() as u64) as usize]);
                    world.observe();
                }
                2 if !ids.is_empty() => {
                    let id = &ids[below(ids.len() as u64) as usize];
                    world.containers.get_mut(id).unwrap().deleting = true;
                    world.observe();
                }
                _ => world.pass(s(below(3000) as f64 / 1000.0)),
            }
            let bound = limits::EXEC_PROBES_MAX + limits::NETWORK_PROBES_MAX;
            assert!(world.under_way.len() <= bound, "seed {seed}");
        }
        for running in world.containers.values_mut() {
            running.answers = Kind::ALL.map(|kind| (kind, SUCCESS)).into();
        }
        world.pass(s(120.0));
        for (id, running) in world.containers.iter().filter(|(_, running)| !running.deleting) {
            let verdicts = world.verdicts(id);
            let failed = ["Startup is false", "Liveness is false"].iter().any(|bad| verdicts.contains(bad));
            let ready = verdicts.iter().rfind(|v| v.starts_with("Readiness")) == Some(&"Readiness is true");
            let wants = running.spec.readiness_probe.is_some();
            assert!(failed || ready == wants, "seed {seed}: {id} {verdicts:?}");
            if failed {
                let after = world.log.iter().rposition(|(_, i, t)| i == id && t.ends_with("false")).unwrap();
                assert!(
                    !world.log[after + 1..].iter().any(|(_, i, _)| i == id),
                    "seed {seed}: {id} was asked again"
                );
            }
        }
    }
}

#[test]
fn any_answer_is_read() {
    let whole =
        b"HTTP/1.1 302 Found\r\nContent-Length: 5\r\nLocation: https://10.0.0.1:8443/x?y#z\r\n\r\nhello";
    let mut seed: u64 = 42;
    let mut random = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % n
    };
    for _ in 0..5000 {
        let mut bytes = whole.to_vec();
        for _ in 0..1 + random(5) {
            let at = random(bytes.len().max(1));
            match random(4) {
                _ if bytes.is_empty() => bytes.push(b'H'),
                0 => bytes[at] = random(256) as u8,
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b"\r\n:/?#[]@ 9"[random(11)]),
                _ => bytes.truncate(at.max(1)),
            }
        }
        fuzz::fuzz_probe_answer(&bytes);
        fuzz::fuzz_probe_answer(&bytes[bytes.len() / 2..]);
    }
}
