//! Requests of nodes, carried out at the Kubernetes API and answered in KubeEdge's shapes.
//!
//! What a message means and who may send it is in [`request`]; how device reports are merged in [`devices`]. Here is the
//! part that waits for the API. A request may be carried out twice (an edge asks again): each is a step that can be repeated.

mod answer;
pub mod book;
pub mod devices;
mod kubelet;
mod objects;
pub mod request;

use std::sync::Arc;

use rt::BoxFuture;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use wire::Message;

use crate::api::{Api, ApiError, STRATEGIC_PATCH};
use crate::cluster::views::Kind;
use crate::contract::NodeDesired;
use crate::limits::PLACE_RETRY;
use answer::{Answer, Failure, at_api, log_failure, object, reply, reply_failure, shape_of, text};
use book::{DeviceId, Outcome, Pending, Said};
use objects::{for_node, registered};
use request::{LEASE_NAMESPACE, Request};

pub use answer::refuse;
pub use kubelet::KubeletPlace;
pub use objects::{for_push, resource_version_of, tombstone, uid_of};

/// Characters of a task's report that are logged.
const TASK_REPORT_LEN_MAX: usize = 300;

#[derive(Clone)]
pub struct Upstream {
    pub api: Api,
    /// PEM of the Kubernetes API's certificate authority, for `k8s/ca.crt`.
    pub cluster_ca: Arc<str>,
    /// The pace at which a node's DeviceStatus objects are written.
    pub device_write_every_ms: u32,
    /// `None`: nodes are where they say.
    pub kubelet: Option<Arc<KubeletPlace>>,
}

impl Upstream {
    /// `desired`: what belongs on the node, once known; it decides which config maps and secrets the node may read.
    pub async fn answer(
        &self,
        node: &str,
        desired: Option<Arc<NodeDesired>>,
        request: Request,
        message: Message,
    ) -> Option<Message> {
        let shape = shape_of(&request);
        match self.carry_out(node, desired.as_deref(), &request, &message).await {
            Ok(answer) => reply(&message, &request, answer),
            Err(failure) => {
                log_failure(node, &message, &failure);
                reply_failure(&message, shape, &failure)
            }
        }
    }

    async fn carry_out(
        &self,
        node: &str,
        desired: Option<&NodeDesired>,
        request: &Request,
        message: &Message,
    ) -> Result<Answer, Failure> {
        match request {
            Request::Keepalive | Request::Ack { .. } | Request::Ignored => Ok(Answer::None),
            Request::Control => Ok(Answer::Content(text("ack"))),
            Request::ClusterCa => Ok(Answer::Content(text(&self.cluster_ca))),
            Request::NodeInsert => self.register(node, message).await,
            Request::NodeQuery => Ok(Answer::Content(self.get(Kind::Node, "", node).await?)),
            Request::NodeUpdate => self.label(node, message).await,
            Request::NodePatch => {
                let mut patch =
                    objects::status_patch(message).map_err(|e| Failure::Content("a status patch", e))?;
                if let Some(kubelet) = &self.kubelet {
                    kubelet.put(&mut patch["status"]);
                }
                self.patch_status(&Kind::Node.path("", node), patch).await
            }
            Request::LeaseQuery => Ok(Answer::Object(self.get(Kind::Lease, LEASE_NAMESPACE, node).await?)),
            Request::LeaseInsert => self.create_lease(message).await,
            Request::LeaseUpdate => {
                let path = Kind::Lease.path(LEASE_NAMESPACE, node);
                let body = for_node(Kind::Lease, message).map_err(|e| Failure::Content("a lease", e))?;
                object(self.api.put(&path, body).await)
            }
            Request::LeaseRenew => {
                let path = Kind::Lease.path(LEASE_NAMESPACE, node);
                let patch =
                    objects::renewal_patch(node, message).map_err(|e| Failure::Content("a renewal", e))?;
                self.api.patch(&path, crate::api::MERGE_PATCH, patch).await.map_err(at_api)?;
                Ok(Answer::Ok)
            }
            Request::NodeBeat => {
                let path = Kind::Node.path("", node);
                let current = self.api.get(&path).await.map_err(at_api)?;
                let current: Value =
                    serde_json::from_slice(&current).map_err(|e| Failure::Api(ApiError::Json(e)))?;
                let patch =
                    objects::beat_patch(&current, message).map_err(|e| Failure::Content("a beat", e))?;
                let unknown =
                    || Failure::Denied(format!("the status of node {node} is unknown here; say all of it"));
                let patch = patch.ok_or_else(unknown)?;
                self.api.patch(&format!("{path}/status"), STRATEGIC_PATCH, patch).await.map_err(at_api)?;
                Ok(Answer::Ok)
            }
            Request::PodPatch(pod) => {
                let path = Kind::Pod.path(&pod.namespace, &pod.name);
                self.check_pod(node, &path, None).await?;
                let patch =
                    objects::status_patch(message).map_err(|e| Failure::Content("a status patch", e))?;
                self.patch_status(&path, patch).await
            }
            Request::PodInsert(pod) => {
                let body: Value = message.content_as().map_err(|e| Failure::Content("a mirror pod", e))?;
                if body.pointer("/spec/nodeName").and_then(Value::as_str) != Some(node) {
                    return Err(Failure::Denied(format!(
                        "a mirror pod of node {node} must have its nodeName"
                    )));
                }
                let body = for_node(Kind::Pod, message).map_err(|e| Failure::Content("a mirror pod", e))?;
                object(self.api.post(&format!("/api/v1/namespaces/{}/pods", pod.namespace), body).await)
            }
            Request::PodDelete(pod) => {
                self.delete_pod(node, &Kind::Pod.path(&pod.namespace, &pod.name), message).await
            }
            Request::Query(reference) => {
                let kind = Kind::from_word(reference.kind).expect("references are of kinds that are watched");
                if !desired.is_some_and(|desired| desired.references.contains(reference)) {
                    let (word, name) = (reference.kind, &reference.name);
                    return Err(Failure::Denied(format!(
                        "{word} {}/{name} is not used by a pod on node {node}; name it in a pod to give the node access",
                        reference.namespace
                    )));
                }
                match self.get(kind, &reference.namespace, &reference.name).await {
                    Err(Failure::Api(error))
                        if error.is_not_found()
                            && desired.is_some_and(|desired| desired.optional.contains(reference)) =>
                    {
                        Err(Failure::Optional(error))
                    }
                    found => Ok(Answer::Content(found?)),
                }
            }
            Request::Attachment { name } => {
                let path = format!("/apis/storage.k8s.io/v1/volumeattachments/{name}");
                let body = self.api.get(&path).await.map_err(at_api)?;
                let found: Value =
                    serde_json::from_slice(&body).map_err(|error| Failure::Api(ApiError::Json(error)))?;
                if found.pointer("/spec/nodeName").and_then(Value::as_str) != Some(node) {
                    return Err(Failure::Denied(format!("{path} is not an attachment to node {node}")));
                }
                let object = objects::complete("storage.k8s.io/v1", "VolumeAttachment", &body);
                Ok(Answer::Content(object.map_err(|error| Failure::Api(ApiError::Json(error)))?))
            }
            Request::TaskReport => {
                let content: Value = message.content_as().unwrap_or_default();
                let report: String = content.to_string().chars().take(TASK_REPORT_LEN_MAX).collect();
                let task = &message.route.resource;
                tracing::info!(
                    "node {node} reports on {task}, a task that this cloud did not give: {report}"
                );
                Ok(Answer::None)
            }
            Request::Token { namespace, account } => self.token(node, namespace, account, message).await,
            Request::EventInsert { namespace } => {
                let body = objects::event(node, message).map_err(|e| Failure::Content("an event", e))?;
                self.api
                    .post(&format!("/api/v1/namespaces/{namespace}/events"), body)
                    .await
                    .map_err(at_api)?;
                Ok(Answer::None)
            }
            Request::EventUpdate { namespace, name } => {
                let body = objects::event(node, message).map_err(|e| Failure::Content("an event", e))?;
                self.api
                    .put(&format!("/api/v1/namespaces/{namespace}/events/{name}"), body)
                    .await
                    .map_err(at_api)?;
                Ok(Answer::None)
            }
            Request::EventPatch { namespace, name } => {
                let patch =
                    objects::event_patch(message).map_err(|e| Failure::Content("an event patch", e))?;
                let path = format!("/api/v1/namespaces/{namespace}/events/{name}");
                self.api.patch(&path, STRATEGIC_PATCH, patch).await.map_err(at_api)?;
                Ok(Answer::None)
            }
            // Not answered here: they wait in the node's book.
            Request::Twins { .. } | Request::DeviceState { .. } => Ok(Answer::None),
        }
    }

    async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Box<RawValue>, Failure> {
        let body = self.api.get(&kind.path(namespace, name)).await.map_err(at_api)?;
        for_push(kind, &body).map_err(|error| Failure::Api(ApiError::Json(error)))
    }

    /// Registers a node. A Node object that is there already (made by hand, or from before) is taken over: labels and
    /// annotations that it lacks are added, and it is the answer; to a stock edge the answer is "exists already", as it expects.
    async fn register(&self, node: &str, message: &Message) -> Result<Answer, Failure> {
        let mut body = registered(node, message).map_err(|e| Failure::Content("a node", e))?;
        if let Some(kubelet) = &self.kubelet {
            kubelet.put(&mut body["status"]);
        }
        match self.api.post("/api/v1/nodes", body.to_string()).await {
            Ok(created) => {
                tracing::info!("node {node} has registered");
                object(Ok(created))
            }
            Err(exists) if exists.is_conflict() => {
                let path = Kind::Node.path("", node);
                let current = self.api.get(&path).await.map_err(at_api)?;
                let current: Value =
                    serde_json::from_slice(&current).map_err(|e| Failure::Api(ApiError::Json(e)))?;
                if let Some(patch) = objects::missing_metadata(&current, &body) {
                    self.api
                        .patch(&path, crate::api::MERGE_PATCH, patch.to_string())
                        .await
                        .map_err(at_api)?;
                    tracing::info!("node {node} has taken over the Node object that was there");
                }
                Err(Failure::Api(exists))
            }
            Err(error) => Err(Failure::Api(error)),
        }
    }

    async fn label(&self, node: &str, message: &Message) -> Result<Answer, Failure> {
        let body = registered(node, message).map_err(|e| Failure::Content("a node", e))?;
        let metadata = &body["metadata"];
        let patch =
            json!({"metadata": {"labels": metadata["labels"], "annotations": metadata["annotations"]}});
        self.api
            .patch(&Kind::Node.path("", node), crate::api::MERGE_PATCH, patch.to_string())
            .await
            .map_err(at_api)?;
        Ok(Answer::Ok)
    }

    async fn patch_status(&self, path: &str, patch: Value) -> Result<Answer, Failure> {
        object(self.api.patch(&format!("{path}/status"), STRATEGIC_PATCH, patch.to_string()).await)
    }

    /// Says of a node that has connected that its kubelet is found here. Never resolves; a node that is not registered yet says it
    /// when it registers.
    pub fn place_kubelet<'a>(&'a self, node: &'a str) -> BoxFuture<'a, ()> {
        let Some(kubelet) = &self.kubelet else { return Box::pin(std::future::pending()) };
        Box::pin(async move {
            let path = format!("{}/status", Kind::Node.path("", node));
            while let Err(error) = self.api.patch(&path, STRATEGIC_PATCH, kubelet.patch()).await {
                if error.is_not_found() {
                    break;
                }
                tracing::warn!("where the kubelet of node {node} is found cannot be told: {}", error.line());
                tokio::time::sleep(PLACE_RETRY).await;
            }
            std::future::pending().await
        })
    }

    async fn create_lease(&self, message: &Message) -> Result<Answer, Failure> {
        let body = for_node(Kind::Lease, message).map_err(|e| Failure::Content("a lease", e))?;
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/{LEASE_NAMESPACE}/leases");
        match self.api.post(&path, body.clone()).await {
            // A cluster has this namespace from its start; the embedded API may get it with the first node.
            Err(error) if error.is_not_found() => {
                let namespace =
                    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": LEASE_NAMESPACE}});
                self.api.post("/api/v1/namespaces", namespace.to_string()).await.map_err(at_api)?;
                object(self.api.post(&path, body).await)
            }
            answer => object(answer),
        }
    }

    /// The pod is on this node and, when a uid is given, has it.
    async fn check_pod(&self, node: &str, path: &str, uid: Option<&str>) -> Result<Value, Failure> {
        let body = self.api.get(path).await.map_err(at_api)?;
        let pod: Value =
            serde_json::from_slice(&body).map_err(|error| Failure::Api(ApiError::Json(error)))?;
        let at = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str);
        if at("/spec/nodeName") != Some(node) {
            return Err(Failure::Denied(format!("{path} is not a pod of node {node}")));
        }
        match uid {
            Some(uid) if at("/metadata/uid") != Some(uid) => {
                Err(Failure::Denied(format!("{path} is another pod than {uid}")))
            }
            _ => Ok(pod),
        }
    }

    async fn delete_pod(&self, node: &str, path: &str, message: &Message) -> Result<Answer, Failure> {
        let options = objects::delete_options(message).map_err(|e| Failure::Content("delete options", e))?;
        match self.check_pod(node, path, Some(&options.uid)).await {
            Ok(_) => {}
            // Gone already, or another pod has the name: what the node wants is so.
            Err(Failure::Api(error)) if error.is_not_found() => return Ok(Answer::Ok),
            Err(Failure::Denied(reason)) => {
                tracing::debug!("{reason}");
                return Ok(Answer::Ok);
            }
            Err(failure) => return Err(failure),
        }
        match self.api.delete(path, options.body).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(Failure::Api(error)),
            _ => Ok(Answer::Ok),
        }
    }

    async fn token(
        &self,
        node: &str,
        namespace: &str,
        account: &str,
        message: &Message,
    ) -> Result<Answer, Failure> {
        let mut body: Value = message.content_as().map_err(|e| Failure::Content("a token request", e))?;
        let pod =
            body.pointer("/spec/boundObjectRef/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let uid = body.pointer("/spec/boundObjectRef/uid").and_then(Value::as_str).map(str::to_owned);
        // A token not bound to one of the node's own pods would let a node act as any service account.
        if !request::is_name(&pod) {
            return Err(Failure::Denied(format!(
                "a token for {namespace}/{account} must be bound to a pod of node {node}"
            )));
        }
        let found = self.check_pod(node, &Kind::Pod.path(namespace, &pod), uid.as_deref()).await?;
        // Nor does a node get a token of another account than the pod's own.
        let own = found.pointer("/spec/serviceAccountName").and_then(Value::as_str).unwrap_or("default");
        if own != account {
            return Err(Failure::Denied(format!(
                "pod {namespace}/{pod} runs as service account {own}, not as {account}: node {node} gets no token for that"
            )));
        }
        body["apiVersion"] = "authentication.k8s.io/v1".into();
        body["kind"] = "TokenRequest".into();
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let answer = self.api.post(&path, body.to_string()).await.map_err(|error| match error {
            // Not "no such account": the path itself is unknown to this API.
            ApiError::Refused { code: 404 | 405, message, .. } if !message.contains(account) => Failure::Denied(format!(
                "this Kubernetes API gives out no tokens for service accounts; set automountServiceAccountToken: false in pod \
                 {namespace}/{pod}"
            )),
            error => at_api(error),
        })?;
        let answer = objects::token_answer(&body, &answer);
        Ok(Answer::Content(answer.map_err(|error| Failure::Api(ApiError::Json(error)))?))
    }

    /// Writes what a node reported of a device into its DeviceStatus; made with the device as owner when there is none.
    /// `times_count`: new times alone are worth a write.
    pub async fn write_device(
        &self,
        node: &str,
        desired: Option<Arc<NodeDesired>>,
        (namespace, device): &DeviceId,
        said: &Pending,
        times_count: bool,
    ) -> Outcome {
        let owner = match self.owner(node, desired.as_deref(), namespace, device).await {
            Ok(Some(uid)) => uid,
            // Nobody will ever want this report: the node must not send it for ever.
            Ok(None) => return Outcome::Unchanged,
            Err(error) => {
                tracing::warn!("device {namespace}/{device} of node {node} cannot be read: {}", error.line());
                return Outcome::Failed;
            }
        };
        let merge = |status: &Value| {
            let merged = match devices::merge_twins(status, &said.twins) {
                Ok(merged) => merged.unwrap_or_else(|| status.clone()),
                Err(error) => {
                    tracing::warn!("report of device {namespace}/{device} refused: {error}");
                    status.clone()
                }
            };
            let stated = said.state.as_ref().and_then(|state| devices::merge_state(&merged, state));
            let merged = stated.unwrap_or(merged);
            let is_news = merged != *status && (times_count || !devices::only_times_differ(status, &merged));
            is_news.then_some(merged)
        };
        // A conflict means that somebody else wrote in between: merge again into what they wrote.
        for attempt in 0..4 {
            match self.write_device_status(namespace, device, &owner, &merge).await {
                Ok(true) => return Outcome::Written,
                Ok(false) => return Outcome::Unchanged,
                Err(error) if error.is_conflict() && attempt < 3 => continue,
                Err(error) => {
                    tracing::warn!(
                        "the status of device {namespace}/{device} is not written and tried again: {}",
                        error.line()
                    );
                    return Outcome::Failed;
                }
            }
        }
        Outcome::Failed
    }

    /// The uid of the device, if it is the node's.
    async fn owner(
        &self,
        node: &str,
        desired: Option<&NodeDesired>,
        namespace: &str,
        device: &str,
    ) -> Result<Option<String>, ApiError> {
        let resource = format!("{namespace}/{}/{device}", Kind::Device.word());
        let target = desired.and_then(|desired| desired.targets.iter().find(|t| t.resource == resource));
        if let Some(target) = target {
            return Ok(Some(target.uid.clone()));
        }
        // It may be new: the watch is behind what was just made.
        let found = match self.api.get(&Kind::Device.path(namespace, device)).await {
            Ok(found) => found,
            Err(error) if error.is_not_found() => {
                tracing::info!(
                    "node {node} reports device {namespace}/{device}, which does not exist (any more)"
                );
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let found: Value = serde_json::from_slice(&found).map_err(ApiError::Json)?;
        let at = |pointer: &str| found.pointer(pointer).and_then(Value::as_str);
        if at("/spec/nodeName") != Some(node) {
            tracing::warn!(
                "node {node} reports device {namespace}/{device}, which is not its own; the report is dropped"
            );
            return Ok(None);
        }
        Ok(at("/metadata/uid").map(str::to_owned))
    }

    /// True when something was written.
    async fn write_device_status(
        &self,
        namespace: &str,
        device: &str,
        owner_uid: &str,
        merge: impl Fn(&Value) -> Option<Value>,
    ) -> Result<bool, ApiError> {
        let list = format!("/apis/devices.kubeedge.io/v1beta1/namespaces/{namespace}/devicestatuses");
        let path = format!("{list}/{device}");
        match self.api.get(&path).await {
            Ok(body) => {
                let current: Value = serde_json::from_slice(&body).map_err(ApiError::Json)?;
                let before = current.get("status").unwrap_or(&Value::Null);
                let Some(status) = merge(before) else {
                    return Ok(false);
                };
                let version = &current["metadata"]["resourceVersion"];
                let patch =
                    json!({"metadata": {"resourceVersion": version}, "status": merge_patch(before, status)});
                self.api.patch(&path, crate::api::MERGE_PATCH, patch.to_string()).await?;
            }
            Err(error) if error.is_not_found() => {
                let Some(status) = merge(&Value::Null) else { return Ok(false) };
                let owner = json!({"apiVersion": Kind::Device.api_version(), "kind": "Device", "name": device,
                                   "uid": owner_uid, "controller": true});
                let object = json!({"apiVersion": Kind::Device.api_version(), "kind": "DeviceStatus",
                    "metadata": {"name": device, "namespace": namespace, "ownerReferences": [owner]}, "status": status});
                self.api.post(&list, object.to_string()).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

/// The merge patch that makes `after` of `before`: an extension that is gone must be named, a reason that is over.
fn merge_patch(before: &Value, mut after: Value) -> Value {
    let extensions = before.get("extensions").and_then(Value::as_object);
    if let (Some(before), Some(after)) =
        (extensions, after.get_mut("extensions").and_then(Value::as_object_mut))
    {
        for key in before.keys() {
            after.entry(key.clone()).or_insert(Value::Null);
        }
    }
    after
}

/// What a node reports of a device, if the message is such a report: whose, what, and the answer that it waits for.
pub fn device_report(
    request: &Request,
    message: &Message,
) -> Option<Result<(DeviceId, Said, Message), serde_json::Error>> {
    let (id, said) = match request {
        Request::Twins { namespace, device } => {
            ((namespace.clone(), device.clone()), devices::parse_twins(message).map(Said::Twins))
        }
        Request::DeviceState { namespace, device } => {
            ((namespace.clone(), device.clone()), devices::parse_state(message).map(Said::State))
        }
        _ => return None,
    };
    let answer = reply(message, request, Answer::Ok).expect("OK is an answer");
    Some(said.map(|said| (id, said, answer)))
}
