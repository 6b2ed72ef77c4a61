//! A node's line.

use serde_json::Value;

use super::{AGE, Column, NAME, column, wide};
use crate::meta::{at, text};
use crate::time::age;

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    column("Status", "string"),
    column("Roles", "string"),
    AGE,
    column("Version", "string"),
    wide("Internal-IP"),
    wide("External-IP"),
    wide("OS-Image"),
    wide("Kernel-Version"),
    wide("Container-Runtime"),
];

pub(super) fn cells(node: &Value, now: i64) -> Vec<Value> {
    let or = |text: &str, other: &str| Value::from(if text.is_empty() { other } else { text });
    vec![
        text(node, "metadata.name").into(),
        status(node).into(),
        roles(node).into(),
        age(at(node, "metadata.creationTimestamp").and_then(Value::as_str), now).into(),
        text(node, "status.nodeInfo.kubeletVersion").into(),
        or(address(node, "InternalIP"), "<none>"),
        or(address(node, "ExternalIP"), "<none>"),
        or(text(node, "status.nodeInfo.osImage"), "<unknown>"),
        or(text(node, "status.nodeInfo.kernelVersion"), "<unknown>"),
        or(text(node, "status.nodeInfo.containerRuntimeVersion"), "<unknown>"),
    ]
}

fn status(node: &Value) -> String {
    let conditions = at(node, "status.conditions").and_then(Value::as_array);
    let ready = conditions.and_then(|list| list.iter().find(|condition| text(condition, "type") == "Ready"));
    let mut words = vec![match ready.map(|condition| text(condition, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if at(node, "spec.unschedulable") == Some(&Value::Bool(true)) {
        words.push("SchedulingDisabled");
    }
    words.join(",")
}

fn roles(node: &Value) -> String {
    let mut roles: Vec<&str> = Vec::new();
    if let Some(Value::Object(labels)) = at(node, "metadata.labels") {
        for (key, value) in labels {
            match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) if !role.is_empty() => roles.push(role),
                _ if key == "kubernetes.io/role" => {
                    roles.extend(value.as_str().filter(|role| !role.is_empty()))
                }
                _ => {}
            }
        }
    }
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "<none>".into() } else { roles.join(",") }
}

fn address<'a>(node: &'a Value, what: &str) -> &'a str {
    let addresses = at(node, "status.addresses").and_then(Value::as_array);
    let found = addresses.and_then(|list| list.iter().find(|address| text(address, "type") == what));
    found.map(|address| text(address, "address")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cordoned_edge_node() {
        let node = json!({
            "metadata": {"name": "pi", "labels": {"node-role.kubernetes.io/edge": "", "node-role.kubernetes.io/agent": ""}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.2"}],
                "nodeInfo": {"kubeletVersion": "v1.32.0"}},
        });
        let cells = cells(&node, 0);
        assert_eq!(cells[1], "Ready,SchedulingDisabled");
        assert_eq!(cells[2], "agent,edge");
        assert_eq!(cells[5], "10.0.0.2");
        assert_eq!(status(&json!({})), "Unknown");
    }
}
