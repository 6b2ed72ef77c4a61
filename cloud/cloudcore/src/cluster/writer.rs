//! Carries out what the scheduler and the node lifecycle decided.

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::scheduler::AUTONOMOUS;
use super::storage;
use crate::api::{Api, ApiError, MERGE_PATCH, STRATEGIC_PATCH};

#[derive(Debug)]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

#[derive(Debug)]
pub enum Write {
    Bind {
        pod: PodRef,
        node: String,
    },
    Unschedulable {
        pod: PodRef,
        message: String,
    },
    NodeSilent {
        node: String,
        renew_time: String,
    },
    NodeBack {
        node: String,
    },
    /// Of a claim or a volume.
    Storage(storage::Action),
    /// Keys of NoSchedule taints, and whether they are to be there.
    NodeTaints {
        node: String,
        taints: Vec<(&'static str, bool)>,
    },
}

/// Runs until the cluster task has ended. A write that fails is not repeated here: its reason is found again.
pub async fn run(api: Api, mut rx: mpsc::Receiver<Write>) {
    while let Some(write) = rx.recv().await {
        if let Err(error) = carry_out(&api, &write).await {
            // Somebody else was faster, or the object is gone: the watch will say so.
            if error.is_conflict() || error.is_not_found() {
                tracing::debug!("{write:?}: {}", error.line());
            } else {
                tracing::warn!("{write:?} failed and is tried again: {}", error.line());
            }
        }
    }
}

async fn carry_out(api: &Api, write: &Write) -> Result<(), ApiError> {
    match write {
        Write::Bind { pod, node } => bind(api, pod, node).await,
        Write::Unschedulable { pod, message } => {
            let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                                   "lastTransitionTime": now_rfc3339()});
            let path = format!("/api/v1/namespaces/{}/pods/{}/status", pod.namespace, pod.name);
            let patch = json!({"metadata": {"uid": pod.uid}, "status": {"phase": "Pending", "conditions": [condition]}});
            api.patch(&path, STRATEGIC_PATCH, patch.to_string()).await?;
            event(api, pod, "Warning", "FailedScheduling", message).await
        }
        Write::NodeSilent { node, renew_time } => {
            let seen = if renew_time.is_empty() { "never".into() } else { format!("last at {renew_time}") };
            let unknown = format!(
                "the node does not renew its lease ({seen}); check its power and its way to this cloudcore"
            );
            let kept = format!(
                "no contact with the node ({seen}); its pods are not evicted and go on running there"
            );
            conditions(
                api,
                node,
                [("Ready", "Unknown", "NodeStatusUnknown", unknown), (AUTONOMOUS, "True", "NoContact", kept)],
            )
            .await
        }
        Write::Storage(action) => carry_out_storage(api, action).await,
        Write::NodeTaints { node, taints } => set_taints(api, node, taints).await,
        Write::NodeBack { node } => {
            let text = "the node renews its lease".to_owned();
            conditions(api, node, [(AUTONOMOUS, "False", "InContact", text)]).await
        }
    }
}

async fn carry_out_storage(api: &Api, action: &storage::Action) -> Result<(), ApiError> {
    match action {
        storage::Action::Patch { object, status, patch } => {
            let path = object.kind.path(&object.namespace, &object.name);
            let path = if *status { format!("{path}/status") } else { path };
            let mut patch = patch.clone();
            patch["metadata"]["resourceVersion"] = object.version.clone().into();
            patch["metadata"]["uid"] = object.uid.clone().into();
            api.patch(&path, MERGE_PATCH, patch.to_string()).await?;
            Ok(())
        }
        storage::Action::Event { object, event_type, reason, message } => {
            let involved = Involved {
                kind: object.kind.name(),
                namespace: &object.namespace,
                name: &object.name,
                uid: &object.uid,
            };
            event_of(api, involved, event_type, reason, message).await
        }
    }
}

/// The list is replaced as a whole, so it is read first and written only if nobody else wrote meanwhile.
async fn set_taints(api: &Api, node: &str, changes: &[(&str, bool)]) -> Result<(), ApiError> {
    let path = format!("/api/v1/nodes/{node}");
    let body = api.get(&path).await?;
    let object: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut taints = object["spec"]["taints"].as_array().cloned().unwrap_or_default();
    for (key, there) in changes {
        taints.retain(|taint| taint["key"] != *key || taint["effect"] != "NoSchedule");
        if *there {
            taints.push(json!({"key": key, "effect": "NoSchedule", "timeAdded": now_rfc3339()}));
        }
    }
    let version = &object["metadata"]["resourceVersion"];
    let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}});
    api.patch(&path, STRATEGIC_PATCH, patch.to_string()).await?;
    Ok(())
}

async fn conditions<const N: usize>(
    api: &Api,
    node: &str,
    set: [(&str, &str, &str, String); N],
) -> Result<(), ApiError> {
    let now = now_rfc3339();
    let conditions: Vec<_> = set
        .into_iter()
        .map(|(name, status, reason, message)| {
            json!({"type": name, "status": status, "reason": reason, "message": message,
                   "lastHeartbeatTime": now, "lastTransitionTime": now})
        })
        .collect();
    let patch = json!({"status": {"conditions": conditions}});
    api.patch(&format!("/api/v1/nodes/{node}/status"), STRATEGIC_PATCH, patch.to_string()).await?;
    Ok(())
}

async fn bind(api: &Api, pod: &PodRef, node: &str) -> Result<(), ApiError> {
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name);
    api.post(&format!("{path}/binding"), binding.to_string()).await?;
    let message = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
    tracing::info!("{message}");
    event(api, pod, "Normal", "Scheduled", &message).await
}

async fn event(
    api: &Api,
    pod: &PodRef,
    event_type: &str,
    reason: &str,
    message: &str,
) -> Result<(), ApiError> {
    let involved = Involved { kind: "Pod", namespace: &pod.namespace, name: &pod.name, uid: &pod.uid };
    event_of(api, involved, event_type, reason, message).await
}

/// What an event is about.
struct Involved<'a> {
    kind: &'static str,
    namespace: &'a str,
    name: &'a str,
    uid: &'a str,
}

async fn event_of(
    api: &Api,
    about: Involved<'_>,
    event_type: &str,
    reason: &str,
    message: &str,
) -> Result<(), ApiError> {
    let now = now_rfc3339();
    // Events of what has no namespace stand in the default one.
    let namespace = if about.namespace.is_empty() { "default" } else { about.namespace };
    let event = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"generateName": format!("{}.", about.name), "namespace": namespace},
        "involvedObject": {"apiVersion": "v1", "kind": about.kind, "name": about.name, "namespace": about.namespace, "uid": about.uid},
        "type": event_type, "reason": reason, "message": message, "count": 1,
        "firstTimestamp": now, "lastTimestamp": now,
        "source": {"component": "cloudcore"}, "reportingComponent": "cloudcore", "reportingInstance": "",
    });
    api.post(&format!("/api/v1/namespaces/{namespace}/events"), event.to_string()).await?;
    Ok(())
}

fn now_rfc3339() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
