//! Probes and hooks by exec in real containers. (HTTP, TCP and gRPC: `probe::tests`, and the table of pods.)

use e2e::containerd::{missing, not_run};
use serde_json::{Value, json};

use super::containerd::{Node, pod, wait_for};

fn exec(arguments: &[&str], more: Value) -> Value {
    let mut command = vec!["/hello"];
    command.extend(arguments);
    let mut probe = json!({ "exec": { "command": command }, "periodSeconds": 1 });
    probe.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    probe
}

fn wait_event(node: &Node, pod: &str, line: &str) {
    wait_for(line, || node.events(pod).contains(line).then_some(()), || node.events(pod));
}

fn deleted(mut pod: Value, grace: i64) -> Value {
    pod["metadata"]["deletionTimestamp"] = json!("2026-11-21T08:00:00Z");
    pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
    pod["metadata"]["resourceVersion"] = json!("2");
    pod
}

#[test]
fn exec_probes_decide_what_is_ready_and_what_is_restarted() {
    if let Some(why) = missing() {
        return not_run("exec_probes_decide_what_is_ready_and_what_is_restarted", &why);
    }
    let mut node = Node::start();
    let well = json!({
        "startupProbe": exec(&["exit", "0"], json!({})), "livenessProbe": exec(&["exit", "0"], json!({})),
        "readinessProbe": exec(&["exit", "0"], json!({})),
    });
    node.apply(&pod("well", well, json!({})));
    let ill = json!({ "livenessProbe": exec(&["exit", "3"], json!({ "failureThreshold": 2, "terminationGracePeriodSeconds": 1 })) });
    node.apply(&pod("ill", ill, json!({})));
    let hung = json!({ "readinessProbe": exec(&["sleep", "600"], json!({ "timeoutSeconds": 1 })) });
    node.apply(&pod("hung", hung, json!({})));
    let absent = json!({ "livenessProbe": { "exec": { "command": ["/nothing"] }, "periodSeconds": 1, "failureThreshold": 1 } });
    node.apply(&pod("absent", absent, json!({})));

    let before = node.wait_running("well");
    assert_eq!(before["containerStatuses"][0]["started"], true);
    let again = |status: &Value| status["containerStatuses"][0]["restartCount"] == 1;
    node.wait_status("ill", "restarted", again);
    wait_event(&node, "ill", "Warning Unhealthy Liveness probe failed: exit 3");
    wait_event(&node, "ill", "Normal Killing Container c failed liveness probe, will be restarted");
    wait_event(
        &node,
        "hung",
        "Unhealthy Readiness probe failed: command timed out: \"/hello sleep 600\" timed out after 1s",
    );
    wait_event(
        &node,
        "absent",
        "Unhealthy Liveness probe errored and resulted in unknown state: rpc error: code = Unknown",
    );
    let hung = node.status("hung").unwrap();
    assert_eq!((&hung["phase"], &hung["containerStatuses"][0]["ready"]), (&json!("Running"), &json!(false)));
    assert_eq!(node.status("absent").unwrap()["containerStatuses"][0]["restartCount"], 0);
    let left = node.containerd.processes("hello").unwrap();

    // A restart of the agent is not seen from outside.
    node.kill_agent();
    node.bench.uplink.reports.lock().unwrap().clear();
    node.start_agent();
    node.wait_running("well");
    wait_event(&node, "well", "Started");
    let reports = node.bench.uplink.reports_of("podstatus/default/well");
    for report in &reports {
        let text: String = serde_json::from_str(report.content.get()).unwrap();
        let patch: Value = serde_json::from_str(&text).unwrap();
        let container = &patch["status"]["containerStatuses"][0];
        assert_eq!((&container["ready"], &container["started"]), (&json!(true), &json!(true)), "{patch:#}");
    }
    assert!(left.len() <= 6, "execs that timed out are ended: {left:?}");
}

#[test]
fn hooks_hold_a_container_back_and_give_it_time() {
    if let Some(why) = missing() {
        return not_run("hooks_hold_a_container_back_and_give_it_time", &why);
    }
    let node = Node::start();
    let hook = |when: &str, arguments: &[&str]| {
        let mut command = vec!["/hello"];
        command.extend(arguments);
        json!({ "lifecycle": { when: { "exec": { "command": command } } } })
    };
    node.apply(&pod("fails", hook("postStart", &["exit", "9"]), json!({})));
    let slow = hook("postStart", &["sleep", "600"]);
    node.apply(&pod("slow", slow.clone(), json!({})));
    let bye = pod("bye", hook("preStop", &["exit", "4"]), json!({}));
    node.apply(&bye);
    let long = pod("long", hook("preStop", &["sleep", "600"]), json!({}));
    node.apply(&long);

    wait_event(&node, "fails", "Warning FailedPostStartHook PostStartHook failed");
    wait_event(&node, "fails", "Normal Killing FailedPostStartHook");
    let looping = node.wait_status("fails", "CrashLoopBackOff", |status| {
        status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    assert_eq!(looping["containerStatuses"][0]["ready"], false);

    // Held back while the hook runs; the pod can be deleted all the same.
    wait_event(&node, "slow", "Normal Started Started container c");
    let waiting = node.status("slow").unwrap();
    assert_eq!(waiting["phase"], "Pending", "{waiting:#}");
    node.apply(&deleted(pod("slow", slow, json!({})), 1));

    node.wait_running("bye");
    node.apply(&deleted(bye, 30));
    wait_event(&node, "bye", "Warning FailedPreStopHook PreStopHook failed");
    node.wait_running("long");
    node.apply(&deleted(long, 2));
    for name in ["slow", "bye", "long"] {
        let gone = || node.bench.uplink.reports_of(&format!("poddelete/default/{name}/uid-{name}")).pop();
        wait_for(name, gone, || format!("{:#}", node.status(name).unwrap()));
    }
    let ended = |name: &str| {
        node.status(name).unwrap()["containerStatuses"][0]["state"]["terminated"]["exitCode"].clone()
    };
    assert_eq!((ended("bye"), ended("long")), (json!(0), json!(0)), "SIGTERM came in time after each hook");
}
