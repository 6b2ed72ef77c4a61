//! Topic names and filters, and which match.

use anyhow::{Result, ensure};

use super::{Case, Row, each, subscribe::is_invalid};
use crate::wire::{self, Packet, Publish};

pub const ROWS: &[Row] = &[
    Row {
        v4: "4.7.1-1",
        v5: "3.3.2-2",
        says: "A wildcard in a topic that is published ends the connection",
        run: |case| {
            each(["a/+", "a/#", "#", "+"], |topic| {
                let publish = Publish { topic: (*topic).into(), ..Publish::default() };
                case.is_fatal(&publish.packet(case.version).bytes())
            })
        },
    },
    Row {
        v4: "4.7.1-2",
        v5: "4.7.1-1",
        says: "# elsewhere than alone at the end is refused",
        run: |case| each(["a#", "a/#/b", "#/a", "a/b#", "##"], |filter| is_invalid(case, filter)),
    },
    Row {
        v4: "4.7.1-3",
        v5: "4.7.1-2",
        says: "+ beside other characters of its level is refused",
        run: |case| each(["a+", "+a", "a/b+/c", "++"], |filter| is_invalid(case, filter)),
    },
    Row {
        v4: "4.7.1-2",
        v5: "4.7.1-1",
        says: "# matches its parent and all below",
        run: |case| table(case, "s/p/#", &["s/p", "s/p/", "s/p/1", "s/p/1/2"], &["s/pq", "s", "t/p/1"]),
    },
    Row {
        v4: "4.7.1-3",
        v5: "4.7.1-2",
        says: "+ matches one level, also an empty one",
        run: |case| table(case, "s/+/x", &["s/1/x", "s//x", "s/$d/x"], &["s/x", "s/1/2/x", "s/1/y"]),
    },
    Row {
        v4: "4.7.1-3",
        v5: "4.7.1-2",
        says: "+ at the end, and with #",
        run: |case| {
            table(case, "s/+", &["s/1", "s/"], &["s", "s/1/2", "s/1/"])?;
            table(case, "+/#", &["s/1", "s", "s/1/2", "/"], &[])
        },
    },
    Row {
        v4: "4.7.3-4",
        v5: "4.7.3-4",
        says: "Topics are compared by their bytes: case, spaces, empty levels, composed characters",
        run: |case| {
            table(case, "a/b", &["a/b"], &["A/b", "a/B", "/a/b", "a/b/", "a//b", "a/b ", "a/\u{fe0f}b"])?;
            table(case, "caf\u{e9}", &["caf\u{e9}"], &["cafe\u{301}"])
        },
    },
    Row {
        v4: "4.7.2-1",
        v5: "4.7.2-1",
        says: "A wildcard in front matches no topic that begins with $",
        run: |case| {
            let mut reader = case.peer("r")?;
            // `+/<tag>/#` would match `$x/<tag>/t` if $ were a character as any other.
            reader.subscribe(&format!("+/{}/#", case.tag), 1)?;
            let mut writer = case.peer("w")?;
            writer.publish(&format!("$x/{}", case.topic("t")), "hidden", 0, false)?;
            writer.publish(&format!("x/{}", case.topic("t")), "seen", 1, false)?;
            reader.expect(&format!("x/{}", case.topic("t")), "seen")?;
            reader.quiet()
        },
    },
    Row {
        v4: "§4.7.2",
        v5: "§4.7.2",
        says: "A filter that names it matches a topic that begins with $ ($hw/events/...)",
        run: |case| {
            let topic = format!("$hw/events/{}", case.topic("twin/update"));
            let mut exact = case.reader("exact", &topic, 1)?;
            let mut wild = case.reader("wild", &format!("$hw/events/{}/#", case.tag), 1)?;
            case.peer("w")?.publish(&topic, "x", 1, false)?;
            exact.expect(&topic, "x")?;
            wild.expect(&topic, "x").map(drop)
        },
    },
    Row {
        v4: "4.7.3-1",
        v5: "4.7.3-1",
        says: "An empty topic or filter ends the connection",
        run: |case| {
            let publish = Publish::default().packet(case.version);
            let requests = [
                wire::subscribe(case.version, 1, &[], &[("", 0)]),
                wire::unsubscribe(case.version, 1, &[""]),
            ];
            each([publish].into_iter().chain(requests), |packet: &Packet| case.is_fatal(&packet.bytes()))
        },
    },
    Row {
        v4: "4.7.3-2",
        v5: "4.7.3-2",
        says: "U+0000 in a filter ends the connection",
        run: |case| case.is_fatal(&wire::subscribe(case.version, 1, &[], &[("a\0b", 0)]).bytes()),
    },
];

/// A subscription below the row's own topics gets the first list and not the second.
fn table(case: &Case<'_>, filter: &str, matching: &[&str], other: &[&str]) -> Result<()> {
    let name = filter.replace(['/', '+', '#'], "_");
    let mut reader = case.reader(&name, &case.topic(&format!("{name}/{filter}")), 1)?;
    let mut writer = case.peer("w")?;
    for topic in other.iter().chain(matching) {
        writer.publish(&case.topic(&format!("{name}/{topic}")), "x", 1, false)?;
    }
    for topic in matching {
        let message = reader.message()?;
        ensure!(
            message.topic == case.topic(&format!("{name}/{topic}")),
            "{} came for {topic}",
            message.topic
        );
    }
    reader.quiet()
}
