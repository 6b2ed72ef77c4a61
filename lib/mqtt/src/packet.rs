//! The packets of MQTT 3.1.1 and 5 as they are read. Text, payloads and properties borrow from the input.

use crate::{
    property::{self, Allowed, Properties},
    topic::{filter_is_valid, topic_is_valid},
};

/// What the two ends of a connection speak, as CONNECT says. 3.1 is read as 3.1.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    #[default]
    V3,
    V5,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    #[default]
    AtMostOnce,
    AtLeastOnce,
    ExactlyOnce,
}

impl Qos {
    pub(crate) fn from_bits(bits: u8) -> Result<Qos, DecodeError> {
        match bits {
            0 => Ok(Qos::AtMostOnce),
            1 => Ok(Qos::AtLeastOnce),
            2 => Ok(Qos::ExactlyOnce),
            _ => Err(DecodeError::Malformed("quality of service 3")),
        }
    }

    pub fn bits(self) -> u8 {
        self as u8
    }
}

/// Why bytes are not a packet. The connection is of no use afterwards.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("packet of {len} bytes is over the limit of {max}")]
    TooLarge { len: usize, max: usize },
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    #[error("against the protocol: {0}")]
    Protocol(&'static str),
    #[error("protocol level {0} is not supported: use MQTT 3.1.1 or 5 (mosquitto: -V 311)")]
    ProtocolLevel(u8),
}

impl DecodeError {
    /// The reason code of MQTT 5 that tells it to the other end.
    pub fn reason(&self) -> u8 {
        match self {
            DecodeError::TooLarge { .. } => reason::PACKET_TOO_LARGE,
            DecodeError::Malformed(_) => reason::MALFORMED,
            DecodeError::Protocol(_) => reason::PROTOCOL,
            DecodeError::ProtocolLevel(_) => reason::UNSUPPORTED_VERSION,
        }
    }
}

/// Reason codes of MQTT 5 (section 2.4), as far as they are said here.
pub mod reason {
    pub const SUCCESS: u8 = 0;
    pub const DISCONNECT_WITH_WILL: u8 = 4;
    pub const NO_SUBSCRIBERS: u8 = 0x10;
    pub const NO_SUBSCRIPTION: u8 = 0x11;
    pub const FAILURE: u8 = 0x80;
    pub const MALFORMED: u8 = 0x81;
    pub const PROTOCOL: u8 = 0x82;
    pub const UNSUPPORTED_VERSION: u8 = 0x84;
    pub const CLIENT_ID: u8 = 0x85;
    pub const BAD_PASSWORD: u8 = 0x86;
    pub const NOT_AUTHORIZED: u8 = 0x87;
    pub const SERVER_BUSY: u8 = 0x89;
    pub const SHUTTING_DOWN: u8 = 0x8b;
    pub const BAD_AUTHENTICATION_METHOD: u8 = 0x8c;
    pub const KEEP_ALIVE: u8 = 0x8d;
    pub const TAKEN_OVER: u8 = 0x8e;
    pub const FILTER_INVALID: u8 = 0x8f;
    pub const TOPIC_INVALID: u8 = 0x90;
    pub const ID_IN_USE: u8 = 0x91;
    pub const ID_NOT_FOUND: u8 = 0x92;
    pub const RECEIVE_MAXIMUM: u8 = 0x93;
    pub const TOPIC_ALIAS: u8 = 0x94;
    pub const PACKET_TOO_LARGE: u8 = 0x95;
    pub const QUOTA: u8 = 0x97;
}

use DecodeError::{Malformed, Protocol};

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Will<'a> {
    pub topic: &'a str,
    pub payload: &'a [u8],
    pub qos: Qos,
    pub retain: bool,
    pub properties: Properties<'a>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Connect<'a> {
    pub version: Version,
    pub client_id: &'a str,
    /// "Clean start" in MQTT 5.
    pub clean_session: bool,
    pub keep_alive_s: u16,
    pub will: Option<Will<'a>>,
    pub username: Option<&'a str>,
    pub password: Option<&'a [u8]>,
    pub properties: Properties<'a>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Publish<'a> {
    /// Empty only with a topic alias (MQTT 5).
    pub topic: &'a str,
    pub payload: &'a [u8],
    pub qos: Qos,
    pub retain: bool,
    pub duplicate: bool,
    /// 0 with QoS 0.
    pub id: u16,
    pub properties: Properties<'a>,
}

/// PUBACK and its like. The reason is 0 and unsaid in MQTT 3.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    pub id: u16,
    pub reason: u8,
}

impl From<u16> for Ack {
    fn from(id: u16) -> Ack {
        Ack { id, reason: reason::SUCCESS }
    }
}

/// How a subscription is served. All but the quality of service are of MQTT 5.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubscribeOptions {
    pub qos: Qos,
    pub no_local: bool,
    pub retain_as_published: bool,
    /// 0: retained messages are sent, 1: only if the subscription is new, 2: not.
    pub retain_handling: u8,
}

impl From<Qos> for SubscribeOptions {
    fn from(qos: Qos) -> SubscribeOptions {
        SubscribeOptions { qos, ..SubscribeOptions::default() }
    }
}

impl SubscribeOptions {
    pub(crate) fn from_bits(bits: u8, version: Version) -> Result<SubscribeOptions, DecodeError> {
        let reserved = if version == Version::V5 { 0xc0 } else { 0xfc };
        if bits & reserved != 0 || bits & 0x30 == 0x30 {
            return Err(Malformed("options of a subscription"));
        }
        Ok(SubscribeOptions {
            qos: Qos::from_bits(bits & 3)?,
            no_local: bits & 4 != 0,
            retain_as_published: bits & 8 != 0,
            retain_handling: bits >> 4,
        })
    }

    pub(crate) fn bits(self) -> u8 {
        self.qos.bits()
            | u8::from(self.no_local) << 2
            | u8::from(self.retain_as_published) << 3
            | self.retain_handling << 4
    }
}

/// Properties of acknowledgements (a reason as text, user properties) are checked and left out.
#[derive(Clone, Debug, PartialEq)]
pub enum Packet<'a> {
    Connect(Connect<'a>),
    ConnAck {
        session_present: bool,
        code: u8,
        properties: Properties<'a>,
    },
    Publish(Publish<'a>),
    PubAck(Ack),
    PubRec(Ack),
    PubRel(Ack),
    PubComp(Ack),
    Subscribe {
        id: u16,
        filters: Vec<(&'a str, SubscribeOptions)>,
        properties: Properties<'a>,
    },
    SubAck {
        id: u16,
        codes: &'a [u8],
    },
    Unsubscribe {
        id: u16,
        filters: Vec<&'a str>,
    },
    /// One code for each filter in MQTT 5, none in 3.1.1.
    UnsubAck {
        id: u16,
        codes: &'a [u8],
    },
    PingReq,
    PingResp,
    Disconnect {
        reason: u8,
        properties: Properties<'a>,
    },
    Auth {
        reason: u8,
        properties: Properties<'a>,
    },
}

/// The first packet of `input`, in MQTT 3.1.1, and its length; see [`decode_as`].
pub fn decode(input: &[u8], bytes_max: usize) -> Result<Option<(Packet<'_>, usize)>, DecodeError> {
    decode_as(Version::V3, input, bytes_max)
}

/// The first packet of `input` and its length, or `None` when it is not whole yet. A packet that says it is longer than
/// `bytes_max` is refused as soon as its header is there. The version of CONNECT is the one that it names itself.
pub fn decode_as(
    version: Version,
    input: &[u8],
    bytes_max: usize,
) -> Result<Option<(Packet<'_>, usize)>, DecodeError> {
    let Some(&first) = input.first() else { return Ok(None) };
    let mut remaining = 0usize;
    let mut header = 1;
    loop {
        let Some(&byte) = input.get(header) else { return Ok(None) };
        remaining |= usize::from(byte & 0x7f) << (7 * (header - 1));
        header += 1;
        if byte & 0x80 == 0 {
            break;
        }
        if header > 4 {
            return Err(Malformed("remaining length of more than four bytes"));
        }
    }
    let len = header + remaining;
    if len > bytes_max {
        return Err(DecodeError::TooLarge { len, max: bytes_max });
    }
    let Some(body) = input.get(header..len) else { return Ok(None) };
    Ok(Some((decode_body(version, first >> 4, first & 0x0f, Reader(body))?, len)))
}

fn decode_body<'a>(
    version: Version,
    kind: u8,
    flags: u8,
    mut body: Reader<'a>,
) -> Result<Packet<'a>, DecodeError> {
    let flags_expected = match kind {
        3 => flags,
        6 | 8 | 10 => 2,
        _ => 0,
    };
    if flags != flags_expected {
        return Err(Malformed("reserved flags"));
    }
    let packet = match kind {
        1 => Packet::Connect(connect(&mut body)?),
        2 => {
            let flags = body.byte()?;
            if flags > 1 {
                return Err(Malformed("reserved bits of CONNACK"));
            }
            let code = body.byte()?;
            let properties = body.properties(version, property::IN_CONNACK)?;
            Packet::ConnAck { session_present: flags == 1, code, properties }
        }
        3 => Packet::Publish(publish(version, flags, &mut body)?),
        4 => Packet::PubAck(body.ack(version)?),
        5 => Packet::PubRec(body.ack(version)?),
        6 => Packet::PubRel(body.ack(version)?),
        7 => Packet::PubComp(body.ack(version)?),
        8 => {
            let id = body.id()?;
            let properties = body.properties(version, property::IN_SUBSCRIBE)?;
            let mut filters = Vec::new();
            while !body.0.is_empty() {
                filters.push((body.filter()?, SubscribeOptions::from_bits(body.byte()?, version)?));
            }
            if filters.is_empty() {
                return Err(Protocol("SUBSCRIBE without a filter"));
            }
            Packet::Subscribe { id, filters, properties }
        }
        9 => {
            let id = body.id()?;
            body.properties(version, property::IN_ACK)?;
            Packet::SubAck { id, codes: body.rest() }
        }
        10 => {
            let id = body.id()?;
            body.properties(version, property::IN_UNSUBSCRIBE)?;
            let mut filters = Vec::new();
            while !body.0.is_empty() {
                filters.push(body.filter()?);
            }
            if filters.is_empty() {
                return Err(Protocol("UNSUBSCRIBE without a filter"));
            }
            Packet::Unsubscribe { id, filters }
        }
        11 => {
            let id = body.id()?;
            body.properties(version, property::IN_ACK)?;
            let codes = if version == Version::V5 { body.rest() } else { &[] };
            Packet::UnsubAck { id, codes }
        }
        12 => Packet::PingReq,
        13 => Packet::PingResp,
        14 => {
            let (reason, properties) = body.reason(version, property::IN_DISCONNECT)?;
            Packet::Disconnect { reason, properties }
        }
        15 if version == Version::V5 => {
            let (reason, properties) = body.reason(version, property::IN_AUTH)?;
            Packet::Auth { reason, properties }
        }
        _ => return Err(Malformed("unknown packet type")),
    };
    if !body.0.is_empty() {
        return Err(Malformed("bytes after the end of the packet"));
    }
    Ok(packet)
}

fn connect<'a>(body: &mut Reader<'a>) -> Result<Connect<'a>, DecodeError> {
    let name = body.text()?;
    let level = body.byte()?;
    let version = match (name, level) {
        ("MQTT", 4) | ("MQIsdp", 3) => Version::V3,
        ("MQTT", 5) => Version::V5,
        ("MQTT", _) => return Err(DecodeError::ProtocolLevel(level)),
        _ => return Err(Malformed("protocol name")),
    };
    let flags = body.byte()?;
    let (has_will, has_password, has_username) = (flags & 4 != 0, flags & 0x40 != 0, flags & 0x80 != 0);
    let password_alone = has_password && !has_username && version == Version::V3;
    if flags & 1 != 0 || (!has_will && flags & 0x38 != 0) || password_alone {
        return Err(Malformed("flags of CONNECT"));
    }
    let keep_alive_s = body.number()?;
    let properties = body.properties(version, property::IN_CONNECT)?;
    let client_id = body.text()?;
    let will = if has_will {
        let properties = body.properties(version, property::IN_WILL)?;
        let topic = body.text()?;
        if !topic_is_valid(topic) {
            return Err(Malformed("topic of the will"));
        }
        let payload = body.bytes()?;
        let qos = Qos::from_bits(flags >> 3 & 3)?;
        Some(Will { topic, payload, qos, retain: flags & 0x20 != 0, properties })
    } else {
        None
    };
    let username = if has_username { Some(body.text()?) } else { None };
    let password = if has_password { Some(body.bytes()?) } else { None };
    let clean_session = flags & 2 != 0;
    Ok(Connect { version, client_id, clean_session, keep_alive_s, will, username, password, properties })
}

fn publish<'a>(version: Version, flags: u8, body: &mut Reader<'a>) -> Result<Publish<'a>, DecodeError> {
    let qos = Qos::from_bits(flags >> 1 & 3)?;
    let duplicate = flags & 8 != 0;
    if duplicate && qos == Qos::AtMostOnce {
        return Err(Malformed("a duplicate of quality of service 0"));
    }
    // The null character is found with what else a topic may not have.
    let topic = body.utf8()?;
    let id = if qos == Qos::AtMostOnce { 0 } else { body.id()? };
    let properties = body.properties(version, property::IN_PUBLISH)?;
    let by_alias = topic.is_empty() && properties.has(property::TOPIC_ALIAS);
    if !by_alias && !topic_is_valid(topic) {
        return Err(Malformed("topic of PUBLISH"));
    }
    Ok(Publish { topic, payload: body.rest(), qos, retain: flags & 1 != 0, duplicate, id, properties })
}

pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed("shorter than it says"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }

    pub fn number(&mut self) -> Result<u16, DecodeError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn id(&mut self) -> Result<u16, DecodeError> {
        match self.number()? {
            0 => Err(Malformed("packet id 0")),
            id => Ok(id),
        }
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.number()?;
        self.take(usize::from(len))
    }

    pub fn text(&mut self) -> Result<&'a str, DecodeError> {
        let text = self.utf8()?;
        // MQTT-1.5.3-2 (MQTT-1.5.4-2): never the null character.
        if text.as_bytes().contains(&0) { Err(Malformed("null character in a text")) } else { Ok(text) }
    }

    fn utf8(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed("text is not UTF-8"))
    }

    pub fn four(&mut self) -> Result<u32, DecodeError> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A number of one to four bytes, in the shortest form (MQTT-1.5.5-1).
    pub fn variable(&mut self) -> Result<u32, DecodeError> {
        let mut number = 0;
        for at in 0..4 {
            let byte = self.byte()?;
            number |= u32::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                return if byte == 0 && at > 0 {
                    Err(Malformed("number in a long form"))
                } else {
                    Ok(number)
                };
            }
        }
        Err(Malformed("number of more than four bytes"))
    }

    fn properties(&mut self, version: Version, allowed: Allowed) -> Result<Properties<'a>, DecodeError> {
        if version == Version::V3 {
            return Ok(Properties::default());
        }
        let len = self.variable()? as usize;
        Properties::check(self.take(len)?, allowed)
    }

    /// A packet id, and in MQTT 5 a reason and properties that may be left out.
    fn ack(&mut self, version: Version) -> Result<Ack, DecodeError> {
        let id = self.id()?;
        Ok(Ack { id, reason: self.reason(version, property::IN_ACK)?.0 })
    }

    fn reason(&mut self, version: Version, allowed: Allowed) -> Result<(u8, Properties<'a>), DecodeError> {
        if version == Version::V3 || self.0.is_empty() {
            return Ok((reason::SUCCESS, Properties::default()));
        }
        let reason = self.byte()?;
        let has_properties = !self.0.is_empty();
        let properties =
            if has_properties { self.properties(version, allowed)? } else { Properties::default() };
        Ok((reason, properties))
    }

    fn filter(&mut self) -> Result<&'a str, DecodeError> {
        let filter = self.text()?;
        if filter_is_valid(filter) { Ok(filter) } else { Err(Malformed("filter")) }
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// Total on any input: decodes packet after packet in both versions, and what decodes survives encoding and decoding again.
pub fn fuzz_decode(data: &[u8]) {
    for version in [Version::V3, Version::V5] {
        let mut rest = data;
        while let Ok(Some((packet, len))) = decode_as(version, rest, 64 * 1024) {
            let mut again = Vec::new();
            crate::encode::packet_as(version, &mut again, &packet);
            let (second, used) = decode_as(version, &again, usize::MAX)
                .expect("own bytes decode")
                .expect("own bytes are whole");
            assert_eq!((&second, used), (&packet, again.len()));
            rest = &rest[len..];
        }
    }
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
