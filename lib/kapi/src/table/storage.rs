//! Lines of PersistentVolume, PersistentVolumeClaim and StorageClass.

use serde_json::Value;

use super::{AGE, Column, NAME, column, wide};
use crate::meta::{at, text};
use crate::time::age;

pub(super) const VOLUME_COLUMNS: &[Column] = &[
    NAME,
    column("Capacity", "string"),
    column("Access Modes", "string"),
    column("Reclaim Policy", "string"),
    column("Status", "string"),
    column("Claim", "string"),
    column("StorageClass", "string"),
    column("VolumeAttributesClass", "string"),
    column("Reason", "string"),
    AGE,
    wide("VolumeMode"),
];

pub(super) const CLAIM_COLUMNS: &[Column] = &[
    NAME,
    column("Status", "string"),
    column("Volume", "string"),
    column("Capacity", "string"),
    column("Access Modes", "string"),
    column("StorageClass", "string"),
    column("VolumeAttributesClass", "string"),
    AGE,
    wide("VolumeMode"),
];

pub(super) const CLASS_COLUMNS: &[Column] = &[
    NAME,
    column("Provisioner", "string"),
    column("ReclaimPolicy", "string"),
    column("VolumeBindingMode", "string"),
    column("AllowVolumeExpansion", "string"),
    AGE,
];

/// The annotation that makes a class the one for claims that name none.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// `RWO,RWX`, in upstream's order.
fn access_modes(object: &Value, path: &str) -> String {
    let empty = Vec::new();
    let has = at(object, path).and_then(Value::as_array).unwrap_or(&empty);
    let short = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let words: Vec<&str> =
        short.iter().filter(|(long, _)| has.iter().any(|mode| mode == long)).map(|(_, word)| *word).collect();
    words.join(",")
}

fn quantity(object: &Value, path: &str) -> String {
    match at(object, path) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// What kubectl shows for a field that may be unset.
fn or_unset(word: &str) -> Value {
    if word.is_empty() { "<unset>".into() } else { word.into() }
}

fn status(object: &Value) -> &str {
    match at(object, "metadata.deletionTimestamp") {
        Some(_) => "Terminating",
        None => text(object, "status.phase"),
    }
}

fn created(object: &Value, now: i64) -> Value {
    age(at(object, "metadata.creationTimestamp").and_then(Value::as_str), now).into()
}

pub(super) fn volume(volume: &Value, now: i64) -> Vec<Value> {
    let claim = match (text(volume, "spec.claimRef.namespace"), text(volume, "spec.claimRef.name")) {
        (_, "") => String::new(),
        (namespace, name) => format!("{namespace}/{name}"),
    };
    vec![
        text(volume, "metadata.name").into(),
        quantity(volume, "spec.capacity.storage").into(),
        access_modes(volume, "spec.accessModes").into(),
        text(volume, "spec.persistentVolumeReclaimPolicy").into(),
        status(volume).into(),
        claim.into(),
        text(volume, "spec.storageClassName").into(),
        or_unset(text(volume, "spec.volumeAttributesClassName")),
        text(volume, "status.reason").into(),
        created(volume, now),
        or_unset(text(volume, "spec.volumeMode")),
    ]
}

pub(super) fn claim(claim: &Value, now: i64) -> Vec<Value> {
    let bound = !text(claim, "spec.volumeName").is_empty();
    let (capacity, modes) = match bound {
        true => (quantity(claim, "status.capacity.storage"), access_modes(claim, "status.accessModes")),
        false => Default::default(),
    };
    vec![
        text(claim, "metadata.name").into(),
        status(claim).into(),
        text(claim, "spec.volumeName").into(),
        capacity.into(),
        modes.into(),
        text(claim, "spec.storageClassName").into(),
        or_unset(text(claim, "spec.volumeAttributesClassName")),
        created(claim, now),
        or_unset(text(claim, "spec.volumeMode")),
    ]
}

pub(super) fn class(class: &Value, now: i64) -> Vec<Value> {
    let annotations = at(class, "metadata.annotations").and_then(Value::as_object);
    let is_default = annotations.and_then(|map| map.get(DEFAULT_CLASS)).is_some_and(|value| value == "true");
    let name = text(class, "metadata.name");
    let grows = class.get("allowVolumeExpansion") == Some(&Value::Bool(true));
    vec![
        if is_default { format!("{name} (default)").into() } else { name.into() },
        text(class, "provisioner").into(),
        text(class, "reclaimPolicy").into(),
        text(class, "volumeBindingMode").into(),
        grows.to_string().into(),
        created(class, now),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_as_kubectl_shows_them() {
        let pv = json!({"metadata": {"name": "pv-1"}, "spec": {"capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany", "ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "local", "volumeMode": "Filesystem", "claimRef": {"namespace": "default", "name": "data"}},
            "status": {"phase": "Bound"}});
        let line: Vec<Value> = volume(&pv, 0);
        assert_eq!(
            json!(line[..9]),
            json!(["pv-1", "1Gi", "RWO,RWX", "Retain", "Bound", "default/data", "local", "<unset>", ""])
        );
        assert_eq!((line.len(), VOLUME_COLUMNS.len()), (11, 11));
        let pvc = json!({"metadata": {"name": "data"}, "spec": {"volumeName": "pv-1", "storageClassName": "local"},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}});
        let line = claim(&pvc, 0);
        assert_eq!(json!(line[..7]), json!(["data", "Bound", "pv-1", "1Gi", "RWO", "local", "<unset>"]));
        assert_eq!(line.len(), CLAIM_COLUMNS.len());
        let pending = json!({"metadata": {"name": "data", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}, "status": {"phase": "Pending"}});
        assert_eq!(json!(claim(&pending, 0)[..4]), json!(["data", "Terminating", "", ""]));
        let sc = json!({"metadata": {"name": "local", "annotations": {DEFAULT_CLASS: "true"}},
            "provisioner": "kubernetes.io/no-provisioner", "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer"});
        let line = class(&sc, 0);
        assert_eq!(
            json!(line[..5]),
            json!([
                "local (default)",
                "kubernetes.io/no-provisioner",
                "Delete",
                "WaitForFirstConsumer",
                "false"
            ])
        );
        assert_eq!(line.len(), CLASS_COLUMNS.len());
    }
}
