//! The node's MQTT bus. In every mode edgecore is a client of a broker: of the one in this process (`broker`), of an external
//! one (mosquitto), or of both (`modules.eventBus.mqttMode` 0, 2, 1).
//!
//! Each broker gets two connections, as KubeEdge's: one only reads, one only publishes, so that a reader that is behind never
//! stops what it publishes itself.
//!
//! Invariants: subscriptions and retained messages of ours survive a restart of the broker; a message that arrived is handed
//! to its reader or the bus waits; nothing here knows devices.
//!
//! Start at [`start`]; the protocol is in `lib/mqtt`.

pub mod broker;
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
use mqtt::broker::{Auth, Limits};
use rt::{Drain, TaskGroup};
use tokio::sync::{mpsc, oneshot};

use crate::{
    config::{Config, EventBus},
    contract::{BoxFuture, Bus, Publish},
    limits::{BUS_CONNECTIONS_MAX, BUS_TASKS_MAX},
};
use publisher::Command;
use subscriber::Subscriptions;

/// Starts the broker, if configured, and the clients. An address that is in use or a broker that is not there is logged with its
/// remedy and tried again: the node must come up without its bus too.
pub fn start(cfg: &Config, drain: Drain) -> anyhow::Result<Arc<dyn Bus>> {
    let bus = &cfg.modules.event_bus;
    let tasks = TaskGroup::new("bus", BUS_TASKS_MAX, drain.clone());
    let mut endpoints = Vec::new();
    if bus.mqtt_mode <= 1 {
        let address = server(&bus.mqtt_server_internal).context("modules.eventBus.mqttServerInternal")?;
        let listen = address.to_socket_addrs().ok().and_then(|mut found| found.next());
        let Some(listen) = listen else {
            bail!("modules.eventBus.mqttServerInternal: {address} is no local address")
        };
        let limits = Limits { connections_max: BUS_CONNECTIONS_MAX, ..Limits::default() };
        let handle = broker::start(listen, auth(bus, listen), limits, drain);
        // Port 0 is for tests: the clients go where the broker really is.
        endpoints.push(handle.address().to_string());
    }
    if bus.mqtt_mode >= 1 {
        endpoints.push(server(&bus.mqtt_server_external).context("modules.eventBus.mqttServerExternal")?);
    }
    Ok(connect(bus, endpoints, &tasks)?)
}

/// The client part alone.
fn connect(
    bus: &EventBus,
    endpoints: Vec<String>,
    tasks: &TaskGroup,
) -> Result<Arc<dyn Bus>, rt::TooManyTasks> {
    let subscriptions = Arc::new(Subscriptions::default());
    let mut publishers = Vec::new();
    for endpoint in endpoints {
        let options = |kind: &str, given: &str, keep_alive_s| mqtt::client::Options {
            client_id: match given {
                "" => format!("hub-client-{kind}-{:010}", rt::random_u64() % 10_000_000_000),
                given => given.to_owned(),
            },
            username: Some(bus.mqtt_username.clone()).filter(|user| !user.is_empty()),
            password: Some(bus.mqtt_password.clone()).filter(|password| !password.is_empty()),
            keep_alive_s,
            packet_bytes_max: mqtt::limits::PACKET_BYTES_MAX,
        };
        let reader = options("sub", &bus.mqtt_sub_client_id, subscriber::KEEP_ALIVE_S);
        tasks.spawn(subscriber::run(
            endpoint.clone(),
            reader,
            subscriptions.clone(),
            tasks.drain().clone(),
        ))?;
        let (tx, rx) = rt::chan::waiting(1);
        let writer = options("pub", &bus.mqtt_pub_client_id, publisher::KEEP_ALIVE_S);
        tasks.spawn(publisher::run(endpoint, writer, rx, tasks.drain().clone()))?;
        publishers.push(tx);
    }
    Ok(Arc::new(MqttBus { publishers, subscriptions }))
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

/// `tcp://host:port` as `host:port`.
fn server(url: &str) -> anyhow::Result<String> {
    let Some(address) = url.strip_prefix("tcp://").or_else(|| url.strip_prefix("mqtt://")) else {
        bail!("{url:?} has an unknown scheme: write tcp://HOST:PORT");
    };
    let address = address.trim_end_matches('/');
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(address.to_owned()),
        _ => bail!("{url:?} has no port: write tcp://HOST:PORT"),
    }
}

fn auth(bus: &EventBus, listen: SocketAddr) -> Auth {
    if !bus.mqtt_username.is_empty() {
        let users = [(bus.mqtt_username.clone(), bus.mqtt_password.clone())].into();
        return Auth { users, ..Auth::default() };
    }
    if !listen.ip().is_loopback() {
        tracing::warn!(
            "the MQTT broker listens on {listen} without a password: set modules.eventBus.mqttUsername and mqttPassword, or listen on 127.0.0.1"
        );
    }
    Auth::default()
}

#[cfg(test)]
mod tests;
