//! Pods of every shape: init containers, sidecars, probes, deadlines, in any mixture.

use serde_json::{Value, json};

use super::Random;
use crate::edged::pod::Pod;

/// Init containers begin with `i` and end well in the end, sidecars with `s`, main containers with `m`, ephemeral ones with `e`.
pub fn any(random: &mut Random, name: &str, uid: &str) -> Pod {
    let policy = ["Always", "OnFailure", "Never"][random.below(3) as usize];
    let count = random.below(4);
    let inits: Vec<Value> = (0..count).map(|n| init(random, n)).collect();
    let mains: Vec<Value> =
        (0..1 + random.below(2)).map(|n| probed(random, json!({ "name": format!("m{n}") }))).collect();
    let mut pod = json!({
        "metadata": { "name": name, "namespace": "default", "uid": uid },
        "spec": {
            "restartPolicy": policy, "initContainers": inits, "containers": mains,
            "terminationGracePeriodSeconds": random.below(40),
        },
    });
    if random.one_in(6) {
        pod["spec"]["activeDeadlineSeconds"] = json!(random.below(600));
    }
    Pod::parse(pod.to_string().as_bytes()).unwrap()
}

fn init(random: &mut Random, n: u64) -> Value {
    if random.one_in(2) {
        return json!({ "name": format!("i{n}"), "image": "x" });
    }
    probed(random, json!({ "name": format!("s{n}"), "restartPolicy": "Always" }))
}

fn probed(random: &mut Random, mut container: Value) -> Value {
    container["image"] = json!("x");
    for kind in ["startupProbe", "livenessProbe", "readinessProbe"] {
        if random.one_in(4) {
            container[kind] = json!({ "tcpSocket": { "port": 80 } });
        }
    }
    container
}

/// Something that may change in a pod that runs.
pub fn change(random: &mut Random, pod: &mut Pod) {
    match random.below(3) {
        0 => {
            let at = random.below(pod.spec.containers.len() as u64) as usize;
            pod.spec.containers[at].image.push('x');
        }
        1 => pod.spec.active_deadline_seconds = Some(random.below(300) as i64),
        _ => {
            let name = format!("e{}", pod.spec.ephemeral_containers.len());
            let mut container = pod.spec.containers[0].clone();
            (container.startup_probe, container.liveness_probe, container.readiness_probe) =
                (None, None, None);
            container.name = name;
            pod.spec.ephemeral_containers.push(container);
        }
    }
}
