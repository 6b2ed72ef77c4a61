//! Our frames.

use bytes::{BufMut, Bytes, BytesMut};

use super::{CONTROL, FLAG_FIN, kind};

/// Opens streams: numbers them, and keeps the one zlib stream that all header blocks of a connection are part of.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    opened: u32,
}

impl Encoder {
    /// A new stream with these headers: names in lower case, at most 32 kB in all. Its number and the frame.
    pub fn open(&mut self, headers: &[(&str, &str)]) -> (u32, Bytes) {
        let stream = self.opened * 2 + 1;
        let mut block = BytesMut::new();
        block.put_u32(headers.len() as u32);
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.put_u32(text.len() as u32);
            block.put(text.as_bytes());
        }
        let length = u16::try_from(block.len()).expect("headers of ours are short");
        let mut zlib = BytesMut::new();
        if self.opened == 0 {
            // Deflate with a window of 32 kB, no preset dictionary.
            zlib.put_slice(&[0x78, 0x01]);
        }
        // A stored block, then an empty one: what a sync flush ends with, and what makes the peer's inflater hand out the first.
        zlib.put_u8(0);
        zlib.put_u16_le(length);
        zlib.put_u16_le(!length);
        zlib.put(block);
        zlib.put_slice(&[0, 0, 0, 0xff, 0xff]);
        self.opened += 1;
        let mut frame = control(kind::SYN_STREAM, 10 + zlib.len());
        frame.put_u32(stream);
        // No stream that it belongs to, priority 0, no slot.
        frame.put_u32(0);
        frame.put_u16(0);
        frame.put(zlib);
        (stream, frame.freeze())
    }
}

fn control(kind: u16, length: usize) -> BytesMut {
    let mut frame = BytesMut::with_capacity(8 + length);
    frame.put_u16(CONTROL);
    frame.put_u16(kind);
    frame.put_u32(length as u32);
    frame
}

/// What stands before `length` bytes of data. Less than 16 MB.
pub(crate) fn data_head(stream: u32, length: usize) -> [u8; 8] {
    head(stream, 0, length)
}

/// No more data on this stream.
pub(crate) fn finish(stream: u32) -> [u8; 8] {
    head(stream, FLAG_FIN, 0)
}

fn head(stream: u32, flags: u8, length: usize) -> [u8; 8] {
    assert!(length < 1 << 24, "data frames carry less than 16 MB");
    let mut head = [0; 8];
    head[..4].copy_from_slice(&stream.to_be_bytes());
    head[4..].copy_from_slice(&(u32::from(flags) << 24 | length as u32).to_be_bytes());
    head
}

pub(crate) fn pong(id: u32) -> Bytes {
    let mut frame = control(kind::PING, 4);
    frame.put_u32(id);
    frame.freeze()
}
