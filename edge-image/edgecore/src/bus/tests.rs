use std::{
    future::Future,
    process::{Command as Process, Stdio},
    time::Duration,
};

use mqtt::broker::{Auth, Limits};

use super::*;
use crate::limits::BUS_QUEUE_LEN;

const DEADLINE: Duration = Duration::from_secs(20);

fn config(mode: u8, internal: &str, external: &str) -> Config {
    let mut cfg = Config::default();
    cfg.kinglet.mqtt.persistence = false;
    cfg.modules.event_bus.mqtt_mode = mode;
    cfg.modules.event_bus.mqtt_server_internal = internal.into();
    cfg.modules.event_bus.mqtt_server_external = external.into();
    cfg
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn inside(address: SocketAddr) -> Peer {
    Peer::internal(address, &EventBus::default(), client_id("pub", "", rt::random_u64()))
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

/// Publishes until it works: the bus connects in the background.
async fn publish(bus: &dyn Bus, topic: &str, payload: &str) {
    within(async {
        while bus.publish(topic, Bytes::copy_from_slice(payload.as_bytes()), false).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// What mosquitto's own client says: `mosquitto_sub -C count`.
async fn mosquitto_sub(port: u16, args: &[&str]) -> String {
    let mut process = Process::new("mosquitto_sub");
    process.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-W", "15"]).args(args);
    let output = tokio::task::spawn_blocking(move || process.stderr(Stdio::inherit()).output().unwrap())
        .await
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

async fn mosquitto_pub(port: u16, args: &[&str]) {
    let mut process = Process::new("mosquitto_pub");
    process.args(["-h", "127.0.0.1", "-p", &port.to_string()]).args(args);
    assert!(tokio::task::spawn_blocking(move || process.status().unwrap()).await.unwrap().success());
}

#[tokio::test]
async fn mosquitto_s_clients_and_the_bus_talk_over_the_internal_broker() {
    let drain = Drain::new();
    let handle = broker::start(any_port(), Auth::default(), Limits::default(), drain.clone());
    let port = handle.address().port();
    let tasks = TaskGroup::new("bus", BUS_TASKS_MAX, drain.clone());
    let bus = connect(&[inside(handle.address())], None, &tasks).unwrap();
    let mut updates = bus.subscribe("$hw/events/device/+/+/twin/+");
    within(async {
        while handle.stats().subscriptions == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    for (qos, payload) in [("0", "zero"), ("1", "one"), ("2", "two")] {
        mosquitto_pub(port, &["-t", "$hw/events/device/default/d/twin/update", "-m", payload, "-q", qos])
            .await;
        let publish = within(updates.recv()).await.unwrap();
        assert_eq!(
            (publish.topic.as_str(), &publish.payload[..]),
            ("$hw/events/device/default/d/twin/update", payload.as_bytes())
        );
    }
    // Retained by us, read by them, late.
    bus.publish("$kinglet/mapper/gpio/device/default/d", Bytes::from_static(b"{\"version\":1}"), true)
        .await
        .unwrap();
    publish(&*bus, "plain", "x").await;
    let seen =
        within(mosquitto_sub(port, &["-t", "$kinglet/mapper/#", "-C", "1", "-q", "1", "-F", "%t %r %p"]))
            .await;
    assert_eq!(seen, "$kinglet/mapper/gpio/device/default/d 1 {\"version\":1}\n");
    // 20 retained ones of theirs, read by us: a second reader of the same filter gets nothing twice.
    for at in 0..20 {
        mosquitto_pub(port, &["-t", &format!("r/{at}"), "-m", "v", "-r", "-q", "1"]).await;
    }
    let mut retained = bus.subscribe("r/#");
    let mut topics = std::collections::BTreeSet::new();
    for _ in 0..20 {
        assert!(topics.insert(within(retained.recv()).await.unwrap().topic));
    }
    assert!(retained.try_recv().is_err());
    drain.start();
}

#[tokio::test]
async fn a_reader_that_is_behind_loses_nothing_and_does_not_stop_the_publisher_of_other_things() {
    let drain = Drain::new();
    let handle = broker::start(any_port(), Auth::default(), Limits::default(), drain.clone());
    let tasks = TaskGroup::new("bus", BUS_TASKS_MAX, drain.clone());
    let bus = connect(&[inside(handle.address())], None, &tasks).unwrap();
    let mut behind = bus.subscribe("data/#");
    let mut quick = bus.subscribe("quick");
    within(async {
        while handle.stats().subscriptions < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let count = BUS_QUEUE_LEN * 8;
    for at in 0..count {
        publish(&*bus, "data/x", &at.to_string()).await;
    }
    for at in 0..count {
        assert_eq!(within(behind.recv()).await.unwrap().payload, at.to_string().as_bytes());
    }
    publish(&*bus, "quick", "1").await;
    assert_eq!(within(quick.recv()).await.unwrap().payload, "1");
    assert_eq!(handle.stats().dropped, 0);
    drain.start();
}

/// The broker restarts and forgets everything: the bus subscribes again and gives it the retained messages again.
#[tokio::test]
async fn subscriptions_and_retained_messages_survive_the_broker() {
    let outer = Drain::new();
    let first = Drain::new();
    let handle = broker::start(any_port(), Auth::default(), Limits::default(), first.clone());
    let address = handle.address();
    let tasks = TaskGroup::new("bus", BUS_TASKS_MAX, outer.clone());
    let bus = connect(&[inside(address)], None, &tasks).unwrap();
    let mut messages = bus.subscribe("in");
    bus.publish("kept", Bytes::from_static(b"yes"), true).await.unwrap();
    publish(&*bus, "in", "before").await;
    first.start();
    within(async {
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    bus.publish("kept/later", Bytes::from_static(b"too"), true).await.expect("kept until there is a broker");
    while messages.try_recv().is_ok() {}
    let second = broker::start(address, Auth::default(), Limits::default(), outer.clone());
    within(async {
        while second.stats().retained < 2 || second.stats().subscriptions < 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    publish(&*bus, "in", "again").await;
    // What was not acknowledged before comes again first (QoS 1), then the new message.
    while within(messages.recv()).await.expect("the bus runs").payload != "again" {}
    outer.start();
}

/// Mode 2 against the real mosquitto, which is killed and started again.
#[tokio::test]
async fn an_external_broker_is_used_and_waited_for() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let drain = Drain::new();
    let bus =
        start(&config(2, "tcp://127.0.0.1:1", &format!("tcp://127.0.0.1:{port}")), drain.clone()).unwrap();
    let mut messages = bus.subscribe("$hw/#");
    for round in 0..2 {
        let binary = if std::path::Path::new("/usr/sbin/mosquitto").exists() {
            "/usr/sbin/mosquitto"
        } else {
            "mosquitto"
        };
        let mut mosquitto =
            Process::new(binary).args(["-p", &port.to_string()]).stderr(Stdio::null()).spawn().unwrap();
        let payload = format!("round {round}");
        // The subscription may come up after the first messages: publish until one arrives.
        within(async {
            loop {
                let _ = bus.publish("$hw/events/x", Bytes::from(payload.clone()), false).await;
                match tokio::time::timeout(Duration::from_millis(50), messages.recv()).await {
                    Ok(Some(publish)) if publish.payload == payload.as_bytes() => break,
                    _ => {}
                }
            }
        })
        .await;
        mosquitto.kill().unwrap();
        mosquitto.wait().unwrap();
    }
    drain.start();
}

#[tokio::test]
async fn both_brokers_at_once_and_passwords() {
    let drain = Drain::new();
    let mut cfg = config(1, "tcp://127.0.0.1:0", "");
    cfg.modules.event_bus.mqtt_username = "edge".into();
    cfg.modules.event_bus.mqtt_password = "secret".into();
    let users = [("edge".to_owned(), "secret".to_owned())].into();
    let auth = Auth { users, ..Auth::default() };
    let other = broker::start(any_port(), auth, Limits::default(), drain.clone());
    cfg.modules.event_bus.mqtt_server_external = format!("tcp://{}", other.address());
    let bus = start(&cfg, drain.clone()).unwrap();
    let mut messages = bus.subscribe("a/+");
    within(async {
        while other.stats().subscriptions == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let port = other.address().port();
    mosquitto_pub(port, &["-t", "a/b", "-m", "1", "-q", "1", "-u", "edge", "-P", "secret"]).await;
    assert_eq!(within(messages.recv()).await.unwrap().payload, "1");
    let mut refused = Process::new("mosquitto_pub");
    refused.args([
        "-h",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "-t",
        "a/b",
        "-m",
        "2",
        "-u",
        "edge",
        "-P",
        "wrong",
    ]);
    assert!(
        !tokio::task::spawn_blocking(move || refused.stderr(Stdio::null()).status().unwrap())
            .await
            .unwrap()
            .success()
    );
    drain.start();
}

#[tokio::test]
async fn wrong_addresses_name_the_key() {
    for (mode, internal, external, expected) in [
        (
            0,
            "127.0.0.1:1883",
            "",
            "modules.eventBus.mqttServerInternal: \"127.0.0.1:1883\" has an unknown scheme: write tcp://HOST:PORT",
        ),
        (
            2,
            "",
            "tcp://localhost",
            "modules.eventBus.mqttServerExternal: \"tcp://localhost\" has no port: write tcp://HOST:PORT",
        ),
    ] {
        let Err(error) = start(&config(mode, internal, external), Drain::new()) else {
            panic!("accepted {internal}{external}")
        };
        assert_eq!(format!("{error:#}"), expected);
    }
}

/// The address is taken at first: the broker comes up when it is free.
#[tokio::test]
async fn an_address_in_use_is_waited_for() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap();
    let drain = Drain::new();
    let bus = start(&config(0, &format!("tcp://{address}"), ""), drain.clone()).unwrap();
    drop(holder);
    publish(&*bus, "t", "v").await;
    drain.start();
}

/// A client that went away with a full session holds those who publish to it, but never the node itself.
#[tokio::test]
async fn the_node_goes_on_while_an_absent_client_holds_others() {
    let drain = Drain::new();
    let publisher = client_id("pub", "", rt::random_u64());
    let auth = Auth { node_clients: vec![publisher.clone()], ..Auth::default() };
    let limits = Limits { queue_bytes_max: 20_000, ..Limits::default() };
    let handle = broker::start(any_port(), auth, limits, drain.clone());
    let (address, port) = (handle.address(), handle.address().port().to_string());
    let keeper = ["-h", "127.0.0.1", "-p", &port, "-c", "-i", "keeper", "-q", "1", "-t", "news/#", "-E"];
    let mut keeper_runs = Process::new("mosquitto_sub");
    keeper_runs.args(keeper);
    let ended = tokio::task::spawn_blocking(move || keeper_runs.status().unwrap());
    assert!(within(ended).await.unwrap().success());
    let tasks = TaskGroup::new("bus", BUS_TASKS_MAX, drain.clone());
    let peer = Peer::internal(address, &EventBus::default(), publisher);
    let bus = connect(&[peer], Some(handle), &tasks).unwrap();
    let mut reader = bus.subscribe("$hw/#");
    let figure = |name: &str| bus.figures().iter().find(|(have, _)| *have == name).unwrap().1;
    within(async {
        while figure("kinglet_mqtt_clients") < 2.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    within(async {
        for _ in 0..1500 {
            bus.publish("news/x", Bytes::from_static(&[b'x'; 100]), false).await.unwrap();
        }
        bus.publish("$hw/x", Bytes::from_static(b"still here"), false).await.unwrap();
        assert_eq!(reader.recv().await.unwrap().payload, "still here");
    })
    .await;
    assert!(figure("kinglet_mqtt_messages_refused_total") > 1000.0);
    assert_eq!(figure("kinglet_mqtt_sessions_holding"), 1.0);
    drain.start();
}
