//! CONNECT, DISCONNECT, and the lives of sessions: made, taken up again, left, ended.

use super::{
    Broker, Check, ConnectionId, Key, Step,
    access::{Verdict, connack_code},
    connection::{Phase, Will},
    record,
    routes::SessionAt,
    session::{PendingWill, Session},
};
use crate::{
    limits::*,
    packet::{Connect, Packet, Qos, Version, reason},
    property::{self, Properties},
};

impl Broker {
    pub(super) fn connect(&mut self, now_ms: u64, id: ConnectionId, connect: &Connect<'_>) -> Step {
        if self.disk_is_behind() {
            return Step::Wait;
        }
        let Some(connection) = self.connections.get_mut(super::slot(id)).and_then(Option::as_mut) else {
            return Step::Leave;
        };
        connection.version = connect.version;
        let checked = match connection.phase {
            Phase::Checked(is_right) => Some(is_right),
            _ => None,
        };
        // MQTT-4.12.0-1: a method that is not supported is refused; none is.
        if connect.properties.has(property::AUTHENTICATION_METHOD) {
            return self.refuse(id, reason::BAD_AUTHENTICATION_METHOD);
        }
        // Section 3.1.2.11.10.
        if connect.properties.has(property::AUTHENTICATION_DATA) {
            return self.refuse(id, reason::PROTOCOL);
        }
        let user = match self.auth.admit(&connection.origin, connect, checked) {
            Verdict::Allow { rights, user } => {
                connection.rights = rights;
                user
            }
            Verdict::Deny(code) => return self.refuse(id, code),
            Verdict::Ask => {
                connection.phase = Phase::Checking;
                self.checks.push(Check {
                    connection: id,
                    user: connect.username.unwrap_or_default().to_owned(),
                    password: connect.password.unwrap_or_default().to_vec(),
                });
                return Step::Wait;
            }
        };
        let is_nameless = connect.client_id.is_empty();
        // MQTT-3.1.3-8: without a name there is no session to keep; MQTT 5 gives one.
        let needs_name = is_nameless && connect.version == Version::V3 && !connect.clean_session;
        if needs_name || connect.client_id.len() > CLIENT_ID_BYTES_MAX {
            return self.refuse(id, reason::CLIENT_ID);
        }
        if let Some(will) = &connect.will
            && will.topic.len() + will.payload.len() > WILL_BYTES_FREE
            && self.wills_bytes() > WILLS_BYTES_MAX
        {
            return self.refuse(id, reason::QUOTA);
        }
        let assigned = is_nameless.then(|| format!("kinglet-{:x}-{id:x}", self.sys.epoch()));
        let name = assigned.as_deref().unwrap_or(connect.client_id);
        let wanted_s = match connect.version {
            Version::V3 if connect.clean_session => 0,
            Version::V3 => self.limits.session_expiry_v3_s,
            Version::V5 => connect.properties.number(property::SESSION_EXPIRY).unwrap_or(0),
        };
        let expiry_s = wanted_s.min(self.limits.session_expiry_s_max);

        let before = self.names.get(name).copied();
        if let Some(before) = before {
            let owner = self.session(before).and_then(|session| session.user.as_deref());
            if owner != user.as_deref() {
                return self.refuse(id, reason::CLIENT_ID);
            }
            // MQTT-3.1.4-3: the other connection of this client ends.
            if let Some(other) = self.session(before).and_then(|session| session.connection) {
                self.close(now_ms, other, true, Some(reason::TAKEN_OVER));
            }
        }
        let mut before = self.names.get(name).copied();
        let is_unknown = before.and_then(|at| self.session(at)).is_some_and(|session| !session.is_confirmed);
        if is_unknown && let Some(session) = before.and_then(|at| self.session(at)) {
            // Its client is back in time (MQTT-3.1.3-9).
            session.will = None;
        }
        if (connect.clean_session || is_unknown)
            && let Some(old) = before.take()
        {
            self.end_session(now_ms, old);
        }
        let was_kept = before.and_then(|at| self.session(at)).is_some_and(|session| session.is_kept());
        if expiry_s > 0 && !was_kept && self.kept_count >= self.limits.sessions_max {
            return self.refuse(id, reason::QUOTA);
        }
        let at = before.unwrap_or_else(|| self.make_session(now_ms, name, user.as_deref()));
        // Who asks for a new session does not take it for an old one.
        if connect.clean_session
            && let Some(session) = self.session(at)
        {
            session.is_confirmed = true;
        }
        self.attach(now_ms, id, at, expiry_s, connect);
        self.greet(now_ms, id, at, before.is_some(), assigned.as_deref(), expiry_s != wanted_s);
        Step::Done
    }

    fn wills_bytes(&self) -> usize {
        self.connections
            .iter()
            .flatten()
            .filter_map(|found| found.will.as_ref())
            .map(|will| will.message.len())
            .sum()
    }

    fn refuse(&mut self, id: ConnectionId, code: u8) -> Step {
        if let Some(connection) = self.connection(id) {
            let code = connack_code(connection.version, code);
            connection.reply(&Packet::ConnAck {
                session_present: false,
                code,
                properties: Properties::default(),
            });
        }
        Step::Fail(code)
    }

    pub(super) fn make_session(&mut self, now_ms: u64, name: &str, user: Option<&str>) -> SessionAt {
        let at = self.sessions_free.pop().unwrap_or_else(|| {
            self.sessions.push(None);
            self.sessions.len() as SessionAt - 1
        });
        self.sessions[at as usize] = Some(Box::new(Session::new(name, user.map(Into::into), now_ms)));
        self.names.insert(name.into(), at);
        at
    }

    fn attach(&mut self, now_ms: u64, id: ConnectionId, at: SessionAt, expiry_s: u32, connect: &Connect<'_>) {
        let keep_alive_max = self.limits.keep_alive_s_max;
        let is_own = self.auth.node_clients.iter().any(|own| own == connect.client_id);
        if let Some(connection) = self.connection(id) {
            let number = |id| connect.properties.number(id).map(|number| number as usize);
            let receive_max = number(property::RECEIVE_MAXIMUM).unwrap_or(usize::MAX);
            connection.receive_max = receive_max.min(BROKER_IN_FLIGHT_MAX);
            connection.packet_bytes_max = number(property::MAXIMUM_PACKET).unwrap_or(usize::MAX);
            connection.aliases_out.allow(number(property::TOPIC_ALIAS_MAXIMUM).unwrap_or(0) as u32);
            connection.is_own = is_own;
            connection.keep_alive_s = match connect.keep_alive_s {
                0 => keep_alive_max,
                given if keep_alive_max > 0 => given.min(keep_alive_max),
                given => given,
            };
            connection.will = connect.will.as_ref().map(|will| {
                let message = super::deliver::message_of_will(will);
                let number = |id| will.properties.number(id);
                let delay_s = number(property::WILL_DELAY).unwrap_or(0);
                Box::new(Will { message, delay_s, expiry_s: number(property::MESSAGE_EXPIRY) })
            });
            connection.session = Some(at);
            connection.phase = Phase::Up;
        }
        self.set_expiry(at, expiry_s);
        let Some(session) = self.session(at) else { return };
        session.connection = Some(id);
        session.will = None;
        session.moved_ms = now_ms;
        session.full_since_ms = session.full_since_ms.map(|_| now_ms);
        self.revoke(id, at);
        self.write_session(at);
    }

    /// The client of a new session has sent something: from now on the session is kept.
    pub(super) fn confirm(&mut self, at: SessionAt) {
        if let Some(session) = self.session(at)
            && !std::mem::replace(&mut session.is_confirmed, true)
        {
            self.write_session(at);
        }
    }

    /// Subscriptions that the rights of today do not allow any more end.
    pub(super) fn revoke(&mut self, id: ConnectionId, at: SessionAt) {
        let Some(rights) = self.connection(id).map(|connection| connection.rights.clone()) else { return };
        let Some(session) = self.session(at) else { return };
        let may = |filter: &str| {
            super::routes::parse_shared(filter).is_some_and(|(_, filter)| rights.may_read(filter))
        };
        let lost: Vec<Box<str>> = session.filters.iter().filter(|filter| !may(filter)).cloned().collect();
        for filter in lost {
            self.remove_filter(at, &filter);
        }
    }

    pub(super) fn set_expiry(&mut self, at: SessionAt, expiry_s: u32) {
        let Some(session) = self.session(at) else { return };
        let was_kept = session.is_kept();
        session.expiry_s = expiry_s;
        let is_kept = session.is_kept();
        if was_kept && !is_kept && session.is_confirmed {
            self.erase(at);
        }
        self.kept_count += usize::from(is_kept);
        self.kept_count -= usize::from(was_kept);
    }

    /// CONNACK: at once, or when the session is on the disk.
    fn greet(
        &mut self,
        now_ms: u64,
        id: ConnectionId,
        at: SessionAt,
        session_present: bool,
        assigned: Option<&str>,
        expiry_reduced: bool,
    ) {
        let (after, done) = (self.pending.last, self.pending.done);
        let packet_bytes_max = self.limits.packet_bytes_max as u32;
        let keep_alive_max = self.limits.keep_alive_s_max;
        let expiry_s = self.session(at).map_or(0, |session| session.expiry_s);
        let Some(connection) = self.connection(id) else { return };
        let mut bytes = Vec::new();
        if connection.version == Version::V5 {
            property::put_number(&mut bytes, property::RECEIVE_MAXIMUM, QOS2_IDS_MAX as u32);
            property::put_number(&mut bytes, property::MAXIMUM_PACKET, packet_bytes_max);
            property::put_number(&mut bytes, property::TOPIC_ALIAS_MAXIMUM, TOPIC_ALIASES_MAX as u32);
            if expiry_reduced {
                property::put_number(&mut bytes, property::SESSION_EXPIRY, expiry_s);
            }
            if let Some(assigned) = assigned {
                property::put_text(&mut bytes, property::ASSIGNED_CLIENT_ID, assigned);
            }
            if keep_alive_max > 0 {
                let seconds = connection.keep_alive_s.into();
                property::put_number(&mut bytes, property::SERVER_KEEP_ALIVE, seconds);
            }
        }
        let properties = Properties::new(&bytes);
        // Without a session on the disk, before or now, nothing was promised.
        let after = if expiry_s > 0 { after } else { 0 };
        connection.up_after = after;
        connection.reply_after(after, done, &Packet::ConnAck { session_present, code: 0, properties });
        if after > done {
            self.waiting_connections.push(id);
        }
        self.touch(id);
        self.pump(now_ms, at);
    }

    pub(super) fn disconnect(
        &mut self,
        now_ms: u64,
        id: ConnectionId,
        at: SessionAt,
        code: u8,
        properties: Properties<'_>,
    ) -> Step {
        if let Some(wanted_s) = properties.number(property::SESSION_EXPIRY) {
            let expiry_s = wanted_s.min(self.limits.session_expiry_s_max);
            let is_kept = self.session(at).is_some_and(|session| session.is_kept());
            // MQTT-3.1.2-23: a session that was to end with the connection cannot be kept afterwards.
            if !is_kept && expiry_s > 0 {
                return Step::Fail(reason::PROTOCOL);
            }
            self.set_expiry(at, expiry_s);
            self.write_session(at);
        }
        if code != reason::SUCCESS {
            self.close(now_ms, id, true, None);
            return Step::Done;
        }
        Step::Leave
    }

    /// The session has lost its connection.
    pub(super) fn detach(&mut self, now_ms: u64, at: SessionAt, will: Option<Box<Will>>) {
        let Some(session) = self.session(at) else { return };
        session.connection = None;
        session.sent = 0;
        // One that its client knows nothing of may still have a will to wait for.
        let has_delay = will.as_ref().is_some_and(|will| will.delay_s > 0);
        let is_kept = session.is_kept() && (session.is_confirmed || has_delay);
        session.ends_at_ms = match session.expiry_s {
            u32::MAX => u64::MAX,
            seconds => now_ms + u64::from(seconds) * 1000,
        };
        let ends_at_ms = session.ends_at_ms;
        if is_kept {
            let before = session.queue_bytes;
            // Of QoS 0 only what is live is of use.
            let queue = std::mem::take(&mut session.queue);
            session.queue_bytes = 0;
            let worth = queue.into_iter().filter(|waiting| waiting.qos != Qos::AtMostOnce);
            for waiting in worth {
                session.queue_bytes += waiting.cost();
                session.queue.push_back(waiting);
            }
            let freed = before - session.queue_bytes;
            self.queued_bytes -= freed;
            self.is_freed |= freed > 0;
        }
        if let Some(will) = will {
            let at_ms = if is_kept { now_ms + u64::from(will.delay_s) * 1000 } else { now_ms };
            match at_ms > now_ms {
                true => {
                    let (message, at_ms) =
                        (will.message.expiring(at_ms, will.expiry_s), at_ms.min(ends_at_ms));
                    if let Some(session) = self.session(at) {
                        session.will = Some(Box::new(PendingWill { message, at_ms }));
                    }
                }
                false => self.publish_kept(now_ms, will.message.expiring(now_ms, will.expiry_s)),
            }
        }
        if !is_kept {
            self.end_session(now_ms, at);
        }
    }

    pub(super) fn end_session(&mut self, now_ms: u64, at: SessionAt) {
        if let Some(will) = self.session(at).and_then(|session| session.will.take()) {
            self.publish_kept(now_ms, will.message);
        }
        self.notice_freed(now_ms, at);
        self.set_expiry(at, 0);
        let Some(session) = self.sessions.get_mut(at as usize).and_then(Option::take) else { return };
        for filter in &session.filters {
            if let Some((group, filter)) = super::routes::parse_shared(filter) {
                self.routes.remove(filter, group, at);
            }
        }
        self.queued_bytes -= session.queue_bytes;
        self.is_freed = true;
        self.names.remove(&session.client_id);
        self.sessions_free.push(at);
    }

    /// Ends the session of a client that is away and will not come again.
    pub fn forget(&mut self, now_ms: u64, client_id: &str) {
        if let Some(at) = self.names.get(client_id).copied()
            && self.session(at).is_some_and(|session| session.connection.is_none())
        {
            self.end_session(now_ms, at);
        }
        self.resume(now_ms);
    }

    /// Removes a kept session from the disk.
    fn erase(&mut self, at: SessionAt) {
        let Some(session) = self.sessions.get(at as usize).and_then(Option::as_ref) else { return };
        let client = session.client_id.to_string();
        let queued = session.queue.iter().map(|waiting| waiting.number);
        let numbers: Vec<u64> = queued
            .chain(session.in_flight.iter().map(|sent| sent.number))
            .filter(|number| *number > 0)
            .collect();
        let incoming: Vec<u16> = session.incoming.keys().copied().collect();
        for number in numbers {
            self.pending.note(Key::Message { client: client.clone(), number }, None, false);
        }
        for id in incoming {
            self.pending.note(Key::Incoming { client: client.clone(), id }, None, false);
        }
        self.pending.note(Key::Session(client), None, true);
    }

    /// Notes the session and its subscriptions for the disk; the change to wait for.
    pub(super) fn write_session(&mut self, at: SessionAt) -> u64 {
        self.note_session(at, true)
    }

    fn note_session(&mut self, at: SessionAt, sync: bool) -> u64 {
        let Some(session) = self.sessions.get(at as usize).and_then(Option::as_ref) else { return 0 };
        if !session.is_kept() || !session.is_confirmed || !self.pending.enabled {
            return 0;
        }
        let value = record::session(session, |filter| {
            super::routes::parse_shared(filter)
                .and_then(|(group, filter)| self.routes.get(filter, group, at))
                .cloned()
        });
        self.pending.note(Key::Session(session.client_id.to_string()), Some(value), sync)
    }

    /// Stalls, expiry and delayed wills of one session.
    pub(super) fn tick_session(&mut self, now_ms: u64, at: SessionAt) {
        let (queue_max, is_waited_for) = (self.limits.queue_bytes_max, !self.blocked.is_empty());
        let wait_for_sessions = self.limits.wait_for_sessions;
        let crowded = self.queued_bytes >= self.limits.queues_bytes_max;
        let Some(session) = self.session(at) else { return };
        session.relax();
        if session.is_kept() && session.needs_ids() {
            self.note_session(at, false);
        }
        let Some(session) = self.session(at) else { return };
        let full = session.queue_bytes >= queue_max || (crowded && session.queue_bytes >= queue_max / 8);
        session.full_since_ms = full.then(|| session.full_since_ms.unwrap_or(now_ms));
        if !full && session.holds_since_ms.is_some() {
            self.notice_freed(now_ms, at);
        }
        let Some(session) = self.session(at) else { return };
        let stands = |since: u64| now_ms >= since.max(session.moved_ms) + STALL_MS_MAX;
        let is_stuck = session.full_since_ms.is_some_and(stands);
        let due = session.will.as_ref().is_some_and(|will| will.at_ms <= now_ms);
        let (connection, ends_at_ms) = (session.connection, session.ends_at_ms);
        match connection {
            Some(id) if is_stuck => self.fail(now_ms, id, reason::QUOTA),
            None if now_ms >= ends_at_ms => self.end_session(now_ms, at),
            None if is_stuck && is_waited_for && !wait_for_sessions => {
                self.stats.sessions_ended += 1;
                self.end_session(now_ms, at);
            }
            None if due => {
                if let Some(will) = self.session(at).and_then(|session| session.will.take()) {
                    self.publish_kept(now_ms, will.message);
                }
                if self.session(at).is_some_and(|session| !session.is_confirmed) {
                    self.end_session(now_ms, at);
                }
            }
            _ => {}
        }
    }
}
