//! The bus alone, from a configuration file of edgecore: broker, external broker and bridge, for trials with other brokers.
//!
//!     bus edgecore.yaml

use std::path::Path;

use anyhow::Context;
use edgecore::{bus, config::Config};

fn main() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).context("bus edgecore.yaml")?;
    rt::log::init("info")?;
    let cfg = Config::load(Path::new(&path))?.config;
    rt::runtime()?.block_on(async {
        let drain = rt::Drain::new();
        let _bus = bus::start(&cfg, drain.clone())?;
        rt::shutdown_signal().await;
        drain.start();
        // What is to be written at a stop is written by then.
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        Ok(())
    })
}
