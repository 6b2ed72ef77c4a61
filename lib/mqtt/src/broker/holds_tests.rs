//! Full sessions whose clients are away: nobody loses anything, and everybody can see who holds whom.

use super::{v5_tests::*, *};
use crate::{
    packet::{Connect, Qos, SubscribeOptions},
    property::*,
};

const QUEUE: usize = 2000;

fn table() -> Table {
    let node_clients = vec!["node".into()];
    let limits = Limits { queue_bytes_max: QUEUE, node_topics: &["$hw/"], ..Limits::default() };
    Table::with(limits, Auth { node_clients, ..Auth::default() })
}

fn join_v3(table: &mut Table, client_id: &str, clean_session: bool) -> ConnectionId {
    table.connect(Connect { client_id, clean_session, ..Connect::default() }).0
}

/// A kept session of a client that is away, as full as it gets.
fn fill(table: &mut Table, client: &str) {
    let keeper = table.join(client, 3600);
    table.subscribe(keeper, "t/#", QOS1, 0);
    table.broker.closed(table.now_ms, keeper);
    let filler = table.join("filler", 0);
    for count in 0..100 {
        table.publish(filler, "t/fill", &format!("{count:0>100}"), Qos::AtLeastOnce, false, &[]);
        if table.read(filler).is_empty() {
            table.broker.closed(table.now_ms, filler);
            return;
        }
    }
    panic!("the session is never full");
}

impl Table {
    fn pass(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.now_ms += 500;
            self.broker.tick(self.now_ms);
        }
    }
}

#[test]
fn a_full_session_of_an_absent_client_holds_its_publishers_and_is_named() {
    let mut table = table();
    fill(&mut table, "keeper");
    table.broker.take_notices();
    let (old, new) = (join_v3(&mut table, "old", true), table.join("new", 0));
    for (id, name) in [(old, "old"), (new, "new")] {
        table.publish(id, "t/x", name, Qos::AtLeastOnce, false, &[]);
    }
    table.pass(STALL_MS_MAX - 500);
    assert!(table.read(old).is_empty() && table.read(new).is_empty());
    assert_eq!(table.broker.stats().blocked, 2);
    table.pass(1000);
    assert_eq!(table.read(new), ["puback 5 0x97"], "MQTT 5 can be told");
    assert!(table.read(old).is_empty(), "MQTT 3.1.1 can only wait");
    let held = vec!["old".to_owned()];
    let holder = Holder { session: "keeper".into(), is_away: true, held: held.clone(), more: 0 };
    assert_eq!(table.broker.holders(table.now_ms), [holder]);
    let notices = table.broker.take_notices();
    assert!(
        matches!(&notices[..], [Notice::Holds { session, is_away: true, .. }] if session == "keeper"),
        "{notices:?}"
    );
    table.pass(SYS_INTERVAL_MS);
    let watcher = table.join("watcher", 0);
    let said = table.subscribe(watcher, "$SYS/broker/sessions/#", QOS1, 0);
    assert!(
        said.iter().any(|line| line.starts_with("$SYS/broker/sessions/holders=keeper (away) holds old")),
        "{said:?}"
    );
    // From now on at once, and at QoS 2 in PUBREC. Nobody got it.
    table.publish(new, "t/x", "more", Qos::AtLeastOnce, false, &[]);
    table.publish(new, "t/x", "more", Qos::ExactlyOnce, false, &[]);
    assert_eq!(table.read(new), ["puback 5 0x97", "pubrec 5 0x97"]);
    // Elsewhere everything goes on.
    table.publish(new, "other", "v", Qos::AtLeastOnce, false, &[]);
    assert_eq!(table.read(new), ["puback 5 0x10"]);
    // A whole hour later the session is as it was; then its client comes and gets all of it, the one that waited included.
    table.pass(3_500_000);
    assert_eq!(table.broker.stats().sessions_ended, 0);
    let properties = numbers(&[(SESSION_EXPIRY, 3600)]);
    let properties = Properties::new(&properties);
    let (keeper, mut got) = table.connect(Connect {
        version: Version::V5,
        client_id: "keeper",
        properties,
        ..Connect::default()
    });
    assert_eq!(got[0], "connack 1 0x0");
    table.pass(500);
    got.extend(table.read(keeper));
    assert!(got.last().unwrap().starts_with("t/x=old"), "{got:?}");
    assert!(!got.iter().any(|line| line.contains("more") || line.contains("new")), "{got:?}");
    assert_eq!(table.read(old), ["puback"].map(|_| "puback 5 0x0"));
    assert!(matches!(&table.broker.take_notices()[..], [Notice::Freed { .. }]));
    assert_eq!((table.broker.stats().holding, table.broker.stats().refused), (0, 3));
}

#[test]
fn a_session_that_expires_frees_those_whom_it_holds() {
    let mut table = table();
    fill(&mut table, "keeper");
    let old = join_v3(&mut table, "old", true);
    table.publish(old, "t/x", "v", Qos::AtLeastOnce, false, &[]);
    table.pass(3_600_000);
    assert_eq!(table.read(old), ["puback 5 0x0"]);
    // A client of MQTT 3.1.1 cannot say for how long.
    let keeper = join_v3(&mut table, "old-keeper", false);
    table.subscribe(keeper, "t/#", QOS1, 0);
    table.broker.closed(table.now_ms, keeper);
    table.now_ms += u64::from(SESSION_EXPIRY_V3_S) * 1000 - 1;
    table.broker.tick(table.now_ms);
    assert_eq!(table.broker.queued("old-keeper"), 0);
    let sessions = table.broker.stats().sessions;
    table.pass(500);
    assert_eq!(table.broker.stats().sessions, sessions - 1);
}

#[test]
fn the_node_itself_never_waits_for_a_client_that_is_away() {
    let mut table = table();
    fill(&mut table, "keeper");
    let node = table.join("node", 0);
    table.publish(node, "t/x", "v", Qos::AtLeastOnce, false, &[]);
    assert_eq!(table.read(node), ["puback 5 0x97"], "at once");
    // On its own topics a session that outlives its connection gets QoS 0, and holds nobody.
    let keeper = table.join("other", 3600);
    let exact = SubscribeOptions { qos: Qos::ExactlyOnce, ..QOS1 };
    assert_eq!(table.subscribe(keeper, "$hw/#", exact, 0), ["suback [0]"]);
    assert_eq!(table.subscribe(keeper, "$share/g/$hw/#", exact, 0), ["suback [0]"]);
    let guest = table.join("guest", 0);
    assert_eq!(table.subscribe(guest, "$hw/#", exact, 0), ["suback [2]"]);
    table.broker.closed(table.now_ms, keeper);
    for _ in 0..100 {
        table.publish(node, "$hw/x", &"v".repeat(100), Qos::AtLeastOnce, false, &[]);
        assert_eq!(table.read(node), ["puback 5 0x0"]);
        table.read(guest);
        // The guest acknowledges nothing, and is behind: its queue has room for these.
    }
    assert_eq!(table.broker.queued("other"), 0);
}

#[test]
fn without_waiting_a_full_session_ends() {
    let mut table = table();
    table.broker.limits.wait_for_sessions = false;
    fill(&mut table, "keeper");
    let old = join_v3(&mut table, "old", true);
    table.publish(old, "t/x", "v", Qos::AtLeastOnce, false, &[]);
    table.pass(STALL_MS_MAX + 1000);
    assert_eq!(table.read(old), ["puback 5 0x0"]);
    assert_eq!(table.broker.stats().sessions_ended, 1);
}

#[test]
fn topics_go_to_a_client_once_if_it_takes_aliases() {
    let mut table = table();
    let properties = numbers(&[(TOPIC_ALIAS_MAXIMUM, 2)]);
    let properties = Properties::new(&properties);
    let (reader, _) =
        table.connect(Connect { version: Version::V5, client_id: "r", properties, ..Connect::default() });
    table.subscribe(reader, "#", QOS1, 0);
    let (plain, writer) = (table.join("plain", 0), table.join("w", 0));
    table.subscribe(plain, "#", QOS1, 0);
    let mut said = |topic: &str| {
        table.publish(writer, topic, "v", Qos::AtMostOnce, false, &[]);
        assert_eq!(table.read(plain), [format!("{topic}=v q0")], "who did not ask gets none");
        table.read(reader).join("")
    };
    assert_eq!(said("room/one/temp"), "room/one/temp=v q0 35=1");
    assert_eq!(said("room/one/temp"), "=v q0 35=1");
    assert_eq!(said("short"), "short=v q0", "too short to be worth it");
    assert_eq!(said("room/two/temp"), "room/two/temp=v q0 35=2");
    assert_eq!(said("room/three/temp"), "room/three/temp=v q0", "no number is left");
    assert_eq!(said("room/two/temp"), "=v q0 35=2");
}

#[test]
fn rules_may_change_while_clients_are_connected() {
    let auth = Auth { acl: Acl::parse("topic home/#").unwrap(), acl_local: true, ..Auth::default() };
    let mut table = Table::with(Limits::default(), auth);
    let (reader, writer) = (table.join("r", 0), table.join("w", 0));
    assert_eq!(table.subscribe(reader, "home/#", QOS1, 0), ["suback [1]"]);
    let said = |table: &mut Table, topic: &str| {
        table.publish(writer, topic, "v", Qos::AtLeastOnce, false, &[]);
        (table.read(writer).join(""), table.read(reader).join(""))
    };
    assert_eq!(said(&mut table, "home/a"), ("puback 5 0x0".into(), "home/a=v q1".into()));
    let acl = Acl::parse("topic home/#\ntopic deny home/safe/+").unwrap();
    table.broker.set_rules(table.now_ms, acl, false, |_| true);
    assert_eq!(said(&mut table, "home/safe/a").0, "puback 5 0x87");
    assert_eq!(
        said(&mut table, "home/a").1,
        "home/a=v q1",
        "the subscription goes on, but for what is denied"
    );
    table.broker.set_rules(table.now_ms, Acl::parse("topic write home/#").unwrap(), false, |_| true);
    assert_eq!(said(&mut table, "home/a"), ("puback 5 0x10".into(), String::new()), "nobody reads any more");
}

#[test]
fn a_will_waits_for_its_delay_though_its_client_has_only_connected() {
    let mut table = table();
    let watcher = table.join("watcher", 0);
    table.subscribe(watcher, "gone", QOS1, 0);
    let properties = numbers(&[(SESSION_EXPIRY, 60)]);
    let delay = numbers(&[(WILL_DELAY, 3)]);
    let will = packet::Will { topic: "gone", properties: Properties::new(&delay), ..packet::Will::default() };
    let connect = Connect {
        version: Version::V5,
        client_id: "mortal",
        properties: Properties::new(&properties),
        will: Some(will),
        ..Connect::default()
    };
    let mortal = table.connect(connect).0;
    table.broker.closed(table.now_ms, mortal);
    table.pass(2500);
    let (mortal, said) = table.connect(connect);
    assert_eq!(said, ["connack 0 0x0"], "what its client may not know of is no session");
    table.broker.closed(table.now_ms, mortal);
    table.pass(2500);
    assert!(table.read(watcher).is_empty(), "it was back in time, and its new will waits");
    table.pass(500);
    assert_eq!(table.read(watcher), ["gone= q0"]);
    assert_eq!(table.broker.stats().sessions, 1);
}
