//! PUBLISH and the three handshakes, order, and fan-out.

use anyhow::ensure;

use super::{Row, each, same};
use crate::wire::{self, Packet, Publish};

pub const ROWS: &[Row] = &[
    Row {
        v4: "3.3.1-2",
        v5: "3.3.1-2",
        says: "DUP is 0 in messages of QoS 0",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.reader("r", &topic, 0)?;
            case.peer("w")?.publish(&topic, "x", 2, false)?;
            let message = reader.message()?;
            same("QoS and DUP", (message.qos, message.duplicate), (0, false))
        },
    },
    Row {
        v4: "3.3.1-3",
        v5: "3.3.1-3",
        says: "The publisher's DUP is not passed on",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.reader("r", &topic, 1)?;
            let publish = Publish { topic, qos: 1, duplicate: true, ..Publish::default() };
            case.peer("w")?.publish_with(publish)?;
            same("DUP", reader.message()?.duplicate, false)
        },
    },
    Row {
        v4: "3.3.1-4",
        v5: "3.3.1-4",
        says: "A PUBLISH of QoS 3 ends the connection",
        run: |case| {
            let publish = Publish { topic: case.topic("t"), qos: 3, id: 1, ..Publish::default() };
            case.is_fatal(&publish.packet(case.version).bytes())
        },
    },
    Row {
        v4: "3.3.4-1",
        v5: "3.3.4-1",
        says: "QoS 0 is not answered, 1 with PUBACK, 2 with PUBREC",
        run: |case| {
            let mut peer = case.peer("p")?;
            let topic = case.topic("t");
            peer.publish(&topic, "x", 0, false)?;
            peer.quiet()?;
            each([1, 2], |qos| peer.publish(&topic, "x", *qos, false))?;
            peer.quiet()
        },
    },
    Row {
        v4: "3.3.5-1",
        v5: "3.3.4-2",
        says: "Overlapping subscriptions: delivered, at the highest QoS of those that match",
        run: |case| {
            let topic = case.topic("a/b");
            let mut reader = case.peer("r")?;
            each([("#", 0), ("a/+", 2), ("a/b", 1)], |(tail, qos)| {
                reader.subscribe(&case.topic(tail), *qos)
            })?;
            case.peer("w")?.publish(&topic, "x", 2, false)?;
            let mut seen = vec![reader.expect(&topic, "x")?.qos];
            // One copy or one for each subscription.
            reader.alive()?;
            while let Some(copy) = reader.waiting_message()? {
                seen.push(copy.qos);
            }
            ensure!(seen.contains(&2), "QoS of the copies: {seen:?}");
            Ok(())
        },
    },
    Row {
        v4: "4.3.2-2",
        v5: "4.3.2-5",
        says: "After PUBACK the same id is a new message",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.reader("r", &topic, 1)?;
            let mut writer = case.peer("w")?;
            each(["one", "two"], |text| {
                let publish = Publish {
                    topic: topic.clone(),
                    payload: (*text).into(),
                    qos: 1,
                    id: 9,
                    ..Publish::default()
                };
                writer.send(&publish.packet(case.version))?;
                writer.wait_ack(wire::PUBACK, 9)?;
                reader.expect(&topic, text).map(drop)
            })
        },
    },
    Row {
        v4: "4.3.3-2",
        v5: "4.3.3-10",
        says: "Until PUBREL the same id is the same message: PUBREC again, delivered once",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.reader("r", &topic, 2)?;
            let mut writer = case.peer("w")?;
            let publish =
                Publish { topic: topic.clone(), payload: b"x".to_vec(), qos: 2, id: 9, ..Publish::default() };
            each([false, true], |duplicate| {
                writer.send(&Publish { duplicate: *duplicate, ..publish.clone() }.packet(case.version))?;
                writer.wait_ack(wire::PUBREC, 9).map(drop)
            })?;
            writer.send(&wire::ack(wire::PUBREL, 9))?;
            writer.wait_ack(wire::PUBCOMP, 9)?;
            reader.expect(&topic, "x")?;
            reader.quiet()
        },
    },
    Row {
        v4: "4.3.3-2",
        v5: "4.3.3-12",
        says: "After PUBCOMP the same id is a new message",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.reader("r", &topic, 2)?;
            let mut writer = case.peer("w")?;
            each(["one", "two"], |text| {
                let publish = Publish {
                    topic: topic.clone(),
                    payload: (*text).into(),
                    qos: 2,
                    id: 9,
                    ..Publish::default()
                };
                writer.send(&publish.packet(case.version))?;
                writer.wait_ack(wire::PUBREC, 9)?;
                writer.send(&wire::ack(wire::PUBREL, 9))?;
                writer.wait_ack(wire::PUBCOMP, 9)?;
                reader.expect(&topic, text).map(drop)
            })
        },
    },
    Row {
        v4: "4.3.3-1",
        v5: "4.3.3-4",
        says: "The server answers PUBREC with PUBREL of the same id, and PUBCOMP ends it",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.reader("r", &topic, 2)?;
            case.peer("w")?.publish(&topic, "x", 2, false)?;
            let message = reader.take()?;
            same("QoS", message.qos, 2)?;
            reader.send(&wire::ack(wire::PUBREC, message.id))?;
            let release = reader.wait_ack(wire::PUBREL, message.id)?;
            same("flags of PUBREL", release.flags, 2)?;
            reader.send(&wire::ack(wire::PUBCOMP, message.id))?;
            reader.quiet()
        },
    },
    Row {
        v4: "4.3.3-2",
        v5: "4.3.3-11",
        says: "PUBREL of an id that is not known is answered with PUBCOMP too",
        run: |case| {
            let mut peer = case.peer("p")?;
            peer.send(&wire::ack(wire::PUBREL, 77))?;
            peer.wait_ack(wire::PUBCOMP, 77)?;
            peer.alive()
        },
    },
    Row {
        v4: "3.6.1-1",
        v5: "3.6.1-1",
        says: "PUBREL with other flags than 2 ends the connection",
        run: |case| {
            each([0, 3, 15], |flags| case.is_fatal(&Packet::new(wire::PUBREL, *flags, vec![0, 1]).bytes()))
        },
    },
    Row {
        v4: "4.5.0-1",
        v5: "4.5.0-1",
        says: "A message goes to every session that matches",
        run: |case| {
            let topic = case.topic("a/b");
            let filters = [case.topic("#"), case.topic("a/+"), topic.clone()];
            let mut readers = Vec::new();
            for (at, filter) in filters.iter().enumerate() {
                readers.push(case.reader(&format!("r{at}"), filter, at as u8)?);
            }
            case.peer("w")?.publish(&topic, "x", 2, false)?;
            readers
                .iter_mut()
                .enumerate()
                .try_for_each(|(at, reader)| same("QoS", reader.expect(&topic, "x")?.qos, at as u8))
        },
    },
    Row {
        v4: "4.6.0-6",
        v5: "4.6.0-5",
        says: "Messages of one publisher, topic and QoS come in order",
        run: |case| {
            each([0, 1, 2], |qos| {
                let topic = case.topic(&format!("q{qos}"));
                let mut reader = case.reader(&format!("r{qos}"), &topic, *qos)?;
                let mut writer = case.peer("w")?;
                (0..50).try_for_each(|at| writer.publish(&topic, &at.to_string(), *qos, false))?;
                (0..50).try_for_each(|at| reader.expect(&topic, &at.to_string()).map(drop))
            })
        },
    },
    Row {
        v4: "§3.3",
        v5: "§3.3",
        says: "A payload may be empty, and as large as 100 kB",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.reader("r", &topic, 1)?;
            let mut writer = case.peer("w")?;
            each([0, 100_000], |len| {
                let text = "x".repeat(*len);
                writer.publish(&topic, &text, 1, false)?;
                reader.expect(&topic, &text).map(drop)
            })
        },
    },
];
