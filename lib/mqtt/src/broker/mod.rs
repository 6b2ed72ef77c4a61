//! A broker as a plain value: connections, subscriptions, retained messages, wills, keep-alive, take-over, back-pressure.
//!
//! The shell accepts sockets and calls [`Broker::accept`], [`Broker::receive`], [`Broker::closed`] and [`Broker::tick`]; after
//! each call it looks at [`Broker::take_touched`] and writes [`Broker::output`] of the connections named there.
//!
//! It grants QoS 0 and 1 (QoS 2 from publishers is accepted and passed on as QoS 1) and clean sessions: a client that asks for
//! a kept session is told that there is none (`session present` 0), as after a restart of any broker without a disk.
//!
//! Invariants: a message of QoS 1 that was acknowledged to its publisher is delivered to every subscriber that stays connected;
//! no connection holds more than the bounds of [`crate::limits`].

mod connection;
mod retained;
pub mod testing;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    encode,
    limits::{CONNECT_MS_MAX, PACKET_BYTES_MAX, QOS2_IDS_MAX, STALL_MS_MAX, SUBSCRIPTIONS_MAX},
    packet::{self, Connect, Packet, Publish, Qos},
};
use connection::{Connection, Push};
use retained::Retained;

pub type ConnectionId = u64;

/// A connection that begins otherwise (HTTP, TLS) is closed at once.
const CONNECT_FIRST_BYTE: u8 = 0x10;

/// A message on its way to one or more subscribers.
#[derive(Debug)]
struct Message {
    topic: String,
    payload: Vec<u8>,
    qos: Qos,
    retain: bool,
}

#[derive(Clone, Debug)]
pub struct Limits {
    pub connections_max: usize,
    pub packet_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { connections_max: 128, packet_bytes_max: PACKET_BYTES_MAX }
    }
}

/// Who may connect. Without users everybody may: the listener is then bound to loopback only.
#[derive(Clone, Debug, Default)]
pub struct Auth {
    /// User names and passwords.
    pub users: BTreeMap<String, String>,
}

impl Auth {
    fn allows(&self, connect: &Connect<'_>) -> bool {
        let given = (connect.username, connect.password);
        self.users.is_empty()
            || matches!(given, (Some(user), Some(password)) if self.users.get(user).is_some_and(|have| equal(have.as_bytes(), password)))
    }
}

/// Compares in a time that does not depend on where the first difference is.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (x, y)| sum | (x ^ y)) == 0
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub connections: usize,
    pub subscriptions: usize,
    pub retained: usize,
    pub received: u64,
    pub delivered: u64,
    /// QoS 0 messages dropped because a subscriber's queue was full.
    pub dropped: u64,
    /// Messages not retained because the store of retained messages was full.
    pub not_retained: u64,
    /// Connections refused or closed for a breach of protocol, silence or a stall.
    pub closed_by_broker: u64,
}

#[derive(Debug)]
pub struct Broker {
    limits: Limits,
    auth: Auth,
    connections: BTreeMap<ConnectionId, Connection>,
    retained: Retained,
    touched: BTreeSet<ConnectionId>,
    last_id: ConnectionId,
    stats: Stats,
}

impl Broker {
    pub fn new(limits: Limits, auth: Auth) -> Broker {
        Broker {
            limits,
            auth,
            connections: BTreeMap::new(),
            retained: Retained::default(),
            touched: BTreeSet::new(),
            last_id: 0,
            stats: Stats::default(),
        }
    }

    /// A new socket. `None` when there are as many connections as allowed: close it.
    pub fn accept(&mut self, now_ms: u64) -> Option<ConnectionId> {
        if self.connections.len() >= self.limits.connections_max {
            self.stats.closed_by_broker += 1;
            return None;
        }
        self.last_id += 1;
        self.connections.insert(self.last_id, Connection::new(now_ms));
        Some(self.last_id)
    }

    /// Bytes from a socket. When [`Broker::wants_more`] is false afterwards, the shell must not read until it is true again.
    pub fn receive(&mut self, now_ms: u64, id: ConnectionId, bytes: &[u8]) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.received.extend_from_slice(bytes);
        connection.heard_ms = now_ms;
        self.process(now_ms, id);
        self.resume(now_ms);
    }

    /// True when the connection may be read: it exists and does not wait for a subscriber that is behind.
    pub fn wants_more(&self, id: ConnectionId) -> bool {
        self.connections.get(&id).is_some_and(|connection| connection.blocked_since_ms.is_none())
    }

    /// Bytes for the socket; the shell removes what it has written and then calls [`Broker::wrote`]. `None`: close the socket.
    pub fn output(&mut self, id: ConnectionId) -> Option<&mut Vec<u8>> {
        let connection = self.connections.get_mut(&id)?;
        if connection.closing && connection.output.is_empty() {
            self.remove(id, false);
            return None;
        }
        self.connections.get_mut(&id).map(|connection| &mut connection.output)
    }

    /// The shell has taken bytes from the output: there may be room for what waits.
    pub fn wrote(&mut self, now_ms: u64, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.moved_ms = now_ms;
            self.stats.delivered += connection.pump();
            if !connection.output.is_empty() || connection.closing {
                self.touched.insert(id);
            }
        }
        self.resume(now_ms);
    }

    /// The socket is gone. A connection that did not say good-bye has its will published.
    pub fn closed(&mut self, now_ms: u64, id: ConnectionId) {
        self.remove(id, true);
        self.resume(now_ms);
    }

    /// Closes what is silent or stuck. Call at least once per second.
    pub fn tick(&mut self, now_ms: u64) {
        let late: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, connection)| {
                let silent = match &connection.client_id {
                    None => now_ms >= connection.heard_ms + CONNECT_MS_MAX,
                    Some(_) => {
                        // 0 is the client's wish never to be missed; the number of connections is bounded anyway.
                        connection.keep_alive_s > 0
                            && connection.blocked_since_ms.is_none()
                            && now_ms >= connection.heard_ms + u64::from(connection.keep_alive_s) * 1500
                    }
                };
                silent || (connection.is_full() && now_ms >= connection.moved_ms + STALL_MS_MAX)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.stats.closed_by_broker += 1;
            self.remove(id, true);
        }
        self.resume(now_ms);
    }

    /// Connections that have output, or must be closed, since the last call.
    pub fn take_touched(&mut self) -> BTreeSet<ConnectionId> {
        std::mem::take(&mut self.touched)
    }

    pub fn stats(&self) -> Stats {
        Stats {
            connections: self.connections.len(),
            subscriptions: self.connections.values().map(|connection| connection.filters.len()).sum(),
            retained: self.retained.len(),
            ..self.stats
        }
    }

    /// Goes on with connections that waited for a subscriber.
    fn resume(&mut self, now_ms: u64) {
        let blocked: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.blocked_since_ms.is_some())
            .map(|(id, _)| *id)
            .collect();
        for id in blocked {
            self.process(now_ms, id);
            if self.wants_more(id) {
                self.touched.insert(id);
            }
        }
    }

    /// Handles the whole packets in a connection's input, until one has to wait.
    fn process(&mut self, now_ms: u64, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let received = std::mem::take(&mut connection.received);
        connection.blocked_since_ms = None;
        if connection.client_id.is_none()
            && received.first().is_some_and(|first| *first != CONNECT_FIRST_BYTE)
        {
            self.close(id, false);
            return;
        }
        let mut used = 0;
        loop {
            match packet::decode(&received[used..], self.limits.packet_bytes_max) {
                Ok(None) => break,
                Ok(Some((packet, len))) => match self.handle(now_ms, id, &packet) {
                    Step::Done => used += len,
                    Step::Wait => {
                        if let Some(connection) = self.connections.get_mut(&id) {
                            connection.blocked_since_ms = Some(now_ms);
                        }
                        break;
                    }
                    Step::Close { will } => {
                        self.close(id, will);
                        return;
                    }
                },
                Err(_) => {
                    self.close(id, true);
                    return;
                }
            }
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.received = received;
            connection.received.drain(..used);
            if connection.received.is_empty() {
                // A connection that once had a large message does not keep the room for it.
                connection.received.shrink_to(1024);
            }
            self.touched.insert(id);
        }
    }

    fn handle(&mut self, now_ms: u64, id: ConnectionId, packet: &Packet<'_>) -> Step {
        let Some(connection) = self.connections.get_mut(&id) else { return Step::Close { will: false } };
        if connection.client_id.is_none() {
            return match packet {
                Packet::Connect(connect) => self.connect(now_ms, id, connect),
                _ => Step::Close { will: false },
            };
        }
        match packet {
            Packet::Publish(publish) => return self.publish(now_ms, id, publish),
            Packet::PubAck(message) => {
                connection.acknowledged(*message);
                connection.moved_ms = now_ms;
                self.stats.delivered += connection.pump();
            }
            Packet::PubRel(message) => {
                connection.qos2_ids.remove(message);
                encode::packet(&mut connection.output, &Packet::PubComp(*message));
            }
            Packet::Subscribe { id: message, filters } => {
                let mut codes = Vec::with_capacity(filters.len());
                for (filter, qos) in filters {
                    let granted = (*qos).min(Qos::AtLeastOnce);
                    let full = connection.filters.len() >= SUBSCRIPTIONS_MAX
                        && !connection.filters.contains_key(*filter);
                    if full {
                        codes.push(0x80);
                        continue;
                    }
                    connection.filters.insert((*filter).to_owned(), granted);
                    codes.push(granted.bits());
                }
                encode::packet(&mut connection.output, &Packet::SubAck { id: *message, codes: &codes });
                for ((filter, _), code) in filters.iter().zip(&codes) {
                    if *code != 0x80 {
                        self.retained.select(filter, |message| _ = connection.push_retained(now_ms, message));
                    }
                }
                self.stats.delivered += connection.pump();
            }
            Packet::Unsubscribe { id: message, filters } => {
                for filter in filters {
                    connection.filters.remove(*filter);
                }
                encode::packet(&mut connection.output, &Packet::UnsubAck(*message));
            }
            Packet::PingReq => encode::packet(&mut connection.output, &Packet::PingResp),
            Packet::Disconnect => return Step::Close { will: false },
            _ => return Step::Close { will: true },
        }
        Step::Done
    }

    fn connect(&mut self, now_ms: u64, id: ConnectionId, connect: &Connect<'_>) -> Step {
        let code = if !self.auth.allows(connect) {
            4
        } else if connect.client_id.is_empty() && !connect.clean_session {
            2
        } else {
            0
        };
        let client_id = match connect.client_id {
            "" => format!("anonymous-{id}"),
            given => given.to_owned(),
        };
        let before = self
            .connections
            .iter()
            .find(|(_, have)| have.client_id.as_deref() == Some(client_id.as_str()))
            .map(|(id, _)| *id);
        if let (Some(before), 0) = (before, code) {
            self.close(before, true);
        }
        let Some(connection) = self.connections.get_mut(&id) else { return Step::Close { will: false } };
        encode::packet(&mut connection.output, &Packet::ConnAck { session_present: false, code });
        self.touched.insert(id);
        if code != 0 {
            return Step::Close { will: false };
        }
        connection.client_id = Some(client_id);
        connection.moved_ms = now_ms;
        connection.keep_alive_s = connect.keep_alive_s;
        connection.will = connect.will.as_ref().map(|will| Message {
            topic: will.topic.to_owned(),
            payload: will.payload.to_vec(),
            qos: will.qos,
            retain: will.retain,
        });
        Step::Done
    }

    fn publish(&mut self, now_ms: u64, id: ConnectionId, publish: &Publish<'_>) -> Step {
        let seen = match self.connections.get(&id) {
            Some(connection) => publish.qos == Qos::ExactlyOnce && connection.qos2_ids.contains(&publish.id),
            None => return Step::Close { will: false },
        };
        if !seen {
            if publish.qos != Qos::AtMostOnce && self.someone_is_full(publish.topic) {
                return Step::Wait;
            }
            self.stats.received += 1;
            self.route(
                now_ms,
                Message {
                    topic: publish.topic.to_owned(),
                    payload: publish.payload.to_vec(),
                    qos: publish.qos.min(Qos::AtLeastOnce),
                    retain: publish.retain,
                },
            );
        }
        let Some(connection) = self.connections.get_mut(&id) else { return Step::Close { will: false } };
        match publish.qos {
            Qos::AtMostOnce => {}
            Qos::AtLeastOnce => encode::packet(&mut connection.output, &Packet::PubAck(publish.id)),
            Qos::ExactlyOnce => {
                if connection.qos2_ids.len() >= QOS2_IDS_MAX && !seen {
                    return Step::Close { will: true };
                }
                connection.qos2_ids.insert(publish.id);
                encode::packet(&mut connection.output, &Packet::PubRec(publish.id));
            }
        }
        Step::Done
    }

    fn someone_is_full(&self, topic: &str) -> bool {
        self.connections
            .values()
            .any(|connection| connection.is_full() && connection.granted(topic) == Some(Qos::AtLeastOnce))
    }

    fn route(&mut self, now_ms: u64, message: Message) {
        let message = Arc::new(message);
        if message.retain && !self.retained.keep(&message) {
            self.stats.not_retained += 1;
        }
        for (id, connection) in &mut self.connections {
            let Some(granted) = connection.granted(&message.topic) else { continue };
            match connection.push(now_ms, &message, granted, false) {
                Push::Queued => {
                    self.stats.delivered += connection.pump();
                    self.touched.insert(*id);
                }
                Push::Dropped => self.stats.dropped += 1,
            }
        }
    }

    /// Lets the shell write what is in the output, then close.
    fn close(&mut self, id: ConnectionId, will: bool) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let message = connection.will.take().filter(|_| will);
        connection.closing = true;
        connection.client_id = Some(String::new());
        connection.filters.clear();
        connection.received = Vec::new();
        self.touched.insert(id);
        if will {
            self.stats.closed_by_broker += 1;
        }
        if let Some(message) = message {
            self.route(0, message);
        }
    }

    fn remove(&mut self, id: ConnectionId, will: bool) {
        let Some(mut connection) = self.connections.remove(&id) else { return };
        self.touched.insert(id);
        if let Some(message) = connection.will.take().filter(|_| will) {
            self.route(0, message);
        }
    }
}

enum Step {
    Done,
    /// A subscriber is behind: handle the same packet again later.
    Wait,
    Close {
        will: bool,
    },
}

/// Total on any bytes: two connections are fed pieces of the input, and the bounds hold.
pub fn fuzz_broker(data: &[u8]) {
    let mut broker = Broker::new(Limits { connections_max: 4, packet_bytes_max: 8192 }, Auth::default());
    let mut ids = Vec::new();
    for (at, piece) in data.chunks(24).enumerate() {
        let now_ms = at as u64 * 100;
        if at % 5 == 0 {
            ids.extend(broker.accept(now_ms));
        }
        let Some(id) = ids.get(at % 3 % ids.len().max(1)).copied() else { continue };
        if broker.wants_more(id) {
            broker.receive(now_ms, id, piece);
        }
        for id in broker.take_touched() {
            if let Some(output) = broker.output(id) {
                output.clear();
            }
            broker.wrote(now_ms, id);
        }
        broker.tick(now_ms);
        assert!(broker.stats().connections <= 4);
    }
}

#[cfg(test)]
mod tests;
