//! The build as the `cross` tool runs it, where no container engine is: under exactly the variables that cross's image for
//! aarch64-unknown-linux-musl sets (its docker/Dockerfile.aarch64-unknown-linux-musl), with programs of the names it brings.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    programs::DEVICE_TARGET,
    run::{cargo, run, timed},
};

const VARIABLES: &[(&str, &str)] = &[
    ("CROSS_TOOLCHAIN_PREFIX", "aarch64-linux-musl-"),
    ("CROSS_SYSROOT", "/usr/local/aarch64-linux-musl"),
    ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "aarch64-linux-musl-gcc.sh"),
    ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER", "/qemu-runner aarch64"),
    ("AR_aarch64_unknown_linux_musl", "aarch64-linux-musl-ar"),
    ("CC_aarch64_unknown_linux_musl", "aarch64-linux-musl-gcc"),
    ("CXX_aarch64_unknown_linux_musl", "aarch64-linux-musl-g++"),
    ("CMAKE_TOOLCHAIN_FILE_aarch64_unknown_linux_musl", "/opt/toolchain.cmake"),
    ("BINDGEN_EXTRA_CLANG_ARGS_aarch64_unknown_linux_musl", "--sysroot=/usr/local/aarch64-linux-musl"),
    ("QEMU_LD_PREFIX", "/usr/local/aarch64-linux-musl"),
    ("RUST_TEST_THREADS", "1"),
];

/// Builds edgecore in a target folder of its own; the program's path.
pub fn build(root: &Path) -> Result<PathBuf> {
    let target = root.join("target/cross-env");
    let bin = target.join("bin");
    stand_ins(root, &bin)?;
    timed("build edgecore under cross's variables", "about 2 minutes", || {
        let mut command = cargo(root);
        command.args(["build", "--quiet", "--locked", "-p", "edgecore", "--target", DEVICE_TARGET]);
        command.arg("--target-dir").arg(&target).envs(VARIABLES.iter().copied());
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = [bin.clone()].into_iter().chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(folders)?);
        run(&mut command)
    })?;
    Ok(target.join(DEVICE_TARGET).join("debug/edgecore"))
}

/// Programs of the names that cross's image has, made from the compiler and the linker that are here.
fn stand_ins(root: &Path, bin: &Path) -> Result<()> {
    std::fs::create_dir_all(bin)?;
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().context("run rustc")?;
    let sysroot = PathBuf::from(String::from_utf8(sysroot.stdout)?.trim());
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let lld = sysroot.join("lib/rustlib").join(host).join("bin/gcc-ld/ld.lld");
    let cc = root.join("cross/cc/aarch64-linux-musl-cc");
    let clang = if Command::new("clang").arg("--version").output().is_ok_and(|o| o.status.success()) {
        "clang".into()
    } else {
        root.join("target/tools/bin/clang-19").display().to_string()
    };
    let link =
        format!("exec {clang} --target=aarch64-linux-musl --ld-path={} -nostdlib \"$@\"", lld.display());
    for (name, line) in [
        ("aarch64-linux-musl-gcc", format!("exec {} \"$@\"", cc.display())),
        ("aarch64-linux-musl-gcc.sh", link),
        ("aarch64-linux-musl-ar", "exec ar \"$@\"".into()),
    ] {
        let path = bin.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{line}\n"))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}
