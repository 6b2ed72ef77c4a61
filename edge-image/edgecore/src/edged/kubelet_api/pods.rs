//! `/pods`, `/runningpods/` and `/configz`.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{
    Node,
    body::{Answer, Body, answer, json, text},
};
use crate::contract::Object;

/// The node's pods as the cloud wants them, each with the status that this node gives it. Made pod by pod.
pub fn pods(node: &Node) -> Answer {
    let statuses = node.handles.statuses.clone();
    let mut first = true;
    let pods = node.handles.meta.list("pod").into_iter().filter_map(move |object| {
        let (namespace, name) = (&object.resource.namespace, &object.resource.name);
        let status = statuses.get(namespace, name).filter(|status| status.uid == object.uid);
        let pod = with_status(&object, status.map(|status| status.patch))?;
        let comma = if std::mem::take(&mut first) { "" } else { "," };
        Some(format!("{comma}{pod}"))
    });
    let head = r#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":["#;
    let pieces = std::iter::once(head.to_string()).chain(pods).chain(std::iter::once("]}\n".into()));
    let stream = futures_util::stream::iter(pieces.map(|piece| Ok(Bytes::from(piece))));
    let mut whole = answer(StatusCode::OK, "application/json", Bytes::new());
    *whole.body_mut() = Body::Stream(Box::pin(stream));
    whole
}

/// `None`: the object is no JSON.
fn with_status(object: &Object, patch: Option<Bytes>) -> Option<Value> {
    let mut pod: Value = serde_json::from_slice(&object.body).ok()?;
    if let Some(status) = patch.and_then(|patch| serde_json::from_slice(&patch).ok()) {
        pod["status"] = plain(status);
    }
    Some(pod)
}

/// A patch without the words that are only for whoever merges it.
fn plain(patch: Value) -> Value {
    match patch {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(key, value)| !key.starts_with('$') && !value.is_null());
            Value::Object(kept.map(|(key, value)| (key, plain(value))).collect::<Map<_, _>>())
        }
        Value::Array(items) => {
            let kept = items.into_iter().filter(|item| item.get("$patch").is_none());
            Value::Array(kept.map(plain).collect())
        }
        other => other,
    }
}

/// What the runtime runs, whoever wanted it.
pub async fn running(node: Arc<Node>) -> Answer {
    let round = match node.collect().await {
        Ok(round) => round,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let pod = |pod: &super::collect::PodFigures| {
        let containers =
            pod.containers.iter().map(|c| json!({ "name": c.name, "image": c.image, "resources": {} }));
        json!({
            "metadata": { "name": pod.name, "namespace": pod.namespace, "uid": pod.uid },
            "spec": { "containers": containers.collect::<Vec<_>>() },
            "status": {},
        })
    };
    let items: Vec<Value> = round.pods.iter().map(pod).collect();
    json(&json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items }))
}

/// The settings that kubelet's KubeletConfiguration has too.
pub fn configz(node: &Node) -> Answer {
    let settings = &node.settings;
    json(&json!({ "kubeletconfig": {
        "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "containerRuntimeEndpoint": settings.endpoint, "clusterDNS": settings.cluster_dns,
        "clusterDomain": settings.cluster_domain, "resolvConf": settings.resolv_conf,
        "podLogsDir": settings.log_dir, "containerLogMaxSize": settings.log_rotation.bytes_max.to_string(),
        "containerLogMaxFiles": settings.log_rotation.files_max,
    } }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_becomes_a_status() {
        let patch = json!({
            "phase": "Running", "reason": null, "$setElementOrder/conditions": [{ "type": "Ready" }],
            "podIPs": [{ "ip": "10.0.0.1" }, { "$patch": "replace" }],
        });
        assert_eq!(plain(patch), json!({ "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }] }));
    }
}
