//! The packets as they are written, appended to a buffer.

use crate::{
    packet::{Ack, Connect, Packet, Publish, Qos, Version},
    property::Properties,
};

/// Length of a PUBLISH on the wire, to check against a limit before encoding.
pub fn publish_len(topic: &str, payload: &[u8]) -> usize {
    5 + 2 + topic.len() + 2 + payload.len()
}

/// In MQTT 3.1.1; see [`packet_as`].
pub fn packet(out: &mut Vec<u8>, packet: &Packet<'_>) {
    packet_as(Version::V3, out, packet);
}

/// In the version that the connection speaks; CONNECT in its own.
pub fn packet_as(version: Version, out: &mut Vec<u8>, packet: &Packet<'_>) {
    let v5 = version == Version::V5;
    match packet {
        Packet::Connect(value) => connect(out, value),
        Packet::ConnAck { session_present, code, properties: found } => {
            header(out, 0x20, 2 + properties_len(version, *found));
            out.extend_from_slice(&[u8::from(*session_present), *code]);
            properties(version, out, *found);
        }
        Packet::Publish(value) => publish(version, out, value),
        Packet::PubAck(value) => ack(version, out, 0x40, *value),
        Packet::PubRec(value) => ack(version, out, 0x50, *value),
        Packet::PubRel(value) => ack(version, out, 0x62, *value),
        Packet::PubComp(value) => ack(version, out, 0x70, *value),
        Packet::Subscribe { id, filters, properties: found } => {
            let len = filters.iter().map(|(filter, _)| 3 + filter.len()).sum::<usize>();
            header(out, 0x82, 2 + properties_len(version, *found) + len);
            out.extend_from_slice(&id.to_be_bytes());
            properties(version, out, *found);
            for (filter, options) in filters {
                bytes(out, filter.as_bytes());
                out.push(options.bits());
            }
        }
        Packet::SubAck { id, codes } => {
            header(out, 0x90, 2 + usize::from(v5) + codes.len());
            out.extend_from_slice(&id.to_be_bytes());
            properties(version, out, Properties::default());
            out.extend_from_slice(codes);
        }
        Packet::Unsubscribe { id, filters } => {
            let len = filters.iter().map(|filter| 2 + filter.len()).sum::<usize>();
            header(out, 0xa2, 2 + usize::from(v5) + len);
            out.extend_from_slice(&id.to_be_bytes());
            properties(version, out, Properties::default());
            for filter in filters {
                bytes(out, filter.as_bytes());
            }
        }
        Packet::UnsubAck { id, codes } => {
            let codes = if v5 { *codes } else { &[] };
            header(out, 0xb0, 2 + usize::from(v5) + codes.len());
            out.extend_from_slice(&id.to_be_bytes());
            properties(version, out, Properties::default());
            out.extend_from_slice(codes);
        }
        Packet::PingReq => out.extend_from_slice(&[0xc0, 0]),
        Packet::PingResp => out.extend_from_slice(&[0xd0, 0]),
        Packet::Disconnect { reason, properties } => reasoned(version, out, 0xe0, *reason, *properties),
        Packet::Auth { reason, properties } => reasoned(version, out, 0xf0, *reason, *properties),
    }
}

fn connect(out: &mut Vec<u8>, value: &Connect<'_>) {
    let version = value.version;
    let mut flags = u8::from(value.clean_session) << 1;
    let mut len = 10 + properties_len(version, value.properties) + 2 + value.client_id.len();
    if let Some(will) = &value.will {
        flags |= 4 | will.qos.bits() << 3 | u8::from(will.retain) << 5;
        len += properties_len(version, will.properties) + 4 + will.topic.len() + will.payload.len();
    }
    if let Some(username) = value.username {
        flags |= 0x80;
        len += 2 + username.len();
    }
    if let Some(password) = value.password {
        flags |= 0x40;
        len += 2 + password.len();
    }
    header(out, 0x10, len);
    bytes(out, b"MQTT");
    out.extend_from_slice(&[if version == Version::V5 { 5 } else { 4 }, flags]);
    out.extend_from_slice(&value.keep_alive_s.to_be_bytes());
    properties(version, out, value.properties);
    bytes(out, value.client_id.as_bytes());
    if let Some(will) = &value.will {
        properties(version, out, will.properties);
        bytes(out, will.topic.as_bytes());
        bytes(out, will.payload);
    }
    if let Some(username) = value.username {
        bytes(out, username.as_bytes());
    }
    if let Some(password) = value.password {
        bytes(out, password);
    }
}

fn publish(version: Version, out: &mut Vec<u8>, value: &Publish<'_>) {
    let flags = 0x30 | u8::from(value.duplicate) << 3 | value.qos.bits() << 1 | u8::from(value.retain);
    let id_len = if value.qos == Qos::AtMostOnce { 0 } else { 2 };
    let len =
        2 + value.topic.len() + id_len + properties_len(version, value.properties) + value.payload.len();
    header(out, flags, len);
    bytes(out, value.topic.as_bytes());
    if id_len > 0 {
        out.extend_from_slice(&value.id.to_be_bytes());
    }
    properties(version, out, value.properties);
    out.extend_from_slice(value.payload);
}

fn ack(version: Version, out: &mut Vec<u8>, first: u8, value: Ack) {
    let said = version == Version::V5 && value.reason != 0;
    out.extend_from_slice(&[first, 2 + u8::from(said)]);
    out.extend_from_slice(&value.id.to_be_bytes());
    if said {
        out.push(value.reason);
    }
}

fn reasoned(version: Version, out: &mut Vec<u8>, first: u8, reason: u8, found: Properties<'_>) {
    if version == Version::V3 || (reason == 0 && found.is_empty()) {
        out.extend_from_slice(&[first, 0]);
    } else {
        header(out, first, 1 + properties_len(version, found));
        out.push(reason);
        properties(version, out, found);
    }
}

fn properties_len(version: Version, found: Properties<'_>) -> usize {
    let len = found.bytes().len();
    match version {
        Version::V3 => 0,
        Version::V5 => variable_len(len) + len,
    }
}

fn properties(version: Version, out: &mut Vec<u8>, found: Properties<'_>) {
    if version == Version::V5 {
        variable(out, found.bytes().len());
        out.extend_from_slice(found.bytes());
    }
}

fn header(out: &mut Vec<u8>, first: u8, remaining: usize) {
    out.push(first);
    variable(out, remaining);
}

/// Bytes that a number takes in the variable form.
pub(crate) fn variable_len(value: usize) -> usize {
    match value {
        0..128 => 1,
        128..16_384 => 2,
        16_384..2_097_152 => 3,
        _ => 4,
    }
}

pub(crate) fn variable(out: &mut Vec<u8>, mut remaining: usize) {
    loop {
        let byte = (remaining & 0x7f) as u8;
        remaining >>= 7;
        if remaining == 0 {
            out.push(byte);
            return;
        }
        out.push(byte | 0x80);
    }
}

/// A length-prefixed field. Longer than 65535 bytes cannot be said in MQTT; callers check topics and names before.
pub(crate) fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    let len = value.len().min(usize::from(u16::MAX));
    out.extend_from_slice(&(len as u16).to_be_bytes());
    out.extend_from_slice(&value[..len]);
}
