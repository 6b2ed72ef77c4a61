//! Sandboxes and containers that a kubelet made (`edgecore adopt`). They carry no label of ours, and labels of what runs cannot be
//! changed: so a local record names them, and every list shows them with the labels that they would have.
//!
//! The record is written at adoption and only read here. What it names is gone with the pod's next sandbox.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Container, ContainerId, Cri, CriError, Mount, PodSandbox, limits};
use crate::{contract::Meta, edged::observed::label};

/// Kind of the local records; one for each incarnation.
pub const KIND: &str = "adoptedpod";

/// By id of a sandbox or container, the labels that it lacks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Adopted {
    pub labels: BTreeMap<String, HashMap<String, String>>,
}

/// The records of all pods.
#[derive(Clone, Debug, Default)]
pub struct Book(Arc<HashMap<String, HashMap<String, String>>>);

impl Book {
    pub fn load(meta: &dyn Meta) -> Book {
        let mut all = HashMap::new();
        for (name, body) in meta.list_local(KIND) {
            match serde_json::from_slice::<Adopted>(&body) {
                Ok(adopted) => all.extend(adopted.labels),
                Err(error) => {
                    tracing::error!("record {KIND}/{name} cannot be read ({error}); its pod is not seen")
                }
            }
        }
        Book(Arc::new(all))
    }

    /// What the runtime is asked for: it cannot select by labels that are only in the book.
    pub(super) fn ask(&self, mut selector: HashMap<String, String>) -> HashMap<String, String> {
        if !self.0.is_empty() {
            selector.retain(|name, _| !name.starts_with(label::OURS));
        }
        selector
    }

    /// Adds the missing labels, and keeps what the selector means then.
    pub(super) fn dress<T>(
        &self,
        mut items: Vec<T>,
        selector: &HashMap<String, String>,
        labels: impl Fn(&mut T) -> (&str, &mut HashMap<String, String>),
    ) -> Vec<T> {
        if self.0.is_empty() {
            return items;
        }
        items.retain_mut(|item| {
            let (id, labels) = labels(item);
            if let Some(missing) = self.0.get(id) {
                labels.extend(missing.clone());
            }
            selector.iter().all(|(name, value)| labels.get(name) == Some(value))
        });
        items
    }
}

pub(super) fn of_sandbox(sandbox: &mut PodSandbox) -> (&str, &mut HashMap<String, String>) {
    (&sandbox.id, &mut sandbox.labels)
}

pub(super) fn of_container(container: &mut Container) -> (&str, &mut HashMap<String, String>) {
    (&container.id, &mut container.labels)
}

/// What only matters of a container that a kubelet made.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KubeletStatus {
    #[prost(map = "string, string", tag = "13")]
    pub annotations: HashMap<String, String>,
    #[prost(message, repeated, tag = "14")]
    pub mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KubeletStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<KubeletStatus>,
}

impl Cri {
    pub async fn kubelet_status(&self, id: &str) -> Result<KubeletStatus, CriError> {
        let request = ContainerId { container_id: id.into() };
        let answer: KubeletStatusResponse =
            self.call("/runtime.v1.RuntimeService/ContainerStatus", request, limits::CRI_QUICK).await?;
        Ok(answer.status.unwrap_or_default())
    }
}
