//! CONNECT and CONNACK: what is accepted, what is refused, and how.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Case, Row, each, same};
use crate::{
    brokers::USER,
    peer::Peer,
    wire::{self, Connect, Packet, Prop, Publish, Will},
};

pub const ROWS: &[Row] = &[
    Row {
        v4: "3.1.0-1",
        v5: "3.1.0-1",
        says: "What begins with another packet than CONNECT is closed",
        run: |case| {
            let publish = Publish { topic: case.topic("t"), ..Publish::default() }.packet(case.version);
            each([wire::empty(wire::PINGREQ), publish, wire::empty(wire::DISCONNECT)], |packet| {
                let mut peer = case.raw()?;
                peer.send(packet)?;
                same("packets before the end", peer.closed()?.len(), 0)
            })
        },
    },
    Row {
        v4: "3.1.0-2",
        v5: "3.1.0-2",
        says: "A second CONNECT ends the connection",
        run: |case| case.is_fatal(&case.clean("bad").packet().bytes()),
    },
    Row {
        v4: "3.1.2-1",
        v5: "3.1.2-1",
        says: "Another protocol name than MQTT is closed",
        run: |case| {
            each([&b"MQTX"[..], b"mqtt", b""], |name| {
                case.is_refused(&Connect { name: name.to_vec(), ..case.clean("n") })
            })
        },
    },
    Row {
        v4: "3.1.2-2",
        v5: "3.1.2-2",
        says: "An unknown protocol level gets CONNACK 1 (or MQTT 5's 0x84) and the end",
        run: |case| {
            let mut peer = case.raw()?;
            peer.send(&Connect { version: 9, ..case.clean("n") }.packet())?;
            let said = peer.closed()?;
            // MQTT 5 leaves it to the server whether it answers.
            ensure!(case.is_v5() || !said.is_empty(), "closed without an answer");
            each(said, |packet| {
                ensure!(
                    packet.kind == wire::CONNACK && matches!(packet.body.get(1), Some(1 | 0x84)),
                    "not that"
                );
                Ok(())
            })
        },
    },
    Row {
        v4: "3.1.2-3",
        v5: "3.1.2-3",
        says: "The reserved connect flag set is closed",
        run: |case| case.is_refused(&Connect { flip: 1, ..case.clean("n") }),
    },
    Row {
        v4: "3.1.2-18",
        v5: "3.1.2-16",
        says: "A user name without its flag is malformed",
        run: |case| case.is_refused(&Connect { user: Some(b"u".to_vec()), flip: 0x80, ..case.clean("n") }),
    },
    Row {
        v4: "3.1.2-19",
        v5: "3.1.2-17",
        says: "The user name flag without a user name is malformed",
        run: |case| case.is_refused(&Connect { flip: 0x80, ..case.clean("n") }),
    },
    Row {
        v4: "3.1.2-20",
        v5: "3.1.2-18",
        says: "A password without its flag is malformed",
        run: |case| {
            let (user, password) = (Some(b"u".to_vec()), Some(b"p".to_vec()));
            case.is_refused(&Connect { user, password, flip: 0x40, ..case.clean("n") })
        },
    },
    Row {
        v4: "3.1.2-21",
        v5: "3.1.2-19",
        says: "The password flag without a password is malformed",
        run: |case| case.is_refused(&Connect { user: Some(b"u".to_vec()), flip: 0x40, ..case.clean("n") }),
    },
    Row {
        v4: "3.1.2-22",
        v5: "",
        says: "A password without a user name is refused in 3.1.1",
        run: |case| case.is_refused(&Connect { password: Some(b"p".to_vec()), ..case.clean("n") }),
    },
    Row {
        v4: "",
        v5: "§3.1.2.9",
        says: "A password without a user name is well-formed in 5",
        run: |case| case.open(&Connect { password: Some(b"p".to_vec()), ..case.clean("n") })?.alive(),
    },
    Row {
        v4: "3.1.2-24",
        v5: "3.1.2-22",
        says: "Silence of one and a half keep-alives ends the connection, not less",
        run: keep_alive,
    },
    Row {
        v4: "§3.1.2.10",
        v5: "§3.1.2.10",
        says: "Keep-alive 0 turns it off",
        run: |case| case.open(&Connect { keep_alive: 0, ..case.clean("n") })?.alive(),
    },
    Row {
        v4: "3.1.3-5",
        v5: "3.1.3-5",
        says: "Client ids of 1 to 23 letters and digits are accepted",
        run: |case| {
            let long = format!("{:Z<23}", case.tag.replace(['/', '-'], ""));
            each([["p", "q"][usize::from(case.is_v5())].to_owned(), long], |id| {
                let id = id.clone().into_bytes();
                case.open(&Connect { id, ..case.clean("") })?.alive()
            })
        },
    },
    Row {
        v4: "3.1.3-6",
        v5: "3.1.3-6",
        says: "Clients without an id get one each, and do not take each other over",
        run: |case| {
            let connect = Connect { id: Vec::new(), ..case.clean("") };
            let (mut one, mut two) = (case.open(&connect)?, case.open(&connect)?);
            one.alive()?;
            two.alive()
        },
    },
    Row {
        v4: "",
        v5: "3.2.2-16",
        says: "An assigned client id is told in CONNACK and is nobody else's",
        run: |case| {
            let connect = Connect { id: Vec::new(), ..case.clean("") };
            let (one, two) = (case.open(&connect)?, case.open(&connect)?);
            let ids = (one.prop(wire::ASSIGNED_ID).cloned(), two.prop(wire::ASSIGNED_ID).cloned());
            ensure!(ids.0.is_some() && ids.1.is_some() && ids.0 != ids.1, "{ids:?}");
            Ok(())
        },
    },
    Row {
        v4: "3.1.3-8",
        v5: "",
        says: "No client id and a kept session is refused with code 2",
        run: |case| {
            let mut peer = case.raw()?;
            peer.send(&Connect { id: Vec::new(), clean: false, ..case.clean("") }.packet())?;
            same("code", peer.connack()?, 2)?;
            peer.closed().map(drop)
        },
    },
    Row {
        v4: "3.1.3-4",
        v5: "3.1.3-4",
        says: "A client id that is not UTF-8 is refused",
        run: |case| case.is_refused(&Connect { id: b"\xed\xa0\x80".to_vec(), ..case.clean("") }),
    },
    Row {
        v4: "3.1.3-10",
        v5: "3.1.3-11",
        says: "A will's topic that is not UTF-8 is refused",
        run: |case| {
            let will = Will { topic: b"a\xff".to_vec(), ..Will::default() };
            case.is_refused(&Connect { will: Some(will), ..case.clean("n") })
        },
    },
    Row {
        v4: "3.1.3-11",
        v5: "3.1.3-12",
        says: "A user name that is not UTF-8 is refused",
        run: |case| case.is_refused(&Connect { user: Some(b"\xff".to_vec()), ..case.clean("n") }),
    },
    Row {
        v4: "3.1.4-1",
        v5: "3.1.4-1",
        says: "A CONNECT that ends early or has fixed header flags is closed",
        run: |case| {
            let whole = case.clean("n").packet();
            let short = Packet { body: whole.body[..whole.body.len() - 1].to_vec(), ..whole.clone() };
            each(
                [short, Packet { flags: 1, ..whole.clone() }, Packet { body: Vec::new(), ..whole }],
                |packet| {
                    let mut peer = case.raw()?;
                    let _ = peer.send(packet);
                    peer.closed_with_error()
                },
            )
        },
    },
    Row {
        v4: "3.1.4-2",
        v5: "3.1.4-3",
        says: "A client with the id of a connected one takes over: the older connection ends",
        run: |case| {
            let mut old = case.peer("same")?;
            let mut new = case.peer("same")?;
            let said = old.closed()?;
            // In 3.1.1 a server has no DISCONNECT; in 5 it says 0x8E.
            let reasons: Vec<_> =
                said.iter().map(|packet| (packet.kind, packet.body.first().copied())).collect();
            let wanted = if case.is_v5() { vec![(wire::DISCONNECT, Some(0x8e))] } else { Vec::new() };
            same("what the older one was told", reasons, wanted)?;
            new.alive()
        },
    },
    Row {
        v4: "3.1.4-4",
        v5: "3.1.4-5",
        says: "A good CONNECT is acknowledged with code 0",
        run: |case| case.peer("n")?.alive(),
    },
    Row {
        v4: "3.1.4-5",
        v5: "3.1.4-6",
        says: "What follows a refused CONNECT is not processed",
        run: refused_then_publish,
    },
    Row {
        v4: "3.2.0-1",
        v5: "3.2.0-1",
        says: "CONNACK comes first, also when the client did not wait for it",
        run: |case| {
            let mut peer = case.raw()?;
            let topic = case.topic("t");
            let mut bytes = case.clean("n").packet().bytes();
            bytes.extend(wire::subscribe(case.version, 7, &[], &[(&topic, 0)]).bytes());
            bytes.extend(Publish { topic, ..Publish::default() }.packet(case.version).bytes());
            bytes.extend(wire::empty(wire::PINGREQ).bytes());
            peer.send_bytes(&bytes)?;
            same("code", peer.connack()?, 0)?;
            peer.wait_ack(wire::SUBACK, 7)?;
            peer.wait(wire::PUBLISH)?;
            peer.wait(wire::PINGRESP).map(drop)
        },
    },
    Row {
        v4: "3.2.2-4",
        v5: "3.2.2-6",
        says: "A refusal does not say that a session is present",
        run: |case| {
            let (mut peer, code) = wrong_password(case)?;
            ensure!(
                code != 0 && !peer.session_present,
                "code {code}, session present {}",
                peer.session_present
            );
            peer.closed().map(drop)
        },
    },
    Row {
        v4: "3.2.2-5",
        v5: "3.2.2-7",
        says: "A refused connection is closed, with a code that names the user or password",
        run: |case| {
            let (mut peer, code) = wrong_password(case)?;
            let known: &[u8] = if case.is_v5() { &[0x86, 0x87] } else { &[4, 5] };
            ensure!(known.contains(&code), "code {code:#04x}");
            same("packets after the refusal", peer.closed()?.len(), 0)
        },
    },
    Row {
        v4: "§3.2.2.3",
        v5: "3.1.4-2",
        says: "The right user and password are accepted, nobody without them is",
        run: |case| {
            let known =
                Connect { user: Some(USER.0.into()), password: Some(USER.1.into()), ..case.clean("n") };
            Peer::connect(case.locked.address(case.version), &known)?.alive()?;
            let mut nobody = Peer::raw(case.locked.address(case.version), case.version)?;
            nobody.send(&case.clean("m").packet())?;
            nobody.closed_with_error()
        },
    },
    Row {
        v4: "3.12.4-1",
        v5: "3.12.4-1",
        says: "PINGREQ is answered with PINGRESP",
        run: |case| {
            let mut peer = case.peer("n")?;
            (0..3).try_for_each(|_| peer.quiet())
        },
    },
    Row {
        v4: "3.14.1-1",
        v5: "3.14.1-1",
        says: "DISCONNECT with reserved bits ends the connection",
        run: |case| {
            let mut peer = case.peer("n")?;
            peer.send(&Packet::new(wire::DISCONNECT, 1, Vec::new()))?;
            peer.closed().map(drop)
        },
    },
    Row {
        v4: "§3.14.4",
        v5: "§3.14.4",
        says: "After DISCONNECT the server closes and says nothing more",
        run: |case| {
            let mut peer = case.peer("n")?;
            peer.send(&wire::empty(wire::DISCONNECT))?;
            same("packets after DISCONNECT", peer.closed()?.len(), 0)
        },
    },
    Row {
        v4: "",
        v5: "3.1.2-28",
        says: "Response information comes only to those who ask for it",
        run: |case| {
            let peer = case.peer("n")?;
            ensure!(peer.prop(wire::RESPONSE_INFORMATION).is_none(), "{:?}", peer.props);
            Ok(())
        },
    },
    Row {
        v4: "",
        v5: "§3.1.2.11",
        says: "Receive maximum 0, maximum packet size 0 or a property twice is a protocol error",
        run: |case| {
            let lists = [
                vec![Prop::Two(wire::RECEIVE_MAXIMUM, 0)],
                vec![Prop::Four(wire::MAXIMUM_PACKET, 0)],
                vec![Prop::Four(wire::SESSION_EXPIRY, 1), Prop::Four(wire::SESSION_EXPIRY, 1)],
                vec![Prop::Byte(wire::REQUEST_PROBLEM, 2)],
                vec![Prop::Bytes(wire::AUTH_DATA, vec![1])],
                vec![Prop::Two(wire::TOPIC_ALIAS, 1)],
            ];
            each(lists, |props| case.is_refused(&Connect { props: props.clone(), ..case.clean("n") }))
        },
    },
    Row {
        v4: "",
        v5: "4.12.0-1",
        says: "An authentication method that the server does not know is refused",
        run: |case| {
            let props = vec![Prop::Text(wire::AUTH_METHOD, "none-such".into())];
            let mut peer = case.raw()?;
            peer.send(&Connect { props, ..case.clean("n") }.packet())?;
            each(peer.closed()?, |packet| {
                ensure!(
                    packet.kind == wire::CONNACK && matches!(packet.body.get(1), Some(0x8c | 0x87)),
                    "not that"
                );
                Ok(())
            })
        },
    },
    Row {
        v4: "",
        v5: "4.12.0-6",
        says: "Without an authentication method there is none in CONNACK",
        run: |case| {
            let peer = case.peer("n")?;
            ensure!(peer.prop(wire::AUTH_METHOD).is_none(), "{:?}", peer.props);
            Ok(())
        },
    },
    Row {
        v4: "",
        v5: "4.12.0-7",
        says: "AUTH on a connection without an authentication method ends it",
        run: |case| {
            let mut body = vec![0x19];
            wire::props(&mut body, &[Prop::Text(wire::AUTH_METHOD, "m".into())]);
            case.is_fatal(&Packet::new(wire::AUTH, 0, body).bytes())
        },
    },
    Row {
        v4: "",
        v5: "3.15.1-1",
        says: "AUTH with flags in its fixed header ends the connection",
        run: |case| case.is_fatal(&Packet::new(wire::AUTH, 3, Vec::new()).bytes()),
    },
];

fn wrong_password(case: &Case<'_>) -> Result<(Peer, u8)> {
    let mut peer = Peer::raw(case.locked.address(case.version), case.version)?;
    let connect = Connect { user: Some(USER.0.into()), password: Some(b"wrong".to_vec()), ..case.clean("n") };
    peer.send(&connect.packet())?;
    let code = peer.connack()?;
    Ok((peer, code))
}

fn refused_then_publish(case: &Case<'_>) -> Result<()> {
    let known = Connect { user: Some(USER.0.into()), password: Some(USER.1.into()), ..case.clean("r") };
    let address = case.locked.address(case.version);
    let topic = case.topic("t");
    let mut reader = Peer::connect(address, &known)?;
    reader.subscribe(&topic, 0)?;
    let mut bad = Peer::raw(address, case.version)?;
    let mut bytes = case.clean("w").packet().bytes();
    let publish = Publish { topic, payload: b"smuggled".to_vec(), ..Publish::default() };
    bytes.extend(publish.packet(case.version).bytes());
    bad.send_bytes(&bytes)?;
    bad.closed_with_error()?;
    reader.quiet()
}

fn keep_alive(case: &Case<'_>) -> Result<()> {
    let mut peer = case.open(&Connect { keep_alive: 2, ..case.clean("n") })?;
    let begun = Instant::now();
    peer.closed_within(Duration::from_secs(9))?;
    ensure!(begun.elapsed() > Duration::from_millis(2900), "closed after {:?} already", begun.elapsed());
    Ok(())
}
