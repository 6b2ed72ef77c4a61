//! `kinglet.mqtt`: what the broker inside edgecore does beyond KubeEdge's `modules.eventBus`.

use std::path::PathBuf;

use mqtt::{broker::Limits, limits as bounds};
use serde::Deserialize;

/// All of ours; KubeEdge has no such keys.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mqtt {
    /// Addresses beside `modules.eventBus.mqttServerInternal`: `tcp://IP:PORT`, `mqtts://IP:PORT`, `unix:///PATH`.
    pub listen: Vec<String>,
    #[serde(rename = "tlsCertFile")]
    pub tls_cert_file: PathBuf,
    #[serde(rename = "tlsPrivateKeyFile")]
    pub tls_private_key_file: PathBuf,
    /// Clients with a certificate of this CA are users by its name. Empty: none are asked for one.
    #[serde(rename = "tlsClientCAFile")]
    pub tls_client_ca_file: PathBuf,
    /// Lines as mosquitto_passwd writes them.
    pub password_file: PathBuf,
    /// As mosquitto's, with `client` beside `user`.
    pub acl_file: PathBuf,
    /// The ACL holds on loopback and the unix socket too.
    pub acl_local: bool,
    /// Topics whose messages are on the disk before their publisher has its acknowledgement.
    pub durable_sync: Vec<String>,
    /// Topics whose messages are on the disk within 5 s.
    pub durable_lazy: Vec<String>,
    /// False: nothing outlives a restart.
    pub persistence: bool,
    /// A full session whose client is away is waited for. False: it ends after 10 s, with what it holds.
    pub wait_for_sessions: bool,
    pub max_connections: usize,
    pub max_sessions: usize,
    pub max_session_expiry_seconds: u32,
    /// The same for MQTT 3.1.1, whose clients cannot say for how long they want theirs.
    pub max_session_expiry_seconds_v3: u32,
    pub max_packet_bytes: usize,
    pub max_queue_bytes: usize,
    pub max_queues_bytes: usize,
    pub max_retained: usize,
    pub max_retained_bytes: usize,
    /// 0: as the clients like.
    pub max_keep_alive_seconds: u16,
}

impl Default for Mqtt {
    fn default() -> Self {
        let limits = Limits::default();
        Mqtt {
            listen: Vec::new(),
            tls_cert_file: PathBuf::new(),
            tls_private_key_file: PathBuf::new(),
            tls_client_ca_file: PathBuf::new(),
            password_file: PathBuf::new(),
            acl_file: PathBuf::new(),
            acl_local: false,
            durable_sync: Vec::new(),
            durable_lazy: Vec::new(),
            persistence: true,
            wait_for_sessions: limits.wait_for_sessions,
            max_connections: crate::limits::BUS_CONNECTIONS_MAX,
            max_sessions: limits.sessions_max,
            max_session_expiry_seconds: limits.session_expiry_s_max,
            max_session_expiry_seconds_v3: limits.session_expiry_v3_s,
            max_packet_bytes: limits.packet_bytes_max,
            max_queue_bytes: limits.queue_bytes_max,
            max_queues_bytes: limits.queues_bytes_max,
            max_retained: limits.retained_max,
            max_retained_bytes: limits.retained_bytes_max,
            max_keep_alive_seconds: limits.keep_alive_s_max,
        }
    }
}

/// What edgecore and its mappers say to each other: no session of others may hold it up.
const NODE_TOPICS: [&str; 2] = ["$hw/", "$kinglet/"];

impl Mqtt {
    pub fn limits(&self) -> Limits {
        Limits {
            connections_max: self.max_connections,
            sessions_max: self.max_sessions,
            session_expiry_s_max: self.max_session_expiry_seconds,
            session_expiry_v3_s: self.max_session_expiry_seconds_v3,
            packet_bytes_max: self.max_packet_bytes,
            queue_bytes_max: self.max_queue_bytes,
            queues_bytes_max: self.max_queues_bytes,
            retained_max: self.max_retained,
            retained_bytes_max: self.max_retained_bytes,
            keep_alive_s_max: self.max_keep_alive_seconds,
            wait_for_sessions: self.wait_for_sessions,
            node_topics: &NODE_TOPICS,
        }
    }

    /// Key and problem of the first value that cannot be.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        for filter in self.durable_sync.iter().chain(&self.durable_lazy) {
            if !mqtt::topic::filter_is_valid(filter) {
                return Some((
                    "kinglet.mqtt.durableSync",
                    format!("or durableLazy has {filter:?}, which is no topic filter"),
                ));
            }
        }
        let packet = self.max_packet_bytes;
        if !(1024..=bounds::PACKET_BYTES_MAX).contains(&packet) {
            let most = bounds::PACKET_BYTES_MAX;
            return Some(("kinglet.mqtt.maxPacketBytes", format!("is {packet}; it is 1024 to {most}")));
        }
        if self.max_queue_bytes < packet || self.max_queues_bytes < 4 * self.max_queue_bytes {
            let need = "must hold a packet of maxPacketBytes, and maxQueuesBytes four such queues".into();
            return Some(("kinglet.mqtt.maxQueueBytes", need));
        }
        if !(8..=10_000).contains(&self.max_connections) {
            return Some((
                "kinglet.mqtt.maxConnections",
                format!("is {}; it is 8 to 10000", self.max_connections),
            ));
        }
        None
    }
}
