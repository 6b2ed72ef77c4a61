//! MQTT's bytes, written a second time: nothing of `lib/mqtt` is used here, so that an error there is not repeated by its test.
//!
//! It can also write what the specification forbids: every field is open, and [`Packet`] is bytes.

use anyhow::{Context, Result, bail, ensure};

pub const CONNECT: u8 = 1;
pub const CONNACK: u8 = 2;
pub const PUBLISH: u8 = 3;
pub const PUBACK: u8 = 4;
pub const PUBREC: u8 = 5;
pub const PUBREL: u8 = 6;
pub const PUBCOMP: u8 = 7;
pub const SUBSCRIBE: u8 = 8;
pub const SUBACK: u8 = 9;
pub const UNSUBSCRIBE: u8 = 10;
pub const UNSUBACK: u8 = 11;
pub const PINGREQ: u8 = 12;
pub const PINGRESP: u8 = 13;
pub const DISCONNECT: u8 = 14;
pub const AUTH: u8 = 15;

/// 3.1.1 and 5, as CONNECT names them.
pub const V4: u8 = 4;
pub const V5: u8 = 5;

/// Any packet: its kind (1 to 15), the four flag bits and what follows the remaining length.
#[derive(Clone, PartialEq)]
pub struct Packet {
    pub kind: u8,
    pub flags: u8,
    pub body: Vec<u8>,
}

/// In one line of a report, so only the beginning.
impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "packet {:x}{:x} {:02x?}", self.kind, self.flags, &self.body[..self.body.len().min(24)])
    }
}

impl Packet {
    pub fn new(kind: u8, flags: u8, body: Vec<u8>) -> Packet {
        Packet { kind, flags, body }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![self.kind << 4 | self.flags];
        varint(&mut out, self.body.len() as u32);
        out.extend(&self.body);
        out
    }

    /// The first whole packet in `bytes` and its length; `None` when more bytes are needed.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Packet, usize)>> {
        let Some(first) = bytes.first() else { return Ok(None) };
        let mut len = 0;
        for at in 0..4 {
            let Some(byte) = bytes.get(1 + at) else { return Ok(None) };
            len |= usize::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                let start = 2 + at;
                return Ok(bytes
                    .get(start..start + len)
                    .map(|body| (Packet::new(first >> 4, first & 15, body.to_vec()), start + len)));
            }
        }
        bail!("a remaining length of more than four bytes: {:02x?}", &bytes[..5])
    }
}

pub fn varint(out: &mut Vec<u8>, mut value: u32) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

/// Two bytes of length, then the bytes.
pub fn field(out: &mut Vec<u8>, bytes: impl AsRef<[u8]>) {
    out.extend((bytes.as_ref().len() as u16).to_be_bytes());
    out.extend(bytes.as_ref());
}

/// A property of MQTT 5: its identifier and value.
#[derive(Clone, Debug, PartialEq)]
pub enum Prop {
    Byte(u8, u8),
    Two(u8, u16),
    Four(u8, u32),
    Var(u8, u32),
    Text(u8, String),
    Bytes(u8, Vec<u8>),
    Pair(String, String),
}

pub const PAYLOAD_FORMAT: u8 = 1;
pub const MESSAGE_EXPIRY: u8 = 2;
pub const CONTENT_TYPE: u8 = 3;
pub const RESPONSE_TOPIC: u8 = 8;
pub const CORRELATION: u8 = 9;
pub const SUBSCRIPTION_ID: u8 = 11;
pub const SESSION_EXPIRY: u8 = 17;
pub const ASSIGNED_ID: u8 = 18;
pub const SERVER_KEEP_ALIVE: u8 = 19;
pub const AUTH_METHOD: u8 = 21;
pub const AUTH_DATA: u8 = 22;
pub const REQUEST_PROBLEM: u8 = 23;
pub const WILL_DELAY: u8 = 24;
pub const REQUEST_RESPONSE: u8 = 25;
pub const RESPONSE_INFORMATION: u8 = 26;
pub const REASON: u8 = 31;
pub const RECEIVE_MAXIMUM: u8 = 33;
pub const TOPIC_ALIAS_MAXIMUM: u8 = 34;
pub const TOPIC_ALIAS: u8 = 35;
pub const MAXIMUM_QOS: u8 = 36;
pub const RETAIN_AVAILABLE: u8 = 37;
pub const USER: u8 = 38;
pub const MAXIMUM_PACKET: u8 = 39;
pub const WILDCARDS_AVAILABLE: u8 = 40;
pub const IDS_AVAILABLE: u8 = 41;
pub const SHARED_AVAILABLE: u8 = 42;

pub fn user(name: &str, value: &str) -> Prop {
    Prop::Pair(name.into(), value.into())
}

impl Prop {
    pub fn id(&self) -> u8 {
        match self {
            Prop::Byte(id, _) | Prop::Two(id, _) | Prop::Four(id, _) | Prop::Var(id, _) => *id,
            Prop::Text(id, _) | Prop::Bytes(id, _) => *id,
            Prop::Pair(..) => USER,
        }
    }

    /// Its number, whatever its width.
    pub fn number(&self) -> Option<u32> {
        match self {
            Prop::Byte(_, value) => Some(u32::from(*value)),
            Prop::Two(_, value) => Some(u32::from(*value)),
            Prop::Four(_, value) | Prop::Var(_, value) => Some(*value),
            _ => None,
        }
    }
}

/// Length and properties.
pub fn props(out: &mut Vec<u8>, list: &[Prop]) {
    let mut inner = Vec::new();
    for prop in list {
        inner.push(prop.id());
        match prop {
            Prop::Byte(_, value) => inner.push(*value),
            Prop::Two(_, value) => inner.extend(value.to_be_bytes()),
            Prop::Four(_, value) => inner.extend(value.to_be_bytes()),
            Prop::Var(_, value) => varint(&mut inner, *value),
            Prop::Text(_, value) => field(&mut inner, value),
            Prop::Bytes(_, value) => field(&mut inner, value),
            Prop::Pair(name, value) => {
                field(&mut inner, name);
                field(&mut inner, value);
            }
        }
    }
    varint(out, inner.len() as u32);
    out.extend(inner);
}

/// Reads a packet's body from the front; an error says what was missing.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        ensure!(self.0.len() >= len, "{len} bytes wanted, {} left", self.0.len());
        let (head, tail) = self.0.split_at(len);
        self.0 = tail;
        Ok(head)
    }

    pub fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub fn two(&mut self) -> Result<u16> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    pub fn four(&mut self) -> Result<u32> {
        Ok(u32::from(self.two()?) << 16 | u32::from(self.two()?))
    }

    pub fn varint(&mut self) -> Result<u32> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        bail!("a variable byte integer of more than four bytes")
    }

    pub fn field(&mut self) -> Result<&'a [u8]> {
        let len = self.two()?;
        self.take(usize::from(len))
    }

    pub fn text(&mut self) -> Result<String> {
        Ok(std::str::from_utf8(self.field()?).context("a string is not UTF-8")?.to_owned())
    }

    pub fn props(&mut self) -> Result<Vec<Prop>> {
        let len = self.varint()? as usize;
        let mut inner = Reader(self.take(len)?);
        let mut list = Vec::new();
        while !inner.0.is_empty() {
            let id = inner.byte()?;
            list.push(match id {
                PAYLOAD_FORMAT | REQUEST_PROBLEM | REQUEST_RESPONSE | MAXIMUM_QOS | RETAIN_AVAILABLE
                | WILDCARDS_AVAILABLE | IDS_AVAILABLE | SHARED_AVAILABLE => Prop::Byte(id, inner.byte()?),
                SERVER_KEEP_ALIVE | RECEIVE_MAXIMUM | TOPIC_ALIAS_MAXIMUM | TOPIC_ALIAS => {
                    Prop::Two(id, inner.two()?)
                }
                MESSAGE_EXPIRY | SESSION_EXPIRY | WILL_DELAY | MAXIMUM_PACKET => {
                    Prop::Four(id, inner.four()?)
                }
                SUBSCRIPTION_ID => Prop::Var(id, inner.varint()?),
                CONTENT_TYPE | RESPONSE_TOPIC | ASSIGNED_ID | AUTH_METHOD | RESPONSE_INFORMATION | REASON
                | 28 => Prop::Text(id, inner.text()?),
                CORRELATION | AUTH_DATA => Prop::Bytes(id, inner.field()?.to_vec()),
                USER => Prop::Pair(inner.text()?, inner.text()?),
                other => bail!("unknown property {other}"),
            });
        }
        Ok(list)
    }
}

/// CONNECT; the defaults are a good one.
#[derive(Clone, Debug)]
pub struct Connect {
    pub name: Vec<u8>,
    pub version: u8,
    pub id: Vec<u8>,
    pub clean: bool,
    pub keep_alive: u16,
    pub will: Option<Will>,
    pub user: Option<Vec<u8>>,
    pub password: Option<Vec<u8>>,
    pub props: Vec<Prop>,
    /// Turns over bits of the connect flags after they were computed.
    pub flip: u8,
}

#[derive(Clone, Debug, Default)]
pub struct Will {
    pub topic: Vec<u8>,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    pub props: Vec<Prop>,
}

impl Connect {
    pub fn new(version: u8, id: &str) -> Connect {
        Connect {
            name: b"MQTT".to_vec(),
            version,
            id: id.into(),
            clean: true,
            // Not 0: rumqttd refuses that, which is a row of its own.
            keep_alive: 60,
            will: None,
            user: None,
            password: None,
            props: Vec::new(),
            flip: 0,
        }
    }

    pub fn packet(&self) -> Packet {
        let mut body = Vec::new();
        field(&mut body, &self.name);
        body.push(self.version);
        let will = self.will.as_ref().map_or(0, |will| 4 | will.qos << 3 | u8::from(will.retain) << 5);
        let flags = u8::from(self.clean) << 1
            | will
            | u8::from(self.password.is_some()) << 6
            | u8::from(self.user.is_some()) << 7;
        body.push(flags ^ self.flip);
        body.extend(self.keep_alive.to_be_bytes());
        if self.version >= V5 {
            props(&mut body, &self.props);
        }
        field(&mut body, &self.id);
        if let Some(will) = &self.will {
            if self.version >= V5 {
                props(&mut body, &will.props);
            }
            field(&mut body, &will.topic);
            field(&mut body, &will.payload);
        }
        self.user.iter().chain(&self.password).for_each(|bytes| field(&mut body, bytes));
        Packet::new(CONNECT, 0, body)
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Publish {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    pub duplicate: bool,
    pub id: u16,
    pub props: Vec<Prop>,
}

impl Publish {
    pub fn packet(&self, version: u8) -> Packet {
        let mut body = Vec::new();
        field(&mut body, &self.topic);
        if self.qos > 0 {
            body.extend(self.id.to_be_bytes());
        }
        if version >= V5 {
            props(&mut body, &self.props);
        }
        body.extend(&self.payload);
        let flags = u8::from(self.duplicate) << 3 | self.qos << 1 | u8::from(self.retain);
        Packet::new(PUBLISH, flags, body)
    }

    pub fn parse(packet: &Packet, version: u8) -> Result<Publish> {
        ensure!(packet.kind == PUBLISH, "{packet:?} is no PUBLISH");
        let mut body = Reader(&packet.body);
        let qos = packet.flags >> 1 & 3;
        ensure!(qos < 3, "a PUBLISH with both QoS bits set");
        let topic = body.text()?;
        let id = if qos > 0 { body.two()? } else { 0 };
        ensure!(qos == 0 || id > 0, "a PUBLISH of QoS {qos} with packet id 0");
        let list = if version >= V5 { body.props()? } else { Vec::new() };
        Ok(Publish {
            topic,
            payload: body.0.to_vec(),
            qos,
            retain: packet.flags & 1 == 1,
            duplicate: packet.flags & 8 == 8,
            id,
            props: list,
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }

    pub fn number(&self, id: u8) -> Option<u32> {
        self.props.iter().find(|prop| prop.id() == id).and_then(Prop::number)
    }
}

/// `filters`: the filter and its options byte.
pub fn subscribe(version: u8, id: u16, list: &[Prop], filters: &[(&str, u8)]) -> Packet {
    let mut body = id.to_be_bytes().to_vec();
    if version >= V5 {
        props(&mut body, list);
    }
    for (filter, options) in filters {
        field(&mut body, filter);
        body.push(*options);
    }
    Packet::new(SUBSCRIBE, 2, body)
}

pub fn unsubscribe(version: u8, id: u16, filters: &[&str]) -> Packet {
    let mut body = id.to_be_bytes().to_vec();
    if version >= V5 {
        props(&mut body, &[]);
    }
    filters.iter().for_each(|filter| field(&mut body, filter));
    Packet::new(UNSUBSCRIBE, 2, body)
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP in their short form.
pub fn ack(kind: u8, id: u16) -> Packet {
    Packet::new(kind, if kind == PUBREL { 2 } else { 0 }, id.to_be_bytes().to_vec())
}

/// The same with a reason code of MQTT 5.
pub fn ack_with(kind: u8, id: u16, reason: u8) -> Packet {
    let mut packet = ack(kind, id);
    packet.body.push(reason);
    packet
}

pub fn empty(kind: u8) -> Packet {
    Packet::new(kind, 0, Vec::new())
}

/// DISCONNECT of MQTT 5 with a reason and properties.
pub fn disconnect(reason: u8, list: &[Prop]) -> Packet {
    let mut body = vec![reason];
    props(&mut body, list);
    Packet::new(DISCONNECT, 0, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written from the figures of the specification by hand, not with the functions above.
    #[test]
    fn bytes_of_the_specification() {
        assert_eq!(
            Connect::new(V4, "a").packet().bytes(),
            [0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 1, b'a']
        );
        let publish = Publish { topic: "a/b".into(), qos: 1, id: 10, ..Publish::default() };
        assert_eq!(publish.packet(V4).bytes(), [0x32, 7, 0, 3, b'a', b'/', b'b', 0, 10]);
        assert_eq!(Publish::parse(&publish.packet(V5), V5).unwrap(), publish);
        let mut long = Vec::new();
        varint(&mut long, 16_384);
        assert_eq!(long, [0x80, 0x80, 1]);
        assert_eq!(Reader(&long).varint().unwrap(), 16_384);
        assert!(Packet::parse(&[0x30, 2, 0]).unwrap().is_none());
        let list = [user("k", "v"), Prop::Four(SESSION_EXPIRY, 7), Prop::Var(SUBSCRIPTION_ID, 300)];
        let mut bytes = Vec::new();
        props(&mut bytes, &list);
        assert_eq!(Reader(&bytes).props().unwrap(), list);
    }
}
