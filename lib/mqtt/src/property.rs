//! The properties of MQTT 5 (section 2.2.2): read as an iterator over borrowed bytes, written one by one.
//!
//! A packet keeps them as the bytes it came with, checked once: what is passed on (user properties, response topic) is copied
//! and never taken apart.

use crate::packet::DecodeError::{self, Malformed, Protocol};

pub const PAYLOAD_FORMAT: u8 = 1;
pub const MESSAGE_EXPIRY: u8 = 2;
pub const CONTENT_TYPE: u8 = 3;
pub const RESPONSE_TOPIC: u8 = 8;
pub const CORRELATION_DATA: u8 = 9;
pub const SUBSCRIPTION_ID: u8 = 11;
pub const SESSION_EXPIRY: u8 = 17;
pub const ASSIGNED_CLIENT_ID: u8 = 18;
pub const SERVER_KEEP_ALIVE: u8 = 19;
pub const AUTHENTICATION_METHOD: u8 = 21;
pub const AUTHENTICATION_DATA: u8 = 22;
pub const REQUEST_PROBLEM: u8 = 23;
pub const WILL_DELAY: u8 = 24;
pub const REQUEST_RESPONSE: u8 = 25;
pub const RESPONSE_INFORMATION: u8 = 26;
pub const SERVER_REFERENCE: u8 = 28;
pub const REASON: u8 = 31;
pub const RECEIVE_MAXIMUM: u8 = 33;
pub const TOPIC_ALIAS_MAXIMUM: u8 = 34;
pub const TOPIC_ALIAS: u8 = 35;
pub const MAXIMUM_QOS: u8 = 36;
pub const RETAIN_AVAILABLE: u8 = 37;
pub const USER: u8 = 38;
pub const MAXIMUM_PACKET: u8 = 39;
pub const WILDCARD_AVAILABLE: u8 = 40;
pub const SUBSCRIPTION_ID_AVAILABLE: u8 = 41;
pub const SHARED_AVAILABLE: u8 = 42;

/// Which properties a packet may have, one bit for each.
#[derive(Clone, Copy)]
pub(crate) struct Allowed(u64);

impl Allowed {
    const fn of(ids: &[u8]) -> Allowed {
        let mut mask = 0;
        let mut at = 0;
        while at < ids.len() {
            mask |= 1 << ids[at];
            at += 1;
        }
        Allowed(mask)
    }
}

pub(crate) const IN_CONNECT: Allowed = Allowed::of(&[
    SESSION_EXPIRY,
    AUTHENTICATION_METHOD,
    AUTHENTICATION_DATA,
    REQUEST_PROBLEM,
    REQUEST_RESPONSE,
    RECEIVE_MAXIMUM,
    TOPIC_ALIAS_MAXIMUM,
    USER,
    MAXIMUM_PACKET,
]);
pub(crate) const IN_CONNACK: Allowed = Allowed::of(&[
    SESSION_EXPIRY,
    ASSIGNED_CLIENT_ID,
    SERVER_KEEP_ALIVE,
    AUTHENTICATION_METHOD,
    AUTHENTICATION_DATA,
    RESPONSE_INFORMATION,
    SERVER_REFERENCE,
    REASON,
    RECEIVE_MAXIMUM,
    TOPIC_ALIAS_MAXIMUM,
    MAXIMUM_QOS,
    RETAIN_AVAILABLE,
    USER,
    MAXIMUM_PACKET,
    WILDCARD_AVAILABLE,
    SUBSCRIPTION_ID_AVAILABLE,
    SHARED_AVAILABLE,
]);
pub(crate) const IN_WILL: Allowed = Allowed::of(&[
    PAYLOAD_FORMAT,
    MESSAGE_EXPIRY,
    CONTENT_TYPE,
    RESPONSE_TOPIC,
    CORRELATION_DATA,
    WILL_DELAY,
    USER,
]);
pub(crate) const IN_PUBLISH: Allowed = Allowed::of(&[
    PAYLOAD_FORMAT,
    MESSAGE_EXPIRY,
    CONTENT_TYPE,
    RESPONSE_TOPIC,
    CORRELATION_DATA,
    SUBSCRIPTION_ID,
    TOPIC_ALIAS,
    USER,
]);
pub(crate) const IN_ACK: Allowed = Allowed::of(&[REASON, USER]);
pub(crate) const IN_SUBSCRIBE: Allowed = Allowed::of(&[SUBSCRIPTION_ID, USER]);
pub(crate) const IN_UNSUBSCRIBE: Allowed = Allowed::of(&[USER]);
pub(crate) const IN_DISCONNECT: Allowed = Allowed::of(&[SESSION_EXPIRY, SERVER_REFERENCE, REASON, USER]);
pub(crate) const IN_AUTH: Allowed = Allowed::of(&[AUTHENTICATION_METHOD, AUTHENTICATION_DATA, REASON, USER]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// One, two, four bytes, or a variable length.
    Number(u32),
    Text(&'a str),
    Binary(&'a [u8]),
    Pair(&'a str, &'a str),
}

/// The properties of one packet, whole and allowed in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Properties<'a>(&'a [u8]);

impl<'a> Properties<'a> {
    /// Bytes that [`put_number`] and its like have written, or that a packet had.
    pub fn new(bytes: &'a [u8]) -> Properties<'a> {
        Properties(bytes)
    }

    pub(crate) fn check(bytes: &'a [u8], allowed: Allowed) -> Result<Properties<'a>, DecodeError> {
        let (mut rest, mut seen) = (bytes, 0u64);
        while let Some((id, value)) = next(&mut rest)? {
            let bit = 1u64 << id;
            if allowed.0 & bit == 0 {
                return Err(Protocol("a property that this packet may not have"));
            }
            if seen & bit != 0 && id != USER && id != SUBSCRIPTION_ID {
                return Err(Protocol("a property twice"));
            }
            seen |= bit;
            check_value(id, value)?;
        }
        Ok(Properties(bytes))
    }

    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(self) -> impl Iterator<Item = (u8, Value<'a>)> {
        let mut rest = self.0;
        std::iter::from_fn(move || next(&mut rest).ok().flatten())
    }

    /// Each property with its bytes, to copy it as it is.
    pub fn raw(self) -> impl Iterator<Item = (u8, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let before = rest;
            let (id, _) = next(&mut rest).ok().flatten()?;
            Some((id, &before[..before.len() - rest.len()]))
        })
    }

    /// The number of the property, if it is there.
    pub fn number(self, wanted: u8) -> Option<u32> {
        self.iter().find_map(|(id, value)| match value {
            Value::Number(number) if id == wanted => Some(number),
            _ => None,
        })
    }

    pub fn has(self, wanted: u8) -> bool {
        self.iter().any(|(id, _)| id == wanted)
    }
}

fn check_value(id: u8, value: Value<'_>) -> Result<(), DecodeError> {
    match (id, value) {
        (
            PAYLOAD_FORMAT
            | REQUEST_PROBLEM
            | REQUEST_RESPONSE
            | MAXIMUM_QOS
            | RETAIN_AVAILABLE
            | WILDCARD_AVAILABLE
            | SUBSCRIPTION_ID_AVAILABLE
            | SHARED_AVAILABLE,
            Value::Number(2..),
        ) => Err(Protocol("a property that is neither 0 nor 1")),
        (RECEIVE_MAXIMUM | MAXIMUM_PACKET | SUBSCRIPTION_ID, Value::Number(0)) => {
            Err(Protocol("a property that must not be 0"))
        }
        (RESPONSE_TOPIC, Value::Text(topic)) if !crate::topic::topic_is_valid(topic) => {
            Err(Protocol("the response topic is no topic"))
        }
        _ => Ok(()),
    }
}

fn next<'a>(rest: &mut &'a [u8]) -> Result<Option<(u8, Value<'a>)>, DecodeError> {
    let Some((&id, after)) = rest.split_first() else { return Ok(None) };
    let mut reader = crate::packet::Reader(after);
    let value = match id {
        PAYLOAD_FORMAT
        | REQUEST_PROBLEM
        | REQUEST_RESPONSE
        | MAXIMUM_QOS
        | RETAIN_AVAILABLE
        | WILDCARD_AVAILABLE
        | SUBSCRIPTION_ID_AVAILABLE
        | SHARED_AVAILABLE => Value::Number(reader.byte()?.into()),
        SERVER_KEEP_ALIVE | RECEIVE_MAXIMUM | TOPIC_ALIAS_MAXIMUM | TOPIC_ALIAS => {
            Value::Number(reader.number()?.into())
        }
        MESSAGE_EXPIRY | SESSION_EXPIRY | WILL_DELAY | MAXIMUM_PACKET => Value::Number(reader.four()?),
        SUBSCRIPTION_ID => Value::Number(reader.variable()?),
        CONTENT_TYPE
        | RESPONSE_TOPIC
        | ASSIGNED_CLIENT_ID
        | AUTHENTICATION_METHOD
        | RESPONSE_INFORMATION
        | SERVER_REFERENCE
        | REASON => Value::Text(reader.text()?),
        CORRELATION_DATA | AUTHENTICATION_DATA => Value::Binary(reader.bytes()?),
        USER => Value::Pair(reader.text()?, reader.text()?),
        _ => return Err(Malformed("unknown property")),
    };
    *rest = reader.0;
    Ok(Some((id, value)))
}

/// Appends a number in the width that the property has.
pub fn put_number(out: &mut Vec<u8>, id: u8, value: u32) {
    out.push(id);
    match id {
        SERVER_KEEP_ALIVE | RECEIVE_MAXIMUM | TOPIC_ALIAS_MAXIMUM | TOPIC_ALIAS => {
            out.extend_from_slice(&(value.min(u16::MAX.into()) as u16).to_be_bytes());
        }
        MESSAGE_EXPIRY | SESSION_EXPIRY | WILL_DELAY | MAXIMUM_PACKET => {
            out.extend_from_slice(&value.to_be_bytes());
        }
        SUBSCRIPTION_ID => crate::encode::variable(out, value as usize),
        _ => out.push(value as u8),
    }
}

pub fn put_text(out: &mut Vec<u8>, id: u8, value: &str) {
    out.push(id);
    crate::encode::bytes(out, value.as_bytes());
}
