//! Bad input and bad behaviour against our broker: it goes on serving others within its bounds, stays small, and names in its log
//! who did what, without filling it.

use std::{
    io::Write,
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::steps::wait_until;

use crate::{
    brokers::{Broker, Kind, Programs, Setup},
    clients::Cases,
    load::{self, resident_kb},
    peer::Peer,
    wire::{self, Connect, Publish, V4, V5},
};

/// Resident memory that no case may leave behind or reach, kB. What a reader that never reads may hold is bounded by its queue.
const RESIDENT_KB_MAX: f64 = 24.0 * 1024.0;
const CONNECTS: usize = 2000;
/// Lines of log of one case.
const LINES_MAX: usize = 250;

pub fn run(programs: &Programs, dir: &Path) -> Cases {
    type Case = fn(&mut Broker) -> Result<()>;
    // With what the log says of it; nothing where only limits answer.
    let cases: [(&str, Case, &str); 7] = [
        ("damaged packets", damaged, "was disconnected: it "),
        ("two thousand connects, most of them silent", connects, ""),
        (
            "a reader that never reads: publishers wait or go on, others are served",
            never_reads,
            "MQTT client \"deaf\" from 127.0.0.1 was disconnected: it does not read",
        ),
        ("a full session whose client is away", absent, "MQTT session \"absent\" is full"),
        ("a flood of topics and subscriptions", topics, ""),
        ("a flood of retained messages", retained, ""),
        ("half a packet, then silence", half, "was disconnected: nothing was heard of it for too long"),
    ];
    let run = |name: &str, case: Case, said: &str| {
        let dir = dir.join(name.split([' ', ',']).next().unwrap_or("case"));
        let mut broker = Broker::start(Kind::Ours, programs, &dir, &Setup::default())?;
        case(&mut broker)?;
        let kb =
            resident_kb(broker.pid()).with_context(|| format!("the broker has ended: {}", broker.said()))?;
        ensure!(kb < RESIDENT_KB_MAX, "{kb} kB resident afterwards");
        serves(&broker)?;
        let peak = e2e::process::proc_status_kb(broker.pid(), "VmHWM")?;
        let log = broker.log()?;
        let lines = log.lines().count();
        println!("    rough: {name}: {kb} kB resident, {peak} kB at most, {lines} lines of log");
        ensure!(peak < RESIDENT_KB_MAX as u64, "{peak} kB resident at some time");
        ensure!(lines < LINES_MAX, "{lines} lines of log");
        ensure!(log.contains(said), "the log does not say {said:?}: {}", broker.said());
        Ok(())
    };
    cases.into_iter().map(|(name, case, said)| (format!("rough: {name}"), run(name, case, said))).collect()
}

/// Others get their messages.
fn serves(broker: &Broker) -> Result<()> {
    let mut peer = Peer::connect(broker.v5, &Connect::new(V5, "witness"))?;
    peer.subscribe("witness/t", 2)?;
    for qos in [0, 1, 2] {
        peer.publish("witness/t", "x", qos, false)?;
        peer.expect("witness/t", "x")?;
    }
    Ok(())
}

/// Bytes turned over in good packets, and noise.
fn damaged(broker: &mut Broker) -> Result<()> {
    let mut seed = 0x5eed_1234_u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    for round in 0..1500 {
        let version = [V4, V5][round % 2];
        let connect = Connect::new(version, &format!("bad{round}")).packet().bytes();
        let publish =
            Publish { topic: "a/b".into(), payload: vec![7; 40], qos: 2, id: 3, ..Publish::default() };
        let mut bytes = connect.clone();
        bytes.extend(wire::subscribe(version, 9, &[], &[("a/+", 1), ("$share/g/x", 1)]).bytes());
        bytes.extend(publish.packet(version).bytes());
        bytes.extend(wire::unsubscribe(version, 4, &["a/+"]).bytes());
        // Half of the rounds leave CONNECT whole, so that what is behind it is looked at.
        let from = if round % 4 < 2 { connect.len() } else { 0 };
        for _ in 0..1 + random(6) {
            let at = from + random(bytes.len() - from);
            bytes[at] = random(256) as u8;
        }
        let mut socket = TcpStream::connect(broker.v4)?;
        // It may be closed while we write.
        let _ = socket.write_all(&bytes);
    }
    serves(broker)
}

/// As fast as they go; each tenth is a client, the others say nothing and are closed when the time for CONNECT is over.
fn connects(broker: &mut Broker) -> Result<()> {
    let begun = Instant::now();
    let mut held = Vec::new();
    for at in 0..CONNECTS {
        let mut socket = TcpStream::connect(broker.v4).context("connect")?;
        if at % 10 == 0 {
            socket.write_all(&Connect::new(V4, &format!("c{at}")).packet().bytes())?;
        }
        // Half of them stay, the others come and go.
        if at % 2 == 0 {
            held.push(socket);
        }
    }
    let rate = CONNECTS as f64 / begun.elapsed().as_secs_f64();
    ensure!(rate > 1000.0 || begun.elapsed() < Duration::from_secs(10), "{rate:.0} connects a second");
    serves(broker)?;
    drop(held);
    serves(broker)
}

fn never_reads(broker: &mut Broker) -> Result<()> {
    let mut deaf = Peer::connect(broker.v4, &Connect::new(V4, "deaf"))?;
    deaf.subscribe("noise/#", 1)?;
    // 64 MB of QoS 0 that nobody takes: dropped for the deaf one, not kept.
    let mut writer = Peer::connect(broker.v4, &Connect::new(V4, "writer"))?;
    let noise = Publish { topic: "noise/0".into(), payload: vec![0; 64 * 1024], ..Publish::default() };
    let noise = noise.packet(V4).bytes();
    for _ in 0..1000 {
        writer.send_bytes(&noise)?;
    }
    serves(broker)?;
    ensure!(resident_kb(broker.pid())? < RESIDENT_KB_MAX, "QoS 0 for a deaf reader is kept");
    // QoS 1: the publisher stands still, until the broker gives the deaf one up. Nobody else waits meanwhile.
    let address = broker.v4;
    let publisher = std::thread::spawn(move || -> Result<()> {
        let mut writer = Peer::connect(address, &Connect::new(V4, "sure"))?;
        let text = "x".repeat(64 * 1024);
        (0..200).try_for_each(|at| {
            writer.publish_patiently(&format!("noise/{at}"), &text, Duration::from_secs(30))
        })
    });
    serves(broker)?;
    ensure!(resident_kb(broker.pid())? < RESIDENT_KB_MAX, "QoS 1 for a deaf reader is kept without bound");
    publisher.join().expect("no panic").context("the publisher that waited")?;
    serves(broker)
}

/// Whoever publishes to it waits (3.1.1) or is refused (5) and is named in `$SYS`; its client gets all that was acknowledged.
fn absent(broker: &mut Broker) -> Result<()> {
    let keeper = || Connect { clean: false, ..Connect::new(V4, "absent") };
    Peer::connect(broker.v4, &keeper())?.subscribe("news/#", 1)?;
    let mut writer = Peer::connect(broker.v5, &Connect::new(V5, "new"))?;
    let payload = vec![b'x'; 16 * 1024];
    let (mut taken, mut refused) = (0_u32, 0);
    for id in 1..=40 {
        let publish =
            Publish { topic: "news/x".into(), payload: payload.clone(), qos: 1, id, ..Publish::default() };
        writer.send(&publish.packet(V5))?;
        let ack = writer.wait_within(wire::PUBACK, Duration::from_secs(20))?;
        match ack.body.get(2) {
            Some(0x97) => refused += 1,
            _ => taken += 1,
        }
    }
    ensure!(taken > 10 && refused > 10, "{taken} taken, {refused} refused");
    let mut old = Peer::connect(broker.v4, &Connect::new(V4, "old"))?;
    old.send(&Publish { topic: "news/x".into(), qos: 1, id: 9, ..Publish::default() }.packet(V4))?;
    let mut watcher = Peer::connect(broker.v5, &Connect::new(V5, "watcher"))?;
    watcher.subscribe("$SYS/broker/sessions/holders", 0)?;
    wait_until(Duration::from_secs(40), "who holds whom", || {
        let said = watcher.wait_within(wire::PUBLISH, Duration::from_secs(30))?;
        let said = Publish::parse(&said, V5)?;
        Ok((said.payload == b"absent (away) holds old").then_some(()))
    })?;
    serves(broker)?;
    let mut back = Peer::connect(broker.v4, &keeper())?;
    for _ in 0..taken {
        let got = back.message()?;
        ensure!(got.payload.len() == payload.len(), "{} bytes", got.payload.len());
    }
    old.wait_ack(wire::PUBACK, 9).map(drop)
}

fn topics(broker: &mut Broker) -> Result<()> {
    // Kept sessions may have fewer: theirs are on the disk.
    let mut peer = Peer::connect(broker.v4, &Connect { clean: false, ..Connect::new(V4, "greedy") })?;
    let mut refused = 0;
    for at in 0..3000 {
        let filter = format!("greedy/{at}/+/{}", "x".repeat(100));
        refused += usize::from(peer.subscribe_all(&[], &[(&filter, 0)])?.iter().any(|code| *code >= 0x80));
    }
    ensure!(refused > 0, "3000 subscriptions of one client were all granted");
    for at in 0..20_000 {
        peer.send(&Publish { topic: format!("flood/{at}"), ..Publish::default() }.packet(V4))?;
    }
    peer.alive()
}

fn retained(broker: &mut Broker) -> Result<()> {
    let mut writer = Peer::connect(broker.v5, &Connect::new(V5, "keeper"))?;
    let payload = vec![b'x'; 4096];
    let mut refused = 0;
    for at in 0..5000 {
        let publish = Publish {
            topic: format!("kept/{at}"),
            payload: payload.clone(),
            qos: 1,
            retain: true,
            id: at + 1,
            ..Publish::default()
        };
        writer.send(&publish.packet(V5))?;
        let ack = writer.wait_ack(wire::PUBACK, at + 1)?;
        refused += usize::from(ack.body.get(2).is_some_and(|reason| *reason >= 0x80));
    }
    // 20 MB do not fit: each message was delivered, and those that were not kept are told or counted.
    println!("    5000 retained messages of 4 kB: {refused} answered with an error");
    serves(broker)
}

fn half(broker: &mut Broker) -> Result<()> {
    let mut sockets = Vec::new();
    for at in 0..200 {
        let mut socket =
            Peer::connect(broker.v4, &Connect { keep_alive: 1, ..Connect::new(V4, &format!("half{at}")) })?
                .into_socket();
        // 200 kB announced, ten bytes sent: nothing is set aside for the rest.
        socket.write_all(&[0x30, 0xc0, 0x9a, 0x0c, 0, 1, b'a', 1, 2, 3])?;
        sockets.push(socket);
    }
    ensure!(load::resident_kb(broker.pid())? < RESIDENT_KB_MAX, "room for packets that never came");
    wait_until(Duration::from_secs(10), "the keep-alive ends them", || {
        let mut byte = [0];
        let ended = sockets.iter_mut().all(|socket| {
            let _ = socket.set_nonblocking(true);
            matches!(std::io::Read::read(socket, &mut byte), Ok(0))
                || matches!(socket.take_error(), Ok(Some(_)))
        });
        Ok(ended.then_some(()))
    })
}
