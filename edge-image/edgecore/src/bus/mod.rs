//! The node's MQTT bus. In every mode edgecore is a client of a broker: of the one in this process (`broker`), of an external
//! one (mosquitto), or of both (`modules.eventBus.mqttMode` 0, 2, 1).
//!
//! Each broker gets two connections, as KubeEdge's: one only reads, one only publishes, so that a reader that is behind never
//! stops what it publishes itself.
//!
//! Invariants: subscriptions and retained messages of ours survive a restart of the broker; a message that arrived is handed
//! to its reader or the bus waits; nothing here knows devices. What is published while a broker is away is kept, within bounds
//! (`publisher`), and so is what an external broker has for us (a kept session there).
//!
//! Start at [`start`]; the protocol is in `lib/mqtt`.

pub mod bridge;
pub mod broker;
mod endpoint;
pub mod link;
mod publisher;
mod pump;
mod socket;
mod subscriber;

use std::{
    net::{SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use mqtt::{
    Version,
    client::{Client, Options},
};
use rt::{Drain, TaskGroup, TooManyTasks};
use tokio::sync::{mpsc, oneshot};

use crate::{
    config::{BridgeDirection, BridgeRule, Config, EventBus},
    contract::{BoxFuture, Bus, Publish},
    limits::BUS_TASKS_MAX,
};
use endpoint::Endpoint;
use publisher::Command;
use subscriber::Subscriptions;

/// Starts the broker, if configured, and the clients. An address that is in use or a broker that is not there is logged with its
/// remedy and tried again: the node must come up without its bus too.
pub fn start(cfg: &Config, drain: Drain) -> anyhow::Result<Arc<dyn Bus>> {
    let bus = &cfg.modules.event_bus;
    let tasks = TaskGroup::new("bus", BUS_TASKS_MAX, drain.clone());
    let (mut peers, mut inside) = (Vec::new(), None);
    if bus.mqtt_mode <= 1 {
        let address =
            endpoint::internal(&bus.mqtt_server_internal).context("modules.eventBus.mqttServerInternal")?;
        let listen = address.to_socket_addrs().ok().and_then(|mut found| found.next());
        let Some(listen) = listen else {
            bail!("modules.eventBus.mqttServerInternal: {address} is no local address")
        };
        let mut settings = broker::from_config(cfg, listen)?;
        let publisher = client_id("pub", &bus.mqtt_pub_client_id, rt::random_u64());
        settings.auth.node_clients.push(publisher.clone());
        let handle = broker::start_with(settings, drain);
        // Port 0 is for tests: the clients go where the broker really is.
        peers.push(Peer::internal(handle.address(), bus, publisher));
        inside = Some(handle);
    }
    if bus.mqtt_mode >= 1 {
        let endpoint = Endpoint::external(&bus.mqtt_server_external, &bus.tls)
            .context("modules.eventBus.mqttServerExternal")?;
        peers.push(Peer::external(endpoint, bus, &cfg.node_name()));
    }
    if let [inside, outside] = &peers[..] {
        bridges(&bus.bridge, inside, outside, &tasks)?;
    }
    // A session of a bridge that is configured no more would fill, and hold whoever publishes.
    let has_out = bus.mqtt_mode == 1 && bus.bridge.iter().any(|rule| rule.direction == BridgeDirection::Out);
    if let (Some(handle), false) = (&inside, has_out) {
        handle.forget(&kept_id(BRIDGE_OUT, &cfg.node_name()));
    }
    Ok(connect(&peers, inside, &tasks)?)
}

/// A broker as we know it: where it is, and who we are there.
#[derive(Clone)]
struct Peer {
    endpoint: Endpoint,
    bus: EventBus,
    /// The node's name where our subscriptions outlive a connection: messages that come while we are away wait in the broker, so the
    /// client id must be the same after a restart. `None` for the broker in this process, which is never away without us.
    kept_for: Option<String>,
    /// The broker in this process speaks MQTT 5, and refuses what it cannot take from its publisher of this client id.
    publisher: Option<String>,
}

const BRIDGE_OUT: &str = "sub-bridge-out";

/// The same after a restart.
fn kept_id(kind: &str, node: &str) -> String {
    let sum = node
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    client_id(kind, "", sum)
}

/// `given`: a configured client id. KubeEdge's own have ten random digits at the end.
fn client_id(kind: &str, given: &str, number: u64) -> String {
    match given {
        "" => format!("hub-client-{kind}-{:010}", number % 10_000_000_000),
        given => given.to_owned(),
    }
}

impl Peer {
    fn internal(address: SocketAddr, bus: &EventBus, publisher: String) -> Peer {
        let endpoint = Endpoint::plain(address.to_string());
        Peer { endpoint, bus: bus.clone(), kept_for: None, publisher: Some(publisher) }
    }

    fn external(endpoint: Endpoint, bus: &EventBus, node: &str) -> Peer {
        Peer { endpoint, bus: bus.clone(), kept_for: Some(node.to_owned()), publisher: None }
    }

    fn options(&self, kind: &str, given: &str, keep_alive_s: u16) -> Options {
        let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let is_reader = kind.starts_with("sub");
        Options {
            client_id: match &self.kept_for {
                Some(node) if is_reader && given.is_empty() => kept_id(kind, node),
                _ => client_id(kind, given, rt::random_u64()),
            },
            clean_session: self.kept_for.is_none() || !is_reader,
            username: text(&self.bus.mqtt_username),
            password: text(&self.bus.mqtt_password),
            keep_alive_s,
            packet_bytes_max: mqtt::limits::PACKET_BYTES_MAX,
            will: None,
        }
    }

    fn read(
        &self,
        kind: &str,
        given: &str,
        tasks: &TaskGroup,
        to: Arc<Subscriptions>,
    ) -> Result<(), TooManyTasks> {
        let options = self.options(kind, given, subscriber::KEEP_ALIVE_S);
        tasks.spawn(subscriber::run(self.endpoint.clone(), options, to, tasks.drain().clone()))
    }

    fn write(
        &self,
        kind: &str,
        given: &str,
        tasks: &TaskGroup,
    ) -> Result<mpsc::Sender<Command>, TooManyTasks> {
        let (tx, rx) = rt::chan::waiting(1);
        let options = self.options(kind, given, publisher::KEEP_ALIVE_S);
        // What is copied by a bridge waits: it is not lost where it comes from.
        let version = if self.publisher.as_deref() == Some(given) { Version::V5 } else { Version::V3 };
        let client = Client::speaking(version, options);
        tasks.spawn(publisher::run(self.endpoint.clone(), client, rx, tasks.drain().clone()))?;
        Ok(tx)
    }
}

/// The client part alone.
fn connect(
    peers: &[Peer],
    broker: Option<broker::Handle>,
    tasks: &TaskGroup,
) -> Result<Arc<dyn Bus>, TooManyTasks> {
    let subscriptions = Arc::new(Subscriptions::default());
    let mut publishers = Vec::new();
    for peer in peers {
        peer.read("sub", &peer.bus.mqtt_sub_client_id, tasks, subscriptions.clone())?;
        let publisher = peer.publisher.as_ref().unwrap_or(&peer.bus.mqtt_pub_client_id);
        publishers.push(peer.write("pub", publisher, tasks)?);
    }
    Ok(Arc::new(MqttBus { publishers, subscriptions, broker }))
}

/// One pump for each direction that has rules.
fn bridges(
    rules: &[BridgeRule],
    inside: &Peer,
    outside: &Peer,
    tasks: &TaskGroup,
) -> Result<(), TooManyTasks> {
    // Its session outlives our connections on both sides.
    let inside = &Peer { kept_for: outside.kept_for.clone(), ..inside.clone() };
    for (direction, name, from, to) in
        [(BridgeDirection::Out, "out", inside, outside), (BridgeDirection::In, "in", outside, inside)]
    {
        let rules: Vec<BridgeRule> =
            rules.iter().filter(|rule| rule.direction == direction).cloned().collect();
        if rules.is_empty() {
            continue;
        }
        let end = |peer: &Peer, kind: &str| pump::End {
            endpoint: peer.endpoint.clone(),
            client: Client::new(peer.options(kind, "", subscriber::KEEP_ALIVE_S)),
        };
        let (from, to) = (end(from, &format!("sub-bridge-{name}")), end(to, &format!("pub-bridge-{name}")));
        tasks.spawn(pump::run(rules, from, to, tasks.drain().clone()))?;
    }
    Ok(())
}

struct MqttBus {
    publishers: Vec<mpsc::Sender<Command>>,
    subscriptions: Arc<Subscriptions>,
    /// The one in this process, for its figures.
    broker: Option<broker::Handle>,
}

impl Bus for MqttBus {
    fn publish<'a>(
        &'a self,
        topic: &'a str,
        payload: Bytes,
        retain: bool,
    ) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            for publisher in &self.publishers {
                let (done, answer) = oneshot::channel();
                let command = Command { topic: topic.to_owned(), payload: payload.clone(), retain, done };
                publisher.send(command).await.ok().context("the bus is stopping")?;
                answer.await.context("the bus is stopping")??;
            }
            Ok(())
        })
    }

    fn subscribe(&self, filter: &str) -> mpsc::Receiver<Publish> {
        self.subscriptions.add(filter)
    }

    fn figures(&self) -> Vec<(&'static str, f64)> {
        let Some(stats) = self.broker.as_ref().map(broker::Handle::stats) else { return Vec::new() };
        vec![
            ("kinglet_mqtt_clients", stats.connections as f64),
            ("kinglet_mqtt_sessions", stats.sessions as f64),
            ("kinglet_mqtt_publishers_waiting", stats.blocked as f64),
            ("kinglet_mqtt_sessions_holding", stats.holding as f64),
            ("kinglet_mqtt_queued_bytes", stats.queued_bytes as f64),
            ("kinglet_mqtt_retained_bytes", stats.retained_bytes as f64),
            ("kinglet_mqtt_messages_received_total", stats.received as f64),
            ("kinglet_mqtt_messages_sent_total", stats.delivered as f64),
            ("kinglet_mqtt_messages_dropped_total", stats.dropped as f64),
            ("kinglet_mqtt_messages_refused_total", stats.refused as f64),
            ("kinglet_mqtt_clients_closed_total", stats.closed_by_broker as f64),
            ("kinglet_mqtt_sessions_ended_total", stats.sessions_ended as f64),
        ]
    }
}

#[cfg(test)]
mod external_tests;
#[cfg(test)]
mod tests;
