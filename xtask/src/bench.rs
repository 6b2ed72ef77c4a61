//! `cargo xtask bench NAME`: builds what is measured as it ships, runs the benchmark, prints and writes its table.

use std::path::Path;

use anyhow::{Context, Result, bail};
use e2e::bench::Line;

use crate::{
    Options, demo, images, mqtt, prerequisites,
    programs::host_target,
    run::{cargo, run as run_command, timed},
};

pub fn run(root: &Path, options: &Options) -> Result<()> {
    match options.name.as_deref() {
        Some("pods") => pods(root, options),
        Some("link") => link(root, options),
        Some("hub") => hub(root, options),
        Some("mqtt") => tell(root, "mqtt", &mqtt::bench(root)?),
        Some("load") => load(root, options),
        Some("pins") => pins(root),
        Some(other) => bail!("no benchmark {other:?}; there are: pods, link, hub, mqtt, load, pins"),
        None => bail!("which benchmark? cargo xtask bench pods, link, hub, mqtt, load or pins"),
    }
}

fn pods(root: &Path, options: &Options) -> Result<()> {
    let programs = with_pods(root, options)?;
    let shim = options.shim.as_ref().map(|shim| shim.canonicalize()).transpose().context("--shim")?;
    let dir = demo::scratch("bench")?;
    let lines = e2e::bench::pods(&programs, &dir, shim.as_deref(), &mut e2e::steps::Steps::default())?;
    tell(root, "pods", &lines)?;
    std::fs::remove_dir_all(&dir).context("remove the scratch folder")
}

/// edgecore under the standard load of the design.
fn load(root: &Path, options: &Options) -> Result<()> {
    let programs = with_pods(root, options)?;
    let dir = demo::scratch("bench")?;
    let lines = e2e::bench::load::load(&programs, &dir, &mut e2e::steps::Steps::default())?;
    tell(root, "load", &lines)?;
    std::fs::remove_dir_all(&dir).context("remove the scratch folder")
}

/// The programs for a benchmark with pods: edgecore as the device has it.
fn with_pods(root: &Path, options: &Options) -> Result<e2e::Programs> {
    if let Some(why) = e2e::containerd::missing() {
        bail!("the benchmark of pods {why}");
    }
    let busybox = prerequisites::busybox(root, options.debian_mirror.as_deref())?;
    let mut programs = demo::on_this_machine(root, options)?;
    images::busybox(root, &busybox)?;
    // As the device has it, but for this machine.
    timed("build edgecore for size", "about 4 minutes the first time", || {
        let args = ["build", "--locked", "--profile", "device", "--target", host_target()?, "-p", "edgecore"];
        run_command(cargo(root).args(args))
    })?;
    programs.edgecore = root.join("target").join(host_target()?).join("device/edgecore");
    Ok(programs)
}

/// Bytes do not depend on how the programs are built: the quick way is good enough.
fn link(root: &Path, options: &Options) -> Result<()> {
    let kubectl = prerequisites::kubectl(root, options.debian_mirror.as_deref())?;
    timed("build cloudcore and edgecore", "about 3 minutes the first time", || {
        run_command(cargo(root).args(["build", "--locked", "-p", "cloudcore", "-p", "edgecore"]))
    })?;
    let mut programs = demo::programs_for(root, root.join("target/debug/cloudcore"), kubectl);
    programs.edgecore = root.join("target/debug/edgecore");
    let dir = demo::scratch("bench-link")?;
    let lines = e2e::bench::link::link(&programs, &dir, &mut e2e::steps::Steps::default())?;
    tell(root, "link", &lines)?;
    std::fs::remove_dir_all(&dir).context("remove the scratch folder")
}

/// cloudcore's hub with simulated nodes: `--nodes`.
fn hub(root: &Path, options: &Options) -> Result<()> {
    let programs = demo::on_this_machine(root, options)?;
    let target = host_target()?;
    timed("build the simulated nodes", "", || {
        run_command(cargo(root).args(["build", "--locked", "--release", "--target", target, "-p", "nodes"]))
    })?;
    let nodes = root.join("target").join(target).join("release/nodes");
    let dir = demo::scratch("bench")?;
    let mut steps = e2e::steps::Steps::default();
    let lines = e2e::bench::hub::hub(&programs, &nodes, options.nodes.unwrap_or(1000), &dir, &mut steps)?;
    tell(root, "hub", &lines)?;
    std::fs::remove_dir_all(&dir).context("remove the scratch folder")
}

/// From a message to a pin and back: broker, mapper and line-holder as the device has them, but for this machine.
fn pins(root: &Path) -> Result<()> {
    let target = host_target()?;
    timed("build our broker and the mapper for size", "about 5 minutes the first time", || {
        let build = ["build", "--locked", "--profile", "device", "--target", target];
        run_command(cargo(root).args(build).args(["-p", "edgecore", "--example", "broker"]))?;
        run_command(cargo(root).args(build).args(["-p", "lines"]))
    })?;
    let programs = root.join("target").join(target).join("device");
    let mut command = std::process::Command::new(programs.join("lines"));
    command.arg("bench").arg(programs.join("examples/broker")).stderr(std::process::Stdio::inherit());
    let output = command.output();
    let output = output.context("start the benchmark of pins")?;
    let text = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        bail!("the benchmark of pins failed: {text}");
    }
    let figure = |line: &str| -> Option<Line> {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        let metric = value["metric"].as_str()?.to_owned();
        Some(Line {
            metric,
            unit: "us",
            ours: value["ours"].as_f64()?,
            peer: None,
            peer_name: None,
            ratio: None,
        })
    };
    let lines: Vec<Line> = text.lines().filter_map(figure).collect();
    if lines.is_empty() {
        bail!("the benchmark of pins said nothing: {text}");
    }
    tell(root, "pins", &lines)
}

fn tell(root: &Path, name: &str, lines: &[Line]) -> Result<()> {
    e2e::bench::print(lines);
    let out = root.join(format!("target/bench/{name}.json"));
    std::fs::create_dir_all(root.join("target/bench"))?;
    std::fs::write(&out, serde_json::to_vec_pretty(lines)?)?;
    println!("\n{}", out.display());
    Ok(())
}
