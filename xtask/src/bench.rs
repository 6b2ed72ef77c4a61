//! `cargo xtask bench NAME`: builds what is measured as it ships, runs the benchmark, prints and writes its table.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::{
    Options, demo, images, prerequisites,
    programs::host_target,
    run::{cargo, run as run_command, timed},
};

pub fn run(root: &Path, options: &Options) -> Result<()> {
    match options.name.as_deref() {
        Some("pods") => pods(root, options),
        Some(other) => bail!("no benchmark {other:?}; there is: pods"),
        None => bail!("which benchmark? cargo xtask bench pods"),
    }
}

fn pods(root: &Path, options: &Options) -> Result<()> {
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
    let shim = options.shim.as_ref().map(|shim| shim.canonicalize()).transpose().context("--shim")?;
    let dir = demo::scratch("bench")?;
    let lines = e2e::bench::pods(&programs, &dir, shim.as_deref(), &mut e2e::steps::Steps::default())?;
    e2e::bench::print(&lines);
    let out = root.join("target/bench/pods.json");
    std::fs::create_dir_all(root.join("target/bench"))?;
    std::fs::write(&out, serde_json::to_vec_pretty(&lines)?)?;
    println!("\n{}", out.display());
    std::fs::remove_dir_all(&dir).context("remove the scratch folder")
}
