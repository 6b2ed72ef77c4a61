//! Sessions: kept, resumed, discarded, and what is delivered again.

use anyhow::{Result, ensure};

use super::{Case, Row, each, pause, same};
use crate::{
    peer::Peer,
    wire::{self, Connect, Prop, Publish},
};

pub const ROWS: &[Row] = &[
    Row {
        v4: "3.1.2-4",
        v5: "3.1.2-5",
        says: "A kept session is resumed with its subscriptions",
        run: |case| {
            let topic = case.topic("t");
            let mut peer = case.open(&case.kept("k"))?;
            peer.subscribe(&topic, 1)?;
            peer.disconnect()?;
            let mut peer = case.open(&case.kept("k"))?;
            ensure!(peer.session_present, "session present is 0");
            case.peer("w")?.publish(&topic, "after", 1, false)?;
            peer.expect(&topic, "after").map(drop)
        },
    },
    Row {
        v4: "3.1.2-5",
        v5: "4.5.0-1",
        says: "QoS 1 and 2 messages for a client that is away are kept",
        run: |case| {
            let topic = case.topic("t");
            let mut peer = case.open(&case.kept("k"))?;
            peer.subscribe(&topic, 2)?;
            peer.disconnect()?;
            let mut writer = case.peer("w")?;
            each([(1, "one"), (2, "two")], |(qos, text)| writer.publish(&topic, text, *qos, false))?;
            let mut peer = case.open(&case.kept("k"))?;
            same("QoS", peer.expect(&topic, "one")?.qos, 1)?;
            same("QoS", peer.expect(&topic, "two")?.qos, 2)
        },
    },
    Row {
        v4: "3.1.2-6",
        v5: "3.1.2-4",
        says: "A clean session discards the one that was kept",
        run: |case| {
            let topic = case.topic("t");
            let mut peer = case.open(&case.kept("k"))?;
            peer.subscribe(&topic, 1)?;
            peer.disconnect()?;
            case.peer("k")?.disconnect()?;
            let mut peer = case.open(&case.kept("k"))?;
            ensure!(!peer.session_present, "session present is 1");
            case.peer("w")?.publish(&topic, "x", 1, false)?;
            peer.quiet()
        },
    },
    Row {
        v4: "3.1.2-6",
        v5: "4.1.0-2",
        says: "A session that is not kept ends with its connection",
        run: |case| {
            let mut peer = case.peer("k")?;
            peer.subscribe(&case.topic("t"), 1)?;
            peer.disconnect()?;
            let peer = case.open(&case.kept("k"))?;
            ensure!(!peer.session_present, "session present is 1");
            Ok(())
        },
    },
    Row {
        v4: "3.2.2-1",
        v5: "3.2.2-2",
        says: "A clean session is told that none is present",
        run: |case| {
            case.open(&case.kept("k"))?.disconnect()?;
            ensure!(!case.peer("k")?.session_present, "session present is 1");
            Ok(())
        },
    },
    Row {
        v4: "3.2.2-2",
        v5: "3.2.2-3",
        says: "Session present is 1 when there is one, 0 when there is none",
        run: |case| {
            let first = case.open(&case.kept("k"))?;
            ensure!(!first.session_present, "session present is 1 for a new client");
            first.disconnect()?;
            ensure!(case.open(&case.kept("k"))?.session_present, "session present is 0 for a known one");
            Ok(())
        },
    },
    Row {
        v4: "3.1.4-3",
        v5: "3.1.4-4",
        says: "A kept session goes over to the connection that takes over",
        run: |case| {
            let topic = case.topic("t");
            let mut old = case.open(&case.kept("k"))?;
            old.subscribe(&topic, 1)?;
            let mut new = case.open(&case.kept("k"))?;
            ensure!(new.session_present, "session present is 0");
            old.closed()?;
            case.peer("w")?.publish(&topic, "x", 1, false)?;
            new.expect(&topic, "x").map(drop)
        },
    },
    Row {
        v4: "3.3.1-1",
        v5: "3.3.1-1",
        says: "A message that is delivered again has DUP set, the first time not",
        run: |case| {
            let (first, again) = redelivered(case, 1)?;
            same("DUP", (first.duplicate, again.duplicate), (false, true))
        },
    },
    Row {
        v4: "4.4.0-1",
        v5: "4.4.0-1",
        says: "What a client did not acknowledge comes again with the same id",
        run: |case| {
            each([1, 2], |qos| {
                let (first, again) = redelivered(case, *qos)?;
                same("id", (again.id, again.text()), (first.id, first.text()))
            })
        },
    },
    Row {
        v4: "4.4.0-1",
        v5: "4.3.3-6",
        says: "After PUBREC the PUBREL comes again, not the PUBLISH",
        run: |case| {
            let topic = case.topic("t");
            let mut peer = case.open(&case.kept("k"))?;
            peer.subscribe(&topic, 2)?;
            case.peer("w")?.publish(&topic, "x", 2, false)?;
            let message = peer.take()?;
            peer.send(&wire::ack(wire::PUBREC, message.id))?;
            peer.wait_ack(wire::PUBREL, message.id)?;
            case.gone(peer);
            let mut peer = case.open(&case.kept("k"))?;
            let packet = peer.packet()?;
            ensure!(
                packet.kind == wire::PUBREL && packet.body[..2] == message.id.to_be_bytes(),
                "{packet:?}"
            );
            peer.send(&wire::ack(wire::PUBCOMP, message.id))?;
            peer.quiet()
        },
    },
    Row {
        v4: "4.6.0-1",
        v5: "4.6.0-1",
        says: "What is delivered again keeps its order",
        run: |case| {
            let topic = case.topic("t");
            let mut peer = case.open(&case.kept("k"))?;
            peer.subscribe(&topic, 1)?;
            let mut writer = case.peer("w")?;
            (0..10).try_for_each(|at| writer.publish(&topic, &at.to_string(), 1, false))?;
            (0..3).try_for_each(|_| peer.take().map(drop))?;
            case.gone(peer);
            let mut peer = case.open(&case.kept("k"))?;
            (0..10).try_for_each(|at| peer.expect(&topic, &at.to_string()).map(drop))
        },
    },
    Row {
        v4: "4.3.3-2",
        v5: "4.3.3-10",
        says: "A QoS 2 publish begun before a cut is finished after it, and delivered once",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.reader("r", &topic, 2)?;
            let mut writer = case.open(&case.kept("w"))?;
            let publish =
                Publish { topic: topic.clone(), qos: 2, id: 5, payload: b"x".to_vec(), ..Publish::default() };
            writer.send(&publish.packet(case.version))?;
            writer.wait_ack(wire::PUBREC, 5)?;
            case.gone(writer);
            let mut writer = case.open(&case.kept("w"))?;
            writer.send(&Publish { duplicate: true, ..publish }.packet(case.version))?;
            writer.wait_ack(wire::PUBREC, 5)?;
            writer.send(&wire::ack(wire::PUBREL, 5))?;
            writer.wait_ack(wire::PUBCOMP, 5)?;
            reader.expect(&topic, "x")?;
            reader.quiet()
        },
    },
    Row {
        v4: "4.1.0-1",
        v5: "4.1.0-1",
        says: "A session lives at least as long as its connection",
        run: |case| {
            let topic = case.topic("t");
            let mut peer = case.reader("k", &topic, 1)?;
            pause(1500);
            case.peer("w")?.publish(&topic, "x", 1, false)?;
            peer.expect(&topic, "x").map(drop)
        },
    },
    Row {
        v4: "",
        v5: "3.1.2-23",
        says: "A session is kept for its expiry interval and not longer",
        run: |case| {
            let short =
                Connect { props: vec![Prop::Four(wire::SESSION_EXPIRY, 1)], clean: false, ..case.clean("s") };
            case.open(&short)?.disconnect()?;
            ensure!(case.open(&short)?.session_present, "gone at once");
            pause(2600);
            ensure!(!case.open(&case.kept("s"))?.session_present, "still there after 2.6 s");
            Ok(())
        },
    },
    Row {
        v4: "",
        v5: "§3.14.2.2.2",
        says: "DISCONNECT may end a session that was to be kept",
        run: |case| {
            let mut peer = case.open(&case.kept("k"))?;
            peer.send(&wire::disconnect(0, &[Prop::Four(wire::SESSION_EXPIRY, 0)]))?;
            peer.closed()?;
            ensure!(!case.open(&case.kept("k"))?.session_present, "session present is 1");
            Ok(())
        },
    },
    Row {
        v4: "",
        v5: "§3.14.2.2.2",
        says: "DISCONNECT may not keep a session that was not to be kept",
        run: |case| {
            let mut peer = case.peer("k")?;
            peer.send(&wire::disconnect(0, &[Prop::Four(wire::SESSION_EXPIRY, 100)]))?;
            peer.closed_with_error()
        },
    },
    Row {
        v4: "",
        v5: "4.4.0-2",
        says: "A PUBACK with an error is an acknowledgement: the message does not come again",
        run: |case| {
            let topic = case.topic("t");
            let mut peer = case.open(&case.kept("k"))?;
            peer.subscribe(&topic, 1)?;
            case.peer("w")?.publish(&topic, "x", 1, false)?;
            let message = peer.take()?;
            peer.send(&wire::ack_with(wire::PUBACK, message.id, 0x80))?;
            peer.alive()?;
            case.gone(peer);
            case.open(&case.kept("k"))?.quiet()
        },
    },
    Row {
        v4: "",
        v5: "4.3.3-4",
        says: "A PUBREC with an error ends the handshake: no PUBREL, no repetition",
        run: |case| {
            let topic = case.topic("t");
            let mut peer = case.open(&case.kept("k"))?;
            peer.subscribe(&topic, 2)?;
            case.peer("w")?.publish(&topic, "x", 2, false)?;
            let message = peer.take()?;
            peer.send(&wire::ack_with(wire::PUBREC, message.id, 0x80))?;
            peer.quiet()?;
            case.gone(peer);
            case.open(&case.kept("k"))?.quiet()
        },
    },
    Row {
        v4: "",
        v5: "3.3.2-5",
        says: "A message that expired while its reader was away does not come",
        run: |case| {
            let topic = case.topic("t");
            away(case, &topic)?;
            let mut writer = case.peer("w")?;
            let message = |text: &str, props| Publish {
                topic: topic.clone(),
                payload: text.into(),
                qos: 1,
                props,
                ..Publish::default()
            };
            writer.publish_with(message("short", vec![Prop::Four(wire::MESSAGE_EXPIRY, 1)]))?;
            writer.publish_with(message("long", Vec::new()))?;
            pause(2200);
            case.open(&case.kept("k"))?.expect(&topic, "long").map(drop)
        },
    },
    Row {
        v4: "",
        v5: "3.3.2-6",
        says: "A message that waited is told with the expiry that is left",
        run: |case| {
            let topic = case.topic("t");
            away(case, &topic)?;
            let props = vec![Prop::Four(wire::MESSAGE_EXPIRY, 100)];
            case.peer("w")?.publish_with(Publish {
                topic: topic.clone(),
                qos: 1,
                props,
                ..Publish::default()
            })?;
            pause(2100);
            let left = case.open(&case.kept("k"))?.message()?.number(wire::MESSAGE_EXPIRY);
            ensure!(left.is_some_and(|left| (90..=98).contains(&left)), "expiry {left:?} after 2.1 s of 100");
            Ok(())
        },
    },
];

/// A kept session that is away, with a subscription.
fn away(case: &Case<'_>, topic: &str) -> Result<()> {
    let mut peer: Peer = case.open(&case.kept("k"))?;
    peer.subscribe(topic, 1)?;
    peer.disconnect()
}

/// A message taken and not acknowledged before a cut, and what comes after it.
fn redelivered(case: &Case<'_>, qos: u8) -> Result<(Publish, Publish)> {
    let (topic, name) = (case.topic(&format!("q{qos}")), format!("k{qos}"));
    let mut peer = case.open(&case.kept(&name))?;
    peer.subscribe(&topic, qos)?;
    case.peer("w")?.publish(&topic, "x", qos, false)?;
    let first = peer.take()?;
    case.gone(peer);
    let mut peer = case.open(&case.kept(&name))?;
    Ok((first, peer.message()?))
}
