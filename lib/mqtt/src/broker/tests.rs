use std::collections::BTreeSet;

use super::testing::Random;
use super::*;
use crate::{
    client::{Client, Event, Options},
    encode,
    packet::{Connect, Qos, SubscribeOptions},
};

/// Clients and a broker connected by byte queues that the test moves.
struct Bench {
    broker: Broker,
    now_ms: u64,
    clients: BTreeMap<ConnectionId, Client>,
    inbox: BTreeMap<ConnectionId, Vec<(String, Vec<u8>, bool)>>,
    /// Connections whose sockets are not read.
    stuck: BTreeSet<ConnectionId>,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            broker: Broker::new(Limits { connections_max: 8, ..Limits::default() }, Auth::default()),
            now_ms: 0,
            clients: BTreeMap::new(),
            inbox: BTreeMap::new(),
            stuck: BTreeSet::new(),
        }
    }

    fn join(&mut self, name: &str) -> ConnectionId {
        let id = self.broker.accept(self.now_ms, Origin::Local).expect("room");
        let options = Options {
            client_id: name.into(),
            clean_session: true,
            username: None,
            password: None,
            will: None,
            keep_alive_s: 60,
            packet_bytes_max: PACKET_BYTES_MAX,
        };
        let mut client = Client::new(options);
        client.opened(self.now_ms);
        self.clients.insert(id, client);
        self.settle();
        id
    }

    fn subscribe(&mut self, id: ConnectionId, filter: &str) {
        assert!(self.clients.get_mut(&id).unwrap().subscribe(filter));
        self.settle();
    }

    fn publish(&mut self, id: ConnectionId, topic: &str, payload: &[u8], qos: Qos, retain: bool) {
        self.clients.get_mut(&id).unwrap().publish(topic, payload, qos, retain).unwrap();
        self.settle();
    }

    /// Moves bytes until nothing moves.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for (id, client) in &mut self.clients {
                if !client.output().is_empty() && self.broker.wants_more(*id) {
                    let bytes = std::mem::take(client.output());
                    self.broker.receive(self.now_ms, *id, &bytes);
                    moved = true;
                }
            }
            let ids: Vec<ConnectionId> = self.clients.keys().copied().collect();
            for id in ids {
                if self.stuck.contains(&id) {
                    continue;
                }
                let Some(bytes) = self.broker.output(id).map(std::mem::take) else {
                    self.clients.remove(&id);
                    continue;
                };
                if bytes.is_empty() {
                    continue;
                }
                self.broker.wrote(self.now_ms, id, bytes.len());
                moved = true;
                let client = self.clients.get_mut(&id).unwrap();
                client.receive(&bytes);
                while let Some(event) = client.next_event().unwrap() {
                    if let Event::Message { topic, payload, retain } = event {
                        self.inbox.entry(id).or_default().push((topic.to_owned(), payload.to_vec(), retain));
                    }
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn take(&mut self, id: ConnectionId) -> Vec<(String, Vec<u8>, bool)> {
        self.inbox.remove(&id).unwrap_or_default()
    }
}

fn texts(messages: &[(String, Vec<u8>, bool)]) -> Vec<String> {
    messages
        .iter()
        .map(|(topic, payload, retain)| {
            format!("{topic}={}{}", String::from_utf8_lossy(payload), if *retain { " retained" } else { "" })
        })
        .collect()
}

#[test]
fn messages_reach_those_who_asked_once() {
    let mut bench = Bench::new();
    let (a, b) = (bench.join("a"), bench.join("b"));
    bench.subscribe(a, "$hw/events/device/+/+/twin/+");
    bench.subscribe(a, "$hw/#");
    bench.subscribe(b, "#");
    bench.publish(b, "$hw/events/device/default/d/twin/update", b"1", Qos::AtLeastOnce, false);
    bench.publish(a, "plain", b"2", Qos::AtMostOnce, false);
    assert_eq!(texts(&bench.take(a)), ["$hw/events/device/default/d/twin/update=1"]);
    assert_eq!(texts(&bench.take(b)), ["plain=2"]);
}

#[test]
fn retained_messages_reach_late_subscribers_and_are_cleared_by_an_empty_one() {
    let mut bench = Bench::new();
    let a = bench.join("a");
    for value in ["1", "2"] {
        bench.publish(a, "$kinglet/mapper/gpio/device/default/d", value.as_bytes(), Qos::AtLeastOnce, true);
    }
    let b = bench.join("b");
    bench.subscribe(b, "$kinglet/mapper/gpio/device/#");
    assert_eq!(texts(&bench.take(b)), ["$kinglet/mapper/gpio/device/default/d=2 retained"]);
    bench.publish(a, "$kinglet/mapper/gpio/device/default/d", b"3", Qos::AtLeastOnce, true);
    assert_eq!(
        texts(&bench.take(b)),
        ["$kinglet/mapper/gpio/device/default/d=3"],
        "live messages are not marked"
    );
    bench.publish(a, "$kinglet/mapper/gpio/device/default/d", b"", Qos::AtLeastOnce, true);
    assert_eq!(bench.broker.stats().retained, 0);
    // More than any in-flight window: every one of them arrives.
    for at in 0..300 {
        bench.publish(a, &format!("r/{at}"), b"v", Qos::AtLeastOnce, true);
    }
    let c = bench.join("c");
    bench.subscribe(c, "r/+");
    assert_eq!(bench.take(c).len(), 300);
    for at in 300..RETAINED_MAX + 5 {
        bench.publish(a, &format!("r/{at}"), b"v", Qos::AtLeastOnce, true);
    }
    assert_eq!((bench.broker.stats().retained, bench.broker.stats().not_retained), (RETAINED_MAX, 5));
}

/// Home Assistant has a filter for each entity: a refused one is an entity without a value, and nobody says so.
#[test]
fn a_client_has_thousands_of_filters() {
    let mut broker = Broker::new(Limits::default(), Auth::default());
    let mut granted = |clean_session: bool| {
        let id = broker.accept(0, Origin::Local).expect("room");
        let mut bytes = Vec::new();
        let connect = Connect { client_id: "ha", clean_session, ..Connect::default() };
        encode::packet(&mut bytes, &Packet::Connect(connect));
        let mut granted = 0;
        for at in 0..SESSION_SUBSCRIPTIONS_MAX + 2 {
            let filter = format!("state/{at}");
            let filters = vec![(filter.as_str(), SubscribeOptions::from(Qos::AtMostOnce))];
            encode::packet(
                &mut bytes,
                &Packet::Subscribe { id: 1, filters, properties: Properties::default() },
            );
            broker.receive(0, id, &bytes);
            bytes.clear();
            let said = broker.output(id).map(std::mem::take).expect("it is open");
            broker.wrote(0, id, said.len());
            granted += usize::from(said.last() == Some(&0));
        }
        broker.closed(0, id);
        granted
    };
    assert_eq!(granted(true), SESSION_SUBSCRIPTIONS_MAX);
    // Written as a whole with each change.
    assert_eq!(granted(false), KEPT_SUBSCRIPTIONS_MAX);
}

#[test]
fn a_slow_reader_stops_the_publisher_and_loses_nothing() {
    let mut bench = Bench::new();
    let (reader, writer) = (bench.join("reader"), bench.join("writer"));
    bench.subscribe(reader, "data");
    bench.stuck.insert(reader);
    let payload = vec![b'x'; 1000];
    let mut sent = 0u32;
    loop {
        let mut message = payload.clone();
        message[..4].copy_from_slice(&sent.to_be_bytes());
        if bench.clients.get_mut(&writer).unwrap().publish("data", &message, Qos::AtLeastOnce, false).is_err()
        {
            break;
        }
        sent += 1;
        bench.settle();
        assert!(sent < 2000, "the publisher is never stopped");
    }
    assert_eq!(bench.broker.stats().blocked, 1);
    assert!(sent as usize * 1000 < 2 * BROKER_QUEUE_BYTES_MAX + 200_000, "{sent} messages were taken");
    // QoS 0 to the stuck reader is dropped and counted; others are served.
    bench.now_ms = LIVELY_MS;
    let other = bench.join("other");
    bench.publish(other, "data", b"zero", Qos::AtMostOnce, false);
    assert_eq!(bench.broker.stats().dropped, 1);
    bench.stuck.clear();
    bench.settle();
    let got: Vec<u32> = bench
        .take(reader)
        .iter()
        .map(|(_, payload, _)| u32::from_be_bytes(payload[..4].try_into().unwrap()))
        .collect();
    assert_eq!(got, (0..sent).collect::<Vec<_>>());
}

#[test]
fn a_stuck_reader_is_closed() {
    let mut bench = Bench::new();
    let (reader, writer) = (bench.join("reader"), bench.join("writer"));
    bench.subscribe(reader, "data");
    bench.stuck.insert(reader);
    while bench.clients.get_mut(&writer).unwrap().publish("data", &[0; 4000], Qos::AtLeastOnce, false).is_ok()
    {
        bench.settle();
    }
    bench.now_ms = STALL_MS_MAX - 1;
    bench.broker.tick(bench.now_ms);
    assert_eq!(bench.broker.stats().blocked, 1);
    bench.now_ms += 1;
    bench.broker.tick(bench.now_ms);
    assert_eq!(bench.broker.stats().blocked, 0, "the publisher goes on");
    bench.broker.output(reader).unwrap().clear();
    assert!(bench.broker.output(reader).is_none(), "the reader's socket is closed");
}

fn raw(broker: &mut Broker, now_ms: u64, bytes: &[u8]) -> ConnectionId {
    let id = broker.accept(now_ms, Origin::Local).unwrap();
    broker.receive(now_ms, id, bytes);
    id
}

fn connect(
    client_id: &str,
    keep_alive_s: u16,
    will: Option<packet::Will<'_>>,
    user: Option<(&str, &str)>,
) -> Vec<u8> {
    let mut out = Vec::new();
    let connect = Connect {
        client_id,
        clean_session: true,
        keep_alive_s,
        will,
        username: user.map(|user| user.0),
        password: user.map(|user| user.1.as_bytes()),
        ..Connect::default()
    };
    encode::packet(&mut out, &Packet::Connect(connect));
    out
}

#[test]
fn wills_speak_for_those_who_vanish() {
    let mut bench = Bench::new();
    let watcher = bench.join("watcher");
    bench.subscribe(watcher, "gone/#");
    let will = |topic| {
        Some(packet::Will {
            topic,
            payload: b"x",
            qos: Qos::AtLeastOnce,
            retain: false,
            ..packet::Will::default()
        })
    };
    let a = raw(&mut bench.broker, 0, &connect("a", 60, will("gone/a"), None));
    bench.broker.closed(0, a);
    let b = raw(&mut bench.broker, 0, &connect("b", 60, will("gone/b"), None));
    bench.broker.receive(0, b, &[0xe0, 0]);
    let _never_missed = raw(&mut bench.broker, 0, &connect("e", 0, will("gone/e"), None));
    let _silent = raw(&mut bench.broker, 0, &connect("c", 10, will("gone/c"), None));
    let _replaced = raw(&mut bench.broker, 0, &connect("d", 60, will("gone/d"), None));
    let _new = raw(&mut bench.broker, 0, &connect("d", 60, None, None));
    bench.broker.tick(14_999);
    bench.settle();
    assert_eq!(texts(&bench.take(watcher)), ["gone/a=x", "gone/d=x"]);
    bench.broker.tick(15_000);
    bench.settle();
    assert_eq!(texts(&bench.take(watcher)), ["gone/c=x"]);
    bench.broker.tick(89_000);
    bench.settle();
    assert!(bench.take(watcher).is_empty(), "keep-alive 0 is none");
}

#[test]
fn wrong_passwords_strangers_and_crowds_are_refused() {
    let auth = Auth { users: BTreeMap::from([("user".to_owned(), "secret".to_owned())]), ..Auth::default() };
    let mut broker =
        Broker::new(Limits { connections_max: 2, packet_bytes_max: 1024, ..Limits::default() }, auth);
    for (user, code) in [(None, 5), (Some(("user", "wrong!")), 4), (Some(("user", "secret")), 0)] {
        let id = raw(&mut broker, 0, &connect("x", 60, None, user));
        assert_eq!(broker.output(id).map(std::mem::take).as_deref(), Some(&[0x20, 2, 0, code][..]));
        assert_eq!(broker.output(id).is_none(), code != 0);
        if code == 0 {
            broker.closed(0, id);
        }
    }
    let id = raw(&mut broker, 0, b"GET / HTTP/1.1\r\n\r\n");
    assert!(broker.output(id).is_none(), "not MQTT");
    let silent = broker.accept(0, Origin::Local).unwrap();
    broker.accept(0, Origin::Local).unwrap();
    assert_eq!(broker.accept(0, Origin::Local), None, "full");
    broker.tick(CONNECT_MS_MAX);
    assert!(broker.output(silent).is_none());
}

#[test]
fn qos_2_is_taken_once() {
    let mut bench = Bench::new();
    let reader = bench.join("reader");
    bench.subscribe(reader, "t");
    let writer = raw(&mut bench.broker, 0, &connect("w", 60, None, None));
    for _ in 0..2 {
        bench.broker.receive(0, writer, b"\x34\x06\x00\x01t\x00\x05v");
    }
    bench.broker.receive(0, writer, b"\x62\x02\x00\x05");
    assert_eq!(
        bench.broker.output(writer).unwrap().as_slice(),
        b"\x20\x02\x00\x00\x50\x02\x00\x05\x50\x02\x00\x05\x70\x02\x00\x05"
    );
    bench.settle();
    assert_eq!(texts(&bench.take(reader)), ["t=v"]);
}

#[test]
fn any_bytes_leave_the_broker_whole() {
    let mut random = Random(7);
    let mut pieces: Vec<Vec<u8>> =
        vec![connect("a", 5, None, None), b"\x82\x06\x00\x01\x00\x01#\x01".to_vec()];
    pieces.push(b"\x32\x06\x00\x01t\x00\x01v".to_vec());
    pieces.push(b"\x33\x08\x00\x03a/b\x00\x02v".to_vec());
    pieces.push(vec![0xc0, 0]);
    for _ in 0..3000 {
        let mut data = Vec::new();
        for _ in 0..random.below(20) {
            let mut piece = pieces[random.below(pieces.len())].clone();
            if random.below(4) == 0 {
                let at = random.below(piece.len());
                piece[at] = random.next() as u8;
            }
            data.extend(piece);
        }
        fuzz_broker(&data);
    }
}

#[test]
fn any_bytes_on_the_disk_leave_the_broker_whole() {
    let mut random = Random(11);
    let session = [1, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 3, b'a', b'/', b'#', 1, 0, 0, 0, 0].to_vec();
    let message = [1, 0, 1, 1, 0, 0, 0, 0, 0, 9, 1, 0, 0, 0, 7, 0, 1, b't', 0, 0, 0, 2, 1, 1, b'v'].to_vec();
    for round in 0..30_000 {
        let mut data = if round % 2 == 0 { session.clone() } else { message.clone() };
        for _ in 0..random.below(4) {
            let at = random.below(data.len());
            data[at] = random.next() as u8;
        }
        data.truncate(random.below(data.len() + 8));
        fuzz_records(&data);
    }
}
