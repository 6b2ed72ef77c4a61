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
mod socket;
mod subscriber;

use std::{
    net::{SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use mqtt::client::Options;
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
    let mut peers = Vec::new();
    if bus.mqtt_mode <= 1 {
        let address =
            endpoint::internal(&bus.mqtt_server_internal).context("modules.eventBus.mqttServerInternal")?;
        let listen = address.to_socket_addrs().ok().and_then(|mut found| found.next());
        let Some(listen) = listen else {
            bail!("modules.eventBus.mqttServerInternal: {address} is no local address")
        };
        let handle = broker::start_with(broker::from_config(cfg, listen)?, drain);
        // Port 0 is for tests: the clients go where the broker really is.
        peers.push(Peer::internal(handle.address(), bus));
    }
    if bus.mqtt_mode >= 1 {
        let endpoint = Endpoint::external(&bus.mqtt_server_external, &bus.tls)
            .context("modules.eventBus.mqttServerExternal")?;
        peers.push(Peer::external(endpoint, bus, &cfg.node_name()));
    }
    if let [inside, outside] = &peers[..] {
        bridges(&bus.bridge, inside, outside, &tasks)?;
    }
    Ok(connect(&peers, &tasks)?)
}

/// A broker as we know it: where it is, and who we are there.
struct Peer {
    endpoint: Endpoint,
    bus: EventBus,
    /// The node's name where our subscriptions outlive a connection: messages that come while we are away wait in the broker, so the
    /// client id must be the same after a restart. `None` for the broker in this process, which is never away without us.
    kept_for: Option<String>,
}

impl Peer {
    fn internal(address: SocketAddr, bus: &EventBus) -> Peer {
        Peer { endpoint: Endpoint::plain(address.to_string()), bus: bus.clone(), kept_for: None }
    }

    fn external(endpoint: Endpoint, bus: &EventBus, node: &str) -> Peer {
        Peer { endpoint, bus: bus.clone(), kept_for: Some(node.to_owned()) }
    }

    /// `given`: a configured client id. KubeEdge's own have ten random digits at the end.
    fn options(&self, kind: &str, given: &str, keep_alive_s: u16) -> Options {
        let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let is_reader = kind.starts_with("sub");
        let digits = match &self.kept_for {
            Some(node) if is_reader => {
                let sum = node.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
                    (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
                });
                sum % 10_000_000_000
            }
            _ => rt::random_u64() % 10_000_000_000,
        };
        Options {
            client_id: match given {
                "" => format!("hub-client-{kind}-{digits:010}"),
                given => given.to_owned(),
            },
            clean_session: self.kept_for.is_none() || !is_reader,
            username: text(&self.bus.mqtt_username),
            password: text(&self.bus.mqtt_password),
            keep_alive_s,
            packet_bytes_max: mqtt::limits::PACKET_BYTES_MAX,
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
        tasks.spawn(publisher::run(self.endpoint.clone(), options, rx, tasks.drain().clone()))?;
        Ok(tx)
    }
}

/// The client part alone.
fn connect(peers: &[Peer], tasks: &TaskGroup) -> Result<Arc<dyn Bus>, TooManyTasks> {
    let subscriptions = Arc::new(Subscriptions::default());
    let mut publishers = Vec::new();
    for peer in peers {
        peer.read("sub", &peer.bus.mqtt_sub_client_id, tasks, subscriptions.clone())?;
        publishers.push(peer.write("pub", &peer.bus.mqtt_pub_client_id, tasks)?);
    }
    Ok(Arc::new(MqttBus { publishers, subscriptions }))
}

/// One reader and one writer for each direction that has rules.
fn bridges(
    rules: &[BridgeRule],
    inside: &Peer,
    outside: &Peer,
    tasks: &TaskGroup,
) -> Result<(), TooManyTasks> {
    for (direction, name, from, to) in
        [(BridgeDirection::Out, "out", inside, outside), (BridgeDirection::In, "in", outside, inside)]
    {
        let rules: Vec<&BridgeRule> = rules.iter().filter(|rule| rule.direction == direction).collect();
        if rules.is_empty() {
            continue;
        }
        let subscriptions = Arc::new(Subscriptions::default());
        let target = to.write(&format!("pub-bridge-{name}"), "", tasks)?;
        for rule in rules {
            let messages = subscriptions.add(&bridge::source(rule));
            tasks.spawn(bridge::copy(rule.clone(), messages, target.clone(), tasks.drain().clone()))?;
        }
        from.read(&format!("sub-bridge-{name}"), "", tasks, subscriptions)?;
    }
    Ok(())
}

struct MqttBus {
    publishers: Vec<mpsc::Sender<Command>>,
    subscriptions: Arc<Subscriptions>,
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
}

#[cfg(test)]
mod external_tests;
#[cfg(test)]
mod tests;
