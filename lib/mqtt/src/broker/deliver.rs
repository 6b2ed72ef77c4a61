//! From a publisher to its subscribers: PUBLISH, the queues, and the acknowledgements of both sides.

use std::sync::Arc;

use super::{
    Broker, Class, ConnectionId, Key, Step,
    connection::{Connection, Phase},
    message::{self, Delivery, Message, NEVER, View},
    record,
    routes::{Route, SessionAt, Target},
    session::{InFlight, Session, Waiting},
};
use crate::{
    limits::*,
    packet::{Ack, Packet, Publish, Qos, Version, Will, reason},
    property::{self, Properties},
};

/// A message on its way to all who get it: kept in memory once, when the first one needs that.
struct Passing<'a> {
    view: View<'a>,
    kept: Option<Arc<Message>>,
    class: Class,
    /// The change that the publisher's acknowledgement waits for.
    after: u64,
}

impl Passing<'_> {
    fn keep(&mut self) -> Arc<Message> {
        self.kept.get_or_insert_with(|| Arc::new(self.view.keep())).clone()
    }
}

/// The properties that subscribers get as they came: `scratch` holds them when something in between is left out.
fn passed_on<'a>(properties: Properties<'a>, scratch: &'a mut Vec<u8>) -> &'a [u8] {
    let own = |id| matches!(id, property::TOPIC_ALIAS | property::MESSAGE_EXPIRY | property::WILL_DELAY);
    if !properties.iter().any(|(id, _)| own(id)) {
        return properties.bytes();
    }
    for (_, bytes) in properties.raw().filter(|(id, _)| !own(*id)) {
        scratch.extend_from_slice(bytes);
    }
    scratch
}

pub(super) fn message_of_will(will: &Will<'_>) -> Message {
    let mut scratch = Vec::new();
    let properties = passed_on(will.properties, &mut scratch);
    let (topic, payload, qos, retain) = (will.topic, will.payload, will.qos, will.retain);
    View { topic, payload, properties, qos, retain, expires_ms: NEVER }.keep()
}

impl Broker {
    pub(super) fn publish(
        &mut self,
        now_ms: u64,
        id: ConnectionId,
        at: SessionAt,
        publish: &Publish<'_>,
    ) -> Step {
        let Some(connection) = self.connection(id) else { return Step::Leave };
        let mut topic_of_alias = None;
        if let Some(alias) = publish.properties.number(property::TOPIC_ALIAS) {
            match resolve(&mut connection.aliases, alias as usize, publish.topic) {
                Ok(known) => topic_of_alias = known,
                Err(code) => return Step::Fail(code),
            }
        }
        // MQTT-3.3.4-6: only the broker says which subscription a message is for.
        if publish.properties.has(property::SUBSCRIPTION_ID) {
            return Step::Fail(reason::PROTOCOL);
        }
        let topic = topic_of_alias.as_deref().unwrap_or(publish.topic);
        if !connection.rights.may_write(topic) {
            self.reply_to_publish(id, publish, reason::NOT_AUTHORIZED, 0);
            return Step::Done;
        }
        let version = connection.version;
        if publish.qos == Qos::ExactlyOnce {
            let Some(session) = self.session(at) else { return Step::Leave };
            if session.incoming.contains_key(&publish.id) {
                self.reply_to_publish(id, publish, reason::SUCCESS, 0);
                return Step::Done;
            }
            let ids_max = if version == Version::V5 { QOS2_IDS_MAX } else { QOS2_IDS_V3_MAX };
            if session.incoming.len() >= ids_max {
                return Step::Fail(reason::RECEIVE_MAXIMUM);
            }
        }
        let mut scratch = Vec::new();
        let expiry_s = publish.properties.number(property::MESSAGE_EXPIRY);
        let view = View {
            topic,
            payload: publish.payload,
            properties: passed_on(publish.properties, &mut scratch),
            qos: publish.qos,
            retain: publish.retain,
            expires_ms: expiry_s.map_or(NEVER, |seconds| now_ms + u64::from(seconds) * 1000),
        };
        let route = self.routes.find(topic);
        if route.class != Class::Volatile && self.disk_is_behind() {
            return Step::Wait;
        }
        if let Some(holder) = self.holder(now_ms, &view, &route) {
            if self.is_refused(now_ms, id, holder, publish.qos) {
                self.reply_to_publish(id, publish, reason::QUOTA, 0);
                return Step::Done;
            }
            if let Some(connection) = self.connection(id) {
                connection.waits_for = Some(holder);
            }
            return Step::Wait;
        }
        self.stats.received += 1;
        self.pending.begin();
        let (mut after, is_retained) = self.pass(now_ms, Some(at), view, &route);
        if publish.qos == Qos::ExactlyOnce {
            after = after.max(self.remember_incoming(at, publish.id, route.class));
        }
        self.pending.end();
        let code = match () {
            () if !is_retained => reason::QUOTA,
            () if route.is_empty() => reason::NO_SUBSCRIBERS,
            () => reason::SUCCESS,
        };
        // A message that was refused in the acknowledgement has no second half (MQTT 5 section 4.3.3).
        let code = if publish.qos == Qos::ExactlyOnce && !is_retained { reason::SUCCESS } else { code };
        self.reply_to_publish(id, publish, code, after);
        Step::Done
    }

    fn reply_to_publish(&mut self, id: ConnectionId, publish: &Publish<'_>, code: u8, after: u64) {
        let done = self.pending.done;
        let Some(connection) = self.connections.get_mut(super::slot(id)).and_then(Option::as_mut) else {
            return;
        };
        let ack = Ack { id: publish.id, reason: code };
        let packet = match publish.qos {
            Qos::AtMostOnce => return,
            Qos::AtLeastOnce => Packet::PubAck(ack),
            Qos::ExactlyOnce => Packet::PubRec(ack),
        };
        if connection.output.capacity() == 0 {
            connection.output = self.spare.pop().unwrap_or_default();
        }
        connection.reply_after(after, done, &packet);
        if after > done {
            self.waiting_connections.push(id);
        }
        self.touch(id);
    }

    /// Notes the id, so that the message is not taken twice; the change to wait for.
    fn remember_incoming(&mut self, at: SessionAt, id: u16, class: Class) -> u64 {
        let enabled = self.pending.enabled;
        let Some(session) = self.session(at) else { return 0 };
        let on_disk = enabled && session.is_kept() && class == Class::Sync;
        session.incoming.insert(id, on_disk);
        if !on_disk {
            return 0;
        }
        let client = session.client_id.to_string();
        self.pending.note(Key::Incoming { client, id }, Some(vec![record::VERSION]), true)
    }

    /// Gives the message to all who want it, and keeps it if it is to be retained: false when there was no room for that.
    fn pass(&mut self, now_ms: u64, from: Option<SessionAt>, view: View<'_>, route: &Route) -> (u64, bool) {
        let mut passing = Passing { view, kept: None, class: route.class, after: 0 };
        let mut is_retained = true;
        if view.retain {
            is_retained = self.retained.keep(&passing.keep());
            self.stats.not_retained += u64::from(!is_retained);
            match route.class {
                Class::Sync => passing.after = self.write_retained(now_ms, view.topic, true),
                _ => self.retained.changed(now_ms, view.topic),
            }
        }
        self.templates.clear();
        for target in &route.targets {
            if !(target.no_local && from == Some(target.session)) {
                self.give(now_ms, target, &mut passing);
            }
        }
        for group in &route.groups {
            let turn = group.next_turn();
            let in_turn =
                (0..group.members.len()).map(|at| &group.members[(turn + at) % group.members.len()]);
            let mut best: Option<(&Target, u8)> = None;
            for member in in_turn {
                let rank = self.rank(member, view.topic);
                if best.is_none_or(|(_, have)| rank > have) {
                    best = Some((member, rank));
                }
            }
            if let Some((member, 1..)) = best {
                self.give(now_ms, member, &mut passing);
            }
        }
        (passing.after, is_retained)
    }

    /// How fit a member of a group is to take a message: 0 not at all, 1 later, 2 when it has caught up, 3 now.
    fn rank(&self, member: &Target, topic: &str) -> u8 {
        let session = self.sessions.get(member.session as usize).and_then(Option::as_ref);
        session.map_or(0, |session| match session.connection {
            Some(id) if self.denies(id, topic) => 0,
            Some(_) if session.queue.is_empty() => 3,
            Some(_) if session.queue_bytes < self.limits.queue_bytes_max => 2,
            Some(_) => 1,
            None => u8::from(session.is_kept()),
        })
    }

    fn give(&mut self, now_ms: u64, target: &Target, passing: &mut Passing<'_>) {
        let at = target.session;
        let Some(session) = self.sessions.get_mut(at as usize).and_then(Option::as_mut) else { return };
        let qos = passing.view.qos.min(target.qos);
        let retain = passing.view.retain && target.retain_as_published;
        let is_kept = session.is_kept();
        let on_disk =
            self.pending.enabled && passing.class != Class::Volatile && is_kept && qos != Qos::AtMostOnce;
        let done = self.pending.done;
        let connection = session.connection.and_then(|id| self.connections[super::slot(id)].as_mut());
        if connection.as_ref().is_some_and(|connection| connection.rights.denies(passing.view.topic)) {
            return;
        }
        if let Some(connection) = connection
            && !on_disk
            && session.queue.is_empty()
            && may_send(session, connection, qos, done)
        {
            if connection.output.capacity() == 0 {
                connection.output = self.spare.pop().unwrap_or_default();
            }
            let id = if qos == Qos::AtMostOnce { 0 } else { session.next_id() };
            let start = connection.output.len();
            let subscription_ids = target.ids.as_deref().unwrap_or_default();
            let version = connection.version;
            let alias = connection.aliases_out.of(passing.view.topic);
            let delivery = Delivery { version, qos, retain, duplicate: false, id, subscription_ids, alias };
            self.templates.append(&mut connection.output, now_ms, &passing.view, &delivery);
            // MQTT-3.1.2-24 and 25: as if it had been sent.
            if connection.output.len() - start > connection.packet_bytes_max {
                connection.output.truncate(start);
                connection.aliases_out.take_back(alias);
                self.stats.dropped += 1;
                return;
            }
            if qos != Qos::AtMostOnce {
                let waiting = is_kept.then(|| waiting(passing.keep(), qos, retain, target));
                session.uses_qos2 |= qos == Qos::ExactlyOnce;
                session.in_flight.push_back(InFlight { id, released: false, qos, waiting, number: 0 });
                session.sent += 1;
            }
            self.stats.delivered += 1;
            let id = connection.id;
            self.touch(id);
            return;
        }
        if session.connection.is_none() && (qos == Qos::AtMostOnce || !is_kept) {
            return;
        }
        let crowded = self.queued_bytes >= self.limits.queues_bytes_max;
        if qos == Qos::AtMostOnce && (session.queue_bytes >= self.limits.queue_bytes_max || crowded) {
            self.stats.dropped += 1;
            return;
        }
        let mut waiting = waiting(passing.keep(), qos, retain, target);
        if session.queue.is_empty() {
            session.moved_ms = session.moved_ms.max(now_ms);
        }
        if on_disk {
            // The id is a part of what is written, so that a copy after a power cut is known as one.
            waiting.id = if qos == Qos::ExactlyOnce { session.next_id() } else { 0 };
            waiting.number = session.next_number;
            session.next_number += 1;
            let key = Key::Message { client: session.client_id.to_string(), number: waiting.number };
            let value = record::waiting(now_ms, &waiting);
            waiting.after = self.pending.note(key, Some(value), passing.class == Class::Sync);
            passing.after = passing.after.max(waiting.after);
        }
        self.queued_bytes += waiting.cost();
        session.push(waiting);
        if session.queue_bytes >= self.limits.queue_bytes_max {
            session.full_since_ms.get_or_insert(now_ms);
        }
        self.pump(now_ms, at);
    }

    /// Sends what may be sent: first again what the last connection did not acknowledge, then from the queue.
    pub(super) fn pump(&mut self, now_ms: u64, at: SessionAt) {
        let Some(session) = self.sessions.get_mut(at as usize).and_then(Option::as_mut) else { return };
        let Some(id) = session.connection else { return };
        // With each acknowledgement this is asked, and mostly there is nothing.
        if session.queue.is_empty() && session.sent == session.in_flight.len() {
            return;
        }
        let Some(connection) = self.connections[super::slot(id)].as_mut() else { return };
        let done = self.pending.done;
        let before = connection.output.len();
        if before == 0 && connection.output.capacity() == 0 && !session.queue.is_empty() {
            connection.output = self.spare.pop().unwrap_or_default();
        }
        while session.sent < session.in_flight.len() && may_send(session, connection, Qos::AtLeastOnce, done)
        {
            let again = &session.in_flight[session.sent];
            session.sent += 1;
            match &again.waiting {
                Some(waiting) if !again.released => {
                    let view = waiting.message.view();
                    let alias = connection.aliases_out.of(view.topic);
                    let delivery = Delivery { alias, ..waiting.delivery(connection.version, again.id, true) };
                    message::append(&mut connection.output, now_ms, &view, &delivery);
                }
                _ => connection.reply(&Packet::PubRel(again.id.into())),
            }
        }
        while let Some(next) = session.queue.front() {
            if next.after > done {
                self.waiting_sessions.push(at);
                break;
            }
            if session.sent < session.in_flight.len() || !may_send(session, connection, next.qos, done) {
                break;
            }
            let Some(next) = session.pop() else { break };
            self.queued_bytes -= next.cost();
            self.is_freed = true;
            session.moved_ms = session.moved_ms.max(now_ms);
            if next.message.is_expired(now_ms) {
                self.stats.expired += 1;
                forget(&mut self.pending, session, next.number);
                continue;
            }
            let view = next.message.view();
            // It was taken while other rules held.
            if connection.rights.denies(view.topic) {
                forget(&mut self.pending, session, next.number);
                continue;
            }
            let id = match (next.qos, next.id) {
                (Qos::AtMostOnce, _) => 0,
                (_, 0) => session.next_id(),
                (_, id) => id,
            };
            let start = connection.output.len();
            let alias = connection.aliases_out.of(view.topic);
            let delivery = Delivery { alias, ..next.delivery(connection.version, id, false) };
            message::append(&mut connection.output, now_ms, &view, &delivery);
            if connection.output.len() - start > connection.packet_bytes_max {
                connection.output.truncate(start);
                connection.aliases_out.take_back(alias);
                self.stats.dropped += 1;
                forget(&mut self.pending, session, next.number);
                continue;
            }
            self.stats.delivered += 1;
            if next.qos != Qos::AtMostOnce {
                let (qos, number) = (next.qos, next.number);
                let waiting = session.is_kept().then_some(next);
                session.uses_qos2 |= qos == Qos::ExactlyOnce;
                session.in_flight.push_back(InFlight { id, released: false, qos, waiting, number });
                session.sent += 1;
            }
        }
        if connection.output.len() > before {
            self.touch(id);
        }
    }

    /// PUBACK, PUBREC, PUBREL and PUBCOMP.
    pub(super) fn acknowledge(
        &mut self,
        now_ms: u64,
        id: ConnectionId,
        at: SessionAt,
        packet: &Packet<'_>,
    ) -> Step {
        let done = self.pending.done;
        let Some(session) = self.sessions.get_mut(at as usize).and_then(Option::as_mut) else {
            return Step::Leave;
        };
        let Some(connection) = self.connections[super::slot(id)].as_mut() else { return Step::Leave };
        let mut after = 0;
        let unknown = |ack: &Ack| Ack { id: ack.id, reason: reason::ID_NOT_FOUND };
        let answer = match packet {
            Packet::PubRel(ack) => Some(Packet::PubComp(match session.incoming.remove(&ack.id) {
                Some(on_disk) => {
                    let client = session.client_id.to_string();
                    if on_disk {
                        // Before PUBCOMP, after which the client may use the id again.
                        after = self.pending.note(Key::Incoming { client, id: ack.id }, None, true);
                    }
                    ack.id.into()
                }
                None => unknown(ack),
            })),
            Packet::PubRec(ack) => match session.position(ack.id) {
                Some(place) if ack.reason >= reason::FAILURE => {
                    if let Some(refused) = session.remove_in_flight(place) {
                        forget(&mut self.pending, session, refused.number);
                    }
                    None
                }
                Some(place) if session.in_flight[place].qos == Qos::ExactlyOnce => {
                    let found = &mut session.in_flight[place];
                    found.waiting = None;
                    if !std::mem::replace(&mut found.released, true) && found.number > 0 {
                        // Before PUBREL, after which the client takes the id for a new message.
                        let value = Some(record::released(found.id));
                        let number = found.number;
                        let key = Key::Message { client: session.client_id.to_string(), number };
                        after = self.pending.note(key, value, true);
                    }
                    Some(Packet::PubRel(ack.id.into()))
                }
                _ => Some(Packet::PubRel(unknown(ack))),
            },
            Packet::PubAck(ack) | Packet::PubComp(ack) => {
                let wanted = match packet {
                    Packet::PubAck(_) => Qos::AtLeastOnce,
                    _ => Qos::ExactlyOnce,
                };
                let place = session.position(ack.id).filter(|place| session.in_flight[*place].qos == wanted);
                if let Some(delivered) = place.and_then(|place| session.remove_in_flight(place)) {
                    forget(&mut self.pending, session, delivered.number);
                }
                None
            }
            _ => None,
        };
        if let Some(answer) = answer {
            connection.reply_after(after, done, &answer);
            if after > done {
                self.waiting_connections.push(id);
            }
            self.touch(id);
        }
        self.pump(now_ms, at);
        Step::Done
    }

    /// A message of the broker's own: a will, a figure.
    pub(super) fn publish_kept(&mut self, now_ms: u64, message: Message) {
        let route = self.routes.find(message.view().topic);
        self.pass(now_ms, None, message.view(), &route);
    }

    /// Notes a topic's retained message, or that there is none, for the disk.
    pub(super) fn write_retained(&mut self, now_ms: u64, topic: &str, sync: bool) -> u64 {
        self.retained.wrote(topic);
        if topic.starts_with("$SYS/") {
            return 0;
        }
        let value = self.retained.get(topic).map(|message| record::message(now_ms, message));
        self.pending.note(Key::Retained(topic.to_owned()), value, sync)
    }

    /// Notes everything that waits for a kept session and is not on the disk.
    pub(super) fn write_queue(&mut self, now_ms: u64, at: SessionAt) {
        let Some(session) = self.sessions.get_mut(at as usize).and_then(Option::as_mut) else { return };
        if !session.is_kept() {
            return;
        }
        let client = session.client_id.to_string();
        let mut next_number = session.next_number;
        let mut number = |have: &mut u64| {
            if *have == 0 {
                *have = next_number;
                next_number += 1;
            }
            Key::Message { client: client.clone(), number: *have }
        };
        for sent in &mut session.in_flight {
            let value = match &mut sent.waiting {
                Some(waiting) => {
                    waiting.id = sent.id;
                    record::waiting(now_ms, waiting)
                }
                None => record::released(sent.id),
            };
            self.pending.note(number(&mut sent.number), Some(value), true);
        }
        for waiting in session.queue.iter_mut().filter(|waiting| waiting.number == 0) {
            let value = record::waiting(now_ms, waiting);
            self.pending.note(number(&mut waiting.number), Some(value), true);
        }
        session.next_number = next_number;
        for (id, on_disk) in &mut session.incoming {
            if !std::mem::replace(on_disk, true) {
                let key = Key::Incoming { client: client.clone(), id: *id };
                self.pending.note(key, Some(vec![record::VERSION]), true);
            }
        }
    }
}

fn forget(pending: &mut super::durable::Pending, session: &Session, number: u64) {
    if number > 0 {
        let client = session.client_id.to_string();
        pending.note(Key::Message { client, number }, None, false);
    }
}

fn waiting(message: Arc<Message>, qos: Qos, retain: bool, target: &Target) -> Waiting {
    let ids = target.ids.clone();
    Waiting { message, qos, retain, duplicate: false, id: 0, ids, after: 0, number: 0 }
}

/// True when there is room for one more in the output, and in what the client takes unacknowledged.
fn may_send(session: &Session, connection: &Connection, qos: Qos, done: u64) -> bool {
    connection.phase == Phase::Up
        && connection.up_after <= done
        && connection.output.len() < BROKER_OUTPUT_BYTES_MAX
        && (qos == Qos::AtMostOnce || session.sent < connection.receive_max)
}

/// Sets or looks up a topic alias: `Some` topic when the packet had none itself.
fn resolve(aliases: &mut Vec<Box<str>>, alias: usize, topic: &str) -> Result<Option<String>, u8> {
    if alias == 0 || alias > TOPIC_ALIASES_MAX {
        return Err(reason::TOPIC_ALIAS);
    }
    if topic.is_empty() {
        let known = aliases.get(alias - 1).filter(|known| !known.is_empty());
        return known.map(|known| Some(known.to_string())).ok_or(reason::PROTOCOL);
    }
    if aliases.len() < alias {
        aliases.resize(alias, "".into());
    }
    aliases[alias - 1] = topic.into();
    Ok(None)
}
