//! Patterns of statuses and events: a part of the object that must be there.
//!
//! An object matches if every key of the pattern matches. In a pod's status `containers`, `init` and `ephemeral` stand for the
//! lists of container statuses and are looked into by name, `conditions` by type. `state: running` means that the state has that
//! key. Text that begins with `~` must be contained; `>=N` and `<=N` compare numbers; `null` means absent.

use serde_json::{Map, Value, json};

/// The status of a pod with its lists as maps.
pub fn by_name(status: &Value) -> Value {
    let mut map = status.as_object().cloned().unwrap_or_default();
    let named = |list: Option<Value>, key: &str| -> Value {
        let items = list.and_then(|list| list.as_array().cloned()).unwrap_or_default();
        let pair = |item: Value| Some((item.get(key)?.as_str()?.to_owned(), item));
        Value::Object(items.into_iter().filter_map(pair).collect())
    };
    for (short, long) in [
        ("containers", "containerStatuses"),
        ("init", "initContainerStatuses"),
        ("ephemeral", "ephemeralContainerStatuses"),
    ] {
        let list = map.remove(long);
        map.insert(short.into(), named(list, "name"));
    }
    let conditions = map.remove("conditions");
    map.insert("conditions".into(), named(conditions, "type"));
    Value::Object(map)
}

pub fn matches(pattern: &Value, value: &Value) -> bool {
    match (pattern, value) {
        (Value::Null, value) => value.is_null(),
        (Value::Object(wanted), Value::Object(map)) => {
            wanted.iter().all(|(key, pattern)| matches(pattern, map.get(key).unwrap_or(&Value::Null)))
        }
        (Value::Array(wanted), Value::Array(list)) => {
            wanted.iter().all(|pattern| list.iter().any(|value| matches(pattern, value)))
        }
        // `Ready: True`: YAML reads a truth value, Kubernetes writes a word.
        (Value::Bool(wanted), Value::Object(condition)) => {
            condition.get("status") == Some(&json!(if *wanted { "True" } else { "False" }))
        }
        (Value::String(wanted), Value::Object(map)) => has_key(wanted, map),
        (Value::String(wanted), Value::String(text)) => text_matches(wanted, text),
        (Value::String(wanted), Value::Number(number)) => {
            number_matches(wanted, number.as_f64().unwrap_or(0.0))
        }
        (wanted, value) => wanted == value,
    }
}

fn has_key(wanted: &str, map: &Map<String, Value>) -> bool {
    map.get(wanted).is_some_and(|value| !value.is_null())
}

pub fn text_matches(wanted: &str, text: &str) -> bool {
    match wanted.strip_prefix('~') {
        Some(part) => text.contains(part),
        None => wanted == text,
    }
}

fn number_matches(wanted: &str, number: f64) -> bool {
    let bound = |text: &str| text.trim().parse::<f64>().ok();
    if let Some(least) = wanted.strip_prefix(">=").and_then(bound) {
        return number >= least;
    }
    wanted.strip_prefix("<=").and_then(bound).is_some_and(|most| number <= most)
}

/// A status in one line, for messages.
pub fn line(status: &Value) -> String {
    let status = by_name(status);
    let mut parts = vec![status["phase"].as_str().unwrap_or("-").to_owned()];
    for key in ["reason", "message"] {
        parts.extend(status[key].as_str().map(|text| format!("{key}={text:?}")));
    }
    for (kind, condition) in status["conditions"].as_object().into_iter().flatten() {
        if condition["status"] == "True" {
            parts.push(kind.clone());
        }
    }
    for list in ["init", "containers", "ephemeral"] {
        for (name, container) in status[list].as_object().into_iter().flatten() {
            let ready = if container["ready"] == true { " ready" } else { "" };
            let last = match container["lastState"].as_object() {
                Some(last) if !last.is_empty() => format!(" last={}", json!(last)),
                _ => String::new(),
            };
            parts.push(format!(
                "{name}({}{ready} restarts={}{last})",
                container["state"], container["restartCount"]
            ));
        }
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_matched_by_its_parts() {
        let status = by_name(&json!({
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
            "containerStatuses": [{"name": "web", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 3}}}],
        }));
        for yes in [
            json!({"phase": "Running", "conditions": {"Ready": false}}),
            json!({"conditions": {"Ready": {"reason": "~NotReady"}}}),
            json!({"containers": {"web": {"state": "waiting", "restartCount": ">=1"}}}),
            json!({"containers": {"web": {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": 3}}}}}),
            json!({"containers": {"db": null}}),
        ] {
            assert!(matches(&yes, &status), "{yes}");
        }
        for no in [
            json!({"phase": "Pending"}),
            json!({"conditions": {"Ready": true}}),
            json!({"containers": {"web": {"state": "running"}}}),
            json!({"containers": {"web": {"restartCount": "<=1"}}}),
            json!({"containers": {"web": {"lastState": null}}}),
        ] {
            assert!(!matches(&no, &status), "{no}");
        }
    }
}
