//! SUBSCRIBE and UNSUBSCRIBE, and shared subscriptions.

use anyhow::{Result, ensure};

use super::{Case, Row, each, same};
use crate::{
    peer::Peer,
    wire::{self, Packet, Prop, SUBSCRIPTION_ID},
};

const NO_LOCAL: u8 = 4;

pub const ROWS: &[Row] = &[
    Row {
        v4: "3.8.1-1",
        v5: "3.8.1-1",
        says: "SUBSCRIBE with other flags than 2 ends the connection",
        run: |case| {
            let packet = wire::subscribe(case.version, 1, &[], &[("a", 0)]);
            each([0, 3], |flags| case.is_fatal(&Packet { flags: *flags, ..packet.clone() }.bytes()))
        },
    },
    Row {
        v4: "3.8.3-1",
        v5: "3.8.3-1",
        says: "A filter that is not UTF-8 ends the connection",
        run: |case| {
            let mut packet = wire::subscribe(case.version, 1, &[], &[("abc", 0)]);
            let at = packet.body.len() - 2;
            packet.body[at] = 0xff;
            case.is_fatal(&packet.bytes())
        },
    },
    Row {
        v4: "3.8.3-3",
        v5: "3.8.3-2",
        says: "SUBSCRIBE without a filter ends the connection",
        run: |case| case.is_fatal(&wire::subscribe(case.version, 1, &[], &[]).bytes()),
    },
    Row {
        v4: "3.8.3-4",
        v5: "3.8.3-5",
        says: "Reserved bits of the options, or QoS 3, end the connection",
        run: |case| {
            let bad: &[u8] = if case.is_v5() { &[0x40, 0x80, 3] } else { &[4, 0x80, 3] };
            each(bad, |options| {
                case.is_fatal(&wire::subscribe(case.version, 1, &[], &[("a", **options)]).bytes())
            })
        },
    },
    Row {
        v4: "",
        v5: "§3.8.3.1",
        says: "Retain handling 3 is a protocol error",
        run: |case| case.is_fatal(&wire::subscribe(case.version, 1, &[], &[("a", 0x30)]).bytes()),
    },
    Row {
        v4: "3.8.4-1",
        v5: "3.8.4-7",
        says: "SUBACK grants QoS 0, 1 and 2",
        run: |case| {
            let mut peer = case.peer("p")?;
            each([0, 1, 2], |qos| peer.subscribe(&case.topic("t"), *qos))
        },
    },
    Row {
        v4: "3.8.4-4",
        v5: "3.8.4-5",
        says: "Many filters in one SUBSCRIBE are as many subscriptions",
        run: |case| {
            let topics: Vec<String> = (0..5).map(|at| case.topic(&at.to_string())).collect();
            let mut reader = case.peer("r")?;
            let filters: Vec<(&str, u8)> = topics.iter().map(|topic| (topic.as_str(), 1)).collect();
            same("codes", reader.subscribe_all(&[], &filters)?, vec![1; 5])?;
            let mut writer = case.peer("w")?;
            each(&topics, |topic| {
                writer.publish(topic, "x", 1, false)?;
                reader.expect(topic, "x").map(drop)
            })
        },
    },
    Row {
        v4: "3.8.4-5",
        v5: "3.9.3-1",
        says: "SUBACK has one code for each filter, in their order",
        run: |case| {
            let (a, b, c) = (case.topic("a"), case.topic("b"), case.topic("c"));
            let codes = case.peer("p")?.subscribe_all(&[], &[(&a, 2), (&b, 0), (&c, 1)])?;
            same("codes", codes, vec![2, 0, 1])
        },
    },
    Row {
        v4: "3.8.4-3",
        v5: "3.8.4-3",
        says: "The same filter again replaces the subscription: one copy, the new QoS",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.reader("r", &topic, 2)?;
            reader.subscribe(&topic, 0)?;
            case.peer("w")?.publish(&topic, "x", 2, false)?;
            same("QoS", reader.expect(&topic, "x")?.qos, 0)?;
            reader.quiet()
        },
    },
    Row {
        v4: "3.8.4-6",
        v5: "3.8.4-8",
        says: "A message comes with the lower QoS of publisher and subscription",
        run: |case| {
            let mut writer = case.peer("w")?;
            each([0, 1, 2], |granted| {
                let topic = case.topic(&granted.to_string());
                let mut reader = case.reader(&format!("r{granted}"), &topic, *granted)?;
                each([0, 1, 2], |published| {
                    writer.publish(&topic, "x", *published, false)?;
                    same("QoS", reader.expect(&topic, "x")?.qos, *granted.min(published))
                })
            })
        },
    },
    Row {
        v4: "",
        v5: "3.8.3-3",
        says: "No local: a client does not get what it published itself",
        run: |case| {
            let topic = case.topic("t");
            let mut peer = case.reader("p", &topic, 1 | NO_LOCAL)?;
            peer.publish(&topic, "own", 1, false)?;
            peer.quiet()?;
            case.peer("w")?.publish(&topic, "other", 1, false)?;
            peer.expect(&topic, "other").map(drop)
        },
    },
    Row {
        v4: "",
        v5: "3.8.3-4",
        says: "No local on a shared subscription is a protocol error",
        run: |case| {
            case.is_fatal(&wire::subscribe(case.version, 1, &[], &[("$share/g/a", NO_LOCAL)]).bytes())
        },
    },
    Row {
        v4: "3.10.1-1",
        v5: "3.10.1-1",
        says: "UNSUBSCRIBE with other flags than 2 ends the connection",
        run: |case| {
            let packet = wire::unsubscribe(case.version, 1, &["a"]);
            each([0, 3], |flags| case.is_fatal(&Packet { flags: *flags, ..packet.clone() }.bytes()))
        },
    },
    Row {
        v4: "3.10.3-1",
        v5: "3.10.3-1",
        says: "A filter of UNSUBSCRIBE that is not UTF-8 ends the connection",
        run: |case| {
            let mut packet = wire::unsubscribe(case.version, 1, &["abc"]);
            let at = packet.body.len() - 1;
            packet.body[at] = 0xff;
            case.is_fatal(&packet.bytes())
        },
    },
    Row {
        v4: "3.10.3-2",
        v5: "3.10.3-2",
        says: "UNSUBSCRIBE without a filter ends the connection",
        run: |case| case.is_fatal(&wire::unsubscribe(case.version, 1, &[]).bytes()),
    },
    Row {
        v4: "3.10.4-1",
        v5: "3.10.4-1",
        says: "UNSUBSCRIBE ends the subscription with exactly that filter, not one that covers it",
        run: |case| {
            let topic = case.topic("a/b");
            let mut reader = case.reader("r", &topic, 1)?;
            reader.unsubscribe(&[&case.topic("a/+"), &case.topic("#"), &case.topic("A/b")])?;
            let mut writer = case.peer("w")?;
            writer.publish(&topic, "x", 1, false)?;
            reader.expect(&topic, "x")?;
            reader.unsubscribe(&[&topic])?;
            writer.publish(&topic, "y", 1, false)?;
            reader.quiet()
        },
    },
    Row {
        v4: "3.10.4-2",
        v5: "3.10.4-2",
        says: "After UNSUBACK nothing new is delivered",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.reader("r", &topic, 1)?;
            reader.unsubscribe(&[&topic])?;
            case.peer("w")?.publish(&topic, "x", 1, false)?;
            reader.quiet()
        },
    },
    Row {
        v4: "3.10.4-3",
        v5: "3.10.4-3",
        says: "A QoS 2 delivery that has begun is completed after UNSUBSCRIBE",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.reader("r", &topic, 2)?;
            case.peer("w")?.publish(&topic, "x", 2, false)?;
            let message = reader.take()?;
            reader.unsubscribe(&[&topic])?;
            reader.acknowledge(&message)?;
            reader.quiet()
        },
    },
    Row {
        v4: "3.10.4-5",
        v5: "3.10.4-5",
        says: "UNSUBSCRIBE is acknowledged also when there is no such subscription",
        run: |case| {
            let codes = case.peer("p")?.unsubscribe(&[&case.topic("t")])?;
            // 0x11: no subscription existed.
            same("codes", codes, if case.is_v5() { vec![0x11] } else { Vec::new() })
        },
    },
    Row {
        v4: "3.10.4-6",
        v5: "3.10.4-6",
        says: "Many filters in one UNSUBSCRIBE end as many subscriptions",
        run: |case| {
            let (a, b) = (case.topic("a"), case.topic("b"));
            let mut reader = case.peer("r")?;
            reader.subscribe_all(&[], &[(&a, 1), (&b, 1)])?;
            reader.unsubscribe(&[&a, &b])?;
            let mut writer = case.peer("w")?;
            each([&a, &b], |topic| writer.publish(topic, "x", 1, false))?;
            reader.quiet()
        },
    },
    Row {
        v4: "",
        v5: "3.11.3-1",
        says: "UNSUBACK has one code for each filter, in their order",
        run: |case| {
            let (a, b) = (case.topic("a"), case.topic("b"));
            let mut peer = case.reader("p", &b, 0)?;
            same("codes", peer.unsubscribe(&[&a, &b])?, vec![0x11, 0])
        },
    },
    Row {
        v4: "",
        v5: "3.3.4-3",
        says: "A message names the subscription identifier it matched",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.peer("r")?;
            reader.subscribe_all(&[Prop::Var(SUBSCRIPTION_ID, 300)], &[(&topic, 1)])?;
            case.peer("w")?.publish(&topic, "x", 1, false)?;
            same("identifier", reader.message()?.number(SUBSCRIPTION_ID), Some(300))
        },
    },
    Row {
        v4: "",
        v5: "3.3.4-4",
        says: "With overlapping subscriptions the identifiers of all that match arrive",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.peer("r")?;
            reader.subscribe_all(&[Prop::Var(SUBSCRIPTION_ID, 1)], &[(&topic, 1)])?;
            reader.subscribe_all(&[Prop::Var(SUBSCRIPTION_ID, 2)], &[(&case.topic("+"), 1)])?;
            case.peer("w")?.publish(&topic, "x", 1, false)?;
            let mut ids = Vec::new();
            while ids.len() < 2 {
                let message = reader.message()?;
                let found = message.props.iter().filter(|prop| prop.id() == SUBSCRIPTION_ID);
                ids.extend(found.filter_map(Prop::number));
            }
            ids.sort_unstable();
            same("identifiers", ids, vec![1, 2])
        },
    },
    Row {
        v4: "",
        v5: "§3.8.2.1.2",
        says: "Subscription identifier 0 is a protocol error",
        run: |case| {
            case.is_fatal(
                &wire::subscribe(case.version, 1, &[Prop::Var(SUBSCRIPTION_ID, 0)], &[("a", 0)]).bytes(),
            )
        },
    },
    Row {
        v4: "",
        v5: "3.3.4-6",
        says: "A client's PUBLISH with a subscription identifier ends the connection",
        run: |case| {
            let props = vec![Prop::Var(SUBSCRIPTION_ID, 1)];
            let publish = wire::Publish { topic: case.topic("t"), props, ..wire::Publish::default() };
            case.is_fatal(&publish.packet(case.version).bytes())
        },
    },
    Row {
        v4: "",
        v5: "4.8.2-1",
        says: "A shared filter without a share name is refused",
        run: |case| each(["$share//a", "$share/g", "$share/g/"], |filter| is_invalid(case, filter)),
    },
    Row {
        v4: "",
        v5: "4.8.2-2",
        says: "A share name with a wildcard is refused",
        run: |case| each(["$share/g+/a", "$share/#/a"], |filter| is_invalid(case, filter)),
    },
    Row {
        v4: "",
        v5: "§4.8.2",
        says: "Each message goes to one member of a share; those outside get all",
        run: |case| {
            let topic = case.topic("t");
            let shared = format!("$share/g/{topic}");
            let (mut one, mut two) = (case.reader("1", &shared, 1)?, case.reader("2", &shared, 1)?);
            let mut all = case.reader("all", &topic, 1)?;
            let mut writer = case.peer("w")?;
            (0..20).try_for_each(|at| writer.publish(&topic, &at.to_string(), 1, false))?;
            (0..20).try_for_each(|at| all.expect(&topic, &at.to_string()).map(drop))?;
            let mut got: Vec<u32> = Vec::new();
            for member in [&mut one, &mut two] {
                got.extend(everything(member)?);
            }
            got.sort_unstable();
            same("what the members got", got, (0..20).collect())
        },
    },
    Row {
        v4: "",
        v5: "4.8.2-3",
        says: "A member of a share gets messages with its own QoS",
        run: |case| {
            let topic = case.topic("t");
            let mut member = case.peer("m")?;
            member.subscribe(&format!("$share/g/{topic}"), 1)?;
            case.peer("w")?.publish(&topic, "x", 2, false)?;
            same("QoS", member.expect(&topic, "x")?.qos, 1)
        },
    },
];

/// Refused by a code or by the end of the connection; MQTT leaves the choice.
pub fn is_invalid(case: &Case<'_>, filter: &str) -> Result<()> {
    let mut peer = case.peer("bad")?;
    peer.send(&wire::subscribe(case.version, 1, &[], &[(filter, 0)]))?;
    match peer.wait(wire::SUBACK) {
        Ok(packet) => {
            let code = packet.body.last().copied().unwrap_or(0);
            ensure!(code >= 0x80, "granted with {code:#04x}");
            Ok(())
        }
        Err(_) => peer.closed_with_error(),
    }
}

/// What has come, as numbers.
fn everything(peer: &mut Peer) -> Result<Vec<u32>> {
    peer.alive()?;
    let mut got = Vec::new();
    while let Some(message) = peer.waiting_message()? {
        got.push(message.text().parse()?);
    }
    Ok(got)
}
