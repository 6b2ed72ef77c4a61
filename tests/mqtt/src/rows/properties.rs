//! Properties of messages in MQTT 5, and clients of both versions on one topic.

use anyhow::{Result, ensure};

use super::{Case, Row, each, same};
use crate::{
    peer::Peer,
    wire::{self, Connect, Prop, Publish, V4, V5},
};

pub const ROWS: &[Row] = &[
    Row {
        v4: "",
        v5: "3.3.2-4",
        says: "The payload format indicator is passed on",
        run: |case| passed_on(case, &[Prop::Byte(wire::PAYLOAD_FORMAT, 1)]),
    },
    Row {
        v4: "",
        v5: "3.3.2-15",
        says: "The response topic is passed on",
        run: |case| passed_on(case, &[Prop::Text(wire::RESPONSE_TOPIC, "answers/here".into())]),
    },
    Row {
        v4: "",
        v5: "3.3.2-14",
        says: "A response topic with a wildcard ends the connection",
        run: |case| {
            let props = vec![Prop::Text(wire::RESPONSE_TOPIC, "a/#".into())];
            let publish = Publish { topic: case.topic("t"), props, ..Publish::default() };
            case.is_fatal(&publish.packet(V5).bytes())
        },
    },
    Row {
        v4: "",
        v5: "3.3.2-16",
        says: "The correlation data is passed on",
        run: |case| passed_on(case, &[Prop::Bytes(wire::CORRELATION, vec![0, 1, 0xff])]),
    },
    Row {
        v4: "",
        v5: "3.3.2-20",
        says: "The content type is passed on",
        run: |case| passed_on(case, &[Prop::Text(wire::CONTENT_TYPE, "application/json".into())]),
    },
    Row {
        v4: "",
        v5: "3.3.2-17",
        says: "All user properties are passed on, also repeated ones",
        run: |case| passed_on(case, &[wire::user("a", "1"), wire::user("b", ""), wire::user("a", "1")]),
    },
    Row {
        v4: "",
        v5: "3.3.2-18",
        says: "User properties keep their order",
        run: |case| passed_on(case, &[wire::user("z", "1"), wire::user("a", "2"), wire::user("m", "3")]),
    },
    Row {
        v4: "",
        v5: "§3.3.2.3",
        says: "A retained message keeps its properties",
        run: |case| {
            let topic = case.topic("t");
            let props = vec![wire::user("k", "v"), Prop::Text(wire::CONTENT_TYPE, "text".into())];
            let mut writer = case.peer("w")?;
            writer.publish_with(Publish {
                topic: topic.clone(),
                payload: b"x".to_vec(),
                qos: 1,
                retain: true,
                props: props.clone(),
                ..Publish::default()
            })?;
            let message = case.reader("late", &topic, 1)?.message()?;
            writer.publish(&topic, "", 1, true)?;
            has(&message, &props)
        },
    },
    Row {
        v4: "",
        v5: "3.3.2-7",
        says: "A topic alias is known on its own connection only",
        run: |case| {
            let mut writer = case.peer("w")?;
            if writer.prop_number(wire::TOPIC_ALIAS_MAXIMUM).unwrap_or(0) == 0 {
                return Ok(());
            }
            writer.publish_with(aliased(&case.topic("t"), 1))?;
            let mut other = case.peer("other")?;
            let _ = other.send(&aliased("", 1).packet(V5));
            other.closed_with_error()
        },
    },
    Row {
        v4: "",
        v5: "3.3.2-8",
        says: "Topic alias 0 ends the connection",
        run: |case| case.is_fatal(&aliased(&case.topic("t"), 0).packet(V5).bytes()),
    },
    Row {
        v4: "",
        v5: "3.3.2-9",
        says: "A topic alias over the maximum that the server told ends the connection",
        run: |case| {
            let maximum = case.peer("p")?.prop_number(wire::TOPIC_ALIAS_MAXIMUM).unwrap_or(0) as u16;
            if maximum == u16::MAX {
                return Ok(());
            }
            case.is_fatal(&aliased(&case.topic("t"), maximum + 1).packet(V5).bytes())
        },
    },
    Row {
        v4: "",
        v5: "3.3.2-12",
        says: "All topic aliases up to the maximum that the server told are accepted",
        run: |case| {
            let (first, second) = (case.topic("first"), case.topic("second"));
            let mut reader = case.reader("r", &case.topic("#"), 1)?;
            let mut writer = case.peer("w")?;
            let maximum = writer.prop_number(wire::TOPIC_ALIAS_MAXIMUM).unwrap_or(0) as u16;
            each([1, maximum].iter().filter(|alias| **alias > 0 && **alias <= maximum), |alias| {
                // Set, used, set to another topic, used.
                for (topic, seen) in [(&*first, &first), ("", &first), (&*second, &second), ("", &second)] {
                    writer.publish_with(aliased(topic, **alias))?;
                    reader.expect(seen, "x")?;
                }
                Ok(())
            })
        },
    },
    Row {
        v4: "",
        v5: "3.1.2-27",
        says: "A client that did not ask for topic aliases gets none",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.reader("r", &topic, 1)?;
            let mut writer = case.peer("w")?;
            (0..3).try_for_each(|_| {
                writer.publish(&topic, "x", 1, false)?;
                same("alias", reader.expect(&topic, "x")?.number(wire::TOPIC_ALIAS), None)
            })
        },
    },
    Row {
        v4: "",
        v5: "3.1.2-26",
        says: "A client that allows topic aliases gets none over its maximum",
        run: |case| {
            let props = vec![Prop::Two(wire::TOPIC_ALIAS_MAXIMUM, 2)];
            let mut reader = case.open(&Connect { props, ..case.clean("r") })?;
            reader.subscribe(&case.topic("#"), 1)?;
            let mut writer = case.peer("w")?;
            (0..5).try_for_each(|at| {
                writer.publish(&case.topic(&at.to_string()), "x", 1, false)?;
                let alias = reader.message()?.number(wire::TOPIC_ALIAS).unwrap_or(1);
                ensure!((1..=2).contains(&alias), "alias {alias}");
                Ok(())
            })
        },
    },
    Row {
        v4: "",
        v5: "3.1.2-29",
        says: "A client that wants no problem information gets no reason strings or user properties in acknowledgements",
        run: |case| {
            let props = vec![Prop::Byte(wire::REQUEST_PROBLEM, 0)];
            let mut peer = case.open(&Connect { props, ..case.clean("p") })?;
            let publish = Publish { topic: case.topic("nobody"), qos: 1, id: 1, ..Publish::default() };
            peer.send(&publish.packet(V5))?;
            let ack = peer.wait(wire::PUBACK)?;
            let mut body = wire::Reader(&ack.body);
            let list = if ack.body.len() > 3 {
                body.take(3)?;
                body.props()?
            } else {
                Vec::new()
            };
            ensure!(list.iter().all(|prop| ![wire::REASON, wire::USER].contains(&prop.id())), "{list:?}");
            Ok(())
        },
    },
    Row {
        v4: "§3.1.2.2",
        v5: "§3.1.2.2",
        says: "Clients of both versions exchange messages",
        run: |case| {
            let other = if case.version == V4 { V5 } else { V4 };
            if case.broker.v4 != case.broker.v5 {
                // Two ports of one broker are one broker all the same.
                ensure!(case.broker.kind.name() == "rumqttd", "two addresses");
            }
            let topic = case.topic("t");
            let mut reader =
                Peer::connect(case.broker.address(other), &Connect::new(other, &format!("{}o", case.tag)))?;
            reader.subscribe(&topic, 2)?;
            let mut publish =
                Publish { topic: topic.clone(), payload: b"x".to_vec(), qos: 2, ..Publish::default() };
            if case.is_v5() {
                publish.props = vec![wire::user("k", "v"), Prop::Four(wire::MESSAGE_EXPIRY, 100)];
            }
            case.peer("w")?.publish_with(publish)?;
            reader.expect(&topic, "x").map(drop)
        },
    },
];

fn aliased(topic: &str, alias: u16) -> Publish {
    let props = vec![Prop::Two(wire::TOPIC_ALIAS, alias)];
    Publish { topic: topic.into(), payload: b"x".to_vec(), qos: 1, id: 1, props, ..Publish::default() }
}

fn has(message: &Publish, props: &[Prop]) -> Result<()> {
    let ids: Vec<u8> = props.iter().map(Prop::id).collect();
    let got: Vec<&Prop> = message.props.iter().filter(|prop| ids.contains(&prop.id())).collect();
    ensure!(got.iter().copied().eq(props), "{:?} instead of {props:?}", message.props);
    Ok(())
}

/// Through a subscription at once, and through a session that was away.
fn passed_on(case: &Case<'_>, props: &[Prop]) -> Result<()> {
    let topic = case.topic("t");
    let mut reader = case.reader("r", &topic, 1)?;
    let mut away = case.open(&case.kept("k"))?;
    away.subscribe(&topic, 1)?;
    away.disconnect()?;
    case.peer("w")?.publish_with(Publish { topic, qos: 1, props: props.to_vec(), ..Publish::default() })?;
    has(&reader.message()?, props)?;
    has(&case.open(&case.kept("k"))?.message()?, props)
}
