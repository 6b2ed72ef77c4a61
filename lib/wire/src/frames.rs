//! What all binary frames of the link have in common (design decision 2): kind u16 little-endian, length varint, body in postcard's
//! encoding. The byte streams ([`crate::streams`]) and the compact lane ([`crate::lane`]) share one space of kinds.
//!
//! Bodies are written by hand, since data would go through serde byte by byte; tests compare with postcard.

/// The sender does not know a kind that it was sent and has skipped the frame; of both.
pub const UNKNOWN: u16 = 0x0001;

/// Kinds of the byte streams. A WebSocket message that begins with one of these is one frame.
pub const STREAM_KINDS: std::ops::Range<u16> = 0x0010..0x0020;

/// Kinds of the compact lane, also those that will be invented. A WebSocket message that begins with one is one or more frames.
pub const LANE_KINDS: std::ops::Range<u16> = 0x0020..0x0080;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("the frame ends too early")]
    Short,
    #[error("a number in the frame is too large")]
    Number,
}

/// The kind that a WebSocket message begins with.
pub fn first_kind(message: &[u8]) -> Option<u16> {
    message.first_chunk::<2>().map(|kind| u16::from_le_bytes(*kind))
}

/// Takes the next frame off a WebSocket message: its kind and body.
pub fn split<'a>(rest: &mut &'a [u8]) -> Result<(u16, &'a [u8]), ReadError> {
    let (kind, tail) = rest.split_first_chunk::<2>().ok_or(ReadError::Short)?;
    *rest = tail;
    let body = take_bytes(rest)?;
    Ok((u16::from_le_bytes(*kind), body))
}

/// Appends a frame.
pub fn put_frame(out: &mut Vec<u8>, kind: u16, body: &[u8]) {
    out.extend_from_slice(&kind.to_le_bytes());
    put(out, body.len() as u64);
    out.extend_from_slice(body);
}

pub fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Postcard's form of signed numbers.
pub fn put_signed(out: &mut Vec<u8>, number: i64) {
    put(out, ((number << 1) ^ (number >> 63)) as u64);
}

/// A length and so many bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub fn take_u8(rest: &mut &[u8]) -> Result<u8, ReadError> {
    let (byte, tail) = rest.split_first().ok_or(ReadError::Short)?;
    *rest = tail;
    Ok(*byte)
}

pub fn take_u64(rest: &mut &[u8]) -> Result<u64, ReadError> {
    let mut number = 0u64;
    for place in 0..10 {
        let byte = take_u8(rest)?;
        // The tenth byte has room for one bit.
        if place == 9 && byte > 1 {
            return Err(ReadError::Number);
        }
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(ReadError::Number)
}

/// At most five bytes.
pub fn take_u32(rest: &mut &[u8]) -> Result<u32, ReadError> {
    let mut number = 0u64;
    for place in 0..5 {
        let byte = take_u8(rest)?;
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return u32::try_from(number).map_err(|_| ReadError::Number);
        }
    }
    Err(ReadError::Number)
}

pub fn take_signed(rest: &mut &[u8]) -> Result<i64, ReadError> {
    let number = take_u64(rest)?;
    Ok((number >> 1) as i64 ^ -((number & 1) as i64))
}

/// A length and so many bytes. Nothing is allocated, so a length that lies costs nothing.
pub fn take_bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], ReadError> {
    let len = take_u32(rest)? as usize;
    let (bytes, more) = rest.split_at_checked(len).ok_or(ReadError::Short)?;
    *rest = more;
    Ok(bytes)
}
