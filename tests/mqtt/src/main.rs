//! The suite and the benchmark by hand: `mqtt-peers conformance|bench OUR_BROKER RUMQTTD [FILTER]`; `cargo xtask` builds the two
//! programs and calls the same functions.

use anyhow::{Context, Result, bail};
use mqtt_peers::{bench, brokers::Programs, conformance};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, ours, rumqttd, rest @ ..] = &arguments[..] else {
        bail!("mqtt-peers conformance|bench OUR_BROKER RUMQTTD [FILTER]")
    };
    let programs = Programs { ours: ours.into(), rumqttd: rumqttd.into() };
    let dir = tempfile::tempdir().context("scratch folder")?;
    match what.as_str() {
        "conformance" => {
            let results = conformance::run(&programs, dir.path(), rest.first().map_or("", String::as_str))?;
            print!("{}", conformance::failures(&results));
        }
        "bench" => e2e::bench::print(&bench::run(&programs, dir.path())?),
        other => bail!("unknown: {other}"),
    }
    Ok(())
}
