//! Defaults and rules of PersistentVolume, PersistentVolumeClaim and StorageClass.
//!
//! Words are upstream's (pkg/apis/core/validation, pkg/apis/storage/validation), as kubectl shows them.

use serde_json::{Map, Value, json};

use crate::validate::{invalid, required, unsupported};
use crate::{Cause, meta};

/// Holds a claim while a pod uses it, and a volume while it is bound.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const RECLAIM_POLICIES: &[&str] = &["Delete", "Recycle", "Retain"];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
const BINDING_MODES: &[&str] = &["Immediate", "WaitForFirstConsumer"];
/// Fields of a PersistentVolume's spec that say where it is.
const SOURCES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "glusterfs",
    "hostPath",
    "iscsi",
    "local",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

fn default(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    map.entry(key).or_insert_with(|| value.into());
}

/// Fills in an object of one of the three kinds.
pub(crate) fn apply_defaults(kind: &str, object: &mut Value) {
    match kind {
        "PersistentVolume" => {
            let spec = meta::child(object, "spec");
            default(spec, "persistentVolumeReclaimPolicy", "Retain");
            default(spec, "volumeMode", "Filesystem");
            if let Some(path) = spec.get_mut("hostPath").and_then(Value::as_object_mut) {
                default(path, "type", "");
            }
        }
        "PersistentVolumeClaim" => default(meta::child(object, "spec"), "volumeMode", "Filesystem"),
        "StorageClass" => {
            if let Some(map) = object.as_object_mut() {
                default(map, "reclaimPolicy", "Delete");
                default(map, "volumeBindingMode", "Immediate");
            }
        }
        _ => {}
    }
}

/// What a new claim or volume starts with: its phase, and what holds it.
pub(crate) fn start(object: &mut Value, finalizer: &str) -> Value {
    let finalizers = meta::metadata(object).entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|known| known == finalizer)
    {
        list.push(finalizer.into());
    }
    json!({"phase": "Pending"})
}

/// What is wrong with an object of one of the three kinds.
pub(crate) fn object(kind: &str, object: &Value, causes: &mut Vec<Cause>) {
    match kind {
        "PersistentVolume" => volume(object, causes),
        "PersistentVolumeClaim" => claim(object, causes),
        "StorageClass" => class(object, causes),
        _ => {}
    }
}

fn access_modes(object: &Value, causes: &mut Vec<Cause>) {
    match meta::at(object, "spec.accessModes").and_then(Value::as_array) {
        Some(modes) if !modes.is_empty() => {
            for mode in modes.iter().filter_map(Value::as_str).filter(|mode| !ACCESS_MODES.contains(mode)) {
                causes.push(unsupported("spec.accessModes".into(), mode, ACCESS_MODES));
            }
        }
        _ => causes.push(required("spec.accessModes", "at least 1 access mode is required")),
    }
}

fn one_of(object: &Value, path: &str, known: &[&str], causes: &mut Vec<Cause>) {
    let value = meta::text(object, path);
    if !value.is_empty() && !known.contains(&value) {
        causes.push(unsupported(path.into(), value, known));
    }
}

fn volume(object: &Value, causes: &mut Vec<Cause>) {
    access_modes(object, causes);
    if meta::at(object, "spec.capacity.storage").is_none() {
        causes.push(required("spec.capacity", ""));
    }
    one_of(object, "spec.persistentVolumeReclaimPolicy", RECLAIM_POLICIES, causes);
    one_of(object, "spec.volumeMode", VOLUME_MODES, causes);
    let empty = Map::new();
    let spec = object.get("spec").and_then(Value::as_object).unwrap_or(&empty);
    let sources: Vec<&str> = SOURCES.iter().copied().filter(|source| spec.contains_key(*source)).collect();
    match sources.as_slice() {
        [] => causes.push(required("spec", "must specify a volume type")),
        [_] => {}
        [_, more @ ..] => causes.extend(more.iter().map(|source| Cause {
            reason: "FieldValueForbidden",
            message: "Forbidden: may not specify more than 1 volume type".into(),
            field: format!("spec.{source}"),
        })),
    }
    for source in ["hostPath", "local"].into_iter().filter(|source| spec.contains_key(*source)) {
        let field = format!("spec.{source}.path");
        match meta::text(object, &field) {
            "" => causes.push(required(field, "")),
            path if path.split('/').any(|part| part == "..") => {
                causes.push(invalid(&field, path, "must not contain '..'"));
            }
            _ => {}
        }
    }
    if spec.contains_key("local") && meta::at(object, "spec.nodeAffinity.required").is_none() {
        causes.push(required("spec.nodeAffinity", "Local volume requires node affinity"));
    }
}

fn claim(object: &Value, causes: &mut Vec<Cause>) {
    access_modes(object, causes);
    if meta::at(object, "spec.resources.requests.storage").is_none() {
        causes.push(required("spec.resources[storage]", ""));
    }
    one_of(object, "spec.volumeMode", VOLUME_MODES, causes);
}

fn class(object: &Value, causes: &mut Vec<Cause>) {
    if meta::text(object, "provisioner").is_empty() {
        causes.push(required("provisioner", ""));
    }
    one_of(object, "reclaimPolicy", RECLAIM_POLICIES, causes);
    one_of(object, "volumeBindingMode", BINDING_MODES, causes);
}

/// What is wrong with a change.
pub(crate) fn change(kind: &str, old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let forbidden = |field: &str, message: &str| Cause {
        reason: "FieldValueForbidden",
        message: format!("Forbidden: {message}"),
        field: field.into(),
    };
    match kind {
        "PersistentVolumeClaim" if frozen_claim(old) != frozen_claim(&with_late_fields(old, new)) => {
            causes.push(forbidden(
                "spec",
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            ));
        }
        "PersistentVolume" => {
            let source = |object: &Value| {
                let spec = object.get("spec").and_then(Value::as_object);
                spec.and_then(|spec| SOURCES.iter().find_map(|s| Some((*s, spec.get(*s)?.clone()))))
            };
            if source(old) != source(new) {
                let field = "spec.persistentvolumesource";
                causes.push(forbidden(field, "spec.persistentvolumesource is immutable after creation"));
            }
            let affinity = meta::at(old, "spec.nodeAffinity");
            if affinity.is_some() && affinity != meta::at(new, "spec.nodeAffinity") {
                let value = "field is immutable";
                causes.push(invalid("spec.nodeAffinity", "", value));
            }
        }
        "StorageClass" => {
            for (field, message) in [
                ("parameters", "updates to parameters are forbidden."),
                ("provisioner", "updates to provisioner are forbidden."),
                ("reclaimPolicy", "updates to reclaimPolicy are forbidden."),
                ("volumeBindingMode", "field is immutable"),
            ] {
                if old.get(field) != new.get(field) {
                    causes.push(forbidden(field, message));
                }
            }
        }
        _ => {}
    }
}

/// A claim's spec without what may change.
fn frozen_claim(claim: &Value) -> Value {
    let mut spec = claim.get("spec").cloned().unwrap_or_default();
    let bound = !meta::text(claim, "spec.volumeName").is_empty();
    if let Some(map) = spec.as_object_mut() {
        map.remove("volumeAttributesClassName");
        if bound && let Some(resources) = map.get_mut("resources").and_then(Value::as_object_mut) {
            resources.remove("requests");
        }
        map.remove("volumeName");
    }
    spec
}

/// `new` without the two fields that may be filled in later, once: the volume, and the default class.
fn with_late_fields(old: &Value, new: &Value) -> Value {
    let mut new = new.clone();
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else { return new };
    let had = |path: &str| meta::at(old, path).cloned();
    if had("spec.storageClassName").is_none() {
        spec.remove("storageClassName");
    }
    match had("spec.volumeName") {
        // A volume that was given cannot be exchanged.
        Some(volume) if spec.get("volumeName") != Some(&volume) => {
            spec.insert("volumeMode".into(), "changed".into());
        }
        Some(_) => {}
        None => drop(spec.remove("volumeName")),
    }
    // Growing is compared on the same footing as the old one.
    if let Some(volume) = had("spec.volumeName") {
        spec.insert("volumeName".into(), volume);
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::by_path;
    use crate::{defaults, validate};

    fn pvc() -> Value {
        json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}, "volumeMode": "Filesystem"}})
    }

    #[test]
    fn new_objects_are_completed_and_held() {
        let kind = by_path("", "v1", "persistentvolumeclaims").unwrap();
        let mut claim = pvc();
        defaults::apply(kind, &mut claim);
        defaults::initial_status(kind, &mut claim);
        assert_eq!(claim["metadata"]["finalizers"], json!([CLAIM_PROTECTION]));
        assert_eq!(
            (&claim["status"], &claim["spec"]["volumeMode"]),
            (&json!({"phase": "Pending"}), &json!("Filesystem"))
        );
        let kind = by_path("", "v1", "persistentvolumes").unwrap();
        let mut volume = json!({"spec": {"hostPath": {"path": "/data"}}});
        defaults::apply(kind, &mut volume);
        assert_eq!(
            volume["spec"],
            json!({"hostPath": {"path": "/data", "type": ""},
            "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem"})
        );
        let kind = by_path("storage.k8s.io", "v1", "storageclasses").unwrap();
        let mut class = json!({"provisioner": "kubernetes.io/no-provisioner"});
        defaults::apply(kind, &mut class);
        assert_eq!(
            (&class["reclaimPolicy"], &class["volumeBindingMode"]),
            (&json!("Delete"), &json!("Immediate"))
        );
    }

    #[test]
    fn bad_ones_name_each_field() {
        let fields = |plural: &str, group: &str, object: Value| -> Vec<String> {
            let kind = by_path(group, "v1", plural).unwrap();
            validate::object(kind, &object)
                .into_iter()
                .map(|cause| format!("{}: {}", cause.field, cause.message))
                .collect()
        };
        let volume = json!({"metadata": {"name": "pv"}, "spec": {"local": {"path": "/a/../b"}, "nfs": {}, "accessModes": ["Sometimes"],
            "persistentVolumeReclaimPolicy": "Burn"}});
        assert_eq!(
            fields("persistentvolumes", "", volume),
            [
                "spec.accessModes: Unsupported value: \"Sometimes\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                "spec.capacity: Required value",
                "spec.persistentVolumeReclaimPolicy: Unsupported value: \"Burn\": supported values: \"Delete\", \"Recycle\", \"Retain\"",
                "spec.nfs: Forbidden: may not specify more than 1 volume type",
                "spec.local.path: Invalid value: \"/a/../b\": must not contain '..'",
                "spec.nodeAffinity: Required value: Local volume requires node affinity",
            ]
        );
        let claim = json!({"metadata": {"name": "c"}, "spec": {}});
        assert_eq!(
            fields("persistentvolumeclaims", "", claim),
            [
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value",
            ]
        );
        let class = json!({"metadata": {"name": "c"}, "volumeBindingMode": "Later"});
        assert_eq!(fields("storageclasses", "storage.k8s.io", class).len(), 2);
    }

    #[test]
    fn a_claim_keeps_its_spec_and_takes_its_volume_and_class_once() {
        let kind = by_path("", "v1", "persistentvolumeclaims").unwrap();
        let with = |changes: &[(&str, Value)]| {
            let mut claim = pvc();
            changes.iter().for_each(|(key, value)| claim["spec"][*key] = value.clone());
            claim
        };
        let ok = |old: &Value, new: &Value| validate::change(kind, old, new).is_empty();
        let bound = with(&[("volumeName", json!("pv-1"))]);
        assert!(ok(&pvc(), &pvc()) && ok(&pvc(), &bound));
        assert!(ok(&pvc(), &with(&[("storageClassName", json!("local"))])));
        assert!(!ok(&with(&[("storageClassName", json!("a"))]), &with(&[("storageClassName", json!("b"))])));
        assert!(!ok(&bound, &with(&[("volumeName", json!("pv-2"))])));
        let grown = json!({"requests": {"storage": "2Gi"}});
        assert!(!ok(&pvc(), &with(&[("resources", grown.clone())])), "not bound");
        assert!(ok(&bound, &with(&[("volumeName", json!("pv-1")), ("resources", grown)])));
        assert!(!ok(&pvc(), &with(&[("accessModes", json!(["ReadWriteMany"]))])));
    }
}
