//! One file of the folder: YAML or JSON of one pod, made a pod of this node.

use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::StaticPod;
use crate::{
    config,
    edged::{
        pod::{CONFIG_SOURCE, Pod},
        status::rfc3339,
    },
};

const HASH: &str = "kubernetes.io/config.hash";
const SEEN: &str = "kubernetes.io/config.seen";

/// `seen`: when the file was written, in Unix seconds.
pub fn parse(bytes: &[u8], node: &str, seen: u64) -> Result<StaticPod, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not text; write YAML or JSON".to_string())?;
    // JSON is YAML; one reader gives lines for both.
    let mut object: Value = serde_saphyr::from_str(text).map_err(|error| config::yaml_error(&error))?;
    match object.get("kind").and_then(Value::as_str) {
        Some("Pod") => {}
        Some(kind) => return Err(format!("is a {kind}; only a Pod can be static")),
        None => return Err("has no kind; write apiVersion: v1, kind: Pod".into()),
    }
    let uid = uid(&object, node);
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() {
        return Err("has no metadata.name; give the pod a name".into());
    }
    let name = format!("{name}-{node}").to_lowercase();
    if !object["spec"].is_object() {
        return Err("has no spec; write what the pod runs".into());
    }
    let metadata = &mut object["metadata"];
    metadata["name"] = json!(name);
    metadata["uid"] = json!(uid);
    if metadata["namespace"].as_str().unwrap_or_default().is_empty() {
        metadata["namespace"] = json!("default");
    }
    // What only a cloud may say.
    let fields = metadata.as_object_mut().expect("it has a name");
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
        "ownerReferences",
        "finalizers",
    ] {
        fields.remove(field);
    }
    if !metadata["annotations"].is_object() {
        metadata["annotations"] = json!({});
    }
    metadata["annotations"][HASH] = json!(uid);
    metadata["annotations"][CONFIG_SOURCE] = json!("file");
    metadata["annotations"][SEEN] = json!(rfc3339(i64::try_from(seen).unwrap_or(0)));
    let spec = &mut object["spec"];
    spec["nodeName"] = json!(node);
    // A pod of the node itself is not moved away by the node's troubles.
    let stays = json!({ "operator": "Exists", "effect": "NoExecute" });
    match spec["tolerations"].as_array_mut() {
        Some(tolerations) if !tolerations.contains(&stays) => tolerations.push(stays),
        Some(_) => {}
        None => spec["tolerations"] = json!([stays]),
    }
    object.as_object_mut().expect("it has a kind").remove("status");
    object["apiVersion"] = json!("v1");
    finished(object)
}

/// A pod that already has all that `parse` adds.
pub fn finished(object: Value) -> Result<StaticPod, String> {
    let pod = Pod::parse(object.to_string().as_bytes()).map_err(|error| error.to_string())?;
    Ok(StaticPod { pod: Arc::new(pod), object })
}

/// Another content is another pod; another node's pod of the same file, too.
fn uid(object: &Value, node: &str) -> String {
    let mut digest = Sha256::new();
    digest.update(format!("host:{node} file:{object}"));
    hex::encode(&digest.finalize()[..16])
}

/// Entry for a fuzzer. Total.
pub fn fuzz_static_pod(data: &[u8]) {
    if let Ok(pod) = parse(data, "edge-1", 1) {
        assert!(finished(pod.object).is_ok(), "what was written can be read");
    }
}
