//! Thresholds over time, the order of eviction, and the words for it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    local,
    machine::{Crossed, Machine},
    rank::{Candidate, Use, choose},
    settings::PressureSettings,
    *,
};

const MIB: u64 = 1024 * 1024;

fn pod(name: &str, spec: Value) -> Arc<Pod> {
    let mut object = json!({
        "metadata": { "name": name, "namespace": "default", "uid": name },
        "spec": { "containers": [{ "name": "web", "image": "i" }] },
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    Arc::new(Pod::parse(object.to_string().as_bytes()).unwrap())
}

fn asking(name: &str, memory: &str, priority: i32) -> Arc<Pod> {
    let resources = json!({ "requests": { "memory": memory } });
    pod(
        name,
        json!({ "priority": priority, "containers": [{ "name": "web", "image": "i", "resources": resources }] }),
    )
}

fn uses(pod: Arc<Pod>, memory: u64) -> Candidate {
    Candidate {
        uid: pod.metadata.uid.clone(),
        containers: BTreeMap::from([("web".to_string(), Use { memory, disk: 0 })]),
        pod,
        memory,
        disk: 0,
        inodes: 0,
        processes: 1,
    }
}

fn memory(available: u64) -> Readings {
    Readings::from([(Signal::Memory, Level { available, capacity: 1024 * MIB })])
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn threshold(signal: Signal, units: u64, grace: Option<u64>, reclaim: Option<u64>) -> Threshold {
    Threshold {
        signal,
        amount: Amount::Units(units),
        grace: grace.map(s),
        reclaim: reclaim.map(Amount::Units),
    }
}

fn machine(thresholds: Vec<Threshold>) -> Machine {
    Machine::new(PressureSettings { thresholds, transition_period: s(300), soft_grace_max: s(60) })
}

#[test]
fn a_crossed_threshold_is_a_condition_that_outlasts_its_cause() {
    let mut machine = machine(vec![threshold(Signal::Memory, 100 * MIB, None, None)]);
    assert_eq!(machine.observe(s(0), &memory(200 * MIB), |_| false), None);
    assert!(machine.conditions().is_empty());
    let crossed = machine.observe(s(10), &memory(50 * MIB), |_| false).unwrap();
    assert_eq!((&*crossed.threshold, &*crossed.available), ("100Mi", "50Mi"));
    assert_eq!(machine.conditions(), [NodeCondition::MemoryPressure]);
    assert_eq!(machine.observe(s(20), &memory(200 * MIB), |_| false), None, "nothing to do any more");
    machine.observe(s(309), &memory(200 * MIB), |_| false);
    assert_eq!(machine.conditions(), [NodeCondition::MemoryPressure], "no flapping");
    machine.observe(s(310), &memory(200 * MIB), |_| false);
    assert!(machine.conditions().is_empty());
    machine.observe(s(320), &Readings::new(), |_| false);
    assert!(machine.conditions().is_empty(), "what cannot be read is no pressure");
}

#[test]
fn one_pod_at_a_time_and_enough_is_made_free() {
    let mut machine = machine(vec![threshold(Signal::Memory, 100 * MIB, None, Some(50 * MIB))]);
    assert!(machine.observe(s(0), &memory(90 * MIB), |_| true).is_some());
    machine.evicting(s(0), "first");
    assert_eq!(machine.observe(s(10), &memory(90 * MIB), |uid| uid == "first"), None, "it still stops");
    assert!(
        machine.observe(s(20), &memory(120 * MIB), |_| false).is_some(),
        "the minimum reclaim is not reached"
    );
    machine.evicting(s(20), "second");
    assert!(
        machine.observe(s(51), &memory(120 * MIB), |_| true).is_some(),
        "one that does not end holds up no other"
    );
    assert_eq!(machine.observe(s(60), &memory(151 * MIB), |_| false), None);
}

#[test]
fn a_soft_threshold_waits_and_memory_comes_before_disk() {
    let mut machine = machine(vec![
        threshold(Signal::NodeDisk, 100, Some(0), None),
        threshold(Signal::Memory, 500 * MIB, Some(90), None),
    ]);
    let mut readings = memory(400 * MIB);
    assert_eq!(machine.observe(s(0), &readings, |_| false), None);
    assert_eq!(machine.conditions(), [NodeCondition::MemoryPressure], "the condition does not wait");
    assert_eq!(machine.observe(s(80), &readings, |_| false), None);
    readings.insert(Signal::NodeDisk, Level { available: 1, capacity: 1000 });
    let crossed = machine.observe(s(90), &readings, |_| false).unwrap();
    assert_eq!((crossed.signal, crossed.grace), (Signal::Memory, s(60)));
    readings.remove(&Signal::Memory);
    assert_eq!(machine.observe(s(100), &readings, |_| false).unwrap().signal, Signal::NodeDisk);
}

#[test]
fn the_order_is_kubelets_and_critical_pods_stay() {
    let crossed =
        Crossed { signal: Signal::Memory, threshold: "100Mi".into(), available: "50Mi".into(), grace: s(1) };
    let mut pods = vec![
        uses(asking("within", "500Mi", 0), 400 * MIB),
        uses(asking("above-high", "10Mi", 1000), 300 * MIB),
        uses(asking("above-little", "100Mi", 0), 150 * MIB),
        uses(asking("above-much", "0", 0), 60 * MIB),
        uses(asking("system", "0", 2_000_001_000), 900 * MIB),
    ];
    let mut order = Vec::new();
    while let Some((victim, _)) = choose(&crossed, &pods) {
        let uid = victim.uid.clone();
        pods.retain(|pod| pod.uid != uid);
        order.push(uid);
    }
    assert_eq!(order, ["above-much", "above-little", "above-high", "within"]);
    assert_eq!(pods.len(), 1);

    let pods = [uses(asking("a", "64Mi", 0), 70 * MIB)];
    assert_eq!(
        choose(&crossed, &pods).unwrap().1,
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
         Container web was using 70Mi, request is 64Mi, has larger consumption of memory. "
    );
}

#[test]
fn process_ids_go_by_priority_and_then_by_number() {
    let crossed =
        Crossed { signal: Signal::Pids, threshold: "1k".into(), available: "10".into(), grace: s(1) };
    let with = |name: &str, priority: i32, processes: u64| Candidate {
        processes,
        ..uses(asking(name, "0", priority), 0)
    };
    let pods = [with("many", 10, 900), with("some", 0, 50), with("few", 0, 5)];
    let (victim, message) = choose(&crossed, &pods).unwrap();
    assert_eq!(victim.uid, "some");
    assert_eq!(message, "The node was low on resource: pids. Threshold quantity: 1k, available: 10. ");
}

#[test]
fn new_pods_are_refused_as_kubelet_does() {
    use NodeCondition::{DiskPressure, MemoryPressure};
    let plain = pod("plain", json!({}));
    assert_eq!(refuses(&plain, &[]), None);
    assert_eq!(refuses(&plain, &[MemoryPressure]).unwrap(), "The node had condition: [MemoryPressure]. ");
    assert_eq!(refuses(&asking("burstable", "10Mi", 0), &[MemoryPressure]), None);
    let tolerant =
        json!({ "tolerations": [{ "key": "node.kubernetes.io/memory-pressure", "operator": "Exists" }] });
    assert_eq!(refuses(&pod("tolerant", tolerant), &[MemoryPressure]), None);
    assert!(refuses(&asking("burstable", "10Mi", 0), &[DiskPressure]).is_some());
    assert_eq!(refuses(&asking("system", "0", 2_000_000_000), &[DiskPressure, MemoryPressure]), None);
}

#[test]
fn limits_of_the_disk_that_a_pod_sets_itself() {
    let volumes = json!({ "volumes": [{ "name": "scratch", "emptyDir": { "sizeLimit": "1Mi" } }, { "name": "ram", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }] });
    let scratch = uses(pod("scratch", volumes), 0);
    assert!(local::is_limited(&scratch.pod) && !local::is_limited(&pod("plain", json!({}))));
    assert_eq!(local::exceeded(&scratch, |_| MIB), None);
    assert_eq!(
        local::exceeded(&scratch, |name| if name == "scratch" { MIB + 1 } else { 0 }).unwrap(),
        "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". "
    );
    let limited = |names: &[(&str, Option<&str>)]| {
        let containers: Vec<Value> = names
            .iter()
            .map(|(name, limit)| match limit {
                Some(limit) => json!({ "name": name, "image": "i", "resources": { "limits": { "ephemeral-storage": limit } } }),
                None => json!({ "name": name, "image": "i" }),
            })
            .collect();
        pod("limited", json!({ "containers": containers }))
    };
    let mut one = uses(limited(&[("web", Some("2Mi")), ("side", None)]), 0);
    one.containers.insert("web".into(), Use { memory: 0, disk: 3 * MIB });
    one.disk = 3 * MIB;
    assert_eq!(
        local::exceeded(&one, |_| 0).unwrap(),
        "Container web exceeded its local ephemeral storage limit \"2Mi\". "
    );
    let mut both = uses(limited(&[("web", Some("2Mi")), ("side", Some("2Mi"))]), 0);
    both.disk = 5 * MIB;
    assert_eq!(
        local::exceeded(&both, |_| 0).unwrap(),
        "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. "
    );
}

#[test]
fn quantities_as_kubernetes_writes_them() {
    for (value, is_bytes, text) in [
        (0, true, "0"),
        (1024, true, "1Ki"),
        (1025, true, "1025"),
        (100 * MIB, true, "100Mi"),
        (4000, false, "4k"),
    ] {
        assert_eq!(quantity_text(value, is_bytes), text);
    }
}
