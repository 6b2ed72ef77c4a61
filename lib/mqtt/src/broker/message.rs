//! A message on its way, and how it is written for one subscriber or for many.

use super::connection::Alias;
use crate::{
    encode::{bytes, variable, variable_len},
    packet::{Qos, Version},
    property::{self, MESSAGE_EXPIRY, SUBSCRIPTION_ID, TOPIC_ALIAS},
};

/// For [`View::expires_ms`].
pub(super) const NEVER: u64 = u64::MAX;

/// A message as it is passed around: borrowed, so that one that goes straight to the sockets is never allocated.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub topic: &'a str,
    pub payload: &'a [u8],
    /// The properties of MQTT 5 that are passed on as they are.
    pub properties: &'a [u8],
    pub qos: Qos,
    pub retain: bool,
    /// After this time it is of no use (message expiry).
    pub expires_ms: u64,
}

/// The same, kept: topic, properties and payload in one piece.
#[derive(Debug)]
pub(super) struct Message {
    data: Box<[u8]>,
    topic_len: u16,
    properties_len: u32,
    qos: Qos,
    retain: bool,
    expires_ms: u64,
}

impl View<'_> {
    pub fn keep(&self) -> Message {
        Message {
            data: [self.topic.as_bytes(), self.properties, self.payload].concat().into(),
            topic_len: self.topic.len() as u16,
            properties_len: self.properties.len() as u32,
            qos: self.qos,
            retain: self.retain,
            expires_ms: self.expires_ms,
        }
    }

    /// Seconds left, at least one.
    pub fn expiry_left_s(&self, now_ms: u64) -> Option<u32> {
        (self.expires_ms != NEVER)
            .then(|| (self.expires_ms.saturating_sub(now_ms).div_ceil(1000)).clamp(1, u32::MAX.into()) as u32)
    }
}

impl Message {
    pub fn view(&self) -> View<'_> {
        let (topic, rest) = self.data.split_at(usize::from(self.topic_len));
        let (properties, payload) = rest.split_at(self.properties_len as usize);
        let topic = std::str::from_utf8(topic).expect("was made from a text");
        let (qos, retain, expires_ms) = (self.qos, self.retain, self.expires_ms);
        View { topic, payload, properties, qos, retain, expires_ms }
    }

    /// A will's expiry counts from its publication.
    pub fn expiring(self, at_ms: u64, expiry_s: Option<u32>) -> Message {
        Message { expires_ms: expiry_s.map_or(NEVER, |seconds| at_ms + u64::from(seconds) * 1000), ..self }
    }

    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_ms <= now_ms
    }

    pub fn len(&self) -> usize {
        self.data.len()
    }
}

/// How one subscriber gets a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivery<'a> {
    pub version: Version,
    pub qos: Qos,
    pub retain: bool,
    pub duplicate: bool,
    /// 0 with QoS 0.
    pub id: u16,
    pub subscription_ids: &'a [u32],
    pub alias: Alias,
}

/// Appends a PUBLISH; returns where in it the packet id is.
pub(super) fn append(out: &mut Vec<u8>, now_ms: u64, view: &View<'_>, delivery: &Delivery<'_>) -> usize {
    let start = out.len();
    let expiry = view.expiry_left_s(now_ms).filter(|_| delivery.version == Version::V5);
    let (topic, alias) = match delivery.alias {
        Alias::None => (view.topic, None),
        Alias::New(alias) => (view.topic, Some(alias)),
        Alias::Known(alias) => ("", Some(alias)),
    };
    let properties_len = match delivery.version {
        Version::V3 => None,
        Version::V5 => Some(
            view.properties.len()
                + expiry.map_or(0, |_| 5)
                + alias.map_or(0, |_| 3)
                + delivery.subscription_ids.iter().map(|id| 1 + variable_len(*id as usize)).sum::<usize>(),
        ),
    };
    let id_len = if delivery.qos == Qos::AtMostOnce { 0 } else { 2 };
    let properties_all = properties_len.map_or(0, |len| variable_len(len) + len);
    out.push(first_byte(delivery));
    variable(out, 2 + topic.len() + id_len + properties_all + view.payload.len());
    bytes(out, topic.as_bytes());
    let id_at = out.len() - start;
    if id_len > 0 {
        out.extend_from_slice(&delivery.id.to_be_bytes());
    }
    if let Some(len) = properties_len {
        variable(out, len);
        out.extend_from_slice(view.properties);
        if let Some(left) = expiry {
            property::put_number(out, MESSAGE_EXPIRY, left);
        }
        if let Some(alias) = alias {
            property::put_number(out, TOPIC_ALIAS, alias.into());
        }
        for id in delivery.subscription_ids {
            property::put_number(out, SUBSCRIPTION_ID, *id);
        }
    }
    out.extend_from_slice(view.payload);
    id_at
}

fn first_byte(delivery: &Delivery<'_>) -> u8 {
    0x30 | u8::from(delivery.duplicate) << 3 | delivery.qos.bits() << 1 | u8::from(delivery.retain)
}

/// One message for many subscribers: encoded once per version and with or without a packet id, then copied.
#[derive(Debug, Default)]
pub(super) struct Templates {
    bytes: Vec<u8>,
    /// Start, end and place of the packet id.
    made: [Option<(usize, usize, usize)>; 4],
}

impl Templates {
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.made = [None; 4];
        // One large message must not stay for ever.
        self.bytes.shrink_to(64 * 1024);
    }

    pub fn append(&mut self, out: &mut Vec<u8>, now_ms: u64, view: &View<'_>, delivery: &Delivery<'_>) {
        if !delivery.subscription_ids.is_empty() || delivery.alias != Alias::None {
            append(out, now_ms, view, delivery);
            return;
        }
        let has_id = delivery.qos != Qos::AtMostOnce;
        let slot = &mut self.made[usize::from(has_id) + 2 * usize::from(delivery.version == Version::V5)];
        let (start, end, id_at) = *slot.get_or_insert_with(|| {
            let start = self.bytes.len();
            let id_at = append(&mut self.bytes, now_ms, view, delivery);
            (start, self.bytes.len(), id_at)
        });
        let at = out.len();
        out.extend_from_slice(&self.bytes[start..end]);
        out[at] = first_byte(delivery);
        if has_id {
            out[at + id_at..at + id_at + 2].copy_from_slice(&delivery.id.to_be_bytes());
        }
    }
}
