//! The Debian package of a node, for hosts that are not our image.

use std::path::Path;

use anyhow::Result;
use mkimage::{
    deb,
    oci::{self, oci_arch},
};

use crate::{
    Options, programs,
    run::{cargo, run as run_command, timed},
};

/// The sandbox image, as edgecore.yaml's default names it.
const PAUSE: &str = "docker.io/kinglet/pause:1";

pub fn run(root: &Path, options: &Options) -> Result<()> {
    for (arch, target) in programs::asked(options)? {
        build(root, arch, target, options)?;
    }
    Ok(())
}

fn build(root: &Path, arch: &str, target: &str, options: &Options) -> Result<()> {
    crate::prerequisites::device_compiler(root, options.debian_mirror.as_deref())?;
    let what = format!("build edgecore and mapper for {target}");
    timed(&what, "about 6 minutes the first time", || {
        let mut command = cargo(root);
        command.args(["build", "--locked", "--profile", "device", "--target", target]);
        run_command(command.args(["-p", "edgecore", "-p", "mapper"]))
    })?;
    let folder = options.out.clone().unwrap_or_else(|| root.join("target/deb"));
    std::fs::create_dir_all(&folder)?;
    let pause = folder.join(format!("pause-{arch}.tar"));
    let spec = oci::Spec {
        reference: PAUSE.into(),
        arch: oci_arch(target.split('-').next().unwrap_or_default()).into(),
        files: vec![oci::File::program(programs::pause(root, target)?, "/pause")],
        entrypoint: vec!["/pause".into()],
        ..oci::Spec::default()
    };
    oci::write_archive(&spec, &pause)?;
    let built = root.join("target").join(target).join("device");
    let package = deb::node(&deb::Node {
        texts: root.join("edge-image/deb"),
        version: env!("CARGO_PKG_VERSION").into(),
        arch: arch.into(),
        edgecore: built.join("edgecore"),
        mapper: built.join("mapper"),
        pause: pause.clone(),
    })?;
    let out = folder.join(package.file_name());
    deb::write(&package, &out)?;
    std::fs::remove_file(&pause)?;
    println!("    {} ({} bytes)", out.display(), std::fs::metadata(&out)?.len());
    Ok(())
}
