use super::*;
use crate::encode;

fn samples() -> Vec<Packet<'static>> {
    vec![
        Packet::Connect(Connect {
            client_id: "mapper",
            clean_session: true,
            keep_alive_s: 30,
            will: Some(Will {
                topic: "$hw/gone",
                payload: b"x",
                qos: Qos::AtLeastOnce,
                retain: true,
                ..Will::default()
            }),
            username: Some("u"),
            password: Some(b"p"),
            ..Connect::default()
        }),
        Packet::Connect(Connect { clean_session: true, ..Connect::default() }),
        Packet::ConnAck { session_present: false, code: 5, properties: Properties::default() },
        Packet::Publish(Publish {
            topic: "a/b",
            payload: b"hello",
            qos: Qos::AtMostOnce,
            retain: true,
            duplicate: false,
            id: 0,
            ..Publish::default()
        }),
        Packet::Publish(Publish {
            topic: "$hw/x",
            payload: b"",
            qos: Qos::AtLeastOnce,
            retain: false,
            duplicate: true,
            id: 7,
            ..Publish::default()
        }),
        Packet::PubAck(1.into()),
        Packet::PubRec(2.into()),
        Packet::PubRel(3.into()),
        Packet::PubComp(65535.into()),
        Packet::Subscribe {
            id: 9,
            filters: vec![("a/+", Qos::AtLeastOnce.into()), ("#", Qos::AtMostOnce.into())],
            properties: Properties::default(),
        },
        Packet::SubAck { id: 9, codes: &[1, 0x80] },
        Packet::Unsubscribe { id: 10, filters: vec!["a/+"] },
        Packet::UnsubAck { id: 10, codes: &[] },
        Packet::PingReq,
        Packet::PingResp,
        Packet::Disconnect { reason: 0, properties: Properties::default() },
    ]
}

/// The same with what MQTT 5 adds.
fn samples_v5() -> Vec<Packet<'static>> {
    let (expiry, ids) = (b"\x02\0\0\0\x0a\x26\0\x01k\0\x01v".as_slice(), b"\x0b\x80\x01".as_slice());
    let connect =
        Connect { version: Version::V5, client_id: "c", password: Some(b"p"), ..Connect::default() };
    let all = SubscribeOptions {
        qos: Qos::ExactlyOnce,
        no_local: true,
        retain_as_published: true,
        retain_handling: 2,
    };
    let mut samples = samples();
    samples.retain(|sample| !matches!(sample, Packet::UnsubAck { .. }));
    samples.extend([
        Packet::Connect(Connect { properties: Properties::new(b"\x11\0\0\0\x3c\x21\0\x05"), ..connect }),
        Packet::Connect(Connect {
            will: Some(Will {
                topic: "w",
                properties: Properties::new(b"\x18\0\0\0\x05"),
                ..Will::default()
            }),
            ..connect
        }),
        Packet::ConnAck {
            session_present: true,
            code: 0,
            properties: Properties::new(b"\x12\0\x01x\x22\0\x08"),
        },
        Packet::Publish(Publish {
            topic: "t",
            payload: b"v",
            properties: Properties::new(expiry),
            ..Publish::default()
        }),
        Packet::Publish(Publish {
            topic: "",
            properties: Properties::new(b"\x23\0\x01"),
            ..Publish::default()
        }),
        Packet::PubRec(Ack { id: 4, reason: reason::QUOTA }),
        Packet::Subscribe { id: 1, filters: vec![("$share/g/#", all)], properties: Properties::new(ids) },
        Packet::UnsubAck { id: 2, codes: &[0, reason::NO_SUBSCRIPTION] },
        Packet::Disconnect {
            reason: reason::DISCONNECT_WITH_WILL,
            properties: Properties::new(b"\x11\0\0\0\0"),
        },
        Packet::Auth { reason: 0x18, properties: Properties::new(b"\x15\0\x01m") },
    ]);
    samples
}

#[test]
fn every_packet_survives_encoding_at_every_split() {
    for (version, samples) in [(Version::V3, samples()), (Version::V5, samples_v5())] {
        for sample in samples {
            let mut wire = Vec::new();
            encode::packet_as(version, &mut wire, &sample);
            for cut in 0..wire.len() {
                assert_eq!(decode_as(version, &wire[..cut], 1024), Ok(None), "{sample:?} cut at {cut}");
            }
            assert_eq!(decode_as(version, &wire, 1024), Ok(Some((sample.clone(), wire.len()))));
        }
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
            ..Connect::default()
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
            ..Publish::default()
        }),
    );
    assert_eq!(&wire[..8], b"\x32\xcd\x01\x00\x01a\x01\x02");
    assert_eq!(
        decode(b"\x82\x06\x00\x0a\x00\x01#\x02", 64),
        Ok(Some((
            Packet::Subscribe {
                id: 10,
                filters: vec![("#", Qos::ExactlyOnce.into())],
                properties: Properties::default()
            },
            8
        )))
    );
}

#[test]
fn what_is_wrong_is_named() {
    let cases: &[(&[u8], DecodeError)] = &[
        (b"\x10\x0d\x00\x04MQTT\x06\x02\x00\x3c\x00\x01c", DecodeError::ProtocolLevel(6)),
        (
            b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x3c\x02\x17\x02\x00\x01c",
            Protocol("a property that is neither 0 nor 1"),
        ),
        (
            b"\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x03\x21\0\0\x00\x01c",
            Protocol("a property that must not be 0"),
        ),
        (
            b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x3c\x02\x01\0\x00\x01c",
            Protocol("a property that this packet may not have"),
        ),
        (b"\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x04\x17\0\x17\0\x00\x01c", Protocol("a property twice")),
        (b"\x30\x05\x00\x03a\0b", Malformed("topic of PUBLISH")),
        (b"\x38\x03\x00\x01a", Malformed("a duplicate of quality of service 0")),
        (b"\x82\x06\x00\x0a\x00\x01#\x04", Malformed("options of a subscription")),
        (b"\x30\x03\x00\x01+", Malformed("topic of PUBLISH")),
        (b"\x36\x05\x00\x01a\x00\x01", Malformed("quality of service 3")),
        (b"\x32\x05\x00\x01a\x00\x00", Malformed("packet id 0")),
        (b"\x80\x05\x00\x0a\x00\x01#", Malformed("reserved flags")),
        (b"\x82\x02\x00\x0a", Protocol("SUBSCRIBE without a filter")),
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
    let samples = samples_v5();
    for round in 0..40_000 {
        let mut wire = Vec::new();
        let version = if round & 64 == 0 { Version::V3 } else { Version::V5 };
        encode::packet_as(version, &mut wire, &samples[round % samples.len()]);
        for _ in 0..=random.below(3) {
            let at = random.below(wire.len());
            wire[at] = random.next() as u8;
        }
        fuzz_decode(&wire);
    }
}
