//! Many simulated nodes in one process, over real TLS and WebSockets: the load of `cargo xtask bench hub`.
//!
//! Each node joins by token with a key of its own, keeps a link as a KubeEdge edge does (keepalive every 15 s, lease every 10 s, every
//! object acknowledged), and comes back with full jitter when it is cut. There is nothing behind it: no store, no containers.
//!
//! Orders come as lines on standard input, one JSON line answers each: `stat`, `cut` (all links end at once), `burst N` (each node
//! patches its status N times, one after the other), `quit`. Start at [`node::Node::run`].

mod join;
mod node;

use std::{
    io::Write as _,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lexopt::prelude::{Long, ValueExt};
use node::{Node, Orders};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::{Semaphore, watch},
};

use crate::node::Counters;

const HELP: &str = "\
nodes: simulated nodes for the benchmark of cloudcore's hub

  nodes --hub HOST:10000 --join HOST:10002 --token TOKEN --count 1000
      Example: nodes --hub 127.0.0.1:10000 --join 127.0.0.1:10002 --token \"$(cloudcore token)\" --count 100
";

/// Joins at one time; the join port takes 64.
const JOINS_MAX: usize = 32;

fn main() -> Result<()> {
    let (mut hub, mut port, mut token, mut count) = (String::new(), String::new(), String::new(), 0_usize);
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("hub") => hub = arguments.value()?.string()?,
            Long("join") => port = arguments.value()?.string()?,
            Long("token") => token = arguments.value()?.string()?,
            Long("count") => count = arguments.value()?.parse()?,
            Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            other => bail!("{}; nodes --help shows what there is", other.unexpected()),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(run(hub, &port, &token, count))
}

async fn run(hub: String, join_port: &str, token: &str, count: usize) -> Result<()> {
    let began = Instant::now();
    let authority = Arc::new(join::Authority::ask(join_port, token).await?);
    let counters = Arc::new(Counters::default());
    let (orders_tx, orders) = watch::channel(Orders::default());
    let joins = Arc::new(Semaphore::new(JOINS_MAX));
    for index in 0..count {
        let permit = joins.clone().acquire_owned().await?;
        let (hub, authority, counters, orders) =
            (hub.clone(), authority.clone(), counters.clone(), orders.clone());
        tokio::spawn(async move {
            let name = format!("node-{index:05}");
            let joined = authority.join(&name).await;
            drop(permit);
            match joined {
                Ok(identity) => {
                    counters.joined.fetch_add(1, Ordering::Relaxed);
                    Node::new(name, index, identity).run(&hub, counters, orders).await;
                }
                Err(error) => {
                    eprintln!("{name} cannot join: {error:#}");
                    counters.join_failures.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    // All have been started; the last ones may still be joining.
    drop(joins.acquire_many(JOINS_MAX as u32).await?);
    answer(
        json!({"joined": counters.joined.load(Ordering::Relaxed), "seconds": began.elapsed().as_secs_f64()}),
    )?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["stat"] => answer(counters.shown())?,
            ["cut"] => {
                orders_tx.send_modify(|orders| orders.cuts += 1);
                answer(json!({}))?;
            }
            ["burst", number] => {
                let number: u32 = number.parse().context("burst N")?;
                orders_tx.send_modify(|orders| orders.burst = (orders.burst.0 + 1, number));
                answer(json!({}))?;
            }
            ["quit"] => break,
            _ => bail!("{line:?} is no order: stat, cut, burst N, quit"),
        }
    }
    Ok(())
}

fn answer(value: serde_json::Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

/// KubeEdge's: 10 s; ours renews a lease of 40 s after a quarter of it.
pub const LEASE_EVERY: Duration = Duration::from_secs(10);
pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
