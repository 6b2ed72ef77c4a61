//! How sessions and messages are written to the disk (docs/disk.md), and how the broker gets them back.

use std::sync::Arc;

use super::{
    Broker, Key,
    durable::Change,
    message::{Message, NEVER, View},
    routes::{Entry, parse_shared},
    session::{InFlight, Session, Waiting},
};
use crate::{
    encode::bytes,
    packet::{DecodeError, Qos, Reader, SubscribeOptions, Version},
    topic::{filter_is_valid, topic_is_valid},
};

/// First byte of every record.
pub(super) const VERSION: u8 = 1;

const RELEASED: u8 = 1;
const RETAIN: u8 = 2;
const MESSAGE_RETAIN: u8 = 4;

/// A session: owner, expiry, packet ids, and its subscriptions.
pub(super) fn session(session: &Session, entry: impl Fn(&str) -> Option<Entry>) -> Vec<u8> {
    let mut out = vec![VERSION, u8::from(session.user.is_some())];
    bytes(&mut out, session.user.as_deref().unwrap_or_default().as_bytes());
    out.extend_from_slice(&session.expiry_s.to_be_bytes());
    out.extend_from_slice(&session.ids_until.to_be_bytes());
    for filter in &session.filters {
        let Some(entry) = entry(filter) else { continue };
        bytes(&mut out, filter.as_bytes());
        out.push(entry.options.bits());
        out.extend_from_slice(&entry.id.to_be_bytes());
    }
    out
}

/// A message that waits for one session.
pub(super) fn waiting(now_ms: u64, waiting: &Waiting) -> Vec<u8> {
    let ids = waiting.ids.as_deref().unwrap_or_default();
    let flags = if waiting.retain { RETAIN } else { 0 };
    encode(now_ms, &waiting.message.view(), flags, waiting.qos, waiting.id, ids)
}

/// What is left of a QoS 2 message that its receiver has: the id to release.
pub(super) fn released(id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    vec![VERSION, RELEASED, 2, 2, high, low]
}

/// A retained message.
pub(super) fn message(now_ms: u64, message: &Message) -> Vec<u8> {
    let view = message.view();
    encode(now_ms, &view, RETAIN, view.qos, 0, &[])
}

fn encode(now_ms: u64, view: &View<'_>, flags: u8, qos: Qos, id: u16, ids: &[u32]) -> Vec<u8> {
    let len = 24 + view.topic.len() + view.properties.len() + view.payload.len();
    let mut out = Vec::with_capacity(len);
    let flags = flags | if view.retain { MESSAGE_RETAIN } else { 0 };
    out.extend_from_slice(&[VERSION, flags, qos.bits(), view.qos.bits()]);
    out.extend_from_slice(&id.to_be_bytes());
    // Time stands still while the power is off: there may be no clock that knows better.
    out.extend_from_slice(&view.expiry_left_s(now_ms).unwrap_or(0).to_be_bytes());
    out.push(ids.len().min(255) as u8);
    for id in ids.iter().take(255) {
        out.extend_from_slice(&id.to_be_bytes());
    }
    bytes(&mut out, view.topic.as_bytes());
    out.extend_from_slice(&(view.properties.len() as u32).to_be_bytes());
    out.extend_from_slice(view.properties);
    out.extend_from_slice(view.payload);
    out
}

struct Decoded<'a> {
    is_released: bool,
    retain: bool,
    qos: Qos,
    id: u16,
    ids: Option<Arc<[u32]>>,
    view: View<'a>,
}

const DAMAGED: DecodeError = DecodeError::Malformed("record");

fn decode(now_ms: u64, value: &[u8]) -> Result<Decoded<'_>, DecodeError> {
    let mut reader = Reader(value);
    if reader.byte()? != VERSION {
        return Err(DAMAGED);
    }
    let flags = reader.byte()?;
    let (qos, message_qos) = (Qos::from_bits(reader.byte()?)?, Qos::from_bits(reader.byte()?)?);
    let id = reader.number()?;
    let mut view = View {
        topic: "",
        payload: &[],
        properties: &[],
        qos: message_qos,
        retain: flags & MESSAGE_RETAIN != 0,
        expires_ms: NEVER,
    };
    let (is_released, retain) = (flags & RELEASED != 0, flags & RETAIN != 0);
    if is_released {
        return Ok(Decoded { is_released, retain, qos, id, ids: None, view });
    }
    view.expires_ms = match reader.four()? {
        0 => NEVER,
        seconds => now_ms + u64::from(seconds) * 1000,
    };
    let count = reader.byte()?;
    let ids = (0..count).map(|_| reader.four()).collect::<Result<Vec<u32>, DecodeError>>()?;
    view.topic = reader.text()?;
    let len = reader.four()? as usize;
    view.properties = reader.take(len)?;
    view.payload = reader.0;
    if !topic_is_valid(view.topic) {
        return Err(DAMAGED);
    }
    Ok(Decoded { is_released, retain, qos, id, ids: (!ids.is_empty()).then(|| ids.into()), view })
}

impl Broker {
    /// Takes back what was on the disk; before any connection. Returns how many records could not be read and were left out.
    pub fn restore(&mut self, now_ms: u64, records: impl IntoIterator<Item = (Key, Vec<u8>)>) -> usize {
        // By key: sessions before what waits for them, and that in its order.
        let mut records: Vec<(Key, Vec<u8>)> = records.into_iter().collect();
        records.sort();
        let mut unreadable = 0;
        for (key, value) in &records {
            if self.restore_one(now_ms, key, value).is_err() {
                unreadable += 1;
                self.pending.note(key.clone(), None, false);
            }
        }
        unreadable
    }

    fn restore_one(&mut self, now_ms: u64, key: &Key, value: &[u8]) -> Result<(), DecodeError> {
        match key {
            Key::Session(client) => self.restore_session(now_ms, client, value),
            Key::Message { client, number } => {
                let decoded = decode(now_ms, value)?;
                let at = *self.names.get(client.as_str()).ok_or(DAMAGED)?;
                let session = self.session(at).ok_or(DAMAGED)?;
                session.next_number = session.next_number.max(number + 1);
                let (id, number, qos) = (decoded.id, *number, decoded.qos);
                if decoded.is_released {
                    let released = true;
                    session.in_flight.push_back(InFlight { id, released, qos, waiting: None, number });
                    return Ok(());
                }
                let waiting = Waiting {
                    message: Arc::new(decoded.view.keep()),
                    qos,
                    retain: decoded.retain,
                    duplicate: true,
                    id,
                    ids: decoded.ids,
                    after: 0,
                    number,
                };
                let cost = waiting.cost();
                session.push(waiting);
                self.queued_bytes += cost;
                Ok(())
            }
            Key::Incoming { client, id } => {
                let at = *self.names.get(client.as_str()).ok_or(DAMAGED)?;
                self.session(at).ok_or(DAMAGED)?.incoming.insert(*id, true);
                Ok(())
            }
            Key::Retained(topic) => {
                let decoded = decode(now_ms, value)?;
                let is_kept =
                    decoded.view.topic == topic && self.retained.keep(&Arc::new(decoded.view.keep()));
                self.retained.wrote(topic);
                if is_kept { Ok(()) } else { Err(DAMAGED) }
            }
        }
    }

    fn restore_session(&mut self, now_ms: u64, client: &str, value: &[u8]) -> Result<(), DecodeError> {
        let mut reader = Reader(value);
        if reader.byte()? != VERSION {
            return Err(DAMAGED);
        }
        let (has_user, user) = (reader.byte()? != 0, reader.text()?);
        let expiry_s = reader.four()?.min(self.limits.session_expiry_s_max);
        let ids_until = reader.number()?;
        let mut filters = Vec::new();
        while !reader.0.is_empty() {
            let filter = reader.text()?;
            let options = SubscribeOptions::from_bits(reader.byte()?, Version::V5)?;
            filters.push((filter, options, reader.four()?));
        }
        if expiry_s == 0 {
            return Err(DAMAGED);
        }
        let at = self.make_session(now_ms, client, has_user.then_some(user));
        self.set_expiry(at, expiry_s);
        for (filter, options, id) in filters {
            let Some((group, plain)) = parse_shared(filter).filter(|(_, plain)| filter_is_valid(plain))
            else {
                continue;
            };
            let qos = super::holds::granted(self.limits.node_topics, true, plain, options.qos);
            let options = SubscribeOptions { qos, ..options };
            let entry = Entry { session: at, group: group.map(Into::into), options, id };
            if self.routes.add(plain, entry)
                && let Some(session) = self.session(at)
            {
                session.filters.push(filter.into());
            }
        }
        if let Some(session) = self.session(at) {
            session.is_confirmed = true;
            session.skip_ids(ids_until);
            session.ends_at_ms = match expiry_s {
                u32::MAX => u64::MAX,
                seconds => now_ms + u64::from(seconds) * 1000,
            };
        }
        Ok(())
    }
}

/// Total on any bytes that a disk may hold.
pub fn fuzz_records(data: &[u8]) {
    let mut broker = Broker::new(super::Limits::default(), super::Auth::default());
    let (client, topic) = ("c".to_owned(), "t".to_owned());
    broker.restore(0, [(Key::Session(client.clone()), data.to_vec())]);
    let session =
        Change { key: Key::Session(client.clone()), value: Some(vec![VERSION, 0, 0, 0, 0, 0, 0, 9, 0, 0]) };
    let keys = [Key::Message { client, number: 1 }, Key::Retained(topic)];
    let records = keys.into_iter().map(|key| (key, data.to_vec()));
    broker.restore(0, session.value.map(|value| (session.key, value)).into_iter().chain(records));
}
