//! One simulated node.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::watch, time::Instant};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        Message as Frame,
        client::IntoClientRequest,
        http::{HeaderName, HeaderValue},
        protocol::WebSocketConfig,
    },
};
use wire::{Message, Operation, headers, link::Backoff, source};

use crate::{KEEPALIVE_EVERY, LEASE_EVERY, join};

const PROJECT: &str = "e632aba927ea4ac2b575ec1603d56f10";
/// As edgecore dials again: evenly between zero and a limit that doubles up to the second figure.
const BACKOFF_MS: (u64, u64) = (1_000, 30_000);
const DIAL_TIME_MAX: Duration = Duration::from_secs(30);

/// What all nodes do and saw together.
#[derive(Default)]
pub struct Counters {
    pub joined: AtomicU64,
    pub join_failures: AtomicU64,
    pub connected: AtomicU64,
    dial_failures: AtomicU64,
    losses: AtomicU64,
    /// Messages and their bytes before TLS.
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    received: AtomicU64,
    received_bytes: AtomicU64,
    acknowledged: AtomicU64,
    leases: AtomicU64,
    patches: AtomicU64,
    refused: AtomicU64,
}

impl Counters {
    pub fn shown(&self) -> Value {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "joined": of(&self.joined), "joinFailures": of(&self.join_failures), "connected": of(&self.connected),
            "dialFailures": of(&self.dial_failures), "losses": of(&self.losses),
            "sent": of(&self.sent), "sentBytes": of(&self.sent_bytes),
            "received": of(&self.received), "receivedBytes": of(&self.received_bytes),
            "acknowledged": of(&self.acknowledged), "leases": of(&self.leases), "patches": of(&self.patches),
            "refused": of(&self.refused),
        })
    }
}

/// What the driver wants; a change is noticed by its number.
#[derive(Clone, Copy, Debug, Default)]
pub struct Orders {
    pub cuts: u64,
    pub burst: (u64, u32),
}

pub struct Node {
    name: String,
    index: usize,
    tls: Arc<ClientConfig>,
    registered: bool,
    burst_seen: u64,
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// One link while it is up.
struct Link<'a> {
    node: &'a mut Node,
    socket: Socket,
    counters: Arc<Counters>,
    /// As the cloud last returned it.
    lease: Value,
    /// Of the request that waits for its answer.
    waiting: Waiting,
    patches_left: u32,
}

#[derive(Default)]
struct Waiting {
    register: String,
    lease: String,
    patch: String,
}

impl Node {
    pub fn new(name: String, index: usize, tls: Arc<ClientConfig>) -> Node {
        Node { name, index, tls, registered: false, burst_seen: 0 }
    }

    /// Keeps a link, for ever.
    pub async fn run(mut self, hub: &str, counters: Arc<Counters>, mut orders: watch::Receiver<Orders>) {
        let mut backoff = Backoff::new(BACKOFF_MS.0, BACKOFF_MS.1, self.index as u64);
        loop {
            let dialled = tokio::time::timeout(DIAL_TIME_MAX, self.dial(hub)).await;
            match dialled.context("no answer").flatten() {
                Ok(socket) => {
                    counters.connected.fetch_add(1, Ordering::Relaxed);
                    let up = Instant::now();
                    let link = Link {
                        node: &mut self,
                        socket,
                        counters: counters.clone(),
                        lease: Value::Null,
                        waiting: Waiting::default(),
                        patches_left: 0,
                    };
                    let ended = link.run(&mut orders).await;
                    counters.connected.fetch_sub(1, Ordering::Relaxed);
                    if let Err(error) = ended {
                        counters.losses.fetch_add(1, Ordering::Relaxed);
                        eprintln!("{} lost its link: {error:#}", self.name);
                    }
                    if up.elapsed() > Duration::from_millis(wire::limits::LINK_STABLE_MS) {
                        backoff.reset();
                    }
                }
                Err(error) => {
                    counters.dial_failures.fetch_add(1, Ordering::Relaxed);
                    eprintln!("{} is not let in: {error:#}", self.name);
                }
            }
            tokio::time::sleep(Duration::from_millis(backoff.next_ms())).await;
        }
    }

    async fn dial(&self, hub: &str) -> Result<Socket> {
        let tcp = TcpStream::connect(hub).await?;
        tcp.set_nodelay(true)?;
        let tls = TlsConnector::from(self.tls.clone()).connect(join::host(hub)?, tcp).await?;
        let mut request = format!("wss://{hub}/{PROJECT}/{}/events", self.name).into_client_request()?;
        for (name, value) in [
            (headers::NODE_ID, self.name.as_str()),
            (headers::PROJECT_ID, PROJECT),
            ("ConnectionUse", "msg"),
            (headers::STORE_ID, "simulated"),
        ] {
            request.headers_mut().insert(name.parse::<HeaderName>()?, HeaderValue::from_str(value)?);
        }
        let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(4096);
        let (socket, _) = client_async_with_config(request, tls, Some(config)).await?;
        Ok(socket)
    }
}

impl Link<'_> {
    /// To the order to cut it (`Ok`), or its loss.
    async fn run(mut self, orders: &mut watch::Receiver<Orders>) -> Result<()> {
        let cuts = orders.borrow_and_update().cuts;
        // Spread, as nodes that were started at different times are.
        let spread = |every: Duration| every * (self.node.index as u32 % 1000) / 1000;
        let begun = Instant::now();
        let mut lease = tokio::time::interval_at(begun + spread(LEASE_EVERY), LEASE_EVERY);
        let mut keepalive = tokio::time::interval_at(begun + spread(KEEPALIVE_EVERY), KEEPALIVE_EVERY);
        if !self.node.registered {
            self.register().await?;
        }
        loop {
            tokio::select! {
                changed = orders.changed() => {
                    changed?;
                    let now = *orders.borrow_and_update();
                    if now.cuts != cuts {
                        return Ok(());
                    }
                    if now.burst.0 != self.node.burst_seen {
                        self.node.burst_seen = now.burst.0;
                        self.patches_left = now.burst.1;
                        self.patch().await?;
                    }
                }
                _ = lease.tick(), if self.node.registered => self.renew().await?,
                _ = keepalive.tick() => {
                    let beat = message(source::WEBSOCKET, "resource", Operation::KEEPALIVE, "node");
                    self.send(&beat.with_content("ping")).await?;
                }
                frame = self.socket.next() => match frame.context("the cloud closed the link")?? {
                    Frame::Text(text) => self.received(text.as_bytes()).await?,
                    Frame::Close(_) => bail!("the cloud closed the link"),
                    _ => {}
                },
            }
        }
    }

    async fn send(&mut self, message: &Message) -> Result<()> {
        let text = message.encode();
        self.counters.sent.fetch_add(1, Ordering::Relaxed);
        self.counters.sent_bytes.fetch_add(text.len() as u64, Ordering::Relaxed);
        Ok(self.socket.send(Frame::text(text)).await?)
    }

    async fn register(&mut self) -> Result<()> {
        let name = &self.node.name;
        let labels = json!({
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64",
            "node-role.kubernetes.io/edge": "", "node-role.kubernetes.io/agent": "",
        });
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
            "status": status(0),
        });
        let message = message(source::EDGED, "meta", Operation::INSERT, &format!("null/node/{name}"));
        self.waiting.register = message.header.msg_id.clone();
        self.send(&message.with_content(&node)).await
    }

    async fn renew(&mut self) -> Result<()> {
        let name = self.node.name.clone();
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let spec = json!({"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now});
        let (operation, content) = if self.lease.is_null() {
            (Operation::QUERY, Value::Null)
        } else {
            let is_new = self.lease.get("metadata").is_none_or(|m| m.get("resourceVersion").is_none());
            self.lease["spec"] = spec;
            (if is_new { Operation::INSERT } else { Operation::UPDATE }, self.lease.clone())
        };
        let message = message(source::EDGED, "meta", operation, &format!("kube-node-lease/lease/{name}"));
        self.waiting.lease = message.header.msg_id.clone();
        self.send(&message.with_content(&content)).await
    }

    async fn patch(&mut self) -> Result<()> {
        if self.patches_left == 0 {
            return Ok(());
        }
        let patch = json!({"status": status(self.patches_left)}).to_string();
        let resource = format!("null/nodepatch/{}", self.node.name);
        let message = message(source::EDGED, "meta", Operation::PATCH, &resource);
        self.waiting.patch = message.header.msg_id.clone();
        self.send(&message.with_content(&patch)).await
    }

    async fn received(&mut self, text: &[u8]) -> Result<()> {
        self.counters.received.fetch_add(1, Ordering::Relaxed);
        self.counters.received_bytes.fetch_add(text.len() as u64, Ordering::Relaxed);
        let message = Message::decode(text)?;
        let parent = message.header.parent_msg_id.as_str();
        let is_push = [Operation::INSERT, Operation::UPDATE, Operation::DELETE]
            .contains(&message.route.operation.as_str());
        if is_push && message.route.group == "resource" {
            self.counters.acknowledged.fetch_add(1, Ordering::Relaxed);
            return self.send(&message.ack(now_ms())).await;
        }
        if parent.is_empty() {
            return Ok(());
        }
        let answer: Value = serde_json::from_str(message.content.get())?;
        let error = &answer["Err"];
        let failed = !error.is_null();
        if parent == self.waiting.register {
            self.node.registered = !failed || error["ErrStatus"]["reason"] == "AlreadyExists";
            if !self.node.registered {
                bail!("the Node is refused: {error}");
            }
            return self.renew().await;
        }
        if parent == self.waiting.lease {
            match (error["ErrStatus"]["reason"].as_str(), failed) {
                (Some("NotFound"), _) => {
                    let metadata = json!({"name": self.node.name, "namespace": "kube-node-lease"});
                    self.lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata});
                    return self.renew().await;
                }
                (_, false) => {
                    self.lease = answer["Object"].clone();
                    self.counters.leases.fetch_add(1, Ordering::Relaxed);
                }
                _ => {
                    self.lease = Value::Null;
                    self.counters.refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        } else if parent == self.waiting.patch {
            let counter = if failed { &self.counters.refused } else { &self.counters.patches };
            counter.fetch_add(1, Ordering::Relaxed);
            self.patches_left -= 1;
            return self.patch().await;
        }
        Ok(())
    }
}

fn status(generation: u32) -> Value {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let conditions: Vec<Value> = [("Ready", "True"), ("MemoryPressure", "False"), ("DiskPressure", "False"), ("PIDPressure", "False")]
        .map(|(kind, status)| json!({"type": kind, "status": status, "reason": "Simulated", "message": generation.to_string(), "lastHeartbeatTime": now, "lastTransitionTime": now}))
        .into();
    let resources = json!({"cpu": "4", "memory": "512Mi", "pods": "110"});
    json!({
        "capacity": resources, "allocatable": resources, "conditions": conditions,
        "nodeInfo": {"architecture": "arm64", "kubeletVersion": "v1.32.10-kubeedge-v1.23.1", "operatingSystem": "linux"},
    })
}

fn message(source: &str, group: &str, operation: &str, resource: &str) -> Message {
    Message::new(now_ms(), source, group, operation, resource)
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
