//! cloudcore as an OCI image: one static program, no base image, no container engine.

use std::path::{Path, PathBuf};

use anyhow::Result;
use mkimage::oci::{File, Spec, oci_arch, write_archive};

use crate::{Options, programs, run::timed};

/// The image's name, as `kubectl`, `ctr images import` and podman see it.
pub const REFERENCE: &str = "docker.io/kinglet/cloudcore:1";

pub fn run(root: &Path, options: &Options) -> Result<()> {
    for (_, target) in programs::asked(options)? {
        crate::prerequisites::device_compiler(root, options.debian_mirror.as_deref())?;
        let program = programs::cloudcore(root, target)?;
        build(root, target, &program, options)?;
    }
    Ok(())
}

/// Packs a built cloudcore. The archive's path.
pub fn build(root: &Path, target: &str, program: &Path, options: &Options) -> Result<PathBuf> {
    let arch = oci_arch(target.split('-').next().unwrap_or_default());
    let folder = options.out.clone().unwrap_or_else(|| root.join("target/cloud-image"));
    std::fs::create_dir_all(&folder)?;
    let out = folder.join(format!("cloudcore-{arch}.tar"));
    let spec = Spec {
        reference: REFERENCE.into(),
        arch: arch.into(),
        files: vec![File::program(program, "/cloudcore")],
        entrypoint: vec!["/cloudcore".into(), "--data-dir".into(), "/var/lib/kubeedge".into()],
        ports: vec![6443, 10000, 10002],
        ..Spec::default()
    };
    let (digest, _) = timed(&format!("pack {}", out.display()), "", || write_archive(&spec, &out))?;
    println!("    {REFERENCE} ({arch}) {digest}");
    Ok(out)
}
