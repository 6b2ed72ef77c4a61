//! What the broker noticed, for the log: who holds whom, and whose connection was closed for what. A client that goes on doing it is
//! named at the first time and then at powers of two, so that no flood of them is a flood in the log.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use mqtt::{
    broker::{Notice, slot},
    packet::reason,
};

use crate::limits::MQTT_SAID_MAX;

/// After this all are named anew.
const FORGET: Duration = Duration::from_secs(3600);

/// How often each client was closed for each reason. When there are too many clients the further ones are counted as one.
#[derive(Debug, Default)]
pub(super) struct Said {
    counts: BTreeMap<(String, u8), u64>,
    since: Option<Instant>,
}

impl Said {
    /// `peers`: where each connection comes from.
    pub fn tell(&mut self, notices: Vec<Notice>, peers: &[Option<IpAddr>]) {
        for notice in notices {
            match notice {
                Notice::Holds { session, is_away, bytes, held, more } => {
                    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                    let held = held.join(", ");
                    match is_away {
                        true => tracing::warn!(
                            "MQTT session {session:?} is full ({bytes} bytes) and its client is away: {held}{more} cannot publish to what it has subscribed to; start that client, or connect once with its id and a clean session to end it"
                        ),
                        false => tracing::warn!(
                            "MQTT client {session:?} reads too slowly ({bytes} bytes wait): {held}{more} wait for it"
                        ),
                    }
                }
                Notice::Freed { session, seconds } => {
                    tracing::info!("MQTT session {session:?} holds nobody any more, after {seconds} s");
                }
                Notice::Closed { connection, client, reason } => {
                    let peer = peers.get(slot(connection)).copied().flatten();
                    self.closed(&client, peer, reason);
                }
            }
        }
    }

    fn closed(&mut self, client: &str, peer: Option<IpAddr>, reason: u8) {
        let from = peer.map_or_else(|| "the unix socket".to_owned(), |peer| peer.to_string());
        if self.since.is_none_or(|since| since.elapsed() > FORGET) {
            *self = Said { counts: BTreeMap::new(), since: Some(Instant::now()) };
        }
        let mut key = (if client.is_empty() { from.clone() } else { client.to_owned() }, reason);
        if self.counts.len() >= MQTT_SAID_MAX && !self.counts.contains_key(&key) {
            key.0 = String::new();
        }
        let is_one_of_many = key.0.is_empty();
        let count = self.counts.entry(key).or_default();
        *count += 1;
        if !count.is_power_of_two() {
            return;
        }
        let who = if client.is_empty() { "a client".to_owned() } else { format!("client {client:?}") };
        let times = match (*count > 1, is_one_of_many) {
            (false, _) => String::new(),
            (true, false) => format!(" ({count} times)"),
            (true, true) => format!(" (and {count} others that are not named)"),
        };
        tracing::warn!("MQTT {who} from {from} was disconnected: {}{times}", text(reason));
    }
}

fn text(reason: u8) -> &'static str {
    match reason {
        reason::MALFORMED => "it sent a malformed packet",
        reason::PROTOCOL => "it does not keep to MQTT, or does not speak it",
        reason::UNSUPPORTED_VERSION => "it speaks a version of MQTT that is not known here",
        reason::CLIENT_ID => "its client id is too long, missing, or that of another user",
        reason::BAD_PASSWORD => "user or password is wrong",
        reason::NOT_AUTHORIZED => "it has no user, or its user is no more",
        reason::SERVER_BUSY => "too much that is not whole waits for its rest",
        reason::BAD_AUTHENTICATION_METHOD => "it wants an authentication that is not known here",
        reason::KEEP_ALIVE => "nothing was heard of it for too long",
        reason::RECEIVE_MAXIMUM => "it sent too many messages of QoS 2 without releasing them",
        reason::TOPIC_ALIAS => "it used a topic alias that it may not",
        reason::PACKET_TOO_LARGE => "it sent a packet over kinglet.mqtt.maxPacketBytes",
        reason::QUOTA => {
            "it does not read what it has subscribed to, or asked for more than a limit of kinglet.mqtt"
        }
        reason::TOPIC_INVALID => "it published to what is no topic",
        _ => "it broke the rules of MQTT",
    }
}
