//! Where edgecore's modules meet. A module sees the others only through these traits; the wiring in `lib.rs` hands them out.
//!
//! Requests go downhill: `meta` and `bus` call nobody; `hub`, `edged` and `twin` call `meta` and `bus`. News comes uphill as a
//! watch: a receiver re-reads the state it is interested in (reconcile, do not replay).

#[cfg(test)]
pub mod testing;

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use wire::{Message, Resource};

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A Kubernetes object as the cloud delivered it.
#[derive(Clone, Debug)]
pub struct Object {
    pub resource: Resource,
    pub uid: String,
    pub resource_version: String,
    /// JSON text.
    pub body: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    #[error("cannot write to the store")]
    Store(#[source] anyhow::Error),
    #[error("{0} is not on this node and the cloud cannot be reached")]
    Offline(Resource),
    #[error("{0} does not exist")]
    NotFound(Resource),
    #[error("the cloud answered: {0}")]
    Peer(String),
}

/// The node's durable memory: objects from the cloud (written by `hub` only, before they are acknowledged) and the modules'
/// own records.
pub trait Meta: Send + Sync {
    /// All objects of a wire type (`pod`, `configmap`, `device`, `devicemodel`, `node`, ...), also after a reboot without cloud.
    fn list(&self, kind: &str) -> Vec<Object>;
    fn get(&self, resource: &Resource) -> Option<Object>;
    /// The stored object, else the cloud's answer, stored first (config maps, secrets).
    fn fetch<'a>(&'a self, resource: &'a Resource) -> BoxFuture<'a, Result<Object, MetaError>>;
    /// Rises with every change of a cloud object; on a change, list again.
    fn changes(&self) -> watch::Receiver<u64>;
    /// A module's own record; `kind` is e.g. `twin`, `podstate`. Lazy records may lose the last minute at a power cut.
    fn put_local<'a>(
        &'a self,
        kind: &'a str,
        name: &'a str,
        body: Bytes,
        durable: bool,
    ) -> BoxFuture<'a, Result<(), MetaError>>;
    fn get_local(&self, kind: &str, name: &str) -> Option<Bytes>;
    fn list_local(&self, kind: &str) -> Vec<(String, Bytes)>;
    fn delete_local<'a>(&'a self, kind: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), MetaError>>;
}

/// What the hub did with a message of the cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// New or changed; durable.
    Stored,
    /// The object of that uid is gone; durable.
    Deleted,
    /// Seen before, or older than what is stored. Acknowledge it like the others, else the cloud sends it again.
    Unchanged,
    /// Not an object that this node keeps, for the reason given.
    Ignored(&'static str),
}

/// The hub's side of meta: what the cloud says goes in here, and only what came back may be acknowledged.
pub trait Inbox: Send + Sync {
    /// Stores what an object message (`insert`, `update`, `delete`, or the answer to a query) says, and returns once that is
    /// durable. Applying the same message again changes nothing. A delete without the stored uid deletes nothing.
    fn apply<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Applied, MetaError>>;
}

/// Something to tell the cloud. A newer report with the same key replaces an older one that was not yet answered.
#[derive(Clone, Debug)]
pub struct Report {
    /// For example `podstatus/default/web` or `twin/default/dev-3/temperature`.
    pub key: String,
    pub message: Message,
    /// Kept over a restart. Else it is lost with the process (the module reports again after a start).
    pub durable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    Connected,
    /// Why, in a line that names the remedy.
    Disconnected(String),
}

#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    #[error("no link to the cloud: {0}")]
    Disconnected(String),
    #[error("the cloud did not answer within {0:?}")]
    Timeout(Duration),
}

/// The way to the cloud, through meta's outbox.
pub trait Uplink: Send + Sync {
    /// Queued, sent when there is a link, sent again until the cloud answers. Never blocks; bounded by merging on the key.
    fn report(&self, report: Report);
    /// Fire and forget when connected (events).
    fn send(&self, message: Message);
    /// A request and its answer; fails at once without a link.
    fn request<'a>(
        &'a self,
        message: Message,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Message, UplinkError>>;
    fn state(&self) -> watch::Receiver<LinkState>;
    /// The link that is up goes on where the last one ended: nothing that the cloud was told is to be told again.
    fn is_resumed(&self) -> bool {
        false
    }
}

/// A message on the node's MQTT broker.
#[derive(Clone, Debug)]
pub struct Publish {
    pub topic: String,
    pub payload: Bytes,
    /// The broker had kept it: it was said before we asked, perhaps long ago.
    pub retained: bool,
}

/// The MQTT bus of the node. Subscriptions survive a restart of the broker.
pub trait Bus: Send + Sync {
    fn publish<'a>(
        &'a self,
        topic: &'a str,
        payload: Bytes,
        retain: bool,
    ) -> BoxFuture<'a, anyhow::Result<()>>;
    /// At most `limits::BUS_QUEUE_LEN` messages wait; then the bus waits for the reader.
    fn subscribe(&self, filter: &str) -> mpsc::Receiver<Publish>;
    /// Figures of the broker inside, by the names that `/metrics` gives them; none without one.
    fn figures(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }
}

/// A condition of the node that a module raises (`CloudIdentityChanged`, `ContainerRuntimeUnavailable`, ...). It goes to the
/// Node's status, to the log and to the status line of the console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub condition_type: String,
    pub status: bool,
    pub reason: String,
    pub message: String,
}

pub trait Conditions: Send + Sync {
    fn set(&self, condition: Condition);
}

/// What the node tells of its container runtime. `edged` sends it, `node` puts it into the Node's status: a node whose runtime
/// does not answer is not Ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RuntimeStatus {
    /// Not asked yet.
    #[default]
    Unknown,
    /// For example `containerd://1.7.24`.
    Ready { version: String },
    /// A line that names the thing (socket, plugin) and the remedy.
    Down { message: String },
}

/// Devices of one kind that plugins offer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCount {
    pub capacity: u64,
    /// Those that are healthy.
    pub allocatable: u64,
}

/// An image that the runtime has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeImage {
    pub names: Vec<String>,
    pub size_bytes: u64,
}

/// By resource name (`example.com/gpu`). `edged` sends it, `node` puts it into the Node's status.
pub type DeviceCounts = BTreeMap<String, DeviceCount>;

/// The node's kubelet API (logs, exec, attach, port-forward, metrics), for whoever brings a byte stream: the link, the tunnel.
pub trait KubeletApi: Send + Sync {
    /// Speaks HTTP/1.1, upgrades included, until the stream or the peer ends. Whoever may open a stream may do everything.
    fn serve(&self, io: rt::BoxIo) -> BoxFuture<'static, ()>;
}

/// Fetches images before a pod needs them.
pub trait ImagePuller: Send + Sync {
    /// `secret`: a pull secret. On success the runtime has the image and it is synced; else why not.
    fn pull<'a>(&'a self, image: &'a str, secret: Option<&'a Resource>) -> BoxFuture<'a, Result<(), String>>;
}

/// Tasks that the cloud gives to the node as a whole (pull images, upgrade). The hub passes them on as they came.
pub trait NodeTasks: Send + Sync {
    /// Begins it and returns; what came of it is told to the cloud through the uplink. Never blocks; bounded.
    fn run(&self, message: &Message);
}

/// A pod's status as `edged` last reported it.
#[derive(Clone, Debug)]
pub struct PodStatus {
    pub uid: String,
    /// JSON text of a status patch: `$patch` and `$setElementOrder` are still in it.
    pub patch: Bytes,
}

/// What `edged` told the cloud of its pods, by namespace and name; at most one entry per pod that it manages. For whoever must
/// say it again (logs, `/pods`).
#[derive(Clone, Default)]
pub struct PodStatuses(Arc<Mutex<BTreeMap<(String, String), PodStatus>>>);

impl PodStatuses {
    pub fn put(&self, namespace: &str, name: &str, status: PodStatus) {
        self.lock().insert((namespace.into(), name.into()), status);
    }

    /// A newer pod of the same name keeps its status.
    pub fn remove(&self, namespace: &str, name: &str, uid: &str) {
        let mut all = self.lock();
        let key = (namespace.to_string(), name.to_string());
        if all.get(&key).is_some_and(|status| status.uid == uid) {
            all.remove(&key);
        }
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<PodStatus> {
        self.lock().get(&(namespace.to_string(), name.to_string())).cloned()
    }

    // Held for one look-up, never across an await.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), PodStatus>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is asked of the values that the node keeps of one device. Everything may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
pub struct HistoryQuery {
    /// Comes back in the answer.
    pub event_id: String,
    /// All of them, if empty.
    pub property: String,
    /// Unix milliseconds: values from then on, and before `until`.
    pub since: Option<i64>,
    pub until: Option<i64>,
    /// Of each property, the newest ones.
    pub limit: Option<usize>,
}

/// Answers a question about a device (`<namespace>/<name>`) with bounded JSON.
pub type HistoryReader = Arc<dyn Fn(&str, &HistoryQuery) -> String + Send + Sync>;

/// The states of a device that works, however KubeEdge's mappers write them.
pub fn device_works(state: &str) -> bool {
    ["online", "ok"].iter().any(|good| state.eq_ignore_ascii_case(good))
}

/// What a module gets at its start.
#[derive(Clone)]
pub struct Handles {
    /// Written by `edged` only.
    pub statuses: PodStatuses,
    /// Written by `edged` only; read with `subscribe`.
    pub runtime: watch::Sender<RuntimeStatus>,
    /// Written by `edged` only; read with `subscribe`.
    pub devices: watch::Sender<DeviceCounts>,
    /// As many as `nodeStatusMaxImages` lets be shown. Written by `edged` only.
    pub images: watch::Sender<Vec<NodeImage>>,
    /// Who knows the values of devices. Written by `twin` only.
    pub history: watch::Sender<Option<HistoryReader>>,
    /// The cloud has the Node. Written by `node` only; read with `subscribe`.
    pub registered: watch::Sender<bool>,
    pub node_name: Arc<str>,
    pub meta: Arc<dyn Meta>,
    pub uplink: Arc<dyn Uplink>,
    pub bus: Arc<dyn Bus>,
    pub conditions: Arc<dyn Conditions>,
}
