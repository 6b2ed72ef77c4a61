//! A broker of MQTT 3.1.1 and 5 as a plain value: sessions, subscriptions, retained messages, wills, rights, back-pressure.
//!
//! The shell accepts sockets and calls [`Broker::accept`], [`Broker::receive`], [`Broker::closed`] and [`Broker::tick`]; after
//! each call it asks [`Broker::next_touched`] and writes [`Broker::output`] of the connections named there. Passwords that are
//! hashed come out of [`Broker::take_checks`] and go back by [`Broker::checked`]; what is to be written to the disk comes out of
//! [`Broker::take_changes`] and goes back by [`Broker::persisted`], after a restart by [`Broker::restore`].
//!
//! Invariants: a message of QoS 1 or 2 that was acknowledged to its publisher reaches every session that was subscribed, for as
//! long as that session lives, and one of QoS 2 reaches it once; a session ends by its client or by its expiry, which is told
//! (`session present` 0), never is there a hole in it; nothing holds more than the bounds of [`Limits`] and [`crate::limits`].
//!
//! Start at `process` below; CONNECT is in `connect`, messages go through `deliver`, subscriptions are in `subscribe`.

mod access;
mod connect;
mod connection;
mod deliver;
mod durable;
mod holds;
mod message;
mod record;
mod reload;
mod retained;
mod routes;
mod session;
mod subscribe;
mod sys;
pub mod testing;

use std::collections::{BTreeMap, HashMap};

pub use access::{Acl, AclError, Auth, Origin};
pub use durable::{Change, Changes, Class, DurableTopics, Key};
pub use holds::{Holder, Notice};
pub use record::fuzz_records;

use crate::{
    limits::*,
    packet::{self, DecodeError, Packet, Version, reason},
    property::Properties,
};
use connection::{Connection, Phase};
use message::Templates;
use retained::Retained;
use routes::{Routes, SessionAt};
use session::Session;

/// The place of a connection in the low 32 bits ([`slot`]), and how often the place was used in the high ones.
pub type ConnectionId = u64;

/// The place of a connection: small numbers, used again.
pub fn slot(id: ConnectionId) -> usize {
    id as u32 as usize
}

/// A connection that begins otherwise (HTTP, TLS) is closed at once.
const CONNECT_FIRST_BYTE: u8 = 0x10;

/// What bounds this broker; the rest is in [`crate::limits`].
#[derive(Clone, Debug)]
pub struct Limits {
    pub connections_max: usize,
    /// Sessions that outlive their connection.
    pub sessions_max: usize,
    pub session_expiry_s_max: u32,
    /// The same for MQTT 3.1.1, whose clients cannot say how long they want theirs.
    pub session_expiry_v3_s: u32,
    pub packet_bytes_max: usize,
    pub queue_bytes_max: usize,
    pub queues_bytes_max: usize,
    pub retained_max: usize,
    pub retained_bytes_max: usize,
    /// A client may ask for less. 0: no bound.
    pub keep_alive_s_max: u16,
    /// A full session without a connection is waited for until its client is back or it expires: nothing is lost. False: it ends
    /// when somebody has waited for it for 10 s, and what it holds is lost.
    pub wait_for_sessions: bool,
    /// Beginnings of topics on which the node itself speaks: sessions that outlive their connection get them at QoS 0.
    pub node_topics: &'static [&'static str],
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: CONNECTIONS_MAX,
            sessions_max: SESSIONS_MAX,
            session_expiry_s_max: SESSION_EXPIRY_S_MAX,
            session_expiry_v3_s: SESSION_EXPIRY_V3_S,
            packet_bytes_max: PACKET_BYTES_MAX,
            queue_bytes_max: BROKER_QUEUE_BYTES_MAX,
            queues_bytes_max: BROKER_QUEUES_BYTES_MAX,
            retained_max: RETAINED_MAX,
            retained_bytes_max: RETAINED_BYTES_MAX,
            keep_alive_s_max: 0,
            wait_for_sessions: true,
            node_topics: &[],
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub connections: usize,
    /// With and without a connection.
    pub sessions: usize,
    pub subscriptions: usize,
    pub retained: usize,
    pub retained_bytes: usize,
    /// In the queues of all sessions.
    pub queued_bytes: usize,
    pub received: u64,
    pub delivered: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// QoS 0 messages dropped because a subscriber's queue was full, and messages larger than their subscriber takes.
    pub dropped: u64,
    /// Messages that expired before they were delivered.
    pub expired: u64,
    /// Messages not retained because the store of retained messages was full.
    pub not_retained: u64,
    /// Connections refused or closed for a breach of protocol, silence or a stall.
    pub closed_by_broker: u64,
    /// Kept sessions that were ended because they were full and stood still.
    pub sessions_ended: u64,
    /// Connections whose publisher waits for a subscriber.
    pub blocked: usize,
    /// Messages of MQTT 5 clients that were refused because a session is full and its client away.
    pub refused: u64,
    /// Full sessions that others have waited for too long.
    pub holding: usize,
}

/// A password to check.
#[derive(Debug)]
pub struct Check {
    pub connection: ConnectionId,
    pub user: String,
    pub password: Vec<u8>,
}

#[derive(Debug)]
pub struct Broker {
    limits: Limits,
    auth: Auth,
    connections: Vec<Option<Box<Connection>>>,
    connections_free: Vec<u32>,
    connections_count: usize,
    generation: u64,
    sessions: Vec<Option<Box<Session>>>,
    sessions_free: Vec<SessionAt>,
    names: HashMap<Box<str>, SessionAt>,
    kept_count: usize,
    routes: Routes,
    retained: Retained,
    templates: Templates,
    pending: durable::Pending,
    checks: Vec<Check>,
    touched: Vec<ConnectionId>,
    notices: Vec<Notice>,
    /// Publishers that wait.
    blocked: Vec<ConnectionId>,
    /// Something that a publisher may have waited for has changed.
    is_freed: bool,
    /// Connections with answers, and sessions with messages, that wait for the disk.
    waiting_connections: Vec<ConnectionId>,
    waiting_sessions: Vec<SessionAt>,
    queued_bytes: usize,
    partial_bytes: usize,
    spare: Vec<Vec<u8>>,
    sys: sys::Sys,
    stats: Stats,
}

/// What became of a packet.
enum Step {
    Done,
    /// A subscriber is behind: handle the same packet again later.
    Wait,
    /// Without a will: the client said good-bye.
    Leave,
    /// With a reason for MQTT 5.
    Fail(u8),
}

impl Broker {
    pub fn new(limits: Limits, auth: Auth) -> Broker {
        Broker::with_disk(limits, auth, DurableTopics::default(), false)
    }

    /// With a disk: changes come out of [`Broker::take_changes`]. Without one there are none, and nothing waits for them.
    pub fn with_disk(limits: Limits, auth: Auth, topics: DurableTopics, disk: bool) -> Broker {
        Broker {
            retained: Retained::new(limits.retained_max, limits.retained_bytes_max),
            limits,
            auth,
            connections: Vec::new(),
            connections_free: Vec::new(),
            connections_count: 0,
            generation: 0,
            sessions: Vec::new(),
            sessions_free: Vec::new(),
            names: HashMap::new(),
            kept_count: 0,
            routes: Routes::new(topics),
            templates: Templates::default(),
            pending: durable::Pending::new(disk),
            checks: Vec::new(),
            touched: Vec::new(),
            notices: Vec::new(),
            blocked: Vec::new(),
            is_freed: false,
            waiting_connections: Vec::new(),
            waiting_sessions: Vec::new(),
            queued_bytes: 0,
            partial_bytes: 0,
            spare: Vec::new(),
            sys: sys::Sys::default(),
            stats: Stats::default(),
        }
    }

    /// A new socket. `None` when there are as many connections as allowed: close it.
    pub fn accept(&mut self, now_ms: u64, origin: Origin) -> Option<ConnectionId> {
        if self.connections_count >= self.limits.connections_max {
            self.stats.closed_by_broker += 1;
            return None;
        }
        let at = self.connections_free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() as u32 - 1
        });
        self.generation += 1;
        let id = self.generation << 32 | u64::from(at);
        self.connections[at as usize] = Some(Box::new(Connection::new(id, origin, now_ms)));
        self.connections_count += 1;
        Some(id)
    }

    fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections.get_mut(slot(id))?.as_deref_mut().filter(|connection| connection.id == id)
    }

    fn session(&mut self, at: SessionAt) -> Option<&mut Session> {
        self.sessions.get_mut(at as usize)?.as_deref_mut()
    }

    /// Bytes from a socket. When [`Broker::wants_more`] is false afterwards, the shell must not read until it is true again.
    pub fn receive(&mut self, now_ms: u64, id: ConnectionId, bytes: &[u8]) {
        self.stats.bytes_received += bytes.len() as u64;
        let Some(connection) = self.connection(id) else { return };
        connection.heard_ms = now_ms;
        if connection.input.is_empty() {
            let used = self.process(now_ms, id, bytes);
            self.keep_input(now_ms, id, &bytes[used..]);
        } else if connection.blocked_since_ms.is_some() {
            connection.input.extend_from_slice(bytes);
            self.partial_bytes += bytes.len();
            self.skim(now_ms, id);
        } else {
            connection.input.extend_from_slice(bytes);
            self.partial_bytes += bytes.len();
            self.process_input(now_ms, id);
        }
        self.resume(now_ms);
    }

    /// Keeps what is not a whole packet yet, or what waits.
    fn keep_input(&mut self, now_ms: u64, id: ConnectionId, rest: &[u8]) {
        let Some(connection) = self.connection(id) else { return };
        if rest.is_empty() || connection.phase == Phase::Closing {
            return;
        }
        connection.input.extend_from_slice(rest);
        connection.skimmed = 0;
        self.partial_bytes += rest.len();
        self.skim(now_ms, id);
    }

    fn process_input(&mut self, now_ms: u64, id: ConnectionId) {
        let Some(connection) = self.connection(id) else { return };
        let mut input = std::mem::take(&mut connection.input);
        let used = self.process(now_ms, id, &input);
        let too_much = self.partial_bytes > PARTIAL_BYTES_MAX;
        let alive = self.connection(id).is_some_and(|connection| connection.phase != Phase::Closing);
        if !alive {
            self.partial_bytes -= input.len();
            return;
        }
        self.partial_bytes -= used;
        input.drain(..used);
        let len = input.len();
        if len == 0 {
            input = Vec::new();
        }
        let Some(connection) = self.connection(id) else { return };
        connection.input = input;
        connection.skimmed = 0;
        if too_much && len > PARTIAL_BYTES_FREE && connection.blocked_since_ms.is_none() {
            self.fail(now_ms, id, reason::SERVER_BUSY);
        } else {
            self.skim(now_ms, id);
        }
    }

    /// Handles packet after packet; returns how many bytes were used.
    fn process(&mut self, now_ms: u64, id: ConnectionId, bytes: &[u8]) -> usize {
        let mut used = 0;
        while used < bytes.len() {
            let bytes_max = self.limits.packet_bytes_max;
            let Some(connection) = self.connection(id) else { break };
            let is_first = matches!(connection.phase, Phase::New | Phase::Checked(_));
            if connection.phase == Phase::Closing {
                break;
            }
            if is_first && bytes[used] != CONNECT_FIRST_BYTE {
                self.fail(now_ms, id, reason::PROTOCOL);
                break;
            }
            let step = match packet::decode_as(connection.version, &bytes[used..], bytes_max) {
                Ok(None) => break,
                Ok(Some((packet, len))) => match self.handle(now_ms, id, &packet) {
                    Step::Done => {
                        if let Some(connection) = self.connection(id) {
                            connection.held_since_ms = None;
                        }
                        used += len;
                        continue;
                    }
                    step => step,
                },
                Err(error) => self.undecodable(id, &error),
            };
            match step {
                Step::Wait => self.block(now_ms, id),
                Step::Leave => self.close(now_ms, id, false, None),
                Step::Fail(code) => self.fail(now_ms, id, code),
                Step::Done => {}
            }
            break;
        }
        used
    }

    fn undecodable(&mut self, id: ConnectionId, error: &DecodeError) -> Step {
        if let (DecodeError::ProtocolLevel(_), Some(connection)) = (error, self.connection(id)) {
            let code = access::connack_code(connection.version, reason::UNSUPPORTED_VERSION);
            let properties = Properties::default();
            connection.reply(&Packet::ConnAck { session_present: false, code, properties });
        }
        Step::Fail(error.reason())
    }

    fn handle(&mut self, now_ms: u64, id: ConnectionId, packet: &Packet<'_>) -> Step {
        let Some(connection) = self.connection(id) else { return Step::Leave };
        let session = match (connection.phase, connection.session) {
            (Phase::Up, Some(session)) => session,
            (Phase::Checking, _) => return Step::Wait,
            (Phase::New | Phase::Checked(_), _) => {
                return match packet {
                    Packet::Connect(connect) => self.connect(now_ms, id, connect),
                    _ => Step::Fail(reason::PROTOCOL),
                };
            }
            _ => return Step::Leave,
        };
        self.confirm(session);
        let Some(connection) = self.connection(id) else { return Step::Leave };
        match packet {
            Packet::Publish(publish) => return self.publish(now_ms, id, session, publish),
            Packet::Subscribe { id: message, filters, properties } => {
                return self.subscribe(now_ms, id, session, *message, filters, *properties);
            }
            Packet::Unsubscribe { id: message, filters } => {
                return self.unsubscribe(id, session, *message, filters);
            }
            Packet::PubAck(_) | Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_) => {
                return self.acknowledge(now_ms, id, session, packet);
            }
            Packet::PingReq => connection.reply(&Packet::PingResp),
            Packet::Disconnect { reason: code, properties } => {
                return self.disconnect(now_ms, id, session, *code, *properties);
            }
            _ => return Step::Fail(reason::PROTOCOL),
        }
        self.touch(id);
        Step::Done
    }

    /// A waiting publisher's acknowledgements are taken out of order: else two clients that answer each other could wait for
    /// each other for ever. The order of publishes is kept.
    fn skim(&mut self, now_ms: u64, id: ConnectionId) {
        let bytes_max = self.limits.packet_bytes_max;
        let Some(connection) = self.connection(id) else { return };
        if connection.blocked_since_ms.is_none() || connection.phase != Phase::Up {
            return;
        }
        let Some(session) = connection.session else { return };
        let version = connection.version;
        let mut input = std::mem::take(&mut connection.input);
        let mut at = connection.skimmed;
        // A packet that cannot be decoded is met again, and answered, when it is its turn.
        while let Ok(Some((packet, len))) = packet::decode_as(version, &input[at..], bytes_max) {
            let is_taken = match &packet {
                Packet::PubAck(_) | Packet::PubRec(_) | Packet::PubComp(_) => {
                    matches!(self.acknowledge(now_ms, id, session, &packet), Step::Done)
                }
                Packet::PingReq => self.connection(id).map(|found| found.reply(&Packet::PingResp)).is_some(),
                _ => false,
            };
            if is_taken {
                input.drain(at..at + len);
                self.partial_bytes -= len;
                self.touch(id);
            } else {
                at += len;
            }
        }
        match self.connection(id).filter(|connection| connection.phase != Phase::Closing) {
            Some(connection) => {
                connection.skimmed = at;
                connection.input = input;
            }
            None => self.partial_bytes -= input.len(),
        }
    }

    fn block(&mut self, now_ms: u64, id: ConnectionId) {
        let Some(connection) = self.connection(id) else { return };
        if connection.waits_for.is_some() {
            connection.held_since_ms.get_or_insert(now_ms);
        }
        if connection.blocked_since_ms.is_none() {
            connection.blocked_since_ms = Some(now_ms);
            self.blocked.push(id);
        }
    }

    /// Tries again what waits for subscribers, the disk or a password.
    fn resume(&mut self, now_ms: u64) {
        // Each round may free more; a round without progress ends it.
        while std::mem::take(&mut self.is_freed) && !self.blocked.is_empty() {
            for id in std::mem::take(&mut self.blocked) {
                let Some(connection) = self.connection(id) else { continue };
                connection.blocked_since_ms = None;
                connection.waits_for = None;
                // It waited for us, not the other way round.
                connection.heard_ms = now_ms;
                self.touch(id);
                self.process_input(now_ms, id);
            }
        }
    }

    /// Too much waits for the disk: who asks for more of it waits.
    fn disk_is_behind(&self) -> bool {
        self.pending.bytes >= CHANGES_BYTES_MAX
    }

    /// True when the connection may be read: it exists, reads what it is answered, and does not wait with as much as is kept of
    /// one that waits.
    pub fn wants_more(&self, id: ConnectionId) -> bool {
        let found = self.connections.get(slot(id)).and_then(Option::as_ref);
        found.filter(|connection| connection.id == id).is_some_and(|connection| {
            let held_max = HELD_BYTES_MAX.min(PARTIAL_BYTES_MAX / (1 + self.blocked.len()));
            let may_wait = connection.phase == Phase::Up && connection.input.len() < held_max;
            connection.phase != Phase::Closing
                && connection.unread_bytes() < ANSWERS_BYTES_MAX
                && (connection.blocked_since_ms.is_none() || may_wait)
        })
    }

    /// Bytes for the socket; the shell removes what it has written and then calls [`Broker::wrote`]. `None`: close the socket.
    pub fn output(&mut self, id: ConnectionId) -> Option<&mut Vec<u8>> {
        let connection = self.connection(id)?;
        if connection.phase == Phase::Closing && connection.output.is_empty() {
            self.remove(id);
            return None;
        }
        self.connection(id).map(|connection| &mut connection.output)
    }

    /// The shell has written so many bytes: there may be room for what waits.
    pub fn wrote(&mut self, now_ms: u64, id: ConnectionId, len: usize) {
        self.stats.bytes_sent += len as u64;
        let Some(connection) = self.connection(id) else { return };
        if connection.output.is_empty() && connection.output.capacity() > 0 {
            let buffer = std::mem::take(&mut connection.output);
            if self.spare.len() < SPARE_BUFFERS_MAX && buffer.capacity() <= 2 * BROKER_OUTPUT_BYTES_MAX {
                self.spare.push(buffer);
            }
        }
        let Some(connection) = self.connection(id) else { return };
        if connection.phase == Phase::Closing {
            self.touch(id);
        } else if let Some(at) = connection.session {
            if len >= MOVEMENT_BYTES_MIN
                && let Some(session) = self.session(at)
            {
                session.moved_ms = now_ms;
            }
            self.pump(now_ms, at);
        }
        self.resume(now_ms);
    }

    /// The socket is gone. A connection that did not say good-bye has its will published.
    pub fn closed(&mut self, now_ms: u64, id: ConnectionId) {
        self.close(now_ms, id, true, None);
        self.remove(id);
        self.resume(now_ms);
    }

    /// What the shell found out of a [`Check`].
    pub fn checked(&mut self, now_ms: u64, id: ConnectionId, is_right: bool) {
        if let Some(connection) = self.connection(id)
            && connection.phase == Phase::Checking
        {
            connection.phase = Phase::Checked(is_right);
            self.is_freed = true;
        }
        self.resume(now_ms);
    }

    /// Passwords to check since the last call.
    pub fn take_checks(&mut self) -> Vec<Check> {
        std::mem::take(&mut self.checks)
    }

    pub fn has_checks(&self) -> bool {
        !self.checks.is_empty()
    }

    /// Who is at the other end was found out after it was accepted, and before it sent anything.
    pub fn set_origin(&mut self, id: ConnectionId, origin: Origin) {
        if let Some(connection) = self.connection(id) {
            connection.origin = origin;
        }
    }

    /// A connection that has output, or must be closed; each is named once until it is asked for.
    pub fn next_touched(&mut self) -> Option<ConnectionId> {
        loop {
            let id = self.touched.pop()?;
            if let Some(connection) = self.connection(id) {
                connection.is_touched = false;
                return Some(id);
            }
        }
    }

    fn touch(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connection(id)
            && !connection.is_touched
        {
            connection.is_touched = true;
            self.touched.push(id);
        }
    }

    /// Changes for the disk since the last call, as one commit.
    pub fn take_changes(&mut self) -> Changes {
        self.pending.take()
    }

    pub fn has_changes(&self) -> bool {
        !self.pending.is_empty()
    }

    /// All changes up to this number are on the disk: what waited for them goes on.
    pub fn persisted(&mut self, now_ms: u64, number: u64) {
        self.pending.done = self.pending.done.max(number);
        let done = self.pending.done;
        for id in std::mem::take(&mut self.waiting_connections) {
            let Some(connection) = self.connection(id) else { continue };
            connection.release(done);
            let (waits, session) = (!connection.held.is_empty(), connection.session);
            self.touch(id);
            if waits {
                self.waiting_connections.push(id);
            }
            if let Some(session) = session {
                self.pump(now_ms, session);
            }
        }
        for session in std::mem::take(&mut self.waiting_sessions) {
            self.pump(now_ms, session);
        }
        self.is_freed = true;
        self.resume(now_ms);
    }

    /// Ends a connection for a fault of its client.
    fn fail(&mut self, now_ms: u64, id: ConnectionId, code: u8) {
        self.stats.closed_by_broker += 1;
        let client = self.name_of(id);
        self.notice(Notice::Closed { connection: id, client, reason: code });
        self.close(now_ms, id, true, Some(code));
    }

    /// Lets the shell write what is in the output, then close. The session goes on or ends, and the will is published or not.
    fn close(&mut self, now_ms: u64, id: ConnectionId, will: bool, code: Option<u8>) {
        let Some(connection) = self.connection(id) else { return };
        if connection.phase == Phase::Closing {
            return;
        }
        if let (Phase::Up, Version::V5, Some(reason)) = (connection.phase, connection.version, code) {
            // What waits for the disk is not promised any more.
            connection.held.clear();
            connection.reply(&Packet::Disconnect { reason, properties: Properties::default() });
        }
        connection.phase = Phase::Closing;
        let partial = std::mem::take(&mut connection.input).len();
        let said = connection.will.take().filter(|_| will);
        let session = connection.session.take();
        self.partial_bytes -= partial;
        self.blocked.retain(|blocked| *blocked != id);
        self.touch(id);
        if let Some(session) = session {
            self.detach(now_ms, session, said);
        }
    }

    fn remove(&mut self, id: ConnectionId) {
        if self.connection(id).is_none() {
            return;
        }
        self.connections[slot(id)] = None;
        self.connections_free.push(slot(id) as u32);
        self.connections_count -= 1;
    }

    /// Closes what is silent or stuck, ends what has expired. Call at least once per second.
    pub fn tick(&mut self, now_ms: u64) {
        for at in 0..self.connections.len() {
            let Some(connection) = &self.connections[at] else { continue };
            let silent_s = u64::from(connection.keep_alive_s) * 1500;
            let silent = match connection.phase {
                Phase::New | Phase::Checking | Phase::Checked(_) => CONNECT_MS_MAX,
                // 0 is the client's wish never to be missed; the number of connections is bounded anyway.
                Phase::Up if connection.keep_alive_s > 0 && connection.blocked_since_ms.is_none() => silent_s,
                // A reader that takes nothing must not keep its place.
                Phase::Closing => STALL_MS_MAX,
                _ => continue,
            };
            if now_ms < connection.heard_ms + silent {
                continue;
            }
            let id = connection.id;
            match connection.phase {
                // The shell closes it when it asks for more.
                Phase::Closing => {
                    if let Some(connection) = self.connection(id) {
                        connection.output = Vec::new();
                    }
                    self.touch(id);
                }
                _ => self.fail(now_ms, id, reason::KEEP_ALIVE),
            }
        }
        for at in 0..self.sessions.len() {
            self.tick_session(now_ms, at as SessionAt);
        }
        self.tick_holds(now_ms);
        self.retained.expire(now_ms);
        for topic in self.retained.take_due(now_ms) {
            self.write_retained(now_ms, &topic, false);
        }
        self.publish_figures(now_ms);
        self.is_freed = true;
        self.resume(now_ms);
    }

    /// Notes everything that is not on the disk yet, for a stop that is not a power cut, and tells MQTT 5 clients.
    pub fn stop(&mut self, now_ms: u64) {
        let open: Vec<ConnectionId> = self.connections.iter().flatten().map(|found| found.id).collect();
        for id in open {
            self.close(now_ms, id, true, Some(reason::SHUTTING_DOWN));
        }
        for topic in self.retained.take_due(u64::MAX) {
            self.write_retained(now_ms, &topic, true);
        }
        for at in 0..self.sessions.len() {
            self.write_queue(now_ms, at as SessionAt);
        }
    }

    /// Messages that wait for a client, sent or not.
    pub fn queued(&self, client_id: &str) -> usize {
        let session = self.names.get(client_id).and_then(|at| self.sessions[*at as usize].as_ref());
        session.map_or(0, |session| session.queue.len() + session.in_flight.len())
    }

    pub fn stats(&self) -> Stats {
        Stats {
            connections: self.connections_count,
            sessions: self.names.len(),
            subscriptions: self.routes.len(),
            retained: self.retained.len(),
            retained_bytes: self.retained.bytes(),
            queued_bytes: self.queued_bytes,
            blocked: self.blocked.len(),
            ..self.stats
        }
    }
}

/// Total on any bytes: three connections of both versions are fed pieces of the input, and the bounds hold.
pub fn fuzz_broker(data: &[u8]) {
    let limits = Limits { connections_max: 4, packet_bytes_max: 8192, sessions_max: 2, ..Limits::default() };
    let topics = DurableTopics { sync: vec!["a/#".into()], lazy: vec!["t".into()] };
    let mut broker = Broker::with_disk(limits, Auth::default(), topics.clone(), true);
    let mut disk = BTreeMap::new();
    let mut ids = Vec::new();
    for (at, piece) in data.chunks(24).enumerate() {
        let now_ms = at as u64 * 100;
        if at % 5 == 0 {
            ids.extend(broker.accept(now_ms, Origin::Local));
        }
        let Some(id) = ids.get(at % 3 % ids.len().max(1)).copied() else { continue };
        if broker.wants_more(id) {
            broker.receive(now_ms, id, piece);
        }
        while let Some(id) = broker.next_touched() {
            let len = broker.output(id).map(std::mem::take).map_or(0, |output| output.len());
            broker.wrote(now_ms, id, len);
        }
        let changes = broker.take_changes();
        testing::apply(&mut disk, changes.changes);
        broker.persisted(now_ms, changes.number);
        broker.tick(now_ms);
        assert!(broker.stats().connections <= 4);
    }
    broker.stop(0);
    testing::apply(&mut disk, broker.take_changes().changes);
    let mut again = Broker::with_disk(Limits::default(), Auth::default(), topics, true);
    assert_eq!(again.restore(0, disk), 0, "what the broker has written it can read");
}

#[cfg(test)]
mod holds_tests;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod v5_tests;
