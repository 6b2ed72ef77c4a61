//! `cargo xtask bench mqtt`: what our broker costs beside mosquitto and rumqttd, in one run on one machine.
//!
//! CPU is that of the broker's process alone. Rounds alternate between the brokers and the best round counts: another program
//! on the machine makes a round worse, never better.

use std::{path::Path, time::Duration};

use anyhow::Result;
use e2e::bench::{Line, beside};

use crate::{
    brokers::{Broker, Kind, Programs, Setup},
    load::{self, Flood},
};

const FLOOD: Flood = Flood {
    qos: 0,
    messages: 200_000,
    publishers: 4,
    subscribers: 1,
    window: 500,
    topic: "bench",
    is_kept: false,
};
const ROUNDS: usize = 3;
const IDLE: usize = 1000;
const MILLION: u32 = 1_000_000;
/// Of the paced run.
const PER_SECOND: u32 = 1000;
const SECONDS: u32 = 10;

/// Name, unit and whether it is measured once per broker in the order of [`crate::brokers::KINDS`].
struct Table(Vec<(String, &'static str, [f64; 3])>);

impl Table {
    fn set(&mut self, metric: &str, unit: &'static str, kind: Kind, value: f64) {
        let at = self.0.iter().position(|row| row.0 == metric).unwrap_or_else(|| {
            self.0.push((metric.into(), unit, [f64::NAN; 3]));
            self.0.len() - 1
        });
        let old = &mut self.0[at].2[kind as usize];
        // The best round counts. Losses are added up instead: none is forgiven.
        *old = match (old.is_nan(), unit) {
            (true, _) => value,
            (_, "lost") => *old + value,
            (_, "/s") => old.max(value),
            _ => old.min(value),
        };
    }

    fn lines(&self) -> Vec<Line> {
        let pair = |row: &(String, &'static str, [f64; 3]), peer: Kind| {
            beside(&row.0, row.1, row.2[0], row.2[peer as usize], peer.name())
        };
        let rows = self.0.iter();
        let pairs = rows.flat_map(|row| [Kind::Mosquitto, Kind::Rumqttd].map(|peer| (row, peer)));
        pairs
            .filter(|(row, peer)| !row.2[*peer as usize].is_nan())
            .map(|(row, peer)| pair(row, peer))
            .collect()
    }
}

pub fn run(programs: &Programs, dir: &Path) -> Result<Vec<Line>> {
    let setup = Setup { bench: true, ..Setup::default() };
    let mut table = Table(Vec::new());
    for round in 0..ROUNDS {
        for kind in programs.kinds() {
            let broker =
                Broker::start(kind, programs, &dir.join(format!("{}-{round}", kind.name())), &setup)?;
            floods(&broker, &mut table)?;
            latency(&broker, &mut table)?;
            broker.kill();
            println!("    round {} of {ROUNDS}: {} done", round + 1, kind.name());
        }
    }
    for kind in programs.kinds() {
        let broker = Broker::start(kind, programs, &dir.join(format!("{}-memory", kind.name())), &setup)?;
        memory(&broker, &mut table)?;
        broker.kill();
        println!("    memory: {} done", kind.name());
    }
    let mut lines = table.lines();
    for class in ["volatile", "lazy", "sync"] {
        durable(programs, &dir.join(class), class, &mut lines)?;
    }
    Ok(lines)
}

/// Ours alone, with a disk: what durable topics cost in throughput and in bytes written. The others have no such classes.
fn durable(programs: &Programs, dir: &Path, class: &str, lines: &mut Vec<Line>) -> Result<()> {
    let store = dir.join("store").display().to_string();
    let mut ours = vec!["--store".to_owned(), store];
    if class != "volatile" {
        ours.extend(["--durable".to_owned(), format!("{class}:bench/#")]);
    }
    let broker = Broker::start(Kind::Ours, programs, dir, &Setup { bench: true, users: false, ours })?;
    // A window wide enough that many messages share a group commit.
    let load = Flood { qos: 1, messages: 20_000, window: 50, is_kept: true, ..FLOOD };
    let before = load::written_bytes(broker.pid())?;
    let flooded = load::flood(broker.v4, broker.pid(), load)?;
    // Lazy ones are written within 5 s.
    std::thread::sleep(Duration::from_secs(if class == "lazy" { 7 } else { 1 }));
    let written = load::written_bytes(broker.pid())? - before;
    let mut line = |metric: &str, unit, ours| {
        let metric = format!("{class} topics, with a disk: {metric}");
        lines.push(Line { metric, unit, ours, peer: None, peer_name: None, ratio: None });
    };
    let delivered = flooded.received as f64;
    line("QoS 1 delivered", "/s", delivered / flooded.seconds);
    line("written per message of 64 bytes", "B", written / delivered);
    line("lost or out of order", "lost", (flooded.lost + flooded.disorder) as f64);
    broker.kill();
    Ok(())
}

fn floods(broker: &Broker, table: &mut Table) -> Result<()> {
    let loads = [
        ("QoS 0", FLOOD),
        ("QoS 1", Flood { qos: 1, messages: 40_000, window: 50, ..FLOOD }),
        ("QoS 1 to 20", Flood { qos: 1, messages: 4_000, subscribers: 20, window: 50, ..FLOOD }),
    ];
    for (name, load) in loads {
        let flooded = load::flood(broker.v4, broker.pid(), load)?;
        let delivered = flooded.received as f64;
        let us = flooded.cpu_seconds * 1e6 / delivered;
        table.set(&format!("{name}: CPU per delivered message"), "us", broker.kind, us);
        table.set(&format!("{name}: delivered"), "/s", broker.kind, delivered / flooded.seconds);
        let lost = (flooded.lost + flooded.disorder) as f64;
        table.set(&format!("{name}: lost or out of order"), "lost", broker.kind, lost);
    }
    Ok(())
}

fn latency(broker: &Broker, table: &mut Table) -> Result<()> {
    let cpu = load::cpu_seconds(broker.pid())?;
    let sorted = load::paced(broker.v4, "paced", PER_SECOND, SECONDS)?;
    let us = (load::cpu_seconds(broker.pid())? - cpu) * 1e6 / sorted.len() as f64;
    table.set("QoS 1 at 1000/s: p50", "us", broker.kind, load::percentile(&sorted, 50.0));
    table.set("QoS 1 at 1000/s: p99", "us", broker.kind, load::percentile(&sorted, 99.0));
    table.set("QoS 1 at 1000/s: CPU per message", "us", broker.kind, us);
    Ok(())
}

fn memory(broker: &Broker, table: &mut Table) -> Result<()> {
    let kind = broker.kind;
    let million =
        |messages| load::flood(broker.v4, broker.pid(), Flood { qos: 1, messages, window: 50, ..FLOOD });
    // Once through everything, so that code that is loaded late is not counted as growth.
    million(MILLION / 20)?;
    let before = load::resident_kb(broker.pid())?;
    million(MILLION)?;
    let after = load::resident_kb(broker.pid())?;
    table.set("resident before a million QoS 1 messages", "kB", kind, before);
    table.set("resident after a million QoS 1 messages, less before", "kB", kind, after - before);
    let held = load::idle(broker.v4, IDLE)?;
    let with = load::resident_kb(broker.pid())?;
    table.set("resident, 1000 connections with a subscription", "kB", kind, with);
    table.set("per idle connection", "kB", kind, (with - after) / IDLE as f64);
    drop(held);
    Ok(())
}
