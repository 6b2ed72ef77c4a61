//! What MQTT 5 adds, kept sessions, rights and the disk, packet by packet: clients here only say what the test tells them.

use super::*;
use crate::{
    encode,
    packet::{Ack, Connect, Publish, Qos, SubscribeOptions, Will},
    property::*,
};

pub(super) struct Table {
    pub broker: Broker,
    pub now_ms: u64,
}

/// A packet of the broker, as text.
fn describe(packet: &Packet<'_>) -> String {
    let list = |properties: Properties<'_>| {
        let own = [RECEIVE_MAXIMUM, MAXIMUM_PACKET, TOPIC_ALIAS_MAXIMUM];
        properties
            .iter()
            .filter(|(id, _)| !own.contains(id))
            .map(|(id, value)| match value {
                Value::Number(number) => format!(" {id}={number}"),
                Value::Text(text) => format!(" {id}={text}"),
                Value::Binary(bytes) => format!(" {id}={}", String::from_utf8_lossy(bytes)),
                Value::Pair(key, value) => format!(" {id}={key}:{value}"),
            })
            .collect::<String>()
    };
    let ack = |name: &str, ack: &Ack| format!("{name} {} {:#x}", ack.id, ack.reason);
    match packet {
        Packet::ConnAck { session_present, code, properties } => {
            format!("connack {} {code:#x}{}", u8::from(*session_present), list(*properties))
        }
        Packet::Publish(found) => format!(
            "{}={} q{}{}{}{}",
            found.topic,
            String::from_utf8_lossy(found.payload),
            found.qos.bits(),
            if found.retain { " retain" } else { "" },
            if found.duplicate { " dup" } else { "" },
            list(found.properties)
        ),
        Packet::PubAck(found) => ack("puback", found),
        Packet::PubRec(found) => ack("pubrec", found),
        Packet::PubRel(found) => ack("pubrel", found),
        Packet::PubComp(found) => ack("pubcomp", found),
        Packet::SubAck { codes, .. } => format!("suback {codes:x?}"),
        Packet::UnsubAck { codes, .. } => format!("unsuback {codes:x?}"),
        Packet::Disconnect { reason, .. } => format!("disconnect {reason:#x}"),
        other => format!("{other:?}"),
    }
}

pub(super) fn numbers(pairs: &[(u8, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    pairs.iter().for_each(|(id, number)| put_number(&mut bytes, *id, *number));
    bytes
}

impl Table {
    pub fn new() -> Table {
        Table::with(Limits::default(), Auth::default())
    }

    pub fn with(limits: Limits, auth: Auth) -> Table {
        Table { broker: Broker::new(limits, auth), now_ms: 1000 }
    }

    pub fn send(&mut self, id: ConnectionId, packet: &Packet<'_>) {
        let version = self.broker.connection(id).map_or(Version::V5, |connection| connection.version);
        let mut bytes = Vec::new();
        encode::packet_as(version, &mut bytes, packet);
        self.broker.receive(self.now_ms, id, &bytes);
    }

    /// What the broker has said since, and whether it closed the socket.
    pub fn read(&mut self, id: ConnectionId) -> Vec<String> {
        let Some(version) = self.broker.connection(id).map(|connection| connection.version) else {
            return vec!["closed".into()];
        };
        let mut said = Vec::new();
        loop {
            let Some(output) = self.broker.output(id).map(std::mem::take) else {
                said.push("closed".into());
                return said;
            };
            if output.is_empty() {
                return said;
            }
            let mut rest = &output[..];
            while let Some((packet, len)) = packet::decode_as(version, rest, 1 << 20).unwrap() {
                said.push(describe(&packet));
                rest = &rest[len..];
            }
            self.broker.wrote(self.now_ms, id, output.len());
        }
    }

    pub fn connect(&mut self, connect: Connect<'_>) -> (ConnectionId, Vec<String>) {
        let id = self.broker.accept(self.now_ms, Origin::Local).unwrap();
        let mut bytes = Vec::new();
        encode::packet(&mut bytes, &Packet::Connect(connect));
        self.broker.receive(self.now_ms, id, &bytes);
        let said = self.read(id);
        (id, said)
    }

    /// A client of MQTT 5 with a session of so many seconds.
    pub fn join(&mut self, client_id: &str, expiry_s: u32) -> ConnectionId {
        let properties = numbers(&[(SESSION_EXPIRY, expiry_s)]);
        let properties = Properties::new(&properties);
        let version = Version::V5;
        self.connect(Connect { version, client_id, properties, ..Connect::default() }).0
    }

    pub fn subscribe(
        &mut self,
        id: ConnectionId,
        filter: &str,
        options: SubscribeOptions,
        subscription: u32,
    ) -> Vec<String> {
        let properties =
            if subscription > 0 { numbers(&[(SUBSCRIPTION_ID, subscription)]) } else { Vec::new() };
        let properties = Properties::new(&properties);
        self.send(id, &Packet::Subscribe { id: 77, filters: vec![(filter, options)], properties });
        self.read(id)
    }

    pub fn publish(
        &mut self,
        id: ConnectionId,
        topic: &str,
        payload: &str,
        qos: Qos,
        retain: bool,
        properties: &[u8],
    ) {
        let properties = Properties::new(properties);
        let message = if qos == Qos::AtMostOnce { 0 } else { 5 };
        let payload = payload.as_bytes();
        self.send(
            id,
            &Packet::Publish(Publish {
                topic,
                payload,
                qos,
                retain,
                id: message,
                properties,
                ..Publish::default()
            }),
        );
    }
}

pub(super) const QOS1: SubscribeOptions = SubscribeOptions {
    qos: Qos::AtLeastOnce,
    no_local: false,
    retain_as_published: false,
    retain_handling: 0,
};

#[test]
fn sessions_wait_for_their_clients_and_end_in_time() {
    let mut table = Table::new();
    let writer = table.join("writer", 0);
    for version in [Version::V3, Version::V5] {
        let properties = numbers(&[(SESSION_EXPIRY, 60)]);
        let properties =
            if version == Version::V5 { Properties::new(&properties) } else { Properties::default() };
        let keep = Connect { version, client_id: "keeper", properties, ..Connect::default() };
        let (id, said) = table.connect(Connect { clean_session: true, ..keep });
        assert_eq!(said, ["connack 0 0x0"]);
        table.send(id, &Packet::Disconnect { reason: 0, properties: Properties::default() });
        let (id, said) = table.connect(keep);
        // A clean start of MQTT 5 with an expiry is a session that is kept, a clean session of 3.1.1 is not.
        assert_eq!(said, [format!("connack {} 0x0", u8::from(version == Version::V5))]);
        table.subscribe(id, "t", QOS1, 0);
        table.publish(writer, "t", "seen", Qos::AtLeastOnce, false, &[]);
        assert_eq!(table.read(id), ["t=seen q1"]);
        table.broker.closed(table.now_ms, id);
        table.publish(writer, "t", "missed", Qos::AtLeastOnce, false, &[]);
        table.publish(writer, "t", "zero", Qos::AtMostOnce, false, &[]);
        let (id, said) = table.connect(keep);
        assert_eq!(said, ["connack 1 0x0", "t=seen q1 dup", "t=missed q1"], "{version:?}");
        table.broker.closed(table.now_ms, id);
        let (_, said) = table.connect(Connect { clean_session: true, ..keep });
        assert_eq!(said, ["connack 0 0x0"], "{version:?}");
    }
    let id = table.join("brief", 60);
    table.subscribe(id, "t", QOS1, 0);
    table.broker.closed(table.now_ms, id);
    let sessions = table.broker.stats().sessions;
    table.now_ms += 59_999;
    table.broker.tick(table.now_ms);
    assert_eq!(table.broker.stats().sessions, sessions);
    table.now_ms += 1;
    table.broker.tick(table.now_ms);
    assert_eq!(table.broker.stats().sessions, sessions - 1);
}

#[test]
fn qos_2_is_delivered_once_over_any_break() {
    let mut table = Table::new();
    let reader = table.join("reader", 60);
    let writer = table.join("writer", 60);
    let qos2 = SubscribeOptions { qos: Qos::ExactlyOnce, ..QOS1 };
    table.subscribe(reader, "t", qos2, 0);
    table.publish(writer, "t", "1", Qos::ExactlyOnce, false, &[]);
    assert_eq!(table.read(writer), ["pubrec 5 0x0"]);
    // The writer's connection breaks before it reads that: it sends again.
    table.broker.closed(table.now_ms, writer);
    let writer = table.join("writer", 60);
    table.publish(writer, "t", "1", Qos::ExactlyOnce, false, &[]);
    table.send(writer, &Packet::PubRel(5.into()));
    table.send(writer, &Packet::PubRel(5.into()));
    assert_eq!(table.read(writer), ["pubrec 5 0x0", "pubcomp 5 0x0", "pubcomp 5 0x92"]);
    assert_eq!(table.read(reader), ["t=1 q2"]);
    table.broker.closed(table.now_ms, reader);
    let reader = table.join("reader", 60);
    table.send(reader, &Packet::PubRec(1.into()));
    assert_eq!(table.read(reader), ["pubrel 1 0x0"]);
    table.broker.closed(table.now_ms, reader);
    let reader = table.join("reader", 60);
    table.send(reader, &Packet::PubComp(1.into()));
    table.send(reader, &Packet::PubRec(1.into()));
    assert_eq!(table.read(reader), ["pubrel 1 0x92"], "nothing is left of it");
}

#[test]
fn properties_pass_and_subscriptions_are_told_apart() {
    let mut table = Table::new();
    let (reader, writer) = (table.join("reader", 0), table.join("writer", 0));
    table.subscribe(reader, "a/+", QOS1, 7);
    table.subscribe(reader, "a/#", QOS1, 200);
    let mut properties = numbers(&[(PAYLOAD_FORMAT, 1), (MESSAGE_EXPIRY, 10)]);
    put_text(&mut properties, RESPONSE_TOPIC, "answer");
    properties.extend_from_slice(b"\x09\0\x02id\x26\0\x01k\0\x01v");
    table.publish(writer, "a/b", "x", Qos::AtLeastOnce, false, &properties);
    assert_eq!(table.read(writer), ["puback 5 0x0"]);
    assert_eq!(table.read(reader), ["a/b=x q1 1=1 8=answer 9=id 38=k:v 2=10 11=200 11=7"]);
    table.publish(writer, "nobody", "x", Qos::AtLeastOnce, false, &[]);
    assert_eq!(table.read(writer), ["puback 5 0x10"]);
    // An alias is set, used, set anew, and refused when it is unknown or too high.
    for (topic, alias) in [("a/b", 1), ("", 1), ("a/c", 1), ("", 1)] {
        table.publish(writer, topic, "y", Qos::AtMostOnce, false, &numbers(&[(TOPIC_ALIAS, alias)]));
    }
    let topics: Vec<String> = table.read(reader).iter().map(|said| said[..5].to_owned()).collect();
    assert_eq!(topics, ["a/b=y", "a/b=y", "a/c=y", "a/c=y"]);
    for (alias, code) in [(2, "disconnect 0x82"), (17, "disconnect 0x94"), (0, "disconnect 0x94")] {
        let client = table.join("other", 0);
        table.publish(
            client,
            if alias == 2 { "" } else { "t" },
            "y",
            Qos::AtMostOnce,
            false,
            &numbers(&[(TOPIC_ALIAS, alias)]),
        );
        assert_eq!(table.read(client), [code, "closed"]);
    }
    // What waits longer than it lives is not delivered, and what is delivered says what is left.
    let away = table.join("away", 100);
    table.subscribe(away, "t", QOS1, 0);
    table.broker.closed(table.now_ms, away);
    table.publish(writer, "t", "old", Qos::AtLeastOnce, false, &numbers(&[(MESSAGE_EXPIRY, 3)]));
    table.publish(writer, "t", "good", Qos::AtLeastOnce, false, &numbers(&[(MESSAGE_EXPIRY, 9)]));
    table.now_ms += 3000;
    let version = Version::V5;
    let properties = numbers(&[(SESSION_EXPIRY, 100)]);
    let properties = Properties::new(&properties);
    let (_, said) = table.connect(Connect { version, client_id: "away", properties, ..Connect::default() });
    assert_eq!(said, ["connack 1 0x0", "t=good q1 2=6"]);
    assert_eq!(table.broker.stats().expired, 1);
}

#[test]
fn options_of_subscriptions_are_kept() {
    let mut table = Table::new();
    let (a, b) = (table.join("a", 0), table.join("b", 0));
    table.publish(b, "r", "kept", Qos::AtLeastOnce, true, &[]);
    table.read(b);
    for (handling, first, second) in [(0, 2, 2), (1, 2, 1), (2, 1, 1)] {
        let options = SubscribeOptions { retain_handling: handling, ..QOS1 };
        assert_eq!(table.subscribe(a, "r", options, 0).len(), first, "retain handling {handling}");
        assert_eq!(table.subscribe(a, "r", options, 0).len(), second, "retain handling {handling}, again");
        table.send(a, &Packet::Unsubscribe { id: 3, filters: vec!["r", "no"] });
        assert_eq!(table.read(a), ["unsuback [0, 11]"]);
    }
    let options = SubscribeOptions { no_local: true, retain_as_published: true, ..QOS1 };
    table.subscribe(a, "own", options, 0);
    table.publish(a, "own", "mine", Qos::AtMostOnce, false, &[]);
    table.publish(b, "own", "yours", Qos::AtMostOnce, true, &[]);
    assert_eq!(table.read(a), ["own=yours q0 retain"]);
    assert_eq!(table.subscribe(a, "$share/g/x", options, 0), ["disconnect 0x82", "closed"], "MQTT-3.8.3-4");
}

#[test]
fn a_shared_subscription_serves_one_member_in_turn() {
    let mut table = Table::new();
    let members = [table.join("m0", 60), table.join("m1", 60), table.join("m2", 60)];
    for member in members {
        assert_eq!(table.subscribe(member, "$share/g/job/#", QOS1, 0), ["suback [1]"]);
    }
    let writer = table.join("writer", 0);
    let give = |table: &mut Table, count: usize| {
        for at in 0..count {
            table.publish(writer, "job/1", &at.to_string(), Qos::AtLeastOnce, false, &[]);
        }
        members.map(|member| table.read(member).iter().filter(|said| said.starts_with("job")).count())
    };
    assert_eq!(give(&mut table, 9), [3, 3, 3]);
    table.broker.closed(table.now_ms, members[1]);
    assert_eq!(give(&mut table, 8)[1], 0, "who is away gets nothing while others are there");
    for filter in ["$share/g", "$share//x"] {
        assert_eq!(table.subscribe(members[0], filter, QOS1, 0), ["suback [8f]"]);
    }
}

#[test]
fn flow_and_size_are_what_the_client_takes() {
    let mut table = Table::new();
    let properties = numbers(&[(RECEIVE_MAXIMUM, 2), (MAXIMUM_PACKET, 40)]);
    let properties = Properties::new(&properties);
    let version = Version::V5;
    let (reader, _) =
        table.connect(Connect { version, client_id: "small", properties, ..Connect::default() });
    table.subscribe(reader, "t", QOS1, 0);
    let writer = table.join("writer", 0);
    for at in 0..4 {
        table.publish(writer, "t", &at.to_string(), Qos::AtLeastOnce, false, &[]);
    }
    assert_eq!(table.read(reader), ["t=0 q1", "t=1 q1"]);
    table.send(reader, &Packet::PubAck(1.into()));
    assert_eq!(table.read(reader), ["t=2 q1"]);
    table.publish(writer, "t", &"x".repeat(50), Qos::AtMostOnce, false, &[]);
    table.publish(writer, "t", "fits", Qos::AtMostOnce, false, &[]);
    table.send(reader, &Packet::PubAck(2.into()));
    assert_eq!(table.read(reader), ["t=3 q1", "t=fits q0"]);
    assert_eq!(table.broker.stats().dropped, 1);
    for id in 1..=QOS2_IDS_MAX as u16 + 1 {
        let publish = Publish { topic: "t", qos: Qos::ExactlyOnce, id, ..Publish::default() };
        table.send(writer, &Packet::Publish(publish));
    }
    assert_eq!(table.read(writer).split_off(4 + QOS2_IDS_MAX), ["disconnect 0x93", "closed"]);
}

#[test]
fn wills_wait_and_are_taken_back() {
    let mut table = Table::new();
    let watcher = table.join("watcher", 0);
    table.subscribe(watcher, "#", QOS1, 0);
    let (will, session) = (numbers(&[(WILL_DELAY, 5)]), numbers(&[(SESSION_EXPIRY, 60)]));
    let will = Will { topic: "gone", payload: b"x", properties: Properties::new(&will), ..Will::default() };
    let properties = Properties::new(&session);
    let version = Version::V5;
    let connect = Connect { version, client_id: "c", will: Some(will), properties, ..Connect::default() };
    let speak = |table: &mut Table| {
        let (id, _) = table.connect(connect);
        table.send(id, &Packet::PingReq);
        id
    };
    let id = speak(&mut table);
    table.broker.closed(table.now_ms, id);
    table.now_ms += 4999;
    table.broker.tick(table.now_ms);
    assert_eq!(table.read(watcher), [""; 0]);
    let id = speak(&mut table);
    table.broker.closed(table.now_ms, id);
    table.now_ms += 5000;
    table.broker.tick(table.now_ms);
    assert_eq!(table.read(watcher), ["gone=x q0"], "the first was taken back");
    let id = speak(&mut table);
    table.send(
        id,
        &Packet::Disconnect { reason: 4, properties: Properties::new(&numbers(&[(SESSION_EXPIRY, 0)])) },
    );
    assert_eq!(table.read(watcher), ["gone=x q0"], "the session's end does not wait");
    let id = speak(&mut table);
    table.send(id, &Packet::Disconnect { reason: 0, properties: Properties::default() });
    table.now_ms += 9000;
    table.broker.tick(table.now_ms);
    assert_eq!(table.read(watcher), [""; 0], "who says good-bye has no will");
}

#[test]
fn a_broker_says_what_it_gives_and_what_not() {
    let limits =
        Limits { keep_alive_s_max: 30, session_expiry_s_max: 100, sessions_max: 1, ..Limits::default() };
    let mut table = Table::with(limits, Auth::default());
    let version = Version::V5;
    let (_, said) = table.connect(Connect { version, ..Connect::default() });
    assert!(said[0].starts_with("connack 0 0x0 18=kinglet-") && said[0].ends_with(" 19=30"), "{said:?}");
    let (keep, method) = (numbers(&[(SESSION_EXPIRY, 1000)]), b"\x15\0\x01m");
    let properties = Properties::new(&keep);
    let connect = Connect { version, client_id: "k", keep_alive_s: 20, properties, ..Connect::default() };
    let (id, said) = table.connect(connect);
    assert_eq!(said, ["connack 0 0x0 17=100 19=20"]);
    table.send(id, &Packet::PingReq);
    table.read(id);
    assert_eq!(table.connect(Connect { client_id: "second", ..connect }).1, ["connack 0 0x97", "closed"]);
    let properties = Properties::new(method);
    assert_eq!(
        table.connect(Connect { properties, ..connect }).1,
        ["connack 0 0x8c", "closed"],
        "MQTT-4.12.0-1"
    );
    table.send(id, &Packet::Auth { reason: 0x18, properties: Properties::new(method) });
    assert_eq!(table.read(id), ["disconnect 0x82", "closed"]);
    let (first, _) = table.connect(connect);
    let (second, said) = table.connect(connect);
    assert_eq!(
        (table.read(first), said),
        (vec!["disconnect 0x8e".into(), "closed".into()], vec!["connack 1 0x0 17=100 19=20".into()])
    );
    table.broker.stop(table.now_ms);
    assert_eq!(table.read(second), ["disconnect 0x8b", "closed"]);
    let (_, said) = table.connect(Connect { client_id: "", ..Connect::default() });
    assert_eq!(said, ["connack 0 0x2", "closed"], "MQTT-3.1.3-8");
}

#[test]
fn rights_hold_beyond_this_machine() {
    let acl = Acl::parse("user ann\ntopic read public/#\ntopic write sensors/ann\n").unwrap();
    let auth = Auth { has_hashed: true, acl, ..Auth::default() };
    let mut table = Table::with(Limits::default(), auth);
    let from = |table: &mut Table, origin: Origin, user: Option<&'static str>, is_right: bool| {
        let id = table.broker.accept(table.now_ms, origin).unwrap();
        let version = Version::V5;
        let connect =
            Connect { version, client_id: "c", username: user, password: Some(b"p"), ..Connect::default() };
        table.send(id, &Packet::Connect(connect));
        for check in table.broker.take_checks() {
            assert_eq!((check.user.as_str(), &check.password[..]), ("ann", &b"p"[..]));
            table.broker.checked(table.now_ms, check.connection, is_right);
        }
        let said = table.read(id);
        (id, said)
    };
    assert_eq!(from(&mut table, Origin::Remote, None, true).1, ["connack 0 0x87", "closed"]);
    assert_eq!(from(&mut table, Origin::Remote, Some("ann"), false).1, ["connack 0 0x86", "closed"]);
    let (local, said) = from(&mut table, Origin::Local, None, true);
    assert_eq!(said, ["connack 0 0x0"]);
    table.subscribe(local, "#", QOS1, 0);
    let (id, said) = from(&mut table, Origin::Remote, Some("ann"), true);
    assert_eq!(said, ["connack 0 0x85", "closed"], "a session is its user's only");
    table.broker.closed(table.now_ms, local);
    let _ = id;
    for origin in [Origin::Remote, Origin::Certificate("ann".into())] {
        let (id, said) = from(&mut table, origin, Some("ann"), true);
        assert_eq!(said, ["connack 0 0x0"]);
        for (filter, code) in [("public/x", "suback [1]"), ("#", "suback [87]"), ("$SYS/#", "suback [87]")] {
            assert_eq!(table.subscribe(id, filter, QOS1, 0), [code]);
        }
        table.publish(id, "public/x", "x", Qos::AtLeastOnce, true, &[]);
        table.publish(id, "sensors/ann", "x", Qos::AtLeastOnce, false, &[]);
        assert_eq!(table.read(id), ["puback 5 0x87", "puback 5 0x10"]);
        table.broker.closed(table.now_ms, id);
    }
    assert_eq!(table.broker.stats().retained, 0);
}

#[test]
fn two_clients_that_answer_each_other_do_not_wait_for_ever() {
    let limits = Limits { queue_bytes_max: 2000, ..Limits::default() };
    let mut table = Table::with(limits, Auth::default());
    let (a, b) = (table.join("a", 0), table.join("b", 0));
    table.subscribe(a, "to/a", QOS1, 0);
    table.subscribe(b, "to/b", QOS1, 0);
    // Both have more on its way than fits, and acknowledge only behind what they publish themselves.
    let payload = "x".repeat(500);
    let (mut seen, mut sent) = ([0; 2], [0; 2]);
    for _ in 0..400 {
        for (at, id, topic) in [(0, a, "to/b"), (1, b, "to/a")] {
            if sent[at] < 100 && table.broker.wants_more(id) {
                table.publish(id, topic, &payload, Qos::AtLeastOnce, false, &[]);
                sent[at] += 1;
            }
        }
        for (at, id) in [(0, a), (1, b)] {
            let got = table.read(id).iter().filter(|said| said.starts_with("to/")).count();
            for _ in 0..got {
                seen[at] += 1;
                table.send(id, &Packet::PubAck((seen[at] as u16).into()));
            }
        }
    }
    assert_eq!((sent, seen), ([100; 2], [100; 2]));
    assert_eq!(table.broker.stats().blocked, 0);
}

#[test]
fn figures_are_published_and_only_by_the_broker() {
    let mut table = Table::new();
    table.broker.introduce("kinglet 1", 7);
    let reader = table.join("reader", 0);
    table.broker.tick(table.now_ms);
    let said = table.subscribe(reader, "$SYS/broker/+", QOS1, 0);
    assert!(said.contains(&"$SYS/broker/version=kinglet 1 q0 retain".into()), "{said:?}");
    table.publish(reader, "$SYS/broker/version", "mine", Qos::AtLeastOnce, true, &[]);
    assert_eq!(table.read(reader), ["puback 5 0x87"]);
    table.now_ms += SYS_INTERVAL_MS;
    table.broker.tick(table.now_ms);
    assert!(table.read(reader).iter().any(|said| said.starts_with("$SYS/broker/uptime=")));
}

#[test]
fn parts_of_packets_are_bounded_together() {
    let limits = Limits { connections_max: 200, ..Limits::default() };
    let mut table = Table::with(limits, Auth::default());
    let clients: Vec<ConnectionId> = (0..100).map(|at| table.join(&format!("c{at}"), 0)).collect();
    let mut begun = vec![0x30, 0x80, 0x80, 0x0f];
    begun.resize(60_000, 0);
    for id in &clients {
        table.broker.receive(table.now_ms, *id, &begun);
        table.broker.receive(table.now_ms, *id, &[0; 100]);
    }
    assert!(table.broker.partial_bytes <= PARTIAL_BYTES_MAX + begun.len(), "{}", table.broker.partial_bytes);
    let closed = clients.iter().filter(|id| table.read(**id).contains(&"closed".into())).count();
    assert!(closed > 20, "{closed}");
    assert_eq!(table.broker.partial_bytes, (100 - closed) * 60_100);
}

#[test]
fn who_only_writes_is_not_read_for_ever() {
    let mut table = Table::new();
    let writer = table.join("writer", 0);
    let pings = [0xc0, 0].repeat(8 * 1024);
    let mut sent = 0;
    while table.broker.wants_more(writer) {
        table.broker.receive(table.now_ms, writer, &pings);
        sent += pings.len();
        assert!(sent < 1 << 20, "it is read for ever");
    }
    assert_eq!(table.read(writer).len(), sent / 2);
    assert!(table.broker.wants_more(writer), "it has read its answers");
    // Wills are kept for as long as their clients are there.
    let payload = [0; 60_000];
    let will = Some(Will { topic: "w", payload: &payload, ..Will::default() });
    let names: Vec<String> = (0..20).map(|at| format!("c{at}")).collect();
    let connect = |name| Connect { version: Version::V5, client_id: name, will, ..Connect::default() };
    let refused = names.iter().filter(|name| table.connect(connect(name.as_str())).1[0] == "connack 0 0x97");
    assert_eq!(refused.count(), 2);
}
