//! A pod's ephemeral containers: added to a running pod by `kubectl debug`, never changed, never removed (kubernetes,
//! pkg/apis/core/validation, `ValidatePodEphemeralContainersUpdate`).

use serde_json::Value;

use crate::{Cause, meta};

/// What `old` becomes when the list of `new` is taken over. Everything else of `new` is ignored.
pub fn take_over(old: &Value, new: &Value) -> Value {
    let mut pod = old.clone();
    let list = meta::at(new, "spec.ephemeralContainers").cloned();
    let spec = meta::child(&mut pod, "spec");
    match list.filter(|list| list.as_array().is_some_and(|list| !list.is_empty())) {
        Some(list) => spec.insert("ephemeralContainers".into(), list),
        None => spec.remove("ephemeralContainers"),
    };
    pod
}

/// What they must not have: they are for looking, and are never restarted or restricted.
const FORBIDDEN: &[&str] = &[
    "ports",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
    "resizePolicy",
    "restartPolicy",
];

/// What is wrong with the change. Both are after defaulting.
pub fn change(old: &Value, new: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let (had, has) = (containers(old, "ephemeralContainers"), containers(new, "ephemeralContainers"));
    let annotations = meta::at(old, "metadata.annotations");
    if annotations.is_some_and(|map| map.get("kubernetes.io/config.mirror").is_some()) {
        causes.push(forbidden("", "static pods do not support ephemeral containers"));
    }
    for old in had {
        let name = meta::text(old, "name");
        match has.iter().find(|new| meta::text(new, "name") == name) {
            None => causes.push(forbidden(
                "spec.ephemeralContainers",
                &format!("existing ephemeral containers \"{name}\" may not be removed\n"),
            )),
            Some(new) if new != old => causes.push(forbidden(
                "spec.ephemeralContainers",
                &format!("existing ephemeral containers \"{name}\" may not be changed\n"),
            )),
            Some(_) => {}
        }
    }
    let others: Vec<&str> = ["initContainers", "containers"]
        .iter()
        .flat_map(|list| containers(new, list))
        .map(|container| meta::text(container, "name"))
        .collect();
    let mut seen: Vec<&str> = Vec::new();
    for (at, container) in has.iter().enumerate() {
        let path = format!("spec.ephemeralContainers[{at}]");
        let name = meta::text(container, "name");
        if name.is_empty() {
            causes.push(cause("FieldValueRequired", format!("{path}.name"), "Required value".into()));
        } else if !crate::validate::is_dns_label(name) {
            let why = format!("Invalid value: \"{name}\": a lowercase RFC 1123 label is needed");
            causes.push(cause("FieldValueInvalid", format!("{path}.name"), why));
        } else if others.contains(&name) || seen.contains(&name) {
            let why = format!("Duplicate value: \"{name}\"");
            causes.push(cause("FieldValueDuplicate", format!("{path}.name"), why));
        }
        seen.push(name);
        if meta::text(container, "image").trim().is_empty() {
            causes.push(cause("FieldValueRequired", format!("{path}.image"), "Required value".into()));
        }
        let target = meta::text(container, "targetContainerName");
        if !target.is_empty() && !others.contains(&target) {
            let why = format!("Not found: \"{target}\"");
            causes.push(cause("FieldValueNotFound", format!("{path}.targetContainerName"), why));
        }
        for field in FORBIDDEN {
            if container.get(field).is_some() {
                causes
                    .push(forbidden(&format!("{path}.{field}"), "cannot be set for an Ephemeral Container"));
            }
        }
        if container.get("resources").is_some_and(|map| map.as_object().is_some_and(|map| !map.is_empty())) {
            causes.push(forbidden(&format!("{path}.resources"), "cannot be set for an Ephemeral Container"));
        }
    }
    causes
}

/// A new pod has none.
pub fn on_creation(pod: &Value) -> Vec<Cause> {
    if containers(pod, "ephemeralContainers").is_empty() {
        return Vec::new();
    }
    vec![forbidden("spec.ephemeralContainers", "cannot be set on create")]
}

fn containers<'a>(pod: &'a Value, list: &str) -> &'a [Value] {
    let list = pod.get("spec").and_then(|spec| spec.get(list)).and_then(Value::as_array);
    list.map_or(&[], Vec::as_slice)
}

fn cause(reason: &'static str, field: String, message: String) -> Cause {
    Cause { reason, message, field }
}

fn forbidden(field: &str, why: &str) -> Cause {
    cause("FieldValueForbidden", field.into(), format!("Forbidden: {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(ephemeral: Value) -> Value {
        json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}],
            "initContainers": [{"name": "first", "image": "i"}], "ephemeralContainers": ephemeral}})
    }

    #[test]
    fn only_the_list_is_taken_over() {
        let mut new = pod(json!([{"name": "look", "image": "i"}]));
        new["metadata"]["labels"]["a"] = "changed".into();
        new["spec"]["containers"][0]["image"] = "changed".into();
        let took = take_over(&pod(json!([])), &new);
        assert_eq!(took, pod(json!([{"name": "look", "image": "i"}])));
        assert_eq!(meta::at(&take_over(&new, &json!({"spec": {}})), "spec.ephemeralContainers"), None);
    }

    #[test]
    fn they_are_added_and_nothing_else() {
        let old = pod(json!([{"name": "look", "image": "i"}]));
        let fields = |new: Value| -> Vec<String> {
            change(&old, &pod(new))
                .into_iter()
                .map(|cause| format!("{}: {}", cause.field, cause.message.trim_end()))
                .collect()
        };
        let look = json!({"name": "look", "image": "i"});
        let empty: Vec<String> = Vec::new();
        assert_eq!(
            fields(
                json!([look, {"name": "more", "image": "i", "targetContainerName": "c", "resources": {}}])
            ),
            empty
        );
        assert_eq!(
            fields(json!([])),
            [
                "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"look\" may not be removed"
            ]
        );
        assert_eq!(
            fields(json!([{"name": "look", "image": "j"}])),
            [
                "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"look\" may not be changed"
            ]
        );
        let bad = json!([look, {"name": "c", "ports": [], "resources": {"limits": {"cpu": "1"}}, "targetContainerName": "x"},
            {"image": "i"}]);
        assert_eq!(
            fields(bad),
            [
                "spec.ephemeralContainers[1].name: Duplicate value: \"c\"",
                "spec.ephemeralContainers[1].image: Required value",
                "spec.ephemeralContainers[1].targetContainerName: Not found: \"x\"",
                "spec.ephemeralContainers[1].ports: Forbidden: cannot be set for an Ephemeral Container",
                "spec.ephemeralContainers[1].resources: Forbidden: cannot be set for an Ephemeral Container",
                "spec.ephemeralContainers[2].name: Required value",
            ]
        );
        assert_eq!(on_creation(&old).len(), 1);
        assert_eq!(on_creation(&pod(json!([]))), []);
    }
}
