//! Statuses as the cloud sees them, and what whatever bytes in a pod object lead to.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use crate::edged::{
    env, fuzz,
    manager::{Action, Input, Manager, Wanted},
    observed::{Container, Observed, Sandbox, State},
    pod::{Pod, PodError},
    status::{self, NodeFacts},
    worker::{Now, Retry, Work, WorkError},
};

const NOW: Now = Now { mono: Duration::from_secs(5), unix: 1_795_248_000 };

fn pod(spec: Value) -> Pod {
    let mut spec = spec;
    if spec["containers"].is_null() {
        spec["containers"] = json!([{ "name": "c", "image": "docker.io/kinglet/hello:1" }]);
    }
    let metadata = json!({ "name": "web", "namespace": "default", "uid": "u1" });
    Pod::parse(json!({ "metadata": metadata, "spec": spec }).to_string().as_bytes()).unwrap()
}

/// A manager that has one pod, and what it last reported.
struct Scene {
    manager: Manager,
    observed: Observed,
    reported: Value,
    work: Option<Work>,
}

impl Scene {
    fn new(pod: Pod) -> Scene {
        let mut manager = Manager::new(Vec::new());
        manager.set_node(NodeFacts { host_ip: "192.0.2.2".into() });
        let mut scene = Scene { manager, observed: Observed::default(), reported: Value::Null, work: None };
        let wanted = Wanted {
            namespace: "default".into(),
            name: "web".into(),
            uid: "u1".into(),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            pod: Ok(pod.into()),
        };
        scene.input(Input::Desired(vec![wanted]));
        scene.look();
        scene
    }

    fn input(&mut self, input: Input) {
        for action in self.manager.handle(NOW, input) {
            match action {
                Action::Report { status, .. } => self.reported = status,
                Action::Work { work, .. } => self.work = Some(work),
                _ => {}
            }
        }
    }

    fn look(&mut self) {
        self.input(Input::Observed { began: self.manager.ticket(), observed: self.observed.clone() });
    }

    fn done(&mut self, result: Result<(), WorkError>) {
        self.input(Input::Done { incarnation: "u1".into(), result });
        self.look();
    }

    /// Carries on until a step is a sandbox, which then is there, with a container in the state.
    fn with_container(pod: Pod, container: Container) -> Scene {
        let mut scene = Scene::new(pod);
        while !matches!(scene.work, Some(Work::RunSandbox { .. })) {
            scene.done(Ok(()));
        }
        scene.observed.sandboxes.push(Arc::new(Sandbox {
            id: "s".into(),
            incarnation: "u1".into(),
            namespace: "default".into(),
            name: "web".into(),
            uid: "u1".into(),
            ready: true,
            ips: vec!["10.88.0.7".into()],
            ..Sandbox::default()
        }));
        scene.observed.containers.push(Arc::new(Container {
            id: "f00".into(),
            sandbox_id: "s".into(),
            name: "c".into(),
            hash: scene.manager.worker("u1").unwrap().desired.as_ref().unwrap().spec.containers[0].hash(),
            image: "docker.io/kinglet/hello:1".into(),
            image_ref: "sha256:abc".into(),
            started_at: 1_795_247_990_000_000_000,
            ..container
        }));
        scene.done(Ok(()));
        scene
    }
}

fn conditions(status: &Value) -> Vec<String> {
    let text = |condition: &Value| {
        let reason = condition["reason"].as_str().map_or(String::new(), |reason| format!(" {reason}"));
        format!("{}={}{reason}", condition["type"].as_str().unwrap(), condition["status"].as_str().unwrap())
    };
    status["conditions"].as_array().unwrap().iter().map(text).collect()
}

#[test]
fn a_running_pod() {
    let scene =
        Scene::with_container(pod(json!({})), Container { state: State::Running, ..Container::default() });
    let mut status = scene.reported.clone();
    assert_eq!(
        conditions(&status),
        [
            "PodReadyToStartContainers=True",
            "Initialized=True",
            "Ready=True",
            "ContainersReady=True",
            "PodScheduled=True"
        ]
    );
    status.as_object_mut().unwrap().remove("conditions");
    assert_eq!(
        status,
        json!({
            "phase": "Running", "reason": null, "message": null, "qosClass": "BestEffort", "startTime": "2026-11-21T08:00:00Z",
            "$setElementOrder/conditions": [
                { "type": "PodReadyToStartContainers" }, { "type": "Initialized" }, { "type": "Ready" },
                { "type": "ContainersReady" }, { "type": "PodScheduled" },
            ],
            "hostIP": "192.0.2.2", "hostIPs": [{ "ip": "192.0.2.2" }],
            "podIP": "10.88.0.7", "podIPs": [{ "ip": "10.88.0.7" }, { "$patch": "replace" }],
            "containerStatuses": [{
                "name": "c", "ready": true, "started": true, "restartCount": 0, "image": "docker.io/kinglet/hello:1",
                "imageID": "sha256:abc", "containerID": "containerd://f00", "lastState": {},
                "state": { "running": { "startedAt": "2026-11-21T07:59:50Z" } },
            }],
        })
    );
}

#[test]
fn a_pod_whose_init_container_has_not_ended() {
    let mounts = json!([{ "name": "v", "mountPath": "/a", "subPath": "s" },
        { "name": "v", "mountPath": "/b", "readOnly": true, "recursiveReadOnly": "IfPossible" }]);
    let spec = json!({ "volumes": [{ "name": "v", "emptyDir": {} }],
        "initContainers": [{ "name": "i", "image": "x", "volumeMounts": mounts }] });
    let scene = Scene::new(pod(spec));
    let status = &scene.reported;
    assert_eq!(status["phase"], "Pending");
    assert_eq!(
        conditions(status),
        [
            "PodReadyToStartContainers=False",
            "Initialized=False ContainersNotInitialized",
            "Ready=False ContainersNotReady",
            "ContainersReady=False ContainersNotReady",
            "PodScheduled=True"
        ]
    );
    assert_eq!(status["conditions"][1]["message"], "containers with incomplete status: [i]");
    assert_eq!(
        status["containerStatuses"][0]["state"],
        json!({ "waiting": { "reason": "PodInitializing" } })
    );
    assert_eq!(
        status["initContainerStatuses"][0]["volumeMounts"],
        json!([{ "name": "v", "mountPath": "/a" },
            { "name": "v", "mountPath": "/b", "readOnly": true, "recursiveReadOnly": "Disabled" }])
    );
    assert_eq!(status["containerStatuses"][0]["volumeMounts"], Value::Null);
}

#[test]
fn a_pod_that_ended() {
    let ended = |exit_code| Container {
        state: State::Exited,
        exit_code,
        finished_at: 1_795_247_999_000_000_000,
        ..Container::default()
    };
    let mut scene = Scene::with_container(pod(json!({ "restartPolicy": "Never" })), ended(0));
    let stop = Some(Work::StopSandbox { id: "s".into() });
    assert_eq!(scene.work, stop, "its network is given back, its logs stay");
    Arc::make_mut(&mut scene.observed.sandboxes[0]).ready = false;
    scene.done(Ok(()));
    assert!(matches!(scene.work, Some(Work::Persist(_))), "{:?}", scene.work);
    assert_eq!(scene.reported["phase"], "Running", "its end is written down before it is told");
    scene.work = None;
    scene.done(Ok(()));
    assert_eq!((&scene.reported["phase"], &scene.work), (&json!("Succeeded"), &Some(Work::CleanUp)));
    assert_eq!(
        conditions(&scene.reported),
        [
            "PodReadyToStartContainers=False",
            "Initialized=True PodCompleted",
            "Ready=False PodCompleted",
            "ContainersReady=False PodCompleted",
            "PodScheduled=True"
        ]
    );
    let mut scene = Scene::with_container(pod(json!({ "restartPolicy": "Never" })), ended(3));
    Arc::make_mut(&mut scene.observed.sandboxes[0]).ready = false;
    scene.done(Ok(()));
    scene.done(Ok(()));
    assert_eq!(scene.reported["phase"], "Failed");
    assert_eq!(scene.reported["containerStatuses"][0]["state"]["terminated"]["reason"], "Error");
}

#[test]
fn a_step_that_fails_is_the_containers_waiting_reason() {
    let mut scene = Scene::with_container(
        pod(json!({})),
        Container { state: State::Exited, exit_code: 1, ..Container::default() },
    );
    assert!(matches!(scene.work, Some(Work::CreateContainer { attempt: 1, .. })), "{:?}", scene.work);
    let error = WorkError {
        reason: "ImagePullBackOff",
        message: "no route to registry".into(),
        retry: Retry::Backoff,
    };
    scene.done(Err(error));
    let container = &scene.reported["containerStatuses"][0];
    assert_eq!(
        container["state"],
        json!({ "waiting": { "reason": "ImagePullBackOff", "message": "no route to registry" } })
    );
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
}

fn wanted(pod: Pod) -> Input {
    Input::Desired(vec![Wanted {
        namespace: "default".into(),
        name: "web".into(),
        uid: "u1".into(),
        deleting: false,
        pod: Ok(pod.into()),
    }])
}

#[test]
fn the_sandbox_follows_the_volumes_without_a_look_between_and_takes_the_record_along() {
    let mut manager = Manager::new(Vec::new());
    let began = manager.ticket();
    manager.handle(NOW, Input::Observed { began, observed: Observed::default() });
    let works = |actions: Vec<Action>| {
        assert!(!actions.contains(&Action::Observe), "nothing of the runtime changed: {actions:?}");
        let work = |action| if let Action::Work { work, .. } = action { Some(work) } else { None };
        actions.into_iter().filter_map(work).collect::<Vec<_>>()
    };
    let first = works(manager.handle(NOW, wanted(pod(json!({})))));
    assert!(first == [Work::Prepare], "{first:?}");
    let done = || Input::Done { incarnation: "u1".into(), result: Ok(()) };
    let second = works(manager.handle(NOW, done()));
    let is_new = |work: &Work| matches!(work, Work::RunSandbox { attempt: 0, unwritten: Some(record) } if record.uid == "u1");
    assert!(second.len() == 1 && is_new(&second[0]), "{second:?}");
    let actions = manager.handle(NOW, done());
    assert_eq!(actions.last(), Some(&Action::Observe), "a sandbox is there or not: {actions:?}");
}

#[test]
fn a_pod_that_lacks_a_label_is_failed_only_when_the_clouds_newest_node_lacks_it_too() {
    for (newest, comes) in [("north", true), ("south", false)] {
        let zone = |zone: &str| Some([("zone".to_string(), zone.to_string())].into());
        let mut manager = Manager::new(Vec::new());
        manager.gate.node.labels = zone("south");
        let began = manager.ticket();
        manager.handle(NOW, Input::Observed { began, observed: Observed::default() });
        let pod = pod(json!({ "nodeSelector": { "zone": "north" } }));
        let actions = manager.handle(NOW, wanted(pod));
        let is_step = |action: &Action| matches!(action, Action::Work { .. } | Action::Event { .. });
        assert!(actions.contains(&Action::AskNode { incarnation: "u1".into() }), "{actions:?}");
        assert!(!actions.iter().any(is_step), "it waits: {actions:?}");
        manager.gate.node.labels = zone(newest);
        let actions = manager.handle(NOW, Input::NodeAsked { incarnation: "u1".into() });
        let prepares = |action: &Action| matches!(action, Action::Work { work: Work::Prepare, .. });
        let fails =
            |action: &Action| matches!(action, Action::Event { event, .. } if event.reason == "NodeAffinity");
        assert_eq!((actions.iter().any(prepares), actions.iter().any(fails)), (comes, !comes), "{actions:?}");
    }
}

/// What a node holds of each pod for as long as it runs. A field that makes one of these larger is better put into a box.
#[test]
fn a_pod_is_small_in_memory() {
    use crate::edged::{pod, worker::Worker};
    let sizes = [
        ("pod", size_of::<Pod>(), 888),
        ("container", size_of::<pod::Container>(), 440),
        ("volume", size_of::<pod::Volume>(), 112),
        ("source of a projected volume", size_of::<pod::ProjectedSource>(), 40),
        ("worker", size_of::<Worker>(), 536),
    ];
    for (what, bytes, most) in sizes {
        assert!(bytes <= most, "a {what} has {bytes} bytes, more than {most}");
    }
}

#[test]
fn condition_times_outlive_the_agent_through_the_echo() {
    let mut pod = pod(json!({}));
    pod.status = serde_json::from_value(json!({ "conditions": [
        { "type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" },
        { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" },
    ] }))
    .unwrap();
    let scene = Scene::new(pod);
    assert_eq!(scene.reported["conditions"][4]["lastTransitionTime"], "2026-01-01T00:00:00Z");
    assert_eq!(
        scene.reported["conditions"][2]["lastTransitionTime"], "2026-11-21T08:00:00Z",
        "it was True, it is False"
    );
}

#[test]
fn classes_of_service() {
    let class = |resources: Value| {
        status::qos_class(&pod(
            json!({ "containers": [{ "name": "c", "image": "x", "resources": resources }] }),
        ))
    };
    assert_eq!(class(json!({})), "BestEffort");
    assert_eq!(class(json!({ "requests": { "cpu": "10m" } })), "Burstable");
    assert_eq!(class(json!({ "limits": { "cpu": "1", "memory": "64Mi" } })), "Guaranteed");
    assert_eq!(
        class(
            json!({ "limits": { "cpu": "1", "memory": "64Mi" }, "requests": { "cpu": "1000m", "memory": "67108864" } })
        ),
        "Guaranteed"
    );
    assert_eq!(
        class(json!({ "limits": { "cpu": 1, "memory": "64Mi" }, "requests": { "memory": "32Mi" } })),
        "Burstable"
    );
}

#[test]
fn bad_pods_are_named_errors() {
    let parse = |json: Value| Pod::parse(json.to_string().as_bytes()).unwrap_err();
    let with = |spec: Value| {
        parse(json!({ "metadata": { "name": "web", "namespace": "default", "uid": "u" }, "spec": spec }))
    };
    assert!(matches!(parse(json!([])), PodError::Json(_)));
    assert!(matches!(
        parse(json!({ "metadata": { "name": "../x", "namespace": "d", "uid": "u" }, "spec": {} })),
        PodError::BadName { .. }
    ));
    assert_eq!(with(json!({})), PodError::Missing("spec.containers"));
    let container = json!({ "name": "c", "image": "x" });
    assert_eq!(
        with(json!({ "containers": [container, container] })),
        PodError::DuplicateContainer("c".into())
    );
    let mounts = json!([{ "name": "c", "image": "x", "volumeMounts": [{ "name": "v", "mountPath": "/v" }] }]);
    assert!(with(json!({ "containers": mounts })).to_string().contains("add it to spec.volumes"));
    let limits = json!([{ "name": "c", "image": "x", "resources": { "limits": { "memory": "64 MB" } } }]);
    assert!(with(json!({ "containers": limits })).to_string().contains("resources.limits.memory=\"64 MB\""));
    let many: Vec<Value> = (0..65).map(|n| json!({ "name": format!("c{n}"), "image": "x" })).collect();
    assert!(matches!(with(json!({ "containers": many })), PodError::TooManyContainers { count: 65 }));
    let port = json!([{ "name": "c", "image": "x", "ports": [{ "containerPort": 70000 }] }]);
    assert!(matches!(with(json!({ "containers": port })), PodError::Json(_)));
}

/// Whatever the bytes: an error or a pod, and what is made of the pod does not panic.
#[test]
fn no_bytes_make_the_parser_panic() {
    let whole = json!({
        "metadata": { "name": "web", "namespace": "default", "uid": "u1", "labels": { "a": "b" }, "deletionTimestamp": null },
        "spec": {
            "hostname": "h", "terminationGracePeriodSeconds": 30, "restartPolicy": "Always",
            "containers": [{ "name": "c", "image": "x", "resources": { "limits": { "cpu": "100m", "memory": "1e3" } },
                "env": [{ "name": "E", "value": "$(A)$$(B" }], "ports": [{ "containerPort": 80, "hostPort": 80, "protocol": "TCP" }] }],
            "volumes": [{ "name": "v", "emptyDir": { "sizeLimit": "1Mi" } }],
        },
        "status": { "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": null }] },
    })
    .to_string()
    .into_bytes();
    assert!(Pod::parse(&whole).is_ok());
    let mut seed: u64 = 42;
    let mut random = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % n
    };
    for _ in 0..4000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random(4) {
            let at = random(bytes.len().max(1));
            match random(if bytes.is_empty() { 1 } else { 4 }) {
                _ if bytes.is_empty() => bytes.push(b'{'),
                0 => bytes[at] = random(256) as u8,
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b"\"{}[]:,-09ex"[random(12)]),
                _ => bytes.truncate(at.max(1)),
            }
        }
        fuzz::fuzz_pod(&bytes);
        fuzz::fuzz_data(&bytes);
        fuzz::fuzz_record(&bytes);
    }
}

#[test]
fn expansion() {
    let known = [("A".to_string(), "1".to_string())].into();
    for (text, expanded) in [
        ("$(A)", "1"),
        ("$$(A)", "$(A)"),
        ("$(B)", "$(B)"),
        ("$A", "$A"),
        ("$(A", "$(A"),
        ("x$(A)y$", "x1y$"),
    ] {
        assert_eq!(env::expand(text, &known), expanded, "{text}");
    }
}
