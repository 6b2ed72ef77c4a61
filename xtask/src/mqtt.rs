//! `cargo xtask test --suite mqtt` and `bench mqtt`: builds the brokers as programs of their own and runs `tests/mqtt` on them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use mqtt_peers::{
    bench,
    brokers::{BUILD_RUMQTTD, Programs},
    clients, conformance, rough,
};

use crate::{
    Options, demo,
    programs::host_target,
    run::{cargo, run, timed},
    test::Outcome,
};

/// As pip names it.
const PAHO: &str = "paho-mqtt==2.1.0";

pub fn suite(root: &Path, _: &Options) -> Result<Outcome> {
    timed("build the brokers", "about a minute the first time", || {
        run(cargo(root).args(["build", "--locked", "-p", "edgecore", "--example", "broker"]))?;
        run(cargo(root).args(BUILD_RUMQTTD))
    })?;
    let debug = root.join("target/debug");
    let programs = Programs { ours: debug.join("examples/broker"), rumqttd: debug.join("rumqttd-alone") };
    let (dir, mut outcome) = (demo::scratch("mqtt")?, Outcome::default());
    let python = python(root, "paho", &[PAHO], "import paho.mqtt.client");
    let (rows, cases) = std::thread::scope(|scope| {
        let rows = scope.spawn(|| conformance::run(&programs, &dir.join("rows"), ""));
        let mut cases = rough::run(&programs, &dir.join("rough"));
        match &python {
            Ok(python) => cases.extend(clients::run(&programs, Some(python), &dir.join("clients"))?),
            Err(error) => {
                outcome.not_run.push(format!("Paho's client: {error:#}; it runs where pip can fetch {PAHO}"));
                cases.extend(clients::run(&programs, None, &dir.join("clients"))?);
            }
        }
        Ok::<_, anyhow::Error>((rows.join().expect("the rows do not panic")?, cases))
    })?;
    let failed = conformance::ours_failed(&rows);
    outcome.passed += (conformance::ours_ran(&rows) - failed.len()) as u32;
    outcome.failed.extend(failed);
    outcome.failed.extend(conformance::unexplained(&rows));
    for (name, result) in cases {
        match result {
            Ok(()) => outcome.passed += 1,
            Err(error) => outcome.failed.push(format!("{name}: {error:#}")),
        }
    }
    match page(root, &conformance::table(&rows)) {
        Ok(()) => outcome.passed += 1,
        Err(error) => outcome.failed.push(format!("{error:#}")),
    }
    std::fs::remove_dir_all(&dir).context("remove the scratch folder")?;
    Ok(outcome)
}

/// docs/mqtt-conformance.md is what was seen.
fn page(root: &Path, seen: &str) -> Result<()> {
    let path = root.join("docs/mqtt-conformance.md");
    if std::env::var_os("UPDATE").is_some() {
        return std::fs::write(&path, seen).context("write docs/mqtt-conformance.md");
    }
    let have = std::fs::read_to_string(&path).context("read docs/mqtt-conformance.md")?;
    let (have, seen) = (without_rumqttd(&have), without_rumqttd(seen));
    let differs = seen.iter().find(|line| !have.contains(line)).copied();
    ensure!(
        have == seen,
        "docs/mqtt-conformance.md is not what was seen (first: {:?}): UPDATE=1 cargo xtask test --suite mqtt",
        differs.unwrap_or("a line too many")
    );
    Ok(())
}

/// rumqttd answers some malformed packets before it closes, or not, as its threads run: its own column may differ.
fn without_rumqttd(page: &str) -> Vec<&str> {
    let lines = page.lines().filter(|line| !line.starts_with("| rumqttd |"));
    lines
        .map(|line| match line.trim_end_matches(" |").rsplit_once(" | ") {
            Some((rest, _)) if line.matches(" | ").count() == 5 => rest,
            _ => line,
        })
        .collect()
}

/// A Python with packages from PyPI, below target/tools; `test` runs when they are there.
pub fn python(root: &Path, name: &str, packages: &[&str], test: &str) -> Result<PathBuf> {
    let venv = root.join("target/tools").join(name);
    let python = venv.join("bin/python");
    let has = || Command::new(&python).args(["-c", test]).output().is_ok_and(|out| out.status.success());
    if !has() {
        timed(&format!("fetch {}", packages.join(", ")), "", || {
            run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
            run(Command::new(&python).args(["-m", "pip", "install", "-q"]).args(packages))
        })?;
    }
    Ok(python)
}

/// Our broker, built as the device has it, beside mosquitto and rumqttd.
pub fn bench(root: &Path) -> Result<Vec<e2e::bench::Line>> {
    let target = host_target()?;
    timed("build our broker for size, rumqttd for speed", "about 6 minutes the first time", || {
        let ours = ["--profile", "device", "--target", target, "-p", "edgecore", "--example", "broker"];
        run(cargo(root).args(["build", "--locked"]).args(ours))?;
        run(cargo(root).args(BUILD_RUMQTTD).arg("--release"))
    })?;
    let programs = Programs {
        ours: root.join("target").join(target).join("device/examples/broker"),
        rumqttd: root.join("target/release/rumqttd-alone"),
    };
    let dir = demo::scratch("bench-mqtt")?;
    let lines = bench::run(&programs, &dir)?;
    std::fs::remove_dir_all(&dir).context("remove the scratch folder")?;
    Ok(lines)
}
