//! Retained messages.

use anyhow::{Result, ensure};

use super::{Case, Row, each, same};
use crate::peer::Peer;

/// Options of a subscription in MQTT 5.
pub const RETAIN_AS_PUBLISHED: u8 = 8;
const RETAIN_IF_NEW: u8 = 0x10;
const RETAIN_NEVER: u8 = 0x20;

pub const ROWS: &[Row] = &[
    Row {
        v4: "3.3.1-5",
        v5: "3.3.1-5",
        says: "A retained message is stored and replaces the one before",
        run: |case| {
            let topic = case.topic("t");
            let mut writer = case.peer("w")?;
            each(["first", "second"], |text| writer.publish(&topic, text, 1, true))?;
            let mut late = case.reader("late", &topic, 1)?;
            late.expect(&topic, "second")?;
            late.quiet()?;
            clear(&mut writer, &topic)
        },
    },
    Row {
        v4: "3.3.1-6",
        v5: "3.3.1-9",
        says: "A new subscription gets the retained messages that match, at most with its QoS",
        run: |case| {
            let mut writer = case.peer("w")?;
            let (one, two) = (case.topic("a/1"), case.topic("a/2"));
            writer.publish(&one, "1", 2, true)?;
            writer.publish(&two, "2", 0, true)?;
            let mut late = case.reader("late", &case.topic("a/+"), 1)?;
            let mut got = [late.message()?, late.message()?];
            got.sort_by(|a, b| a.topic.cmp(&b.topic));
            same("QoS", (got[0].qos, got[1].qos), (1, 0))?;
            same("topics", (&got[0].topic, &got[1].topic), (&one, &two))?;
            each([one, two], |topic| clear(&mut writer, topic))
        },
    },
    Row {
        v4: "3.3.1-7",
        v5: "3.3.1-5",
        says: "A retained message of QoS 0 replaces one of QoS 1 or 2",
        run: |case| {
            let topic = case.topic("t");
            let mut writer = case.peer("w")?;
            writer.publish(&topic, "first", 2, true)?;
            writer.publish(&topic, "second", 0, true)?;
            writer.alive()?;
            case.reader("late", &topic, 1)?.expect(&topic, "second")?;
            clear(&mut writer, &topic)
        },
    },
    Row {
        v4: "3.3.1-8",
        v5: "3.3.1-9",
        says: "A retained message says so to a new subscription",
        run: |case| {
            let topic = case.topic("t");
            let mut writer = case.peer("w")?;
            writer.publish(&topic, "x", 1, true)?;
            let message = case.reader("late", &topic, 1)?.expect(&topic, "x")?;
            clear(&mut writer, &topic)?;
            same("retain", message.retain, true)
        },
    },
    Row {
        v4: "3.3.1-9",
        v5: "3.3.1-12",
        says: "To a subscription that was there it comes without the flag",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.reader("r", &topic, 1)?;
            let mut writer = case.peer("w")?;
            writer.publish(&topic, "x", 1, true)?;
            let message = reader.expect(&topic, "x")?;
            clear(&mut writer, &topic)?;
            same("retain", message.retain, false)
        },
    },
    Row {
        v4: "3.3.1-10",
        v5: "3.3.1-6",
        says: "An empty retained message removes the one stored, and is delivered as any other",
        run: |case| {
            let topic = case.topic("t");
            let mut writer = case.peer("w")?;
            writer.publish(&topic, "x", 1, true)?;
            let mut reader = case.reader("r", &topic, 1)?;
            reader.expect(&topic, "x")?;
            writer.publish(&topic, "", 1, true)?;
            reader.expect(&topic, "")?;
            case.reader("late", &topic, 1)?.quiet()
        },
    },
    Row {
        v4: "3.3.1-11",
        v5: "3.3.1-7",
        says: "An empty retained message is not stored",
        run: |case| {
            let topic = case.topic("t");
            case.peer("w")?.publish(&topic, "", 1, true)?;
            case.reader("late", &topic, 1)?.quiet()
        },
    },
    Row {
        v4: "3.3.1-12",
        v5: "3.3.1-8",
        says: "A message without the flag stores, replaces and removes nothing",
        run: |case| {
            let topic = case.topic("t");
            let mut writer = case.peer("w")?;
            writer.publish(&topic, "x", 1, false)?;
            case.reader("early", &topic, 1)?.quiet()?;
            writer.publish(&topic, "kept", 1, true)?;
            each(["other", ""], |text| writer.publish(&topic, text, 1, false))?;
            let mut late = case.reader("late", &topic, 1)?;
            late.expect(&topic, "kept")?;
            late.quiet()?;
            clear(&mut writer, &topic)
        },
    },
    Row {
        v4: "3.1.2-7",
        v5: "§4.1",
        says: "Retained messages outlive the session that published them",
        run: |case| {
            let topic = case.topic("t");
            let mut writer = case.peer("w")?;
            writer.publish(&topic, "x", 1, true)?;
            writer.disconnect()?;
            case.reader("late", &topic, 1)?.expect(&topic, "x")?;
            clear(&mut case.peer("w")?, &topic)
        },
    },
    Row {
        v4: "3.8.4-3",
        v5: "3.8.4-4",
        says: "Subscribing again sends retained messages again",
        run: |case| {
            let topic = case.topic("t");
            let mut writer = case.peer("w")?;
            writer.publish(&topic, "x", 1, true)?;
            let mut reader = case.peer("r")?;
            each([0, 1], |_| {
                reader.subscribe(&topic, 1)?;
                reader.expect(&topic, "x").map(drop)
            })?;
            clear(&mut writer, &topic)
        },
    },
    Row {
        v4: "",
        v5: "3.3.1-10",
        says: "Retain handling 1: only a subscription that is new gets retained messages",
        run: |case| {
            let topic = case.topic("t");
            let mut writer = case.peer("w")?;
            writer.publish(&topic, "x", 1, true)?;
            let mut reader = case.reader("r", &topic, 1 | RETAIN_IF_NEW)?;
            reader.expect(&topic, "x")?;
            reader.subscribe(&topic, 1 | RETAIN_IF_NEW)?;
            reader.quiet()?;
            clear(&mut writer, &topic)
        },
    },
    Row {
        v4: "",
        v5: "3.3.1-11",
        says: "Retain handling 2: no retained messages",
        run: |case| {
            let topic = case.topic("t");
            let mut writer = case.peer("w")?;
            writer.publish(&topic, "x", 1, true)?;
            case.reader("r", &topic, 1 | RETAIN_NEVER)?.quiet()?;
            clear(&mut writer, &topic)
        },
    },
    Row {
        v4: "",
        v5: "3.3.1-13",
        says: "Retain as published: the flag is passed on as it came",
        run: |case| {
            let topic = case.topic("t");
            let mut reader = case.reader("r", &topic, 1 | RETAIN_AS_PUBLISHED)?;
            let mut writer = case.peer("w")?;
            each([true, false], |retain| {
                writer.publish(&topic, "x", 1, *retain)?;
                same("retain", reader.expect(&topic, "x")?.retain, *retain)
            })?;
            clear(&mut writer, &topic)
        },
    },
    Row {
        v4: "",
        v5: "§4.8.2",
        says: "A shared subscription gets no retained messages",
        run: |case| {
            let topic = case.topic("t");
            let mut writer = case.peer("w")?;
            writer.publish(&topic, "x", 1, true)?;
            let mut reader = case.peer("r")?;
            reader.subscribe(&format!("$share/g/{topic}"), 1)?;
            reader.quiet()?;
            clear(&mut writer, &topic)
        },
    },
    Row {
        v4: "§3.3.1.3",
        v5: "§3.3.1.3",
        says: "More than a hundred retained messages all reach a new subscription",
        run: many,
    },
];

/// So that rows leave nothing behind in the broker.
fn clear(writer: &mut Peer, topic: &str) -> Result<()> {
    writer.publish(topic, "", 1, true)
}

fn many(case: &Case<'_>) -> Result<()> {
    let mut writer = case.peer("w")?;
    let topics: Vec<String> = (0..150).map(|at| case.topic(&format!("m/{at}"))).collect();
    each(&topics, |topic| writer.publish(topic, "x", 1, true))?;
    let mut late = case.reader("late", &case.topic("m/#"), 1)?;
    let mut got = Vec::new();
    for _ in 0..topics.len() {
        let message = late.message()?;
        ensure!(
            message.retain && !got.contains(&message.topic),
            "{} again or without the flag",
            message.topic
        );
        got.push(message.topic);
    }
    each(&topics, |topic| clear(&mut writer, topic))
}
