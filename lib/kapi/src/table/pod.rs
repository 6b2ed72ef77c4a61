//! A pod's line. The status word is computed from phase, deletion and container states.

use serde_json::Value;

use super::{AGE, Column, NAME, column, wide};
use crate::meta::{at, text};
use crate::time::{age, human_duration, parse};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "string"),
    column("Status", "string"),
    column("Restarts", "string"),
    AGE,
    wide("IP"),
    wide("Node"),
    wide("Nominated Node"),
    wide("Readiness Gates"),
];

fn list<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    at(object, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

pub(super) fn cells(pod: &Value, now: i64) -> Vec<Value> {
    let summary = summarize(pod);
    let restarts = match summary.last_restart.filter(|_| summary.restarts > 0) {
        Some(at) => format!("{} ({} ago)", summary.restarts, human_duration(now - at)),
        None => summary.restarts.to_string(),
    };
    vec![
        text(pod, "metadata.name").into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.status.into(),
        restarts.into(),
        age(at(pod, "metadata.creationTimestamp").and_then(Value::as_str), now).into(),
        or_none(text(pod, "status.podIP")),
        or_none(text(pod, "spec.nodeName")),
        or_none(text(pod, "status.nominatedNodeName")),
        gates(pod).into(),
    ]
}

struct Summary {
    ready: usize,
    total: usize,
    status: String,
    restarts: i64,
    last_restart: Option<i64>,
}

fn summarize(pod: &Value) -> Summary {
    let phase = text(pod, "status.phase");
    let mut status = match text(pod, "status.reason") {
        "" => phase.to_string(),
        reason => reason.to_string(),
    };
    let gated = list(pod, "status.conditions").iter().any(|condition| {
        text(condition, "type") == "PodScheduled" && text(condition, "reason") == "SchedulingGated"
    });
    if gated {
        status = "SchedulingGated".into();
    }
    let inits = list(pod, "spec.initContainers");
    let is_sidecar = |name: &str| {
        inits.iter().any(|init| text(init, "name") == name && text(init, "restartPolicy") == "Always")
    };
    let mut total = list(pod, "spec.containers").len();
    let (mut ready, mut restarts, mut last_restart) = (0, 0, None);
    let mut initializing = false;
    total += inits.iter().filter(|init| text(init, "restartPolicy") == "Always").count();
    for (index, container) in list(pod, "status.initContainerStatuses").iter().enumerate() {
        restarts += container.get("restartCount").and_then(Value::as_i64).unwrap_or(0);
        last_restart = last_restart.max(last_end(container));
        let sidecar = is_sidecar(text(container, "name"));
        if sidecar && container.get("started") == Some(&Value::Bool(true)) {
            ready += usize::from(container.get("ready") == Some(&Value::Bool(true)));
            continue;
        }
        if initializing {
            continue;
        }
        let exit_code = at(container, "state.terminated.exitCode").and_then(Value::as_i64);
        match (exit_code, text(container, "state.waiting.reason")) {
            (Some(0), _) => continue,
            (Some(code), _) => status = format!("Init:{}", ended(container, code)),
            (None, reason) if !reason.is_empty() && reason != "PodInitializing" => {
                status = format!("Init:{reason}")
            }
            _ => status = format!("Init:{index}/{}", inits.len()),
        }
        initializing = true;
    }
    if !initializing {
        let mut running = false;
        for container in list(pod, "status.containerStatuses").iter().rev() {
            restarts += container.get("restartCount").and_then(Value::as_i64).unwrap_or(0);
            last_restart = last_restart.max(last_end(container));
            let exit_code = at(container, "state.terminated.exitCode").and_then(Value::as_i64);
            let waiting = text(container, "state.waiting.reason");
            if !waiting.is_empty() {
                status = waiting.to_string();
            } else if let Some(code) = exit_code {
                status = ended(container, code);
            } else if container.get("ready") == Some(&Value::Bool(true))
                && at(container, "state.running").is_some()
            {
                running = true;
                ready += 1;
            }
        }
        if status == "Completed" && running {
            let is_ready = list(pod, "status.conditions")
                .iter()
                .any(|condition| text(condition, "type") == "Ready" && text(condition, "status") == "True");
            status = if is_ready { "Running".into() } else { "NotReady".into() };
        }
    }
    if !text(pod, "metadata.deletionTimestamp").is_empty() && !matches!(phase, "Succeeded" | "Failed") {
        status =
            if text(pod, "status.reason") == "NodeLost" { "Unknown".into() } else { "Terminating".into() };
    }
    Summary { ready, total, status, restarts, last_restart }
}

/// `Completed`, `Error`, `OOMKilled`, else by signal or exit code.
fn ended(container: &Value, code: i64) -> String {
    match (
        text(container, "state.terminated.reason"),
        at(container, "state.terminated.signal").and_then(Value::as_i64),
    ) {
        ("", Some(signal)) if signal != 0 => format!("Signal:{signal}"),
        ("", _) => format!("ExitCode:{code}"),
        (reason, _) => reason.to_string(),
    }
}

fn last_end(container: &Value) -> Option<i64> {
    parse(text(container, "lastState.terminated.finishedAt"))
}

fn gates(pod: &Value) -> String {
    let gates = list(pod, "spec.readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let met = gates.iter().filter(|gate| {
        list(pod, "status.conditions").iter().any(|condition| {
            text(condition, "type") == text(gate, "conditionType") && text(condition, "status") == "True"
        })
    });
    format!("{}/{}", met.count(), gates.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn status_words() {
        let container = |state: Value, ready: bool| {
            json!({"name": "c", "ready": ready, "restartCount": 2, "state": state,
            "lastState": {"terminated": {"finishedAt": "1970-01-01T00:00:10Z"}}})
        };
        for (status, deleted, shown) in [
            (json!({"phase": "Pending"}), false, "0/1 Pending 0"),
            (
                json!({"phase": "Running", "containerStatuses": [container(json!({"running": {}}), true)]}),
                false,
                "1/1 Running 2 (50s ago)",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [container(json!({"waiting": {"reason": "CrashLoopBackOff"}}), false)]}),
                false,
                "0/1 CrashLoopBackOff 2 (50s ago)",
            ),
            (
                json!({"phase": "Succeeded", "containerStatuses": [container(json!({"terminated": {"reason": "Completed", "exitCode": 0}}), false)]}),
                false,
                "0/1 Completed 2 (50s ago)",
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [container(json!({"terminated": {"signal": 9, "exitCode": 137}}), false)]}),
                false,
                "0/1 Signal:9 2 (50s ago)",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [container(json!({"running": {}}), true)]}),
                true,
                "1/1 Terminating 2 (50s ago)",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
                false,
                "0/1 Init:0/2 0",
            ),
            (json!({"phase": "Failed", "reason": "Evicted"}), false, "0/1 Evicted 0"),
        ] {
            let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}],
                "initContainers": [{"name": "i"}, {"name": "j"}]}, "status": status});
            if deleted {
                pod["metadata"]["deletionTimestamp"] = "1970-01-01T00:00:00Z".into();
            }
            let cells = cells(&pod, 60);
            let words: Vec<&str> = cells[1..4].iter().map(|cell| cell.as_str().unwrap()).collect();
            assert_eq!(words.join(" "), shown);
        }
    }
}
