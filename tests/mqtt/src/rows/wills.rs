//! Wills: when they are published, as what, and when not.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Case, Row, each, pause, same};
use crate::{
    peer::Peer,
    wire::{self, Connect, Packet, Prop, Will},
};

pub const ROWS: &[Row] = &[
    Row {
        v4: "3.1.2-8",
        v5: "3.1.2-8",
        says: "A will is published when the connection is lost",
        run: |case| {
            let (topic, connect) = willing(case);
            let mut reader = case.reader("r", &topic, 1)?;
            case.open(&connect)?.cut();
            reader.expect(&topic, "will").map(drop)
        },
    },
    Row {
        v4: "3.1.2-8",
        v5: "3.1.2-8",
        says: "A will is published when the server closes for an error of the client",
        run: |case| {
            let (topic, connect) = willing(case);
            let mut reader = case.reader("r", &topic, 1)?;
            let mut peer = case.open(&connect)?;
            peer.send(&Packet::new(wire::SUBSCRIBE, 0, vec![0, 1]))?;
            reader.expect(&topic, "will").map(drop)
        },
    },
    Row {
        v4: "3.1.2-8",
        v5: "3.1.2-8",
        says: "A will is published when the client was silent for too long",
        run: |case| {
            let (topic, connect) = willing(case);
            let mut reader = case.reader("r", &topic, 1)?;
            let _silent = case.open(&Connect { keep_alive: 1, ..connect })?;
            pause(2000);
            reader.expect(&topic, "will").map(drop)
        },
    },
    Row {
        v4: "3.1.2-10",
        v5: "3.1.2-10",
        says: "A will is gone once it was published",
        run: |case| {
            let (topic, connect) = willing(case);
            let mut reader = case.reader("r", &topic, 1)?;
            case.open(&connect)?.cut();
            reader.expect(&topic, "will")?;
            let again = Connect { will: None, ..connect };
            case.open(&again)?.cut();
            pause(150);
            reader.quiet()
        },
    },
    Row {
        v4: "3.14.4-3",
        v5: "3.14.4-3",
        says: "A will is not published after DISCONNECT",
        run: |case| {
            let (topic, connect) = willing(case);
            let mut reader = case.reader("r", &topic, 1)?;
            case.open(&connect)?.disconnect()?;
            reader.quiet()
        },
    },
    Row {
        v4: "3.1.2-9",
        v5: "3.1.2-9",
        says: "The will flag without a topic and message is malformed",
        run: |case| case.is_refused(&Connect { flip: 4, ..case.clean("n") }),
    },
    Row {
        v4: "3.1.2-13",
        v5: "3.1.2-11",
        says: "A QoS of the will without a will is refused",
        run: |case| case.is_refused(&Connect { flip: 8, ..case.clean("n") }),
    },
    Row {
        v4: "3.1.2-15",
        v5: "3.1.2-13",
        says: "The will retain flag without a will is refused",
        run: |case| case.is_refused(&Connect { flip: 0x20, ..case.clean("n") }),
    },
    Row {
        v4: "3.1.2-14",
        v5: "3.1.2-12",
        says: "A will of QoS 3 is refused; 0, 1 and 2 are published as such",
        run: |case| {
            let (topic, connect) = willing(case);
            let with = |qos| Connect {
                will: connect.will.clone().map(|will| Will { qos, ..will }),
                ..connect.clone()
            };
            case.is_refused(&with(3))?;
            let mut reader = case.reader("r", &topic, 2)?;
            each([0, 1, 2], |qos| {
                case.open(&with(*qos))?.cut();
                same("QoS", reader.expect(&topic, "will")?.qos, *qos)
            })
        },
    },
    Row {
        v4: "3.1.2-16",
        v5: "3.1.2-14",
        says: "A will without retain is not retained",
        run: |case| {
            let (topic, connect) = willing(case);
            let mut reader = case.reader("r", &topic, 1)?;
            case.open(&connect)?.cut();
            ensure!(!reader.expect(&topic, "will")?.retain, "it has the retain flag");
            case.reader("late", &topic, 1)?.quiet()
        },
    },
    Row {
        v4: "3.1.2-17",
        v5: "3.1.2-15",
        says: "A will with retain is retained",
        run: |case| {
            let (topic, mut connect) = willing(case);
            connect.will.iter_mut().for_each(|will| will.retain = true);
            let mut reader = case.reader("r", &topic, 1)?;
            case.open(&connect)?.cut();
            reader.expect(&topic, "will")?;
            let late = case.reader("late", &topic, 1)?.expect(&topic, "will")?;
            case.peer("w")?.publish(&topic, "", 1, true)?;
            same("retain", late.retain, true)
        },
    },
    Row {
        v4: "",
        v5: "§3.14.2.1",
        says: "DISCONNECT with reason 0x04 publishes the will",
        run: |case| {
            let (topic, connect) = willing(case);
            let mut reader = case.reader("r", &topic, 1)?;
            let mut peer = case.open(&connect)?;
            peer.send(&Packet::new(wire::DISCONNECT, 0, vec![4]))?;
            reader.expect(&topic, "will").map(drop)
        },
    },
    Row {
        v4: "",
        v5: "3.1.3-9",
        says: "A client that is back within the will's delay has no will published",
        run: |case| {
            let (topic, connect) = delayed(case, 2);
            let mut reader = case.reader("r", &topic, 1)?;
            case.gone(known(case, &connect)?);
            let back = Connect { will: None, clean: false, ..connect };
            let _held = case.open(&back)?;
            pause(3200);
            reader.quiet()
        },
    },
    Row {
        v4: "",
        v5: "§3.1.3.2.2",
        says: "A delayed will is published after its delay, or when the session ends, whichever is first",
        run: |case| {
            each([(1, 600), (600, 1)], |(delay, expiry)| {
                let (topic, mut connect) = delayed(case, *delay);
                connect.props = vec![Prop::Four(wire::SESSION_EXPIRY, *expiry)];
                connect.id.extend(delay.to_string().bytes());
                let mut reader = case.reader("r", &topic, 1)?;
                let begun = Instant::now();
                known(case, &connect)?.cut();
                reader.expect(&topic, "will")?;
                ensure!(begun.elapsed() > Duration::from_millis(850), "after {:?}", begun.elapsed());
                Ok(())
            })
        },
    },
    Row {
        v4: "",
        v5: "§3.1.3.2",
        says: "A will carries its properties",
        run: |case| {
            let (topic, mut connect) = willing(case);
            let props = vec![
                Prop::Byte(wire::PAYLOAD_FORMAT, 1),
                Prop::Text(wire::CONTENT_TYPE, "text".into()),
                Prop::Text(wire::RESPONSE_TOPIC, "a/b".into()),
                Prop::Bytes(wire::CORRELATION, vec![1, 2]),
                wire::user("k", "v"),
            ];
            connect.will.iter_mut().for_each(|will| will.props = props.clone());
            let mut reader = case.reader("r", &topic, 1)?;
            case.open(&connect)?.cut();
            let message = reader.expect(&topic, "will")?;
            each(props, |prop| {
                ensure!(message.props.contains(prop), "{:?}", message.props);
                Ok(())
            })
        },
    },
];

fn willing(case: &Case<'_>) -> (String, Connect) {
    let topic = case.topic("will");
    let will = Will { topic: topic.clone().into(), payload: b"will".to_vec(), qos: 1, ..Will::default() };
    (topic, Connect { will: Some(will), ..case.clean("mortal") })
}

/// Connected, and the broker knows that its client knows: ours ends a new session whose client has never said anything.
fn known(case: &Case<'_>, connect: &Connect) -> Result<Peer> {
    let mut peer = case.open(connect)?;
    peer.alive()?;
    Ok(peer)
}

fn delayed(case: &Case<'_>, seconds: u32) -> (String, Connect) {
    let (topic, mut connect) = willing(case);
    connect.props = vec![Prop::Four(wire::SESSION_EXPIRY, 600)];
    connect.will.iter_mut().for_each(|will| will.props = vec![Prop::Four(wire::WILL_DELAY, seconds)]);
    (topic, connect)
}
