//! gRPC clients that dial the path of a socket say that path as HTTP/2's `:authority`, those in Go and those on gRPC's C library
//! (Python, C++, Ruby) alike; `h2` resets their calls, since no host has such a name. Nobody routes by it on a unix socket, so it is replaced on the way in by a name that passes.
//!
//! Only the one field is touched: the header block is walked without being decoded (HPACK, RFC 7541 section 6), the new value is
//! not longer than the old one, and so both ends' dynamic tables stay in step: ours may keep entries longer than the peer's,
//! which then never refers to them.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// "PRI * HTTP/2.0 ..." comes before the frames.
const PREFACE_BYTES: usize = 24;
const FRAME_HEAD_BYTES: usize = 9;
/// HTTP/2's default for one frame; longer ones are passed on as they are (and refused by `h2`).
const BLOCK_BYTES_MAX: usize = 16 * 1024;
const READ_BYTES: usize = 4096;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;
/// Its name written out, as the C library does; and Huffman coded.
const AUTHORITY_NAMES: [&[u8]; 2] = [b"\x0a:authority", b"\x88\xb8\x3b\x53\x39\xec\x32\x7d\x7f"];
/// One byte long, not Huffman coded: `x`.
const REPLACEMENT: [u8; 2] = [1, b'x'];

enum State {
    /// So many bytes go through as they are.
    Pass(usize),
    /// The head of a frame, or a whole block of headers, is being collected: so many bytes.
    Head,
    Block(usize),
}

/// The server's end of a connection whose client may have any authority.
pub struct AnyAuthority<Io> {
    io: Io,
    state: State,
    partial: Vec<u8>,
    ready: Vec<u8>,
    /// Of `ready`, what was taken already.
    taken: usize,
}

impl<Io> AnyAuthority<Io> {
    pub fn new(io: Io) -> AnyAuthority<Io> {
        let state = State::Pass(PREFACE_BYTES);
        AnyAuthority { io, state, partial: Vec::new(), ready: Vec::new(), taken: 0 }
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let wanted = match self.state {
                State::Pass(left) => {
                    let (now, rest) = bytes.split_at(left.min(bytes.len()));
                    self.ready.extend_from_slice(now);
                    bytes = rest;
                    self.state = if now.len() == left { State::Head } else { State::Pass(left - now.len()) };
                    continue;
                }
                State::Head => FRAME_HEAD_BYTES,
                State::Block(length) => FRAME_HEAD_BYTES + length,
            };
            let (now, rest) = bytes.split_at((wanted - self.partial.len()).min(bytes.len()));
            self.partial.extend_from_slice(now);
            bytes = rest;
            if self.partial.len() < wanted {
                return;
            }
            self.state = match self.state {
                State::Head => self.head(),
                _ => {
                    self.block();
                    State::Head
                }
            };
        }
    }

    /// A frame begins.
    fn head(&mut self) -> State {
        let length = u32::from_be_bytes([0, self.partial[0], self.partial[1], self.partial[2]]) as usize;
        let (kind, flags) = (self.partial[3], self.partial[4]);
        if kind == HEADERS
            && flags & (END_HEADERS | PADDED) == END_HEADERS
            && (1..=BLOCK_BYTES_MAX).contains(&length)
        {
            return State::Block(length);
        }
        self.ready.append(&mut self.partial);
        if length == 0 { State::Head } else { State::Pass(length) }
    }

    /// A whole block of headers is there.
    fn block(&mut self) {
        let skipped = FRAME_HEAD_BYTES + if self.partial[4] & PRIORITY != 0 { 5 } else { 0 };
        if let Some(block) = self.partial.get(skipped..)
            && let Some((start, end)) = authority(block)
            && end - start >= REPLACEMENT.len()
        {
            self.partial.splice(skipped + start..skipped + end, REPLACEMENT);
            let length = (self.partial.len() - FRAME_HEAD_BYTES) as u32;
            self.partial[..3].copy_from_slice(&length.to_be_bytes()[1..]);
        }
        self.ready.append(&mut self.partial);
    }
}

/// Where the value of `:authority` is in a block of headers, with its length, if it is written out there.
fn authority(block: &[u8]) -> Option<(usize, usize)> {
    let mut at = 0;
    while at < block.len() {
        let first = block[at];
        let (bits, literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let (name, after) = integer(block, at, bits)?;
        at = after;
        if !literal {
            continue;
        }
        let mut is_authority = name == AUTHORITY;
        if name == 0 {
            let end = string_end(block, at)?;
            is_authority = AUTHORITY_NAMES.contains(&&block[at..end]);
            at = end;
        }
        let end = string_end(block, at)?;
        if is_authority {
            return Some((at, end));
        }
        at = end;
    }
    None
}

/// An integer with a prefix of so many bits (RFC 7541 section 5.1), and where it ends.
fn integer(block: &[u8], at: usize, bits: u32) -> Option<(usize, usize)> {
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(*block.get(at)?) & mask;
    let mut next = at + 1;
    if value < mask {
        return Some((value, next));
    }
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(*block.get(next)?);
        next += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, next));
        }
    }
    None
}

fn string_end(block: &[u8], at: usize) -> Option<usize> {
    let (length, start) = integer(block, at, 7)?;
    start.checked_add(length).filter(|end| *end <= block.len())
}

impl<Io: AsyncRead + Unpin> AsyncRead for AnyAuthority<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.taken == self.ready.len() {
            self.ready.clear();
            self.taken = 0;
            let mut bytes = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            let this = &mut *self;
            this.feed(read.filled());
        }
        let end = self.ready.len().min(self.taken + buffer.remaining());
        buffer.put_slice(&self.ready[self.taken..end]);
        self.taken = end;
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Entry for a fuzzer. Total: the bytes come out again, but for one value that is not longer.
pub fn fuzz_authority(data: &[u8]) {
    let (mut whole, mut pieces) = (AnyAuthority::new(()), AnyAuthority::new(()));
    whole.feed(data);
    for piece in data.chunks(7) {
        pieces.feed(piece);
    }
    assert_eq!(whole.ready, pieces.ready, "pieces of a stream are the stream");
    assert!(whole.ready.len() + whole.partial.len() <= data.len(), "it never grows");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What grpc-go sends first when it was given a path: preface, settings, and a call whose authority is the path, Huffman
    /// coded or not, indexed or not.
    fn call(authority: &[u8]) -> Vec<u8> {
        call_named(&[0x41], authority)
    }

    fn call_named(name: &[u8], authority: &[u8]) -> Vec<u8> {
        let mut block = vec![0x83, 0x86];
        block.extend_from_slice(name);
        block.extend_from_slice(authority);
        block.extend_from_slice(b"\x44\x02/a\x00\x02te\x08trailers\x40\x01k\x01v");
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&[0, 0, block.len() as u8, HEADERS, END_HEADERS, 0, 0, 0, 1]);
        bytes.extend_from_slice(&block);
        bytes.extend_from_slice(&[0, 0, 3, 0, 1, 0, 0, 0, 1, 1, 2, 3]);
        bytes
    }

    #[test]
    fn a_path_becomes_a_name_and_nothing_else_changes() {
        for given in [&b"\x04%2Fs"[..], b"\x83\xaa\xbb\xcc", b"\x09/a/b.sock"] {
            for name in [
                &[0x41][..],
                &[&[0x40][..], AUTHORITY_NAMES[0]].concat(),
                &[&[0][..], AUTHORITY_NAMES[1]].concat(),
            ] {
                let mut stream = AnyAuthority::new(());
                stream.feed(&call_named(name, given));
                assert_eq!(stream.ready, call_named(name, &REPLACEMENT), "{name:?} {given:?}");
            }
        }
        let mut stream = AnyAuthority::new(());
        stream.feed(&call(b"\x00"));
        assert_eq!(stream.ready, call(b"\x00"), "too short to be replaced");
    }

    #[test]
    fn any_bytes() {
        let good = call(b"\x0b/etc/x.sock");
        let mut state = 11_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        for _ in 0..4000 {
            let mut bytes = good.clone();
            for _ in 0..random() % 6 {
                let at = random() % bytes.len();
                bytes[at] = random() as u8;
            }
            bytes.truncate(random() % (bytes.len() + 1));
            fuzz_authority(&bytes);
        }
    }
}
