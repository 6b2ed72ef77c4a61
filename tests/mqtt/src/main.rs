//! The suite and the benchmark by hand: `mqtt-peers conformance|clients|rough|bench OUR_BROKER RUMQTTD [FILTER|PYTHON]`; `cargo xtask` builds the two
//! programs and calls the same functions.

use anyhow::{Context, Result, bail};
use mqtt_peers::{bench, brokers::Programs, clients, conformance, rough};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, ours, rumqttd, rest @ ..] = &arguments[..] else {
        bail!("mqtt-peers conformance|clients|rough|bench OUR_BROKER RUMQTTD [FILTER|PYTHON]")
    };
    let programs = Programs { ours: ours.into(), rumqttd: rumqttd.into() };
    let dir = tempfile::tempdir().context("scratch folder")?;
    match what.as_str() {
        "conformance" => {
            let results = conformance::run(&programs, dir.path(), rest.first().map_or("", String::as_str))?;
            print!("{}", conformance::failures(&results));
            conformance::unexplained(&results).iter().for_each(|line| println!("{line}"));
            println!("{}", conformance::table(&results));
        }
        "clients" => {
            let python = rest.first().map(std::path::Path::new);
            for (name, result) in clients::run(&programs, python, &dir.path().join("clients"))? {
                println!("{name}: {}", result.map_or_else(|error| format!("{error:#}"), |()| "ok".into()));
            }
        }
        "rough" => {
            for (name, result) in rough::run(&programs, dir.path()) {
                println!("{name}: {}", result.map_or_else(|error| format!("{error:#}"), |()| "ok".into()));
            }
        }
        "bench" => e2e::bench::print(&bench::run(&programs, dir.path())?),
        other => bail!("unknown: {other}"),
    }
    Ok(())
}
