//! Strings, fixed headers, packet identifiers, and packets that do not belong.

use anyhow::{Result, ensure};

use super::{Case, Row, each, same};
use crate::wire::{self, Packet, Prop, Publish, V5};

pub const ROWS: &[Row] = &[
    Row {
        v4: "1.5.3-1",
        v5: "1.5.4-1",
        says: "A topic that is not UTF-8 (a surrogate) ends the connection",
        run: |case| {
            each([&b"\xed\xa0\x80"[..], b"\xff", b"\xc0\xaf"], |text| case.is_fatal(&publish_raw(case, text)))
        },
    },
    Row {
        v4: "1.5.3-2",
        v5: "1.5.4-2",
        says: "U+0000 in a topic ends the connection",
        run: |case| case.is_fatal(&publish_raw(case, b"a\0b")),
    },
    Row {
        v4: "1.5.3-3",
        v5: "1.5.4-3",
        says: "U+FEFF in a string is a character as any other",
        run: byte_order_mark,
    },
    Row {
        v4: "",
        v5: "1.5.7-1",
        says: "A user property that is not UTF-8 ends the connection",
        run: |case| {
            let mut body = Vec::new();
            wire::field(&mut body, case.topic("t"));
            let mut pair = vec![wire::USER];
            wire::field(&mut pair, b"\xff");
            wire::field(&mut pair, b"v");
            wire::varint(&mut body, pair.len() as u32);
            body.extend(pair);
            case.is_fatal(&Packet::new(wire::PUBLISH, 0, body).bytes())
        },
    },
    Row {
        v4: "2.2.2-2",
        v5: "2.1.3-1",
        says: "Reserved flags that are set in a fixed header end the connection",
        run: |case| case.is_fatal(&Packet::new(wire::PINGREQ, 1, Vec::new()).bytes()),
    },
    Row {
        v4: "2.3.1-1",
        v5: "2.2.1-3",
        says: "Packet id 0 in PUBLISH, SUBSCRIBE or UNSUBSCRIBE ends the connection",
        run: packet_id_0,
    },
    Row {
        v4: "2.3.1-2",
        v5: "2.2.1-4",
        says: "Messages in flight to a client have different ids, none of them 0",
        run: ids_differ,
    },
    Row {
        v4: "2.3.1-5",
        v5: "2.2.1-2",
        says: "A PUBLISH of QoS 0 has no packet id",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.reader("r", &topic, 0)?;
            case.peer("w")?.publish(&topic, "payload", 1, false)?;
            let packet = reader.wait(wire::PUBLISH)?;
            let mut wanted =
                Publish { topic, payload: b"payload".to_vec(), ..Publish::default() }.packet(case.version);
            wanted.flags = packet.flags & 1;
            same("the bytes of the message", packet, wanted)
        },
    },
    Row {
        v4: "2.3.1-6",
        v5: "2.2.1-5",
        says: "PUBACK, PUBREC and PUBCOMP carry the id of their PUBLISH",
        run: acks_carry_ids,
    },
    Row {
        v4: "2.3.1-7",
        v5: "2.2.1-6",
        says: "SUBACK and UNSUBACK carry the id of their request",
        run: |case| {
            let mut peer = case.peer("p")?;
            let topic = case.topic("t");
            for id in [1, 0x1234, 0xffff] {
                peer.send(&wire::subscribe(case.version, id, &[], &[(&topic, 0)]))?;
                peer.wait_ack(wire::SUBACK, id)?;
                peer.send(&wire::unsubscribe(case.version, id, &[&topic]))?;
                peer.wait_ack(wire::UNSUBACK, id)?;
            }
            Ok(())
        },
    },
    Row {
        v4: "4.8.0-1",
        v5: "4.13.1-1",
        says: "A remaining length of five bytes ends the connection",
        run: |case| case.is_fatal(&[0xc0, 0x80, 0x80, 0x80, 0x80, 0x01]),
    },
    Row {
        v4: "4.8.0-1",
        v5: "4.13.1-1",
        says: "A packet of type 0 ends the connection, and of type 15 in 3.1.1",
        run: |case| {
            each(if case.is_v5() { 0..1 } else { 0..2 }, |kind| {
                case.is_fatal(&Packet::new(*kind as u8 * 15, 0, Vec::new()).bytes())
            })
        },
    },
    Row {
        v4: "4.8.0-1",
        v5: "4.13.1-1",
        says: "A packet that only a server sends ends the connection",
        run: |case| {
            let id = vec![0, 1, 0];
            each(
                [
                    Packet::new(wire::CONNACK, 0, vec![0, 0]),
                    Packet::new(wire::SUBACK, 0, id.clone()),
                    Packet::new(wire::UNSUBACK, 0, id[..2].to_vec()),
                    wire::empty(wire::PINGRESP),
                ],
                |packet| case.is_fatal(&packet.bytes()),
            )
        },
    },
    Row {
        v4: "4.8.0-1",
        v5: "4.13.1-1",
        says: "A packet whose fields end before they should ends the connection",
        run: |case| {
            each(
                [
                    Packet::new(wire::PUBLISH, 0, vec![0, 9, b'a']),
                    Packet::new(wire::PUBLISH, 2, vec![0, 1, b'a', 0]),
                    Packet::new(wire::SUBSCRIBE, 2, vec![0, 1, 0, 5, b'a']),
                    Packet::new(wire::UNSUBSCRIBE, 2, vec![0]),
                    Packet::new(wire::PUBREL, 2, vec![0]),
                    Packet::new(wire::PUBACK, 0, Vec::new()),
                ],
                |packet| case.is_fatal(&packet.bytes()),
            )
        },
    },
    Row {
        v4: "",
        v5: "2.2.2-1",
        says: "Packets without properties say so with a length of zero",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.reader("r", &topic, 0)?;
            case.peer("w")?.publish(&topic, "x", 0, false)?;
            let body = reader.wait(wire::PUBLISH)?.body;
            same("property length", body.get(2 + topic.len()), Some(&0))
        },
    },
    Row {
        v4: "",
        v5: "§2.2.2.2",
        says: "A property twice, unknown or of another packet is an error that ends the connection",
        run: |case| {
            let lists = [
                vec![Prop::Four(wire::MESSAGE_EXPIRY, 1), Prop::Four(wire::MESSAGE_EXPIRY, 1)],
                vec![Prop::Byte(99, 1)],
                vec![Prop::Two(wire::RECEIVE_MAXIMUM, 1)],
                vec![Prop::Byte(wire::PAYLOAD_FORMAT, 2)],
            ];
            each(lists, |props| {
                let publish = Publish { topic: case.topic("t"), props: props.clone(), ..Publish::default() };
                case.is_fatal(&publish.packet(V5).bytes())
            })
        },
    },
];

fn publish_raw(case: &Case<'_>, topic: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    wire::field(&mut body, topic);
    if case.is_v5() {
        body.push(0);
    }
    Packet::new(wire::PUBLISH, 0, body).bytes()
}

fn byte_order_mark(case: &Case<'_>) -> Result<()> {
    let (with, without) = (case.topic("\u{feff}x"), case.topic("x"));
    let mut plain = case.reader("plain", &without, 0)?;
    let mut marked = case.reader("marked", &with, 0)?;
    case.peer("w")?.publish(&with, "1", 1, false)?;
    marked.expect(&with, "1")?;
    plain.quiet()
}

fn packet_id_0(case: &Case<'_>) -> Result<()> {
    let topic = case.topic("t");
    let publish = Publish { topic: topic.clone(), qos: 1, id: 0, ..Publish::default() };
    let packets = [
        publish.packet(case.version),
        wire::subscribe(case.version, 0, &[], &[(&topic, 0)]),
        wire::unsubscribe(case.version, 0, &[&topic]),
    ];
    each(packets, |packet| case.is_fatal(&packet.bytes()))
}

fn ids_differ(case: &Case<'_>) -> Result<()> {
    let topic = case.topic("t");
    let mut reader = case.reader("r", &topic, 1)?;
    let mut writer = case.peer("w")?;
    (0..8).try_for_each(|number| writer.publish(&topic, &number.to_string(), 1, false))?;
    let mut seen = Vec::new();
    for _ in 0..8 {
        let message = reader.take()?;
        ensure!(message.qos == 1 && !seen.contains(&message.id), "id {} after {seen:?}", message.id);
        seen.push(message.id);
    }
    Ok(())
}

fn acks_carry_ids(case: &Case<'_>) -> Result<()> {
    let mut peer = case.peer("p")?;
    for id in [1, 0x0100, 0xffff] {
        let publish = Publish { topic: case.topic("t"), qos: 1, id, ..Publish::default() };
        peer.send(&publish.packet(case.version))?;
        peer.wait_ack(wire::PUBACK, id)?;
        peer.send(&Publish { qos: 2, ..publish }.packet(case.version))?;
        peer.wait_ack(wire::PUBREC, id)?;
        peer.send(&wire::ack(wire::PUBREL, id))?;
        peer.wait_ack(wire::PUBCOMP, id)?;
    }
    Ok(())
}
