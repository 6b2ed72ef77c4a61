//! Binary frames between a node and a microcontroller on a serial line: `COBS(postcard(Frame) || crc16) || 0x00`
//! (docs/serial-frames.md). Both ends use this crate: the mapper, and the sensor's firmware, without std and without allocation.
//!
//! Is not: an I/O layer; bytes go in, frames come out.
//! Invariants: the schema is frozen, since sensors in the field speak it (something new is a new variant at the end); decoding is
//! total; noise costs the frames it hits and no more.
//! Start at [`encode`] and [`Frames::feed`].
#![no_std]

#[cfg(test)]
extern crate std;

use core::fmt;

use serde_bare::{Deserialize, Serialize};

/// Longest frame before COBS; a longer one is dropped to the next zero byte.
pub const FRAME_BYTES_MAX: usize = 128;
/// Longest text value in a frame.
pub const FRAME_TEXT_BYTES_MAX: usize = 64;

/// COBS adds one byte per 254 and one; the end mark is not kept.
const ENCODED_BYTES_MAX: usize = FRAME_BYTES_MAX + FRAME_BYTES_MAX / 254 + 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(crate = "serde_bare")]
pub enum Frame {
    /// Sensor to node: a value.
    Report { sequence: u16, channel: u8, value: FrameValue },
    /// Node to sensor: a desired value.
    Set { sequence: u16, channel: u8, value: FrameValue },
    /// Sensor to node: the answer to a Set.
    Done { sequence: u16, accepted: bool },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(crate = "serde_bare")]
pub enum FrameValue {
    Bool(bool),
    Int(i64),
    Float(f32),
    Text(heapless::String<FRAME_TEXT_BYTES_MAX>),
}

impl FrameValue {
    /// A desired value in the narrowest form that holds it; `None` when it is too long.
    pub fn from_text(text: &str) -> Option<FrameValue> {
        if let Ok(value) = text.parse() {
            return Some(FrameValue::Bool(value));
        }
        if let Ok(value) = text.parse() {
            return Some(FrameValue::Int(value));
        }
        if let Ok(value) = text.parse::<f32>()
            && value.is_finite()
        {
            return Some(FrameValue::Float(value));
        }
        heapless::String::try_from(text).ok().map(FrameValue::Text)
    }
}

/// As the twin's text.
impl fmt::Display for FrameValue {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameValue::Bool(value) => value.fmt(out),
            FrameValue::Int(value) => value.fmt(out),
            FrameValue::Float(value) => value.fmt(out),
            FrameValue::Text(value) => value.fmt(out),
        }
    }
}

/// CRC-16/IBM-SDLC (X.25).
pub fn crc16(bytes: &[u8]) -> u16 {
    let mut crc = 0xffff_u16;
    for byte in bytes {
        crc ^= u16::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x8408 } else { crc >> 1 };
        }
    }
    !crc
}

pub type Encoded = heapless::Vec<u8, { ENCODED_BYTES_MAX + 1 }>;

/// The frame on the wire, with its end mark.
pub fn encode(frame: &Frame) -> Encoded {
    let mut plain = [0; FRAME_BYTES_MAX];
    let len =
        postcard::to_slice(frame, &mut plain[..FRAME_BYTES_MAX - 2]).expect("the largest frame fits").len();
    let crc = crc16(&plain[..len]).to_le_bytes();
    plain[len..len + 2].copy_from_slice(&crc);
    let mut out = Encoded::new();
    out.resize(ENCODED_BYTES_MAX, 0).expect("the capacity is larger");
    let used = cobs::encode(&plain[..len + 2], &mut out);
    out.truncate(used);
    out.push(0).expect("there is room for the end mark");
    out
}

#[derive(Default)]
pub struct Frames {
    buffer: heapless::Vec<u8, ENCODED_BYTES_MAX>,
    dropping: bool,
    /// Frames that were too long, torn, or had a wrong checksum.
    pub broken: u64,
}

impl Frames {
    /// Calls `each` for every whole and correct frame. After noise it is in step again at the next zero byte.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Frame)) {
        for byte in bytes {
            if *byte != 0 {
                if !self.dropping && self.buffer.push(*byte).is_err() {
                    self.dropping = true;
                }
                continue;
            }
            if core::mem::take(&mut self.dropping) {
                self.broken += 1;
            } else if !self.buffer.is_empty() {
                match decode(&mut self.buffer) {
                    Some(frame) => each(frame),
                    None => self.broken += 1,
                }
            }
            self.buffer.clear();
        }
    }
}

fn decode(encoded: &mut [u8]) -> Option<Frame> {
    let len = cobs::decode_in_place(encoded).ok()?;
    let (body, crc) = encoded.get(..len)?.split_last_chunk::<2>()?;
    if crc16(body) != u16::from_le_bytes(*crc) {
        return None;
    }
    let (frame, rest) = postcard::take_from_bytes(body).ok()?;
    rest.is_empty().then_some(frame)
}

/// Total on any bytes; what decodes survives encoding and decoding again.
pub fn fuzz_frames(data: &[u8]) {
    let mut frames = Frames::default();
    for piece in data.chunks(11) {
        frames.feed(piece, |frame| {
            let mut again = None;
            Frames::default().feed(&encode(&frame), |frame| again = Some(frame));
            let same = match (&again, &frame) {
                // NaN is not equal to itself.
                (
                    Some(
                        Frame::Report { value: FrameValue::Float(a), .. }
                        | Frame::Set { value: FrameValue::Float(a), .. },
                    ),
                    Frame::Report { value: FrameValue::Float(b), .. }
                    | Frame::Set { value: FrameValue::Float(b), .. },
                ) => a.to_bits() == b.to_bits(),
                (again, frame) => again.as_ref() == Some(frame),
            };
            assert!(same, "{frame:?}");
        });
    }
}

#[cfg(test)]
mod tests;
