//! Which container a request means.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;
use wire::Resource;

use super::{Node, route::Target};
use crate::{
    contract::Object,
    edged::{
        cri::{CriError, messages as cri},
        observed::label,
    },
};

/// The names in a pod's spec, and nothing else of it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Names {
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    // `null` is as good as nothing.
    containers: Option<Vec<Named>>,
    init_containers: Option<Vec<Named>>,
    ephemeral_containers: Option<Vec<Named>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    tty: Option<bool>,
}

impl Node {
    pub fn pod(&self, target: &Target) -> Option<Object> {
        self.handles.meta.get(&Resource::new(&target.namespace, "pod", &target.pod))
    }

    /// All containers of the runtime that carry the pod's name (and the container's, if the target has one), newest first.
    pub async fn list(&self, target: &Target) -> Result<Vec<cri::Container>, CriError> {
        let mut labels = HashMap::from([
            (label::NODE.to_string(), self.handles.node_name.to_string()),
            (label::POD_NAMESPACE.to_string(), target.namespace.clone()),
            (label::POD_NAME.to_string(), target.pod.clone()),
        ]);
        if !target.container.is_empty() {
            labels.insert(label::CONTAINER_NAME.into(), target.container.clone());
        }
        let mut containers = self.cri.list_containers(labels).await?;
        containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        Ok(containers)
    }

    /// The newest container of the name that runs.
    pub async fn running(&self, target: &Target) -> Result<Option<cri::Container>, CriError> {
        let runs = |container: &cri::Container| container.state == i32::from(cri::ContainerState::Running);
        Ok(self.list(target).await?.into_iter().find(runs))
    }

    /// The sandbox of the pod that is ready; at most one is.
    pub async fn ready_sandbox(&self, target: &Target) -> Result<Option<cri::PodSandbox>, CriError> {
        let labels = HashMap::from([
            (label::NODE.to_string(), self.handles.node_name.to_string()),
            (label::POD_NAMESPACE.to_string(), target.namespace.clone()),
            (label::POD_NAME.to_string(), target.pod.clone()),
        ]);
        let ready = |sandbox: &cri::PodSandbox| sandbox.state == i32::from(cri::PodSandboxState::Ready);
        let sandboxes = self.cri.list_pod_sandboxes(labels).await?;
        Ok(sandboxes.into_iter().filter(ready).max_by_key(|sandbox| sandbox.created_at))
    }
}

/// Whether a container of the pod's spec has a terminal. `None`: it is not in the spec, or the spec cannot be read.
pub fn tty_of(pod: &Object, name: &str) -> Option<bool> {
    let names: Names = serde_json::from_slice(&pod.body).unwrap_or_default();
    let spec = names.spec;
    let lists = [spec.containers, spec.init_containers, spec.ephemeral_containers];
    let mut all = lists.into_iter().flatten().flatten();
    all.find(|container| container.name == name).map(|container| container.tty.unwrap_or(false))
}

/// The entry of a container in a pod's status.
pub fn status_of<'a>(status: &'a Value, container: &str) -> Option<&'a Value> {
    ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"]
        .iter()
        .filter_map(|list| status.get(list)?.as_array())
        .flatten()
        .find(|entry| entry["name"] == container)
}

/// Whose log is asked for, by the pod's status: kubelet's order, and kubelet's words when there is none.
pub fn with_log(status: &Value, target: &Target, previous: bool) -> Result<String, String> {
    let (container, pod) = (&target.container, &target.pod);
    let Some(entry) = status_of(status, container) else {
        return Err(format!("container {container:?} in pod {pod:?} is not available"));
    };
    let id = |at: &str| -> Option<String> {
        let whole = entry.pointer(at)?.as_str()?;
        let id = whole.split_once("://").map_or(whole, |(_, id)| id);
        (!id.is_empty()).then(|| id.to_string())
    };
    // What ended last may be told twice, as the state and as the one before: then there is none before.
    let last = id("/lastState/terminated/containerID")
        .filter(|last| id("/state/terminated/containerID").as_ref() != Some(last));
    if previous {
        return last
            .ok_or_else(|| format!("previous terminated container {container:?} in pod {pod:?} not found"));
    }
    let state = &entry["state"];
    if state.get("running").is_some_and(|running| !running.is_null())
        && let Some(id) = id("/containerID")
    {
        return Ok(id);
    }
    if state.get("terminated").is_some_and(|terminated| !terminated.is_null()) {
        let found = id("/state/terminated/containerID").or(last);
        return found.ok_or_else(|| format!("container {container:?} in pod {pod:?} is terminated"));
    }
    if let Some(last) = last {
        return Ok(last);
    }
    let why = match state.pointer("/waiting/reason").and_then(Value::as_str) {
        Some("ErrImagePull") => ": image can't be pulled",
        Some("ImagePullBackOff") => ": trying and failing to pull image",
        Some(reason) => {
            return Err(format!("container {container:?} in pod {pod:?} is waiting to start: {reason}"));
        }
        None => " - no logs yet",
    };
    Err(format!("container {container:?} in pod {pod:?} is waiting to start{why}"))
}
