use serde_json::{Value, json};

use super::*;

fn pod(name: &str, spec: Value) -> Pod {
    let mut spec = spec;
    if spec["containers"].is_null() {
        spec["containers"] = json!([{ "name": "c", "image": "i" }]);
    }
    let metadata = json!({ "name": name, "namespace": "d", "uid": name });
    Pod::parse(json!({ "metadata": metadata, "spec": spec }).to_string().as_bytes()).unwrap()
}

fn asking(name: &str, requests: Value, limits: Value) -> Pod {
    let resources = json!({ "requests": requests, "limits": limits });
    pod(name, json!({ "containers": [{ "name": "c", "image": "i", "resources": resources }] }))
}

fn critical(mut pod: Pod) -> Pod {
    pod.spec.priority = Some(2_000_000_000);
    pod
}

fn node() -> NodeView {
    let allocatable = [
        ("cpu", 1000),
        ("memory", 1 << 30),
        ("ephemeral-storage", 1 << 30),
        ("example.com/gpu", 1),
        ("hugepages-2Mi", 4 << 20),
    ];
    NodeView {
        name: "edge-1".into(),
        allocatable: allocatable.map(|(name, amount)| (name.to_string(), amount)).into(),
        pods_max: 3,
        labels: Some(
            [("site".to_string(), "hall-3".to_string()), ("cores".to_string(), "4".to_string())].into(),
        ),
        ..NodeView::default()
    }
}

fn rejected(pod: &Pod, others: &[&Pod], node: &NodeView) -> (String, String) {
    match admit(pod, others, node) {
        Verdict::Reject(rejection) => (rejection.reason, rejection.message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn resources_that_are_used_up() {
    let there = asking("there", json!({ "cpu": "700m", "memory": "1Gi" }), json!({}));
    let cpu = asking("new", json!({ "cpu": "500m" }), json!({}));
    assert_eq!(
        rejected(&cpu, &[&there], &node()),
        (
            "OutOfcpu".into(),
            "Node didn't have enough resource: cpu, requested: 500, used: 700, capacity: 1000".into()
        )
    );
    assert_eq!(admit(&cpu, &[], &node()), Verdict::Admit);
    let reason = |requests: Value| rejected(&asking("new", requests, json!({})), &[&there], &node()).0;
    assert_eq!(reason(json!({ "memory": "1" })), "OutOfmemory");
    assert_eq!(reason(json!({ "cpu": "2", "memory": "1" })), "OutOfcpu", "the first of several");
    assert_eq!(reason(json!({ "ephemeral-storage": "2Gi" })), "OutOfephemeral-storage");
    assert_eq!(reason(json!({ "example.com/gpu": "2" })), "OutOfexample.com/gpu");
    assert_eq!(reason(json!({ "hugepages-2Mi": "6Mi" })), "OutOfhugepages-2Mi");
    let foreign = asking("new", json!({ "other.org/thing": "1" }), json!({}));
    assert_eq!(admit(&foreign, &[&there], &node()), Verdict::Admit, "not this node's to count");

    let small = pod("small", json!({}));
    let three = [&there, &small, &small];
    let (reason, message) = rejected(&small, &three, &node());
    assert_eq!(reason, "OutOfpods");
    assert_eq!(message, "Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3");
    let unknown = NodeView { allocatable: Amounts::new(), ..node() };
    assert_eq!(admit(&cpu, &[&there], &unknown), Verdict::Admit, "what is not known refuses nobody");
}

#[test]
fn places_that_do_not_fit() {
    let reason = |spec: Value| rejected(&pod("new", spec), &[], &node());
    assert_eq!(
        reason(json!({ "nodeSelector": { "site": "hall-4" } })),
        (
            "NodeAffinity".into(),
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".into()
        )
    );
    let unsaid = NodeView { labels: None, ..node() };
    let selects = pod("new", json!({ "nodeSelector": { "site": "hall-4" } }));
    assert_eq!(admit(&selects, &[], &unsaid), Verdict::Admit, "labels that nobody told refuse nobody");
    assert_eq!(reason(json!({ "nodeName": "edge-2" })).0, "NodeName");
    assert_eq!(reason(json!({ "os": { "name": "windows" } })).0, "PodOSNotSupported");
    let affine = |terms: Value| {
        let required = json!({ "nodeSelectorTerms": terms });
        let affinity =
            json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": required } });
        admit(&pod("new", json!({ "affinity": affinity })), &[], &node()) == Verdict::Admit
    };
    let expression = |key: &str, operator: &str, values: Value| json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] });
    assert!(affine(json!([expression("site", "In", json!(["hall-3"]))])));
    assert!(affine(json!([expression("x", "Exists", json!([])), expression("cores", "Gt", json!(["3"]))])));
    assert!(affine(json!([expression("x", "NotIn", json!(["1"]))])));
    assert!(affine(
        json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["edge-1"] }] }])
    ));
    for term in [
        expression("site", "NotIn", json!(["hall-3"])),
        expression("site", "DoesNotExist", json!([])),
        expression("cores", "Lt", json!(["4"])),
        expression("site", "Maybe", json!(["hall-3"])),
        json!({}),
    ] {
        assert!(!affine(json!([term])), "{term}");
    }
}

#[test]
fn host_ports_clash_by_protocol_and_address() {
    let with =
        |ports: Value| pod("p", json!({ "containers": [{ "name": "c", "image": "i", "ports": ports }] }));
    let there = with(json!([{ "containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1" }]));
    let clash = |port: Value| {
        let new = with(json!([port]));
        match admit(&new, &[&there], &node()) {
            Verdict::Reject(rejection) => rejection.reason == "NodePorts",
            _ => false,
        }
    };
    assert!(clash(json!({ "containerPort": 1, "hostPort": 8080 })));
    assert!(clash(json!({ "containerPort": 1, "hostPort": 8080, "hostIP": "127.0.0.1" })));
    assert!(!clash(json!({ "containerPort": 1, "hostPort": 8080, "hostIP": "127.0.0.2" })));
    assert!(!clash(json!({ "containerPort": 1, "hostPort": 8080, "protocol": "UDP" })));
    assert!(!clash(json!({ "containerPort": 8080 })));
    let on_host = pod(
        "h",
        json!({ "hostNetwork": true, "containers": [{ "name": "c", "image": "i", "ports": [{ "containerPort": 8080 }] }] }),
    );
    assert_eq!(rejected(&on_host, &[&there], &node()).0, "NodePorts");
}

#[test]
fn taints_sysctls_and_profiles() {
    let tainted = NodeView {
        taints: vec![
            Taint { key: "k".into(), value: "v".into(), effect: "NoExecute".into() },
            Taint { key: "only-scheduling".into(), effect: "NoSchedule".into(), ..Taint::default() },
        ],
        ..node()
    };
    let reason = |spec: Value| match admit(&pod("new", spec), &[], &tainted) {
        Verdict::Reject(rejection) => rejection.reason,
        _ => String::new(),
    };
    assert_eq!(reason(json!({})), "TaintToleration");
    for toleration in [
        json!({ "operator": "Exists" }),
        json!({ "key": "k", "operator": "Exists", "effect": "NoExecute" }),
        json!({ "key": "k", "value": "v" }),
    ] {
        assert_eq!(reason(json!({ "tolerations": [toleration] })), "");
    }
    for toleration in [
        json!({ "key": "k", "value": "w" }),
        json!({ "key": "k", "operator": "Exists", "effect": "NoSchedule" }),
        json!({}),
    ] {
        assert_eq!(reason(json!({ "tolerations": [toleration] })), "TaintToleration");
    }
    let mut fixed = pod("new", json!({}));
    fixed.metadata.annotations.insert("kubernetes.io/config.source".into(), "file".into());
    assert_eq!(admit(&fixed, &[], &tainted), Verdict::Admit, "static pods stay whatever the taint");

    let sysctl = |name: &str, more: Value| {
        let mut spec = more;
        spec["securityContext"] = json!({ "sysctls": [{ "name": name, "value": "1" }] });
        let node = NodeView { allowed_unsafe_sysctls: vec!["kernel.msg*".into()], ..node() };
        match admit(&pod("new", spec), &[], &node) {
            Verdict::Reject(rejection) => format!("{}: {}", rejection.reason, rejection.message),
            _ => String::new(),
        }
    };
    assert_eq!(sysctl("net.ipv4.tcp_syncookies", json!({})), "");
    assert_eq!(sysctl("kernel/msgmax", json!({})), "", "allowed by pattern");
    assert_eq!(
        sysctl("kernel.sem", json!({})),
        "SysctlForbidden: forbidden sysctl: \"kernel.sem\" not allowlisted"
    );
    assert!(sysctl("net.ipv4.tcp_syncookies", json!({ "hostNetwork": true })).contains("host net enabled"));
    assert!(sysctl("kernel.msgmax", json!({ "hostIPC": true })).contains("host ipc enabled"));

    let armored = |kind: &str| {
        let profile = json!({ "appArmorProfile": { "type": kind, "localhostProfile": "p" } });
        let spec = json!({ "securityContext": profile });
        let on = NodeView { apparmor: true, ..node() };
        assert_eq!(admit(&pod("new", spec.clone()), &[], &on), Verdict::Admit);
        admit(&pod("new", spec), &[], &node()) != Verdict::Admit
    };
    assert!(armored("RuntimeDefault") && armored("Localhost") && !armored("Unconfined"));
    let strict = json!({ "securityContext": { "supplementalGroupsPolicy": "Strict" } });
    assert_eq!(rejected(&pod("new", strict), &[], &node()).0, "SupplementalGroupsPolicyNotSupported");
}

#[test]
fn critical_pods_take_the_place_of_the_least_important() {
    let guaranteed = asking("guaranteed", json!({}), json!({ "cpu": "300m", "memory": "1Mi" }));
    let burstable = asking("burstable", json!({ "cpu": "300m" }), json!({}));
    let best_effort = pod("best-effort", json!({}));
    let others = [&guaranteed, &burstable, &best_effort];
    let wide = NodeView { pods_max: 10, ..node() };
    let asks = |cpu: &str| critical(asking("new", json!({ "cpu": cpu }), json!({})));
    let victims = |uids: &[&str]| Verdict::Preempt(uids.iter().map(|uid| uid.to_string()).collect());
    assert_eq!(admit(&asks("400m"), &others, &wide), Verdict::Admit);
    assert_eq!(admit(&asks("500m"), &others, &wide), victims(&["burstable"]));
    assert_eq!(admit(&asks("1"), &others, &wide), victims(&["burstable", "guaranteed"]));
    assert_eq!(admit(&asks("500m"), &others, &node()), victims(&["burstable"]), "one place and 100m");
    assert_eq!(admit(&asks("100m"), &others, &node()), victims(&["best-effort"]), "a place only");
    let (reason, message) = rejected(&asks("2"), &others, &wide);
    assert_eq!(reason, "UnexpectedAdmissionError");
    assert!(
        message.ends_with("no set of running pods found to reclaim resources: [(res: cpu, q: 1000), ]"),
        "{message}"
    );
    let mut elsewhere = asks("1");
    elsewhere.spec.node_name = "edge-2".into();
    assert_eq!(
        rejected(&elsewhere, &others, &wide).0,
        "NodeName",
        "nobody is ended for a pod that cannot run"
    );
    let kept = critical(asking("kept", json!({ "cpu": "1" }), json!({})));
    assert_eq!(rejected(&asks("500m"), &[&kept], &wide).0, "UnexpectedAdmissionError", "critical ones stay");
    let (small, large) = (
        asking("small", json!({ "cpu": "200m" }), json!({})),
        asking("large", json!({ "cpu": "600m" }), json!({})),
    );
    assert_eq!(admit(&asks("400m"), &[&small, &large], &wide), victims(&["small"]), "the smaller of two");
    assert_eq!(admit(&asks("700m"), &[&small, &large], &wide), victims(&["large"]), "one rather than two");
}

/// Whatever pods come in whatever order: what is admitted fits, and nobody goes but for a critical pod.
#[test]
fn under_seeds_what_is_admitted_fits() {
    for seed in 0..300_u64 {
        let mut state = seed;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        let node = NodeView { pods_max: 6, ..node() };
        let mut running: Vec<Pod> = Vec::new();
        for n in 0..30 {
            let mut new = asking(
                &format!("p{n}"),
                json!({ "cpu": format!("{}m", below(600)), "memory": format!("{}Mi", below(600)) }),
                json!({}),
            );
            if below(4) == 0 {
                new = critical(new);
            }
            let others: Vec<&Pod> = running.iter().collect();
            let verdict = admit(&new, &others, &node);
            match verdict {
                Verdict::Admit => running.push(new),
                Verdict::Preempt(uids) => {
                    assert!(new.is_critical() && !uids.is_empty(), "seed {seed}");
                    let gone = |pod: &Pod| uids.contains(&pod.metadata.uid);
                    assert!(!running.iter().any(|pod| gone(pod) && pod.is_critical()), "seed {seed}");
                    running.retain(|pod| !gone(pod));
                    running.push(new);
                }
                Verdict::Reject(rejection) => assert!(rejection.message.len() < 400, "seed {seed}"),
            }
            for (resource, capacity) in [("cpu", 1000), ("memory", 1 << 30)] {
                let used: u64 =
                    running.iter().filter_map(|pod| pod_requests(pod).get(resource).copied()).sum();
                assert!(used <= capacity, "seed {seed}: {used} {resource}");
            }
            assert!(running.len() <= 6, "seed {seed}");
            if below(5) == 0 && !running.is_empty() {
                running.remove(below(running.len() as u64) as usize);
            }
        }
    }
}
