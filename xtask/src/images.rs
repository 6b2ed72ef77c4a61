//! The device's image: builds the programs, then packs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mkimage::{
    image::{self, Image, Programs},
    oci::{File, Spec, oci_arch, write_archive},
};

use crate::{
    Options, prerequisites,
    programs::{self, Device, PodPrograms},
    run::timed,
};

pub fn run(root: &Path, options: &Options) -> Result<()> {
    let board = options.board.as_deref().context("which board? --board rpi or --board qemu-virt")?;
    let (image, _) = build(root, board, options)?;
    println!("\n{}", image.xz.as_ref().unwrap_or(&image.img).display());
    Ok(())
}

/// Builds everything that goes into a board's image, and the image.
pub fn build(root: &Path, board: &str, options: &Options) -> Result<(Image, Device)> {
    let mirror = options.debian_mirror.as_deref();
    prerequisites::tools(root, mirror)?;
    let device = programs::device(root, mirror)?;
    let mut request = request(root, board, &device, options)?;
    request.dev = options.dev;
    if let Some(out) = &options.out {
        request.out_dir = out.clone();
    }
    let (image, _) = timed(&format!("pack the {board} image"), "about 3 minutes the first time", || {
        image::build(&request)
    })?;
    Ok((image, device))
}

/// What a board's image is to be made of, given the device's programs.
pub fn request(root: &Path, board: &str, device: &Device, options: &Options) -> Result<image::Options> {
    let folder = archives(root, "aarch64", &device.pods)?;
    let programs = Programs {
        init: device.init.clone(),
        edgecore: Some(device.edgecore.clone()),
        mapper: Some(device.mapper.clone()),
    };
    let mut request = image::Options::new(board, root, &root.join("target"), programs);
    request.pod_images = ["pause", "hello", "rule"].map(|name| folder.join(format!("{name}.tar"))).to_vec();
    request.debian_mirror = options.debian_mirror.clone();
    Ok(request)
}

/// The preloaded pod images for an architecture, as OCI archives in target/images/ARCH. The folder.
pub fn archives(root: &Path, arch: &str, pods: &PodPrograms) -> Result<PathBuf> {
    let folder = root.join("target/images").join(arch);
    std::fs::create_dir_all(&folder)?;
    for (name, program) in [("pause", &pods.pause), ("hello", &pods.hello), ("rule", &pods.rule)] {
        let spec = Spec {
            reference: format!("docker.io/kinglet/{name}:1"),
            arch: oci_arch(arch).into(),
            files: vec![File::program(program, &format!("/{name}"))],
            entrypoint: vec![format!("/{name}")],
            ..Spec::default()
        };
        write_archive(&spec, &folder.join(format!("{name}.tar")))?;
    }
    Ok(folder)
}

/// An image with a shell, for the pods of the tests: `docker.io/kinglet/busybox:1`, beside the others in target/images/ARCH.
pub fn busybox(root: &Path, busybox: &Path) -> Result<()> {
    // The shell runs its own programs without looking for them; these are for commands that are run without a shell.
    const APPLETS: [&str; 12] =
        ["sh", "cat", "echo", "env", "false", "httpd", "id", "ls", "nc", "sleep", "tar", "true"];
    let spec = Spec {
        reference: "docker.io/kinglet/busybox:1".into(),
        arch: oci_arch(std::env::consts::ARCH).into(),
        files: vec![File::program(busybox, "/bin/busybox")],
        links: APPLETS.map(|name| (format!("/bin/{name}"), "busybox".to_owned())).to_vec(),
        env: vec![("PATH".into(), "/bin".into())],
        ..Spec::default()
    };
    let folder = root.join("target/images").join(std::env::consts::ARCH);
    write_archive(&spec, &folder.join("busybox.tar")).map(drop)
}
