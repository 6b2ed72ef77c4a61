//! The packets of MQTT 3.1.1 as they are read. Text and payloads borrow from the input.

use crate::topic::{filter_is_valid, topic_is_valid};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    AtMostOnce,
    AtLeastOnce,
    ExactlyOnce,
}

impl Qos {
    fn from_bits(bits: u8) -> Result<Qos, DecodeError> {
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
    #[error("protocol level {0} is not supported: use MQTT 3.1.1 (mosquitto: -V 311)")]
    ProtocolLevel(u8),
}

use DecodeError::Malformed;

#[derive(Clone, Debug, PartialEq)]
pub struct Will<'a> {
    pub topic: &'a str,
    pub payload: &'a [u8],
    pub qos: Qos,
    pub retain: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Connect<'a> {
    pub client_id: &'a str,
    pub clean_session: bool,
    pub keep_alive_s: u16,
    pub will: Option<Will<'a>>,
    pub username: Option<&'a str>,
    pub password: Option<&'a [u8]>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Publish<'a> {
    pub topic: &'a str,
    pub payload: &'a [u8],
    pub qos: Qos,
    pub retain: bool,
    pub duplicate: bool,
    /// 0 with QoS 0.
    pub id: u16,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Packet<'a> {
    Connect(Connect<'a>),
    ConnAck { session_present: bool, code: u8 },
    Publish(Publish<'a>),
    PubAck(u16),
    PubRec(u16),
    PubRel(u16),
    PubComp(u16),
    Subscribe { id: u16, filters: Vec<(&'a str, Qos)> },
    SubAck { id: u16, codes: &'a [u8] },
    Unsubscribe { id: u16, filters: Vec<&'a str> },
    UnsubAck(u16),
    PingReq,
    PingResp,
    Disconnect,
}

/// The first packet of `input` and its length, or `None` when it is not whole yet. A packet that says it is longer than
/// `bytes_max` is refused as soon as its header is there.
pub fn decode(input: &[u8], bytes_max: usize) -> Result<Option<(Packet<'_>, usize)>, DecodeError> {
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
    Ok(Some((decode_body(first >> 4, first & 0x0f, Reader(body))?, len)))
}

fn decode_body(kind: u8, flags: u8, mut body: Reader<'_>) -> Result<Packet<'_>, DecodeError> {
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
            Packet::ConnAck { session_present: flags == 1, code: body.byte()? }
        }
        3 => Packet::Publish(publish(flags, &mut body)?),
        4 => Packet::PubAck(body.id()?),
        5 => Packet::PubRec(body.id()?),
        6 => Packet::PubRel(body.id()?),
        7 => Packet::PubComp(body.id()?),
        8 => {
            let id = body.id()?;
            let mut filters = Vec::new();
            while !body.0.is_empty() {
                filters.push((body.filter()?, Qos::from_bits(body.byte()?)?));
            }
            if filters.is_empty() {
                return Err(Malformed("SUBSCRIBE without a filter"));
            }
            Packet::Subscribe { id, filters }
        }
        9 => {
            let id = body.id()?;
            Packet::SubAck { id, codes: body.rest() }
        }
        10 => {
            let id = body.id()?;
            let mut filters = Vec::new();
            while !body.0.is_empty() {
                filters.push(body.filter()?);
            }
            if filters.is_empty() {
                return Err(Malformed("UNSUBSCRIBE without a filter"));
            }
            Packet::Unsubscribe { id, filters }
        }
        11 => Packet::UnsubAck(body.id()?),
        12 => Packet::PingReq,
        13 => Packet::PingResp,
        14 => Packet::Disconnect,
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
    if (name, level) != ("MQTT", 4) && (name, level) != ("MQIsdp", 3) {
        return Err(if name == "MQTT" {
            DecodeError::ProtocolLevel(level)
        } else {
            Malformed("protocol name")
        });
    }
    let flags = body.byte()?;
    let (has_will, has_password, has_username) = (flags & 4 != 0, flags & 0x40 != 0, flags & 0x80 != 0);
    if flags & 1 != 0 || (!has_will && flags & 0x38 != 0) || (has_password && !has_username) {
        return Err(Malformed("flags of CONNECT"));
    }
    let keep_alive_s = body.number()?;
    let client_id = body.text()?;
    let will = if has_will {
        let topic = body.text()?;
        if !topic_is_valid(topic) {
            return Err(Malformed("topic of the will"));
        }
        let payload = body.bytes()?;
        Some(Will { topic, payload, qos: Qos::from_bits(flags >> 3 & 3)?, retain: flags & 0x20 != 0 })
    } else {
        None
    };
    let username = if has_username { Some(body.text()?) } else { None };
    let password = if has_password { Some(body.bytes()?) } else { None };
    Ok(Connect { client_id, clean_session: flags & 2 != 0, keep_alive_s, will, username, password })
}

fn publish<'a>(flags: u8, body: &mut Reader<'a>) -> Result<Publish<'a>, DecodeError> {
    let qos = Qos::from_bits(flags >> 1 & 3)?;
    let topic = body.text()?;
    if !topic_is_valid(topic) {
        return Err(Malformed("topic of PUBLISH"));
    }
    let id = if qos == Qos::AtMostOnce { 0 } else { body.id()? };
    Ok(Publish { topic, payload: body.rest(), qos, retain: flags & 1 != 0, duplicate: flags & 8 != 0, id })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed("shorter than it says"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u16, DecodeError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn id(&mut self) -> Result<u16, DecodeError> {
        match self.number()? {
            0 => Err(Malformed("packet id 0")),
            id => Ok(id),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.number()?;
        self.take(usize::from(len))
    }

    fn text(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed("text is not UTF-8"))
    }

    fn filter(&mut self) -> Result<&'a str, DecodeError> {
        let filter = self.text()?;
        if filter_is_valid(filter) { Ok(filter) } else { Err(Malformed("filter")) }
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// Total on any input: decodes packet after packet, and what decodes survives encoding and decoding again.
pub fn fuzz_decode(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some((packet, len))) = decode(rest, 64 * 1024) {
        let mut again = Vec::new();
        crate::encode::packet(&mut again, &packet);
        let (second, used) =
            decode(&again, usize::MAX).expect("own bytes decode").expect("own bytes are whole");
        assert_eq!((&second, used), (&packet, again.len()));
        rest = &rest[len..];
    }
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
