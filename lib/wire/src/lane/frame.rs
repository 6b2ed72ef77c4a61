//! Frames of the compact lane; [`crate::frames`] has the form that they share with the byte streams.

use crate::{
    frames::{self, ReadError, put, put_bytes, put_signed, take_bytes, take_signed, take_u8, take_u32},
    limits::{LANE_ACKS_MAX, LANE_TEXT_LEN_MAX},
};

/// Numbers of the frames' kinds.
pub mod kind {
    pub use crate::frames::UNKNOWN;
    pub const MESSAGE: u16 = 0x0020;
    pub const PACKED: u16 = 0x0021;
    pub const ACKS: u16 = 0x0022;
    pub const RENEW: u16 = 0x0023;
    pub const BEAT: u16 = 0x0024;
    pub const BUSY: u16 = 0x0025;
    pub const WELCOME: u16 = 0x0026;
}

/// Words that messages repeat, by their number from 1 on; 0 is followed by a text. Part of version 1: never changed.
const WORDS: [&str; 32] = [
    "",
    "websocket",
    "edged",
    "metamanager",
    "twin",
    "bus",
    "edgecontroller",
    "devicecontroller",
    "policycontroller",
    "dynamiccontroller",
    "cloudhub",
    "taskmanager",
    "router_eventbus",
    "router_servicebus",
    "resource",
    "meta",
    "hub",
    "user",
    "func",
    "insert",
    "update",
    "delete",
    "query",
    "patch",
    "upload",
    "get",
    "response",
    "error",
    "keepalive",
    "publish",
    "subscribe",
    "UpdateNodeActionStatus",
];

/// A message as it stands in a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The sender's number for it on this link.
    pub seq: u32,
    /// The number of the message that it answers.
    pub parent: Option<u32>,
    pub unix_ms: i64,
    pub sync: bool,
    pub source: String,
    pub destination: String,
    pub group: String,
    pub operation: String,
    pub message_type: String,
    pub resource: String,
    pub resource_version: String,
    /// JSON text.
    pub content: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The sender does not know this kind and has skipped the frame.
    Unknown {
        kind: u16,
    },
    Message(Envelope),
    /// Frames (never this kind) in one zstd frame.
    Packed {
        inflated_len: u32,
        bytes: Vec<u8>,
    },
    /// `OK` to the messages with these numbers, which rise.
    Acks(Vec<u32>),
    /// The lease of the node, renewed. Acknowledged.
    Renew {
        seq: u32,
        lease_seconds: u32,
        unix_ms: i64,
    },
    /// The node's status is what it last said. Acknowledged; an error asks for all of it.
    Beat {
        seq: u32,
        unix_ms: i64,
    },
    /// The sender will close the link; the node is not to come back before so many milliseconds.
    Busy {
        after_ms: u32,
        reason: String,
    },
    /// The cloud's first frame. `resumed`: it goes on from the node's last link, nothing is registered or sent anew.
    Welcome {
        resumed: bool,
    },
    /// A kind that this version does not know; never sent.
    Skipped {
        kind: u16,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("frame {kind:#06x} has {more} bytes too many")]
    Long { kind: u16, more: usize },
    #[error("a text in frame {kind:#06x} is not UTF-8 or over {LANE_TEXT_LEN_MAX} bytes")]
    Text { kind: u16 },
    #[error("word {0} does not exist in version 1 of the lane")]
    Word(u32),
    #[error("a list of acknowledgements is longer than {LANE_ACKS_MAX} or does not rise")]
    Acks,
}

const HAS_PARENT: u8 = 1;
const SYNC: u8 = 2;
/// Destination and type follow; KubeEdge leaves both empty on the link.
const HAS_MORE: u8 = 4;

impl Frame {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(64);
        let kind = match self {
            Frame::Unknown { kind } => {
                put(&mut body, u64::from(*kind));
                kind::UNKNOWN
            }
            Frame::Message(envelope) => {
                envelope.encode(&mut body);
                kind::MESSAGE
            }
            Frame::Packed { inflated_len, bytes } => {
                put(&mut body, u64::from(*inflated_len));
                put_bytes(&mut body, bytes);
                kind::PACKED
            }
            Frame::Acks(parents) => {
                put_rising(&mut body, parents);
                kind::ACKS
            }
            Frame::Renew { seq, lease_seconds, unix_ms } => {
                put(&mut body, u64::from(*seq));
                put(&mut body, u64::from(*lease_seconds));
                put_signed(&mut body, *unix_ms);
                kind::RENEW
            }
            Frame::Beat { seq, unix_ms } => {
                put(&mut body, u64::from(*seq));
                put_signed(&mut body, *unix_ms);
                kind::BEAT
            }
            Frame::Busy { after_ms, reason } => {
                put(&mut body, u64::from(*after_ms));
                put_bytes(&mut body, cut(reason).as_bytes());
                kind::BUSY
            }
            Frame::Welcome { resumed } => {
                body.push(u8::from(*resumed));
                kind::WELCOME
            }
            Frame::Skipped { kind } => *kind,
        };
        frames::put_frame(out, kind, &body);
    }

    /// One frame's body.
    pub fn decode(kind: u16, body: &[u8]) -> Result<Frame, FrameError> {
        let rest = &mut &*body;
        let frame = match kind {
            kind::UNKNOWN => {
                Frame::Unknown { kind: u16::try_from(take_u32(rest)?).map_err(|_| ReadError::Number)? }
            }
            kind::MESSAGE => Frame::Message(Envelope::decode(rest)?),
            kind::PACKED => {
                Frame::Packed { inflated_len: take_u32(rest)?, bytes: take_bytes(rest)?.to_vec() }
            }
            kind::ACKS => Frame::Acks(take_rising(rest)?),
            kind::RENEW => Frame::Renew {
                seq: take_u32(rest)?,
                lease_seconds: take_u32(rest)?,
                unix_ms: take_signed(rest)?,
            },
            kind::BEAT => Frame::Beat { seq: take_u32(rest)?, unix_ms: take_signed(rest)? },
            kind::BUSY => Frame::Busy { after_ms: take_u32(rest)?, reason: take_text(rest, kind)? },
            kind::WELCOME => match take_u8(rest)? {
                flag @ 0..=1 => Frame::Welcome { resumed: flag == 1 },
                _ => return Err(ReadError::Number.into()),
            },
            kind => return Ok(Frame::Skipped { kind }),
        };
        match rest.len() {
            0 => Ok(frame),
            more => Err(FrameError::Long { kind, more }),
        }
    }
}

impl Envelope {
    fn encode(&self, body: &mut Vec<u8>) {
        let has_more = !self.destination.is_empty() || !self.message_type.is_empty();
        body.push(
            u8::from(self.parent.is_some()) * HAS_PARENT
                + u8::from(self.sync) * SYNC
                + u8::from(has_more) * HAS_MORE,
        );
        put(body, u64::from(self.seq));
        if let Some(parent) = self.parent {
            put(body, u64::from(parent));
        }
        put_signed(body, self.unix_ms);
        for word in [&self.source, &self.group, &self.operation] {
            put_word(body, word);
        }
        if has_more {
            put_word(body, &self.destination);
            put_word(body, &self.message_type);
        }
        for text in [&self.resource, &self.resource_version, &self.content] {
            put_bytes(body, text.as_bytes());
        }
    }

    fn decode(rest: &mut &[u8]) -> Result<Envelope, FrameError> {
        let flags = take_u8(rest)?;
        if flags & !(HAS_PARENT | SYNC | HAS_MORE) != 0 {
            return Err(ReadError::Number.into());
        }
        let mut envelope = Envelope { seq: take_u32(rest)?, sync: flags & SYNC != 0, ..Envelope::default() };
        if flags & HAS_PARENT != 0 {
            envelope.parent = Some(take_u32(rest)?);
        }
        envelope.unix_ms = take_signed(rest)?;
        envelope.source = take_word(rest)?;
        envelope.group = take_word(rest)?;
        envelope.operation = take_word(rest)?;
        if flags & HAS_MORE != 0 {
            envelope.destination = take_word(rest)?;
            envelope.message_type = take_word(rest)?;
        }
        envelope.resource = take_text(rest, kind::MESSAGE)?;
        envelope.resource_version = take_text(rest, kind::MESSAGE)?;
        // As long as the frame, whose length the WebSocket bounds.
        let content = std::str::from_utf8(take_bytes(rest)?);
        envelope.content = content.map_err(|_| FrameError::Text { kind: kind::MESSAGE })?.to_owned();
        Ok(envelope)
    }
}

fn put_word(body: &mut Vec<u8>, text: &str) {
    match WORDS.iter().position(|word| *word == text) {
        Some(at) => put(body, at as u64 + 1),
        None => {
            put(body, 0);
            put_bytes(body, text.as_bytes());
        }
    }
}

fn take_word(rest: &mut &[u8]) -> Result<String, FrameError> {
    match take_u32(rest)? {
        0 => take_text(rest, kind::MESSAGE),
        number => match WORDS.get(number as usize - 1) {
            Some(word) => Ok((*word).to_owned()),
            None => Err(FrameError::Word(number)),
        },
    }
}

fn take_text(rest: &mut &[u8], kind: u16) -> Result<String, FrameError> {
    let bytes = take_bytes(rest)?;
    match std::str::from_utf8(bytes) {
        Ok(text) if text.len() <= LANE_TEXT_LEN_MAX => Ok(text.to_owned()),
        _ => Err(FrameError::Text { kind }),
    }
}

/// The first number, then how much each is above the one before.
fn put_rising(body: &mut Vec<u8>, numbers: &[u32]) {
    put(body, numbers.len() as u64);
    let mut before = 0;
    for number in numbers {
        put(body, u64::from(number - before));
        before = *number;
    }
}

fn take_rising(rest: &mut &[u8]) -> Result<Vec<u32>, FrameError> {
    let count = take_u32(rest)? as usize;
    // A number takes a byte at least: a count that lies allocates nothing.
    if count > LANE_ACKS_MAX || count > rest.len() {
        return Err(FrameError::Acks);
    }
    let mut numbers = Vec::with_capacity(count);
    let mut before = 0u32;
    for place in 0..count {
        let step = take_u32(rest)?;
        let number = before.checked_add(step).filter(|_| step > 0 || place == 0);
        before = number.ok_or(FrameError::Acks)?;
        numbers.push(before);
    }
    Ok(numbers)
}

fn cut(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(LANE_TEXT_LEN_MAX.min(256))]
}
