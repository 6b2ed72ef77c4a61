use super::*;
use crate::encode;

fn samples() -> Vec<Packet<'static>> {
    vec![
        Packet::Connect(Connect {
            client_id: "mapper",
            clean_session: true,
            keep_alive_s: 30,
            will: Some(Will { topic: "$hw/gone", payload: b"x", qos: Qos::AtLeastOnce, retain: true }),
            username: Some("u"),
            password: Some(b"p"),
        }),
        Packet::Connect(Connect {
            client_id: "",
            clean_session: true,
            keep_alive_s: 0,
            will: None,
            username: None,
            password: None,
        }),
        Packet::ConnAck { session_present: false, code: 5 },
        Packet::Publish(Publish {
            topic: "a/b",
            payload: b"hello",
            qos: Qos::AtMostOnce,
            retain: true,
            duplicate: false,
            id: 0,
        }),
        Packet::Publish(Publish {
            topic: "$hw/x",
            payload: b"",
            qos: Qos::AtLeastOnce,
            retain: false,
            duplicate: true,
            id: 7,
        }),
        Packet::PubAck(1),
        Packet::PubRec(2),
        Packet::PubRel(3),
        Packet::PubComp(65535),
        Packet::Subscribe { id: 9, filters: vec![("a/+", Qos::AtLeastOnce), ("#", Qos::AtMostOnce)] },
        Packet::SubAck { id: 9, codes: &[1, 0x80] },
        Packet::Unsubscribe { id: 10, filters: vec!["a/+"] },
        Packet::UnsubAck(10),
        Packet::PingReq,
        Packet::PingResp,
        Packet::Disconnect,
    ]
}

#[test]
fn every_packet_survives_encoding_at_every_split() {
    for sample in samples() {
        let mut wire = Vec::new();
        encode::packet(&mut wire, &sample);
        for cut in 0..wire.len() {
            assert_eq!(decode(&wire[..cut], 1024), Ok(None), "{sample:?} cut at {cut}");
        }
        assert_eq!(decode(&wire, 1024), Ok(Some((sample.clone(), wire.len()))));
    }
}

/// Bytes as mosquitto's clients 2.0 send them and as section 3 of the specification draws them.
#[test]
fn wire_bytes_are_the_specification_s() {
    let mut wire = Vec::new();
    encode::packet(
        &mut wire,
        &Packet::Connect(Connect {
            client_id: "c",
            clean_session: true,
            keep_alive_s: 60,
            will: None,
            username: None,
            password: None,
        }),
    );
    assert_eq!(wire, b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c");
    wire.clear();
    let payload = vec![7u8; 200];
    encode::packet(
        &mut wire,
        &Packet::Publish(Publish {
            topic: "a",
            payload: &payload,
            qos: Qos::AtLeastOnce,
            retain: false,
            duplicate: false,
            id: 258,
        }),
    );
    assert_eq!(&wire[..8], b"\x32\xcd\x01\x00\x01a\x01\x02");
    assert_eq!(
        decode(b"\x82\x06\x00\x0a\x00\x01#\x02", 64),
        Ok(Some((Packet::Subscribe { id: 10, filters: vec![("#", Qos::ExactlyOnce)] }, 8)))
    );
}

#[test]
fn what_is_wrong_is_named() {
    let cases: &[(&[u8], DecodeError)] = &[
        (b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x3c\x00\x01c", DecodeError::ProtocolLevel(5)),
        (b"\x30\x03\x00\x01+", Malformed("topic of PUBLISH")),
        (b"\x36\x05\x00\x01a\x00\x01", Malformed("quality of service 3")),
        (b"\x32\x05\x00\x01a\x00\x00", Malformed("packet id 0")),
        (b"\x80\x05\x00\x0a\x00\x01#", Malformed("reserved flags")),
        (b"\x82\x02\x00\x0a", Malformed("SUBSCRIBE without a filter")),
        (b"\xc0\x01\x00", Malformed("bytes after the end of the packet")),
        (b"\x40\x01\x00", Malformed("shorter than it says")),
        (b"\x30\xff\xff\xff\xff\x01", Malformed("remaining length of more than four bytes")),
        (b"\x30\xff\xff\xff\x7f", DecodeError::TooLarge { len: 268_435_460, max: 1024 }),
        (b"\xf0\x00", Malformed("unknown packet type")),
    ];
    for (wire, expected) in cases {
        assert_eq!(decode(wire, 1024), Err(expected.clone()), "{wire:x?}");
    }
}

#[test]
fn random_and_mutated_bytes_never_panic() {
    let mut random = crate::broker::testing::Random(1);
    for _ in 0..40_000 {
        let len = random.below(64);
        let bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        fuzz_decode(&bytes);
    }
    let samples = samples();
    for round in 0..40_000 {
        let mut wire = Vec::new();
        encode::packet(&mut wire, &samples[round % samples.len()]);
        for _ in 0..=random.below(3) {
            let at = random.below(wire.len());
            wire[at] = random.next() as u8;
        }
        fuzz_decode(&wire);
    }
}
