//! The Node object: registration, lease and status.
//!
//! Not here: pods. Invariants: nothing is shown that was not measured, and the node is Ready only while the container runtime
//! answers. Start at [`run`]; what is sent is decided in [`status`], the machine is read in [`facts`].

mod conditions;
mod facts;
mod lease;
mod reimaged;
mod status;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};
use wire::{Message, Operation, source};

pub use conditions::ConditionBoard;
pub use facts::{Facts, Machine, ProcMachine};
pub use reimaged::REGISTERED;
pub use status::{Has, KUBELET_VERSION, Status};

use crate::contract::{Condition, Handles, LinkState, RuntimeStatus, UplinkError};

/// How long the cloud may take to answer a request of this module; KubeEdge's edge waits 60 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// A stock cloud does not answer an update of labels that met a conflict (KubeEdge `upstream.go`, updateNode). The lease must
/// not wait for that.
const LABELS_TIMEOUT: Duration = Duration::from_secs(3);
/// After a refusal: a lease that is overdue would else be asked for ten times a second.
const RETRY_TIME: Duration = Duration::from_secs(2);

/// What the module takes from the configuration.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub node_labels: BTreeMap<String, String>,
    pub node_ip: String,
    pub schedulable: bool,
    pub register: bool,
    /// What is reserved and how many pods there may be.
    pub kubelet: crate::config::Kubelet,
    pub update_every: Duration,
    pub report_every: Duration,
    pub lease_seconds: u32,
    /// Its file system is the node's ephemeral storage.
    pub root_directory: PathBuf,
    /// `host:port`; the address of the route to it is the node's address.
    pub cloud: String,
    /// The cloud told no identity at the join: a stock KubeEdge cloudcore.
    pub cloud_is_stock: bool,
}

impl NodeConfig {
    pub fn new(cfg: &crate::config::Config) -> NodeConfig {
        let edged = &cfg.modules.edged;
        let kubelet = &edged.tailored_kubelet_config;
        NodeConfig {
            node_labels: edged.node_labels.clone(),
            node_ip: edged.node_ip.clone(),
            schedulable: edged.register_schedulable,
            register: kubelet.register_node,
            kubelet: kubelet.clone(),
            update_every: kubelet.node_status_update_frequency.0.max(Duration::from_secs(1)),
            report_every: kubelet.node_status_report_frequency.0.max(Duration::from_secs(10)),
            lease_seconds: kubelet.node_lease_duration_seconds.max(4),
            root_directory: edged.root_directory.clone(),
            cloud: cfg.modules.edge_hub.websocket.server.clone(),
            cloud_is_stock: cfg.kinglet.cloud_id.is_empty(),
        }
    }
}

/// Runs until it is dropped. `raised` is what the modules set through `Conditions`.
pub async fn run(
    handles: Handles,
    cfg: NodeConfig,
    machine: impl Machine,
    mut raised: watch::Receiver<Vec<Condition>>,
) {
    let mut runtime = handles.runtime.subscribe();
    let mut link = handles.uplink.state();
    let mut devices = handles.devices.subscribe();
    let mut images = handles.images.subscribe();
    let mut objects = handles.meta.changes();
    let mut agent = Agent {
        status: Status::new(&handles.node_name),
        lease: lease::Lease::new(&handles.node_name),
        labels: None,
        reimaged: reimaged::Watch::load(&*handles.meta),
        failed: false,
        handles,
        cfg,
    };
    let mut lost = false;
    loop {
        // The sources are only looked at once per round: a condition that flaps within a round costs one patch.
        let runtime_now = runtime.borrow_and_update().clone();
        let raised_now = raised.borrow_and_update().clone();
        let has =
            Has { devices: devices.borrow_and_update().clone(), images: images.borrow_and_update().clone() };
        let connected = *link.borrow_and_update() == LinkState::Connected;
        if connected {
            if std::mem::take(&mut lost) {
                agent.reconnected();
            }
            let facts = machine.facts(&agent.cfg).await;
            agent.round(&facts, &runtime_now, &raised_now, &has).await;
        } else {
            lost = true;
        }
        let pause = if connected { agent.pause() } else { agent.cfg.update_every };
        let closed = tokio::select! {
            () = tokio::time::sleep(pause) => false,
            changed = runtime.changed() => changed.is_err(),
            changed = raised.changed() => changed.is_err(),
            changed = link.changed() => changed.is_err(),
            changed = devices.changed() => changed.is_err(),
            changed = images.changed() => changed.is_err(),
            changed = objects.changed(), if agent.reimaged.is_on() => {
                agent.reimaged.look(&agent.handles).await;
                changed.is_err()
            }
        };
        if closed {
            return;
        }
    }
}

struct Agent {
    handles: Handles,
    cfg: NodeConfig,
    status: Status,
    lease: lease::Lease,
    /// Labels and annotations that a Node which was there already still has to take.
    labels: Option<Value>,
    reimaged: reimaged::Watch,
    /// The last round.
    failed: bool,
}

impl Agent {
    /// Unless the link goes on where the last one ended, the cloud behind it may know nothing of us.
    fn reconnected(&mut self) {
        if self.handles.uplink.is_resumed() {
            self.status.say_again();
            self.lease.renew_now();
        } else {
            self.status.link_lost();
            self.lease.forget();
            self.labels = None;
            self.handles.registered.send_replace(false);
        }
    }

    /// Until the lease or the status is due.
    fn pause(&self) -> Duration {
        let pause = self.cfg.update_every.min(self.lease.pause(Instant::now(), self.cfg.lease_seconds));
        if self.failed { pause.max(RETRY_TIME) } else { pause }
    }

    async fn round(&mut self, facts: &Facts, runtime: &RuntimeStatus, raised: &[Condition], has: &Has) {
        let now = jiff::Timestamp::now();
        self.status.measure(&self.cfg, facts, runtime, raised, has, now);
        let outcome = async {
            if self.cfg.register && !self.status.is_registered() {
                self.register(facts).await?;
            }
            if !self.cfg.register {
                self.handles.registered.send_if_modified(|registered| !std::mem::replace(registered, true));
            }
            if self.lease.is_due(Instant::now(), self.cfg.lease_seconds) {
                self.renew_lease().await?;
            }
            if let Some(patch) = self.status.patch(Instant::now(), self.cfg.report_every) {
                self.send_patch(patch).await?;
            }
            self.send_labels().await
        };
        let outcome = outcome.await;
        self.failed = outcome.is_err();
        if let Err(error) = outcome {
            tracing::warn!(target: "node", "{error}");
        }
    }

    async fn register(&mut self, facts: &Facts) -> Result<(), NodeError> {
        let node = self.status.object(&self.cfg, facts);
        let answer = self.request(Operation::INSERT, "null/node", &node).await?;
        match answer {
            Ok(object) => {
                tracing::info!(target: "node", "registered as {}", self.handles.node_name);
                self.lease.owner_is(&object);
                self.reimaged.registered(&self.handles).await;
            }
            Err(error) if error.reason == "AlreadyExists" => {
                // A Node that was made beforehand with kubectl, or by our last life, is taken over with our labels.
                self.labels = Some(json!({"apiVersion": "v1", "kind": "Node", "metadata": node["metadata"]}));
                self.taken_over().await?;
            }
            Err(error) => return Err(NodeError::Refused { what: "to register", error }),
        }
        self.status.registered();
        self.handles.registered.send_replace(true);
        Ok(())
    }

    async fn taken_over(&mut self) -> Result<(), NodeError> {
        if self.cfg.cloud_is_stock && self.reimaged.must_ask() {
            let node = self.request(Operation::QUERY, "null/node", &Value::Null).await?;
            let node = node.map_err(|error| NodeError::Refused { what: "to read its Node", error })?;
            self.lease.owner_is(&node);
            self.reimaged.found(&self.handles, &node).await;
        } else if let Some(object) = self.stored_node() {
            self.lease.owner_is(&object);
        }
        Ok(())
    }

    async fn send_labels(&mut self) -> Result<(), NodeError> {
        let Some(node) = &self.labels else { return Ok(()) };
        match self.request_within(LABELS_TIMEOUT, Operation::UPDATE, "null/node", node).await {
            Ok(Ok(_)) => self.labels = None,
            Ok(Err(error)) => return Err(NodeError::Refused { what: "to set its labels", error }),
            Err(NodeError::Uplink(UplinkError::Timeout(_))) => {
                tracing::debug!(target: "node", "the node's labels are sent again: the cloud did not answer");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The Node as the cloud last pushed it.
    fn stored_node(&self) -> Option<Value> {
        let resource = wire::Resource::new("null", "node", &self.handles.node_name);
        serde_json::from_slice(&self.handles.meta.get(&resource)?.body).ok()
    }

    async fn send_patch(&mut self, patch: status::Patch) -> Result<(), NodeError> {
        let text = patch.text.to_string();
        match self.request(Operation::PATCH, "null/nodepatch", &text).await? {
            Ok(_) => self.status.accepted(patch, Instant::now()),
            Err(error) if error.reason == "NotFound" => {
                // Somebody deleted the Node while we live: it is made anew in the next round.
                self.status.unregistered();
                self.labels = None;
                return Err(NodeError::Refused { what: "to show its status", error });
            }
            Err(error) => return Err(NodeError::Refused { what: "to show its status", error }),
        }
        Ok(())
    }

    async fn renew_lease(&mut self) -> Result<(), NodeError> {
        // Query, then make or renew; a conflict means that our copy is old, so ask once more.
        for _ in 0..4 {
            let (operation, content) = self.lease.request(jiff::Timestamp::now(), self.cfg.lease_seconds);
            let answer = self.request(operation, "kube-node-lease/lease", &content).await?;
            match self.lease.answered(operation, answer, Instant::now()) {
                lease::Next::Done => return Ok(()),
                lease::Next::Again => {}
                lease::Next::Failed(error) => {
                    return Err(NodeError::Refused { what: "to renew its lease", error });
                }
            }
        }
        Err(NodeError::LeaseContested)
    }

    async fn request(
        &self,
        operation: &str,
        resource: &str,
        content: &(impl serde::Serialize + ?Sized),
    ) -> Result<Result<Value, ApiError>, NodeError> {
        self.request_within(REQUEST_TIMEOUT, operation, resource, content).await
    }

    async fn request_within(
        &self,
        timeout: Duration,
        operation: &str,
        resource: &str,
        content: &(impl serde::Serialize + ?Sized),
    ) -> Result<Result<Value, ApiError>, NodeError> {
        let resource = format!("{resource}/{}", self.handles.node_name);
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let message = Message::new(now_ms, source::EDGED, "meta", operation, &resource).with_content(content);
        let answer = self.handles.uplink.request(message, timeout).await.map_err(NodeError::Uplink)?;
        Ok(read_answer(&answer))
    }
}

#[derive(Debug, thiserror::Error)]
enum NodeError {
    #[error("{0}")]
    Uplink(UplinkError),
    #[error("the cloud does not let this node {what}: {error}")]
    Refused { what: &'static str, error: ApiError },
    #[error("the node's lease changes faster than it can be renewed; is there another node with this name?")]
    LeaseContested,
}

/// A Kubernetes error as the cloud passes it on.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, thiserror::Error)]
#[serde(default)]
#[error("{message} ({reason} {code})")]
pub struct ApiError {
    reason: String,
    code: i64,
    message: String,
}

/// `{Object, Err}`, or the bare object or `OK` that older clouds send.
fn read_answer(answer: &Message) -> Result<Value, ApiError> {
    let content: Value = answer.content_as().unwrap_or_default();
    let error = |message: String| ApiError { reason: "Unknown".into(), code: 0, message };
    if answer.route.operation == Operation::ERROR {
        return Err(error(content.as_str().unwrap_or("an error without a text").into()));
    }
    let failure = content.get("Err").filter(|err| !err.is_null());
    if let Some(status) = failure.and_then(|err| err.get("ErrStatus")).or_else(|| content.get("ErrStatus")) {
        return Err(
            ApiError::deserialize(status).unwrap_or_else(|_| error("an error that cannot be read".into()))
        );
    }
    if let Some(failure) = failure {
        return Err(error(failure.as_str().map_or_else(|| failure.to_string(), str::to_owned)));
    }
    match content {
        Value::Object(mut map) if map.contains_key("Object") => Ok(map.remove("Object").unwrap_or_default()),
        Value::String(text) if text != wire::message::ACK_CONTENT => Err(error(text)),
        other => Ok(other),
    }
}
