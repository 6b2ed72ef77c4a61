//! The packets as they are written, appended to a buffer.

use crate::packet::{Connect, Packet, Publish, Qos};

/// Length of a PUBLISH on the wire, to check against a limit before encoding.
pub fn publish_len(topic: &str, payload: &[u8]) -> usize {
    5 + 2 + topic.len() + 2 + payload.len()
}

pub fn packet(out: &mut Vec<u8>, packet: &Packet<'_>) {
    match packet {
        Packet::Connect(value) => connect(out, value),
        Packet::ConnAck { session_present, code } => {
            out.extend_from_slice(&[0x20, 2, u8::from(*session_present), *code])
        }
        Packet::Publish(value) => publish(out, value),
        Packet::PubAck(id) => short(out, 0x40, *id),
        Packet::PubRec(id) => short(out, 0x50, *id),
        Packet::PubRel(id) => short(out, 0x62, *id),
        Packet::PubComp(id) => short(out, 0x70, *id),
        Packet::Subscribe { id, filters } => {
            header(out, 0x82, 2 + filters.iter().map(|(filter, _)| 3 + filter.len()).sum::<usize>());
            out.extend_from_slice(&id.to_be_bytes());
            for (filter, qos) in filters {
                bytes(out, filter.as_bytes());
                out.push(qos.bits());
            }
        }
        Packet::SubAck { id, codes } => {
            header(out, 0x90, 2 + codes.len());
            out.extend_from_slice(&id.to_be_bytes());
            out.extend_from_slice(codes);
        }
        Packet::Unsubscribe { id, filters } => {
            header(out, 0xa2, 2 + filters.iter().map(|filter| 2 + filter.len()).sum::<usize>());
            out.extend_from_slice(&id.to_be_bytes());
            for filter in filters {
                bytes(out, filter.as_bytes());
            }
        }
        Packet::UnsubAck(id) => short(out, 0xb0, *id),
        Packet::PingReq => out.extend_from_slice(&[0xc0, 0]),
        Packet::PingResp => out.extend_from_slice(&[0xd0, 0]),
        Packet::Disconnect => out.extend_from_slice(&[0xe0, 0]),
    }
}

fn connect(out: &mut Vec<u8>, value: &Connect<'_>) {
    let mut flags = u8::from(value.clean_session) << 1;
    let mut len = 10 + 2 + value.client_id.len();
    if let Some(will) = &value.will {
        flags |= 4 | will.qos.bits() << 3 | u8::from(will.retain) << 5;
        len += 4 + will.topic.len() + will.payload.len();
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
    out.extend_from_slice(&[4, flags]);
    out.extend_from_slice(&value.keep_alive_s.to_be_bytes());
    bytes(out, value.client_id.as_bytes());
    if let Some(will) = &value.will {
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

fn publish(out: &mut Vec<u8>, value: &Publish<'_>) {
    let flags = 0x30 | u8::from(value.duplicate) << 3 | value.qos.bits() << 1 | u8::from(value.retain);
    let id_len = if value.qos == Qos::AtMostOnce { 0 } else { 2 };
    header(out, flags, 2 + value.topic.len() + id_len + value.payload.len());
    bytes(out, value.topic.as_bytes());
    if id_len > 0 {
        out.extend_from_slice(&value.id.to_be_bytes());
    }
    out.extend_from_slice(value.payload);
}

fn short(out: &mut Vec<u8>, first: u8, id: u16) {
    out.extend_from_slice(&[first, 2]);
    out.extend_from_slice(&id.to_be_bytes());
}

fn header(out: &mut Vec<u8>, first: u8, mut remaining: usize) {
    out.push(first);
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
fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    let len = value.len().min(usize::from(u16::MAX));
    out.extend_from_slice(&(len as u16).to_be_bytes());
    out.extend_from_slice(&value[..len]);
}
