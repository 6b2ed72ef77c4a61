use std::{string::ToString, vec::Vec};

use mqtt::broker::testing::Random;

use super::*;

/// The documented bytes: sensors in the field send these. Never change them.
#[test]
fn the_frame_s_bytes_are_frozen() {
    assert_eq!(crc16(b"123456789"), 0x906e);
    let report = Frame::Report { sequence: 300, channel: 1, value: FrameValue::Int(-2) };
    let body = [0, 0xac, 0x02, 1, 1, 3];
    let crc = crc16(&body).to_le_bytes();
    assert_eq!(encode(&report).as_slice(), [&[1, 8, 0xac, 0x02, 1, 1, 3][..], &crc, &[0]].concat());
    let text = Frame::Set { sequence: 1, channel: 255, value: FrameValue::from_text("on-hold").unwrap() };
    assert_eq!(&encode(&text)[1..13], [1, 1, 255, 3, 7, b'o', b'n', b'-', b'h', b'o', b'l', b'd']);
    for (text, value) in
        [("true", FrameValue::Bool(true)), ("-7", FrameValue::Int(-7)), ("0.5", FrameValue::Float(0.5))]
    {
        assert_eq!(FrameValue::from_text(text), Some(value.clone()));
        assert_eq!(value.to_string(), text);
    }
    assert_eq!(FrameValue::from_text(&"x".repeat(65)), None);
}

#[test]
fn noise_costs_one_frame() {
    let mut random = Random(5);
    let mut frames = Frames::default();
    let mut got = 0;
    for round in 0..2000u16 {
        let frame = Frame::Report { sequence: round, channel: 3, value: FrameValue::Int(i64::from(round)) };
        let mut wire = encode(&frame).to_vec();
        let spoilt = round % 3 == 0;
        if spoilt {
            let at = random.below(wire.len() - 1);
            wire[at] ^= 1 << random.below(8);
        }
        frames.feed(&wire, |seen| {
            assert_eq!(seen, frame, "a spoilt frame is never taken for another");
            got += 1;
        });
    }
    assert!(got >= 1200 && frames.broken >= 600, "{got} {}", frames.broken);
    frames.feed(&[7; 1000], |_| panic!("nothing whole"));
    frames.feed(&[0], |_| panic!("too long"));
    frames.feed(&encode(&Frame::Done { sequence: 1, accepted: true }), |_| got += 1);
}

#[test]
fn any_bytes() {
    let mut random = Random(11);
    for round in 0..5000 {
        let len = random.below(400);
        let mut data: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        if round % 2 == 0 {
            data.extend_from_slice(&encode(&Frame::Report {
                sequence: 1,
                channel: 1,
                value: FrameValue::Float(f32::from_bits(random.next() as u32)),
            }));
            let at = random.below(data.len());
            data[at] = random.next() as u8;
        }
        fuzz_frames(&data);
    }
}
