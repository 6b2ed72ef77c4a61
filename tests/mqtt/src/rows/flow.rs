//! Limits that the two sides of MQTT 5 tell each other.

use anyhow::{Result, ensure};

use super::{Case, Row, same};
use crate::wire::{self, Connect, Prop, Publish, V5};

pub const ROWS: &[Row] = &[
    Row {
        v4: "",
        v5: "3.3.4-9",
        says: "No more QoS 1 and 2 messages are in flight than the client's receive maximum",
        run: |case| {
            let (topic, mut reader) = narrow(case)?;
            let mut writer = case.peer("w")?;
            (0..5).try_for_each(|at| writer.publish(&topic, &at.to_string(), 1, false))?;
            let (first, second) = (reader.take()?, reader.take()?);
            reader.quiet()?;
            reader.acknowledge(&first)?;
            let third = reader.take()?;
            reader.quiet()?;
            reader.acknowledge(&second)?;
            reader.acknowledge(&third)?;
            same("the rest", [reader.message()?.text(), reader.message()?.text()], ["3".into(), "4".into()])
        },
    },
    Row {
        v4: "",
        v5: "4.9.0-2",
        says: "A QoS 2 message counts as in flight until PUBCOMP",
        run: |case| {
            let (topic, mut reader) = narrow(case)?;
            let mut writer = case.peer("w")?;
            (0..3).try_for_each(|at| writer.publish(&topic, &at.to_string(), 2, false))?;
            let (first, second) = (reader.take()?, reader.take()?);
            reader.send(&wire::ack(wire::PUBREC, first.id))?;
            reader.wait_ack(wire::PUBREL, first.id)?;
            reader.quiet()?;
            reader.send(&wire::ack(wire::PUBCOMP, first.id))?;
            same("the third", reader.message()?.text(), "2".into())?;
            reader.acknowledge(&second)
        },
    },
    Row {
        v4: "",
        v5: "3.3.4-10",
        says: "A full receive maximum delays nothing but messages",
        run: |case| {
            let (topic, mut reader) = narrow(case)?;
            let mut writer = case.peer("w")?;
            (0..3).try_for_each(|_| writer.publish(&topic, "x", 1, false))?;
            let _held = (reader.take()?, reader.take()?);
            reader.alive()?;
            reader.subscribe(&case.topic("other"), 0)?;
            reader.publish(&case.topic("own"), "x", 2, false)
        },
    },
    Row {
        v4: "",
        v5: "3.3.4-7",
        says: "A client that has more in flight than the server's receive maximum is cut off",
        run: |case| {
            let mut writer = case.peer("w")?;
            let Some(maximum) = writer.prop_number(wire::RECEIVE_MAXIMUM).filter(|maximum| *maximum < 65_535)
            else {
                return Ok(());
            };
            let topic = case.topic("t");
            for id in 1..=maximum as u16 + 1 {
                let publish = Publish { topic: topic.clone(), qos: 2, id, ..Publish::default() };
                if writer.send(&publish.packet(V5)).is_err() {
                    break;
                }
            }
            let said = writer.closed()?;
            let reason = said
                .iter()
                .find(|packet| packet.kind == wire::DISCONNECT)
                .and_then(|packet| packet.body.first());
            ensure!(matches!(reason, None | Some(0x93)), "DISCONNECT with {reason:02x?}");
            Ok(())
        },
    },
    Row {
        v4: "",
        v5: "3.1.2-24",
        says: "No packet over the client's maximum packet size is sent",
        run: |case| {
            let (topic, mut reader) = small(case)?;
            let mut writer = case.peer("w")?;
            for qos in [0, 1, 2] {
                writer.publish(&topic, &"x".repeat(300), qos, false)?;
            }
            reader.quiet()
        },
    },
    Row {
        v4: "",
        v5: "3.1.2-25",
        says: "A message too large for a client counts as sent: later ones come",
        run: |case| {
            let (topic, mut reader) = small(case)?;
            let mut writer = case.peer("w")?;
            writer.publish(&topic, &"x".repeat(300), 1, false)?;
            writer.publish(&topic, "small", 1, false)?;
            reader.expect(&topic, "small")?;
            reader.quiet()
        },
    },
    Row {
        v4: "",
        v5: "3.2.2-15",
        says: "A packet over the server's maximum packet size ends the connection",
        run: |case| {
            let mut writer = case.peer("w")?;
            let Some(maximum) = writer.prop_number(wire::MAXIMUM_PACKET).filter(|maximum| *maximum < 4 << 20)
            else {
                return Ok(());
            };
            let publish = Publish {
                topic: case.topic("t"),
                payload: vec![b'x'; maximum as usize],
                ..Publish::default()
            };
            let _ = writer.send(&publish.packet(V5));
            writer.closed_with_error()
        },
    },
    Row {
        v4: "",
        v5: "3.2.2-9",
        says: "A maximum QoS below 2, if the server tells one, is kept to",
        run: |case| {
            let mut peer = case.peer("p")?;
            let maximum = peer.prop_number(wire::MAXIMUM_QOS).unwrap_or(2) as u8;
            // SUBSCRIBE with a higher one is granted with less.
            let codes = peer.subscribe_all(&[], &[(&case.topic("t"), 2)])?;
            same("granted", codes, vec![maximum])
        },
    },
];

/// A subscriber whose receive maximum is 2.
fn narrow(case: &Case<'_>) -> Result<(String, crate::peer::Peer)> {
    let topic = case.topic("t");
    let props = vec![Prop::Two(wire::RECEIVE_MAXIMUM, 2)];
    let mut reader = case.open(&Connect { props, ..case.clean("r") })?;
    reader.subscribe(&topic, 2)?;
    Ok((topic, reader))
}

/// A subscriber that takes packets of 200 bytes.
fn small(case: &Case<'_>) -> Result<(String, crate::peer::Peer)> {
    let topic = case.topic("t");
    let props = vec![Prop::Four(wire::MAXIMUM_PACKET, 200)];
    let mut reader = case.open(&Connect { props, ..case.clean("r") })?;
    reader.subscribe(&topic, 2)?;
    Ok((topic, reader))
}
