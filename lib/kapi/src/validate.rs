//! Rules that an object must keep whatever its kind, and the few per kind that the node relies on.

use serde_json::Value;

use crate::limits::{ANNOTATIONS_BYTES_MAX, DATA_BYTES_MAX};
use crate::{Cause, Kind, meta, selector, storage};

/// Lower case letters, digits and `-`, at most 63, starting and ending with a letter or digit.
pub fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Dot-separated labels, at most 253 in all.
pub fn is_dns_subdomain(text: &str) -> bool {
    let part = |text: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

/// What is wrong with an object that is about to be stored. Empty: nothing.
pub fn object(kind: &Kind, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    name(kind, object, &mut causes);
    labels(object, &mut causes);
    annotations(object, &mut causes);
    finalizers(object, &mut causes);
    match kind.kind {
        "Pod" => pod(object, &mut causes),
        "ConfigMap" | "Secret" => data(object, &mut causes),
        "Device" => device(object, &mut causes),
        "DeviceModel" => device_model(object, &mut causes),
        other => storage::object(other, object, &mut causes),
    }
    causes
}

/// What is wrong with a change from `old` to `new` through the main resource. Metadata is checked by the server.
pub fn change(kind: &Kind, old: &Value, new: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    match kind.kind {
        "Pod" if pod_spec_frozen(old) != pod_spec_frozen(new) => causes.push(Cause {
            reason: "FieldValueForbidden",
            message: "Forbidden: pod updates may not change fields other than \
                      `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                      `spec.tolerations` (only additions to existing tolerations),\
                      `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
                .into(),
            field: "spec".into(),
        }),
        "ConfigMap" | "Secret" if old.get("immutable") == Some(&Value::Bool(true)) => {
            for field in ["data", "binaryData", "immutable"] {
                if old.get(field) != new.get(field) {
                    causes.push(Cause {
                        reason: "FieldValueForbidden",
                        message: "Forbidden: field is immutable when `immutable` is set".into(),
                        field: field.into(),
                    });
                }
            }
        }
        "Secret" if old.get("type") != new.get("type") => causes.push(invalid(
            "type",
            meta::text(new, "type"),
            "field is immutable",
        )),
        other => storage::change(other, old, new, &mut causes),
    }
    causes
}

/// A pod's spec without what may change.
fn pod_spec_frozen(pod: &Value) -> Value {
    let mut spec = pod.get("spec").cloned().unwrap_or_default();
    if let Some(map) = spec.as_object_mut() {
        for field in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"] {
            map.remove(field);
        }
        for field in ["containers", "initContainers"] {
            if let Some(Value::Array(list)) = map.get_mut(field) {
                for container in list.iter_mut().filter_map(Value::as_object_mut) {
                    container.remove("image");
                }
            }
        }
    }
    spec
}

pub(crate) fn invalid(field: &str, value: &str, why: &str) -> Cause {
    Cause {
        reason: "FieldValueInvalid",
        message: format!("Invalid value: \"{value}\": {why}"),
        field: field.into(),
    }
}

pub(crate) fn required(field: impl Into<String>, why: &str) -> Cause {
    let message = if why.is_empty() { "Required value".into() } else { format!("Required value: {why}") };
    Cause { reason: "FieldValueRequired", message, field: field.into() }
}

pub(crate) fn unsupported(field: String, value: &str, known: &[&str]) -> Cause {
    let known: Vec<String> = known.iter().map(|word| format!("\"{word}\"")).collect();
    Cause {
        reason: "FieldValueNotSupported",
        message: format!("Unsupported value: \"{value}\": supported values: {}", known.join(", ")),
        field,
    }
}

fn name(kind: &Kind, object: &Value, causes: &mut Vec<Cause>) {
    let name = meta::text(object, "metadata.name");
    let (ok, rule) = match kind.kind {
        "Namespace" => (is_dns_label(name), LABEL_RULE),
        _ => (is_dns_subdomain(name), SUBDOMAIN_RULE),
    };
    if name.is_empty() {
        causes.push(required("metadata.name", "name or generateName is required"));
    } else if !ok {
        causes.push(invalid("metadata.name", name, rule));
    }
}

const LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
     start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
     '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

fn labels(object: &Value, causes: &mut Vec<Cause>) {
    let Some(Value::Object(map)) = meta::at(object, "metadata.labels") else { return };
    for (key, value) in map {
        if !selector::is_qualified_name(key) {
            causes.push(invalid(
                "metadata.labels",
                key,
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                 alphanumeric character",
            ));
        }
        let value = value.as_str().unwrap_or_default();
        if !selector::is_valid_label_value(value) {
            causes.push(invalid(
                "metadata.labels",
                value,
                "a valid label must be an empty string or consist of at most 63 alphanumeric characters, '-', '_' or \
                 '.', and must start and end with an alphanumeric character",
            ));
        }
    }
}

fn annotations(object: &Value, causes: &mut Vec<Cause>) {
    let Some(Value::Object(map)) = meta::at(object, "metadata.annotations") else { return };
    let mut total = 0;
    for (key, value) in map {
        if !selector::is_qualified_name(&key.to_lowercase()) {
            causes.push(invalid("metadata.annotations", key, "not a qualified name"));
        }
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > ANNOTATIONS_BYTES_MAX {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {ANNOTATIONS_BYTES_MAX} bytes"),
            field: "metadata.annotations".into(),
        });
    }
}

fn finalizers(object: &Value, causes: &mut Vec<Cause>) {
    let Some(Value::Array(list)) = meta::at(object, "metadata.finalizers") else { return };
    for item in list.iter().filter_map(Value::as_str) {
        if !selector::is_qualified_name(item) {
            causes.push(invalid("metadata.finalizers", item, "not a qualified name"));
        }
    }
}

fn data(object: &Value, causes: &mut Vec<Cause>) {
    let mut total = 0;
    for field in ["data", "binaryData"] {
        let Some(Value::Object(map)) = object.get(field) else { continue };
        for (key, value) in map {
            let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            let ok =
                !key.is_empty() && key.len() <= 253 && key.chars().all(inner) && key != "." && key != "..";
            if !ok {
                causes.push(invalid(
                    &format!("{field}[{key}]"),
                    key,
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
                ));
            }
            total += value.as_str().map_or(0, str::len);
        }
    }
    if total > DATA_BYTES_MAX * 4 / 3 {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {DATA_BYTES_MAX} bytes"),
            field: "data".into(),
        });
    }
}

fn pod(object: &Value, causes: &mut Vec<Cause>) {
    let policy = meta::text(object, "spec.restartPolicy");
    if !matches!(policy, "" | "Always" | "OnFailure" | "Never") {
        causes.push(unsupported("spec.restartPolicy".into(), policy, &["Always", "Never", "OnFailure"]));
    }
    let empty = Vec::new();
    let list = |path: &str| meta::at(object, path).and_then(Value::as_array).unwrap_or(&empty);
    let volumes: Vec<&str> = list("spec.volumes").iter().map(|volume| meta::text(volume, "name")).collect();
    for (at, volume) in volumes.iter().enumerate() {
        if !is_dns_label(volume) {
            causes.push(invalid(&format!("spec.volumes[{at}].name"), volume, LABEL_RULE));
        }
    }
    if list("spec.containers").is_empty() {
        causes.push(required("spec.containers", ""));
    }
    let mut names: Vec<&str> = Vec::new();
    for field in ["initContainers", "containers"] {
        for (at, container) in list(&format!("spec.{field}")).iter().enumerate() {
            let path = format!("spec.{field}[{at}]");
            let name = meta::text(container, "name");
            if name.is_empty() {
                causes.push(required(format!("{path}.name"), ""));
            } else if !is_dns_label(name) {
                causes.push(invalid(&format!("{path}.name"), name, LABEL_RULE));
            } else if names.contains(&name) {
                causes.push(Cause {
                    reason: "FieldValueDuplicate",
                    message: format!("Duplicate value: \"{name}\""),
                    field: format!("{path}.name"),
                });
            }
            names.push(name);
            if meta::text(container, "image").trim().is_empty() {
                causes.push(required(format!("{path}.image"), ""));
            }
            container_parts(container, &path, &volumes, causes);
        }
    }
}

fn container_parts(container: &Value, path: &str, volumes: &[&str], causes: &mut Vec<Cause>) {
    let list = |key: &str| container.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for (at, mount) in list("volumeMounts").iter().enumerate() {
        let name = meta::text(mount, "name");
        if !volumes.contains(&name) {
            causes.push(Cause {
                reason: "FieldValueNotFound",
                message: format!("Not found: \"{name}\""),
                field: format!("{path}.volumeMounts[{at}].name"),
            });
        }
        if meta::text(mount, "mountPath").is_empty() {
            causes.push(required(format!("{path}.volumeMounts[{at}].mountPath"), ""));
        }
    }
    for (at, port) in list("ports").iter().enumerate() {
        for field in ["containerPort", "hostPort"] {
            let Some(number) = port.get(field).and_then(Value::as_i64) else {
                if field == "containerPort" {
                    causes.push(required(format!("{path}.ports[{at}].containerPort"), ""));
                }
                continue;
            };
            let allowed = (1..=65535).contains(&number) || number == 0 && field == "hostPort";
            if !allowed {
                causes.push(Cause {
                    reason: "FieldValueInvalid",
                    message: format!("Invalid value: {number}: must be between 1 and 65535, inclusive"),
                    field: format!("{path}.ports[{at}].{field}"),
                });
            }
        }
    }
    for (at, env) in list("env").iter().enumerate() {
        if meta::text(env, "name").is_empty() {
            causes.push(required(format!("{path}.env[{at}].name"), ""));
        }
    }
}

fn device(object: &Value, causes: &mut Vec<Cause>) {
    let Some(Value::Array(list)) = meta::at(object, "spec.properties") else { return };
    let mut names: Vec<&str> = Vec::new();
    for (at, property) in list.iter().enumerate() {
        let name = meta::text(property, "name");
        let field = format!("spec.properties[{at}].name");
        if name.is_empty() {
            causes.push(required(field, "each property is one of the device model's"));
        } else if names.contains(&name) {
            causes.push(Cause {
                reason: "FieldValueDuplicate",
                message: format!("Duplicate value: \"{name}\""),
                field,
            });
        }
        names.push(name);
    }
}

fn device_model(object: &Value, causes: &mut Vec<Cause>) {
    const TYPES: &[&str] = &["INT", "FLOAT", "DOUBLE", "STRING", "BOOLEAN", "BYTES", "STREAM"];
    const MODES: &[&str] = &["ReadWrite", "ReadOnly"];
    let Some(Value::Array(list)) = meta::at(object, "spec.properties") else { return };
    for (at, property) in list.iter().enumerate() {
        for (field, known) in [("type", TYPES), ("accessMode", MODES)] {
            let value = meta::text(property, field);
            if !value.is_empty() && !known.contains(&value) {
                causes.push(unsupported(format!("spec.properties[{at}].{field}"), value, known));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::by_path;

    #[test]
    fn a_bad_pod_names_each_field() {
        let pods = by_path("", "v1", "pods").unwrap();
        let pod = json!({"metadata": {"name": "Web", "labels": {"a b": "c"}}, "spec": {
            "restartPolicy": "Sometimes",
            "containers": [
                {"name": "a", "volumeMounts": [{"name": "v", "mountPath": "/v"}], "ports": [{"containerPort": 70000}]},
                {"name": "a", "image": "i"}]}});
        let fields: Vec<String> = object(pods, &pod).into_iter().map(|cause| cause.field).collect();
        assert_eq!(
            fields,
            [
                "metadata.name",
                "metadata.labels",
                "spec.restartPolicy",
                "spec.containers[0].image",
                "spec.containers[0].volumeMounts[0].name",
                "spec.containers[0].ports[0].containerPort",
                "spec.containers[1].name",
            ]
        );
        let good =
            json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "a", "image": "i"}]}});
        assert_eq!(object(pods, &good), []);
        let mut moved = good.clone();
        moved["spec"]["containers"][0]["image"] = "j".into();
        assert_eq!(change(pods, &good, &moved), []);
        moved["spec"]["hostNetwork"] = true.into();
        assert_eq!(change(pods, &good, &moved).len(), 1);
    }
}
