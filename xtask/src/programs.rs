//! The programs: which are built how, and where they end up.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::{
    Options,
    run::{cargo, run, timed},
};

pub const DEVICE_TARGET: &str = "aarch64-unknown-linux-musl";

/// Static programs for the device, stripped.
#[derive(Clone, Debug)]
pub struct Device {
    pub edgecore: PathBuf,
    pub mapper: PathBuf,
    pub init: PathBuf,
    pub pods: PodPrograms,
}

/// What is in the preloaded pod images.
#[derive(Clone, Debug)]
pub struct PodPrograms {
    pub pause: PathBuf,
    pub hello: PathBuf,
    pub rule: PathBuf,
}

/// Builds the device's programs with fat LTO, for size.
pub fn device(root: &Path, debian_mirror: Option<&str>) -> Result<Device> {
    crate::prerequisites::device_compiler(root, debian_mirror)?;
    timed("build the device's programs", "about 6 minutes the first time", || {
        let mut command = cargo(root);
        command.args(["build", "--locked", "--profile", "device", "--target", DEVICE_TARGET]);
        command.args(["-p", "edgecore", "-p", "mapper", "-p", "init", "-p", "hello", "-p", "rule"]);
        run(&mut command)?;
        let pause = pause(root, DEVICE_TARGET)?;
        let folder = root.join("target").join(DEVICE_TARGET).join("device");
        let program = |name: &str| folder.join(name);
        Ok(Device {
            edgecore: program("edgecore"),
            mapper: program("mapper"),
            init: program("init"),
            pods: PodPrograms { pause, hello: program("hello"), rule: program("rule") },
        })
    })
    .map(|(device, _)| device)
}

/// The sandbox program; it has a workspace and flags of its own.
pub fn pause(root: &Path, target: &str) -> Result<PathBuf> {
    let folder = root.join("edge-image/pause");
    let mut command = cargo(&folder);
    command
        .args(["build", "--quiet", "--locked", "--release", "--target", target])
        .arg("--target-dir")
        .arg(folder.join("target"));
    run(&mut command)?;
    Ok(folder.join("target").join(target).join("release/pause"))
}

/// The example firmware of a microcontroller, after its tests on this machine; a workspace and a target of its own.
pub fn sensor(root: &Path) -> Result<PathBuf> {
    let folder = root.join("edge-image/examples/sensor");
    let mut test = cargo(&folder);
    test.args(["test", "--quiet", "--locked", "--lib", "--target", host_target()?]);
    run(&mut test)?;
    let mut build = cargo(&folder);
    build.args(["build", "--quiet", "--locked", "--release"]);
    run(&mut build)?;
    Ok(folder.join("target/thumbv6m-none-eabi/release/sensor"))
}

/// The architectures that were asked for (`--arch`; else all), as Debian and OCI name them, with their targets.
pub fn asked(options: &Options) -> Result<Vec<(&'static str, &'static str)>> {
    const ALL: [(&str, &str); 2] = [("amd64", "x86_64-unknown-linux-musl"), ("arm64", DEVICE_TARGET)];
    let find = |asked: &String| match ALL.iter().find(|(arch, _)| arch == asked) {
        Some(found) => Ok(*found),
        None => bail!("no architecture {asked:?}; there are amd64 and arm64"),
    };
    if options.arch.is_empty() { Ok(ALL.to_vec()) } else { options.arch.iter().map(find).collect() }
}

/// This machine's musl target.
pub fn host_target() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("x86_64-unknown-linux-musl"),
        "aarch64" => Ok(DEVICE_TARGET),
        other => bail!(
            "no static target for this machine's architecture {other}; x86_64 and aarch64 are supported"
        ),
    }
}

/// cloudcore as it is shipped: static, for the given musl target.
pub fn cloudcore(root: &Path, target: &str) -> Result<PathBuf> {
    let what = format!("build cloudcore for {target}");
    let (path, _) = timed(&what, "about 4 minutes the first time", || {
        let mut command = cargo(root);
        command.args(["build", "--locked", "--release", "--target", target, "-p", "cloudcore"]);
        run(&mut command)?;
        Ok(root.join("target").join(target).join("release/cloudcore"))
    })?;
    Ok(path)
}

/// cloudcore for this machine, unoptimised: what the interop flows run, which start it often and measure nothing.
pub fn cloudcore_unoptimised(root: &Path) -> Result<PathBuf> {
    let (path, _) = timed("build cloudcore for this machine, unoptimised", "", || {
        run(cargo(root).args(["build", "--quiet", "--locked", "-p", "cloudcore"]))?;
        Ok(root.join("target/debug/cloudcore"))
    })?;
    Ok(path)
}

/// The mapper that speaks DMI, for this machine, unoptimised; beside the other one.
pub fn mapper_dmi(root: &Path) -> Result<()> {
    timed("build kinglet-mapper-dmi for this machine, unoptimised", "", || {
        let what = ["-p", "mapper", "--features", "dmi", "--bin", "kinglet-mapper-dmi"];
        run(cargo(root).args(["build", "--quiet", "--locked"]).args(what))
    })
    .map(drop)
}

/// Builds what the host scenario runs: edgecore and mapper, unoptimised, and the programs of the pod images (pause, hello, rule) for this
/// machine, whose paths it gives.
pub fn host(root: &Path) -> Result<PodPrograms> {
    timed("build edgecore, mapper and the pod images for this machine", "", || {
        run(cargo(root).args(["build", "--quiet", "--locked", "-p", "edgecore", "-p", "mapper"]))?;
        let target = host_target()?;
        let release =
            ["build", "--quiet", "--locked", "--release", "-p", "hello", "-p", "rule", "--target", target];
        run(cargo(root).args(release))?;
        let folder = root.join("target").join(target).join("release");
        let pause = pause(root, target)?;
        Ok(PodPrograms { pause, hello: folder.join("hello"), rule: folder.join("rule") })
    })
    .map(|(programs, _)| programs)
}
