use bytes::{Bytes, BytesMut};

use super::*;

fn events(bytes: &[u8], piece: usize) -> Result<Vec<Event>, SpdyError> {
    let (mut decoder, mut input, mut out) = (Decoder::default(), BytesMut::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        input.extend_from_slice(piece);
        while let Some(event) = decoder.next(&mut input)? {
            // Pieces of one frame are one here.
            match (out.last_mut(), event) {
                (Some(Event::Data { stream: last, bytes: had }), Event::Data { stream, bytes })
                    if *last == stream =>
                {
                    *had = [had.as_ref(), bytes.as_ref()].concat().into();
                }
                (_, event) => out.push(event),
            }
        }
    }
    Ok(out)
}

/// SYN_REPLY on 1, data on 5, SETTINGS, WINDOW_UPDATE, PING from the server, data with FIN, RST_STREAM, PING answered, GOAWAY.
const TALK: &[u8] = b"\x80\x03\x00\x02\x00\x00\x00\x0c\x00\x00\x00\x01\x78\x01header\
    \x00\x00\x00\x05\x00\x00\x00\x03abc\
    \x80\x03\x00\x04\x00\x00\x00\x04\x00\x00\x00\x00\
    \x80\x03\x00\x09\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\xff\xff\
    \x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x02\
    \x00\x00\x00\x05\x01\x00\x00\x02de\
    \x80\x03\x00\x03\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\x00\x05\
    \x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01\
    \x80\x03\x00\x07\x00\x00\x00\x08\x00\x00\x00\x05\x00\x00\x00\x00";

#[test]
fn what_a_streaming_server_says_in_any_pieces() {
    let expected = [
        Event::Accepted(1),
        Event::Data { stream: 5, bytes: Bytes::from_static(b"abc") },
        Event::Ping(2),
        Event::Data { stream: 5, bytes: Bytes::from_static(b"de") },
        Event::Ended(5),
        Event::Reset { stream: 1, status: 5 },
        Event::GoAway,
    ];
    for piece in [1, 2, 3, 7, 8, 9, 64, TALK.len()] {
        assert_eq!(events(TALK, piece).unwrap(), expected, "in pieces of {piece}");
    }
}

#[test]
fn a_reply_that_ends_the_stream() {
    let reply = b"\x80\x03\x00\x02\x01\x00\x00\x04\x00\x00\x00\x07";
    assert_eq!(events(reply, 5).unwrap(), [Event::Accepted(7), Event::Ended(7)]);
    let empty = b"\x00\x00\x00\x07\x01\x00\x00\x00";
    assert_eq!(events(empty, 8).unwrap(), [Event::Ended(7)]);
}

#[test]
fn what_breaks_the_rules_ends_the_connection() {
    for (bytes, error) in [
        (&b"\x80\x02\x00\x02\x00\x00\x00\x04\x00\x00\x00\x01"[..], SpdyError::Version(2)),
        (b"\x80\x03\x00\x03\x00\x00\x00\x09\x00\x00\x00\x01", SpdyError::Length { kind: 3, length: 9 }),
        (b"\x80\x03\x00\x06\x00\x00\x00\x00", SpdyError::Length { kind: 6, length: 0 }),
        (b"\x80\x03\x00\x08\x00\xff\xff\xff", SpdyError::Length { kind: 8, length: 0xff_ffff }),
        (b"\x80\x03\x00\x01\x00\x00\x00\x0a\x00\x00\x00\x02", SpdyError::Unasked(2)),
    ] {
        assert_eq!(events(bytes, 3).unwrap_err(), error);
    }
}

#[test]
fn our_frames_byte_by_byte() {
    let mut encoder = Encoder::default();
    let (first, frame) = encoder.open(&[("streamtype", "error")]);
    let block = b"\x00\x00\x00\x01\x00\x00\x00\x0astreamtype\x00\x00\x00\x05error";
    let length = block.len() as u8;
    let stored = [&[0, length, 0, !length, 0xff][..], block, &[0, 0, 0, 0xff, 0xff]].concat();
    let head = [0x80, 3, 0, 1, 0, 0, 0, (10 + 2 + stored.len()) as u8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x78, 1];
    assert_eq!((first, frame.as_ref()), (1, [&head[..], &stored].concat().as_slice()));
    // Any inflater takes it.
    let mut plain = Vec::with_capacity(1024);
    let mut inflate = flate2::Decompress::new(true);
    inflate.decompress_vec(&frame[18..], &mut plain, flate2::FlushDecompress::Sync).unwrap();
    assert_eq!(plain, block);
    let (second, frame) = encoder.open(&[("streamtype", "error")]);
    assert_eq!((second, frame[18..].to_vec()), (3, stored), "a connection is one zlib stream with one head");
    assert_eq!(data_head(3, 0x01_0203), [0, 0, 0, 3, 0, 1, 2, 3]);
    assert_eq!(finish(3), [0, 0, 0, 3, 1, 0, 0, 0]);
    assert_eq!(pong(2).as_ref(), [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 2]);
}

#[test]
fn every_input_is_an_event_or_an_error() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for _ in 0..20_000 {
        let mut bytes = TALK.to_vec();
        for _ in 0..1 + random() % 4 {
            let at = random() % bytes.len();
            match random() % 4 {
                0 => bytes[at] ^= 1 << (random() % 8),
                1 => bytes[at] = random() as u8,
                2 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, random() as u8),
            }
        }
        fuzz_spdy(&bytes);
    }
}
