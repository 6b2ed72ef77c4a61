//! SPDY/3.1, the client's half, as much of it as the streaming servers of container runtimes speak (draft-mbelshe-httpbis-spdy-00
//! section 2; moby/spdystream is the peer). Plain values: bytes in, events out, frames out.
//!
//! Not here: sockets, what streams mean (`streams`), the server's half.
//!
//! Invariants
//! - Nothing is kept of a frame but its head: data is handed on in pieces as it comes, header blocks of the peer are skipped. The
//!   peer's headers say nothing that we need, so there is no decompressor to attack.
//! - Our own header blocks are stored, not compressed: a zlib stream over the connection's life, as the peer's inflater wants it.
//! - There are no windows: the peer sends no WINDOW_UPDATE and expects none; the byte stream below it holds a fast sender back.
//!
//! Start at [`Decoder::next`] and [`Encoder::open`].

mod decode;
mod encode;

pub(crate) use decode::{Decoder, Event, SpdyError};
pub(crate) use encode::{Encoder, data_head, finish, pong};

#[cfg(test)]
mod tests;

/// Types of control frames.
mod kind {
    pub const SYN_STREAM: u16 = 1;
    pub const SYN_REPLY: u16 = 2;
    pub const RST_STREAM: u16 = 3;
    pub const PING: u16 = 6;
    pub const GOAWAY: u16 = 7;
    pub const HEADERS: u16 = 8;
    pub const WINDOW_UPDATE: u16 = 9;
}

/// No more data on a stream in this direction.
const FLAG_FIN: u8 = 1;
/// The first bit of a control frame, and the version.
const CONTROL: u16 = 0x8000 | 3;

/// Total over every input: decodes, and checks what the decoder promises.
pub fn fuzz_spdy(data: &[u8]) {
    let mut decoder = Decoder::default();
    let mut input = bytes::BytesMut::new();
    let mut given = 0;
    // In uneven pieces, as a network would.
    for piece in data.chunks(7) {
        input.extend_from_slice(piece);
        given += piece.len();
        loop {
            match decoder.next(&mut input) {
                Ok(Some(Event::Data { bytes, .. })) => assert!(bytes.len() <= given, "data that nobody sent"),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(input.len() < 16, "the decoder takes what it is given: {} bytes are left", input.len());
    }
}
