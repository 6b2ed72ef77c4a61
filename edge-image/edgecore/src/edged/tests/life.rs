//! What a pod's life looks like from outside: statuses and events in kubelet's words, step by step.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use crate::edged::{
    manager::{Action, Input, Manager, Wanted},
    observed::{Container, Observed, Sandbox, State},
    pod::Pod,
    record::Record,
    worker::{Now, Outcome, ProbeKind, RUN_ERROR, Retry, Work, WorkError},
};

/// One pod on a runtime where everything works, unless `starts_fail`.
struct Life {
    manager: Manager,
    now: Now,
    pod: Pod,
    seen: Observed,
    status: Value,
    events: Vec<String>,
    steps: Vec<String>,
    record: Record,
    made: u32,
    starts_fail: bool,
}

impl Life {
    fn new(spec: Value) -> Life {
        Life::begin(spec, false)
    }

    fn begin(spec: Value, starts_fail: bool) -> Life {
        let metadata = json!({ "name": "web", "namespace": "default", "uid": "u1", "generation": 3 });
        let pod = Pod::parse(json!({ "metadata": metadata, "spec": spec }).to_string().as_bytes()).unwrap();
        let mut life = Life {
            manager: Manager::new(Vec::new()),
            now: Now { mono: Duration::from_secs(5), unix: 1_795_248_000 },
            pod,
            seen: Observed::default(),
            status: Value::Null,
            events: Vec::new(),
            steps: Vec::new(),
            record: Record::default(),
            made: 0,
            starts_fail,
        };
        life.want();
        life.settle();
        life
    }

    fn want(&mut self) {
        let wanted = Wanted {
            namespace: "default".into(),
            name: "web".into(),
            uid: "u1".into(),
            deleting: self.pod.metadata.deletion_timestamp.is_some(),
            pod: Ok(self.pod.clone().into()),
        };
        self.input(Input::Desired(vec![wanted]));
    }

    fn input(&mut self, input: Input) {
        let mut done = Vec::new();
        for action in self.manager.handle(self.now, input) {
            match action {
                Action::Report { status, .. } => self.status = status,
                Action::Event { event, .. } => {
                    self.events.push(format!("{}: {}", event.reason, event.message))
                }
                Action::Work { work, .. } => done.push(work),
                _ => {}
            }
        }
        for work in done {
            let result = self.carry_out(&work);
            self.input(Input::Done { incarnation: "u1".into(), result });
        }
    }

    fn carry_out(&mut self, work: &Work) -> Result<(), WorkError> {
        self.made += 1;
        let id = format!("id{}", self.made);
        match work {
            Work::Persist(record) => self.record = (**record).clone(),
            Work::RunSandbox { attempt, unwritten } => {
                if let Some(record) = unwritten {
                    self.record = (**record).clone();
                }
                self.seen.sandboxes.push(Arc::new(Sandbox {
                    id: format!("s{attempt}"),
                    incarnation: "u1".into(),
                    namespace: "default".into(),
                    name: "web".into(),
                    uid: "u1".into(),
                    attempt: *attempt,
                    ready: true,
                    ips: vec!["10.88.0.7".into()],
                }));
            }
            Work::StopSandbox { .. } => Arc::make_mut(&mut self.seen.sandboxes[0]).ready = false,
            Work::RetireSandbox { .. } => self.seen = Observed::default(),
            Work::CreateContainer { sandbox, name, attempt, .. } => {
                let hash = self.pod.all_containers().find(|c| c.name == *name).unwrap().hash();
                let (sandbox_id, name, attempt) = (sandbox.id.clone(), name.clone(), *attempt);
                let container = Container { id, sandbox_id, name, attempt, hash, ..Container::default() };
                self.seen.containers.push(Arc::new(container));
            }
            Work::StartContainer { id, name } => {
                self.steps.push(format!("start {name}"));
                if self.starts_fail {
                    // containerd shows a container that it could not start as one that ended.
                    self.set(id, State::Exited, 128);
                    let retry = Retry::After(Duration::from_secs(10));
                    return Err(WorkError { reason: RUN_ERROR, message: "no such program".into(), retry });
                }
                self.set(id, State::Running, 0);
            }
            Work::StopContainers { stops, grace } => {
                let mut names: Vec<_> = stops.iter().map(|stop| (stop.turn, stop.name.clone())).collect();
                names.sort();
                let names: Vec<String> =
                    names.into_iter().map(|(turn, name)| format!("{name}@{turn}")).collect();
                self.steps.push(format!("stop {} in {} s", names.join(" "), grace.as_secs()));
                stops.iter().for_each(|stop| self.set(&stop.id, State::Exited, 143));
            }
            Work::RemoveContainer { id, .. } => self.seen.containers.retain(|c| c.id != *id),
            Work::CleanUp => self.steps.push("clean up".into()),
            Work::Prepare | Work::Forget => {}
        }
        Ok(())
    }

    fn set(&mut self, id: &str, state: State, exit_code: i32) {
        let container = self.seen.containers.iter_mut().find(|c| c.id == *id).unwrap();
        let container = Arc::make_mut(container);
        (container.state, container.exit_code) = (state, exit_code);
        container.started_at = 1_795_247_990_000_000_000;
    }

    fn look(&mut self) {
        self.input(Input::Observed { began: self.manager.ticket(), observed: self.seen.clone() });
    }

    /// Looks until nothing happens any more.
    fn settle(&mut self) {
        for _ in 0..40 {
            self.look();
        }
    }

    fn id(&self, name: &str) -> String {
        self.seen.containers.iter().rfind(|c| c.name == name).unwrap().id.clone()
    }

    fn exits(&mut self, name: &str, code: i32) {
        self.set(&self.id(name), State::Exited, code);
        self.settle();
    }

    fn probe(&mut self, name: &str, kind: ProbeKind, passed: bool) {
        let container_id = self.id(name);
        self.input(Input::Probe {
            incarnation: "u1".into(),
            container_id,
            outcome: Outcome { kind, passed },
        });
        self.settle();
    }

    fn wait(&mut self, seconds: u64) {
        self.now =
            Now { mono: self.now.mono + Duration::from_secs(seconds), unix: self.now.unix + seconds as i64 };
        self.settle();
    }

    fn condition(&self, name: &str) -> String {
        let all = self.status["conditions"].as_array().unwrap();
        let condition = all.iter().find(|c| c["type"] == name).unwrap_or(&Value::Null);
        let text = |key: &str| condition[key].as_str().unwrap_or_default();
        format!("{} {} {}", text("status"), text("reason"), text("message")).trim().to_string()
    }

    fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.events)
    }
}

fn container(name: &str, more: Value) -> Value {
    let mut container = json!({ "name": name, "image": "x" });
    container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    container
}

#[test]
fn sidecars_start_in_their_place_and_stop_after_the_others_in_reverse() {
    let probe = json!({ "restartPolicy": "Always", "startupProbe": { "tcpSocket": { "port": 1 } } });
    let mut life = Life::new(json!({
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 7,
        "initContainers": [container("first", probe), container("setup", json!({})), container("second", json!({ "restartPolicy": "Always" }))],
        "containers": [container("main", json!({}))],
    }));
    assert_eq!(life.steps, ["start first"], "the next waits until it has started");
    assert_eq!(
        life.condition("Initialized"),
        "False ContainersNotInitialized containers with incomplete status: [first setup second]"
    );
    life.probe("first", ProbeKind::Startup, true);
    assert_eq!(life.steps, ["start first", "start setup"]);
    assert_eq!(life.status["phase"], "Pending");
    life.exits("setup", 0);
    assert_eq!(life.steps[2..], ["start second", "start main"]);
    assert_eq!((&life.status["phase"], life.condition("Ready")), (&json!("Running"), "True".into()));
    life.exits("first", 9);
    assert_eq!(life.steps[4..], ["start first"], "with restartPolicy Never as well");
    assert_eq!(life.status["initContainerStatuses"][0]["restartCount"], 1);
    life.exits("main", 0);
    assert_eq!(life.steps[5..], ["stop second@1 first@2 in 7 s", "clean up"]);
    assert_eq!(life.status["phase"], "Succeeded", "their exit codes do not count: {:#}", life.status);
    assert_eq!(life.condition("Initialized"), "True PodCompleted");
}

#[test]
fn a_failed_liveness_probe_restarts_the_container_within_the_probes_grace() {
    let probe = json!({ "tcpSocket": { "port": 1 }, "terminationGracePeriodSeconds": 3 });
    let mut life = Life::new(json!({ "containers": [container("main", json!({ "livenessProbe": probe }))] }));
    life.told();
    life.probe("main", ProbeKind::Liveness, false);
    assert_eq!(life.steps[1..], ["stop main@0 in 3 s", "start main"]);
    assert_eq!(life.told()[0], "Killing: Container main failed liveness probe, will be restarted");
    assert_eq!(life.status["containerStatuses"][0]["restartCount"], 1);
}

#[test]
fn a_crash_loop_is_told_with_its_whole_delay() {
    let mut life = Life::new(json!({ "containers": [container("main", json!({}))] }));
    assert_eq!(life.told(), ["Created: Created container: main", "Started: Started container main"]);
    life.exits("main", 2);
    assert_eq!(life.steps, ["start main", "start main"], "the first restart is immediate");
    life.told();
    life.exits("main", 2);
    assert_eq!(life.told(), ["BackOff: Back-off restarting failed container main in pod web_default(u1)"]);
    let waiting = |life: &Life| life.status["containerStatuses"][0]["state"]["waiting"].clone();
    let message = "back-off 10s restarting failed container=main pod=web_default(u1)";
    assert_eq!(waiting(&life), json!({ "reason": "CrashLoopBackOff", "message": message }));
    life.wait(9);
    assert_eq!(waiting(&life)["message"], message, "the text stays while nothing happens");
    life.wait(1);
    assert_eq!(life.status["containerStatuses"][0]["restartCount"], 2);
    life.exits("main", 2);
    assert!(waiting(&life)["message"].as_str().unwrap().starts_with("back-off 20s"));
}

#[test]
fn a_command_that_does_not_exist_is_told_and_then_its_back_off() {
    let mut life = Life::begin(json!({ "containers": [container("main", json!({}))] }), true);
    let waiting = |life: &Life| life.status["containerStatuses"][0]["state"]["waiting"].clone();
    assert_eq!(waiting(&life), json!({ "reason": RUN_ERROR, "message": "no such program" }));
    assert_eq!(life.steps, ["start main"]);
    life.wait(10);
    assert_eq!(life.steps, ["start main", "start main"]);
    assert_eq!(waiting(&life)["reason"], "CrashLoopBackOff", "the newer news");
    life.wait(10);
    assert_eq!(life.steps.len(), 3);
}

#[test]
fn a_deadline_and_an_eviction_stop_the_containers_before_the_pod_is_failed() {
    let spec = json!({ "activeDeadlineSeconds": 60, "containers": [container("main", json!({}))] });
    let mut life = Life::new(spec.clone());
    life.told();
    life.wait(59);
    assert_eq!(life.status["phase"], "Running");
    life.wait(1);
    let text = "Pod was active on the node longer than the specified deadline";
    assert_eq!(life.told(), [format!("DeadlineExceeded: {text}"), "Killing: Stopping container main".into()]);
    let told = |life: &Life| {
        ["phase", "reason", "message"].map(|key| life.status[key].as_str().unwrap().to_string())
    };
    assert_eq!(told(&life), ["Failed", "DeadlineExceeded", text]);
    assert_eq!(life.condition("Ready"), "False PodFailed");

    let mut life = Life::new(spec);
    let message = "The node was low on resource: memory. ";
    let grace = Some(Duration::from_secs(1));
    life.input(Input::Fail { uid: "u1".into(), reason: "Evicted".into(), message: message.into(), grace });
    life.settle();
    assert_eq!(life.steps[1..], ["stop main@0 in 1 s", "clean up"]);
    assert_eq!(told(&life), ["Failed", "Evicted", message]);
    assert_eq!(life.condition("DisruptionTarget"), format!("True TerminationByKubelet {}", message.trim()));
    // Durable: another agent tells the same, and starts nothing.
    life.manager = Manager::new(vec![life.record.clone()]);
    life.steps.clear();
    life.want();
    life.settle();
    assert_eq!(
        (told(&life), &life.steps[..]),
        (["Failed", "Evicted", message].map(String::from), &["clean up".to_string()][..])
    );
}

#[test]
fn a_deleted_pod_ends_as_its_containers_did() {
    let mut life = Life::new(json!({ "containers": [container("main", json!({}))] }));
    life.pod.metadata.deletion_timestamp = Some("2026-11-21T08:00:00Z".into());
    life.pod.metadata.deletion_grace_period_seconds = Some(4);
    life.want();
    life.settle();
    assert_eq!(life.steps[1..], ["stop main@0 in 4 s", "clean up"]);
    assert_eq!(life.status["phase"], "Failed", "it ended with 143");
    assert_eq!(life.status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 143);
}

#[test]
fn ephemeral_containers_live_once() {
    let mut life = Life::new(json!({ "containers": [container("main", json!({}))] }));
    let debug = json!([container("debug", json!({ "targetContainerName": "main" }))]);
    life.pod.spec.ephemeral_containers = serde_json::from_value(debug).unwrap();
    life.want();
    life.settle();
    assert_eq!(life.steps[1..], ["start debug"]);
    assert!(
        life.status["ephemeralContainerStatuses"][0]["state"]["running"].is_object(),
        "{:#}",
        life.status
    );
    life.exits("debug", 1);
    let line = &life.status["ephemeralContainerStatuses"][0];
    assert_eq!((&line["state"]["terminated"]["exitCode"], &line["restartCount"]), (&json!(1), &json!(0)));
    assert_eq!((life.steps.len(), life.condition("Ready")), (2, "True".into()));
}

#[test]
fn readiness_gates_and_generations() {
    let gate = json!([{ "conditionType": "example.test/open" }]);
    let mut life = Life::new(json!({ "readinessGates": gate, "containers": [container("main", json!({}))] }));
    let missing = "corresponding condition of pod readiness gate \"example.test/open\" does not exist.";
    assert_eq!(life.condition("Ready"), format!("False ReadinessGatesNotReady {missing}"));
    assert_eq!(
        (life.condition("ContainersReady"), &life.status["observedGeneration"]),
        ("True".into(), &json!(3))
    );
    let open = json!({ "conditions": [{ "type": "example.test/open", "status": "True", "lastTransitionTime": null }] });
    life.pod.status = serde_json::from_value(open).unwrap();
    life.want();
    life.settle();
    assert_eq!(life.condition("Ready"), "True");
}

#[test]
fn a_reboot_starts_init_containers_again_and_counts_on() {
    let mut life = Life::new(
        json!({ "initContainers": [container("setup", json!({}))], "containers": [container("main", json!({}))] }),
    );
    life.exits("setup", 0);
    assert_eq!(life.steps, ["start setup", "start main"]);
    Arc::make_mut(&mut life.seen.sandboxes[0]).ready = false;
    let main = life.id("main");
    life.set(&main, State::Exited, 255);
    life.told();
    life.manager = Manager::new(vec![life.record.clone()]);
    life.want();
    life.settle();
    assert_eq!(life.steps[2..], ["start setup"]);
    assert!(
        life.told()
            .contains(&"SandboxChanged: Pod sandbox changed, it will be killed and re-created.".into())
    );
    assert_eq!(life.status["initContainerStatuses"][0]["restartCount"], 1);
    life.exits("setup", 0);
    assert_eq!(life.status["containerStatuses"][0]["restartCount"], 1);
    assert_eq!(life.status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 255);
}
