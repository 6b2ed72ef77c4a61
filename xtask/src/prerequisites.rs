//! What must be there before anything is built: looked at first, shown as a table, each lack with its remedy.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};
use mkimage::tools::{Group, Options, Tools, ensure};

/// One line of the table.
struct Row {
    what: &'static str,
    found: String,
    /// `None` when all is well.
    remedy: Option<&'static str>,
}

/// Prints the table that a demo or a test run begins with. An error when something is missing.
pub fn table(root: &Path) -> Result<()> {
    let rows = [system(), cargo(), rust_target(), c_compiler(), disk(root)];
    println!("What this needs and what is here\n");
    for row in &rows {
        println!("  {:<12} {:<58} {}", row.what, row.found, row.remedy.map_or("ok", |_| "MISSING"));
    }
    println!("  {:<12} about 330 MB of Debian packages and 150 MB of crates, once", "download");
    println!("  {:<12} about 8 minutes on 2 cores the first time, 2 after that", "time");
    println!("  Nothing is installed on this machine: tools go to target/tools.\n");
    let missing: Vec<String> =
        rows.iter().filter_map(|row| row.remedy.map(|r| format!("{}: {r}", row.what))).collect();
    if !missing.is_empty() {
        bail!("something is missing\n  {}", missing.join("\n  "));
    }
    Ok(())
}

fn system() -> Row {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .unwrap_or("unknown")
        .trim_matches('"');
    let has_apt =
        answers(Command::new("apt-get").arg("--version")) && answers(Command::new("dpkg").arg("--version"));
    let linux = cfg!(target_os = "linux");
    Row {
        what: "system",
        found: format!("{name}, {}", std::env::consts::ARCH),
        remedy: (!linux || !has_apt)
            .then_some("a Debian or Ubuntu system is needed (apt-get, dpkg); elsewhere use the Containerfile (README, Other systems)"),
    }
}

fn cargo() -> Row {
    let version = Command::new("cargo").arg("--version").output().ok();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    Row {
        what: "cargo",
        found: version.clone().unwrap_or("none".into()),
        remedy: version.is_none().then_some("install Rust with rustup, then open a new shell"),
    }
}

fn rust_target() -> Row {
    let output = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", crate::programs::DEVICE_TARGET])
        .output();
    let folder = output.map(|o| PathBuf::from(String::from_utf8_lossy(&o.stdout).trim())).unwrap_or_default();
    let there = std::fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_some());
    Row {
        what: "rust target",
        found: crate::programs::DEVICE_TARGET.into(),
        remedy: (!there).then_some(
            "rustup target add aarch64-unknown-linux-musl x86_64-unknown-linux-musl thumbv6m-none-eabi",
        ),
    }
}

fn c_compiler() -> Row {
    let host = ["cc", "gcc", "clang"].into_iter().find(|name| answers(Command::new(name).arg("--version")));
    let found =
        host.map_or("none".into(), |name| format!("{name} (clang for arm64 is fetched if there is none)"));
    Row { what: "C compiler", found, remedy: host.is_none().then_some("apt-get install gcc libc6-dev") }
}

fn disk(root: &Path) -> Row {
    const NEEDED_GB: u64 = 12;
    let stat = nix::sys::statvfs::statvfs(root);
    let free_gb = stat.map(|s| s.blocks_available() * s.fragment_size() / 1_000_000_000).unwrap_or(0);
    Row {
        what: "disk",
        found: format!("{free_gb} GB free, {NEEDED_GB} GB needed"),
        remedy: (free_gb < NEEDED_GB).then_some("free some space, or set CARGO_TARGET_DIR to another disk"),
    }
}

fn answers(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// Everything that building, packing and running need, fetched into target/tools when it is not there yet.
pub fn tools(root: &Path, debian_mirror: Option<&str>) -> Result<Tools> {
    ensure(&[Group::Kubectl, Group::Qemu, Group::Image], &options(root, debian_mirror))
}

/// For what needs no image.
pub fn kubectl(root: &Path, debian_mirror: Option<&str>) -> Result<PathBuf> {
    Ok(ensure(&[Group::Kubectl], &options(root, debian_mirror))?.program("kubectl"))
}

/// The programs that the pods of the tests are made of, as a static busybox.
pub fn busybox(root: &Path, debian_mirror: Option<&str>) -> Result<PathBuf> {
    Ok(ensure(&[Group::Busybox], &options(root, debian_mirror))?.file("usr/bin/busybox"))
}

/// A C compiler for the device's architecture, fetched only where the host has none.
pub fn device_compiler(root: &Path, debian_mirror: Option<&str>) -> Result<()> {
    let own = std::env::consts::ARCH == "aarch64" || std::env::var_os("KINGLET_CC").is_some();
    let there = |name: &str| answers(Command::new(name).arg("--version"));
    if own || there("clang") || there("aarch64-linux-gnu-gcc") {
        return Ok(());
    }
    ensure(&[Group::Compiler], &options(root, debian_mirror)).map(drop)
}

fn options(root: &Path, debian_mirror: Option<&str>) -> Options {
    Options { target_dir: root.join("target"), debian_mirror: debian_mirror.map(str::to_owned) }
}
